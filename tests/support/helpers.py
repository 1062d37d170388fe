"""What several test files share: sizes, backends, bit comparison, a plan over made-up tensors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import OrderedDict
from functools import wraps
from pathlib import Path

import numpy as np
import pytest

import fastgd
from fastgd import kernels
from fastgd.kernels import _engine
from fastgd.kernels.memory import checks
from fastgd.kernels.reference import RULES, Stages
from support.sampling import by_level

ROOT = Path(__file__).parents[2]
SUPPORT = Path(__file__).parent

# Around every vector width (2 to 16 elements) and tile edge (256), and beyond two chunks.
SIZES = (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129,
         255, 256, 257, 511, 512, 513, 1023, 1024, 1025, 65537)  # fmt: skip

COMPILED = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name not in fastgd.available_backends(), reason=f"this CPU cannot run {name}"
        ),
    )
    for name in by_level(fastgd.available_backends()[:1], kernels._LEVELS, kernels._LEVELS)
    if name != "numpy"
]


def draw(seed, sizes, dtype=np.float32, scale=1.0):
    """Normal numbers in arrays of some sizes, the same ones for a seed."""
    rng = np.random.default_rng(seed)
    return [(scale * rng.standard_normal(n)).astype(dtype) for n in sizes]


def remembered(function, most=4):
    """A function that keeps its last few results, for what NumPy is slow at and several tests compare
    with: it has to return the same for the same arguments, and nothing that is changed later.
    """
    known = OrderedDict()

    @wraps(function)
    def remember(*arguments, **options):
        key = repr((arguments, sorted(options.items())))
        if key not in known:
            known[key] = function(*arguments, **options)
        known.move_to_end(key)
        while len(known) > most:
            known.popitem(last=False)
        return known[key]

    return remember


def same_bits(a, b):
    """Whether two arrays hold the same bits, NaNs counting as equal whatever their payload."""
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    word = np.dtype(f"u{a.itemsize}")
    nan = np.isnan(a) & np.isnan(b)
    return bool(np.all((np.atleast_1d(a).view(word) == np.atleast_1d(b).view(word)) | nan))


def coefficients_of(rule, t=1):
    """Plausible coefficients of a rule by their letters; those of a step vary with t."""
    values = {"alpha": 0.01 / t, "beta": 0.9, "gamma": 0.1, "mu": 0.8, "beta1": 0.9, "gamma1": 0.1,
              "beta2": 0.99, "gamma2": 0.01, "eps": 1e-7, "eps_root": 1e-9, "lr": 0.01 / t,
              "mu_next": 0.85, "weight_decay": 0.03, "trust": 2e-3, "adapt": 1.0,
              "clip": t % 2, "first": t % 2, "d_coef": 40.0, "hold": 0.98, "weight": 2.0,
              "adaptive": t % 2, "eta_plus": 1.2, "delta_min": 0.08, "delta_max": 1.0,
              "a": 3.4445, "b": -4.775, "c": 2.0315, "steps": 5.0, "rms": 0.2}  # fmt: skip
    return tuple(values.get(letter, 0.5) for letter in RULES[rule].coefficients)


def numbers_of(rule):
    """Plausible numbers that a rule keeps for a parameter."""
    return tuple(np.array(0.9 - k / 4) for k in range(len(RULES[rule].numbers)))


# Sanitizers slow everything down and keep memory that was freed.
unsanitized = pytest.mark.skipif(
    "FASTGD_SANITIZE" in os.environ, reason="a sanitizer changes times and memory"
)


def run_python(code, **env):
    """Run code in a process of its own, with warnings as errors, and no longer than two minutes."""
    # From Python 3.12 on, forking while there are threads warns; here it is what is tested.
    warnings = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
    return subprocess.run(
        [sys.executable, *warnings, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


class Tensors:
    """Made-up parameters, gradients, states and numbers of one rule, and the plan over them."""

    def __init__(self, rule, params, grads, states, numbers=None):
        self.rule, self.params, self.grads, self.states = rule, params, grads, states
        n = len(params)
        self.numbers = [numbers_of(rule) for _ in params] if numbers is None else numbers
        labels = [checks.label((k,)) for k in range(n)]
        names = [rule] * n
        self.plan = _engine.Plan(
            [None] * n, params, labels, [0] * n, states, names, np.zeros(n, np.int64),
            numbers=self.numbers,
        )  # fmt: skip

    @classmethod
    def random(cls, rule, dtype, sizes=SIZES, seed=0):
        rng = np.random.default_rng(seed)

        def draw(n):
            return (rng.standard_normal(n) + 0.1).astype(dtype)

        states = [tuple(np.abs(draw(n)) for _ in RULES[rule].states) for n in sizes]
        return cls(rule, [draw(n) for n in sizes], [draw(n) for n in sizes], states)

    def copy(self):
        return Tensors(
            self.rule,
            [p.copy() for p in self.params],
            [g.copy() for g in self.grads],
            [tuple(s.copy() for s in states) for states in self.states],
            [tuple(a.copy() for a in numbers) for numbers in self.numbers],
        )

    def step(self, backend, threads=1, steps=1, stages=()):
        fastgd.set_backend(backend)
        fastgd.set_num_threads(threads)
        for _ in range(steps):
            self.plan.step(
                self.grads,
                lambda group, t, unscale: (
                    self.rule,
                    coefficients_of(self.rule, t),
                    Stages(*stages),
                ),
                1.0,
            )
        return self

    def assert_same(self, other):
        for k, (p, q) in enumerate(zip(self.params, other.params, strict=True)):
            assert same_bits(p, q), f"{self.rule}: parameter of {p.size} differs: {p} {q}"
            for name, s, r in zip(
                (*RULES[self.rule].states, *RULES[self.rule].numbers),
                (*self.states[k], *self.numbers[k]),
                (*other.states[k], *other.numbers[k]),
                strict=True,
            ):
                assert same_bits(s, r), f"{self.rule}: {name} of {p.size} differs"
