"""Writes what the engine works out coefficients by: the C level's functions, over rows of numbers.

A row has what the stages of every step take, then the other hyper-parameters of a class.
"""

from __future__ import annotations

from generate.c_level import CALLS, Coefficients, count_of, scalars
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
    table = ["", "", "# By module and class: function, number of coefficients, what is in rows."]
    table += ["COEFFICIENTS = {"]
    classes = {(family.name, cls.name): cls for family in families for cls in family.optimizers}
    for (family, name), function in functions.items():
        cls = classes[family, name]
        names = {key: [key] for key in STAGES} | scalars(cls)
        places = [scalar for own in names.values() for scalar in own]
        *taken, _, _ = function.arguments  # but for the step, and where to write
        head = f"cdef void {function.name}("
        lines += ["", "", f"{head}const double* h, long long step,"]
        lines += [f"{' ' * len(head)}double* out) noexcept nogil:"]
        lines += [f"    cdef double {scalar} = h[{places.index(scalar)}]" for _, scalar in taken]
        lines += [f"    {line}" for line in function.body]
        row = ", ".join(f'("{key}", {len(own)})' for key, own in names.items())
        table += [
            f'    ("fastgd.optimizers.{family}", "{name}"): (',
            f"        <size_t> <void*> {function.name}, {count_of(cls)}, ({row}),",
            "    ),",
        ]
    return "\n".join([*lines, *table, "}", ""])
