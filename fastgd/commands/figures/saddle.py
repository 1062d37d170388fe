"""Picture 7: classic optimizers at a saddle, and on two surfaces with more than one way down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from fastgd import plot
from fastgd.commands.descents import Array, Run, adaptive, contestants, descend, race
from fastgd.commands.figures.picture import Picture, number
from fastgd.surfaces import SURFACES

LR = 0.05

# The learning rates of optimizers whose lr is a factor of a step size of their own, or is divided
# by more than roots of gradients at first.
RATES: Mapping[str, float] = {
    "Adadelta": 1.0, "DAdaptAdam": 1.0, "FTRL": 0.3, "RAdamScheduleFree": 0.2,
}  # fmt: skip


class Escape(NamedTuple):
    """A descent past a saddle: its path, and whether the optimizer is an adaptive one."""

    path: Array
    adaptive: bool

    @property
    def left(self) -> int | None:
        """The step at which it was halfway from the ridge to a minimum, if it got there."""
        away = np.flatnonzero(np.abs(self.path[:, 1]) >= 0.5)
        return int(away[0]) if away.size else None


class Result(NamedTuple):
    """Descents past the saddle, and the best ones on Beale's and Himmelblau's surface, by name."""

    escapes: dict[str, Escape]
    beale: Mapping[str, Run]
    himmelblau: Mapping[str, Run]


def escapes(steps: int = 100) -> dict[str, Escape]:
    """Each optimizer from the same start next to the ridge, at the same learning rate."""
    saddle = SURFACES["saddle"]
    return {
        name: Escape(
            descend(make, saddle, saddle.start, steps, lr=RATES.get(name, LR)), adaptive(make)
        )
        for name, make in contestants().items()
    }


def run() -> Result:
    """The saddle with one learning rate for all; Beale and Himmelblau with the best for each."""
    return Result(escapes(), race(SURFACES["beale"], 200), race(SURFACES["himmelblau"], 200))


def draw_saddle(axes: Axes, result: Result) -> None:
    plot.contours(axes, SURFACES["saddle"], domain=((-0.6, 1.8), (-0.4, 1.35)))
    for k, (name, escape) in enumerate(result.escapes.items()):
        plot.path(axes, escape.path, label=name, **plot.line_style(k))
    axes.set(title=f"A saddle (×): {len(escape.path) - 1} steps at the same rate")
    axes.set(xlabel="x", ylabel="y")


def draw_escape(axes: Axes, result: Result) -> None:
    for k, (name, escape) in enumerate(result.escapes.items()):
        axes.semilogy(np.abs(escape.path[:, 1]), label=name, **plot.line_style(k))
    axes.set(title="Distance from the ridge", xlabel="step", ylabel="|y|")
    axes.grid(visible=True)


def draw_beale(axes: Axes, result: Result) -> None:
    draw_race(axes, "beale", result.beale, ((-0.6, 4.2), (-2.0, 1.9)))


def draw_himmelblau(axes: Axes, result: Result) -> None:
    draw_race(axes, "himmelblau", result.himmelblau, ((-5, 5), (-5, 5)))


def draw_race(
    axes: Axes,
    name: str,
    runs: Mapping[str, Run],
    domain: tuple[tuple[float, float], tuple[float, float]],
) -> None:
    plot.contours(axes, SURFACES[name], domain=domain)
    for k, best in enumerate(runs.values()):
        plot.path(axes, best.path, **plot.line_style(k), linewidth=1.5)
    axes.set(title=f"{name.capitalize()}, each at its best rate", xlabel="x", ylabel="y")


def left(result: Result) -> str:
    return ", ".join(
        f"{name} {'never' if escape.left is None else f'after {escape.left} steps'}"
        for name, escape in result.escapes.items()
    )


def caption(result: Result) -> str:
    return f"Half way from the saddle to the minimum: {left(result)}."


def alt(result: Result) -> str:
    def arrivals(runs: Mapping[str, Run]) -> str:
        return ", ".join(
            f"{name} {'not' if best.arrival is None else f'in {best.arrival}'}"
            for name, best in runs.items()
        )

    return (
        "Paths of seven optimizers over the contours of three surfaces, and their distance from "
        f"the ridge of the first by steps. {caption(result)} Steps to a minimum of Beale's "
        f"surface: {arrivals(result.beale)}; of Himmelblau's: {arrivals(result.himmelblau)}."
    )


def words(result: Result) -> tuple[str, ...]:
    plain = result.escapes["SGD"].path
    adaptives = [escape.left for escape in result.escapes.values() if escape.adaptive]
    slowest = max(step for step in adaptives if step is not None)
    ball = result.escapes["heavy ball"].left
    return (
        "The start lies a millionth off the ridge that runs down into the saddle. Plain descent "
        "follows the ridge, and what drives it off the saddle is proportional to how far off it "
        f"is: after {len(plain) - 1} steps that is {number(abs(plain[-1, 1]))}.",
        "Adaptive optimizers divide each coordinate's step by the size of that coordinate's own "
        "gradients, so that they go as fast along a tiny slope as along a steep one: the slowest "
        f"has left after {slowest} steps. The heavy ball, which adds up what little there is, "
        f"takes {ball}. Momentum is the same ball at a tenth of the learning rate, and not there "
        "yet.",
        "On Beale's and Himmelblau's surfaces each optimizer has the learning rate that brings it "
        "to a minimum (★) in the fewest steps, of powers of √10: hence the bold first moves. The "
        "heavy ball and Momentum then go the same way, at learning rates ten times apart. AdamW's "
        "weight decay pulls towards 0, so it comes to rest a little off a minimum.",
    )


PICTURE = Picture(
    "saddle",
    "Leaving a saddle, and two surfaces more",
    run,
    (draw_saddle, draw_escape, draw_beale, draw_himmelblau),
    2,
    caption,
    alt,
    words,
    shared_legend=True,
)
