"""Cautious rules against a transcription, and at their edges."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from support.helpers import COMPILED, same_bits

import fastgd
from fastgd.kernels.reference import BLOCK

SHAPES = [(5, 3), (300,), (), (BLOCK + 7,)]


def drawn(seed):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape)) for shape in SHAPES]


def masked(u, g):
    """What Liang et al. and timm make of an update."""
    mask = (u * g > 0).astype(u.dtype)
    return u * (mask / max(mask.mean(), 1e-3))


def adam(p, g, state, t, h):
    beta1, beta2 = h["betas"]
    m = state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * g
    v = state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * g * g
    largest = state["largest"] = np.maximum(state.get("largest", 0.0), v)
    v = largest if h["amsgrad"] else v
    denominator = np.sqrt(v / (1 - beta2**t) + h["eps_root"]) + h["eps"]
    return masked(m, g) / (1 - beta1**t) / denominator


def rmsprop(p, g, state, t, h):
    nu = state["nu"] = h["alpha"] * state.get("nu", 0.0) + (1 - h["alpha"]) * g * g
    if h["centered"]:
        mean = state["mean"] = h["alpha"] * state.get("mean", 0.0) + (1 - h["alpha"]) * g
        nu = nu - mean * mean
    V = state["V"] = h["momentum"] * state.get("V", 0.0) + g / (np.sqrt(nu) + h["eps"])
    return masked(V, g)


def laprop(p, g, state, t, h):
    beta1, beta2 = h["betas"]
    v = state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * g * g
    scaled = g / (np.sqrt(v / (1 - beta2**t)) + h["eps"])
    m = state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * scaled
    return masked(m, g) / (1 - beta1**t)


def lion(p, g, state, t, h):
    beta1, beta2 = h["betas"]
    m = state.get("m", 0.0)
    state["m"] = beta2 * m + (1 - beta2) * g
    return masked(np.sign(beta1 * m + (1 - beta1) * g), g)


@pytest.mark.parametrize(
    ("cls", "formula", "options"),
    [
        (fastgd.Adam, adam, {}),
        (fastgd.Adam, adam, {"weight_decay": 0.1, "maximize": True}),
        (fastgd.Adam, adam, {"betas": (0.5, 0.6), "eps": 0.1, "eps_root": 0.01}),
        (fastgd.Adam, adam, {"amsgrad": True}),
        (fastgd.AdamW, adam, {"weight_decay": 0.1}),
        (fastgd.LaProp, laprop, {"weight_decay": 0.1}),
        (fastgd.Lion, lion, {"weight_decay": 0.1, "betas": (0.95, 0.98)}),
        (fastgd.RMSprop, rmsprop, {"momentum": 0.9}),
        (fastgd.RMSprop, rmsprop, {"momentum": 0.9, "centered": True, "eps": 1e-3}),
    ],
)
def test_the_formula(cls, formula, options):
    h = {key: one.default for key, one in cls.hypers.items()} | {"lr": 0.01, **options}
    params = drawn(0)
    theirs, states = [p.copy() for p in params], [{} for _ in params]
    opt = cls(params, lr=0.01, cautious=True, **options)
    for t in range(1, 101):
        grads = drawn(t)
        opt.step(grads)
        for q, g, state in zip(theirs, grads, states, strict=True):
            d = -g if h["maximize"] else g
            if cls.decoupled:
                q[...] = q * (1 - 0.01 * h["weight_decay"])
            else:
                d = d + h["weight_decay"] * q
            q[...] = q - 0.01 * formula(q, d, state, t, h)
    for p, q in zip(params, theirs, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("options", [
    {}, {"weight_decay": 0.0}, {"weight_decay": 3.0, "maximize": True, "bias_correction": False},
    {"trust_clip": True, "betas": (0.5, 0.6), "eps": 0.1},
    {"weight_decay": 0.0, "always_adapt": False},
])  # fmt: skip
def test_lamb_is_masked_before_it_decays(options):
    """As in timm: the decay is no momentum, and both have their part in the norm."""
    h = {key: one.default for key, one in fastgd.LAMB.hypers.items()} | {"lr": 0.01, **options}
    params = drawn(0)
    theirs, states = [p.copy() for p in params], [{} for _ in params]
    opt = fastgd.LAMB(params, lr=0.01, cautious=True, **options)
    of_adam = {"betas": h["betas"], "eps": h["eps"], "eps_root": 0.0, "amsgrad": False}
    for t in range(1, 101):
        grads = drawn(t)
        opt.step(grads)
        for q, g, state in zip(theirs, grads, states, strict=True):
            at = t if h["bias_correction"] else np.inf
            u = adam(q, -g if h["maximize"] else g, state, at, of_adam) + h["weight_decay"] * q
            norm = np.linalg.norm(u)  # of one element nothing may be left
            ratio = np.linalg.norm(q) / norm if norm else 1.0
            ratio = min(ratio, 1.0) if h["trust_clip"] else ratio
            q[...] = q - 0.01 * u * (ratio if h["always_adapt"] or h["weight_decay"] else 1.0)
    for p, q in zip(params, theirs, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
def test_what_disagrees_stays_and_the_others_go_further(backend):
    fastgd.set_backend(backend)
    w = np.zeros(4)
    opt = fastgd.Adam(w, lr=0.1, betas=(0.9, 0.0), eps=1e-30, cautious=True)
    opt.step(np.ones(4))
    assert np.allclose(w, -0.1, rtol=1e-14)  # all agree: a step of Adam
    before = w.copy()
    opt.step(np.array([1.0, 1.0, -1.0, 0.0]))  # m is about 0.19, and −0.01 for the third
    moved = w - before
    assert moved[0] == moved[1] < 0
    assert moved[3] == 0.0
    m = np.array([0.19, 0.19, -0.01, 0.09])
    assert same_bits(opt.state[0]["exp_avg"].round(12), m)
    share = 3 / 4  # the third agrees, as m turned
    np.testing.assert_allclose(moved[:3], -0.1 * m[:3] / 0.19 / share, rtol=1e-12)


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
def test_a_share_below_a_thousandth_counts_as_one(backend):
    fastgd.set_backend(backend)
    n = 4000
    w, g = np.zeros(n), np.full(n, -1e-3)
    opt = fastgd.Adam(w, lr=0.1, betas=(0.5, 0.5), eps=0.0, cautious=True)
    opt.step(np.ones(n))
    before = w.copy()
    g[7] = 1.0
    opt.step(g)  # one of 4,000 agrees
    moved = w - before
    assert moved[7] == pytest.approx(-0.1 / 1e-3)
    assert not np.delete(moved, 7).any()
    before = w.copy()
    opt.step(np.zeros(n))  # nothing agrees with no gradient
    assert same_bits(w, before)


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
def test_nan_stays_in_its_element(backend):
    fastgd.set_backend(backend)
    params = [np.ones(4), np.ones(4)]
    opt = fastgd.Adam(params, lr=0.1, cautious=True)
    opt.step([np.array([1.0, np.nan, 1.0, 1.0]), np.ones(4)])
    assert np.isnan(params[0]).tolist() == [False, True, False, False]
    # It doesn't agree: the three others go 4/3 as far.
    np.testing.assert_allclose(1 - params[0][[0, 2, 3]], 0.1 * 4 / 3, rtol=1e-6)
    np.testing.assert_allclose(params[1], 0.9, rtol=1e-6)


def test_velocity_that_is_off_is_refused():
    with pytest.raises(ValueError, match="cautious: needs momentum above 0"):
        fastgd.RMSprop(np.ones(2), cautious=True)
    opt = fastgd.RMSprop(np.ones(2), cautious=True, momentum=lambda t: 0.5)
    opt.step(np.ones(2))
    with pytest.raises(ValueError, match="cautious"):
        opt.param_groups[0]["momentum"] = 0.0


def test_nesterov_looks_ahead_and_caution_does_not():
    with pytest.raises(ValueError, match="nesterov: excludes cautious"):
        fastgd.Adam(np.ones(2), cautious=True, nesterov=True)


def test_caution_now_and_then_goes_on_with_the_same_momentum():
    w, q = np.ones(3), np.ones(3)
    opt, twin = fastgd.Adam(w), fastgd.Adam(q, cautious=True)
    g = np.array([1.0, -2.0, 0.5])
    for one in (opt, twin):  # at first all agree
        one.step(g)
    assert np.allclose(w, q, rtol=1e-15)
    opt.param_groups[0]["cautious"] = True
    q[...] = w
    for one in (opt, twin):
        one.step(-g)
    assert same_bits(w, q)
    assert sqrt(float(((w - 1) ** 2).sum())) > 0
