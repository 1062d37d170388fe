"""``python -m fastgd bytes``: what each way to store a model costs, in memory and in time."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import fastgd
from fastgd.commands.output import one_of
from fastgd.commands.work import Work
from fastgd.kernels.spec.codecs import CODECS
from fastgd.optimizers import GENERAL

# The dtype of parameters and gradients, and the options of how masters and states are stored;
# "stochastic" is stochastic rounding, without a master.
CHOICES: dict[str, tuple[str, dict[str, Any]]] = {
    "float32": ("float32", {}),
    "float32, bf16": ("float32", {"state_dtype": "bfloat16"}),
    "float32, 8-bit": ("float32", {"state_dtype": "8bit"}),
    "bf16, master": ("bfloat16", {"master": True}),
    "bf16, split": ("bfloat16", {"master": "split"}),
    "bf16, split, 8-bit": (
        "bfloat16",
        {"master": "split", "state_dtype": "8bit"},
    ),
    "bf16, stochastic": ("bfloat16", {"rounding": "stochastic"}),
    "bf16, stochastic, bf16": (
        "bfloat16",
        {"rounding": "stochastic", "state_dtype": "bfloat16"},
    ),
    "bf16, stochastic, 8-bit": (
        "bfloat16",
        {"rounding": "stochastic", "state_dtype": "8bit"},
    ),
}
ROUNDS = 5
# Of the first choice's time; what takes more is no faster.
AS_LONG = 0.98


class Cost(NamedTuple):
    """The cost of a choice: bytes and seconds of a step, for each parameter."""

    choice: str
    parameter: float
    gradient: float
    states: float
    seconds: float

    @property
    def moved(self) -> float:
        """The bytes that a step reads and writes."""
        return 2 * self.parameter + self.gradient + 2 * self.states


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--parameters", type=count, default="100M", help="of the model, say 1.5B")
    kind = one_of(GENERAL)
    parser.add_argument("--optimizer", type=kind, default="AdamW", metavar="NAME", help="which")
    parser.add_argument(
        "--measure", type=count, default="16M", help="parameters that steps are timed with, at most"
    )


def count(text: str) -> int:
    """A number of parameters, as 1500000, 1.5M or 1.5B."""
    units = {"K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
    try:
        number = float(text[:-1]) * units[text[-1].upper()] if text[-1:].isalpha() else float(text)
    except (KeyError, ValueError):
        number = 0.0
    if not 1 <= number <= 1e15:
        problem = f"expected a number of parameters, say 1500000, 1.5M or 1.5B, not {text!r}"
        raise argparse.ArgumentTypeError(problem)
    return int(number)


def run(arguments: argparse.Namespace) -> int:
    """Time each choice and print the table."""
    console = Console()
    n = min(arguments.parameters, arguments.measure)
    with Work("bytes", ROUNDS * len(CHOICES)) as work:
        costs = measure(arguments.optimizer, n, work.advance)
    console.print(table_of(costs, arguments.parameters, n, arguments.optimizer))
    console.print(verdict(costs), highlight=False)
    return 0


def measure(
    name: str, n: int, advance: Callable[[str], object] = lambda choice: None
) -> list[Cost]:
    """The cost of each choice with an optimizer of `n` parameters, taking turns."""
    steps = {}
    found: dict[str, list[float]] = {}
    sizes = {}
    for choice, (kind, options) in CHOICES.items():
        opt = optimizer(name, n, kind, options)
        entry = opt.state[0]
        state_bytes = sum(a.nbytes for key, a in entry.items() if key != "step") / n
        itemsize = CODECS[kind].code.itemsize
        sizes[choice] = (itemsize, itemsize, state_bytes)
        steps[choice] = opt
        opt.step()
    for _ in range(ROUNDS):
        for choice, opt in steps.items():
            start = perf_counter()
            opt.step()
            found.setdefault(choice, []).append((perf_counter() - start) / n)
            advance(choice)
    return [Cost(c, *sizes[c], float(np.median(found[c]))) for c in CHOICES]


def optimizer(name: str, n: int, kind: str, options: dict[str, Any]) -> fastgd.Optimizer:
    """An optimizer of `n` parameters with gradients bound; bfloat16 as its bits."""
    rng = np.random.default_rng(0)
    drawn = np.resize(rng.standard_normal(min(n, 1 << 18), np.float32), n)

    def stored() -> NDArray[Any]:
        code = np.empty(n, CODECS[kind].code)
        CODECS[kind].store(code, None, drawn)
        return code

    made: Any = GENERAL[name]  # whose arguments mypy can't know here
    opt: fastgd.Optimizer = made(stored(), grads=stored(), **options)
    return opt


def verdict(costs: list[Cost]) -> str:
    """Where fewer bytes are no faster than the first choice on this machine."""
    first = costs[0]
    slower = [
        c.choice for c in costs if c.moved < first.moved and c.seconds > AS_LONG * first.seconds
    ]
    if not slower:
        return f"All that moves fewer bytes than {first.choice} is faster here."
    return (
        f"Fewer bytes than {first.choice}, but no faster here: {'; '.join(slower)}.\n"
        "They save memory; to convert them takes as long as to move what they leave out."
    )


def in_words(seconds: float) -> str:
    """A time in the unit that suits it."""
    unit, size = next((u, s) for u, s in (("s", 1.0), ("ms", 1e-3), ("µs", 0.0)) if seconds >= s)
    return f"{seconds / (size or 1e-6):.3g} {unit}"


def table_of(costs: list[Cost], total: int, measured: int, name: str) -> Table:
    """The costs of a model, a row for each choice."""
    threads = f"{fastgd.get_num_threads()} of {os.cpu_count()} processors"
    table = Table(
        title=f"{name}, {total:,} parameters",
        caption=f"GB of memory; step timed with {measured:,} parameters, {fastgd.get_backend()}, "
        f"{threads}" + ("" if measured == total else ", and scaled up"),
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("params, states", no_wrap=True)
    for column in ("params", "grads", "states", "total", "step", "ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    for c in costs:
        sizes = [c.parameter, c.gradient, c.states, c.parameter + c.gradient + c.states]
        table.add_row(
            c.choice,
            *(f"{size * total / 1e9:.3g}" for size in sizes),
            in_words(c.seconds * total),
            f"{c.seconds / costs[0].seconds:.2f}",
        )
    return table
