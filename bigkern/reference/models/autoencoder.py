"""The autoencoders of bigkern.models.autoencoder in NumPy, forward and backward, from the reference ops."""

from ..array_module import array_module
from .tape import Tape, binary_cross_entropy


def autoencoder_loss_and_gradients(parameters, pictures, noise=None):
    """(loss, logits [batch, pixels], gradients by the parameters' names); noise [batch, code]: a variational one."""
    xp = array_module(pictures)
    batch = len(pictures)
    tape = Tape(parameters, batch, 1)
    hidden, back_hidden = tape.linear(pictures, "encode_hidden", "relu")
    encoded, back_encoded = tape.linear(hidden, "encode_code")
    code, divergence = encoded, 0.0
    if noise is not None:
        mean, log_variance = encoded[:, : noise.shape[1]], encoded[:, noise.shape[1] :]
        deviation = xp.exp(0.5 * log_variance)
        code = mean + deviation * noise
        divergence = 0.5 * (mean**2 + deviation**2 - 1 - log_variance).sum() / batch
    decoded, back_decoded = tape.linear(code, "decode_hidden", "relu")
    logits, back_pixels = tape.linear(decoded, "decode_pixels")
    errors, grad_logits = binary_cross_entropy(logits, pictures, "sum")

    grad = back_decoded(back_pixels(grad_logits / batch))
    if noise is not None:
        grad_log_variance = grad * noise * 0.5 * deviation + 0.5 * (deviation**2 - 1) / batch
        grad = xp.concatenate((grad + mean / batch, grad_log_variance), axis=1)
    back_hidden(back_encoded(grad))
    return errors / batch + divergence, logits, tape.gradients
