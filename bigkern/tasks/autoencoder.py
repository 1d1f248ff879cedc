"""Autoencoders of scikit-learn's handwritten digits."""

import click
import torch

from ..data import digits
from ..models.autoencoder import Autoencoder
from . import Task

OPTIONS = [
    click.Option(["--variational"], is_flag=True, help="A variational one, which draws new digits."),
    click.Option(["--hidden"], type=click.IntRange(1), default=256, show_default=True),
    click.Option(["--code"], type=click.IntRange(1), default=32, show_default=True, help="Numbers to a digit."),
]
SHOWN = 10


def make(*, variational=False, hidden=256, code=32) -> Task:
    """Reconstruction of 28x28 digits."""
    train, validation, test = digits()
    config = {"hidden": hidden, "code": code, "variational": variational}

    def afterwards(model, folder, console):
        save_pictures(model, test.inputs[:SHOWN].to(model.decode_pixels.weight.device), folder / "pictures.png")
        console.print(f"pictures, and what is left of them, in {folder / 'pictures.png'}", highlight=False)

    return Task(
        name="autoencoder",
        label="autoencoder-variational" if variational else "autoencoder",
        config=config,
        build=lambda kind: Autoencoder(**config, layers=kind),
        train=train,
        validation=validation,
        test=test,
        loss=lambda model, batch: model.loss(batch[0]),
        evaluate=reconstruction,
        metric="loss",
        epochs=20,
        batch_size=32,
        learning_rate=2e-3,
        items=f"digits: {len(train)} to train on, {len(validation)} to validate, {len(test)} to test",
        afterwards=afterwards,
    )


def reconstruction(model, data) -> dict:
    """The loss in nats per picture, with one draw of the code where it is variational; and the root mean square error
    of the pixels, 0 to 1."""
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the same draws for every epoch
        loss = model.loss(data.inputs.to(model.decode_pixels.weight.device)).item()
    pictures = torch.sigmoid(model(data.inputs.to(model.decode_pixels.weight.device))).cpu()
    return {"loss": loss, "RMSE": (pictures - data.inputs).square().mean().sqrt().item()}


def save_pictures(model, pictures, path):
    """A PNG: pictures, their reconstructions and, of a variational autoencoder, new ones below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = {"given": pictures, "reconstructed": torch.sigmoid(model(pictures))}
    if model.variational:
        rows["drawn"] = model.draw(len(pictures), torch.Generator().manual_seed(0))
    figure, axes = pyplot.subplots(len(rows), len(pictures), figsize=(len(pictures), len(rows) * 1.1), squeeze=False)
    for row, (name, images) in zip(axes, rows.items(), strict=True):
        for place, image in zip(row, images.cpu(), strict=True):
            place.imshow(image.view(28, 28).numpy(), cmap="gray", vmin=0, vmax=1)
            place.set_axis_off()
        row[0].set_title(name, loc="left", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
