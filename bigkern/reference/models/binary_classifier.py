"""The binary classifier of bigkern.models.binary_classifier in NumPy, forward and backward, from the reference ops."""

from ..array_module import array_module
from ..linear_act import activation_backward, sigmoid
from ..mse_loss import mse_loss_backward, mse_loss_forward
from .tape import Tape, binary_cross_entropy


def classifier_loss_and_gradients(parameters, rows, targets, loss="cross_entropy"):
    """(loss, logits [batch], gradients by the parameters' names); loss is "cross_entropy" or "squared_error"."""
    tape = Tape(parameters, len(rows), 1)
    x, back_hidden = tape.relu_layers(rows, "hidden")
    logits, back_output = tape.linear(x, "output")
    logits = logits[:, 0]
    if loss == "cross_entropy":
        value, grad = binary_cross_entropy(logits, targets)
    else:
        probabilities = sigmoid(logits)
        (value,) = mse_loss_forward(probabilities, targets, "mean")
        grad, _ = mse_loss_backward(array_module(rows).ones(()), probabilities, targets, "mean", False)
        grad = activation_backward(grad, probabilities, "sigmoid")
    back_hidden(back_output(grad[:, None]))
    return value, logits, tape.gradients
