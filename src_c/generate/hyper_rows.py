"""Writes what the engine works out coefficients by: the C level's functions, over rows of numbers.

A row has what the stages of every step take, then the other hyper-parameters of a class.
"""

from __future__ import annotations

from generate.c_level import CALLS, Coefficients, Made, scalars
from generate.families import Family

PATH = "fastgd/kernels/engine/_coefficients.pxi"
# What rows begin with, whether a class has it or not.
STAGES = (
    "lr",
    "weight_decay",
    "decoupled_weight_decay",
    "maximize",
    "clip_value",
    "clip_norm",
    "clip_ratio",
)


def text(families: list[Family], functions: Coefficients, note: str) -> str:
    """The file."""
    lines = [f"# {note}", "", f"from libc.math cimport {', '.join(CALLS)}", ""]
    lines += ["# The places in a row that all classes share.", "cdef enum:"]
    lines += [f"    {key.upper()}_AT = {k}" for k, key in enumerate(STAGES)]
    table = ["", "", "# By module and class: functions, by the methods that they are of, and"]
    table += [
        "# how many coefficients they make; what is in rows, how many numbers, what word is 1."
    ]
    table += ["COEFFICIENTS = {"]
    classes = {(family.name, cls.name): cls for family in families for cls in family.optimizers}
    for (family, name), functions_of in functions.items():
        names = {key: [key] for key in STAGES} | scalars(classes[family, name])
        places = [scalar for own in names.values() for scalar in own]
        words: dict[str, str] = {}
        made = []
        for key, one in functions_of.items():
            lines += _function(one, places)
            made += [f'"{key}": (<size_t> <void*> {one.function.name}, {one.count})']
            words |= one.words
        row = ", ".join(f'("{key}", {len(own)}, {words.get(key)!r})' for key, own in names.items())
        table += [
            f'    ("fastgd.optimizers.{family}", "{name}"): (',
            f"        {{{', '.join(made)}}},",
            f"        ({row}),",
            "    ),",
        ]
    return "\n".join([*lines, *table, "}", ""])


def _function(made: Made, places: list[str]) -> list[str]:
    """The lines of a function over rows that have scalars in these places."""
    function = made.function
    *taken, _, _ = function.arguments  # but for the step, and where to write
    head = f"cdef void {function.name}("
    return [
        *("", "", f"{head}const double* h, long long step,"),
        f"{' ' * len(head)}double* out) noexcept nogil:",
        *(f"    cdef double {scalar} = h[{places.index(scalar)}]" for _, scalar in taken),
        *(f"    {line}" for line in function.body),
    ]
