import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from bigkern.models.layers import Ours
from bigkern.models.vit import TIMM, ViT, ViTConfig, from_pretrained, patches_of
from bigkern.reference.models.vit import vit_loss_and_gradients
from bigkern.train_command import train as train_command
from tests.model_checks import check_against_twin, check_one_training_step
from tests.support import to_oracle

CONFIG = ViTConfig(image=12, patch=4, channels=2, classes=5, layers=2, heads=2, width=16, hidden=24)


def problem(batch=3):
    return torch.randn(batch, 2, 12, 12), torch.randint(5, (batch,))


def test_base_16_has_its_known_size():
    """86,567,656 parameters, timm's count for vit_base_patch16_224; one block of twelve is built."""
    model = ViT(ViTConfig(layers=1))
    block = sum(parameter.numel() for parameter in model.blocks.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) + 11 * block == 86_567_656


def build(layers=Ours):
    return ViT(CONFIG, layers)


def test_forward_and_every_gradient_match_the_numpy_twin():
    model = build().double()
    torch.nn.init.normal_(model.class_token)
    images, targets = problem()
    images = images.double()
    twin = lambda parameters: vit_loss_and_gradients(parameters, CONFIG, images.numpy(), targets.numpy())  # noqa: E731
    logits = check_against_twin(model, model.loss(images, targets), twin, rtol=1e-8, atol=1e-12, step=1e-5)
    np.testing.assert_allclose(to_oracle(model(images)), logits, rtol=1e-9, atol=1e-12)


def test_one_training_step_equals_plain_pytorch():
    images, targets = problem()
    check_one_training_step(build, lambda model, dtype: model.loss(images.to(dtype), targets))


def test_patches_are_those_of_a_strided_convolution():
    model = ViT(CONFIG)
    images, _ = problem()
    kernel = model.patches.weight.view(16, 2, 4, 4)
    expected = torch.nn.functional.conv2d(images, kernel, model.patches.bias, stride=4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.patches(patches_of(images, 4)), expected)


def test_weights_of_timm_and_hugging_face_are_understood():
    model = ViT(CONFIG)
    ours = model.state_dict()
    kernel = ours["patches.weight"].view(16, 2, 4, 4)
    timm = {"cls_token": ours["class_token"], "pos_embed": ours["positions"]}
    timm |= {"patch_embed.proj.weight": kernel, "patch_embed.proj.bias": ours["patches.bias"]}
    hugging_face = {
        "vit.embeddings.cls_token": ours["class_token"],
        "vit.embeddings.position_embeddings": ours["positions"],
    }
    projection = "vit.embeddings.patch_embeddings.projection"
    hugging_face |= {f"{projection}.weight": kernel, f"{projection}.bias": ours["patches.bias"]}
    names = {
        "norm_1": "layernorm_before", "norm_2": "layernorm_after", "attention.out": "attention.output.dense",
        "perceptron.up": "intermediate.dense", "perceptron.down": "output.dense",
    }  # fmt: skip
    for part in ("weight", "bias"):
        timm |= {f"{name}.{part}": ours[f"{name}.{part}"] for name in ("norm", "head")}
        hugging_face |= {f"vit.layernorm.{part}": ours[f"norm.{part}"], f"classifier.{part}": ours[f"head.{part}"]}
        for i in range(2):
            timm |= {f"blocks.{i}.{theirs}.{part}": ours[f"blocks.{i}.{mine}.{part}"] for mine, theirs in TIMM.items()}
            layer = f"vit.encoder.layer.{i}"
            hugging_face |= {
                f"{layer}.{theirs}.{part}": ours[f"blocks.{i}.{mine}.{part}"] for mine, theirs in names.items()
            }
            for name, value in zip(
                ("query", "key", "value"), ours[f"blocks.{i}.attention.qkv.{part}"].chunk(3), strict=True
            ):
                hugging_face[f"{layer}.attention.attention.{name}.{part}"] = value
    images, _ = problem()
    for state_dict in (timm, hugging_face):
        loaded = from_pretrained(state_dict, heads=2, image=12)
        assert loaded.config == CONFIG
        assert torch.equal(loaded(images), model(images))
    with pytest.raises(ValueError, match="neither timm's nor Hugging Face's"):
        from_pretrained({"x": images}, 2, 12)


def test_wrong_use_is_told():
    with pytest.raises(ValueError, match="patches of 5 do not divide an image of 12"):
        ViTConfig(image=12, patch=5)
    with pytest.raises(ValueError, match="3 heads do not divide a width of 16"):
        ViTConfig(heads=3, width=16)
    with pytest.raises(ValueError, match=r"images must be \[batch, 2, 12, 12\], got \(3, 2, 12, 13\)"):
        ViT(CONFIG)(torch.ones(3, 2, 12, 13))


def test_command_learns(tmp_path):
    result = CliRunner().invoke(
        train_command, ["vit", "--epochs", "3", "--layers", "1", "--width", "32", "--out", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    # One in ten would be guessing; the default 20 epochs of 4 layers are measured elsewhere.
    assert json.loads((tmp_path / "result.json").read_text())["test"]["accuracy"] > 0.6
