"""FTRL against its paper, for its exact zeros, and at its edges."""

from __future__ import annotations

import numpy as np
import pytest
from support.formulas import few, follows
from support.helpers import COMPILED, same_bits

import fastgd


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"l1": 0.5},
        {"l1": 0.3, "l2": 2.0, "beta": 1.0},
        {"l1": 0.3, "initial_accumulator_value": 0.0, "beta": 1.0},
        {"l2": 0.5, "weight_decay": 0.1, "maximize": True},
    ],
)
def test_algorithm_1_of_the_paper(options):
    """From weights of 0, as it starts; z is the paper's here."""
    h = {"l1": 0.0, "l2": 0.0, "beta": 0.0, "initial_accumulator_value": 0.1, **options}
    alpha = 0.1

    def update(p, g, state, t):
        g = (-g if h.get("maximize") else g) + h.get("weight_decay", 0.0) * p
        n = state.get("n", h["initial_accumulator_value"])
        sigma = (np.sqrt(n + g * g) - np.sqrt(n)) / alpha
        z = state["z"] = state.get("z", 0.0) + g - sigma * p
        n = state["n"] = n + g * g
        scale = (h["beta"] + np.sqrt(n)) / alpha + h["l2"]
        return np.where(abs(z) <= h["l1"], 0.0, -(z - np.sign(z) * h["l1"]) / scale)

    params = [np.zeros_like(p) for p in few(0)]
    follows(fastgd.FTRL(params, lr=alpha, **options), params, update)


@pytest.mark.parametrize("options", [{}, {"lr": lambda t: 0.1 / (1 + t)}])
def test_without_penalties_it_is_adagrad(options):
    """From any weights, and with a schedule."""
    ours, theirs = few(0), few(0)
    options = {"lr": 0.1, "initial_accumulator_value": 0.1, **options}
    opt, adagrad = fastgd.FTRL(ours, **options), fastgd.Adagrad(theirs, eps=0.0, **options)
    for t in range(1, 50):
        grads = [g if t % 3 or k else None for k, g in enumerate(few(t))]
        opt.step(grads)
        adagrad.step(grads)
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_l1_makes_exact_zeros(backend, dtype):
    """Of 500 features 10 count: with a penalty the others are 0, every one, and without it none."""
    fastgd.set_backend(backend)
    rng = np.random.default_rng(0)
    true = np.zeros(500)
    true[::50] = rng.choice([-2.0, 2.0], 10)
    zeros = {}
    for l1 in (0.0, 40.0):
        w = np.zeros(500, dtype)
        opt = fastgd.FTRL(w, lr=0.1, beta=1.0, l1=l1)
        draw = np.random.default_rng(1)
        for _ in range(1000):
            x = draw.standard_normal(500).astype(dtype)
            y = draw.random() < 1 / (1 + np.exp(-(x @ true)))
            opt.step(((1 / (1 + np.exp(-(x @ w))) - y) * x).astype(dtype))
        zeros[l1] = w == 0
        assert (w[::50] * true[::50] > 0).all()
    assert zeros[0.0].sum() == 0
    assert zeros[40.0].sum() >= 480
    assert not np.signbit(w[zeros[40.0]]).any()


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
def test_weights_are_not_lost_at_the_first_step(backend):
    """Nor by a first step with no gradient, a penalty, or where nothing is divided by."""
    fastgd.set_backend(backend)
    start = np.array([2.0, -1.0, 0.0, 1e-3])
    for options in ({}, {"l1": 0.5, "l2": 1.0, "beta": 1.0}, {"initial_accumulator_value": 0.0}):
        w = start.copy()
        opt = fastgd.FTRL(w, lr=0.1, **options)
        for _ in range(3):
            opt.step(np.zeros(4))
            np.testing.assert_allclose(w, start, rtol=1e-14)
    w[...] = start
    opt = fastgd.FTRL([w, v := start.copy()], lr=0.1, l1=0.5)
    opt.step([np.ones(4), None])
    opt.step([None, np.ones(4)])  # its own first step
    assert same_bits(w, v)
    assert w[0] == pytest.approx(2.0 - 0.1 * (1 + (1.1**0.5 - 0.1**0.5) * 0) / 1.1**0.5)


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
def test_edges(backend):
    fastgd.set_backend(backend)
    w = np.array([1.0, 1.0, 0.0])
    opt = fastgd.FTRL(w, lr=0.0, l1=1.0, initial_accumulator_value=0.0)
    opt.step(np.array([1.0, 0.0, 2.0]))  # no rate: stands still
    assert w.tolist() == [1.0, 1.0, 0.0]
    opt = fastgd.FTRL(w, lr=0.1, l1=1.0)
    opt.step(np.array([np.nan, 1.0, 1.0]))
    opt.step(np.ones(3))
    assert np.isnan(w).tolist() == [True, False, False]


def test_states_keep_their_width():
    w = np.ones(5000, np.float32)
    state = fastgd.FTRL(w, state_dtype="8bit").state[0]
    assert state["linear"].dtype == np.float32
    assert state["accumulator"].dtype == np.float32


@pytest.mark.parametrize("stored", ["8bit", "bfloat16"])
def test_coded_states_leave_weights_where_they_are(stored):
    w, rng = np.full(8192, 1.5, np.float32), np.random.default_rng(0)
    opt = fastgd.FTRL(w, lr=0.0, state_dtype=stored)
    for _ in range(20):
        opt.step(rng.standard_normal(8192).astype(np.float32))
    np.testing.assert_allclose(w, 1.5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["numpy", *COMPILED])
def test_weights_without_any_gradient_stay_where_nothing_divides(backend):
    """With β, l2 and the accumulator's start 0 the denominator of a weight without gradient is 0."""
    fastgd.set_backend(backend)
    p = np.array([1.0, 2.0])
    fastgd.FTRL(p, lr=0.1, initial_accumulator_value=0.0).step(np.array([0.0, 1.0]))
    assert p[0] == 1.0
    assert p[1] != 2.0
