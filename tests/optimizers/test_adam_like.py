"""The rules like Adam's against the formulas of their papers, and at their edges."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from support.formulas import drawn, few, follows
from support.helpers import COMPILED, same_bits

import fastgd

NAMES = ["AdaBelief", "Yogi", "ADOPT", "Adan", "LaProp", "StableAdamW"]


def average(state, key, x, beta, start=0.0):
    state[key] = beta * state.get(key, start) + (1 - beta) * x
    return state[key]


def given(options, **defaults):
    return {"lr": 0.01, "weight_decay": 0.0, "maximize": False, **defaults, **options}


COMMON = [{}, {"weight_decay": 0.1}, {"maximize": True, "weight_decay": 0.1}]


@pytest.mark.parametrize("cls", [fastgd.Adam, fastgd.AdamW])
@pytest.mark.parametrize("options", [{}, {"betas": (0.5, 0.6), "eps": 0.1}, *COMMON[1:]])
def test_nesterovs_adam_is_timms_nadamw(cls, options):
    h = given(options, betas=(0.9, 0.999), eps=1e-8)
    (beta1, beta2), decay = h["betas"], h["weight_decay"]

    def update(p, g, state, t):
        g = -g if h["maximize"] else g
        p, g = (p * (1 - 0.01 * decay), g) if cls.decoupled else (p, g + decay * p)
        m, v = average(state, "m", g, beta1), average(state, "v", g * g, beta2)
        ahead = (beta1 * m + (1 - beta1) * g) / (1 - beta1**t)
        return p - 0.01 * ahead / (np.sqrt(v / (1 - beta2**t)) + h["eps"])

    params = few(0)
    opt = cls(params, nesterov=True, **{"lr": 0.01, "weight_decay": 0.0, **options})
    follows(opt, params, update)


@pytest.mark.parametrize(
    "options",
    [
        *COMMON,
        {"rectify": False, "eps": 1e-3},
        {"betas": (0.5, 0.6)},
        {"betas": (0.5, 0.9), "eps": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": False},
    ],
)
def test_adabelief_is_its_authors(options):
    h = given(options, betas=(0.9, 0.999), eps=1e-16)
    (beta1, beta2), decay, eps = h["betas"], h["weight_decay"], h["eps"]
    most = 2 / (1 - beta2) - 1

    def update(p, g, state, t):
        g = -g if h["maximize"] else g
        decoupled = h.get("decoupled_weight_decay", True)
        p, g = (p * (1 - 0.01 * decay), g) if decoupled else (p, g + decay * p)
        m = average(state, "m", g, beta1)
        s = state["s"] = average(state, "s", (g - m) ** 2, beta2) + eps
        c1, c2 = 1 - beta1**t, 1 - beta2**t
        if not h.get("rectify", True):
            return p - 0.01 * m / c1 / (np.sqrt(s / c2) + eps)
        rho = most - 2 * t * beta2**t / c2
        if rho < 5:
            return p - 0.01 * m / c1
        r = sqrt((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho))
        return p - 0.01 * r * sqrt(c2) * m / c1 / (np.sqrt(s) + eps)

    params = few(0)
    follows(fastgd.AdaBelief(params, **{"lr": 0.01, **options}), params, update)


@pytest.mark.parametrize(
    "options", [*COMMON, {"betas": (0.5, 0.6), "eps": 1e-6, "initial_accumulator_value": 0.1}]
)
def test_yogi_of_the_paper(options):
    h = given(options, betas=(0.9, 0.999), eps=1e-3, initial_accumulator_value=1e-6)
    (beta1, beta2), start = h["betas"], h["initial_accumulator_value"]

    def update(p, g, state, t):
        g = (-g if h["maximize"] else g) + h["weight_decay"] * p
        m = average(state, "m", g, beta1, start)
        v = state.get("v", start)
        v = state["v"] = v - (1 - beta2) * np.sign(v - g * g) * g * g
        return p - 0.01 * m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + h["eps"])

    params = few(0)
    follows(fastgd.Yogi(params, **{"lr": 0.01, **options}), params, update)


@pytest.mark.parametrize(
    "options",
    [
        *COMMON,
        {"weight_decay": 0.1, "decouple": True},
        {"clip_exp": None, "eps": 0.5},
        {"clip_exp": 0.1, "betas": (0.5, 0.6)},
    ],
)
def test_adopt_is_its_authors(options):
    h = given(options, betas=(0.9, 0.9999), eps=1e-6, clip_exp=0.25, decouple=False)
    (beta1, beta2), decay = h["betas"], h["weight_decay"]

    def update(p, g, state, t):
        g = (-g if h["maximize"] else g) + (0 if h["decouple"] else decay * p)
        if t == 1:
            state["v"] = g * g
            return p
        p = p * (1 - 0.01 * decay) if h["decouple"] else p
        u = g / np.maximum(np.sqrt(state["v"]), h["eps"])
        if h["clip_exp"] is not None:
            u = np.clip(u, -((t - 1) ** h["clip_exp"]), (t - 1) ** h["clip_exp"])
        average(state, "v", g * g, beta2)
        return p - 0.01 * average(state, "m", u, beta1)

    params = few(0)
    follows(fastgd.ADOPT(params, **{"lr": 0.01, **options}), params, update)


@pytest.mark.parametrize(
    "options",
    [*COMMON, {"weight_decay": 0.1, "no_prox": True}, {"betas": (0.5, 0.6, 0.7), "eps": 0.1}],
)
def test_adan_of_the_paper(options):
    h = given(options, betas=(0.98, 0.92, 0.99), eps=1e-8, no_prox=False)
    (beta1, beta2, beta3), decay = h["betas"], 0.01 * h["weight_decay"]

    def update(p, g, state, t):
        g = -g if h["maximize"] else g
        change = g - state.get("g", g)
        state["g"] = g
        m, d = average(state, "m", g, beta1), average(state, "d", change, beta2)
        n = average(state, "n", (g + beta2 * change) ** 2, beta3)
        u = m / (1 - beta1**t) + beta2 * d / (1 - beta2**t)
        u = 0.01 * u / (np.sqrt(n / (1 - beta3**t)) + h["eps"])
        return p * (1 - decay) - u if h["no_prox"] else (p - u) / (1 + decay)

    params = few(0)
    follows(fastgd.Adan(params, **{"lr": 0.01, **options}), params, update)


@pytest.mark.parametrize("options", [*COMMON, {"betas": (0.5, 0.6), "eps": 0.1}])
def test_laprop_of_the_paper(options):
    h = given(options, betas=(0.9, 0.999), eps=1e-15)
    beta1, beta2 = h["betas"]

    def update(p, g, state, t):
        g = -g if h["maximize"] else g
        v = average(state, "v", g * g, beta2)
        m = average(state, "m", g / (np.sqrt(v / (1 - beta2**t)) + h["eps"]), beta1)
        return p * (1 - 0.01 * h["weight_decay"]) - 0.01 * m / (1 - beta1**t)

    params = few(0)
    follows(fastgd.LaProp(params, **{"lr": 0.01, **options}), params, update)


@pytest.mark.parametrize("options", [*COMMON, {"betas": (0.5, 0.6), "eps": 0.5}])
def test_stable_adamw_of_the_paper(options):
    h = given(options, betas=(0.9, 0.99), eps=1e-6)
    beta1, beta2 = h["betas"]

    def update(p, g, state, t):
        g = -g if h["maximize"] else g
        m = average(state, "m", g, beta1 * (1 - beta1 ** (t - 1)) / (1 - beta1**t))
        v = average(state, "v", g * g, beta2 * (1 - beta2 ** (t - 1)) / (1 - beta2**t))
        alpha = 0.01 / max(1.0, sqrt(np.mean(g * g / np.maximum(v, h["eps"] ** 2))))
        state["shortened"] = state.get("shortened", 0) + (alpha < 0.01)
        return p * (1 - alpha * h["weight_decay"]) - alpha * m / (np.sqrt(v) + h["eps"])

    params = drawn(0)
    opt = fastgd.StableAdamW(params, **{"lr": 0.01, "weight_decay": 0.0, **options})
    follows(opt, params, update)


# ------------------------------------------------------------------------------------------ edges


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
@pytest.mark.parametrize("name", NAMES)
def test_nan_stays_in_its_element(name, backend):
    fastgd.set_backend(backend)
    p, q = np.ones(4), np.ones(4)
    opt = getattr(fastgd, name)([p, q])
    for t in range(3):
        opt.step([np.array([1.0, np.nan if t == 1 else 1.0, 1.0, 1.0]), np.ones(4)])
    assert np.isnan(p).tolist() == [False, True, False, False]
    assert np.isfinite(q).all()


@pytest.mark.parametrize("name", NAMES)
def test_each_parameter_counts_its_own_steps(name):
    """One that joins late is stepped as if its first gradient were the first of all."""
    rng = np.random.default_rng(0)
    early, late, alone = (np.ones(5) for _ in range(3))
    opt, other = getattr(fastgd, name)([early, late]), getattr(fastgd, name)(alone)
    for t in range(12):
        g = rng.standard_normal(5)
        opt.step([g, g if t >= 4 else None])
        if t >= 4:
            other.step(g)
    assert same_bits(late, alone)
    assert not same_bits(late, early)


def test_adabeliefs_eps_piles_up():
    opt = fastgd.AdaBelief(np.zeros(1), eps=1e-3, betas=(0.9, 0.5))
    for _ in range(3):
        opt.step(np.zeros(1))
    assert opt.state[0]["exp_avg_var"][0] == pytest.approx(1e-3 * 1.75, rel=1e-15)


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
def test_yogi_stays_where_it_is_right(backend):
    """sign(0) is 0; and v is never negative, whatever rounding does."""
    fastgd.set_backend(backend)
    opt = fastgd.Yogi(np.zeros(3, np.float32), initial_accumulator_value=4.0, betas=(0.0, 0.0))
    opt.step(np.array([2.0, -1.0, 3.0], np.float32))
    assert opt.state[0]["exp_avg_sq"].tolist() == [4.0, 3.0, 9.0 + 4.0]
    rng = np.random.default_rng(0)
    for _ in range(50):
        opt.step((10 ** rng.uniform(-20, 10, 3)).astype(np.float32))
        assert (opt.state[0]["exp_avg_sq"] >= 0).all()


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
def test_adopts_first_step_only_looks(backend):
    """Parameters stay to the bit, though weight decay is decoupled and a gradient may be NaN."""
    fastgd.set_backend(backend)
    p = np.array([1.0, 2.0, 3.0], np.float32)
    opt = fastgd.ADOPT(p, lr=0.1, weight_decay=0.5, decouple=True)
    opt.step(np.array([3.0, np.nan, 0.0], np.float32))
    assert p.tolist() == [1.0, 2.0, 3.0]
    assert opt.state[0]["exp_avg"].tolist() == [0.0, 0.0, 0.0]
    assert opt.state[0]["exp_avg_sq"][[0, 2]].tolist() == [9.0, 0.0]
    opt.step(np.array([3.0, 1.0, 100.0], np.float32))
    # By v of the first step, at least ε; bounded by 1.
    assert opt.state[0]["exp_avg"][[0, 2]] == pytest.approx([0.1, 0.1])
    assert np.isnan(p).tolist() == [False, True, False]


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
def test_adans_first_difference_is_none(backend):
    fastgd.set_backend(backend)
    p = np.zeros(2)
    opt = fastgd.Adan([p], lr=0.1)
    opt.step([np.array([5.0, -2.0])])
    assert opt.state[0]["exp_avg_diff"].tolist() == [0.0, 0.0]
    assert opt.state[0]["neg_pre_grad"].tolist() == [-5.0, 2.0]
    assert p == pytest.approx([-0.1, 0.1])


def test_laprop_is_not_carried_away():
    """Five steps after a gradient a million times the others, Adam still takes huge ones."""
    moved = {}
    for cls in (fastgd.LaProp, fastgd.Adam):
        p = np.zeros(1)
        opt = cls(p, lr=1.0, betas=(0.9, 0.1))
        for g in [*[1e-3] * 50, 1e3, *[1e-3] * 5]:
            before = p[0]
            opt.step(np.array([g]))
        moved[cls] = abs(p[0] - before)
    assert moved[fastgd.LaProp] < 1.2
    assert moved[fastgd.Adam] > 10.0


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
def test_stable_adamw_shortens_the_step_of_the_tensor_alone(backend):
    """The spike of one element shortens all of its tensor's; an empty one has no mean."""
    fastgd.set_backend(backend)
    calm, other, empty = np.zeros(4), np.zeros(4), np.zeros(0)
    opt = fastgd.StableAdamW([calm, other, empty], lr=0.1, betas=(0.0, 0.9), weight_decay=0.0)
    opt.step([np.ones(4), np.ones(4), np.zeros(0)])
    spike = np.array([1.0, 1.0, 1.0, 1e4])
    before = calm.copy(), other.copy()
    opt.step([np.ones(4), spike, np.zeros(0)])
    gamma = 0.1 / (1 - 0.9**2)
    rms = sqrt((3 + 1e8 / (1 - gamma + gamma * 1e8)) / 4)
    assert calm - before[0] == pytest.approx(-0.1, rel=1e-5)
    assert (other - before[1])[:3] == pytest.approx(-0.1 / rms, rel=1e-5)


@pytest.mark.parametrize("eps", [0.0, 1e-25])
def test_stable_adamw_is_shortened_whatever_eps_is(eps):
    w = np.zeros(4, np.float32)
    opt = fastgd.StableAdamW(w, lr=0.1, betas=(0.0, 0.99), eps=eps, weight_decay=0.0)
    g = np.array([1, 1, 1, 0], np.float32)
    opt.step(g)
    before = w.copy()
    opt.step(100 * g)
    assert before[0] - w[0] == pytest.approx(0.115, abs=1e-3)
