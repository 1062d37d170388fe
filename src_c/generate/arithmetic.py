"""Writes what is worked out before sweeps, from the rules' Python, for the engine.

``_arithmetic.pxi`` has a function for each `begin` and `settle`, which takes coefficients and
numbers of a tensor, the sums of its terms and the number of its elements; and their addresses by
name.
"""

from __future__ import annotations

from generate.c_level import CALLS, Translator, UntranslatableError, statements
from generate.families import NUMBERS, Arithmetic, Family, FamilyError, Rule

PATH = "fastgd/kernels/engine/_arithmetic.pxi"


def function(rule: Rule, part: Arithmetic, name: str) -> list[str]:
    """The function of one part of a rule, in Cython."""
    order = [*rule.coefficients, *rule.settled]
    numbers = rule.numbers
    sums = [key for key, kind in rule.sums]
    local: list[str] = []
    to = Translator({})
    to.local = {*part.arguments, *part.coefficients}
    to.targets = [
        f"numbers[{numbers.index(key)}]" if key in numbers else f"c[{order.index(key)}]"
        for key in part.sets
    ]
    try:
        lines = list(statements(part.node.body, to, local, {*part.arguments, *part.coefficients}))
    except UntranslatableError as error:
        raise FamilyError(f"{part.name}: can't be said in C: {error}") from None
    given = []
    for key, kind in part.arguments.items():
        if kind == "Size":
            given += [f"cdef double {key} = n_elements"]
        elif kind in NUMBERS:
            given += [f"cdef double {key} = numbers[{numbers.index(key)}]"]
        else:
            given += [f"cdef double {key} = sums[{sums.index(key)}]"]
    given += [f"cdef double {key} = c[{order.index(key)}]" for key in part.coefficients]
    given += [f"cdef double {', '.join(local)}"] * bool(local)
    return [
        f"cdef void {name}(double* c, double* numbers, const double* sums,",
        f"{' ' * len(f'cdef void {name}(')}double n_elements) noexcept nogil:",
        *(f"    {line}" for line in [*given, *lines]),
    ]


def text(families: list[Family], note: str) -> str:
    """The file."""
    parts = [(r, part) for family in families for r in family.rules for part in r.arithmetic]
    lines = [f"# {note}", "", f"from libc.math cimport {', '.join(CALLS)}"]
    for rule, part in parts:
        lines += ["", "", *function(rule, part, part.name)]
    lines += ["", "", "cdef dict ARITHMETIC = {"]
    lines += [f'    "{part.name}": <size_t> <void*> {part.name},' for _, part in parts]
    return "\n".join([*lines, "}", ""])
