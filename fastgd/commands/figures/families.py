"""Picture 9: all optimizers by what their steps follow from: in a valley, at a saddle, in noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from fastgd import plot
from fastgd.commands.choice import BEST
from fastgd.commands.descents import Array, Maker, contestants, family, learned, tuned
from fastgd.commands.figures.picture import Picture, number
from fastgd.data import batches
from fastgd.optimizers import GENERAL
from fastgd.surfaces import SURFACES, Surface, logistic_regression

STEPS = 200
RATES = tuple(10.0 ** (k / 2) for k in range(-8, 3))
MARKS = "osD^vP"
FLOOR = 1e-16  # what rounding leaves of a loss


class Measured(NamedTuple):
    """What an optimizer did, each time at the best of some learning rates.

    Attributes
    ----------
    family : str
        What the length of its steps follows from.
    valley, noise : float
        How far the loss is above the lowest, on average over the last quarter: in a bent valley,
        and of a regression in mini-batches.
    saddle : float
        After how many steps it had come past the saddle to a minimum; infinity if it had not.
    """

    family: str
    valley: float
    saddle: float
    noise: float


Result = dict[str, Measured]


def excess(
    make: Maker, surface: Surface, steps: int, gradients: Callable[[int, Array], Array]
) -> float:
    """The mean value above the lowest over the last quarter of a descent, at the best rate."""
    found = []
    for lr in RATES:
        w = np.array(surface.start)
        opt = make(w, lr=lr)
        path = []
        with np.errstate(all="ignore"):
            for t in range(steps):
                opt.step(gradients(t, w))
                path.append(learned(opt, w).copy())
            values = surface.value(np.array(path[-max(steps // 4, 1) :]))
        above = float(values.mean()) - surface.minimum.value
        found.append(max(above, FLOOR) if math.isfinite(above) else math.inf)
    return min(found)


def run(steps: int = STEPS, names: Iterable[str] = GENERAL) -> Result:
    """So many steps of each optimizer on each problem, at each learning rate."""
    valley, noisy = SURFACES["rosenbrock"], logistic_regression()
    data = batches(np.arange(noisy.n_samples), 16, seed=0, drop_last=True)
    drawn: list[Array] = []
    while len(drawn) < steps:
        drawn += [samples.copy() for samples in data]
    result = {}
    for name, make in contestants(names).items():
        arrival = tuned(make, SURFACES["saddle"], steps, rates=RATES).arrival
        result[name] = Measured(
            family(make),
            excess(make, valley, steps, lambda t, w: valley.gradient(w)),
            math.inf if arrival is None else float(arrival),
            excess(make, noisy, steps, lambda t, w: noisy.gradient(w, samples=drawn[t])),
        )
    return result


def order(result: Result, key: str) -> list[str]:
    """The names of optimizers, the best first."""
    return sorted(result, key=lambda name: getattr(result[name], key))


def draw(axes: Axes, result: Result, key: str) -> None:
    """Draw a row for each optimizer, the best at the top."""
    names = order(result, key)
    values = np.array([getattr(result[name], key) for name in names])
    finite = values[np.isfinite(values)]
    never = 2.0 * finite.max() if len(finite) else 1.0
    for k, kind in enumerate(kinds(result)):
        own = [i for i, name in enumerate(names) if result[name].family == kind]
        look = {"color": plot.line_style(k)["color"], "marker": MARKS[k], "linestyle": "none"}
        axes.plot(np.where(np.isfinite(values), values, never)[own], own, label=kind, **look)
    axes.set_yticks(range(len(names)), names)
    axes.set(xscale="log", ylim=(len(names) - 0.4, -0.6))
    for i in range(len(names)):
        if not math.isfinite(values[i]):
            axes.annotate("never", (never, i), (6, 0), textcoords="offset points", va="center")
        if i < BEST:
            axes.get_yticklabels()[i].set_fontweight("bold")
    axes.grid(visible=True, axis="both")
    axes.tick_params(axis="y", labelsize=9.5)


def kinds(result: Result) -> list[str]:
    """The families, in the order of their first optimizer."""
    return list(dict.fromkeys(one.family for one in result.values()))


def draw_valley(axes: Axes, result: Result) -> None:
    draw(axes, result, "valley")
    axes.set(title="A bent valley: how far down", xlabel="loss above the lowest")


def draw_saddle(axes: Axes, result: Result) -> None:
    draw(axes, result, "saddle")
    axes.set(title="A saddle: past it, to a minimum", xlabel="steps")


def draw_noise(axes: Axes, result: Result) -> None:
    draw(axes, result, "noise")
    axes.set(title="Mini-batches of 16: what is left", xlabel="loss above the lowest")


def first(result: Result, key: str, say: Callable[[float], str]) -> str:
    """The best few with their numbers."""
    best = order(result, key)[:3]
    return ", ".join(f"{name} {say(getattr(result[name], key))}" for name in best)


def steps_of(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:.0f}"


def caption(result: Result) -> str:
    return (
        f"All {len(result)}, each at the best of {len(RATES)} learning rates, the best {BEST} in "
        f"bold. Loss left in the valley: {first(result, 'valley', number)}; steps past the saddle: "
        f"{first(result, 'saddle', steps_of)}; loss left in noise: "
        f"{first(result, 'noise', number)}."
    )


def alt(result: Result) -> str:
    last = [order(result, key)[-1] for key in ("valley", "saddle", "noise")]
    return (
        f"Three charts with a row for each optimizer, by the loss left after {STEPS} steps in a "
        f"valley, by the steps that it takes past a saddle, and by the loss that noise leaves. "
        f"{caption(result)} Last are {last[0]}, {last[1]} and {last[2]}."
    )


def words(result: Result) -> tuple[str, ...]:
    def best_of(key: str) -> str:
        lowest: dict[str, str] = {}
        for name in order(result, key):
            lowest.setdefault(result[name].family, name)
        return "; ".join(f"{kind}: {name}" for kind, name in lowest.items())

    stuck = sum(math.isinf(one.saddle) for one in result.values())
    return (
        "What tells optimizers apart is what the length of their steps follows from: the learning "
        "rate alone, the gradients of each weight, norms of whole tensors, sums over the whole "
        f"model. The first of each in the valley, {best_of('valley')}. "
        "There the gradients turn, and what has gathered speed keeps it.",
        f"Past the saddle, {best_of('saddle')}; not there in {STEPS} steps at any of the rates: "
        f"{stuck} of {len(result)}. In noise, {best_of('noise')}. What is "
        "best in one problem need not be so in the next.",
        "Two or thirty weights are few. Optimizers for large batches and wide matrices show what "
        "they are for elsewhere; here one sees only that they work.",
    )


PICTURE = Picture(
    "families",
    "All optimizers, on three problems",
    run,
    (draw_valley, draw_saddle, draw_noise),
    3,
    caption,
    alt,
    words,
    shared_legend=True,
    height=1.0 + len(GENERAL) / 50,
)
