"""Picture 6: the effective learning rates of AdaGrad, RMSProp and Adam over time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

import fastgd
from fastgd import plot
from fastgd.commands.figures.picture import Picture, number
from fastgd.data import batches
from fastgd.surfaces import DataSurface, logistic_regression

LR, BETA = 0.02, 0.99

Maker = Callable[..., fastgd.Optimizer]

# Each optimizer, and the mean square (or sum of squares) that its state holds after t steps.
SCALES: Mapping[str, tuple[Maker, Mapping[str, Any], Callable[[Any, int], Any]]] = {
    "AdaGrad": (fastgd.Adagrad, {}, lambda state, t: state["sum"]),
    "RMSProp": (fastgd.RMSprop, {"alpha": BETA}, lambda state, t: state["square_avg"]),
    "Adam": (
        fastgd.Adam,
        {"betas": (0.9, BETA)},
        lambda state, t: state["exp_avg_sq"] / (1 - BETA**t),
    ),
}


class Result(NamedTuple):
    """Effective learning rates α/√ν by optimizer, of shape (steps, weights); and losses."""

    surface: DataSurface
    rates: dict[str, np.ndarray]
    losses: dict[str, np.ndarray]


def run(epochs: int = 20) -> Result:
    """Mini-batches of 32 on a logistic regression with 31 weights."""
    surface = logistic_regression()
    rates, losses = {}, {}
    for name, (make, hyper, scale) in SCALES.items():
        w = np.zeros(surface.dim)
        opt = make({"w": w}, lr=LR, **hyper)
        data = batches(np.arange(surface.n_samples), 32, seed=0)
        seen, loss = [], []
        for _ in range(epochs):
            for samples in data:
                opt.step({"w": surface.gradient(w, samples=samples)})
                state = opt.state["w"]
                seen.append(LR / np.sqrt(scale(state, int(state["step"]))))
                loss.append(surface.value(w))
        rates[name], losses[name] = np.array(seen), np.array(loss)
    return Result(surface, rates, losses)


def draw_rates(axes: Axes, result: Result) -> None:
    for k, (name, rates) in enumerate(result.rates.items()):
        steps, look = np.arange(1, len(rates) + 1), plot.line_style(k)
        axes.loglog(steps, np.median(rates, axis=1), label=name, **look)
        low, high = np.quantile(rates, (0.1, 0.9), axis=1)
        axes.fill_between(steps, low, high, color=look["color"], alpha=0.16, linewidth=0)
    axes.set(title="Effective rate: median, and 80 % of weights", xlabel="step", ylabel="α / √ν")
    axes.grid(visible=True)


def draw_losses(axes: Axes, result: Result) -> None:
    plot.loss_curves(axes, result.losses, first=1, scale="linear")
    axes.set(title="Loss of all samples")


def medians(result: Result) -> str:
    return ", ".join(
        f"{name} from {number(np.median(rates[0]))} to {number(np.median(rates[-1]))}"
        for name, rates in result.rates.items()
    )


def caption(result: Result) -> str:
    return f"Median effective learning rate over {result.surface.dim} weights: {medians(result)}."


def alt(result: Result) -> str:
    ends = ", ".join(f"{name} {number(loss[-1])}" for name, loss in result.losses.items())
    return (
        "Two charts. AdaGrad's effective rates only fall; those of RMSProp and Adam rise as the "
        f"gradients get smaller. {caption(result)} Final losses: {ends}."
    )


def words(result: Result) -> tuple[str, ...]:
    first = {name: float(np.median(rates[0])) for name, rates in result.rates.items()}
    return (
        "These optimizers divide each weight's step by the root of ν, a measure of the squares of "
        f"that weight's own gradients. What is left of the learning rate α = {LR} is its effective "
        "rate, here read from the optimizers' states after every step of a logistic regression on "
        f"{result.surface.n_samples} tumours.",
        "AdaGrad's ν is the sum of all squares so far, so that its rates only ever fall. RMSProp's "
        "and Adam's is an average that forgets: as the gradients become smaller, the rates rise "
        "again.",
        f"At the first step RMSProp's rate is {number(first['RMSProp'] / first['Adam'])} times "
        "Adam's, though both average alike: RMSProp does not correct the bias of an average that "
        f"starts from 0, and divides by √(1−β) = {number((1 - BETA) ** 0.5)} of what it should. "
        "From then on the two rates draw near each other.",
    )


PICTURE = Picture(
    "rates",
    "Effective learning rates over time",
    run,
    (draw_rates, draw_losses),
    2,
    caption,
    alt,
    words,
    shared_legend=True,
)
