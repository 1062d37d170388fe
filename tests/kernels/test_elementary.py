"""The logarithm and the cosine have the same bits everywhere, and nothing else of a C library's is used."""

from __future__ import annotations

import ast
import decimal
import math
import random
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.helpers import ROOT

from fastgd.kernels import _engine
from fastgd.kernels.spec import elementary

PI = decimal.Decimal("3.14159265358979323846264338327950288419716939937510582097494459")


def outcome(function, x):
    """What it returns or raises."""
    try:
        return repr(function(x))
    except ValueError:
        return ValueError


@given(st.floats() | st.floats(0, 2) | st.integers(1, 10**6).map(lambda n: 1 / n))
@example(0.0)
@example(-0.0)
@example(5e-324)
@example(0.25)
@example(math.nextafter(0.25, 1))
@example(elementary.ROOT_OF_HALF)
@example(math.nextafter(elementary.ROOT_OF_HALF, 0))
@example(math.inf)
@example(-math.inf)
@example(math.nan)
def test_compiled_functions_are_the_specified_ones(x):
    assert outcome(_engine.logarithm, x) == outcome(elementary.logarithm, x)
    assert outcome(_engine.cospi, x) == outcome(elementary.cospi, x)


def exact_cospi(x):
    y = PI * decimal.Decimal(x)
    term, total, k = decimal.Decimal(1), decimal.Decimal(1), 0
    while abs(term) > 1e-40:
        term *= -y * y / ((k + 1) * (k + 2))
        total, k = total + term, k + 2
    return total


def test_within_a_unit_in_the_last_place():
    rng = random.Random(0)
    decimal.getcontext().prec = 50
    # Near zeros of the two as well, where a cosine of a rounded πx has no digit right.
    shares = [rng.random() for _ in range(600)]
    shares += [0.5 + s * 2.0**-k for s in (-1, 1) for k in range(2, 50)]
    ratios = [math.ldexp(rng.random(), rng.randint(-1070, 1024)) for _ in range(600)]
    ratios += [1 + s * 2.0**-k for s in (-1, 1) for k in range(2, 52)]
    cases = [(_engine.cospi, x, exact_cospi(x)) for x in shares]
    cases += [(_engine.logarithm, x, decimal.Decimal(x).ln()) for x in ratios]
    for function, x, exact in cases:
        error = abs(decimal.Decimal(function(x)) - exact) / decimal.Decimal(math.ulp(float(exact)))
        assert error < 0.8, (function, x)


def test_what_is_exact():
    found = [_engine.cospi(k / 2) for k in range(-3, 6)]
    assert found == [0.0, -1.0, 0.0, 1.0, 0.0, -1.0, 0.0, 1.0, 0.0]
    assert _engine.cospi(1e300) == 1.0
    assert str(_engine.logarithm(1.0)) == "0.0"
    assert _engine.logarithm(math.inf) == math.inf


# --------------------------------------------------------------------- nothing of the C library's

# What IEEE 754, or integers, leave no choice in; and what each C library rounds in its way.
EXACT = {
    "ceil", "copysign", "fabs", "floor", "fmod", "frexp", "inf", "isfinite", "isinf", "isnan", "isqrt", "ldexp",
    "nan", "nextafter", "pi", "prod", "sqrt", "trunc", "ulp",
}  # fmt: skip
ROUNDED = {
    "arccos", "arcsin", "arctan", "arctan2", "cbrt", "cos", "cosh", "exp", "exp2", "expm1", "float_power",
    "geomspace", "hypot", "log", "log10", "log1p", "log2", "logaddexp", "logaddexp2", "logspace", "pow", "power",
    "sin", "sinc", "sinh", "tan", "tanh",
}  # fmt: skip
# Where they are used all the same, and why no parameter's bits follow from it.
ALLOWED = {
    ("commands/", ""): "figures, and models of demonstrations",
    ("plot/", ""): "figures",
    ("surfaces/", ""): "functions to minimize, as a user's are: of NumPy",
    ("averages.py", "beta ** passed"): "averages of series by times, which step nothing: of NumPy",
    ("init/__init__.py", "math.erf"): "how much lies between bounds, whether to refuse them",
    ("kernels/tuning.py", "4 **"): "integers",
    ("kernels/spec/powers.py", "math.pow"): "powers that are not rounded",
    ("kernels/spec/elementary.py", "math.log"): "what is not finite, and errors",
}
LITERALLY = (ast.BinOp, ast.UnaryOp, ast.Constant, ast.operator, ast.unaryop)


def uses(tree):
    """All that a module takes of a C library's functions, as it is written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("math", "cmath"):
            yield from (f"math.{alias.name}" for alias in node.names if alias.name not in EXACT)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module, name = node.value.id, node.attr
            if (module in ("math", "cmath") and name not in EXACT) or (
                module in ("np", "torch") and name in ROUNDED
            ):
                yield ast.unparse(node)
        elif isinstance(node, ast.Name) and node.id == "pow":
            yield "pow"
        elif isinstance(node, (ast.BinOp, ast.AugAssign)) and isinstance(node.op, ast.Pow):
            known = all(isinstance(part, LITERALLY) for part in ast.walk(node))  # powers of 2
            yield from [] if known else [ast.unparse(node)]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from math import cos, sqrt", ["math.cos"]),
        ("x = math.exp(1) + np.log(2)", ["math.exp", "np.log"]),
        ("x = beta**t", ["beta ** t"]),
        ("x **= 2", ["x **= 2"]),
        ("x = pow(a, b)", ["pow"]),
        ("x = 2.0**-24 + math.sqrt(3)", []),
    ],
)
def test_what_the_walk_sees(line, found):
    assert [*uses(ast.parse(line))] == found


def test_no_module_asks_the_c_library():
    package, used = ROOT / "fastgd", set()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        for use in uses(ast.parse(path.read_text("utf-8"))):
            keys = [key for key in ALLOWED if name.startswith(key[0]) and use.startswith(key[1])]
            assert keys, (
                f"{name}: {use}: its bits differ between C libraries; see kernels/spec/elementary.py"
            )
            used.update(keys)
    assert used == set(ALLOWED), "what is allowed is there"


def test_no_compiled_code_asks_the_c_library():
    names = "|".join(
        sorted({name for name in ROUNDED if not name.startswith("arc")} | {"pow", "erf"})
    )
    called = re.compile(rf"(?<![\w.])(?:{names})[fl]?\(")
    special = {"src_c/powers.h": {"pow("}, "src_c/elementary.h": {"log("}}
    for folder, kinds in (("src_c", ["h", "c", "in"]), ("fastgd", ["pyx", "pxi", "pxd"])):
        for kind in kinds:
            for path in (ROOT / folder).rglob(f"*.{kind}"):
                name = path.relative_to(ROOT).as_posix()
                code = re.sub(
                    r"(#.*|/\*[\s\S]*?\*/|//.*|\"\"\"[\s\S]*?\"\"\")", "", path.read_text("utf-8")
                )
                assert set(called.findall(code)) == special.get(name, set()), name
