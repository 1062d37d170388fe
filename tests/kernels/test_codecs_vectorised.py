"""Every codec's loop is vectorised, to the full width of its backend: see test_vectorised.py."""

from __future__ import annotations

import re

import pytest
from support.machine_code import (
    CLANG,
    READ,
    READABLE,
    calls_in,
    count,
    disassembly,
    keeps_the_contract,
    scalars_in,
)

from fastgd.kernels.reference import RULES
from fastgd.kernels.spec.codecs import CODECS

pytestmark = READABLE

# What only a vectorised loop has, by loop; SSE2 lacks some of it and has what stands after the |.
MARKS = {
    "load_float32": "cvtps2pd",
    "load_float64": "movups|movupd",  # cvtpd2ps names the narrower register
    "store_float32": "movups|movupd",
    "store_float64": "cvtps2pd",
    "load_bfloat16": "pslld|punpcklwd",
    "load_float16": "cvtdq2ps mulps",
    "load_split": "pmaxsd|pcmpgtd",
    "load_e5m2": "addps subps paddd",
    "load_ue6m2": "pslld",
    "store_bfloat16": "psrld paddd",
    "store_float16": "psrld addps",
    "store_split": "paddd",
    "store_e5m2": "addps psrld|psrad",
    "store_ue6m2": "psrld|psrad",
    "stochastic_bfloat16": "psrld paddd",
    "stochastic_float16": "mulps cvttps2dq psrld",
    "stochastic_e5m2": "addps psrld|psrad psrld",
    "stochastic_ue6m2": "psrld|psrad psrld",
    "random_words": "xorps|pxor|pxord",
    "random_table": "pmulld|pmuludq psrld",
}
# A number in its own type is copied, for which compilers call the C library.
COPIED = ["float32", "float64"]
# What the largest of a tile is found with.
LARGEST = "pmaxsd|pmaxud|pcmpgtd"


def marks(name):
    found = MARKS[name].split()
    if re.fullmatch("(store|stochastic)_u?e.m3", name):
        found.append(LARGEST)
    return found


@pytest.mark.parametrize("fuse", [0, 1])
@pytest.mark.parametrize("name", MARKS)
@pytest.mark.parametrize("backend", READ)
def test_codec_is_vectorised(backend, name, fuse):
    symbol = rf"__pyx_fuse_{fuse}__pyx_f_.*_{backend}_{name}(\..*)?"
    if name.startswith("random"):
        symbol = rf"__pyx_f_.*_{backend}_{name}(\..*)?"
    own = {s: b for s, b in disassembly(backend).items() if re.fullmatch(symbol, s)}
    body = "".join(own.values())
    assert body, f"{name} was not found among the functions of {backend}"
    # clang takes as many float32 at a time as a register holds float64.
    halves = CLANG and (fuse == 1 or name == "load_float64")
    for mark in [] if name.endswith(COPIED[fuse]) else marks(name):
        assert count(body, mark, backend, halves), mark
    # Nothing is called for an element, and nothing contracted.
    assert calls_in(body) <= {"memset", "memcpy", *own}
    assert keeps_the_contract(body)


FUSED = [rule for rule in RULES.values() if rule.fused]


def fused_loop(param, grad, states):
    """The loop for arrays that are stored so."""
    if states == "8bit":
        return "in_8_bits"
    return "direct" if "float32" in (param, grad, states) else "in_pairs"


@pytest.mark.parametrize("name", ["direct", "in_pairs", "in_8_bits"])
@pytest.mark.parametrize("backend", READ)
def test_fused_loops_are_vectorised(backend, name):
    """One for each rule and way to keep parameter, gradient and states; without a scalar rest."""
    expected = sum(
        fused_loop(param, grad, states) == name
        for rule in FUSED
        for param in rule.fused.params
        for grad in ("float32", "bfloat16")
        for states in rule.fused.states
    )
    own = re.compile(
        rf"(__pyx_fuse_[\d_]*?(\d))__pyx_f_.*_{backend}_({name}(?:_loop)?|quarter)(\..*)?"
    )
    bodies = {}
    for symbol, body in disassembly(backend).items():
        if found := own.fullmatch(symbol):
            of = bodies.setdefault((found[1], int(found[2])), {})
            of[found[3]] = of.get(found[3], "") + body
    bodies = {of: "".join(each.values()) for of, each in bodies.items() if name in each}
    assert len(bodies) == expected
    for (_, rule), body in bodies.items():
        for mark in ("mulps", "sqrtps", "divps"):
            if mark == "mulps" or "eps" in FUSED[rule].coefficients:
                assert count(body, mark, backend), mark
        assert not scalars_in(body)
        assert keeps_the_contract(body)


def test_every_loop_is_looked_at():
    loops = {f"load_{name}" for name in CODECS} | {f"store_{name}" for name in CODECS}
    loops |= {f"stochastic_{name}" for name, codec in CODECS.items() if codec.stochastic}
    assert set(MARKS) == {*loops, "random_words", "random_table"}
