"""``python -m fastgd train``: a network on handwritten digits, every optimizer, against NumPy."""

from __future__ import annotations

import argparse
import io
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import fastgd
from fastgd import plot
from fastgd.commands import choice, output
from fastgd.commands.mlp import accuracy, fit, init_layers
from fastgd.commands.work import Work
from fastgd.optimizers import OPTIMIZERS

SIZES = (64, 96, 32, 10)
# How many small charts stand side by side.
SMALL = 6

# Where an optimizer's defaults are too cautious for so small a problem.
SETTINGS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.02, "momentum": 0.9, "nesterov": True},
    "Momentum": {"lr": 0.3, "beta": 0.9, "bias_correction": True},
    "Adagrad": {"lr": 0.03},
    "RMSprop": {"lr": 2e-3, "alpha": 0.9},
    "Adam": {"lr": 2e-3},
    "AdamW": {"lr": 2e-3, "weight_decay": 0.05},
    "LARS": {"lr": 0.5, "momentum": 0.9},
    "ASGD": {"lr": 0.3},
    # In mini-batches signs turn by chance: the steps are kept from dying away.
    "Rprop": {"lr": 1e-3, "step_sizes": (7e-4, 2e-3)},
    "Adamax": {"lr": 4e-3},
    "RAdam": {"lr": 2e-3},
    "AdaBelief": {"lr": 2e-3},
    "Adan": {"lr": 3e-3},
    "LaProp": {"lr": 1e-3},
    "StableAdamW": {"lr": 2e-3},
    "FTRL": {"lr": 0.05},
    "SignSGD": {"lr": 1e-3, "momentum": 0.9},
    "Lion": {"lr": 5e-4},
    "AdEMAMix": {"lr": 1e-3},
    "QHM": {"lr": 0.3, "momentum": 0.99},
    "QHAdam": {"lr": 2e-3, "nus": (0.7, 1.0)},
    "MADGRAD": {"lr": 5e-3},
    "NovoGrad": {"lr": 0.01},
    "SGDScheduleFree": {"lr": 0.5},
    "Muon": {"lr": 2e-3, "adjust_lr_fn": "match_rms_adamw"},
    "SOAP": {"lr": 3e-3},
    "AdamWScheduleFree": {"lr": 5e-3},
    "RAdamScheduleFree": {"lr": 5e-3},
    "DAdaptAdam": {"growth_rate": 1.02},
}


class Outcome(NamedTuple):
    """The results of training with one optimizer.

    Attributes
    ----------
    optimizer : str
        Its name.
    accuracy : float
        On the test set, in the end.
    losses, accuracies : list of float
        The mean loss of each epoch, and the accuracy on the test set after it.
    fast_us, numpy_us : float
        The median time of a step in µs, by the compiled kernels and by NumPy.
    same_bits : bool
        Whether both ended with the same weights, bit for bit.
    """

    optimizer: str
    accuracy: float
    losses: list[float]
    accuracies: list[float]
    fast_us: float
    numpy_us: float
    same_bits: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""

    def integer(low: int) -> Callable[[str], int]:
        def parse(text: str) -> int:
            if not text.isdecimal() or not low <= int(text) < 2**32:
                problem = f"expected an integer of at least {low}, below 2^32, not {text!r}"
                raise argparse.ArgumentTypeError(problem)
            return int(text)

        return parse

    choice.add_argument(parser, "which to train", OPTIMIZERS)
    parser.add_argument("--epochs", type=integer(1), default=30, help="passes over the data")
    parser.add_argument("--batch-size", type=integer(1), default=32, help="digits per step")
    parser.add_argument("--seed", type=integer(0), default=0, help="of weights, split and order")
    parser.add_argument(
        "--output", type=output.file(".png"), default="train.png", help="the picture (PNG)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Train, print the table, write the picture."""
    names = choice.chosen(arguments.optimizer, OPTIMIZERS)
    epochs, console = arguments.epochs, Console()
    with Work("train", 2 * epochs * len(names)) as work:

        def trained(name: str) -> Outcome:
            size, seed = arguments.batch_size, arguments.seed
            work.begin(name)
            return train(name, epochs, size, seed, work.advance)

        outcomes = [trained(name) for name in names]
        work.show()
        console.print(table_of(outcomes))
        written = work.write(arguments.output, draw(outcomes))
        console.print(f"Loss and accuracy curves are in {written}", highlight=False, soft_wrap=True)
    return 0 if all(o.same_bits for o in outcomes) else 1


def train(
    name: str, epochs: int, batch_size: int, seed: int, advance: Callable[[], None]
) -> Outcome:
    """Train the network twice with one optimizer, by the compiled kernels and by NumPy's."""
    digits = load_digits()
    x, x_test, y, y_test = train_test_split(
        (digits.data / 16).astype(np.float32),
        digits.target,
        test_size=0.2,
        stratify=digits.target,
        random_state=seed,
    )
    backend = fastgd.get_backend()
    results = []
    for use in (backend, "numpy"):
        fastgd.set_backend(use)
        rng = np.random.default_rng(seed)
        params = init_layers(SIZES, rng)
        opt = OPTIMIZERS[name](params, **SETTINGS.get(name, {}))
        losses, accuracies, times = [], [], []
        for loss, steps in fit(params, opt, x, y, epochs, batch_size, rng):
            losses.append(loss)
            with nullcontext() if opt.average is None else opt.average.swapped():
                accuracies.append(accuracy(params, x_test, y_test))
            times += steps
            advance()
        results.append((params, losses, accuracies, float(np.median(times)) / 1000))
    fastgd.set_backend(backend)
    (params, losses, accuracies, fast_us), (twin, _, _, numpy_us) = results
    same = all(
        np.array_equal(layer[key], twin[k][key]) for k, layer in params.items() for key in layer
    )
    return Outcome(name, accuracies[-1], losses, accuracies, fast_us, numpy_us, same)


def table_of(outcomes: list[Outcome]) -> Table:
    """The outcomes, a row each."""
    network = " → ".join(map(str, SIZES))
    table = Table(
        title=f"Handwritten digits by a {network} network",
        caption="accuracy on the test set; µs: median time of an optimizer step, by fastgd and by "
        "its NumPy reference",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("optimizer", no_wrap=True)
    for column in ("accuracy", "final loss", "µs", "NumPy µs", "ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("same bits")
    for o in outcomes:
        table.add_row(
            o.optimizer,
            f"{o.accuracy:.1%}",
            f"{o.losses[-1]:.5f}",
            f"{o.fast_us:.1f}",
            f"{o.numpy_us:.1f}",
            f"{o.numpy_us / o.fast_us:.1f}×",
            "yes" if o.same_bits else "NO",
        )
    return table


def draw_losses(axes: Axes, outcomes: list[Outcome]) -> None:
    """Draw the loss curves."""
    labels = {f"{o.optimizer} ({o.accuracy:.1%})": o.losses for o in outcomes}
    plot.loss_curves(axes, labels, unit="epoch", first=1)
    axes.set(title="Training loss", ylabel="mean cross-entropy of the epoch")
    axes.legend(title="optimizer (test accuracy)", alignment="left")


def draw_accuracies(axes: Axes, outcomes: list[Outcome]) -> None:
    """Draw the accuracy curves."""
    labels = {o.optimizer: o.accuracies for o in outcomes}
    plot.loss_curves(axes, labels, unit="epoch", first=1, scale="linear")
    low = min(min(o.accuracies[len(o.accuracies) // 10 :]) for o in outcomes)
    axes.set(title="Test accuracy", ylabel="share of digits told right")
    axes.set_ylim(max(0.0, low - 0.1 * (1 - low)), 1 + 0.02 * (1 - low))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(loc="lower right")


def draw(outcomes: list[Outcome]) -> bytes:
    """The picture of both, as a PNG; of many outcomes, with a small chart of each."""
    picture = io.BytesIO()
    rows = 0 if len(outcomes) <= choice.READABLE else math.ceil(len(outcomes) / SMALL)
    with plot.style():
        figure = Figure(figsize=(10, 4.5 + 1.35 * rows), layout="constrained")
        if rows:
            best = ranked(outcomes)
            parts: Any = figure.subfigures(2, 1, height_ratios=(4.5, 1.35 * rows))
            left, right = parts[0].subplots(1, 2)
            draw_best(left, right, best)
            for k, one in enumerate(best, 1):
                draw_one(parts[1].add_subplot(rows, SMALL, k), best, one)
        else:
            left, right = figure.subplots(1, 2)
            draw_losses(left, outcomes)
            draw_accuracies(right, outcomes)
        figure.savefig(picture, dpi=150)
    return picture.getvalue()


def ranked(outcomes: list[Outcome]) -> list[Outcome]:
    """The outcomes, the most accurate first, and of equal ones that with the lowest loss."""
    return sorted(outcomes, key=lambda o: (-o.accuracy, o.losses[-1]))


def draw_best(left: Axes, right: Axes, best: list[Outcome]) -> None:
    """Draw the curves of the best few over those of all others."""
    few = choice.named(len(best))
    for axes, key in ((left, "losses"), (right, "accuracies")):
        for o in best[few:]:
            series = getattr(o, key)
            axes.plot(range(1, len(series) + 1), series, **choice.faint())
    draw_losses(left, best[:few])
    draw_accuracies(right, best[:few])
    title = f"the best {few} of {len(best)} (test accuracy)"
    left.legend(title=title, alignment="left")


def draw_one(axes: Axes, best: list[Outcome], one: Outcome) -> None:
    """Draw the losses of one among those of all."""
    epochs = range(1, len(one.losses) + 1)
    for o in best:
        axes.plot(epochs, o.losses, **{**choice.faint(), "linewidth": 0.4})
    axes.plot(epochs, one.losses, color=plot.line_style(0)["color"])
    axes.set(yscale="log", xticks=[])
    axes.set_title(one.optimizer, fontsize=8.5)
    axes.text(1, 0.98, f"{one.accuracy:.1%}", transform=axes.transAxes, ha="right", va="top")
    axes.tick_params(left=False, which="both", labelleft=False)
