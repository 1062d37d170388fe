"""Every rule and stage on every backend, bit for bit against the NumPy reference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from support.helpers import COMPILED, SIZES, Tensors, coefficients_of, numbers_of
from support.sampling import BY_ELEMENT, by_level, rules, sampled

import fastgd
from fastgd.kernels import reference
from fastgd.kernels.reference import RULES, Stages

DTYPES = [np.float32, np.float64]
# Each stage alone, and all together: factor of the gradient, L2 decay, decoupled decay, bound.
STAGES = {
    "plain": (1.0, 0.0, 1.0),
    "scale": (-0.37, 0.0, 1.0),
    "l2": (1.0, 0.013, 1.0),
    "decoupled": (1.0, 0.0, 0.987),
    "clip": (1.0, 0.0, 1.0, 0.4),
    "all": (1.7, 0.011, 0.979, 0.6),
}


@sampled({
    "rule": rules(), "stages": STAGES, "backend": COMPILED, "dtype": DTYPES, "threads": [1, 2],
})  # fmt: skip
def test_equals_the_reference_to_the_bit(rule, stages, backend, dtype, threads):
    tensors = Tensors.random(rule, dtype, by_level([257, 65537], SIZES, SIZES))
    gradients = [g.copy() for g in tensors.grads]
    expected = tensors.copy().step("numpy", steps=3, stages=STAGES[stages])
    changed = [p.copy() for p in tensors.params]
    tensors.step(backend, threads, steps=3, stages=STAGES[stages]).assert_same(expected)
    for before, after in zip(changed, tensors.params, strict=True):
        # One element in many thousands may be moved by less than half its last bit, or be back after
        # three steps; cautious rules let those wait whose gradient says otherwise.
        still = before.size // 10_000 + (before.size > 100)
        if rule.startswith("cautious"):
            still = before.size
        assert np.sum(before == after) <= still, "every element is updated"
    for before, after in zip(gradients, tensors.grads, strict=True):
        assert np.array_equal(before, after), "gradients are only read"


@sampled({"rule": rules(), "stages": ["plain", "all"], "backend": COMPILED, "dtype": DTYPES})
def test_special_values_go_as_in_numpy(rule, stages, backend, dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    special = np.array(
        [0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, tiny, -tiny, 3 * tiny,
         np.finfo(dtype).tiny, np.finfo(dtype).max, -np.finfo(dtype).max, 1e-20, 1e20],
        dtype,
    )  # fmt: skip
    # Every combination of parameter, gradient and each state.
    columns = np.array(list(itertools.product(special, repeat=2)), dtype).T
    states = [np.resize(np.roll(special, k), columns.shape[1]) for k in range(3)]
    for state in states:
        own = tuple(np.abs(np.roll(state, k)) for k in range(len(RULES[rule].states)))
        tensors = Tensors(rule, [columns[0].copy()], [columns[1].copy()], [own])
        expected = tensors.copy().step("numpy", steps=2, stages=STAGES[stages])
        tensors.step(backend, steps=2, stages=STAGES[stages]).assert_same(expected)


@pytest.mark.parametrize("offset", [1, 2, 3, 5])
@pytest.mark.parametrize("backend", COMPILED)
def test_memory_at_any_element(backend, offset):
    """Arrays need no alignment but their own."""
    base = Tensors.random("adam", np.float32, [400 + offset])
    views = Tensors(
        "adam",
        [base.params[0][offset:]],
        [base.grads[0][:-offset]],
        [tuple(s[offset:] for s in base.states[0])],
    )
    expected = views.copy().step("numpy", stages=STAGES["all"])
    views.step(backend, stages=STAGES["all"]).assert_same(expected)
    untouched = Tensors.random("adam", np.float32, [400 + offset])
    assert np.array_equal(base.params[0][:offset], untouched.params[0][:offset])


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 8])
def test_threads_do_not_change_a_bit(threads):
    sizes = [5, 100_000, 0, 64, 70_001, 1]
    tensors = Tensors.random("adam", np.float32, sizes)
    expected = tensors.copy().step(fastgd.get_backend(), 1, steps=2, stages=STAGES["all"])
    tensors.step(fastgd.get_backend(), threads, steps=2, stages=STAGES["all"]).assert_same(expected)


# Many are 0, many equal; 10⁻²⁰ is where NAdam's product becomes 0.
NUMBERS = (0.0, 0.0, 0.5, 1.0, 2.0, 1e-20, 5e-21)
COEFFICIENTS = (0.0, 0.0, 0.5, 1.0, 1.0, 2.0)


@pytest.mark.parametrize("rule", [r for r in BY_ELEMENT if RULES[r].begin or RULES[r].settle])
def test_what_is_worked_out_before_sweeps_at_the_edges_of_its_formulas(rule):
    """It is as in NumPy, with numbers, coefficients and norms that are 0, equal, or at a threshold."""
    row, rng, both = RULES[rule], np.random.default_rng(2), []
    for k in range(150):
        n = 2000 if k % 5 == 0 else 1 + k % 2
        p, g, *states = (
            rng.choice([0.0, 1.0, 1.0, 1e-170]) * rng.choice([-2.0, -1.0, 0.5, 1.0], n)
            for _ in range(2 + len(row.states))
        )
        if n == 2000:
            g[1:] = 0.0  # a share of them that is less than cautious rules let count
        states = [np.abs(s) for s in states]
        numbers = [tuple(np.array(rng.choice(NUMBERS)) for _ in row.numbers)]
        given = rng.choice(COEFFICIENTS, len(row.coefficients)).tolist()
        found = Tensors(rule, [p], [g], [tuple(states)], numbers)
        both.append((found.copy(), found, given))
    for j, backend in enumerate(("numpy", fastgd.available_backends()[0])):
        fastgd.set_backend(backend)
        for *tensors, given in both:
            one = tensors[j]
            one.plan.step(one.grads, lambda *_, c=given: (rule, c, Stages()), 1.0)
    for expected, found, _ in both:
        found.assert_same(expected)


FLAGS = {"adapt", "adaptive", "clip", "first"}  # coefficients that are 0 or 1
UNDER_A_SIGN = {
    (rule, f"{key}1") for rule in ("lion", "cautious_lion") for key in ("beta", "gamma")
}


@pytest.mark.parametrize("rule", BY_ELEMENT)
def test_a_broken_coefficient_shows(rule):
    """The comparison has teeth: each coefficient, changed in its last bits, changes the result."""
    row = RULES[rule]
    p, g, *states = (np.array([0.5, -0.3, -0.2, -0.22]) + k / 8 for k in range(2 + len(row.states)))
    for k, name in enumerate(row.coefficients):
        results = [], []
        for t in (1, 2):
            right = coefficients_of(rule, t)
            wrong = list(right)
            wrong[k] = 1 - right[k] if name in FLAGS else right[k] * (1 + 1e-9)
            for c, found in zip((right, wrong), results, strict=True):
                arrays = [a.copy() for a in (4 * p, *states)]
                kept = dict(zip(row.numbers, numbers_of(rule), strict=True))
                reference.step(rule, arrays[0], g, arrays[1:], c, numbers=kept)
                found += [*arrays, *(a[None] for a in kept.values())]
        results = [np.concatenate(found) for found in results]
        # Too small to show here beside the root, and beside the norm.
        # And an average takes a step from the nearer side, by its factor alone.
        hidden = (rule, name) in {*UNDER_A_SIGN, ("ema", "beta")}
        if not hidden and name not in {"eps", "eps_root", "least", "steps"}:
            assert not np.array_equal(*results), name


WITH_BOTH = [name for name, rule in RULES.items() if {"eps", "eps_root"} <= {*rule.coefficients}]


@pytest.mark.parametrize("rule", WITH_BOTH)
def test_eps_goes_outside_and_inside_the_root(rule):
    """A step is x / (√(s + ε_root) + ε): x and s follow from two steps, and tell the third."""

    def step(**given):
        names = RULES[rule].coefficients
        values = dict(zip(names, coefficients_of(rule), strict=True)) | {
            "eps": 0.0,
            "eps_root": 0.0,
        }
        p, g = np.zeros(1), np.ones(1)
        states = [np.zeros(1) for _ in RULES[rule].states]
        kept = dict(zip(RULES[rule].numbers, numbers_of(rule), strict=True))
        reference.step(rule, p, g, states, [*(values | given).values()], numbers=kept)
        return p[0]

    plain, outside, inside = step(), step(eps=4.0), step(eps_root=4.0)
    root = 4.0 / (plain / outside - 1.0)
    assert plain / inside == pytest.approx(np.sqrt(root**2 + 4.0) / root, rel=1e-12)


def test_sizes_cover_every_vector_width_and_the_tile():
    for edge in (4, 8, 16, 32, 64, 128, 256, 512, 1024):
        assert {edge - 1, edge, edge + 1} <= set(SIZES)


def test_every_backend_has_every_rule():
    from importlib import import_module

    for name in fastgd.available_backends():
        if name != "numpy":
            module = import_module(f"fastgd.kernels._{name}")
            assert list(module.RULES) == list(RULES)
            assert list(module.FIRST) == [rule for rule, row in RULES.items() if row.before]
            lined = [rule for rule, row in RULES.items() if row.lines]
            assert list(module.LINES) == list(module.ROWS) == lined
            assert list(module.COLUMNS) == [rule for rule in lined if RULES[rule].columns]
