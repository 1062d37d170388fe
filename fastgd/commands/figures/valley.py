"""Picture 5: how momentum damps the oscillation across an ill-conditioned valley."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

import fastgd
from fastgd import plot
from fastgd.commands.descents import Array, descend
from fastgd.commands.figures.picture import Picture, number
from fastgd.surfaces import Surface, quadratic

LR, BETA = 0.039, 0.9


class Result(NamedTuple):
    """The valley, and the path without momentum and with it, of shape (steps + 1, 2)."""

    surface: Surface
    plain: Array
    momentum: Array


def run(steps: int = 60) -> Result:
    """So many steps across a valley that is 50 times as steep across as it is along."""
    surface, start = quadratic([1.0, 50.0]), (-2.6, 1.0)
    return Result(
        surface,
        descend(fastgd.SGD, surface, start, steps, lr=LR),
        descend(fastgd.Momentum, surface, start, steps, lr=LR, beta=BETA),
    )


def ratio(path: Array) -> float:
    """How far a path goes up and down, over how far it goes left and right."""
    across, along = np.abs(np.diff(path, axis=0)).sum(axis=0)
    return float(along / across)


def draw(axes: Axes, result: Result, which: str) -> None:
    plot.contours(axes, result.surface, domain=((-3, 1), (-1.15, 1.15)))
    path = getattr(result, which)
    look = plot.line_style(("plain", "momentum").index(which))
    look["linestyle"] = "-"
    plot.path(axes, path, **look, marker=".", markersize=5, linewidth=1.2)
    axes.set(xlabel="along the valley", ylabel="across")


def draw_plain(axes: Axes, result: Result) -> None:
    draw(axes, result, "plain")
    axes.set(title=f"Plain: vertical to horizontal {ratio(result.plain):.1f}")


def draw_momentum(axes: Axes, result: Result) -> None:
    draw(axes, result, "momentum")
    axes.set(title=f"Momentum, β = {BETA}: {ratio(result.momentum):.1f}")


def draw_across(axes: Axes, result: Result) -> None:
    for k, (name, path) in enumerate({"plain": result.plain, "momentum": result.momentum}.items()):
        axes.plot(path[:, 1], label=name, **plot.line_style(k))
    axes.set(title="Across the valley, by steps", xlabel="step", ylabel="across")
    axes.grid(visible=True)
    axes.set_ylim(-1.15, 1.4)
    axes.legend(loc="upper right", ncols=2)


def caption(result: Result) -> str:
    before, after = ratio(result.plain), ratio(result.momentum)
    return (
        f"Vertical over horizontal motion: {before:.1f} without momentum, {after:.1f} with it, "
        f"{before / after:.1f} times less. Learning rate {LR} and {len(result.plain) - 1} steps in "
        "both."
    )


def alt(result: Result) -> str:
    final = [number(result.surface.value(path)[-1]) for path in (result.plain, result.momentum)]
    return (
        "Two paths over the contours of a long, narrow valley, and how far across each is by "
        "steps. Plain descent jumps from wall to wall at every step; momentum swings a few times "
        f"and settles. {caption(result)} Final losses: {final[0]} and {final[1]}."
    )


def words(result: Result) -> tuple[str, ...]:
    return (
        "Across the valley the slope is 50 times what it is along it. A learning rate that makes "
        "headway along is then almost too much across: each step lands on the other wall, nearly "
        "as high up.",
        f"Momentum, V ← βV + (1−β)g, steps along the average of about {1 / (1 - BETA):.0f} "
        "gradients. Across, they point up and down by turns and cancel; along, they agree, and "
        "add up to what they were. So the pace along the valley stays, and the zigzag goes.",
    )


PICTURE = Picture(
    "valley",
    "Momentum damps the oscillation",
    run,
    (draw_plain, draw_momentum, draw_across),
    3,
    caption,
    alt,
    words,
)
