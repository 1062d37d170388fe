"""Which optimizers a command is about, and how many of them a picture can name."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
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
        default="classic",
        metavar="NAME",
        help=f"{what}: by name, classic for {', '.join(CLASSIC)}, or all",
    )


def chosen(word: str, known: Mapping[str, type[Optimizer]] = GENERAL) -> list[str]:
    """The optimizers that the option's value names, in the order of their years.

    >>> chosen("classic"), len(chosen("all")) == len(GENERAL)
    (['SGD', 'Momentum', 'Adagrad', 'RMSprop', 'Adam', 'AdamW'], True)
    """
    wanted: Iterable[str] = {"classic": CLASSIC, "all": known}.get(word, (word,))
    return [name for name in known if name in wanted]


def named(count: int) -> int:
    """How many of so many lines, the best first, get a colour and a name."""
    return count if count <= READABLE else BEST


def faint() -> dict[str, Any]:
    """The look of the lines that get none, as keywords of matplotlib, in the style in force."""
    import matplotlib as mpl

    ink = mpl.rcParams["text.color"]
    return {"color": ink, "linestyle": "-", "linewidth": 0.8, "alpha": 0.25}
