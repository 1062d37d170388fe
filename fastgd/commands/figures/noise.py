"""Picture 2: batch, mini-batch and stochastic descent on the same contours."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

import fastgd
from fastgd import plot
from fastgd.commands.figures.picture import Picture, number
from fastgd.data import batches
from fastgd.surfaces import DataSurface, logistic_regression

SIZES = {"batch": None, "mini-batch of 32": 32, "stochastic": 1}


class Descent(NamedTuple):
    """One descent.

    Attributes
    ----------
    path : ndarray, shape (steps + 1, 2)
        The weights after each step.
    losses : ndarray, shape (steps + 1,)
        The loss there, of all samples.
    seen : ndarray, shape (steps + 1,)
        How many samples' gradients it took to get there.
    vertical : float
        The variance of its moves' vertical component.
    noise : float
        The standard deviation of the same, less what a step of batch descent from there would be.
    """

    path: np.ndarray
    losses: np.ndarray
    seen: np.ndarray
    vertical: float
    noise: float


class Result(NamedTuple):
    """The loss of all samples, and the descents by name."""

    surface: DataSurface
    descents: dict[str, Descent]


def run(seed: int = 0, steps: int = 150, lr: float = 1.0) -> Result:
    """So many steps of plain descent on the loss of a logistic regression, by batches of a size."""
    surface = logistic_regression(["mean radius"])
    n = surface.n_samples
    descents = {}
    for name, size in SIZES.items():
        w = np.array([2.0, -2.0])
        opt = fastgd.SGD(w, lr=lr)
        data = batches(np.arange(n), size, seed=seed, drop_last=True)
        path, exact = [w.copy()], []
        while len(path) <= steps:
            for samples in data:
                exact.append(-lr * surface.gradient(w))
                opt.step(surface.gradient(w, samples=samples))
                path.append(w.copy())
                if len(path) > steps:
                    break
        moves = np.diff(path, axis=0)
        descents[name] = Descent(
            np.array(path),
            surface.value(np.array(path)),
            np.arange(steps + 1) * (size or n),
            float(moves[:, 1].var()),
            float((moves - exact)[:, 1].std()),
        )
    return Result(surface, descents)


def draw_paths(axes: Axes, result: Result) -> None:
    plot.contours(axes, result.surface, domain=((-4.6, 3.2), (-3.4, 2.6)), resolution=120)
    # The noisiest first, so that the others stay visible.
    for k, (name, descent) in reversed(list(enumerate(result.descents.items()))):
        plot.path(axes, descent.path, label=name, **plot.line_style(k), linewidth=(2.4, 1.6, 1)[k])
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="upper right")
    axes.set(title=f"Paths, {len(descent.path) - 1} steps each")
    axes.set(xlabel="weight of the tumour's radius", ylabel="constant")


def draw_losses(axes: Axes, result: Result) -> None:
    curves = {name: descent.losses for name, descent in result.descents.items()}
    lines = plot.loss_curves(axes, curves, scale="linear")
    lines["stochastic"].set(linewidth=1, zorder=1)
    axes.set(title="Loss of all samples, by steps")
    axes.legend(loc="upper right")


def draw_costs(axes: Axes, result: Result) -> None:
    for k, (name, descent) in enumerate(result.descents.items()):
        look = {**plot.line_style(k), "linewidth": 1 if name == "stochastic" else 1.8}
        axes.plot(descent.seen[1:], descent.losses[1:], label=name, **look)
    axes.set(title="The same, by gradients of single samples", xscale="log")
    axes.set(xlabel="gradients of single samples", ylabel="loss")
    axes.grid(visible=True)
    axes.legend(loc="upper right", frameon=True, edgecolor="none", framealpha=0.85)


def measured(result: Result) -> str:
    return "; ".join(
        f"{name}: {number(descent.vertical)} (noise ±{descent.noise:.3f})"
        for name, descent in result.descents.items()
    )


def caption(result: Result) -> str:
    return f"Variance of the vertical moves, {measured(result)}."


def alt(result: Result) -> str:
    ends = ", ".join(
        f"{name} {number(descent.losses[-1])}" for name, descent in result.descents.items()
    )
    return (
        "Three paths over the contours of a logistic regression's loss, and two charts of their "
        "loss. Batch descent runs smoothly, mini-batches tremble a little, single samples zigzag "
        f"widely. Variance of the vertical moves, {measured(result)}. Final losses: {ends}."
    )


def words(result: Result) -> tuple[str, ...]:
    _, mini, single = result.descents.values()
    return (
        f"The loss is that of {result.surface.n_samples} real tumours, malignant or benign, told "
        "apart by their radius. All three descents take the same number of steps at the same "
        "learning rate; they differ in how many samples each step's gradient is the mean of.",
        "A step's noise is what sets it apart from the step that batch descent would take from the "
        f"same point. Its vertical part has a standard deviation of {number(mini.noise)} with "
        f"mini-batches and of {number(single.noise)} with single samples, "
        f"{number(single.noise / mini.noise)} times as much: about √32, as means of independent "
        "samples go. Near the minimum only noise is left, and only a smaller learning rate or a "
        "larger batch calms it.",
        f"What it saves shows in the last panel: when batch descent takes its first step, single "
        f"samples have taken {result.surface.n_samples}.",
    )


PICTURE = Picture(
    "noise",
    "Batch, mini-batch and stochastic descent",
    run,
    (draw_paths, draw_losses, draw_costs),
    3,
    caption,
    alt,
    words,
)
