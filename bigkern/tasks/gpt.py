"""Pre-training a small GPT on text, byte by byte."""

from pathlib import Path

import click
import torch

from ..data import Windows, python_documentation
from ..models.gpt import GPT, MODERN, GPTConfig
from . import Task

OPTIONS = [
    click.Option(
        ["--text"],
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A text file of yours.  [default: Python's documentation]",
    ),
    click.Option(
        ["--form"],
        type=click.Choice(["gpt2", "modern"]),
        default="gpt2",
        show_default=True,
        help="modern: RMSNorm, rotary positions, SwiGLU, grouped queries.",
    ),
    click.Option(["--layers"], type=click.IntRange(1), default=4, show_default=True),
    click.Option(["--heads"], type=click.IntRange(1), default=4, show_default=True),
    click.Option(["--width"], type=click.IntRange(1), default=128, show_default=True),
    click.Option(["--context"], type=click.IntRange(1), default=128, show_default=True, help="Bytes seen at a time."),
    click.Option(["--dropout"], type=click.FloatRange(0, 1), default=0.0, show_default=True),
]
VOCABULARY = 256  # bytes: every text can be written, and no tokenizer is needed


def make(
    *, text: Path | None = None, form: str = "gpt2", layers=4, heads=4, width=128, context=128, dropout=0.0
) -> Task:
    """A byte-level language model of `text`, or of Python's own documentation.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the text is too short for training, validation and test, or sizes do not go together.
    """
    if text is None:
        parts = [torch.frombuffer(bytearray(part.encode()), dtype=torch.uint8) for part in python_documentation()]
        name = "Python's documentation"
    else:
        whole = torch.frombuffer(bytearray(Path(text).read_bytes() or b"\0"), dtype=torch.uint8)
        cuts = (int(len(whole) * 0.9), int(len(whole) * 0.95))
        parts = whole[: cuts[0]], whole[cuts[0] : cuts[1]], whole[cuts[1] :]
        name = str(text)
    if min(len(part) for part in parts) <= context:
        raise ValueError(
            f"{name} is too short: training, validation and test have {', '.join(str(len(part)) for part in parts)} "
            f"bytes, and each needs more than the context of {context}"
        )
    train, validation, test = (Windows(part.long(), context) for part in parts)
    config = GPTConfig(
        vocabulary=VOCABULARY, context=context, layers=layers, heads=heads, width=width, dropout=dropout,
        **({"kv_heads": max(heads // 2, 1), **MODERN} if form == "modern" else {}),
    )  # fmt: skip
    return Task(
        name="gpt",
        label="gpt" if form == "gpt2" else "gpt-modern",
        config=vars(config),
        build=lambda kind: GPT(config, kind),
        train=train,
        validation=validation,
        test=test,
        loss=lambda model, batch: model.loss(*batch),
        evaluate=perplexity,
        metric="loss",
        epochs=2,
        batch_size=16,
        learning_rate=2e-3,
        weight_decay=0.1,
        optimizer="adamw",
        schedule="cosine",
        warmup_steps=20,
        max_grad_norm=1.0,
        items=f"{name}: {len(parts[0]):,} bytes to train on, {len(parts[1]):,} to validate, {len(parts[2]):,} to test",
        afterwards=show_sample,
    )


def perplexity(model, data) -> dict:
    """Mean cross-entropy in nats per byte, perplexity, and bits per byte."""
    total, count = 0.0, 0
    for tokens, targets in data.batches(32):
        total += model.loss(tokens, targets).item() * targets.numel()
        count += targets.numel()
    loss = torch.tensor(total / count, dtype=torch.float64)
    return {"loss": loss.item(), "perplexity": loss.exp().item(), "bits per byte": loss.item() / 0.6931471805599453}


def show_sample(model, folder, console):
    """Lets the model write a few lines, and keeps them in sample.txt."""
    prompt = b"The "
    tokens = torch.tensor([list(prompt)], device=model.tokens.weight.device)
    count = min(240, model.config.context - len(prompt))
    generator = torch.Generator(tokens.device).manual_seed(0)
    written = [int(t) for t in model.generate(tokens, count, temperature=0.8, top_p=0.9, generator=generator)]
    text = (prompt + bytes(written)).decode("utf-8", "replace")
    (folder / "sample.txt").write_text(text + "\n")
    console.print(f"it writes: {text!r}", markup=False, highlight=False)
