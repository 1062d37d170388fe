"""What the page of ``race --serve`` asks for: a race, and the contours of a surface; as JSON.

A race is asked for by a query, which is also the part behind # in the page's address::

    surface=beale&steps=200&start=1,1.5&noise=0.1&seed=0&run=Adam:0.1&run=SGD

A run without a learning rate gets the one of a few that suits it best.  `tolerance` is the distance
from a minimum that counts as arrival.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from reprlib import repr as shortened
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fastgd import plot
from fastgd.commands.descents import RATES, TOLERANCE, Run, contestants, descend, measure, tuned
from fastgd.core.names import hint
from fastgd.optimizers import GENERAL
from fastgd.surfaces import SURFACES, Surface

Array = NDArray[Any]
# Of one race: so many steps are drawn with ease, and so many lines told apart.
STEPS, RUNS = 2000, 14
# Contours are drawn in a box of this side, in whose coordinates they are written.
BOX = 1000
FAR = 1e30  # what is farther off than that has diverged
DRAWABLE = {name: surface for name, surface in SURFACES.items() if surface.dim == 2}
MAKERS = contestants(GENERAL)
# What a query has besides its runs.
ONCE = ("surface", "steps", "start", "noise", "seed", "tolerance")
# The ends of the scale of learning rates: those of the search for the best.
LEAST_RATE, MOST_RATE = min(RATES), max(RATES)


class RefusedError(ValueError):
    """What can't be answered; says why to who asks."""


class Race(NamedTuple):
    """A race that can be run.

    Attributes
    ----------
    surface : Surface
        Where to descend.
    steps : int
        How many steps each takes.
    start : tuple of float
        Where each starts, within the surface's domain.
    noise : float
        The standard deviation of the noise of gradients, as a multiple of their size at the
        surface's own start.
    seed : int
        Of the noise, which is the same for all.
    rates : dict of float or None
        The learning rates by the names of contestants; None for the best.
    tolerance : float
        The distance from a minimum that counts as arrival.
    """

    surface: Surface
    steps: int
    start: tuple[float, ...]
    noise: float
    seed: int
    rates: dict[str, float | None]
    tolerance: float


# ------------------------------------------------------------------------------------- questions


def parsed(query: str) -> Race:
    """The race that a query asks for; raises RefusedError if there is none."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, max_num_fields=64)
    except ValueError as error:
        raise RefusedError(f"expected NAME=VALUE&…: {error}") from None
    texts: dict[str, str] = {}
    rates: dict[str, float | None] = {}
    for key, text in pairs:
        if key == "run":
            name, colon, rate = text.partition(":")
            known(name, MAKERS, "optimizer")
            if name in rates:
                raise RefusedError(f"run: {name} is there twice")
            rates[name] = number(rate, f"learning rate of {name}", above=0) if colon else None
        elif key not in ONCE or key in texts:
            raise RefusedError(f"expected {', '.join(ONCE)} at most once each, found {key}")
        else:
            texts[key] = text
    if not 1 <= len(rates) <= RUNS:
        raise RefusedError(f"expected 1 to {RUNS} optimizers, found {len(rates)}")
    surface = DRAWABLE[known(texts.get("surface", "beale"), DRAWABLE, "surface")]
    return Race(
        surface,
        whole(texts.get("steps", "200"), "steps", 1, STEPS),
        point(texts["start"], surface) if "start" in texts else surface.start,
        number(texts.get("noise", "0"), "noise", most=10.0),
        whole(texts.get("seed", "0"), "seed", 0, 2**32 - 1),
        rates,
        number(texts.get("tolerance", str(TOLERANCE)), "tolerance", above=0),
    )


def known(name: str, there: dict[str, Any], what: str) -> str:
    """A name, if it is one of those."""
    if name not in there:
        raise RefusedError(f"no {what} is called {shortened(name)}{hint(name, there)}")
    return name


def whole(text: str, what: str, low: int, high: int) -> int:
    """An integer within bounds."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and low <= int(text) <= high):
        raise RefusedError(
            f"{what}: expected an integer from {low} to {high}, found {shortened(text)}"
        )
    return int(text)


def number(
    text: str, what: str, *, above: float = -math.inf, least: float = 0.0, most: float = 1e6
) -> float:
    """A number within bounds."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (least <= value <= most and value > above):
        low = f"above {above:g}" if above >= least else f"from {least:g}"
        raise RefusedError(
            f"{what}: expected a number {low} up to {most:g}, found {shortened(text)}"
        )
    return value


def point(text: str, surface: Surface) -> tuple[float, ...]:
    """A point within a surface's domain."""
    parts = text.split(",")
    if len(parts) != surface.dim:
        raise RefusedError(
            f"start: expected {surface.dim} numbers with a comma between, found {shortened(text)}"
        )
    return tuple(
        number(part, f"start, {axis}", least=low, most=high)
        for part, axis, (low, high) in zip(parts, "xy", surface.domain, strict=True)
    )


# --------------------------------------------------------------------------------------- answers


def answer(query: str) -> dict[str, Any]:
    """The race that a query asks for, run: each optimizer's steps, as fastgd takes them.

    Returns
    -------
    dict
        ``steps``, ``start``, and ``runs``: of each ``name``, ``lr``, ``path`` (points), ``gaps``
        (how far values are above the lowest minimum), ``arrival`` and ``diverged`` (a step, or
        None).
        Path and gaps end before the first point that is not finite, or farther off than `FAR`.
    """
    race = parsed(query)
    noise = drawn(race)
    runs = []
    for name, rate in race.rates.items():
        try:
            run = one_run(race, MAKERS[name], rate, noise)
        except (TypeError, ValueError) as error:  # a rate that this optimizer refuses
            raise RefusedError(f"{name}: {error}") from None
        runs.append({"name": name, **as_json(run, race.surface)})
    return {"steps": race.steps, "start": list(race.start), "runs": runs}


def one_run(race: Race, make: Callable[..., Any], rate: float | None, noise: Array | None) -> Run:
    """The descent of one optimizer."""
    surface, steps, start, tolerance = race.surface, race.steps, race.start, race.tolerance
    if rate is None:
        return tuned(make, surface, steps, tolerance=tolerance, start=start, noise=noise)
    path = descend(make, surface, start, steps, noise=noise, lr=rate)
    return measure(surface, rate, path, tolerance)


def drawn(race: Race) -> Array | None:
    """What is added to the gradient at each step, the same for all contestants."""
    if race.noise == 0:
        return None
    usual = math.hypot(*race.surface.gradient(np.array(race.surface.start)))
    rng = np.random.default_rng(race.seed)
    return race.noise * usual * rng.standard_normal((race.steps, race.surface.dim))


def as_json(run: Run, surface: Surface) -> dict[str, Any]:
    """A run in what JSON has, which knows no infinities."""
    with np.errstate(invalid="ignore"):
        gone = ~((np.abs(run.path) < FAR).all(axis=1) & np.isfinite(run.values))
    until = int(gone.argmax()) if gone.any() else len(gone)
    gaps = np.maximum(run.values[:until] - surface.minimum.value, 0.0)
    return {
        "lr": run.lr,
        "path": run.path[:until].tolist(),
        "gaps": gaps.tolist(),
        "arrival": run.arrival,
        "diverged": until if gone.any() else None,
    }


@cache
def contours(name: str) -> list[str]:
    """The bands between a surface's contours, from low to high, as paths of SVG in `BOX`.

    They are those of `fastgd.plot.contours`.
    """
    if name not in DRAWABLE:
        raise RefusedError(f"no surface is called {shortened(name)}{hint(name, DRAWABLE)}")
    surface = DRAWABLE[name]
    axes = Figure().subplots()
    filled = plot.contours(axes, surface, resolution=140, marks=False)
    low, high = np.transpose(surface.domain)
    bands = []
    for path in filled.get_paths():
        rings = []
        for ring in path.to_polygons():
            across, down = ((ring - low) / (high - low)).T
            at = np.round(BOX * np.stack([across, 1 - down], axis=-1)).astype(int)
            moved = np.append(True, (at[1:] != at[:-1]).any(axis=1))
            rings.append("M" + " ".join(f"{x},{y}" for x, y in at[moved].tolist()) + "Z")
        bands.append("".join(rings))
    return bands


def begin(
    surface: Surface,
    steps: int,
    names: list[str],
    rate: float | None,
    tolerance: float = TOLERANCE,
) -> str:
    """The query that a page begins with."""
    if len(contestants(names)) > RUNS:
        raise RefusedError(f"expected at most {RUNS} optimizers at once; the page offers them all")
    if steps > STEPS:
        raise RefusedError(f"expected at most {STEPS} steps, found {steps}")
    lr = "" if rate is None else f":{rate:g}"
    runs = [f"run={name.replace(' ', '+')}{lr}" for name in contestants(names)]
    near = [] if tolerance == TOLERANCE else [f"tolerance={tolerance}"]
    query = "&".join([f"surface={surface.name}", f"steps={steps}", *near, *runs])
    parsed(query)  # which refuses a rate or a tolerance too large
    return query
