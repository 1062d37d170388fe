"""Every rule's and stage's loop is vectorised, to the full width of its backend.

The compiler does it by itself as long as the loop body stays straight and free of calls; a stray
Python object, an `if`, a division check or another flag stops it, at a cost of 4 to 16 times, and no
other test would notice.  So the machine code is read.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap

import pytest
from support.machine_code import (
    CLANG,
    READ,
    READABLE,
    REGISTERS,
    calls_in,
    count,
    disassembly,
    keeps_the_contract,
)

from fastgd.kernels.reference import LANES, RULES

pytestmark = READABLE
STAGES = ("scale", "l2_decay", "decoupled_decay")
SWEEPS = {sweep.name: sweep for row in RULES.values() for sweep in row.sweeps}
LINED = [row for row in RULES.values() if row.lines]
# Loops over numbers of rows and columns, and over the elements that are scaled by these.
BY_LINES = [s.name for row in LINED for s in (row.lines, row.rows, row.columns) if s]
OF_ELEMENTS = [s.name for row in LINED for s in (row.before, row.after) if s]


def code_of(backend, name, fuse):
    """The machine code of a loop, with what the compiler split off it."""
    pattern = re.compile(rf"__pyx_fuse_{fuse}__pyx_f_.*_{backend}_{name}(_loop)?(\..*)?")
    found = disassembly(backend).items()
    return "".join(body for symbol, body in found if pattern.fullmatch(symbol))


def formula(update):
    """What a sweep's function says in NumPy, with those of ours that it calls; without docstrings."""
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(update))).body
    said = "\n".join(map(ast.unparse, function.body[1:]))
    helpers = [
        f for key, f in update.__globals__.items() if f"{key}(" in said and inspect.isfunction(f)
    ]
    return "\n".join([said, *map(formula, helpers)])


@pytest.mark.parametrize(("fuse", "suffix"), [(0, "ps"), (1, "pd")])
@pytest.mark.parametrize("name", [*SWEEPS, *STAGES])
@pytest.mark.parametrize("backend", READ)
def test_loop_is_vectorised(backend, name, fuse, suffix):
    body = code_of(backend, name, fuse)
    if name in STAGES:  # these are inlined into the loop over tiles
        body += code_of(backend, "staged", fuse)
    assert body, f"{name} was not found among the functions of {backend}"
    said = formula(SWEEPS[name].update) if name in SWEEPS else ""
    if name in BY_LINES:  # elements are multiplied by what has the roots
        multiplies = "lines" in name and bool(SWEEPS[name].coefficients)
    else:
        multiplies = name in STAGES or bool(SWEEPS[name].coefficients)
    if multiplies:
        assert count(body, f"mul{suffix}", backend)
    elif " / " not in said:  # only copies
        assert {"memcpy", "memmove"} & calls_in(body) or count(body, "movups|movupd", backend)
    if name in SWEEPS and name not in OF_ELEMENTS:
        for operation, sign in (("sqrt", "np.sqrt("), ("div", " / ")):
            assert bool(count(body, operation + suffix, backend)) == (sign in said), operation
    assert keeps_the_contract(body)


@pytest.mark.parametrize("fuse", [0, 1])
@pytest.mark.parametrize("backend", READ)
def test_sums_of_terms_are_vectorised(backend, fuse):
    """Each of the two loops of `summed`, over terms and over squares, adds all lanes at a time."""
    body = code_of(backend, "summed", fuse)
    if CLANG and (backend, fuse) == ("baseline", 1):
        pytest.xfail("clang keeps one lane in each of SSE2's registers, and adds float64 by itself")
    width = {"xmm": 2, "ymm": 4, "zmm": 8}[REGISTERS[backend]]
    assert count(body, "addpd", backend) >= 2 * LANES // width
    assert count(body, "mulpd", backend)
    if fuse == 0:
        assert count(body, "cvtps2pd", backend)
    assert keeps_the_contract(body)
