"""The vision transformer of bigkern.models.vit in NumPy, forward and backward, from the reference ops."""

from ..array_module import array_module
from .tape import Tape, mean_cross_entropy


def vit_loss_and_gradients(parameters, config, images, targets):
    """(loss, logits [batch, classes], gradients by the parameters' names).

    Args:
        parameters: by the names of the model's state_dict.
        config: has the fields of bigkern.models.vit.ViTConfig.
        images: [batch, channels, image, image]; targets: int [batch].
    """
    xp = array_module(images)
    batch, side = len(images), config.image // config.patch
    tape = Tape(parameters, batch, side * side + 1, config.eps)
    tiles = images.reshape(batch, config.channels, side, config.patch, side, config.patch)
    pixels = tiles.transpose(0, 2, 4, 1, 3, 5).reshape(batch * side * side, -1)
    embedded, back_patches = tape.linear(pixels, "patches")
    class_token = xp.broadcast_to(parameters["class_token"], (batch, 1, config.width))
    tokens = xp.concatenate((class_token, embedded.reshape(batch, side * side, config.width)), axis=1)
    x = (tokens + parameters["positions"]).reshape(-1, config.width)
    x, back_blocks = tape.pre_norm_blocks(x, config.layers, "gelu", heads=config.heads)
    normed, back_norm = tape.norm(x, "norm")
    first = normed.reshape(batch, -1, config.width)[:, 0]
    logits, back_head = tape.linear(first, "head")

    loss, grad_logits = mean_cross_entropy(logits, targets)
    grad_normed = xp.zeros((batch, side * side + 1, config.width))
    grad_normed[:, 0] = back_head(grad_logits)
    grad = back_blocks(back_norm(grad_normed.reshape(normed.shape))).reshape(tokens.shape)
    tape.gradients["positions"] += grad.sum(0, keepdims=True)
    tape.gradients["class_token"] += grad[:, :1].sum(0, keepdims=True)
    back_patches(grad[:, 1:].reshape(embedded.shape))
    return loss, logits, tape.gradients
