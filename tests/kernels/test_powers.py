"""Powers, and with them coefficients and schedules, have the same bits everywhere."""

from __future__ import annotations

import decimal
import math
import platform
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.helpers import run_python

from fastgd.kernels import _engine
from fastgd.kernels.spec import powers

BETAS = [0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 0.9999, 1 - 1e-7, math.nextafter(1, 0)]


def outcome(function, *arguments):
    """What it returns or raises."""
    try:
        return function(*arguments)
    except ArithmeticError as error:
        return type(error)
    except ValueError:
        return ValueError


@pytest.mark.parametrize("beta", BETAS)
def test_whole_powers_are_the_nearest_floats(beta):
    """By exact integers: β is m/2⁵⁴ or so, and Python's division of integers rounds right."""
    m, denominator = beta.as_integer_ratio()
    for t in [*range(70), 348, 1000, 3000, 7919]:
        assert _engine.raised(beta, t) == m**t / denominator**t
    decimal.getcontext().prec = 60
    for t in (100_003, 999_983, 10**6):
        assert _engine.raised(beta, t) == float(decimal.Decimal(beta) ** t)


def test_powers_beyond_what_floats_count_to():
    """Step counts never get there; exponents of schedules may."""
    beta = math.nextafter(1, 0)
    decimal.getcontext().prec = 60
    for n in (2**53, 2**53 + 2, 2**60, 2**62):
        exact = float((decimal.Decimal(beta).ln() * n).exp())
        assert _engine.raised(beta, n) == exact == powers.raised(beta, n)
    assert (_engine.raised(beta, 2.0**63), _engine.raised(beta, 1e300)) == (0.0, 0.0)
    assert (_engine.raised(-1.0, 1e300), powers.raised(-1.0, 1e300)) == (1.0, 1.0)
    assert outcome(_engine.raised, beta, -1e300) is OverflowError


def test_powers_in_any_order():
    """Compiled code goes on from the last power of a number."""
    rng = random.Random(0)
    exponents = [t for k in (30, 62, 350) for t in range(k, k + 5)]
    cases = [(x, t) for x in (*BETAS, 1.5) for t in (*exponents, *exponents[::-1])]
    for x, t in [*cases, *rng.sample(cases, len(cases))]:
        assert _engine.raised(x, t) == powers.raised(x, t)


@given(
    st.floats(-1e3, 1e3) | st.sampled_from(BETAS) | st.floats(),
    st.integers(-400, 400).map(float) | st.integers(0, 2**54).map(float) | st.floats(-300, 300),
)
@example(0.0, 0.0)
@example(0.0, -2.0)
@example(-0.0, 3.0)
@example(-8.0, 1 / 3)
@example(1e300, 1.5)
@example(1e300, -1.5)
@example(5e-324, 0.5)
@example(5e-324, -3.0)
@example(2.0, -1074.0)
@example(3.0, -678.5)
@example(0.9, 2.0**52)
@example(1.0, 0.1)
@example(4.0, 5e-324)
@example(math.nan, 0.0)
@example(math.inf, -1.0)
@example(2.0, math.inf)
def test_compiled_powers_are_the_specified_ones_and_those_of_c_within_a_place(x, n):
    found = outcome(_engine.raised, x, n)
    specified = outcome(powers.raised, x, n)
    assert repr(found) == repr(specified)
    usual = outcome(math.pow, x, n)
    if isinstance(usual, float) and isinstance(found, float):
        close = abs(found - usual) <= (2 + abs(n) / 2**9) * math.ulp(usual) if usual == usual else 0
        assert close or repr(found) == repr(usual)
    elif x != 0:  # where a division by 0 is one
        assert found == usual


# Prints a digest of coefficients, schedules and weights, and of what the C library has for 0.9^t and cosines.
NUMBERS = """
import hashlib, math, fastgd
from fastgd import init, schedules
words = hashlib.sha256()
def note(value):
    words.update(repr(value).encode())
for name in sorted(fastgd.optimizers.__all__):
    cls = getattr(fastgd, name)
    h = {key: declared.default for key, declared in cls.hypers.items()}
    if name == "AdEMAMix":
        h |= {"alpha_warmup": 30_000, "beta3_warmup": 30_000}
    for t in (*range(1, 1000, 9), 348, 20_011):
        note(cls.coefficients(h, t))
steps = [*range(400), *range(21_175, 1_000_000, 1861), 28_995, 48_423, 52_866, 54_179]
for schedule in (
    schedules.Exponential(0.1, 0.9), schedules.Polynomial(0.1, 10**6, 0.9), schedules.Cosine(0.1, 10**6, 1e-3),
    schedules.CosineRestarts(0.1, 300, 2), schedules.OneCycle(0.1, 10**6), schedules.InverseSqrt(0.1, 7),
):
    note([schedule(t) for t in steps])
for distribution in ("uniform", "truncated_normal"):
    note(init.kaiming((30, 50), gain="leaky_relu", distribution=distribution, seed=0).tolist())
own = [(0.9**t, math.cos(math.pi * t / 10**6)) for t in steps]
print(words.hexdigest(), hashlib.sha256(repr(own).encode()).hexdigest())
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or platform.machine() != "x86_64",
    reason="this CPU's C library has no such switch",
)
def test_numbers_do_not_depend_on_the_c_library():
    """With and without FMA: so glibc's own powers differ, of 0.9 at t = 348, and its cosines."""
    here = run_python(NUMBERS)
    flags = "glibc.cpu.hwcaps=-FMA,-AVX2_Usable,-AVX2,-FMA4"
    there = run_python(NUMBERS, GLIBC_TUNABLES=flags, FASTGD_BACKEND="baseline")
    assert not here.stderr + there.stderr
    assert here.stdout.split()[0] == there.stdout.split()[0]
