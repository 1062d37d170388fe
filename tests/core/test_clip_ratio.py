"""Adaptive gradient clipping: by its formula, in the same bits everywhere, and with all else there is.

The formula is written as timm and others write it for torch, in float64.
"""

from __future__ import annotations

import copy
import pickle
from functools import partial

import ml_dtypes
import numpy as np
import pytest
from support.helpers import COMPILED, remembered, same_bits

import fastgd

F32, F64, F16, BF16 = np.float32, np.float64, np.float16, ml_dtypes.bfloat16

# One unit; rows of one element, of a few, around lanes, tiles, blocks and chunks; empty ones.
SHAPES = [
    (), (1,), (7,), (70_001,), (0,), (0, 5), (4, 0), (1, 1), (300, 1), (1, 300), (1, 40_000),
    (7, 3), (5, 15), (5, 16), (5, 17), (3, 255), (3, 256), (3, 257), (6, 3, 3, 3), (130, 520),
    (3, 16_384), (5, 16_385), (3, 32_767), (3, 32_768), (3, 32_769), (2, 65_536), (2, 70_001),
]  # fmt: skip


def draw(seed, dtype=F64, shapes=SHAPES, spread=3.0, order="C"):
    """Arrays whose rows differ in size by some powers of ten."""
    rng = np.random.default_rng(seed)
    made = []
    for shape in shapes:
        x = np.asarray(rng.standard_normal(shape))
        rows = shape[:1] + (1,) * (len(shape) - 1) if len(shape) > 1 else (1,) * len(shape)
        made.append(np.array(x * 10.0 ** rng.uniform(-spread, 1, rows), dtype, order=order))
    return made


def norms_of_units(x):
    x = x.astype(np.longdouble)
    axes = tuple(range(1, x.ndim)) if x.ndim > 1 else None
    return np.sqrt(np.sum(x * x, axis=axes, keepdims=True)).astype(F64)


def clipped(g, p, ratio):
    """timm's adaptive_clip_grad of one tensor, in float64."""
    most = ratio * np.maximum(norms_of_units(p), 1e-3)
    norms = norms_of_units(g)
    return np.where(norms > most, g * (most / np.maximum(norms, 1e-300)), g)


def bits(a):
    return np.ascontiguousarray(a).reshape(-1).view(np.uint8)


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
@pytest.mark.parametrize("ratio", [0.01, 1.0])
def test_by_the_formula(ratio, backend):
    fastgd.set_backend(backend)
    params, grads = draw(0), draw(1)
    before = copy.deepcopy(params)
    fastgd.SGD(params, lr=1.0, clip_ratio=ratio).step(grads)
    seen = set()
    for p, old, g in zip(params, before, grads, strict=True):
        expected = clipped(g, old, ratio)
        seen |= set((norms_of_units(expected) < norms_of_units(g)).ravel().tolist())
        scale = np.abs(old).max(initial=0) + np.abs(expected).max(initial=0)
        assert np.allclose(p, old - expected, rtol=1e-12, atol=1e-15 * scale), g.shape
    assert seen == {True, False}


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
def test_the_units_of_arrays_by_themselves(backend):
    """Each as a parameter of its own: what an array's shape and place in memory can't change."""
    fastgd.set_backend(backend)
    for shape in ((300, 1), (5, 17), (3, 257), (3, 32_769)):
        (p,), (g,) = draw(0, F32, [shape]), draw(1, F32, [shape])
        rows = [r.copy() for r in p]
        fastgd.SGD(rows, lr=0.1, clip_ratio=0.1).step([r.copy() for r in g])
        fastgd.SGD(p, lr=0.1, clip_ratio=0.1).step(g)
        assert all(map(same_bits, p, rows))


# ---------------------------------------------------------------------------------- the same bits

OPTIONS = [
    {},
    {"clip_norm": 3.0},
    {"clip_norm": 0.5, "clip_by": "group", "nonfinite": "skip"},
    {"clip_norm": 0.5, "clip_by": "tensor", "clip_value": 1e-4, "weight_decay": 0.1},
    {"nonfinite": "raise", "maximize": True, "average": 0.9, "zero_grads": True},
]


def run(backend, threads, opt_class, p_dtype, g_dtype, shapes=SHAPES, ratio=0.02, **options):
    """Some steps with everything around them; returns all arrays and records."""
    fastgd.set_backend(backend)
    fastgd.set_num_threads(threads)
    params = draw(0, p_dtype, shapes)
    opt = opt_class(params, lr=0.01, clip_ratio=ratio, **options)
    said, grads = [], []
    for k in range(3):
        grads = draw(k + 1, g_dtype, shapes)
        if k == 1:
            grads[3] = None
        if k == 2:
            opt.accumulate(grads, 3.0)
            grads = None
        said.append(repr(opt.step(grads, grad_scale=0.5)))
    arrays = [*params, *(a for s in opt.state.values() for a in s.values())]
    arrays += list(opt.average.averages.values()) if opt.average else []
    return [bits(a) for a in arrays], said


by_numpy = remembered(partial(run, "numpy", 1))


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "alone")
def test_same_bits_on_every_backend(backend, options, dtype):
    expected, said = by_numpy(fastgd.AdamW, dtype, dtype, **options)
    for threads in (1, 2):
        found, records = run(backend, threads, fastgd.AdamW, dtype, dtype, **options)
        assert records == said
        assert all(map(np.array_equal, found, expected))


@pytest.mark.parametrize("threads", [2, 3, 4, 8])
def test_threads_do_not_change_a_bit(threads):
    expected, said = run(fastgd.get_backend(), 1, fastgd.Adam, F32, F32, clip_norm=2.0)
    found, records = run(fastgd.get_backend(), threads, fastgd.Adam, F32, F32, clip_norm=2.0)
    assert records == said
    assert all(map(np.array_equal, found, expected))


STORAGES = [
    (F32, BF16, {"state_dtype": "8bit", "min_8bit_size": 1}),
    (F32, F64, {"state_dtype": "bfloat16"}),
    (F32, F16, {}),
    (F64, F32, {"state_dtype": "8bit", "min_8bit_size": 1}),
    (F64, BF16, {"state_dtype": "float32"}),
    (BF16, BF16, {"master": True}),
    (BF16, F32, {"master": "split", "average": 0.9}),
    (BF16, BF16, {"rounding": "stochastic", "state_dtype": "8bit", "clip_norm": 1.0}),
    (F16, F16, {"rounding": "nearest", "state_dtype": "float16"}),
]


@pytest.mark.slow
@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("kind", range(len(STORAGES)))
def test_same_bits_in_every_storage(backend, kind):
    p_dtype, g_dtype, options = STORAGES[kind]
    expected, said = by_numpy(fastgd.AdamW, p_dtype, g_dtype, **options)
    for threads in (1, 2):
        found, records = run(backend, threads, fastgd.AdamW, p_dtype, g_dtype, **options)
        assert records == said
        assert all(map(np.array_equal, found, expected))


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
@pytest.mark.parametrize(
    "options", [{"master": True}, {"master": "split"}, {"rounding": "nearest"}]
)
def test_the_norm_is_that_of_what_is_kept(options, backend):
    """Of the master, that is, to all its bits."""
    fastgd.set_backend(backend)
    shapes = [(6, 50), (400,)]
    params = [p.astype(BF16) for p in draw(0, F32, shapes)]
    opt = fastgd.SGD(params, lr=0.125, clip_ratio=0.01, **options)
    values = [p.astype(F32) for p in params]
    for k in range(5):
        grads = draw(k + 1, F32, shapes, spread=1.0)
        opt.step(grads)
        for i, g in enumerate(grads):
            step = clipped(g.astype(F64), values[i].astype(F64), 0.01)
            values[i] = (values[i] - 0.125 * step).astype(F32)
            if options == {"rounding": "nearest"}:
                values[i] = values[i].astype(BF16).astype(F32)
            kept = opt.storage.parameter(params[i], opt.state[i])
            found = kept.load(F32).reshape(values[i].shape)
            assert np.allclose(found, values[i], rtol=1e-6 if "master" in options else 8e-3)
            values[i] = found.copy()


@pytest.mark.parametrize("backend", COMPILED)
def test_any_alignment(backend):
    """Arrays that start anywhere in a cache line have their chunks cut elsewhere."""
    (p,), (g,) = draw(0, F32, [(40, 1000)]), draw(1, F32, [(40, 1000)])
    fastgd.set_backend(backend)
    results = []
    for offset in (0, 1, 5, 15):
        own = np.empty(40_016, F32)[offset : offset + 40_000].reshape(40, 1000)
        grad = np.empty(40_016, F32)[15 - offset :][:40_000].reshape(40, 1000)
        own[...], grad[...] = p, g
        fastgd.Adam(own, clip_ratio=0.01).step(grad)
        results.append(own)
    assert all(same_bits(results[0], other) for other in results[1:])


# --------------------------------------------------------------------------------------- its order


def step(p, g, scale=1.0, **options):
    """What is subtracted from a parameter."""
    p = np.array(p, F64)
    before = p.copy()
    record = fastgd.SGD(p, lr=1.0, **options).step(np.array(g, F64), grad_scale=scale)
    return before - p, record


def test_a_norm_at_its_limit_is_not_clipped():
    for ratio, g in ((1.0, 2.0), (0.5, 1.0), (1e-3, 2e-3)):
        assert step([2.0, 0.0], [0.0, g], clip_ratio=ratio)[0].tolist() == [0.0, g]
    found, _ = step([2.0, 0.0], [0.0, np.nextafter(2.0, 3.0)], clip_ratio=1.0)
    assert found.tolist() == [0.0, 2.0]
    # 25·(1/3) is rounded to what it is limited to, which by 25 is less than 1/3.
    limit = 25 * (1 / 3)
    found, _ = step([1.0, 0.0], [7.0, 24.0], 3.0, clip_ratio=limit)
    assert found.tolist() == [7 * (1 / 3), 24 * (1 / 3)] != [7 * (limit / 25), 24 * (limit / 25)]


def test_parameters_count_as_no_less_than_a_thousandth():
    for p, limit in ((0.0, 1e-3), (0.999e-3, 1e-3), (1e-3, 1e-3), (1.001e-3, 1.001e-3)):
        found, _ = step([p], [0.5], clip_ratio=0.5)
        assert found[0] == pytest.approx(0.5 * limit, rel=1e-12)


@pytest.mark.parametrize("scale", [1.0, 4.0, -2.0])
@pytest.mark.parametrize("maximize", [False, True])
def test_gradients_are_scaled_before(maximize, scale):
    p, g = np.eye(2), np.array([[3.0, 4.0], [0.3, 0.4]])
    sign = -1.0 if maximize else 1.0
    found, _ = step(p, g * scale, scale, clip_ratio=1.0, maximize=maximize)
    assert np.allclose(found, sign * np.array([[0.6, 0.8], [0.3, 0.4]]), rtol=1e-14)


def test_the_norm_of_all_is_clipped_before():
    p, g = np.array([[0.5, 0.0], [9.0, 0.0]]), np.array([[0.0, 30.0], [0.0, 40.0]])
    found, record = step(p, g, clip_norm=5.0, clip_ratio=0.5)
    assert record.grad_norm == 50
    assert record.clip_factor == 0.1  # of the norm of all
    assert np.allclose(found, [[0.0, 0.25], [0.0, 4.0]], rtol=1e-14)


def test_values_are_clipped_after():
    found, _ = step([1.0, 1.0], [30.0, 40.0], clip_ratio=1.0, clip_value=1.0)
    assert found[0] == pytest.approx(0.6 * np.sqrt(2), rel=1e-12)
    assert found[1] == 1.0  # of 0.8·√2


def test_decay_comes_after():
    found, _ = step([2.0, 0.0], [0.0, 8.0], clip_ratio=0.5, weight_decay=0.1)
    assert np.allclose(found, [0.2, 1.0], rtol=1e-14)


def test_gradients_are_only_read():
    g = np.full((2, 3), 5.0)
    g.flags.writeable = False
    fastgd.Adam(np.zeros((2, 3)), clip_ratio=0.1).step(g)
    assert (g == 5).all()


def test_what_is_not_clipped_stays_to_the_bit():
    a, b = draw(0, F32), draw(0, F32)
    grads = draw(1, F32)
    record = fastgd.Adam(a, clip_ratio=1e30).step(grads, grad_scale=3.0)
    fastgd.Adam(b).step(grads, grad_scale=3.0)
    assert all(map(same_bits, a, b))
    assert record.clip_factor is None
    assert record.grad_norm is None


def test_groups_and_tensors_without():
    a, b, c = np.ones(1), np.ones(1), np.ones(1)
    opt = fastgd.SGD([{"params": [a, c], "clip_ratio": 0.5}, {"params": b}], lr=1.0)
    assert opt.step([[np.array([3.0]), None], np.array([4.0])]).grad_norm is None
    assert (a[0], b[0], c[0]) == (0.5, -3.0, 1.0)
    opt.param_groups[0]["clip_ratio"] = None
    opt.param_groups[1]["clip_ratio"] = lambda t: 0.25 / t  # at the second step, 0.25
    opt.step([[np.array([3.0]), np.array([1.0])], np.array([4.0])])
    assert (a[0], b[0], c[0]) == (-2.5, -3.75, 0.0)


def test_norms_are_of_the_gradients_that_there_are():
    """And not of what a parameter's gradient was a step before."""
    a, b = np.ones((2, 2)), np.ones(3)
    opt = fastgd.SGD([a, b], lr=1.0, clip_ratio=0.5, clip_norm=1e9)
    assert opt.step([np.ones((2, 2)), np.ones(3)]).grad_norm == pytest.approx(np.sqrt(7))
    assert opt.step([None, np.ones(3)]).grad_norm == pytest.approx(np.sqrt(3))
    assert opt.step([np.ones((2, 2)), None]).grad_norm == 2
    opt.param_groups[0]["clip_ratio"] = None
    assert opt.step([np.ones((2, 2)), None]).grad_norm == 2


def test_room_for_rows_is_made_after_that_for_whole_arrays():
    """By steps that clip the norm of all, then units, then the norm again."""
    fastgd.set_num_threads(2)
    results = []
    for backend in ("numpy", fastgd.available_backends()[0]):
        fastgd.set_backend(backend)
        params = draw(0, F32)
        opt = fastgd.AdamW(params, clip_norm=1.0, clip_ratio=lambda t: 0.01 if t % 2 else None)
        results.append([repr(opt.step(draw(k + 1, F32))) for k in range(4)])
        results[-1] += [bits(p).tobytes() for p in params]
    assert results[0] == results[1]


# --------------------------------------------------------------------------------- extreme numbers


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
def test_norms_neither_overflow_nor_underflow(backend):
    fastgd.set_backend(backend)
    for dtype, sizes in ((F64, (1e-140, 1e-3, 1e150, 1e200, 1.7e300)), (F32, (1e-40, 1.0, 3e37))):
        for size in sizes:
            p = np.array([[0, 3 * size], [1, 1]]).astype(dtype)
            g = np.array([[4 * size, 3 * size], [0.5, 0.5]]).astype(dtype)
            fastgd.SGD(p, lr=1.0, clip_ratio=1.0).step(g)
            most = max(3 * size, 1e-3)
            factor = min(most / (5 * size), 1.0)
            expected = np.array([[-4 * size * factor, 3 * size * (1 - factor)], [0.5, 0.5]])
            assert np.allclose(p, expected, rtol=1e-6 if dtype == F32 else 1e-12), size
    # Rows of huge numbers beside each other and others, over several blocks.
    p, g = np.ones((4, 40_000)), np.full((4, 40_000), 1e-3)
    p[1:3], g[1:3] = 1e200, 1e203
    fastgd.SGD(p, lr=1.0, clip_ratio=0.5, clip_norm=1e300).step(g)
    assert np.allclose(p[1:3], 0.5e200, rtol=1e-12)
    assert (p[[0, 3]] == 1 - 1e-3).all()


def test_what_is_not_finite_spreads_in_its_unit():
    for bad in (np.nan, np.inf, -np.inf):
        p, g = np.ones((3, 2)), np.full((3, 2), 0.5)
        g[1, 0] = bad
        fastgd.SGD(p, lr=1.0, clip_ratio=10.0).step(g)
        assert np.isnan(p[1, 0])
        assert np.isnan(p[1, 1]) == np.isnan(bad)  # of ∞/∞ and the rest 0
        assert (p[[0, 2]] == 0.5).all()
    for bad, limited in ((np.nan, True), (np.inf, False)):  # in the parameter
        p = np.ones((2, 2))
        p[0, 0] = bad
        fastgd.SGD(p, lr=1.0, clip_ratio=1.0).step(np.full((2, 2), 0.5))
        assert np.isnan(p[0, 1]) == limited
        assert (p[1] == 0.5).all()


def test_a_norm_of_all_that_is_nan_spreads_to_all():
    p, g = np.ones((2, 2)), np.full((2, 2), 0.5)
    g[0, 0] = np.nan
    q = np.ones(2)
    fastgd.SGD([p, q], lr=1.0, clip_norm=1.0, clip_ratio=0.01).step([g, np.ones(2)])
    assert np.isnan(p).all()
    assert np.isnan(q).all()


def test_skipped_and_refused_steps_change_nothing():
    for kind in ("skip", "raise"):
        p = np.ones((3, 2), F32)
        opt = fastgd.Adam({"W": p}, clip_ratio=0.1, nonfinite=kind)
        g = np.ones((3, 2), F32)
        g[2, 1] = np.nan
        if kind == "skip":
            record = opt.step({"W": g})
            assert record.skipped
            assert np.isnan(record.grad_norm)
        else:
            with pytest.raises(FloatingPointError, match=r'grads\["W"\]: .* found nan at \(2, 1\)'):
                opt.step({"W": g})
        assert (p == 1).all()
        assert opt.state["W"]["step"] == 0
        record = opt.step({"W": np.ones((3, 2), F32)})
        assert record.grad_norm == pytest.approx(np.sqrt(6))


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
def test_a_norm_that_float32_cannot_clip_is_refused(backend):
    fastgd.set_backend(backend)
    w = np.zeros((3, 2), F32)
    opt = fastgd.SGD({"W": w}, clip_ratio=1e-5)
    g = np.ones((3, 2), F32)
    g[1] = 3e38
    with pytest.raises(
        ValueError,
        match=r'grads\["W"\]: a norm of 4\.\d+e\+38 in unit 1 can\'t be clipped to 1e-08 in float32',
    ):
        opt.step({"W": g})
    assert not w.any()
    assert opt.state["W"]["step"] == 0
    g[1] = np.inf  # which is no number to be clipped
    opt.step({"W": g})
    assert np.isnan(w[1]).all()
    with pytest.raises(
        ValueError, match="a norm of 1e\\+50 in unit 0 can't be clipped to 0.001 in"
    ):
        fastgd.SGD(np.zeros(1, F32), clip_ratio=1.0).step(np.full(1, 1e50))
    w[...] = 1
    fastgd.SGD(w, clip_ratio=lambda t: 0.0).step(np.ones_like(w))
    assert (w == 1).all()
    p = np.zeros(1)  # in float64 it can
    fastgd.SGD(p, lr=1.0, clip_ratio=1.0).step(np.full(1, 1e50))
    assert p == -1e-3


# ------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(("value", "error"), [(0.0, ValueError), (-1.0, ValueError),
                                              (np.inf, ValueError), (np.nan, ValueError),
                                              ("0.1", TypeError), (True, TypeError)])  # fmt: skip
def test_values_that_are_refused(value, error):
    with pytest.raises(error, match=r"^clip_ratio: expected "):
        fastgd.SGD(np.zeros(2), clip_ratio=value)
    opt = fastgd.SGD(np.zeros(2), clip_ratio=0.5)
    with pytest.raises(error, match=r"^clip_ratio: expected "):
        opt.param_groups[0]["clip_ratio"] = value
    opt.param_groups[0]["clip_ratio"] = lambda t: value
    if value == 0:  # where a schedule may end
        return
    with pytest.raises(error, match=r"^clip_ratio: expected .*from its schedule at step 0"):
        opt.step(np.ones(2))


# ------------------------------------------------------------------------------------ round trips


@pytest.mark.parametrize("way", ["state_dict", "file", "pickle", "deepcopy"])
def test_copies_go_on_alike(way, tmp_path):
    params = draw(0, F32, [(30, 40), (7,)])
    opt = fastgd.AdamW(params, lr=0.1, clip_ratio=0.05)
    opt.step(draw(1, F32, [(30, 40), (7,)]))
    if way in ("state_dict", "file"):
        other = fastgd.AdamW([p.copy() for p in params], lr=0.1)
        if way == "file":
            fastgd.save(tmp_path / "saved", opt)
            fastgd.load(tmp_path / "saved", other)
        else:
            other.load_state_dict(opt.state_dict())
    else:
        other = copy.deepcopy(opt) if way == "deepcopy" else pickle.loads(pickle.dumps(opt))
    assert other.param_groups[0]["clip_ratio"] == 0.05
    for k in range(2):
        opt.step(draw(k + 2, F32, [(30, 40), (7,)]))
        other.step(draw(k + 2, F32, [(30, 40), (7,)]))
    assert all(map(same_bits, params, other.param_groups[0]["params"]))


def test_state_dicts_without_it_leave_it():
    opt = fastgd.SGD(np.zeros(3), clip_ratio=0.5)
    saved = opt.state_dict()
    del saved["param_groups"][0]["clip_ratio"]
    opt.load_state_dict(saved)
    assert opt.param_groups[0]["clip_ratio"] == 0.5


def test_averages_copies_and_zeroing():
    p, g = draw(0, F32, [(20, 300)])[0], draw(1, F32, [(20, 300)])[0]
    expected, served = p - clipped(g, p, 0.01).astype(F32), np.zeros_like(p)
    opt = fastgd.SGD(p, lr=1.0, clip_ratio=0.01, average=0.9, copy_to=served, zero_grads=True)
    opt.step(g)
    assert np.allclose(p, expected, rtol=1e-5, atol=1e-7)
    assert same_bits(served, p)
    assert not g.any()
    with opt.average.swapped(), pytest.raises(RuntimeError):
        opt.step(np.ones_like(g))


@pytest.mark.parametrize("backend", COMPILED)
def test_rows_of_many_tiles_have_their_own_factors(backend):
    """Each tile in the loop that does all itself is of one row, also those after the first."""
    rng = np.random.default_rng(5)
    size = np.geomspace(1e-3, 1e3, 7, dtype=np.float32)[:, None]
    grads = rng.standard_normal((7, 1024), np.float32) * size
    found = []
    for name in ("numpy", backend):
        fastgd.set_backend(name)
        p = np.linspace(1, 2, 7 * 1024, dtype=np.float32).reshape(7, 1024)
        opt = fastgd.SGD(p, lr=0.1, momentum=0.9, clip_ratio=0.01)
        opt.step(grads)
        found.append((p, opt.state[0]["momentum_buffer"]))
    for ours, reference in zip(found[1], found[0], strict=True):
        assert same_bits(ours, reference)
    norms = np.linalg.norm(found[0][1].astype(float), axis=1)
    assert len(np.unique(norms.round(6))) == 7
