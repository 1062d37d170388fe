"""Every rule's and stage's loop is vectorised, to the full width of its backend.

The compiler does it by itself as long as the loop body stays straight and free of calls; a stray
Python object, an `if`, a division check or another flag stops it, at a cost of 4 to 16 times, and no
other test would notice.  So the machine code is read.
"""

from __future__ import annotations

import re

import pytest
from support.helpers import COMPILED
from support.machine_code import READABLE, REGISTERS, disassembly

from fastgd.kernels.reference import RULES

pytestmark = READABLE
STAGES = ("scale", "l2_decay", "decoupled_decay")


def packed(body, operation, suffix, register):
    """Whether a function has an instruction such as `vmulps ... %zmm1`."""
    return re.search(rf"\bv?{operation}{suffix}\s.*%{register}\d", body) is not None


@pytest.mark.parametrize(("fuse", "suffix"), [(0, "ps"), (1, "pd")])
@pytest.mark.parametrize("name", [*RULES, *STAGES])
@pytest.mark.parametrize("backend", COMPILED)
def test_loop_is_vectorised(backend, name, fuse, suffix):
    functions = disassembly(backend)
    pattern = re.compile(rf"__pyx_fuse_{fuse}__pyx_f_.*_{backend}_{name}(\..*)?")
    bodies = [body for symbol, body in functions.items() if pattern.fullmatch(symbol)]
    if name in STAGES:  # these are inlined into the loop over tiles
        pattern = re.compile(rf"__pyx_fuse_{fuse}__pyx_f_.*_{backend}_staged(\..*)?")
        bodies += [body for symbol, body in functions.items() if pattern.fullmatch(symbol)]
    assert bodies, f"{name} was not found among the functions of {backend}"
    body = "".join(bodies)
    register = REGISTERS[backend]
    assert packed(body, "mul", suffix, register)
    if name in RULES:
        has_root = "eps" in RULES[name].coefficients
        for operation in ("sqrt", "div"):
            assert packed(body, operation, suffix, register) == has_root
    # The numeric contract: nothing is contracted, nothing approximated.
    assert not re.search(r"\bvf(n?m(add|sub))\d|\bv?r(sqrt|cp)", body)
