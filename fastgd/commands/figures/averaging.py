"""Picture 3: the exponentially weighted average of a noisy series, and the bias of its start."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from sklearn.datasets import load_digits

import fastgd
from fastgd import plot
from fastgd.averages import ewma, window
from fastgd.commands.figures.picture import Picture, number
from fastgd.commands.mlp import init_layers, loss_and_grads
from fastgd.data import batches

BETAS = (0.5, 0.9, 0.98)
START = 60


class Result(NamedTuple):
    """A series, and its averages by β with the bias corrected and as it is."""

    series: np.ndarray
    corrected: dict[float, np.ndarray]
    biased: dict[float, np.ndarray]


def losses_of_a_training() -> np.ndarray:
    """The loss of each mini-batch of 8 in an epoch of training on handwritten digits."""
    digits = load_digits()
    x = (digits.data / 16).astype(np.float32)
    params = init_layers((64, 32, 10), np.random.default_rng(0))
    opt = fastgd.SGD(params, lr=0.05)
    losses = []
    for xb, yb in batches((x, digits.target), 8, seed=0, drop_last=True):
        loss, grads = loss_and_grads(params, xb, yb)
        opt.step(grads)
        losses.append(loss)
    return np.array(losses)


def run(series: Any = None) -> Result:
    """The averages of a series; by default, of the losses of a training."""
    x = losses_of_a_training() if series is None else np.asarray(series)
    return Result(
        x,
        {beta: ewma(x, beta)[0] for beta in BETAS},
        {beta: ewma(x, beta, bias_correction=False)[0] for beta in BETAS},
    )


def draw_averages(axes: Axes, result: Result) -> None:
    steps = np.arange(1, len(result.series) + 1)
    grey = axes.xaxis.label.get_color()
    axes.plot(steps, result.series, ".", color=grey, alpha=0.3, markersize=4, label="each batch")
    for k, beta in enumerate(BETAS):
        label = f"β = {beta}: about {round(window(beta))} batches"
        look = {**plot.line_style(k), "linewidth": (1, 1.6, 2.6)[k]}
        axes.plot(steps, result.corrected[beta], **look, label=label)
    axes.set(title="Loss of mini-batches, and averages", xlabel="step", ylabel="loss")
    axes.set_ylim(0, 1.12 * result.series.max())
    axes.legend(loc="upper right")


def draw_start(axes: Axes, result: Result) -> None:
    steps = np.arange(1, START + 1)
    beta, grey = BETAS[-1], axes.xaxis.label.get_color()
    shown = result.series[:START]
    axes.plot(steps, shown, ".", color=grey, alpha=0.45, markersize=5, label="each batch")
    look = plot.line_style(BETAS.index(beta))
    axes.plot(steps, result.corrected[beta][:START], **look, linewidth=2.6, label="corrected")
    look["linestyle"] = ":"
    axes.plot(steps, result.biased[beta][:START], **look, linewidth=2, label="not corrected")
    axes.set(title=f"The start, β = {beta}", xlabel="step", ylabel="loss")
    axes.set_ylim(0, 1.12 * shown.max())
    axes.legend(loc="lower right")


def firsts(result: Result) -> tuple[str, str, str]:
    beta = BETAS[-1]
    return tuple(  # type: ignore[return-value]
        number(a[0], 3) for a in (result.series, result.corrected[beta], result.biased[beta])
    )


def rest(result: Result, beta: float) -> float:
    """How far an average strays from the widest one, in the second half."""
    half = len(result.series) // 2
    return float(np.std((result.corrected[beta] - result.corrected[BETAS[-1]])[half:]))


def caption(result: Result) -> str:
    first, corrected, biased = firsts(result)
    return (
        f"The first loss is {first}. The average with β = {BETAS[-1]} begins at {corrected} with "
        f"its bias corrected, at {biased} without."
    )


def alt(result: Result) -> str:
    return (
        f"First, {len(result.series)} scattered losses falling from "
        f"{number(result.series[:10].mean())} to {number(result.series[-50:].mean())}, and three "
        "averages through them, the smoother the larger β. Then the start. " + caption(result)
    )


def words(result: Result) -> tuple[str, ...]:
    biased = result.biased[BETAS[-1]]
    reached = int(np.argmax(biased > 0.9 * result.corrected[BETAS[-1]])) + 1
    return (
        "The series is the loss of each mini-batch of 8 digits while a small network is trained, "
        "as anyone sees it who prints the loss.",
        "V ← βV + (1−β)X forgets at the pace β: the average reaches back over about 1/(1−β) "
        "values. A larger β is smoother, and later to follow.",
        "V starts from 0, so the first averages are too small: they are weighted sums whose "
        f"weights only add up to 1−βᵗ. For β = {BETAS[-1]} it takes {reached} steps until nine "
        "tenths are there. Dividing by 1−βᵗ makes up for it exactly, which is what Adam does with "
        "both of its averages.",
    )


PICTURE = Picture(
    "averages",
    "Exponentially weighted averages, and their bias",
    run,
    (draw_averages, draw_start),
    2,
    caption,
    alt,
    words,
)
