"""How the NumPy models go back: every step notes a function from the gradient of its output to that of its input.

Parameters are a dict with the names of the model's state_dict; `gradients` fills up under the same names.
"""

from ..array_module import array_module
from ..attention import attention_backward, attention_forward
from ..binary_cross_entropy_with_logits import (
    binary_cross_entropy_with_logits_backward,
    binary_cross_entropy_with_logits_forward,
)
from ..cross_entropy import cross_entropy_backward, cross_entropy_forward
from ..layer_norm import layer_norm_backward, layer_norm_forward
from ..linear_act import linear_act_backward, linear_act_forward
from ..rms_norm import rms_norm_backward, rms_norm_forward


class Tape:
    """One forward pass of a model; x are matrices [batch * length, width]. Each method returns (output, way back)."""

    def __init__(self, parameters, batch, length, eps=1e-5):
        xp = array_module(*parameters.values())
        self.parameters, self.batch, self.length, self.eps = parameters, batch, length, eps
        self.gradients = {name: xp.zeros_like(value) for name, value in parameters.items()}

    def linear(self, x, name, activation="none"):
        weight, bias = self.parameters[f"{name}.weight"], self.parameters.get(f"{name}.bias")
        output, z = linear_act_forward(x, weight, bias, activation, True)
        saved = z if activation in ("gelu", "gelu_tanh", "silu") else output

        def back(grad):
            grad_x, grad_weight, grad_bias = linear_act_backward(grad, x, weight, saved, activation, True, True, True)
            self.gradients[f"{name}.weight"] += grad_weight
            if bias is not None:
                self.gradients[f"{name}.bias"] += grad_bias
            return grad_x

        return output, back

    def relu_layers(self, x, name):
        """Linear layers with ReLU, name.0, name.1 and so on: as many as there are."""
        ways_back = []
        while f"{name}.{len(ways_back)}.weight" in self.parameters:
            x, back = self.linear(x, f"{name}.{len(ways_back)}", "relu")
            ways_back.append(back)

        def all_back(grad):
            for back in reversed(ways_back):
                grad = back(grad)
            return grad

        return x, all_back

    def norm(self, x, name):
        """layer_norm where there is a bias, else rms_norm."""
        weight, bias = self.parameters[f"{name}.weight"], self.parameters.get(f"{name}.bias")
        if bias is None:
            output, rstd = rms_norm_forward(x, weight, self.eps)

            def back(grad):
                grad_x, grad_weight = rms_norm_backward(grad, x, weight, rstd, True, True)
                self.gradients[f"{name}.weight"] += grad_weight
                return grad_x

            return output, back
        output, mean, rstd = layer_norm_forward(x, weight, bias, self.eps)

        def back(grad):
            grad_x, grad_weight, grad_bias = layer_norm_backward(grad, x, weight, bias, mean, rstd, True, True, True)
            self.gradients[f"{name}.weight"] += grad_weight
            self.gradients[f"{name}.bias"] += grad_bias
            return grad_x

        return output, back

    def attention(self, x, name, heads, kv_heads=None, causal=False, attn_mask=None, rotary_base=None):
        xp = array_module(x)
        kv_heads, head = kv_heads or heads, x.shape[1] // heads
        packed, back_qkv = self.linear(x, f"{name}.qkv")
        by_head = packed.reshape(self.batch, self.length, heads + 2 * kv_heads, head).swapaxes(1, 2)
        query, key, value = xp.split(by_head, (heads, heads + kv_heads), axis=1)
        if rotary_base:
            query, key = rotate(query, rotary_base), rotate(key, rotary_base)
        options = (None, 0.0, causal, head**-0.5, None, -1, -1)
        mixed, lse = attention_forward(query, key, value, attn_mask, *options)
        output, back_out = self.linear(mixed.swapaxes(1, 2).reshape(x.shape), f"{name}.out")

        def back(grad):
            grad_mixed = back_out(grad).reshape(self.batch, self.length, heads, head).swapaxes(1, 2)
            saved = query, key, value, attn_mask, mixed, lse
            grads = attention_backward(grad_mixed, None, *saved, *options, False)[:3]
            if rotary_base:
                grads = (*(rotate(grad, rotary_base, -1) for grad in grads[:2]), grads[2])
            return back_qkv(xp.concatenate(grads, axis=1).swapaxes(1, 2).reshape(packed.shape))

        return output, back

    def perceptron(self, x, name, activation):
        if activation != "swiglu":
            hidden, back_up = self.linear(x, f"{name}.up", activation)
            output, back_down = self.linear(hidden, f"{name}.down")
            return output, lambda grad: back_up(back_down(grad))
        gate, back_gate = self.linear(x, f"{name}.gate", "silu")
        up, back_up = self.linear(x, f"{name}.up")
        output, back_down = self.linear(gate * up, f"{name}.down")

        def back(grad):
            grad_hidden = back_down(grad)
            return back_gate(grad_hidden * up) + back_up(grad_hidden * gate)

        return output, back

    def pre_norm_blocks(self, x, count, activation, **attention_options):
        """The blocks named blocks.0 to blocks.{count - 1}."""
        ways_back = []
        for i in range(count):
            normed, back_norm = self.norm(x, f"blocks.{i}.norm_1")
            branch, back_branch = self.attention(normed, f"blocks.{i}.attention", **attention_options)
            x = x + branch
            ways_back.append((back_norm, back_branch))
            normed, back_norm = self.norm(x, f"blocks.{i}.norm_2")
            branch, back_branch = self.perceptron(normed, f"blocks.{i}.perceptron", activation)
            x = x + branch
            ways_back.append((back_norm, back_branch))

        def back(grad):
            for back_norm, back_branch in reversed(ways_back):
                grad = grad + back_norm(back_branch(grad))
            return grad

        return x, back


def rotate(x, base, direction=1):
    """The rotary embedding of x [batch, heads, length, head]; its inverse, which is its gradient, for direction -1."""
    xp = array_module(x)
    half = x.shape[-1] // 2
    angles = xp.arange(x.shape[2])[:, None] * base ** -(xp.arange(half) / half)
    cos, sin = xp.cos(angles), direction * xp.sin(angles)
    first, second = x[..., :half], x[..., half:]
    return xp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)


def mean_cross_entropy(logits, targets):
    """(mean cross-entropy, its gradient) of logits [rows, classes] and class indices of as many elements."""
    rows = logits[:, :, None], targets.reshape(-1, 1), None
    loss, lse, total = cross_entropy_forward(*rows, -100, "mean", 0.0)
    one = array_module(logits).ones(())
    grad_logits, _ = cross_entropy_backward(one, *rows, lse, total, -100, "mean", 0.0, False)
    return loss, grad_logits[:, :, 0]


def binary_cross_entropy(logits, targets, reduction="mean"):
    """(binary cross-entropy, its gradient) of logits and targets of one shape."""
    (loss,) = binary_cross_entropy_with_logits_forward(logits, targets, None, None, reduction)
    one = array_module(logits).ones(())
    grad_logits, _ = binary_cross_entropy_with_logits_backward(one, logits, targets, None, None, reduction, False)
    return loss, grad_logits
