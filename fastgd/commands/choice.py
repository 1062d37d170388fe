"""Which optimizers a command is about, and how many of them a picture can name."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastgd.commands import output
from fastgd.core.optimizer import Optimizer
from fastgd.optimizers import GENERAL

CLASSIC = ("SGD", "Momentum", "Adagrad", "RMSprop", "Adam", "AdamW")
# Lines that can be told apart in one picture; of more than these, the best few are named.
READABLE, BEST = 8, 5


def add_argument(
    parser: argparse.ArgumentParser, what: str, known: Mapping[str, type[Optimizer]] = GENERAL
) -> None:
    """Declare the option ``--optimizer``."""
    parser.add_argument(
        "--optimizer",
        type=output.one_of(["classic", "all", *known]),
        nargs="+",
        action="extend",
        metavar="NAME",
        help=f"{what}: names, or all, or classic (the default: {', '.join(CLASSIC)})",
    )


def chosen(
    words: Sequence[str] | None, known: Mapping[str, type[Optimizer]] = GENERAL
) -> list[str]:
    """The optimizers that the option's values name, in the order of their years.

    >>> chosen(["classic"]) == chosen(None), len(chosen(["all"])) == len(GENERAL)
    (True, True)
    >>> chosen(["Lion", "classic"])
    ['SGD', 'Momentum', 'Adagrad', 'RMSprop', 'Adam', 'AdamW', 'Lion']
    """
    sets: dict[str, Iterable[str]] = {"classic": CLASSIC, "all": known}
    wanted = {name for word in words or ["classic"] for name in sets.get(word, (word,))}
    return [name for name in known if name in wanted]


def named(count: int) -> int:
    """How many of so many lines, the best first, get a colour and a name."""
    return count if count <= READABLE else BEST


def faint() -> dict[str, Any]:
    """The look of the lines that get none, as keywords of matplotlib, in the style in force."""
    import matplotlib as mpl

    ink = mpl.rcParams["text.color"]
    return {"color": ink, "linestyle": "-", "linewidth": 0.8, "alpha": 0.25}
