"""The GPT of bigkern.models.gpt in NumPy, forward and backward, from the reference ops.

Parameters are a dict with the names of the model's state_dict; tied weights stand under both names, and their gradients
are to be added up by who ties them.
"""

import numpy as np

from ..attention import attention_backward, attention_forward
from ..cross_entropy import cross_entropy_backward, cross_entropy_forward
from ..layer_norm import layer_norm_backward, layer_norm_forward
from ..linear_act import linear_act_backward, linear_act_forward
from ..rms_norm import rms_norm_backward, rms_norm_forward


def gpt_loss_and_gradients(parameters, config, tokens, targets):
    """(loss, logits [batch * length, vocabulary], gradients by the parameters' names).

    Args:
        config: has the fields of bigkern.models.gpt.GPTConfig.
        tokens, targets: int [batch, length].
    """
    run = _Run(parameters, config, tokens.shape)
    logits = run.forward(tokens)
    ones = (targets.reshape(-1, 1), None)
    loss, lse, total = cross_entropy_forward(logits[:, :, None], *ones, -100, "mean", 0.0)
    grad_logits, _ = cross_entropy_backward(
        np.ones(()), logits[:, :, None], *ones, lse, total, -100, "mean", 0.0, False
    )
    return loss, logits, run.backward(grad_logits[:, :, 0])


class _Run:
    """One forward pass, which notes how to go back: a list of functions from a gradient to a gradient."""

    def __init__(self, parameters, config, shape):
        self.parameters, self.config = parameters, config
        self.batch, self.length = shape
        self.gradients = {name: np.zeros_like(value) for name, value in parameters.items()}

    def linear(self, x, name, activation="none"):
        weight, bias = self.parameters[f"{name}.weight"], self.parameters.get(f"{name}.bias")
        output, z = linear_act_forward(x, weight, bias, activation, True)
        saved = z if activation in ("gelu_tanh", "silu") else output

        def back(grad):
            grad_x, grad_weight, grad_bias = linear_act_backward(grad, x, weight, saved, activation, True, True, True)
            self.gradients[f"{name}.weight"] += grad_weight
            if bias is not None:
                self.gradients[f"{name}.bias"] += grad_bias
            return grad_x

        return output, back

    def norm(self, x, name):
        weight, bias = self.parameters[f"{name}.weight"], self.parameters.get(f"{name}.bias")
        eps = self.config.eps
        if bias is None:
            output, rstd = rms_norm_forward(x, weight, eps)

            def back(grad):
                grad_x, grad_weight = rms_norm_backward(grad, x, weight, rstd, True, True)
                self.gradients[f"{name}.weight"] += grad_weight
                return grad_x

            return output, back
        output, mean, rstd = layer_norm_forward(x, weight, bias, eps)

        def back(grad):
            grad_x, grad_weight, grad_bias = layer_norm_backward(grad, x, weight, bias, mean, rstd, True, True, True)
            self.gradients[f"{name}.weight"] += grad_weight
            self.gradients[f"{name}.bias"] += grad_bias
            return grad_x

        return output, back

    def attention(self, x, name):
        config = self.config
        kv_heads, head = config.kv_heads or config.heads, config.width // config.heads
        packed, back_qkv = self.linear(x, f"{name}.qkv")
        by_head = packed.reshape(self.batch, self.length, config.heads + 2 * kv_heads, head).swapaxes(1, 2)
        query, key, value = np.split(by_head, (config.heads, config.heads + kv_heads), axis=1)
        if config.positions == "rotary":
            query, key = self.rotate(query, 1), self.rotate(key, 1)
        options = (None, None, 0.0, True, head**-0.5)
        mixed, lse = attention_forward(query, key, value, *options)
        output, back_out = self.linear(mixed.swapaxes(1, 2).reshape(x.shape), f"{name}.out")

        def back(grad):
            grad_mixed = back_out(grad).reshape(self.batch, self.length, config.heads, head).swapaxes(1, 2)
            mask, rng_state, dropout_p, causal, scale = options
            grads = attention_backward(
                grad_mixed, None, query, key, value, mask, mixed, lse, rng_state, dropout_p, causal, scale, False
            )[:3]
            if config.positions == "rotary":
                grads = (self.rotate(grads[0], -1), self.rotate(grads[1], -1), grads[2])
            return back_qkv(np.concatenate(grads, axis=1).swapaxes(1, 2).reshape(packed.shape))

        return output, back

    def rotate(self, x, direction):
        """The rotary embedding; its inverse, which is its gradient, where direction is -1."""
        half = x.shape[-1] // 2
        angles = np.arange(self.length)[:, None] * self.config.rotary_base ** -(np.arange(half) / half)
        cos, sin = np.cos(angles), direction * np.sin(angles)
        first, second = x[..., :half], x[..., half:]
        return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)

    def perceptron(self, x, name):
        if self.config.perceptron == "gelu":
            hidden, back_up = self.linear(x, f"{name}.up", "gelu_tanh")
            output, back_down = self.linear(hidden, f"{name}.down")
            return output, lambda grad: back_up(back_down(grad))
        gate, back_gate = self.linear(x, f"{name}.gate", "silu")
        up, back_up = self.linear(x, f"{name}.up")
        output, back_down = self.linear(gate * up, f"{name}.down")

        def back(grad):
            grad_hidden = back_down(grad)
            return back_gate(grad_hidden * up) + back_up(grad_hidden * gate)

        return output, back

    def forward(self, tokens):
        self.tokens = tokens.reshape(-1)
        x = self.parameters["tokens.weight"][self.tokens]
        if self.config.positions == "learned":
            x = x + np.tile(self.parameters["positions.weight"][: self.length], (self.batch, 1))
        self.ways_back = []
        for i in range(self.config.layers):
            for norm, branch in (("norm_1", self.attention), ("norm_2", self.perceptron)):
                name = "attention" if norm == "norm_1" else "perceptron"
                normed, back_norm = self.norm(x, f"blocks.{i}.{norm}")
                added, back_branch = branch(normed, f"blocks.{i}.{name}")
                x = x + added
                self.ways_back.append((back_norm, back_branch))
        normed, self.back_norm = self.norm(x, "norm")
        logits, self.back_output = self.linear(normed, "output")
        return logits

    def backward(self, grad_logits):
        grad = self.back_norm(self.back_output(grad_logits))
        for back_norm, back_branch in reversed(self.ways_back):
            grad = grad + back_norm(back_branch(grad))
        np.add.at(self.gradients["tokens.weight"], self.tokens, grad)
        if self.config.positions == "learned":
            by_place = grad.reshape(self.batch, self.length, -1).sum(0)
            self.gradients["positions.weight"][: self.length] += by_place
        return self.gradients
