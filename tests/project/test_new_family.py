"""A new family is one file pair: a copy of the package is built with one, and it is everywhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from support import new_family
from support.helpers import ROOT, unsanitized
from support.workers import made_once

import fastgd
from fastgd.core.contract import hyper
from fastgd.core.domains import fraction
from fastgd.optimizers import OPTIMIZERS


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A copy of the package with a made-up family, its baseline backend built."""
    return made_once(tmp_path_factory, "family", build)[0]


def build(to):
    ignored = shutil.ignore_patterns("*.so", "*.c", "__pycache__", "_rules.pxi", "c_api.pxd")
    for name in ("fastgd", "tests", "bench"):
        shutil.copytree(ROOT / name, to / name, ignore=ignored)
    shutil.copytree(ROOT / "src_c", to / "src_c")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, to / name)
    family = to / "fastgd" / "optimizers" / "drift.py"
    assert not family.exists()
    family.write_text(new_family.MODULE, "utf-8")
    family.with_suffix(".pxi").write_text(new_family.LOOPS, "utf-8")
    in_copy(to, "setup.py", "-q", "build_ext", "--inplace")


def in_copy(folder, *words):
    """Run a Python program in the copy, which alone provides the package there."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={
            **os.environ, "PYTHONPATH": str(folder), "FASTGD_BACKENDS": "baseline",
            "FASTGD_BACKEND": "", "FASTGD_STRICT": "0", "MPLBACKEND": "agg",
            "FASTGD_TESTS": "pairs",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@unsanitized
def test_it_is_found_everywhere(built):
    found = json.loads(in_copy(built, "tests/support/new_family.py").splitlines()[-1])
    assert [place for place, there in found.items() if not there] == []
    assert len(found) >= 20


@pytest.mark.slow
@unsanitized
def test_the_tests_of_all_optimizers_are_its_own(built):
    """Formulas against NumPy, in every storage, checkpoints, machine code, C level, schedules."""
    words = in_copy(
        built, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "drift or Drift or every_rule",
        "tests/kernels/test_rules.py", "tests/kernels/test_c_level.py",
        "tests/kernels/test_vectorised.py", "tests/kernels/test_codecs_vectorised.py",
        "tests/optimizers", "tests/core/test_state_dict.py", "tests/checkpoint/test_checkpoint.py",
        "tests/schedules",
    )  # fmt: skip
    assert int(words.rpartition(" passed")[0].split()[-1]) > 80


def test_a_class_of_somebody_elses_neither_replaces_nor_joins_ours():
    before = dict(OPTIMIZERS)
    theirs = type("Adam", (fastgd.SGD,), {})
    assert before == OPTIMIZERS
    assert fastgd.Adam is OPTIMIZERS["Adam"] is not theirs
    p = np.ones(3)
    theirs(p, lr=0.5).step(np.ones(3))  # works nonetheless
    assert p.tolist() == [0.5] * 3


# What of the pair is changed, in the module or in the loops, and what the build says.
BROKEN = {
    "no element": ("cdef inline floating drift_element(", "cdef inline floating other_element(",
                   "has no drift_element"),
    "other coefficients": ("floating beta, floating gamma)", "floating gamma, floating beta)",
                           "drift_element: expected floating, taking p, g, the states"),
    "fewer states": ("drift_element(floating p, floating g, floating* m,",
                     "drift_element(floating p, floating g,",
                     "drift_element: expected floating, taking p, g, the states"),
    "a state of no kind": ("drift_avg: Array, *, alpha", "drift_avg, *, alpha",
                           "drift: expected drift_avg: Array or Squares or Read"),
    "too many coefficients": ("drift_avg: Array, *, alpha", "drift_avg: Array, *, "
                              + "".join(f"c{k}: Scalar, " for k in range(18)) + "alpha",
                              "at most 6 states and 20 coefficients"),
    "a term without a sum": ("    total: Sum, squares", "    squares",
                             "drift: expected a sum in what is worked out for each"),
    "a state that is only read by address": (
        "shared_drift_element(floating p, floating m,",
        "shared_drift_element(floating p, floating* m,", "those only read floating"),
    "terms that are returned": ("cdef inline void drift_before_element(",
                                "cdef inline floating drift_before_element(",
                                "drift_before_element: expected void, 2 terms"),
    "a sum of no kind": ("drifted: Number", "drifted: float", "expected drifted: Number or Shared"),
    "nothing that is set": ('@sets("mean", "rms")\n', "", "expected @sets(...) with what"),
    "a name of the loop": ("drift_avg: Array, *, alpha", "n: Array, *, alpha",
                           "the loop itself has a n"),
    "fused for what cannot be": ('"bfloat16"), states', '"float16"), states',
                                 "fused: params: expected some of"),
    "fused with two states of any sign": (
        "@rule\ndef tamed_drift(\n    p: Array,\n    g: Array,\n    drift_avg: Array,\n    drift_sq: Squares,",
        '@rule(fused=Fused(params=("float32",), states=("8bit",), gain=""))\ndef tamed_drift(\n'
        "    p: Array,\n    g: Array,\n    drift_avg: Array,\n    drift_sq: Array,",
        "tamed_drift: fused loops are for a state of any sign, one of squares"),
    "annotated hyper-parameters": ("    beta = hyper", "    beta: float = hyper",
                                   "expected name = hyper"),
    "another base": ("class Drift(Optimizer)", "class Drift(optimizer.Optimizer)",
                     "expected Optimizer or a class of one"),
}  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN)
def test_a_pair_that_does_not_fit_is_refused_by_the_build(tmp_path, monkeypatch, broken):
    before, after, message = BROKEN[broken]
    for folder in ("fastgd/optimizers", "fastgd/kernels/spec", "fastgd/kernels/loops"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    drift = tmp_path / "fastgd" / "optimizers" / "drift"
    texts = new_family.MODULE, new_family.LOOPS
    changed = [text.replace(before, after, 1) for text in texts]
    assert changed != [*texts]
    drift.with_suffix(".py").write_text(changed[0], "utf-8")
    drift.with_suffix(".pxi").write_text(changed[1], "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "src_c")
    from generate import families

    with pytest.raises(families.FamilyError, match=re.escape(message)):
        families.read()


@pytest.mark.parametrize(
    "body",
    [
        {"weight_decay": 0.7},
        {"lr": 0.7},
        {"domains": {"other": fraction}},
        {"clip_norm": hyper(fraction, 0.5)},
        {"seed": hyper(fraction, 0.5)},
    ],
)
def test_hyper_parameters_are_declared_or_refused(body):
    (name,) = body
    with pytest.raises(TypeError, match=rf"Theirs\.{name}: "):
        type("Theirs", (fastgd.Adam,), dict(body))


def test_a_rule_that_was_not_compiled_says_what_to_do():
    from fastgd.kernels.reference import RULES, Array, rule

    class Uncompiled(fastgd.SGD):
        @staticmethod
        def rule(h, shape):
            return "uncompiled"

        @staticmethod
        def coefficients(h, t):
            return (h["lr"],)

    @rule
    def uncompiled(p: Array, g: Array, *, alpha):
        p[...] = p - alpha * g

    try:
        p = np.ones(3)
        opt = Uncompiled(p, lr=0.5)
        with pytest.raises(RuntimeError, match="rule uncompiled: is not in the compiled backend"):
            opt.step(np.ones(3))
        assert p.tolist() == [1.0] * 3
        fastgd.set_backend("numpy")
        opt.step(np.ones(3))
        assert p.tolist() == [0.5] * 3
    finally:
        del RULES["uncompiled"]


def test_a_rule_of_a_name_that_is_taken_is_refused():
    from fastgd.kernels.reference import RULES, rule

    def adam(p, g, *, alpha):
        """Another."""

    before = dict(RULES)
    with pytest.raises(ValueError, match="rule adam: there is one of that name already"):
        rule(adam)
    assert before == RULES
