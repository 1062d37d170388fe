"""LAMB, LARS and NAdam against their formulas, timm's, optax's and torch's, and at their edges."""

from __future__ import annotations

import copy
import pickle
from math import sqrt

import numpy as np
import pytest
from support.formulas import drawn, follows
from support.helpers import COMPILED, same_bits

import fastgd


def length(x):
    return float(np.sqrt((x * x).sum()))


# --------------------------------------------------------------------------------------- formulas


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias_correction": False},
        {"trust_clip": True},
        {"weight_decay": 0.0},
        {"always_adapt": False},
        {"always_adapt": False, "weight_decay": 0.0},
        {"weight_decay": 0.3, "betas": (0.5, 0.6), "eps": 0.1, "trust_clip": True},
        {"maximize": True},
    ],
)
def test_lamb_is_timms(options):
    h = {"betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01, "lr": 0.01, **options}
    beta1, beta2 = h["betas"]

    def update(p, g, state, t):
        g = -g if h.get("maximize") else g
        m = state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * g
        v = state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * g * g
        c1, c2 = (1 - beta1**t, 1 - beta2**t) if h.get("bias_correction", True) else (1.0, 1.0)
        u = (m / c1) / (np.sqrt(v) / sqrt(c2) + h["eps"]) + h["weight_decay"] * p
        ratio = 1.0
        if h["weight_decay"] != 0 or h.get("always_adapt", True):
            w_norm, u_norm = length(p), length(u)
            ratio = w_norm / u_norm if w_norm > 0 and u_norm > 0 else 1.0
            ratio = min(ratio, 1.0) if h.get("trust_clip") else ratio
        return p - h["lr"] * ratio * u

    params = drawn(0)
    follows(fastgd.LAMB(params, **{"lr": 0.01, **options}), params, update)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.3},
        {"momentum": 0.9, "nesterov": True},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "momentum": 0.9, "nesterov": True, "eps": 0.5},
        {"trust_clip": True, "trust_coefficient": 0.2},
        {"trust_clip": True, "trust_coefficient": 10.0, "momentum": 0.5},
        {"always_adapt": False, "momentum": 0.9},
        {"always_adapt": False, "weight_decay": 0.1, "maximize": True},
    ],
)
def test_lars_is_timms(options):
    h = {"lr": 0.5, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "eps": 1e-8,
         "trust_coefficient": 0.001, **options}  # fmt: skip

    def update(p, g, state, t):
        d = -g if h.get("maximize") else g.copy()
        if h["weight_decay"] != 0 or h.get("always_adapt", True):
            w_norm, g_norm = length(p), length(d)
            ratio = h["trust_coefficient"] * w_norm
            ratio /= g_norm + w_norm * h["weight_decay"] + h["eps"]
            ratio = ratio if w_norm > 0 and g_norm > 0 else 1.0
            ratio = min(ratio / h["lr"], 1.0) if h.get("trust_clip") else ratio
            d = ratio * (d + h["weight_decay"] * p)
        if h["momentum"] != 0:
            first = "V" not in state
            state["V"] = d if first else h["momentum"] * state["V"] + (1 - h["dampening"]) * d
            d = d + h["momentum"] * state["V"] if h.get("nesterov") else state["V"]
        return p - h["lr"] * d

    params = drawn(0)
    follows(fastgd.LARS(params, **{"lr": 0.5, **options}), params, update)


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum_decay": 0.5}, {"betas": (0.5, 0.6), "eps": 0.1}, {"weight_decay": 0.1},
     {"weight_decay": 0.1, "decoupled_weight_decay": True}, {"maximize": True}],
)  # fmt: skip
def test_nadam_of_the_paper(options):
    h = {"betas": (0.9, 0.999), "eps": 1e-8, "momentum_decay": 4e-3, "weight_decay": 0.0}
    h |= options
    beta1, beta2 = h["betas"]

    def mu(t):
        return beta1 * (1 - 0.5 * 0.96 ** (t * h["momentum_decay"]))

    def update(p, g, state, t):
        g = -g if h.get("maximize") else g
        if h.get("decoupled_weight_decay"):
            p = p * (1 - 0.01 * h["weight_decay"])
        else:
            g = g + h["weight_decay"] * p
        product = state["product"] = state.get("product", 1.0) * mu(t)
        m = state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * g
        v = state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * g * g
        ahead = mu(t + 1) * m / (1 - product * mu(t + 1)) + (1 - mu(t)) * g / (1 - product)
        return p - 0.01 * ahead / (np.sqrt(v / (1 - beta2**t)) + h["eps"])

    params = drawn(0)
    follows(fastgd.NAdam(params, **{"lr": 0.01, **options}), params, update)


# ------------------------------------------------------------------------------------------ optax


def optax_case(name):
    """An optimizer and optax's, where the two mean the same."""
    optax = pytest.importorskip("optax", reason="optax is not installed")
    cases = {
        "lamb": (fastgd.LAMB, {"weight_decay": 0.1}, lambda: optax.lamb(0.01, weight_decay=0.1)),
        "lamb without decay": (fastgd.LAMB, {"weight_decay": 0.0}, lambda: optax.lamb(0.01)),
        # optax takes the norm of the sum with the decay; without one it is the gradient's.
        "lars": (fastgd.LARS, {"momentum": 0.9, "eps": 0.0}, lambda: optax.lars(0.01)),
        "lars nesterov": (
            fastgd.LARS, {"momentum": 0.9, "eps": 0.0, "nesterov": True},
            lambda: optax.lars(0.01, nesterov=True),
        ),
    }  # fmt: skip
    return cases[name]


@pytest.mark.parametrize("name", ["lamb", "lamb without decay", "lars", "lars nesterov"])
def test_is_optaxs(name):
    cls, options, make = optax_case(name)
    import jax
    import optax

    with jax.enable_x64(True):
        ours, transformation = drawn(0), make()
        opt = cls(ours, lr=0.01, **options)
        theirs = [jax.numpy.array(p) for p in ours]
        state = transformation.init(theirs)
        for t in range(1, 21):
            grads = drawn(t)
            opt.step(grads)
            updates, state = transformation.update(
                [jax.numpy.array(g) for g in grads], state, theirs
            )
            theirs = optax.apply_updates(theirs, updates)
            for p, q in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(p, np.asarray(q), rtol=1e-11, atol=1e-14)


# ------------------------------------------------------------------------------------------ edges


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
def test_the_ratio_is_1_where_a_norm_is_0(backend):
    fastgd.set_backend(backend)
    zero, w = np.zeros(4), np.full(4, 2.0)
    opt = fastgd.LAMB([zero, w], lr=0.1, eps=0.0, weight_decay=0.0)
    opt.step([np.full(4, 3.0), None])
    assert np.allclose(zero, -0.1, rtol=1e-14)
    fastgd.LAMB(w, lr=0.1, weight_decay=0.0).step(np.zeros(4))
    assert w.tolist() == [2.0] * 4
    zero[...] = 0.0
    opt = fastgd.LARS([zero, w], lr=0.1, weight_decay=0.5)
    opt.step([np.full(4, 3.0), np.zeros(4)])
    assert np.allclose(zero, -0.3, rtol=1e-14)
    assert np.allclose(w, 2.0 - 0.1 * 0.5 * 2.0, rtol=1e-14)  # λW alone, as it is


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
@pytest.mark.parametrize("cls", [fastgd.LAMB, fastgd.LARS, fastgd.NAdam])
def test_nothing_and_single_numbers(cls, backend):
    fastgd.set_backend(backend)
    params = [np.zeros((0, 4)), np.array(2.0), np.zeros(0, np.float32)]
    opt = cls(params, lr=0.5)
    opt.step([np.zeros((0, 4)), np.array(1.0), np.zeros(0, np.float32)])
    opt.step([None, np.array(1.0), None])
    assert params[1] < 2.0
    assert [int(entry["step"]) for entry in opt.state.values()] == [1, 2, 1]


@pytest.mark.parametrize("cls", [fastgd.LAMB, fastgd.LARS, fastgd.NAdam])
def test_without_a_learning_rate_parameters_stay(cls):
    params = drawn(0)
    before = [p.copy() for p in params]
    opt = cls(params, lr=0.0)
    opt.step(drawn(1))
    assert all(map(same_bits, params, before))


@pytest.mark.parametrize("cls", [fastgd.LAMB, fastgd.LARS])
def test_float32_squares_do_not_overflow(cls):
    """Sums are of float64: 1e30 has a norm, though no square, in float32."""
    p, q = np.full(40, 1e30, np.float32), np.full(40, 1e30)
    cls(p, lr=0.5).step(np.full(40, 1e25, np.float32))
    cls(q, lr=0.5).step(np.full(40, 1e25))
    assert np.isfinite(p).all()
    np.testing.assert_allclose(p, q, rtol=1e-6)


def test_nan_goes_where_it_comes_from():
    """A tensor whose norm is NaN is stepped with a ratio of 1; others don't notice."""
    for cls in (fastgd.LAMB, fastgd.LARS, fastgd.NAdam):
        params = [np.ones(4), np.ones(4)]
        opt = cls(params, lr=0.1)
        opt.step([np.array([1.0, np.nan, 1.0, 1.0]), np.ones(4)])
        assert np.isnan(params[0]).tolist() == [False, True, False, False]
        assert np.isfinite(params[1]).all()


# --------------------------------------------------------------------------- changes on the way


def test_lars_with_momentum_now_and_then():
    """A velocity that starts later is set by its first step; one that comes back goes on."""
    p, q = np.ones(3), np.ones(3)
    opt, twin = fastgd.LARS(p, trust_coefficient=0.1), fastgd.LARS(
        q, trust_coefficient=0.1, momentum=0.9
    )  # fmt: skip
    g = np.array([1.0, -2.0, 0.5])
    opt.step(g)
    assert "momentum_buffer" not in opt.state[0]
    opt.param_groups[0]["momentum"] = 0.9
    q[...] = p
    for _ in range(2):
        opt.step(g)
        twin.step(g)
        assert same_bits(p, q)
    kept = opt.state[0]["momentum_buffer"].copy()
    for one in (opt, twin):
        one.param_groups[0]["momentum"] = 0.0
        one.step(g)
        assert same_bits(one.state[0]["momentum_buffer"], kept)
        one.param_groups[0].update(momentum=0.9, nesterov=True)
        one.step(g)
    assert same_bits(p, q)


def test_nadams_product_goes_on_where_betas_and_rates_are_scheduled():
    betas = [(0.9, 0.99), (0.5, 0.9), (0.8, 0.999), (0.0, 0.5)]
    p, q = np.ones(3), np.ones(3)
    opt = fastgd.NAdam(p, lr=lambda t: 0.1 / (1 + t), betas=lambda t: betas[t % 4])
    by_hand = fastgd.NAdam(q)
    product = 1.0
    for t in range(6):
        by_hand.param_groups[0].update(lr=0.1 / (1 + t), betas=betas[t % 4])
        for one in (opt, by_hand):
            one.step(np.full(3, 0.5 + t))
        product *= betas[t % 4][0] * (1 - 0.5 * 0.96 ** ((t + 1) * 4e-3))
        assert float(opt.state[0]["mu_product"]) == pytest.approx(product, rel=1e-15)
        assert same_bits(p, q)


WAYS = {
    "deepcopy": lambda opt, folder: copy.deepcopy(opt),
    "pickle": lambda opt, folder: pickle.loads(pickle.dumps(opt)),
    "state_dict": lambda opt, folder: renewed(
        opt, lambda new: new.load_state_dict(opt.state_dict())
    ),
    "checkpoint": lambda opt, folder: renewed(opt, lambda new: through_a_file(opt, new, folder)),
    "load into one that stepped": lambda opt, folder: renewed(
        opt, lambda new: (new.step(drawn(77)), new.load_state_dict(opt.state_dict()))
    ),
}


def renewed(opt, load):
    """Another optimizer over copies of the parameters, brought up to date."""
    params = [p.copy() for p in opt.param_groups[0]["params"]]
    new = type(opt)(params)
    load(new)
    for p, q in zip(params, opt.param_groups[0]["params"], strict=True):
        p[...] = q
    return new


def through_a_file(opt, new, folder):
    fastgd.save(folder / "run", opt)
    fastgd.load(folder / "run", new)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("cls", "options"),
    [(fastgd.LAMB, {}), (fastgd.LARS, {"momentum": 0.9}), (fastgd.LARS, {}), (fastgd.NAdam, {})],
)
def test_goes_on_as_if_nothing_had_been(cls, options, way, tmp_path):
    opt = cls(drawn(0), lr=0.01, **options)
    for t in range(1, 4):
        opt.step([g if k != t else None for k, g in enumerate(drawn(t))])
    twin = WAYS[way](opt, tmp_path)
    later = [np.ones(3), np.ones(3)]
    for one, p in zip((opt, twin), later, strict=True):
        one.add_param_group({"params": [p], "lr": 0.5, **options})
        for t in range(4, 7):
            one.step([drawn(t), [np.full(3, 0.1 * t)]])
    for a, b in zip(opt.stepper.params().values(), twin.stepper.params().values(), strict=True):
        assert same_bits(a, b)
    for a, b in zip(opt.state.values(), twin.state.values(), strict=True):
        assert a.keys() == b.keys()
        assert all(same_bits(a[key], b[key]) for key in a if key != "step")
        assert int(a["step"]) == int(b["step"])


def test_a_state_dict_without_a_number_or_with_a_wrong_one_is_refused():
    opt = fastgd.NAdam(np.ones(3))
    opt.step(np.ones(3))
    before = repr(opt.state_dict())
    for wrong, error, message in (
        (None, ValueError, r"has no \['mu_product'\]"),
        (np.ones(1), ValueError, r'"mu_product"\]: expected shape \(\), found \(1,\)'),
        (np.array(1), TypeError, r'"mu_product"\]: expected dtype float64'),
        ("0.9", TypeError, r'"mu_product"\]'),
    ):
        saved = opt.state_dict()
        saved["state"][0]["mu_product"] = wrong
        with pytest.raises(error, match=message):
            opt.load_state_dict(saved)
        assert repr(opt.state_dict()) == before
    saved = opt.state_dict()
    saved["state"][0]["mu_product"] = np.array(0.25, np.float32)  # as torch keeps it
    opt.load_state_dict(saved)
    assert opt.state[0]["mu_product"] == 0.25
    assert opt.state[0]["mu_product"].dtype == np.float64
