"""The vision transformer: patches of a picture as tokens, and a class token whose last state is classified.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021). `ViTConfig()` is ViT-B/16.
"""

from dataclasses import dataclass

import torch

from .blocks import Block, Perceptron, SelfAttention, initialize, run_pre_norm
from .layers import Ours


@dataclass(frozen=True)
class ViTConfig:
    """Sizes of a vision transformer.

    Args:
        image: height and width in pixels; patch: of a patch, which must divide it.
        channels, classes: of the pictures, and how many there are to tell apart.
        layers, heads, width: width is that of a token's vector, heads must divide it.
        hidden: width inside the perceptron; None: 4 * width.
        dropout: of each branch and of the embedded patches.
        eps: of the norms.
    """

    image: int = 224
    patch: int = 16
    channels: int = 3
    classes: int = 1000
    layers: int = 12
    heads: int = 12
    width: int = 768
    hidden: int | None = None
    dropout: float = 0.0
    eps: float = 1e-6

    def __post_init__(self):
        if self.image % self.patch:
            raise ValueError(f"ViTConfig: patches of {self.patch} do not divide an image of {self.image}")
        if self.width % self.heads:
            raise ValueError(f"ViTConfig: {self.heads} heads do not divide a width of {self.width}")


class ViT(torch.nn.Module):
    """A classifier of pictures.

    Args:
        config: sizes.
        layers: what it is made of, `layers.Ours` or `layers.Plain`.

    Shape:
        images [batch, channels, image, image] -> logits [batch, classes]
    """

    def __init__(self, config: ViTConfig = ViTConfig(), layers=Ours):
        super().__init__()
        self.config, self.layers = config, layers
        tokens = (config.image // config.patch) ** 2
        # A convolution whose windows do not overlap is a linear layer of their pixels.
        self.patches = layers.Linear(config.channels * config.patch**2, config.width)
        self.class_token = torch.nn.Parameter(torch.zeros(1, 1, config.width))
        self.positions = torch.nn.Parameter(torch.zeros(1, tokens + 1, config.width))
        self.blocks = torch.nn.ModuleList(
            Block(
                layers.LayerNorm(config.width, eps=config.eps),
                SelfAttention(config.width, config.heads, layers),
                layers.LayerNorm(config.width, eps=config.eps),
                Perceptron(config.width, config.hidden or 4 * config.width, layers),
            )
            for _ in range(config.layers)
        )
        self.norm = layers.LayerNorm(config.width, eps=config.eps)
        self.head = layers.Linear(config.width, config.classes)
        initialize(self)

    def forward(self, images):
        config = self.config
        expected = (config.channels, config.image, config.image)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(f"ViT: images must be [batch, {', '.join(map(str, expected))}], got {tuple(images.shape)}")
        x = self.patches(patches_of(images, config.patch))
        x = torch.cat((self.class_token.expand(len(images), -1, -1), x), dim=1) + self.positions
        x = torch.nn.functional.dropout(x, config.dropout, self.training)
        normed = run_pre_norm(self.blocks, self.norm, x, self.layers, config.dropout, self.training)
        return self.head(normed[:, 0])

    def loss(self, images, targets):
        """Mean cross-entropy, in nats; targets int64 [batch]."""
        return self.layers.cross_entropy(self(images), targets)


def patches_of(images, size):
    """[batch, channels, height, width] -> [batch, patches, channels * size * size], row after row."""
    batch, channels, height, width = images.shape
    tiles = images.view(batch, channels, height // size, size, width // size, size)
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * size * size)


# ---- weights from elsewhere ------------------------------------------------------------------------------------------

TIMM = {
    "norm_1": "norm1", "norm_2": "norm2", "attention.qkv": "attn.qkv", "attention.out": "attn.proj",
    "perceptron.up": "mlp.fc1", "perceptron.down": "mlp.fc2",
}  # fmt: skip
HUGGING_FACE = {
    "norm_1": "layernorm_before", "norm_2": "layernorm_after", "attention.out": "attention.output.dense",
    "perceptron.up": "intermediate.dense", "perceptron.down": "output.dense",
}  # fmt: skip


def from_pretrained(state_dict: dict, heads: int, image: int, layers=Ours, **options) -> ViT:
    """A ViT with the weights of timm's or Hugging Face's state_dict; sizes are read from the tensors.

    Args:
        heads, image: which no tensor tells.
        options: further fields of ViTConfig, such as eps.

    Raises:
        ValueError: the names are those of neither.
    """
    if "patch_embed.proj.weight" in state_dict:
        weights = _timm_weights(state_dict)
    elif any(name.endswith("embeddings.patch_embeddings.projection.weight") for name in state_dict):
        weights = _hugging_face_weights({name.removeprefix("vit."): value for name, value in state_dict.items()})
    else:
        raise ValueError("from_pretrained: the names are neither timm's nor Hugging Face's for a ViT")
    kernel = weights.pop("patches.kernel")
    config = ViTConfig(
        image=image, patch=kernel.shape[-1], channels=kernel.shape[1], classes=len(weights["head.weight"]),
        layers=1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks.")), heads=heads,
        width=len(kernel), hidden=len(weights["blocks.0.perceptron.up.weight"]), **options,
    )  # fmt: skip
    model = ViT(config, layers)
    model.load_state_dict({**weights, "patches.weight": kernel.flatten(1)})
    return model


def _timm_weights(names):
    weights = {"class_token": names["cls_token"], "positions": names["pos_embed"]}
    weights |= {"patches.kernel": names["patch_embed.proj.weight"], "patches.bias": names["patch_embed.proj.bias"]}
    depth = len({name.split(".")[1] for name in names if name.startswith("blocks.")})
    for part in ("weight", "bias"):
        weights |= {f"{layer}.{part}": names[f"{layer}.{part}"] for layer in ("norm", "head")}
        for i in range(depth):
            weights |= {
                f"blocks.{i}.{ours}.{part}": names[f"blocks.{i}.{theirs}.{part}"] for ours, theirs in TIMM.items()
            }
    return weights


def _hugging_face_weights(names):
    weights = {"class_token": names["embeddings.cls_token"], "positions": names["embeddings.position_embeddings"]}
    projection = "embeddings.patch_embeddings.projection"
    weights |= {"patches.kernel": names[f"{projection}.weight"], "patches.bias": names[f"{projection}.bias"]}
    depth = len({name.split(".")[2] for name in names if name.startswith("encoder.layer.")})
    for part in ("weight", "bias"):
        weights |= {f"norm.{part}": names[f"layernorm.{part}"], f"head.{part}": names[f"classifier.{part}"]}
        for i in range(depth):
            block = f"encoder.layer.{i}"
            weights |= {
                f"blocks.{i}.{ours}.{part}": names[f"{block}.{theirs}.{part}"] for ours, theirs in HUGGING_FACE.items()
            }
            qkv = [names[f"{block}.attention.attention.{name}.{part}"] for name in ("query", "key", "value")]
            weights[f"blocks.{i}.attention.qkv.{part}"] = torch.cat(qkv)
    return weights
