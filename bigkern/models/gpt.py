"""A decoder-only language model: GPT-2's form, and the modern one of Llama, by the same class.

Pre-norm blocks of causal self-attention and a perceptron; the sum after each branch and the norm that follows are one
kernel. Sources: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019); Touvron et al., "LLaMA"
(2023).
"""

from dataclasses import dataclass
from functools import partial

import torch

from .blocks import Block, Perceptron, SelfAttention, initialize, run_pre_norm
from .layers import Ours


@dataclass(frozen=True)
class GPTConfig:
    """Sizes and form of a GPT.

    Args:
        vocabulary: number of tokens.
        context: longest sequence.
        layers, heads, width: width is that of a token's vector, heads must divide it.
        kv_heads: heads of keys and values, a divisor of heads; None: as many as heads.
        hidden: width inside the perceptron; None: 4 * width.
        norm: "layer_norm" or "rms_norm".
        positions: "learned" vectors added to the tokens, or "rotary" (Su et al., "RoFormer", 2021).
        perceptron: "gelu" (GPT-2's tanh form) or "swiglu" (Shazeer, "GLU Variants Improve Transformer", 2020).
        bias: linear layers have one.
        tied: the output layer is the token embedding.
        dropout: of each branch, and of the embedded tokens.
        rotary_base: theta of the rotary frequencies.
        eps: of the norms.
    """

    vocabulary: int = 256
    context: int = 128
    layers: int = 4
    heads: int = 4
    width: int = 128
    kv_heads: int | None = None
    hidden: int | None = None
    norm: str = "layer_norm"
    positions: str = "learned"
    perceptron: str = "gelu"
    bias: bool = True
    tied: bool = True
    dropout: float = 0.0
    rotary_base: float = 10000.0
    eps: float = 1e-5

    def __post_init__(self):
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"GPTConfig: {name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.width % self.heads:
            raise ValueError(f"GPTConfig: {self.heads} heads do not divide a width of {self.width}")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"GPTConfig: {self.kv_heads} kv_heads do not divide {self.heads} heads")
        if self.positions == "rotary" and self.width // self.heads % 2:
            raise ValueError(f"GPTConfig: rotary positions need an even head width, got {self.width // self.heads}")


CHOICES = {
    "norm": ("layer_norm", "rms_norm"),
    "positions": ("learned", "rotary"),
    "perceptron": ("gelu", "swiglu"),
}
MODERN = {"norm": "rms_norm", "positions": "rotary", "perceptron": "swiglu", "bias": False}


class KVCache:
    """Keys and values of the tokens seen so far: [batch, kv_heads, context, head width] for every layer."""

    def __init__(self, config: GPTConfig, batch: int, like: torch.Tensor):
        head = config.width // config.heads
        shape = (config.layers, 2, batch, config.kv_heads or config.heads, config.context, head)
        self.tensors = like.new_empty(shape)
        self.length = 0

    def append(self, layer: int, key, value):
        """Keeps new keys and values behind the old ones; returns all of them."""
        end = self.length + key.shape[2]
        self.tensors[layer, 0, :, :, self.length : end] = key
        self.tensors[layer, 1, :, :, self.length : end] = value
        return self.tensors[layer, 0, :, :, :end], self.tensors[layer, 1, :, :, :end]


def make_norm(config, layers):
    kind = layers.LayerNorm if config.norm == "layer_norm" else layers.RMSNorm
    return kind(config.width, eps=config.eps)


def make_block(config, layers):
    activation = "gelu_tanh" if config.perceptron == "gelu" else "swiglu"
    return Block(
        make_norm(config, layers),
        SelfAttention(config.width, config.heads, layers, config.kv_heads, config.bias, causal=True),
        make_norm(config, layers),
        Perceptron(config.width, config.hidden or 4 * config.width, layers, activation, config.bias),
    )


class GPT(torch.nn.Module):
    """A causal language model.

    Args:
        config: sizes and form.
        layers: what it is made of, `layers.Ours` or `layers.Plain`.

    Shape:
        tokens, int64 [batch, length] -> logits [batch, length, vocabulary]
    """

    def __init__(self, config: GPTConfig = GPTConfig(), layers=Ours):
        super().__init__()
        self.config, self.layers = config, layers
        self.tokens = layers.Embedding(config.vocabulary, config.width)
        if config.positions == "learned":
            self.positions = layers.Embedding(config.context, config.width)
        self.blocks = torch.nn.ModuleList(make_block(config, layers) for _ in range(config.layers))
        self.norm = make_norm(config, layers)
        self.output = layers.Linear(config.width, config.vocabulary, bias=False)
        if config.tied:
            self.output.weight = self.tokens.weight
        initialize(self, branches=2 * config.layers)

    def forward(self, tokens, cache: KVCache | None = None):
        config, start = self.config, cache.length if cache is not None else 0
        length = tokens.shape[1]
        if start + length > config.context:
            raise ValueError(f"GPT: {start + length} tokens are more than the context of {config.context}")
        if start and length > 1:
            raise ValueError("GPT: behind a cache, tokens come one at a time")
        x = self.tokens(tokens)
        places = torch.arange(start, start + length, device=tokens.device)
        rotation = None
        if config.positions == "learned":
            x = x + self.positions(places)
        else:
            rotation = self.rotation(places, x.dtype)
        x = torch.nn.functional.dropout(x, config.dropout, self.training)
        caches = [None if cache is None else partial(cache.append, layer) for layer in range(config.layers)]
        normed = run_pre_norm(
            self.blocks, self.norm, x, self.layers, config.dropout, self.training,
            rotation=[rotation] * config.layers, cache=caches,
        )  # fmt: skip
        if cache is not None:
            cache.length += length
        return self.output(normed)

    def rotation(self, places, dtype):
        """cos and sin [length, head width / 2] of every place's angles, computed in float32 or better."""
        head = self.config.width // self.config.heads
        precise = torch.float64 if dtype == torch.float64 else torch.float32
        exponents = torch.arange(0, head, 2, device=places.device, dtype=precise) / head
        angles = places[:, None].to(precise) * self.config.rotary_base**-exponents
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def loss(self, tokens, targets):
        """Mean cross-entropy of the next tokens, in nats; targets int64 [batch, length], -100 where none is asked."""
        logits = self(tokens)
        return self.layers.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))

    # ---- generation --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, tokens, count, *, temperature=1.0, top_k=None, top_p=None, generator=None):
        """Yields `count` tokens that go on from `tokens`, one at a time: int64 [batch] each.

        Args:
            tokens: int64 [batch, length], at least one.
            temperature: logits are divided by it; 0 takes the most probable token.
            top_k: only the k most probable tokens. top_p: only the most probable ones that together reach p (Holtzman
                et al., "The Curious Case of Neural Text Degeneration", 2020).
            generator: of the draws.

        Raises:
            ValueError: an argument is out of range, or the text would outgrow the context.
        """
        check_sampling(temperature, top_k, top_p)
        batch, length = tokens.shape
        if length == 0:
            raise ValueError("GPT: there must be at least one token to go on from")
        if length + count > self.config.context:
            raise ValueError(
                f"GPT: {length} tokens and {count} new ones are more than the context of {self.config.context}"
            )
        was_training = self.training
        self.eval()
        try:
            cache = KVCache(self.config, batch, self.tokens.weight)
            logits = self(tokens, cache)[:, -1]
            for place in range(count):
                token = sample(logits, temperature, top_k, top_p, generator)
                yield token
                if place + 1 < count:
                    logits = self(token[:, None], cache)[:, -1]
        finally:
            self.train(was_training)


def check_sampling(temperature, top_k, top_p):
    if temperature < 0:
        raise ValueError(f"GPT: temperature must not be negative, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"GPT: top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"GPT: top_p must be in (0, 1], got {top_p}")


def sample(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    """A token of each row of logits [batch, vocabulary], drawn as `GPT.generate` says."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    probabilities = logits.softmax(-1)
    if top_p is not None:
        ordered, places = probabilities.sort(descending=True)
        before = ordered.cumsum(-1) - ordered  # what more probable tokens hold together: the first is always kept
        probabilities = torch.zeros_like(probabilities).scatter(-1, places, ordered.masked_fill(before >= top_p, 0))
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


# ---- weights from elsewhere ------------------------------------------------------------------------------------------


def from_hugging_face(state_dict: dict, heads: int, kv_heads: int | None = None, layers=Ours, **options) -> GPT:
    """A GPT with the weights of a Hugging Face GPT-2 or Llama state_dict; sizes are read from the tensors.

    Args:
        state_dict: of GPT2LMHeadModel, GPT2Model, LlamaForCausalLM or LlamaModel.
        heads, kv_heads: which no tensor tells.
        options: further fields of GPTConfig that no tensor tells: context (Llama), rotary_base, eps.

    Raises:
        ValueError: the names are those of neither model, or some are missing.
    """
    names = {name.removeprefix("transformer.").removeprefix("model."): value for name, value in state_dict.items()}
    if "wte.weight" in names:
        return _from_gpt2(names, heads, layers, options)
    if "embed_tokens.weight" in names:
        return _from_llama(names, heads, kv_heads or heads, layers, options)
    raise ValueError("from_hugging_face: neither wte.weight (GPT-2) nor embed_tokens.weight (Llama) is there")


def _depth(names, prefix):
    return 1 + max(int(name.split(".")[1]) for name in names if name.startswith(f"{prefix}."))


def _load(model, weights):
    missing = [name for name in model.state_dict() if name not in weights]
    if missing:
        raise ValueError(f"from_hugging_face: nothing was found for {', '.join(missing)}")
    model.load_state_dict(weights)
    return model


def _from_gpt2(names, heads, layers, options):
    vocabulary, width = names["wte.weight"].shape
    depth = _depth(names, "h")
    config = GPTConfig(
        vocabulary=vocabulary, context=names["wpe.weight"].shape[0], layers=depth, heads=heads, width=width, **options
    )
    weights = {"tokens.weight": names["wte.weight"], "positions.weight": names["wpe.weight"]}
    weights |= {"norm.weight": names["ln_f.weight"], "norm.bias": names["ln_f.bias"]}
    weights["output.weight"] = names["wte.weight"]
    parts = {
        "norm_1": "ln_1", "norm_2": "ln_2", "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj",
        "perceptron.up": "mlp.c_fc", "perceptron.down": "mlp.c_proj",
    }  # fmt: skip
    for i in range(depth):
        for ours, theirs in parts.items():
            weight = names[f"h.{i}.{theirs}.weight"]
            # Hugging Face keeps GPT-2's linear weights as [in, out].
            weights[f"blocks.{i}.{ours}.weight"] = weight.t() if weight.ndim == 2 else weight
            weights[f"blocks.{i}.{ours}.bias"] = names[f"h.{i}.{theirs}.bias"]
    return _load(GPT(config, layers), weights)


def _from_llama(names, heads, kv_heads, layers, options):
    vocabulary, width = names["embed_tokens.weight"].shape
    depth = _depth(names, "layers")
    hidden = names["layers.0.mlp.gate_proj.weight"].shape[0]
    head = names.get("lm_head.weight")
    form = {"context": 2048, **MODERN, **options}
    config = GPTConfig(
        vocabulary=vocabulary, layers=depth, heads=heads, kv_heads=kv_heads, width=width, hidden=hidden,
        tied=head is None or torch.equal(head, names["embed_tokens.weight"]), **form,
    )  # fmt: skip
    weights = {"tokens.weight": names["embed_tokens.weight"], "norm.weight": names["norm.weight"]}
    weights["output.weight"] = names["embed_tokens.weight"] if head is None else head
    parts = {
        "norm_1": "input_layernorm", "norm_2": "post_attention_layernorm", "attention.out": "self_attn.o_proj",
        "perceptron.gate": "mlp.gate_proj", "perceptron.up": "mlp.up_proj", "perceptron.down": "mlp.down_proj",
    }  # fmt: skip
    for i in range(depth):
        for ours, theirs in parts.items():
            weights[f"blocks.{i}.{ours}.weight"] = names[f"layers.{i}.{theirs}.weight"]
        qkv = [names[f"layers.{i}.self_attn.{part}_proj.weight"] for part in "qkv"]
        weights[f"blocks.{i}.attention.qkv.weight"] = torch.cat(qkv)
    return _load(GPT(config, layers), weights)
