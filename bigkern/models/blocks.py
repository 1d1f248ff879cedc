"""What transformers share: self-attention, the perceptron after it, and a stack of pre-norm blocks."""

import torch


class SelfAttention(torch.nn.Module):
    """Queries, keys and values from one projection, attention, and the projection back.

    Args:
        width: of a token's vector; heads must divide it.
        kv_heads: heads of keys and values; None: as many as heads.
        causal: a token sees those before it and itself.
        layers: `layers.Ours` or `layers.Plain`.

    Shape:
        x [batch, length, width] -> the same
    """

    def __init__(self, width, heads, layers, kv_heads=None, bias=True, causal=False):
        super().__init__()
        self.heads, self.kv_heads, self.causal = heads, kv_heads or heads, causal
        self.head = width // heads
        self.qkv = layers.Linear(width, (self.heads + 2 * self.kv_heads) * self.head, bias=bias)
        self.out = layers.Linear(width, width, bias=bias)
        self.attention = layers.attention

    def forward(self, x, attn_mask=None, rotation=None, cache=None):
        """attn_mask: as in scaled_dot_product_attention. rotation: cos and sin of rotary positions. cache: a function
        that keeps new keys and values and returns all of them."""
        batch, length, width = x.shape
        parts = self.qkv(x).view(batch, length, self.heads + 2 * self.kv_heads, self.head).transpose(1, 2)
        query, key, value = parts.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        if rotation is not None:
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        if cache is not None:
            key, value = cache(key, value)
        mixed = self.attention(
            query, key, value, attn_mask,
            is_causal=self.causal and length > 1, enable_gqa=self.kv_heads != self.heads,
        )  # fmt: skip
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


def rotate(x, cos, sin):
    """Turns pairs (x[i], x[i + head / 2]); x is [batch, heads, length, head], cos and sin [length, head / 2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Perceptron(torch.nn.Module):
    """down(act(up(x))), or down(silu(gate(x)) * up(x)) for the activation "swiglu".

    Shape:
        [..., width] -> [..., width]
    """

    def __init__(self, width, hidden, layers, activation="gelu", bias=True):
        super().__init__()
        self.gated = activation == "swiglu"
        if self.gated:
            self.gate = layers.LinearAct(width, hidden, bias=bias, activation="silu")
            self.up = layers.Linear(width, hidden, bias=bias)
        else:
            self.up = layers.LinearAct(width, hidden, bias=bias, activation=activation)
        self.down = layers.Linear(hidden, width, bias=bias)

    def forward(self, x):
        return self.down(self.gate(x) * self.up(x) if self.gated else self.up(x))


class Block(torch.nn.Module):
    """The parts of a transformer block; `run_pre_norm` says how they follow each other."""

    def __init__(self, norm_1, attention, norm_2, perceptron):
        super().__init__()
        self.norm_1, self.attention, self.norm_2, self.perceptron = norm_1, attention, norm_2, perceptron


def run_pre_norm(blocks, last_norm, x, layers, dropout, training, **attention_options):
    """last_norm(x) after x = x + dropout(branch(norm(x))) for every branch of every block.

    The sum after a branch and the norm before the next are one call.

    Args:
        attention_options: each a list with an entry for every block.
    """
    norms = [norm for block in blocks for norm in (block.norm_1, block.norm_2)] + [last_norm]
    normed = norms[0](x)
    for i, block in enumerate(blocks):
        branch = block.attention(normed, **{name: values[i] for name, values in attention_options.items()})
        normed, x = layers.add_norm(norms[2 * i + 1], branch, x, dropout, training)
        normed, x = layers.add_norm(norms[2 * i + 2], block.perceptron(normed), x, dropout, training)
    return normed


def initialize(module, deviation=0.02, branches=0):
    """GPT-2's and BERT's start: weights normal with this deviation, biases 0, norms 1.

    Args:
        branches: how many add up; weights that end one get deviation / sqrt(branches). 0: all alike.
    """
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
        elif parameter.ndim >= 2:
            ends_branch = branches and name.endswith(("attention.out.weight", "perceptron.down.weight"))
            torch.nn.init.normal_(parameter, std=deviation / branches**0.5 if ends_branch else deviation)
