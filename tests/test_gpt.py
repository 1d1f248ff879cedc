import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from bigkern.models.gpt import GPT, MODERN, GPTConfig, from_hugging_face, sample
from bigkern.models.layers import Ours, Plain
from bigkern.reference.models.gpt import gpt_loss_and_gradients
from bigkern.train_command import train as train_command
from tests.model_checks import check_against_twin, check_one_training_step
from tests.support import to_oracle

TINY = {"vocabulary": 31, "context": 24, "layers": 2, "heads": 4, "width": 32}
FORMS = {"gpt2": GPTConfig(**TINY), "modern": GPTConfig(**TINY, kv_heads=2, hidden=40, tied=False, **MODERN)}


def problem(config, batch=3, length=17):
    return torch.randint(config.vocabulary, (batch, length)), torch.randint(config.vocabulary, (batch, length))


@pytest.mark.parametrize("form", FORMS)
def test_forward_and_every_gradient_match_the_numpy_twin(form):
    config = FORMS[form]
    model = GPT(config).double()
    tokens, targets = problem(config)

    def twin(parameters):
        if config.tied:
            parameters = {**parameters, "output.weight": parameters["tokens.weight"]}
        loss, logits, gradients = gpt_loss_and_gradients(parameters, config, tokens.numpy(), targets.numpy())
        if config.tied:
            gradients["tokens.weight"] = gradients["tokens.weight"] + gradients["output.weight"]
        return loss, logits, gradients

    logits = check_against_twin(
        model, model.loss(tokens, targets), twin, rtol=1e-8, atol=1e-12, step=1e-5, difference_rtol=1e-6
    )
    np.testing.assert_allclose(to_oracle(model(tokens)).reshape(logits.shape), logits, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_one_training_step_equals_plain_pytorch(form):
    config = FORMS[form]
    batch = problem(config)
    check_one_training_step(lambda layers=Ours: GPT(config, layers), lambda model, dtype: model.loss(*batch))


@pytest.mark.parametrize("form", FORMS)
def test_generation_with_a_cache_is_generation_without(form):
    model = GPT(FORMS[form])
    tokens, _ = problem(FORMS[form], 2, 9)
    written = torch.stack(list(model.generate(tokens, 12, temperature=0)), 1)
    model.eval()
    for _ in range(12):
        tokens = torch.cat((tokens, model(tokens)[:, -1:].argmax(-1)), 1)
    assert torch.equal(tokens[:, 9:], written)


def test_generation_is_repeatable_and_leaves_the_mode_alone():
    model = GPT(FORMS["gpt2"])
    tokens, _ = problem(FORMS["gpt2"], 2, 3)
    first, second = (
        torch.stack(list(model.generate(tokens, 9, top_k=5, generator=torch.Generator().manual_seed(1))))
        for _ in range(2)
    )
    assert torch.equal(first, second)
    assert model.training


def test_sampling_keeps_to_what_it_is_told():
    logits = torch.tensor([[0.0, 3.0, 2.0, 1.0, -1.0]]).expand(4000, 5)
    probabilities = logits[0].softmax(0)
    assert set(sample(logits, 0).tolist()) == {1}
    assert set(sample(logits, 1.0, top_k=2).tolist()) == {1, 2}
    # 1 and 2 hold 0.64 + 0.24 of the probability: 0.87 is reached with the second, 0.9 needs the third.
    assert set(sample(logits, 1.0, top_p=0.87).tolist()) == {1, 2}
    assert set(sample(logits, 1.0, top_p=0.9).tolist()) == {1, 2, 3}
    assert set(sample(logits, 1.0, top_p=0.01).tolist()) == {1}
    shares = torch.bincount(sample(logits), minlength=5) / 4000
    assert (shares - probabilities).abs().max() < 0.03
    warmer = torch.bincount(sample(logits, 5.0), minlength=5) / 4000
    assert warmer[1] < shares[1] - 0.1


def test_wrong_use_is_told():
    model = GPT(FORMS["gpt2"])
    tokens = torch.zeros(1, 20, dtype=torch.int64)
    with pytest.raises(ValueError, match="25 tokens are more than the context of 24"):
        model(torch.zeros(1, 25, dtype=torch.int64))
    for arguments, message in (
        ({"count": 5}, "20 tokens and 5 new ones are more than the context"),
        ({"count": 1, "temperature": -1}, "temperature must not be negative"),
        ({"count": 1, "top_k": 0}, "top_k must be at least 1"),
        ({"count": 1, "top_p": 0}, r"top_p must be in \(0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            list(model.generate(tokens, **arguments))
    with pytest.raises(ValueError, match="5 heads do not divide a width of 32"):
        GPTConfig(heads=5, width=32)
    with pytest.raises(ValueError, match="3 kv_heads do not divide 4 heads"):
        GPTConfig(kv_heads=3)
    with pytest.raises(ValueError, match="norm must be one of layer_norm, rms_norm, got 'batch'"):
        GPTConfig(norm="batch")
    with pytest.raises(ValueError, match=r"neither wte\.weight"):
        from_hugging_face({"x": torch.ones(1)}, 4)


# ---- weights from elsewhere ------------------------------------------------------------------------------------------


def gpt2_names(model):
    """The model's weights under Hugging Face's names for GPT-2."""
    names = {"transformer.wte.weight": model.tokens.weight, "transformer.wpe.weight": model.positions.weight}
    names |= {f"transformer.ln_f.{part}": getattr(model.norm, part) for part in ("weight", "bias")}
    for i, block in enumerate(model.blocks):
        parts = {
            "ln_1": block.norm_1, "ln_2": block.norm_2, "attn.c_attn": block.attention.qkv,
            "attn.c_proj": block.attention.out, "mlp.c_fc": block.perceptron.up, "mlp.c_proj": block.perceptron.down,
        }  # fmt: skip
        for name, layer in parts.items():
            weight = layer.weight.t() if layer.weight.ndim == 2 else layer.weight
            names |= {f"transformer.h.{i}.{name}.weight": weight, f"transformer.h.{i}.{name}.bias": layer.bias}
    return names


def test_gpt2_names_are_understood():
    model = GPT(FORMS["gpt2"])
    loaded = from_hugging_face(gpt2_names(model), heads=4)
    tokens, _ = problem(FORMS["gpt2"])
    assert torch.equal(loaded(tokens), model(tokens))
    incomplete = gpt2_names(model)
    del incomplete["transformer.wpe.weight"]
    with pytest.raises(KeyError):
        from_hugging_face(incomplete, heads=4)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_logits_equal_those_of_hugging_face(kind):
    transformers = pytest.importorskip("transformers")
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=50, n_positions=32, n_embd=48, n_layer=2, n_head=4)
        theirs, heads = transformers.GPT2LMHeadModel(config), {"heads": 4}
    else:
        config = transformers.LlamaConfig(
            vocab_size=50, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, rms_norm_eps=1e-5, tie_word_embeddings=False,
        )  # fmt: skip
        theirs, heads = transformers.LlamaForCausalLM(config), {"heads": 4, "kv_heads": 2}
    theirs = theirs.double().eval()
    ours = from_hugging_face(theirs.state_dict(), **heads).double().eval()
    tokens = torch.randint(50, (2, 19))
    # Hugging Face takes Llama's rotary angles in float32 whatever the model's dtype.
    close = 1e-9 if kind == "gpt2" else 1e-6
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=close, atol=close)


# ---- the command -----------------------------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(train_command, ["gpt", *map(str, arguments)])


SMALL = ("--layers", 1, "--heads", 2, "--width", 32, "--context", 16, "--batch-size", 4, "--warmup-steps", 2)


def test_command_learns_the_users_text_and_resumes(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat. " * 200)
    result = run("--text", text, *SMALL, "--epochs", 2, "--lr", 0.01, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    measured = json.loads((tmp_path / "run" / "result.json").read_text())
    # A text of one sentence has no surprises beyond where it begins; knowing nothing costs log(256) = 5.5 nats.
    assert measured["test"]["loss"] < 1.0
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "best.safetensors", "checkpoint.pt", "loss.png", "result.json", "sample.txt",
    }  # fmt: skip
    again = run("--text", text, *SMALL, "--epochs", 3, "--lr", 0.01, "--out", tmp_path / "run", "--resume")
    assert again.exit_code == 0, again.output
    assert "resumed at epoch 2" in again.output


def test_command_says_what_is_wrong(tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("too short")
    for arguments, message in (
        (("--text", short), "too short: training, validation and test have 8, 0, 1 bytes"),
        (("--heads", 3), "3 heads do not divide a width of 128"),
        ((*SMALL, "--resume", "--out", tmp_path / "nothing"), "there is no checkpoint at"),
    ):
        result = run(*arguments)
        assert result.exit_code == 1
        assert message in result.output.replace("\n", " "), result.output


def test_layers_of_both_kinds_have_the_same_names():
    assert {name for name in vars(Ours) if not name.startswith("_")} == {
        name for name in vars(Plain) if not name.startswith("_")
    }
