"""The binary classifier of bigkern.models.binary_classifier in NumPy, forward and backward, from the reference ops."""

from ..array_module import array_module
from ..linear_act import sigmoid
from .tape import Tape


def classifier_loss_and_gradients(parameters, rows, targets, loss="cross_entropy"):
    """(loss, logits [batch], gradients by the parameters' names); loss is "cross_entropy" or "squared_error"."""
    xp = array_module(rows)
    tape = Tape(parameters, len(rows), 1)
    x, ways_back = rows, []
    for i in range(len({name.split(".")[1] for name in parameters if name.startswith("hidden.")})):
        x, back = tape.linear(x, f"hidden.{i}", "relu")
        ways_back.append(back)
    logits, back_output = tape.linear(x, "output")
    logits = logits[:, 0]
    probabilities = sigmoid(logits)
    if loss == "cross_entropy":
        value = (xp.maximum(logits, 0) - logits * targets + xp.log1p(xp.exp(-xp.abs(logits)))).mean()
        grad = probabilities - targets
    else:
        value = ((probabilities - targets) ** 2).mean()
        grad = 2 * (probabilities - targets) * probabilities * (1 - probabilities)
    grad = back_output((grad / len(rows))[:, None])
    for back in reversed(ways_back):
        grad = back(grad)
    return value, logits, tape.gradients
