"""Muon, whose rule has a matrix step between its sweeps."""

from __future__ import annotations

import copy
import gc
import pickle
import tracemalloc
import warnings

import numpy as np
import pytest
from support.helpers import COMPILED, same_bits

import fastgd
from fastgd.commands.optimizers import described
from fastgd.core.storage import Piece
from fastgd.kernels import _engine
from fastgd.kernels.reference import RULES
from fastgd.kernels.spec.matrices import Matrix, matrix_of
from fastgd.optimizers import GENERAL, OPTIMIZERS

SHAPES = [(5, 3), (3, 5), (4, 4), (1, 7), (7, 1), (1, 1), (0, 3), (3, 0), (130, 70), (250, 300)]
COEFFICIENTS = (3.4445, -4.775, 2.0315)


def drawn(shapes, seed=0, dtype=np.float32, order="C"):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape), dtype, order=order) for shape in shapes]


def orthogonalized(u, coefficients=COEFFICIENTS, steps=5, eps=1e-7):
    """Newton and Schulz as torch and Keller Jordan write it, in float64."""
    a, b, c = coefficients
    x = u.T if u.shape[0] > u.shape[1] else u
    x = x / max(np.linalg.norm(x), eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if u.shape[0] > u.shape[1] else x


def transcribed(p, grads, lr=1e-3, weight_decay=0.1, momentum=0.95, nesterov=True,
                ns_coefficients=COEFFICIENTS, eps=1e-7, ns_steps=5, adjust_lr_fn=None):  # fmt: skip
    """torch's loop over the steps of one parameter, in float64."""
    p, buffer = p.astype(np.float64), np.zeros(p.shape)
    rows, columns = p.shape
    factor = 1.0
    if p.size:
        factor = np.sqrt(max(1.0, rows / columns))
        factor = factor if adjust_lr_fn != "match_rms_adamw" else 0.2 * np.sqrt(max(p.shape))
    for g in grads:
        buffer += (1 - momentum) * (g - buffer)
        u = g + momentum * (buffer - g) if nesterov else buffer
        p = p * (1 - lr * weight_decay) - lr * factor * orthogonalized(
            u, ns_coefficients, ns_steps, eps
        )
    return p, buffer


OPTIONS = {
    "defaults": {},
    "plain": {"nesterov": False, "momentum": 0.5},
    "rms": {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.0},
    "original": {"adjust_lr_fn": "original", "lr": 0.1},
    "iterations": {"ns_steps": 2, "ns_coefficients": (2.0, -1.5, 0.5)},
    "none": {"ns_steps": 0, "momentum": 0.0, "eps": 100.0},
}


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("backend", [fastgd.available_backends()[0], "numpy"])
def test_is_the_formula_in_float64(options, order, backend):
    fastgd.set_backend(backend)
    params = drawn(SHAPES, 0, np.float64, order)
    grads = [drawn(SHAPES, seed, np.float64, order) for seed in (1, 2, 3)]
    right = [
        transcribed(p, gs, **OPTIONS[options])
        for p, gs in zip(params, zip(*grads, strict=True), strict=True)
    ]
    opt = fastgd.Muon(params, **OPTIONS[options])
    for gs in grads:
        opt.step(gs)
    for i, (p, (expected, buffer)) in enumerate(zip(params, right, strict=True)):
        np.testing.assert_allclose(p, expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(opt.state[i]["momentum_buffer"], buffer, rtol=1e-12, atol=1e-14)


def test_in_float32_it_is_near():
    params, grads = drawn(SHAPES), drawn(SHAPES, 1)
    starts = [p.copy() for p in params]
    fastgd.Muon(params, lr=1.0).step(grads)
    for p, start, g in zip(params, starts, grads, strict=True):
        expected, _ = transcribed(start, [g.astype(np.float64)], lr=1.0)
        np.testing.assert_allclose(p, expected, atol=2e-5)


@pytest.mark.parametrize("shape", [(64, 64), (200, 50), (50, 200)])
def test_singular_values_come_near_one(shape):
    (p,) = drawn([shape])
    p[...] = 0
    fastgd.Muon(p, lr=1.0, weight_decay=0.0).step(drawn([shape], 1)[0])
    factor = np.sqrt(max(1.0, shape[0] / shape[1]))
    values = np.linalg.svd(p, compute_uv=False) / factor
    # Values below a few hundredths of the largest are still on their way.
    assert 1.3 > values.max() > 0.6
    assert np.median(values) > 0.6
    match = np.zeros(shape)
    fastgd.Muon(match, lr=1.0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw").step(
        drawn([shape], 1, np.float64)[0]
    )
    assert np.sqrt(np.mean(match**2)) == pytest.approx(0.2, rel=0.3)


# ----------------------------------------------------------------------------------------- bits


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("backend", COMPILED)
def test_backends_equal_numpy_to_the_bit(backend, dtype):
    results = []
    for use in (backend, "numpy"):
        fastgd.set_backend(use)
        params = [*drawn(SHAPES, 0, dtype), *drawn(SHAPES, 0, dtype, "F")]
        opt = fastgd.Muon(params, lr=0.1, clip_norm=3.0, clip_value=1.5, maximize=True)
        for seed in range(3):
            opt.step([*drawn(SHAPES, seed, dtype), *drawn(SHAPES, seed, dtype, "F")])
        results.append([*params, *(s["momentum_buffer"] for s in opt.state.values())])
    assert all(map(same_bits, *results))


def test_threads_change_no_bit():
    results = []
    for threads in (1, 2, 4):
        fastgd.set_num_threads(threads)
        params = drawn([(300, 400), (7, 3)])
        opt = fastgd.Muon(params)
        for seed in range(2):
            opt.step(drawn([(300, 400), (7, 3)], seed))
        results.append(params)
    for other in results[1:]:
        assert all(map(same_bits, results[0], other))


STORAGES = {
    "average and copy": {"average": 0.9, "copy": True},
    "zeroed": {"zero_grads": True},
    "16-bit states": {"state_dtype": "bfloat16"},
    "8-bit states": {"state_dtype": "8bit", "min_8bit_size": 0},
    "master": {"kind": "bfloat16", "master": True},
    "split": {"kind": "bfloat16", "master": "split"},
    "stochastic": {"kind": "bfloat16", "rounding": "stochastic", "state_dtype": "8bit"},
    "float16": {"kind": "float16", "master": True, "clip_norm": 1.0},
    "ratio": {"clip_ratio": 0.1},
    "skip": {"nonfinite": "skip", "clip_by": "tensor", "clip_norm": 1.0},
}


def stored(arrays, kind):
    if kind == "bfloat16":
        return [(np.ascontiguousarray(a).view(np.uint32) >> 16).astype(np.uint16) for a in arrays]
    return [a.astype(kind) for a in arrays]


@pytest.mark.parametrize("options", STORAGES)
@pytest.mark.parametrize("backend", COMPILED)
def test_every_way_to_store_equals_numpy(backend, options):
    given = dict(STORAGES[options])
    kind, copied = given.pop("kind", "float32"), given.pop("copy", False)
    results = []
    for use in (backend, "numpy"):
        fastgd.set_backend(use)
        params = stored(drawn(SHAPES), kind)
        copies = [np.zeros(p.shape, np.float16) for p in params] if copied else None
        opt = fastgd.Muon(params, lr=0.1, copy_to=copies, **given)
        for seed in range(3):
            opt.accumulate(stored(drawn(SHAPES, seed), kind), 2.0)
            opt.step(grad_scale=0.5)
            opt.step([None if k == 1 else g for k, g in enumerate(stored(drawn(SHAPES), kind))])
        averages = opt.average.averages.values() if opt.average is not None else ()
        states = [a for s in opt.state.values() for a in s.values()]
        results.append([*params, *(copies or ()), *averages, *states])
    for a, b in zip(*results, strict=True):
        assert a.tobytes() == b.tobytes()


def test_a_step_of_a_flat_view_is_that_of_the_matrix():
    (p, q), (g,) = drawn([(6, 4)] * 2), drawn([(6, 4)], 1)
    q[...] = p
    fastgd.Muon(p).step(g)
    flat = q.ravel()
    fastgd.Muon(Piece(flat, 0, 24, shape=(6, 4))).step(g.ravel())
    assert same_bits(p, q)
    assert matrix_of((6, 4), "C") == Matrix(6, 4, False)


# ---------------------------------------------------------------------------------------- edges


def test_no_gradient_is_no_direction():
    (p,) = drawn([(4, 3)])
    before = p.copy()
    fastgd.Muon(p, weight_decay=0.0).step(np.zeros((4, 3), np.float32))
    assert same_bits(p, before)


def test_nan_and_infinity_flow_without_a_word():
    for bad in (np.nan, np.inf):
        params, grads = drawn([(4, 3), (3, 3)]), drawn([(4, 3), (3, 3)], 1)
        grads[0][1, 2] = bad
        with warnings.catch_warnings(), np.errstate(all="raise"):
            warnings.simplefilter("error")
            opt = fastgd.Muon(params)
            opt.step(grads)
        assert np.isnan(params[0]).any()
        assert np.isfinite(params[1]).all()
        assert np.isnan(params[0]).sum() == np.isnan(fastgd_numpy_twin(bad)).sum()


def fastgd_numpy_twin(bad):
    fastgd.set_backend("numpy")
    params, grads = drawn([(4, 3), (3, 3)]), drawn([(4, 3), (3, 3)], 1)
    grads[0][1, 2] = bad
    fastgd.Muon(params).step(grads)
    fastgd.set_backend(fastgd.available_backends()[0])
    return params[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("backend", COMPILED)
def test_values_at_the_edge_go_as_in_numpy(backend, dtype):
    largest = float(np.finfo(dtype).max)
    values = [0.0, -0.0, 1.0, np.nan, np.inf, 1e-30, 1e19, largest, 5e-324]
    for extra in ({}, {"eps": 0.0}, {"lr": 0.0}, {"momentum": 0.0, "ns_steps": 0}):
        results = []
        for use in ("numpy", backend):
            fastgd.set_backend(use)
            with np.errstate(all="ignore"):
                params = [np.array([[v, v], [1.0, v]], dtype) for v in values for _ in values]
                grads = [np.array([[v, 1.0], [v, v]], dtype) for _ in values for v in values]
            opt = fastgd.Muon(params, **extra)
            for _ in range(3):
                opt.step(grads)
            results.append([*params, *(s["momentum_buffer"] for s in opt.state.values())])
        assert all(map(same_bits, *results)), extra


def test_huge_gradients_and_tiny_ones_count_alike():
    (g,) = drawn([(6, 4)])
    results = []
    for scale in (1.0, 1e30, 1e-4):
        p = np.zeros((6, 4), np.float32)
        fastgd.Muon(p, lr=1.0).step(g * np.float32(scale))
        results.append(p)
    for p in results[1:]:
        np.testing.assert_allclose(p, results[0], atol=2e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_product_that_numpy_refuses_is_done_by_loops(monkeypatch, dtype):
    """As from the first write on nothing may fail: NumPy may lack memory for its own small things."""
    shapes = [(5, 3), (3, 5), (1, 4)]

    def refused(*_):
        raise MemoryError

    results = []
    for function in (np.matmul, refused):
        monkeypatch.setattr(_engine, "matmul", function)
        params = drawn(shapes, 0, dtype)
        fastgd.Muon(params).step(drawn(shapes, 1, dtype))
        results.append(params)
    for p, q in zip(*results, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-4)


def test_work_space_is_that_of_the_largest_and_states_are_their_own():
    shapes = [(8, 8), (8, 8), (5,), (8, 8)]
    params = drawn(shapes)
    opt = fastgd.Muon(params)
    alone = [p.copy() for p in params]
    grads = drawn(shapes, 1)
    opt.step(grads)
    for p, g in zip(alone, grads, strict=True):
        fastgd.Muon(p).step(g)
    assert all(map(same_bits, params, alone))


def test_work_space_goes_with_its_optimizer():
    tracemalloc.start()
    try:
        fastgd.Muon(np.ones((200, 200))).step(np.ones((200, 200)))
        gc.collect()
        left, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most > 4 * 200 * 200 * 8 > 4 * left


# -------------------------------------------------------------------------- what is no matrix

OTHERS = [(), (3,), (2, 3, 4), (0,), (70_000,)]


def mixed(params, **options):
    """A group with a matrix amid all other shapes, and one of matrices that take no part."""
    groups = [{"params": params[:-1]}, {"params": params[-1:], "use_muon": False, "lr": 0.25}]
    return fastgd.Muon(groups, **options)


MIXED = [*OTHERS[:2], (30, 20), *OTHERS[2:], (8, 5)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
def test_others_take_the_steps_of_adamw(backend, dtype):
    fastgd.set_backend(backend)
    params, others = drawn(MIXED, 0, dtype), drawn(MIXED, 0, dtype)
    opt = mixed(params, lr=0.1, weight_decay=0.5, adamw_eps=1e-3)
    ones = [
        fastgd.Muon(p, lr=0.1, weight_decay=0.5)
        if p.shape == (30, 20)
        else fastgd.AdamW(
            p, 0.25 if p.shape == (8, 5) else 0.1, (0.9, 0.95), 1e-3, weight_decay=0.5
        )
        for p in others
    ]
    for t in range(3):
        grads = drawn(MIXED, t + 1, dtype)
        opt.step([grads[:-1], grads[-1:]])
        for one, g in zip(ones, grads, strict=True):
            one.step(g)
    assert all(map(same_bits, params, others))
    keys = [sorted({*entry} - {"step"}) for entry in opt.state.values()]
    of_adam = ["exp_avg", "exp_avg_sq"]
    assert keys == [of_adam, of_adam, ["momentum_buffer"], *[of_adam] * 4]


def test_adamw_is_as_jordan_and_moonshot_write_it():
    """To 1e-12 in float64, by the defaults of the latter."""
    (p,) = drawn([(50,)], 0, np.float64)
    q, m, v = p.copy(), 0.0, 0.0
    opt = fastgd.Muon(p)
    for t in range(1, 101):
        (g,) = drawn([(50,)], t, np.float64)
        opt.step(g)
        m, v = m + (1 - 0.9) * (g - m), v + (1 - 0.95) * (g * g - v)
        q = q * (1 - 1e-3 * 0.1) - 1e-3 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
    np.testing.assert_allclose(p, q, rtol=1e-12, atol=1e-14)


def test_all_backends_and_threads_step_mixtures_alike():
    """With all that goes around a rule, of which clipping has one norm of all."""
    results = []
    for backend, threads in [*((name, 2) for name in fastgd.available_backends()), ("numpy", 1)]:
        fastgd.set_backend(backend)
        fastgd.set_num_threads(threads)
        params = drawn(MIXED)
        options = {"state_dtype": "8bit", "min_8bit_size": 0, "average": 0.9, "clip_norm": 1.0}
        opt = mixed(params, lr=lambda t: 0.1 / (t + 1), **options)
        for seed in range(3):
            grads = drawn(MIXED, seed)
            opt.step([grads[:-1], [None] if seed == 1 else grads[-1:]])
        states = [a for s in opt.state.values() for a in s.values()]
        results.append([*params, *states, *opt.average.averages.values()])
    for other in results[1:]:
        assert all(a.tobytes() == b.tobytes() for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("adjust_lr_fn", [None, "original", "match_rms_adamw"])
def test_c_makes_the_coefficients_of_both_rules(adjust_lr_fn):
    """Words and counts are numbers in C, too."""
    opt = mixed(drawn(MIXED), adjust_lr_fn=adjust_lr_fn, ns_steps=3, adamw_betas=(0.5, 0.75))
    rows = opt.stepper.plan.hyper_rows
    for k, rule in opt.stepper.owners:
        for t in (1, 7):
            _, coefficients, stages = opt.settings(rule, opt.param_groups[k], t, 0.5)
            assert rows.made(k, rule, t, 0.5) == (coefficients, stages)


def test_a_subclass_with_other_coefficients_of_a_rule_is_asked():
    class Other(fastgd.Muon):
        @staticmethod
        def adam_coefficients(h, t):
            return tuple(2 * c if k == 0 else c for k, c in enumerate(super_coefficients(h, t)))

    super_coefficients = fastgd.Muon.adam_coefficients
    p, q = np.zeros(3), np.zeros(3)
    fastgd.Muon(p, lr=0.1).step(np.ones(3))
    Other(q, lr=0.1).step(np.ones(3))
    assert same_bits(2 * p, q)


def test_a_change_of_mind_makes_other_states():
    p = drawn([(4, 3)])[0]
    opt = fastgd.Muon(p)
    opt.step(drawn([(4, 3)], 1)[0])
    opt.param_groups[0]["use_muon"] = False
    opt.step(drawn([(4, 3)], 2)[0])
    assert opt.stepper.rules == ["adam"]
    assert set(opt.state[0]) >= {"exp_avg", "exp_avg_sq"}


def test_functional_picks_the_rule_by_shape():
    p, q, g = np.ones(3), np.ones(3), np.full(3, 0.5)
    m, v = np.zeros((2, 3))
    fastgd.functional.muon(p, g, m, v, step=1, adamw_eps=0.1)
    fastgd.Muon(q, adamw_eps=0.1).step(g)
    assert same_bits(p, q)


# ------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(("key", "value", "error"), [
    ("ns_steps", 100, ValueError), ("ns_steps", -1, ValueError), ("ns_steps", 2.0, TypeError),
    ("ns_coefficients", (1.0, 2.0), ValueError), ("ns_coefficients", 1.0, TypeError),
    ("adjust_lr_fn", "other", ValueError), ("adjust_lr_fn", 1, TypeError),
    ("ns_coefficients", (1e39, 0.0, 0.0), ValueError),
])  # fmt: skip
def test_bad_hyper_parameters(key, value, error):
    p = np.ones((2, 2), np.float32)
    with pytest.raises(error, match=key):
        fastgd.Muon(p, **{key: value})
    assert (p == 1).all()


def test_what_is_declared_is_read():
    rule = RULES["muon"]
    assert (rule.exact, rule.shards) == (False, False)
    assert "whole parameters" in described(fastgd.Muon)
    assert set(OPTIMIZERS) - set(GENERAL) >= {"Muon"}
    with pytest.raises(ValueError, match="as rule muon does not step shards"):
        fastgd.Muon(Piece(np.ones(6), 6, 12, shape=(4, 3)))
    fastgd.Muon(Piece(np.ones(6), 6, 12, shape=(4, 3)), use_muon=False)


def test_sharded_refuses_before_anything_is_changed():
    MPI = pytest.importorskip("mpi4py.MPI")
    from fastgd.mpi import Sharded

    p = np.ones((4, 3))
    with pytest.raises(ValueError, match="expected a whole parameter, as rule muon does not step"):
        Sharded(fastgd.Muon, p, comm=MPI.COMM_SELF)
    assert (p == 1).all()


# ------------------------------------------------------------------- what goes with optimizers


@pytest.mark.parametrize("way", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_copies_checkpoints_and_state_dicts_go_on(way, tmp_path):
    shapes = [(5, 3), (20, 30)]
    params = drawn(shapes)
    opt = fastgd.Muon(params, adjust_lr_fn="match_rms_adamw", nesterov=False)
    opt.step(drawn(shapes, 1))
    other = way(opt)
    loaded, read = (fastgd.Muon([p.copy() for p in params]) for _ in range(2))
    loaded.load_state_dict(opt.state_dict())
    fastgd.save(tmp_path / "run", opt)
    fastgd.load(tmp_path / "run", read)
    for one in (opt, other, loaded, read):
        one.step(drawn(shapes, 2))
        assert all(map(same_bits, params, one.stepper.params().values()))


def test_functional_is_the_class():
    (p, q), (g,) = drawn([(6, 4)] * 2), drawn([(6, 4)], 1)
    q[...] = p
    buffer = np.zeros_like(q)
    opt = fastgd.Muon(p, lr=0.1, weight_decay=0.5)
    for t in (1, 2):
        opt.step(g)
        fastgd.functional.muon(q, g, buffer, step=t, lr=0.1, weight_decay=0.5)
    assert same_bits(p, q)


def test_schedules_and_groups():
    params = drawn([(5, 3), (4, 4)])
    alone = [p.copy() for p in params]
    opt = fastgd.Muon(
        [{"params": params[:1], "lr": lambda t: 0.1 / (t + 1)}, {"params": params[1]}]
    )
    ones = [fastgd.Muon(alone[0], lr=0.1), fastgd.Muon(alone[1])]
    for t in range(3):
        grads = drawn([(5, 3), (4, 4)], t)
        opt.step([grads[:1], grads[1]])
        ones[0].lr = 0.1 / (t + 1)
        for one, g in zip(ones, grads, strict=True):
            one.step(g)
    assert all(map(same_bits, params, alone))


def test_the_c_level_does_both_sweeps():
    from ctypes import CFUNCTYPE, c_double, c_int, c_longlong, c_ssize_t, c_void_p

    from fastgd.kernels.c_api import ADDRESSES

    (p, q), (g,) = drawn([(6, 4)] * 2, 0, np.float64), drawn([(6, 4)], 1, np.float64)
    q[...] = p
    fastgd.Muon(p, lr=0.1, adjust_lr_fn="match_rms_adamw", clip_value=0.5).step(g)
    out, stages = (c_double * 16)(), (c_double * 4)(1.0, 0.0, 1 - 0.1 * 0.1, 0.5)
    coefficients = CFUNCTYPE(
        None, c_double, c_double, c_int, *[c_double] * 5, c_int, c_longlong, c_void_p
    )(ADDRESSES["fastgd_muon_coefficients"])
    coefficients(0.1, 0.95, 1, *COEFFICIENTS, 1e-7, 5.0, 1, 1, out)
    assert tuple(out)[:9] == fastgd.Muon.coefficients(
        fastgd.Muon(q, lr=0.1, adjust_lr_fn="match_rms_adamw").defaults, 1
    )
    u, buffer, sums = np.zeros_like(q), np.zeros_like(q), np.zeros(1)
    pointers = [a.ctypes.data for a in (q, g, buffer)]
    CFUNCTYPE(None, *[c_void_p] * 3, c_ssize_t, *[c_void_p] * 4)(
        ADDRESSES["fastgd_muon_before_f64"]
    )(*pointers, q.size, out, stages, u.ctypes.data, sums.ctypes.data)
    assert sums[0] == pytest.approx(np.sum(u * u))
    with np.errstate(all="ignore"):
        RULES["muon"].matrix.transform(
            u,
            6,
            4,
            sums[0],
            **dict(zip(("a", "b", "c", "eps", "steps", "rms"), out[2:8], strict=True)),
        )
    CFUNCTYPE(None, *[c_void_p] * 2, c_ssize_t, *[c_void_p] * 2)(ADDRESSES["fastgd_muon_f64"])(
        q.ctypes.data, u.ctypes.data, q.size, out, stages
    )
    np.testing.assert_allclose(p, q, rtol=1e-12)


# ---------------------------------------------------------------------------------------- torch


class Twins:
    """The same matrices under fastgd, fastgd.torch and torch."""

    def __init__(self, **options):
        self.torch = pytest.importorskip("torch")
        import fastgd.torch

        shapes = [(30, 20), (20, 30), (16, 16)]
        self.ours = drawn(shapes)
        self.starts = [p.copy() for p in self.ours]
        self.theirs, self.bound = (
            [self.torch.nn.Parameter(self.torch.tensor(p)) for p in self.ours] for _ in range(2)
        )
        # One whose rows are not contiguous.
        last = self.torch.tensor(self.ours[0].T.copy()).t()
        self.bound[0] = self.torch.nn.Parameter(last)
        self.shapes = shapes
        self.opt = fastgd.Muon(self.ours, **options)
        self.torch_opt = self.torch.optim.Muon(self.theirs, **options)
        self.bound_opt = fastgd.torch.Muon(self.bound, **options)

    def step(self, seed):
        grads = drawn(self.shapes, seed)
        for own in (self.theirs, self.bound):
            for p, g in zip(own, grads, strict=True):
                p.grad = self.torch.empty_like(p).copy_(self.torch.tensor(g))
        self.opt.step(grads)
        self.torch_opt.step()
        self.bound_opt.step()

    def compare(self):
        for p, start, q, r in zip(self.ours, self.starts, self.theirs, self.bound, strict=True):
            moved = q.detach().numpy() - start
            # torch's products are in bfloat16.
            assert np.linalg.norm(p - start - moved) < 2e-2 * np.linalg.norm(moved)
            np.testing.assert_allclose(r.detach().numpy(), p, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_is_near_torch(options):
    given = {"lr": 0.1, **OPTIONS[options]}
    twins = Twins(**given)
    for seed in range(3):
        twins.step(seed)
    twins.compare()


def test_state_dicts_go_both_ways_with_torch():
    torch = pytest.importorskip("torch")
    import fastgd.torch

    twins = Twins(lr=0.1)
    twins.step(0)
    saved = twins.torch_opt.state_dict()
    ours = fastgd.Muon([p.detach().numpy().copy() for p in twins.theirs])
    ours.load_state_dict(saved)
    assert ours.lr == 0.1
    for i in range(3):
        found = ours.state[i]["momentum_buffer"]
        assert same_bits(found, saved["state"][i]["momentum_buffer"].numpy())
    bound = fastgd.torch.Muon(twins.theirs)
    bound.load_state_dict(copy.deepcopy(saved))
    bound.step()
    back = torch.optim.Muon([torch.nn.Parameter(torch.tensor(p)) for p in twins.ours])
    written = twins.opt.state_dict()
    for entry in written["state"].values():
        entry["momentum_buffer"] = torch.tensor(entry["momentum_buffer"])
    for group in written["param_groups"]:
        group.pop("param_names")
    back.load_state_dict(written)
    back.load_state_dict(bound.state_dict())
    for p in back.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    back.step()


def test_torchs_defaults_signature_and_tensors_for_lr():
    torch = pytest.importorskip("torch")
    import inspect

    import fastgd.torch

    p = torch.nn.Parameter(torch.ones(3, 2))
    ours, theirs = fastgd.Muon(np.ones((3, 2))).param_groups[0], torch.optim.Muon([p])
    for key, value in theirs.defaults.items():
        assert ours[key] == value, key
    names = list(inspect.signature(torch.optim.Muon.__init__).parameters)
    assert list(inspect.signature(fastgd.torch.Muon).parameters)[: len(names) - 1] == names[1:]
    opt = fastgd.torch.Muon([p], lr=torch.tensor(0.5))
    p.grad = torch.ones_like(p)
    opt.step()
    assert (p < 0.9).all()


def test_torch_steps_a_whole_model():
    """What torch refuses goes by AdamW; of groups without matrices torch's AdamW takes the states."""
    torch = pytest.importorskip("torch")
    import fastgd.torch

    arrays = drawn(MIXED)
    tensors = [torch.nn.Parameter(torch.tensor(a)) for a in arrays]
    groups = [{"params": tensors[:-1]}, {"params": tensors[-1:], "use_muon": False, "lr": 0.25}]
    opt, twin = fastgd.torch.Muon(groups, lr=0.1), mixed(arrays, lr=0.1)
    for t in range(2):
        grads = drawn(MIXED, t + 1)
        for p, g in zip(tensors, grads, strict=True):
            p.grad = torch.tensor(g)
        opt.step()
        twin.step([grads[:-1], grads[-1:]])
    # But for a last bit of the products, which follow from how the memory lies.
    for p, a in zip(tensors, arrays, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), a, rtol=1e-5, atol=1e-6)
    other = fastgd.torch.Muon([{"params": g["params"]} for g in groups])
    other.load_state_dict(opt.state_dict())
    assert [g["use_muon"] for g in other.param_groups] == [True, False]
    adamw = torch.optim.AdamW(tensors[-1:])
    adamw.load_state_dict(
        {
            "state": {0: opt.state_dict()["state"][6]},
            "param_groups": [{**adamw.param_groups[0], "params": [0]}],
        }
    )
    adamw.step()
    # A state dict of torch's has nothing of AdamW: our settings of it stay.
    matrix = torch.nn.Parameter(torch.ones(3, 2))
    theirs = torch.optim.Muon([matrix], lr=0.5)
    ours = fastgd.torch.Muon([matrix], adamw_betas=(0.5, 0.5), use_muon=False)
    ours.load_state_dict(theirs.state_dict())
    assert (ours.param_groups[0]["lr"], ours.param_groups[0]["adamw_betas"]) == (0.5, (0.5, 0.5))
