"""Lion, SignSGD, AdEMAMix, QHM, QHAdam, MADGRAD and NovoGrad: their papers' formulas, their edges."""

from __future__ import annotations

from math import log, sqrt

import numpy as np
import pytest
from support.formulas import drawn, few, follows
from support.helpers import COMPILED, same_bits

import fastgd
from fastgd.kernels.spec.registry import cube_root

NEW = [
    fastgd.Lion,
    fastgd.SignSGD,
    fastgd.AdEMAMix,
    fastgd.QHM,
    fastgd.QHAdam,
    fastgd.MADGRAD,
    fastgd.NovoGrad,
]


def ema(state, key, x, beta):
    state[key] = beta * state.get(key, 0.0) + (1 - beta) * x
    return state[key]


# --------------------------------------------------------------------------------------- formulas


@pytest.mark.parametrize(
    "options", [{}, {"weight_decay": 0.1}, {"betas": (0.95, 0.98), "maximize": True}]
)
def test_lion_of_the_paper(options):
    h = {"betas": (0.9, 0.99), "weight_decay": 0.0, **options}
    beta1, beta2 = h["betas"]

    def update(p, g, state, t):
        g = -g if h.get("maximize") else g
        u = np.sign(beta1 * state.get("m", 0.0) + (1 - beta1) * g)
        ema(state, "m", g, beta2)
        return p - 0.01 * (u + h["weight_decay"] * p)

    params = few(0)
    follows(fastgd.Lion(params, lr=0.01, **options), params, update)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decoupled", [True, False])
def test_sign_sgd_of_the_paper(momentum, decoupled):
    def update(p, g, state, t):
        g = g if decoupled else g + 0.1 * p
        kept = p * (1 - 0.01 * 0.1) if decoupled else p
        return kept - 0.01 * np.sign(ema(state, "m", g, momentum))

    params = few(0)
    opt = fastgd.SignSGD(
        params, lr=0.01, momentum=momentum, weight_decay=0.1, decoupled_weight_decay=decoupled
    )
    follows(opt, params, update)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta3_warmup": 60.0, "alpha_warmup": 40.0},
        {"betas": (0.0, 0.9, 0.99), "beta3_warmup": 200.0, "weight_decay": 0.1},
        {"betas": (0.8, 0.9, 0.99), "alpha": 5.0, "eps": 0.1, "alpha_warmup": 101.0},
    ],
)
def test_ademamix_of_the_authors(options):
    """Of apple/ml-ademamix: the warm-up of β₃ is linear in its half-life, less one step."""
    h = {"betas": (0.9, 0.999, 0.9999), "alpha": 2.0, "eps": 1e-8, "weight_decay": 0.0, **options}
    beta1, beta2, beta3 = h["betas"]

    def half_life(beta):
        return log(0.5) / log(beta + 1e-8) - 1

    def update(p, g, state, t):
        alpha, slow = h["alpha"], beta3
        if (warmup := h.get("alpha_warmup")) and t < warmup:
            alpha *= t / warmup
        if (warmup := h.get("beta3_warmup")) and t < warmup:
            half = (1 - t / warmup) * half_life(beta1) + t / warmup * half_life(beta3)
            slow = 0.5 ** (1 / (half + 1))
        m, n = ema(state, "m", g, beta1), ema(state, "n", g, slow)
        v = ema(state, "v", g * g, beta2)
        u = (m / (1 - beta1**t) + alpha * n) / (np.sqrt(v) / sqrt(1 - beta2**t) + h["eps"])
        return p - 0.01 * (u + h["weight_decay"] * p)

    params = few(0)
    follows(fastgd.AdEMAMix(params, lr=0.01, **options), params, update)


@pytest.mark.parametrize("nu", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("decoupled", [True, False])
def test_qhm_of_the_paper(nu, decoupled):
    def update(p, g, state, t):
        g = g if decoupled else g + 0.1 * p
        p = p * (1 - 0.05 * 0.1) if decoupled else p
        return p - 0.05 * ((1 - nu) * g + nu * ema(state, "m", g, 0.9))

    params = few(0)
    opt = fastgd.QHM(
        params, lr=0.05, momentum=0.9, nu=nu, weight_decay=0.1, decoupled_weight_decay=decoupled
    )
    follows(opt, params, update)


@pytest.mark.parametrize("nus", [(1.0, 1.0), (0.7, 1.0), (0.8, 0.6), (0.0, 0.0)])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.5)])
def test_qhadam_of_the_authors(nus, betas):
    """Of qhoptim, which averages with weights 1/w, where w ← 1 + βw: of no bias from the start."""

    def update(p, g, state, t):
        u = []
        for beta, nu, x in zip(betas, nus, (g, g * g), strict=True):
            w = state[f"w{len(u)}"] = 1 + beta * state.get(f"w{len(u)}", 0.0)
            average = ema(state, f"x{len(u)}", x, 1 - 1 / w)
            u.append((1 - nu) * x + nu * average)
        return p - 0.01 * u[0] / (np.sqrt(u[1]) + 1e-3)

    params = few(0)
    opt = fastgd.QHAdam(params, lr=0.01, betas=betas, nus=nus, eps=1e-3)
    follows(opt, params, update)


def test_qhadam_is_adam():
    params, others = few(0), few(0)
    opt, adam = fastgd.QHAdam(params), fastgd.Adam(others)
    for t in range(1, 20):
        opt.step(few(t))
        adam.step(few(t))
    for p, q in zip(params, others, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "decouple_decay": True, "momentum": 0.5},
        {"momentum": 0.0, "eps": 0.0},
    ],
)
def test_madgrad_of_the_authors(options):
    """Of madgrad 1.3, whose decoupled decay is of the weights before the step."""
    h = {"momentum": 0.9, "weight_decay": 0.0, "eps": 1e-6, **options}

    def update(p, g, state, t):
        if not h.get("decouple_decay"):
            g = g + h["weight_decay"] * p
        x0 = state.setdefault("x0", p.copy())
        weight = (0.01 + h["eps"]) * sqrt(t)
        s = state["s"] = state.get("s", 0.0) + weight * g
        nu = state["nu"] = state.get("nu", 0.0) + weight * g * g
        z = x0 - s / (np.cbrt(nu) + h["eps"])
        new = h["momentum"] * p + (1 - h["momentum"]) * z
        return new - h.get("decouple_decay", False) * (0.01 + h["eps"]) * h["weight_decay"] * p

    params = few(0)
    follows(fastgd.MADGRAD(params, lr=0.01, **options), params, update)


@pytest.mark.parametrize(
    "options",
    [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "grad_averaging": True, "betas": (0.9, 0.5)}],
)
def test_novograd_of_nvidia(options):
    h = {"betas": (0.95, 0.98), "weight_decay": 0.0, **options}
    beta1, beta2 = h["betas"]

    def update(p, g, state, t):
        square, v = (g * g).sum(), state.get("v", 0.0)
        v = state["v"] = beta2 * v + (1 - beta2) * square if v else square
        d = g / (np.sqrt(v) + 1e-8) + h["weight_decay"] * p
        d *= 1 - beta1 if h.get("grad_averaging") else 1.0
        m = state["m"] = beta1 * state.get("m", 0.0) + d
        return p - 0.01 * m

    params = few(0)
    follows(fastgd.NovoGrad(params, lr=0.01, **options), params, update)
    params = drawn(0)  # of more than a block, too
    follows(fastgd.NovoGrad(params, lr=0.01, **options), params, update, steps=5)


# ------------------------------------------------------------------------------------------ edges


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_signs(backend, dtype):
    """sign(0) is 0, sign(NaN) NaN; Lion's step is by the old momentum."""
    fastgd.set_backend(backend)
    g = np.array([0.0, -0.0, 1e-30, -np.inf, np.nan], dtype)
    for cls, options in (
        (fastgd.Lion, {}),
        (fastgd.SignSGD, {}),
        (fastgd.SignSGD, {"momentum": 0.5}),
    ):
        p = np.ones(5, dtype)
        cls(p, lr=0.5, **options).step(g)
        assert p[:4].tolist() == [1.0, 1.0, 0.5, 1.5]
        assert np.isnan(p[4])
    p = np.zeros(1, dtype)
    opt = fastgd.Lion(p, lr=1.0, betas=(1 - 2**-10, 0.5))
    opt.step(np.array([-1.0], dtype))
    opt.step(np.array([1.0], dtype))  # its momentum, -½, outweighs what it counts for
    assert p[0] == 2.0


@pytest.mark.parametrize("cls", NEW)
@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
def test_nan_goes_where_it_comes_from(cls, backend):
    """NovoGrad's norm is its whole tensor's; no other tensor notices."""
    fastgd.set_backend(backend)
    params = [np.ones(4), np.ones(4)]
    opt = cls(params, lr=0.1)
    opt.step([np.array([1.0, np.nan, 1.0, 1.0]), np.ones(4)])
    whole = cls is fastgd.NovoGrad
    assert np.isnan(params[0]).tolist() == [whole, True, whole, whole]
    assert np.isfinite(params[1]).all()


@pytest.mark.parametrize("cls", NEW)
def test_steps_count_for_each_parameter(cls):
    """One that has no gradient goes on later as if the step had not been."""
    together, late, alone = np.ones(3), np.ones(3), np.ones(3)
    opt, single = cls([together, late], lr=0.1), cls(alone, lr=0.1)
    for t in range(6):
        g = np.array([1.0, -2.0, 0.5]) + t
        opt.step([g, g if t % 2 else None])
        if t % 2:
            single.step(g)
    assert same_bits(late, alone)


def test_novograd_starts_anew_where_v_is_0():
    w = np.zeros(2)
    opt = fastgd.NovoGrad(w, lr=1.0)
    opt.step(np.zeros(2))
    assert w.tolist() == [0.0, 0.0]
    opt.step(np.array([3.0, 4.0]))
    assert float(opt.state[0]["exp_avg_sq"]) == 25.0


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
def test_madgrad_without_eps_stays_where_no_gradient_was(backend):
    fastgd.set_backend(backend)
    w = np.array([1.0, 2.0])
    fastgd.MADGRAD(w, lr=0.1, eps=0.0).step(np.array([0.0, 1.0]))
    assert w[0] == 1.0
    assert 1.0 < w[1] < 2.0


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
def test_what_qhadam_does_not_weigh_may_overflow(backend):
    """As Adam, which divides by an infinite root."""
    fastgd.set_backend(backend)
    w = np.ones(1, np.float32)
    fastgd.QHAdam(w, lr=0.1).step(np.array([1e20], np.float32))
    assert w[0] == 1.0


def over_all_powers(dtype, count):
    """Positive numbers of all magnitudes, the least among them."""
    info = np.finfo(dtype)
    low = np.log2(float(info.smallest_subnormal)) if dtype == np.float64 else -149
    return np.exp2(np.random.default_rng(0).uniform(low, info.maxexp, count)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cube_roots(dtype):
    """To one unit in the last place, over all powers, down to the least number."""
    info, x = np.finfo(dtype), over_all_powers(dtype, 100_000)
    exact = np.cbrt(x.astype(np.longdouble))
    with np.errstate(all="ignore"):
        error = np.abs(cube_root(x) - exact) / np.spacing(exact.astype(dtype))
    assert error.max() < 1
    edges = np.array([0.0, -0.0, np.inf, np.nan, info.max, info.smallest_subnormal], dtype)
    with np.errstate(all="ignore"):
        found = cube_root(edges)
    assert found[:3].tolist() == [0.0, 0.0, np.inf]
    assert np.isnan(found[3])
    np.testing.assert_allclose(found[4:], np.cbrt(edges[4:]), rtol=1e-6)
    whole = np.arange(1, 100, dtype=dtype)
    np.testing.assert_array_equal(cube_root(whole**3), whole)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("backend", COMPILED)
def test_compiled_cube_roots_have_numpys_bits(backend, dtype):
    info, one = np.finfo(dtype), dtype(1)
    edges = [0, info.smallest_subnormal, info.tiny, one - info.epsneg, one, one + info.eps]
    x = np.array([*edges, info.max, np.inf, np.nan, *over_all_powers(dtype, 991)], dtype)
    found = []
    for name in ("numpy", backend):
        fastgd.set_backend(name)
        p = np.zeros_like(x)
        opt = fastgd.MADGRAD(p, lr=1.0, momentum=0.0, eps=0.0)
        opt.step(np.zeros_like(x))
        opt.state[0]["grad_sum_sq"][...] = x
        opt.state[0]["grad_sum"][...] = 1
        opt.step(np.zeros_like(x))  # to -1 / ∛x
        found.append(p)
    assert same_bits(*found)
    np.testing.assert_allclose(found[1][2:6] ** -3, -x[2:6], rtol=8 * info.eps)


def test_a_warm_up_has_one_length():
    """A schedule could end it at 0 steps, by which its progress can't be divided."""
    for key in ("beta3_warmup", "alpha_warmup"):
        with pytest.raises(TypeError, match=key):
            fastgd.AdEMAMix(np.ones(2), **{key: lambda t: 0.0})
        with pytest.raises(ValueError, match=key):
            fastgd.AdEMAMix(np.ones(2), **{key: 0.0})


@pytest.mark.parametrize("backend", ["numpy", *COMPILED])
def test_madgrad_takes_cube_roots_of_subnormals(backend):
    fastgd.set_backend(backend)
    p, g = np.zeros(8), 10.0 ** -np.arange(154.0, 162.0)
    fastgd.MADGRAD(p, lr=1.0, momentum=0.0, eps=0.0).step(g)
    expected = -g / np.cbrt(g * g)  # λ is lr·√1
    assert np.all(g * g < np.finfo(float).tiny)
    np.testing.assert_allclose(p, expected, rtol=1e-14)
