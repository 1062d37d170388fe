"""Picture 8: the loss and accuracy curves of ``python -m fastgd train``."""

from __future__ import annotations

from matplotlib.axes import Axes

from fastgd.commands import train
from fastgd.commands.choice import CLASSIC
from fastgd.commands.figures.picture import Picture

EPOCHS = 30

Result = list[train.Outcome]


def run(epochs: int = EPOCHS) -> Result:
    """Train the network of ``python -m fastgd train`` with its usual optimizers."""
    return [train.train(name, epochs, 32, 0, lambda: None) for name in CLASSIC]


def draw_losses(axes: Axes, result: Result) -> None:
    train.draw_losses(axes, result)
    _without_legend(axes)


def draw_accuracies(axes: Axes, result: Result) -> None:
    train.draw_accuracies(axes, result)
    _without_legend(axes)


def _without_legend(axes: Axes) -> None:
    """One for both panels, under them, has room for every optimizer."""
    legend = axes.get_legend()
    assert legend is not None
    legend.remove()


def final(result: Result) -> str:
    return ", ".join(f"{o.optimizer} {o.accuracy:.1%}" for o in result)


def caption(result: Result) -> str:
    return f"Accuracy on digits that were not trained on: {final(result)}."


def alt(result: Result) -> str:
    losses = ", ".join(f"{o.optimizer} {o.losses[-1]:.4f}" for o in result)
    return (
        f"Two charts over {len(result[0].losses)} epochs: the training loss falls and the test "
        f"accuracy rises for each of six optimizers. {caption(result)} Final training losses: "
        f"{losses}."
    )


def words(result: Result) -> tuple[str, ...]:
    network = " → ".join(map(str, train.SIZES))
    ratios = sorted(o.numpy_us / o.fast_us for o in result)
    return (
        f"This is what python -m fastgd train does: a network {network} learns 1,437 "
        "handwritten digits in mini-batches of 32, once with each of six optimizers (of all with "
        "--optimizer all), and is tested on 360 others. After ten epochs the accuracies lie within "
        "the noise of the 360; the losses still tell the optimizers apart.",
        "Each training runs twice, by the compiled kernels and by their NumPy reference. The "
        f"weights are the same, bit for bit; a step takes {ratios[0]:.0f} to {ratios[-1]:.0f} "
        "times as long in NumPy.",
    )


PICTURE = Picture(
    "digits",
    "Training on handwritten digits",
    run,
    (draw_losses, draw_accuracies),
    2,
    caption,
    alt,
    words,
    shared_legend=True,
)
