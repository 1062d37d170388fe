"""The C level: every function to the bit as fastgd's own steps, and callers in three languages."""

from __future__ import annotations

import ctypes
import math
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib import import_module
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import numpy as np
import pytest
from support import compiled_level
from support.compiled_level import (
    HEADER,
    Table,
    backend_that_notes,
    comments,
    function,
    functions_of,
    prototypes,
)
from support.helpers import COMPILED, ROOT, coefficients_of, numbers_of, run_python, same_bits
from support.sampling import BY_ELEMENT, rules, sampled

import fastgd
from fastgd import kernels
from fastgd.core.domains import adjustment
from fastgd.kernels import _engine, c_api, reference
from fastgd.kernels.reference import BLOCK, RULES
from fastgd.optimizers import OPTIMIZERS

EXAMPLES = ROOT / "examples" / "compiled"
DTYPES = {"f32": np.float32, "f64": np.float64}
SIZES = (0, 1, 3, 8, 17, 64, 255, 256, 257, 1000)
STAGES = {
    "none": None,
    "off": (1.0, 0.0, 1.0, math.inf),
    "scale": (-0.37, 0.0, 1.0, math.inf),
    "l2": (1.0, 0.013, 1.0, math.inf),
    "decoupled": (1.0, 0.0, 0.987, math.inf),
    "clip": (1.0, 0.0, 1.0, 0.4),
    "all": (1.7, 0.011, 0.979, 0.6),
}


# The rules of which some rows of a table can be stepped.
BY_ROWS = [rule for rule in BY_ELEMENT if RULES[rule].by_rows in ("exact", "lazy")]


# --------------------------------------------------------------------------------- the functions


def test_there_is_a_function_for_every_rule_and_optimizer():
    names = {name for rule in BY_ELEMENT for name in functions_of(rule)}
    names |= {f"fastgd_{name.lower()}_coefficients" for name in fastgd.optimizers.__all__}
    names |= {f"fastgd_{rule}_rows_{suffix}" for rule in BY_ROWS for suffix in DTYPES}
    assert set(c_api.ADDRESSES) == set(prototypes()) == names, (
        "an optimizer whose coefficients src_c/c_api.py can't put into C? the build says why"
    )
    assert len(set(c_api.ADDRESSES.values())) == len(names)


@sampled({"rule": rules(slow=True), "backend": COMPILED, "suffix": DTYPES, "stages": STAGES})
def test_rules_equal_the_reference_to_the_bit(rule, backend, suffix, stages):
    fastgd.set_backend(backend)
    dtype, row = DTYPES[suffix], RULES[rule]
    rng = np.random.default_rng(1)
    given = None if STAGES[stages] is None else np.array(STAGES[stages])
    # Sums are over blocks.
    for n in (*SIZES, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 300)[: None if row.sums else 10]:
        p, g = rng.standard_normal((2, n)).astype(dtype)
        states = [rng.random(n).astype(dtype) for _ in row.states]
        numbers = np.array([float(a) for a in numbers_of(rule)])
        expected = [a.copy() for a in (p, *states, *numbers_of(rule))]
        kept = dict(zip(row.numbers, expected[1 + len(states) :], strict=True))
        gradient = g.copy()
        for t in (1, 2):
            c = coefficients_of(rule, t)
            compiled_level.step(rule, p, g, states, numbers, c, given)
            reference.step(rule, expected[0], g, expected[1 : 1 + len(states)], c,
                           reference.Stages(*STAGES[stages] or ()), numbers=kept)  # fmt: skip
        for found, right in zip((p, *states, *numbers), expected, strict=True):
            assert same_bits(found, right), (rule, n)
        assert same_bits(g, gradient)


@pytest.mark.parametrize("suffix", DTYPES)
@pytest.mark.parametrize("backend", COMPILED)
def test_rows_of_a_table(backend, suffix):
    """Each is stepped as by the rule's own function, and no other is touched."""
    fastgd.set_backend(backend)
    rng, indices = np.random.default_rng(1), np.array([7, 0, 5])
    for rule in ("sgd", "adam", "amsgrad"):
        c, stages = np.array(coefficients_of(rule)), np.array(STAGES["all"])
        tables = rng.random((1 + len(RULES[rule].states), 9, 20)).astype(DTYPES[suffix])
        g, expected = rng.standard_normal((3, 20)).astype(DTYPES[suffix]), tables.copy()
        function(f"fastgd_{rule}_rows_{suffix}")(
            tables[0], g, *tables[1:], 20, indices, 3, c, stages
        )
        for k, row in enumerate(indices):
            p, *states = expected[:, row]
            function(f"fastgd_{rule}_{suffix}")(p, g[k], *states, 20, c, stages)
        assert same_bits(tables, expected)


@pytest.mark.parametrize("rule", BY_ELEMENT)
def test_the_header_says_what_functions_take(rule):
    """Names of arguments, what is only read, and the order of coefficients, sums and numbers."""
    row, said, declared = RULES[rule], comments(), prototypes()
    for name, arguments in functions_of(rule).items():
        run, text = function(name), declared[name]
        assert run.names == arguments
        if name.endswith(("_begin", "_settle")):
            part = row.begin if name.endswith("_begin") else row.settle
            numbers = ", ".join(row.numbers) or "none"
            about = f"sets {', '.join(part.sets)}; numbers: {numbers}"
            totals = ", ".join(key for key, kind in part.arguments if kind == "total")
            assert said[name] == about + f"; sums over all tensors: {totals}" * bool(totals)
            assert "double *coefficients, double *numbers, const double *sums" in text
            continue
        sweep = row.before if arguments[-1] == "sums" else row.after
        about = f"coefficients: {', '.join(row.order)}"
        assert said[name].partition("; sums: ")[0] == about
        assert said[name].count("; sums: ") == (sweep is row.before)
        written = {"p"} if sweep is row.after else set()
        for key in ("p", *["g"] * sweep.gradient, *sweep.states):
            read = re.search(rf"const (float|double) \*{key}\b", text) is not None
            assert read != (key in written.union(sweep.written)), (name, key)


@pytest.mark.parametrize("n", [0, -1])
def test_no_elements_touch_nothing(n):
    arrays = np.ones((4, 3))
    for stages in STAGES.values():
        given = None if stages is None else np.array(stages)
        function("fastgd_adam_f64")(*arrays, n, np.ones(8), given)
    assert np.all(arrays == 1)


@pytest.mark.parametrize("name", fastgd.optimizers.__all__)
def test_coefficients_equal_those_of_the_class_to_the_bit(name):
    run = function(f"fastgd_{name.lower()}_coefficients")
    cls, rng = OPTIMIZERS[name], np.random.default_rng(2)
    defaults = {key: declared.default for key, declared in cls.hypers.items()}
    for k in range(500):
        step = int(rng.integers(1, 10 ** rng.integers(1, 7))) if k else 1
        h, given = {}, {}
        for key, value in defaults.items():
            if isinstance(value, bool):
                h[key] = given[key] = bool(rng.integers(2))
            elif isinstance(value, tuple):
                h[key] = tuple(map(float, 1 - rng.random(len(value)) ** 3))
                stem = key if key == "eps" else key[:-1]
                given |= {f"{stem}{j + 1}": v for j, v in enumerate(h[key])}
                if None in value and k % 2:
                    h[key], given[f"{stem}1"] = (None, *h[key][1:]), np.nan
            elif cls.domains[key] is adjustment:
                h[key] = [None, "original", "match_rms_adamw"][rng.integers(3)]
                given[key] = h[key] == "match_rms_adamw"
            else:
                h[key] = given[key] = float(1 - rng.random() ** 3)
                if value is None and rng.integers(2):
                    h[key], given[key] = None, np.nan
        out = np.full(_engine.SIZES["MAX_COEFFICIENTS"], np.nan)
        run(*(given[key] for key in run.names[:-2]), step, out)
        right = cls.coefficients(h, step)
        assert out[: len(right)].tolist() == list(right), (h, step)
        assert np.isnan(out[len(right) :]).all()


def test_no_rule_takes_more_than_there_is_room_for():
    (room,) = re.findall(r"FASTGD_COEFFICIENTS (\d+)", HEADER.read_text("utf-8"))
    assert int(room) == _engine.SIZES["MAX_COEFFICIENTS"]
    most = {"order": "COEFFICIENTS", "states": "STATES", "sums": "SUMS", "numbers": "NUMBERS"}
    for of, size in most.items():
        assert max(len(getattr(row, of)) for row in RULES.values()) <= _engine.SIZES[f"MAX_{size}"]


# ----------------------------------------------------------------------------------- the backend


def test_the_backend_is_that_of_the_steps():
    notes = []
    fake = backend_that_notes(RULES, notes)
    arrays = np.ones((4, 5))
    try:
        c_api._use_backend(fake)
        c_api._use_backend(None)  # the reference has no loops: nothing changes
        for rule in BY_ELEMENT:
            for suffix in DTYPES:
                row, p = RULES[rule], np.ones(5, DTYPES[suffix])
                states, numbers = arrays[: len(row.states)], np.ones(len(row.numbers))
                for stages in (None, np.array(STAGES["off"]), np.array(STAGES["all"])):
                    c = coefficients_of(rule)
                    compiled_level.step(rule, p, arrays[3], states, numbers, c, stages)
                first = [("summed", f"{rule}_before", suffix)] * (RULES[rule].before is not None)
                last = [(rule, suffix), (rule, suffix), ("staged", rule, suffix)]
                assert notes == [note for one in last for note in (*first, one)]
                notes.clear()
    finally:
        fastgd.set_backend(fastgd.available_backends()[0])
    function("fastgd_sgd_f64")(arrays[0], arrays[1], 5, np.ones(8), None)
    assert notes == []
    assert arrays[0].tolist() == [0] * 5


def test_set_backend_tells_who_follows(monkeypatch):
    told = []
    monkeypatch.setattr(kernels, "_followers", [*kernels._followers, told.append])
    fastgd.set_backend("numpy")
    fastgd.set_backend("baseline")
    assert told == [None, import_module("fastgd.kernels._baseline")]


def test_it_works_while_the_reference_is_in_use():
    code = """
import sys; sys.path.insert(0, {tests!r})
import numpy as np, fastgd
from support.compiled_level import function
p = np.ones(3)
function("fastgd_sgd_f64")(p, np.ones(3), 3, np.array([0.5]), None)
print(fastgd.get_backend(), *p)
"""
    done = run_python(code.format(tests=str(ROOT / "tests")), FASTGD_BACKEND="numpy")
    assert done.stdout.split() == ["numpy", "0.5", "0.5", "0.5"], done.stderr


def test_import_fastgd_does_not_load_it():
    done = run_python("import fastgd, sys; print('fastgd.kernels.c_api' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


# ---------------------------------------------------------------------------------------- the ABI


def test_what_was_promised_is_there():
    """Lines of abi_1.txt may be added, never changed; or FASTGD_ABI_VERSION goes up."""
    promised = (ROOT / "tests" / f"abi_{c_api.ABI_VERSION}.txt").read_text("utf-8").splitlines()
    assert len(promised) >= 28
    assert set(promised) <= {f"{name}({arguments})" for name, arguments in prototypes().items()}
    for line in ("FASTGD_STAGES 4", f"ABI_VERSION {c_api.ABI_VERSION}"):
        assert f"{line}\n" in HEADER.read_text("utf-8")


def test_coefficients_fit_where_they_were_promised_to():
    """FASTGD_COEFFICIENTS was 8 when these were compiled against, and is in callers' arrays."""
    for name in ("SGD", "Momentum", "Adagrad", "RMSprop", "Adam", "AdamW"):
        cls = OPTIMIZERS[name]
        assert len(cls.coefficients(cls(np.zeros(1)).defaults, 1)) <= 8


def test_the_table_lists_every_function():
    table = Table.from_address(c_api.TABLE)
    rows = [table.entries[k] for k in range(table.n_entries)]
    assert table.abi_version == c_api.ABI_VERSION
    assert {row.name.decode(): row.function for row in rows} == c_api.ADDRESSES
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    assert get(c_api._C_API, b"fastgd.kernels.c_api._C_API") == c_api.TABLE


# ------------------------------------------------------------------------------------ the examples


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The examples, where they may be built."""
    to = tmp_path_factory.mktemp("compiled")
    shutil.copytree(EXAMPLES, to, dirs_exist_ok=True)
    return to


def compile_c(folder, *arguments):
    # The first word of setuptools' compiler, whose other words are for building Python itself.
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")[0]
    call = [compiler, "-O2", "-Wall", "-Wextra", "-Werror", f"-I{fastgd.get_include()}", *arguments]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def loaded(name, path):
    """The extension module in a file."""
    loader = ExtensionFileLoader(name, str(path))
    module = module_from_spec(spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


def check_descent(descend, optimizer, dtype):
    """Compare steps taken elsewhere with fastgd's own, to the bit, for sizes around a vector."""
    for n in (1, 7, 64, 300):
        arrays = np.zeros((4, n), dtype)
        arrays[0] = np.linspace(-2, 2, n)
        x = arrays[0].copy()
        descend(*arrays, 0.05, 40)
        opt = optimizer(x, lr=0.05)
        for _ in range(40):
            opt.step(x - 1)
        assert same_bits(arrays[0], x)
        assert same_bits(arrays[2], opt.state[0]["exp_avg"])
        assert same_bits(arrays[3], opt.state[0]["exp_avg_sq"])


@pytest.mark.slow
def test_cython_by_cimport(folder):
    call = [sys.executable, "-m", "Cython.Build.Cythonize", "-i", "-3", "cython_loop.pyx"]
    environment = {**os.environ, "PYTHONPATH": str(Path(fastgd.__file__).parents[1])}
    done = subprocess.run(
        call, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("cython_loop.*.so")
    check_descent(loaded("cython_loop", built).descend, fastgd.Adam, np.float32)


@pytest.fixture(scope="module")
def extension(folder):
    python = sysconfig.get_path("include")
    compile_c(folder, f"-I{python}", "-shared", "-fPIC", "extension.c", "-o", "extension.so")
    return folder / "extension.so"


def test_extension_in_c(extension):
    module = loaded("extension", extension)
    check_descent(module.descend, fastgd.AdamW, np.float32)
    with pytest.raises(ValueError, match="expected buffers of one size"):
        module.descend(*(np.zeros(3 + k, np.float32) for k in range(4)), 0.1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("abi_version = 2", r"FASTGD_ABI_VERSION: expected .* \(ABI 1\), found .* \(ABI 2\)"),
        ("n_entries -= 1", "fastgd_.*: expected as in the fastgd.h this was compiled with"),
    ],
)
def test_extension_refuses_another_fastgd(extension, change, message):
    code = f"""
import ctypes, sys; sys.path[:0] = [{str(ROOT / "tests")!r}, {str(extension.parent)!r}]
from support.compiled_level import Table
from fastgd.kernels import c_api
table = Table.from_address(c_api.TABLE)
table.{change}
try:
    import extension
except ImportError as error:
    print(error)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert re.search(message, done.stdout), done.stdout


def test_plain_c_through_ctypes(folder):
    strict = ("-std=c99", "-Wpedantic", "-shared", "-fPIC", "plain.c", "-o", "plain.so")
    compile_c(folder, *strict)
    names = runpy.run_path(str(folder / "plain_c.py"))
    x = np.linspace(-2, 2, 50)
    y = x.copy()
    names["descend"](folder / "plain.so", x, lr=0.05, steps=40)
    fastgd.Adam(y, lr=0.05).minimize(lambda: (0.0, y - 1), 40)
    assert same_bits(x, y)

    table = Table.from_buffer_copy(Table.from_address(c_api.TABLE))
    plain = ctypes.CDLL(str(folder / "plain.so"))
    plain.use_fastgd.restype = ctypes.c_char_p
    assert plain.use_fastgd(ctypes.byref(table)) is None
    table.n_entries -= 1
    assert plain.use_fastgd(ctypes.byref(table)) == list(c_api.ADDRESSES)[-1].encode()
    table.abi_version += 1
    assert plain.use_fastgd(ctypes.byref(table)) == b"FASTGD_ABI_VERSION"


def test_two_sweeps_as_the_header_shows_them(folder):
    """What stands in its first comment, step by step on two tensors, against fastgd.LAMB."""
    lines = re.findall(r"^ \*     (.*)$", HEADER.read_text("utf-8"), flags=re.M)
    start = lines.index("double own[FASTGD_COEFFICIENTS], sums[2];")
    shown = "\n".join(lines[start : start + 6])
    arrays = "float *p, const float *g, float *exp_avg, float *exp_avg_sq"
    (folder / "lamb.c").write_text(f"""
#include <fastgd.h>
const char *use_fastgd(const fastgd_table *table) {{ return fastgd_bind(table); }}
void lamb({arrays}, ptrdiff_t n, double lr, int step)
{{
    double c[FASTGD_COEFFICIENTS];
{shown}
}}
""")
    compile_c(folder, "-std=c99", "-shared", "-fPIC", "lamb.c", "-o", "lamb.so")
    library = ctypes.CDLL(str(folder / "lamb.so"))
    library.use_fastgd.restype = ctypes.c_char_p
    assert library.use_fastgd(ctypes.c_void_p(c_api.TABLE)) is None
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(n).astype(np.float32) for n in (7, BLOCK + 5)]
    copies = [(p.copy(), np.zeros_like(p), np.zeros_like(p)) for p in params]
    opt = fastgd.LAMB(params, lr=0.1)
    for step in range(1, 4):
        grads = [rng.standard_normal(p.size).astype(np.float32) for p in params]
        opt.step(grads)
        for (p, m, v), g in zip(copies, grads, strict=True):
            given = [ctypes.c_void_p(a.ctypes.data) for a in (p, g, m, v)]
            library.lamb(*given, ctypes.c_ssize_t(p.size), ctypes.c_double(0.1), step)
    for p, (q, m, v), state in zip(params, copies, opt.state.values(), strict=True):
        assert same_bits(p, q)
        assert same_bits(m, state["exp_avg"])
        assert same_bits(v, state["exp_avg_sq"])


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_the_header_is_c_plus_plus_too(folder):
    compile_c(folder, "-x", "c++", "-fsyntax-only", "plain.c")


@pytest.mark.slow
def test_numba_by_address(folder):
    pytest.importorskip("numba", reason="numba is not installed")
    descend = runpy.run_path(str(folder / "numba_loop.py"))["descend"]
    check_descent(descend, fastgd.Adam, np.float32)
