"""The CNN of bigkern.models.cnn in NumPy, forward and backward, from the reference ops."""

from ..conv2d import conv2d_backward, conv2d_forward
from ..max_pool2d import max_pool2d_backward, max_pool2d_forward
from .tape import Tape, mean_cross_entropy

GEOMETRY = (1, 1, 1, 1, 1, 1, 1)  # stride, padding and dilation of both axes, groups
POOL = (2, 2, 2, 2, 0, 0, 1, 1)  # kernel, stride, padding and dilation of both axes


def cnn_loss_and_gradients(parameters, images, targets):
    """(loss, logits [batch, classes], gradients by the parameters' names); images [batch, channels, image, image]."""
    tape = Tape(parameters, len(images), 1)
    x, ways_back = images, []
    for name in ("conv_1", "conv_2"):
        x, back = _conv_relu_pool(tape, x, name)
        ways_back.append(back)
    shape = x.shape
    hidden, back_hidden = tape.linear(x.reshape(len(images), -1), "hidden", "relu")
    logits, back_output = tape.linear(hidden, "output")

    loss, grad_logits = mean_cross_entropy(logits, targets)
    grad = back_hidden(back_output(grad_logits)).reshape(shape)
    for back in reversed(ways_back):
        grad = back(grad)
    return loss, logits, tape.gradients


def _conv_relu_pool(tape, x, name):
    weight, bias = tape.parameters[f"{name}.weight"], tape.parameters[f"{name}.bias"]
    (activated,) = conv2d_forward(x, weight, bias, *GEOMETRY, "relu")
    pooled, indices = max_pool2d_forward(activated, *POOL, False)

    def back(grad):
        (grad_activated,) = max_pool2d_backward(grad, indices, *activated.shape[2:], *POOL)
        grads = conv2d_backward(grad_activated * (activated > 0), x, weight, *GEOMETRY, True, True, True)
        tape.gradients[f"{name}.weight"] += grads[1]
        tape.gradients[f"{name}.bias"] += grads[2]
        return grads[0]

    return pooled, back
