"""The GPT of bigkern.models.gpt in NumPy, forward and backward, from the reference ops."""

from ..array_module import array_module
from ..embedding import embedding_backward
from .tape import Tape, mean_cross_entropy


def gpt_loss_and_gradients(parameters, config, tokens, targets):
    """(loss, logits [batch * length, vocabulary], gradients by the parameters' names).

    Args:
        parameters: by the names of the model's state_dict; tied weights stand under both names, and their gradients
            are to be added up by who ties them.
        config: has the fields of bigkern.models.gpt.GPTConfig.
        tokens, targets: int [batch, length].
    """
    xp = array_module(tokens)
    batch, length = tokens.shape
    tape = Tape(parameters, batch, length, config.eps)
    tokens = tokens.reshape(-1)
    x = parameters["tokens.weight"][tokens]
    if config.positions == "learned":
        x = x + xp.tile(parameters["positions.weight"][:length], (batch, 1))
    x, back_blocks = tape.pre_norm_blocks(
        x,
        config.layers,
        "gelu_tanh" if config.perceptron == "gelu" else "swiglu",
        heads=config.heads,
        kv_heads=config.kv_heads,
        causal=True,
        rotary_base=config.rotary_base if config.positions == "rotary" else None,
    )
    normed, back_norm = tape.norm(x, "norm")
    logits, back_output = tape.linear(normed, "output")

    loss, grad_logits = mean_cross_entropy(logits, targets)
    grad = back_blocks(back_norm(back_output(grad_logits)))
    tape.gradients["tokens.weight"] += embedding_backward(grad, tokens, len(parameters["tokens.weight"]), -1, False)[0]
    if config.positions == "learned":
        tape.gradients["positions.weight"][:length] += grad.reshape(batch, length, -1).sum(0)
    return loss, logits, tape.gradients
