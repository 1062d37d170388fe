"""Units, which lead to one output each: where they lie by the layout, their norms and their means.

Adaptive clipping and gradient centralization, in the same bits everywhere, and by their formulas.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from support.helpers import COMPILED, same_bits
from support.sampling import sampled

import fastgd
from fastgd.kernels.spec.units import LAYOUTS, scale_units, units_of

F32, F64, BF16 = np.float32, np.float64, ml_dtypes.bfloat16

# No units, empty ones, one, ones of one element; around tiles, blocks and slices, in either layout.
SHAPES = [
    (), (7,), (0,), (0, 5), (4, 0), (1, 1), (300, 1), (1, 300), (7, 3), (257, 3), (6, 4, 3, 3),
    (3, 2, 6, 5), (130, 520), (64, 65), (65, 64), (2000, 2), (66, 2049), (2, 40_001), (40_001, 2),
]  # fmt: skip


def draw(seed, dtype=F64, shapes=SHAPES, order="C"):
    """Arrays around some level, whose sizes differ by powers of ten along all axes."""
    rng = np.random.default_rng(seed)
    made = []
    for shape in shapes:
        x = np.asarray(rng.standard_normal(shape)) + rng.standard_normal()
        for axis in range(len(shape)):
            along = [n if k == axis else 1 for k, n in enumerate(shape)]
            x = x * 10.0 ** rng.uniform(-1, 1, along)
        made.append(np.array(x, dtype, order=order))
    return made


def others(x, layout):
    """The axes that a unit runs over."""
    if x.ndim < 2:
        return None
    return tuple(range(1, x.ndim)) if layout == "out_in" else tuple(range(x.ndim - 1))


def norms(x, layout):
    return np.sqrt(np.sum(x * x, axis=others(x, layout), keepdims=True))


def clipped(g, p, ratio, layout):
    """Brock et al., 2021, equation 3."""
    if not g.size:
        return g
    most = ratio * np.maximum(norms(p, layout), 1e-3)
    return g * np.minimum(1.0, most / np.maximum(norms(g, layout), 1e-300))


def centralized(g, layout):
    """Yong et al., 2020, equation 1."""
    if g.ndim < 2 or not g.size:
        return g
    return g - g.mean(axis=others(g, layout), keepdims=True)


def bits(a):
    return np.ascontiguousarray(a).reshape(-1).view(np.uint8)


# ------------------------------------------------------------------------------ what is a unit


def test_what_is_a_unit():
    for shape in [*SHAPES, (1, 3, 4), (6, 1, 1), (2, 3, 4), (1, 1, 5)]:
        for order in "CF":
            a = np.arange(1.0, 1.0 + math.prod(shape)).reshape(shape).copy(order)
            for layout in LAYOUTS:
                units = units_of(a.shape, a.strides, a.itemsize, layout)
                n = a.size // units.length
                assert n * units.length == a.size
                outputs = np.zeros_like(a)
                if a.ndim > 1 and a.size:
                    axis = 0 if layout == "out_in" else -1
                    np.moveaxis(outputs, axis, -1)[...] = np.arange(a.shape[axis])
                    assert n == a.shape[axis]
                numbers = np.arange(float(n))
                found = scale_units(np.ones(a.size), numbers, units)
                assert np.array_equal(found, outputs.ravel("K")), (shape, order, layout)


def test_axes_of_outputs_in_the_middle():
    a = np.zeros((2, 3, 4, 5)).transpose(0, 3, 1, 2)  # as torch's channels_last
    assert units_of(a.shape, a.strides, 8) == (60, 1)
    assert units_of(a.shape, a.strides, 8, "in_out") is None
    assert units_of(a.transpose(1, 0, 2, 3).shape, a.transpose(1, 0, 2, 3).strides, 8) == (24, 5)
    assert units_of(a.transpose(2, 0, 1, 3).shape, a.transpose(2, 0, 1, 3).strides, 8) is None


# ---------------------------------------------------------------------------------- the formulas


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", [*COMPILED[-1:], "numpy"])
def test_by_the_formulas(backend, layout, order):
    fastgd.set_backend(backend)
    params, grads = draw(0, order=order), draw(1, order=order)
    before = [p.copy() for p in params]
    fastgd.SGD(params, lr=1.0, clip_ratio=0.3, layout=layout, centralize=True).step(grads)
    kinds = set()
    for p, old, g in zip(params, before, grads, strict=True):
        what = centralized(g, layout)
        expected = clipped(what, old, 0.3, layout)
        kinds |= set((norms(expected, layout) < norms(what, layout)).ravel().tolist())
        scale = np.abs(old).max(initial=0) + np.abs(g).max(initial=0)
        assert np.allclose(old - p, expected, rtol=1e-11, atol=1e-14 * scale), g.shape
    assert kinds == {True, False}


def test_transposed_weights_are_stepped_alike():
    """In the order of memory that the transpose has anyway, to the bit."""
    shapes = [s[::-1] for s in SHAPES if len(s) == 2]
    a, b = draw(0, F32, shapes), [p.T.copy("F") for p in draw(0, F32, shapes)]
    options = {"clip_ratio": 0.1, "centralize": True, "clip_norm": 3.0}
    first = fastgd.AdamW(a, layout="in_out", **options)
    second = fastgd.AdamW(b, layout="out_in", **options)
    for k in range(2):
        grads = draw(k + 1, F32, shapes)
        assert repr(first.step(grads)) == repr(second.step([g.T for g in grads]))
    assert all(map(same_bits, a, [p.T for p in b]))


# ---------------------------------------------------------------------------------- the same bits


def run(backend, threads, kind, p_dtype, g_dtype, order="C", **options):
    """Two steps with everything around them; returns all arrays and records."""
    fastgd.set_backend(backend)
    fastgd.set_num_threads(threads)
    params = draw(0, p_dtype, order=order)
    opt = kind(params, lr=0.01, **options)
    said = []
    for k in range(2):
        grads = draw(k + 1, g_dtype, order=order)
        grads[5 * k] = None
        if k:
            opt.accumulate(grads, 3.0)
        said.append(repr(opt.step(None if k else grads, grad_scale=0.5)))
    arrays = [*params, *(a for s in opt.state.values() for a in s.values())]
    arrays += list(opt.average.averages.values()) if opt.average else []
    return [bits(a) for a in arrays], said


CASES = [
    (fastgd.AdamW, F32, F32, {}),
    (fastgd.AdamW, F64, F32, {"clip_norm": 0.5, "clip_value": 1e-3, "average": 0.9}),
    (fastgd.SGD, F32, BF16, {"nonfinite": "skip", "weight_decay": 0.1, "zero_grads": True}),
    (fastgd.Adam, BF16, F32, {"master": "split", "clip_norm": 2.0, "clip_by": "tensor"}),
    (fastgd.Adam, BF16, BF16, {"rounding": "stochastic", "state_dtype": "8bit"}),
    (fastgd.Adafactor, F32, F32, {"maximize": True}),
    (fastgd.LAMB, F32, F64, {"nonfinite": "raise"}),
]


ABOUT_UNITS = {
    "norms": {"clip_ratio": 0.02},
    "means": {"centralize": True},
    "both": {"clip_ratio": 0.02, "centralize": True},
}


@sampled({
    "case": range(len(CASES)), "about": ABOUT_UNITS, "layout": LAYOUTS, "order": "CF",
    "backend": COMPILED,
})  # fmt: skip
def test_same_bits_on_every_backend(case, about, layout, order, backend):
    kind, p_dtype, g_dtype, options = CASES[case]
    options = {**options, **ABOUT_UNITS[about], "layout": layout, "order": order}
    expected, said = run("numpy", 1, kind, p_dtype, g_dtype, **options)
    found, records = run(backend, 1 + case % 2, kind, p_dtype, g_dtype, **options)
    assert records == said
    assert all(map(np.array_equal, found, expected))


@pytest.mark.parametrize("backend", COMPILED)
def test_a_tile_of_interleaved_units_has_several_factors(backend):
    """Where all of a tile is of one unit, a fused loop takes that unit's."""
    found = []
    for use in ("numpy", backend):
        fastgd.set_backend(use)
        params = draw(0, F32, [(2000, 2)])
        opt = fastgd.AdamW(params, lr=0.01, clip_ratio=0.02, layout="in_out")
        for k in (1, 2):
            opt.step(draw(k, F32, [(2000, 2)]))
        found.append(bits(params[0]))
    assert np.array_equal(*found)


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
def test_norms_are_of_both_halves_of_split_masters(backend):
    """Each of two units is clipped as a tensor that has no other."""
    fastgd.set_backend(backend)
    found = []
    for shapes in ([(2, 20_000)], [(1, 20_000)] * 2):
        numbers = iter(draw(0, F32, [(2, 20_000)] * 3))
        p, *grads = ([*np.array_split(next(numbers), len(shapes))] for _ in range(3))
        p = [a.astype(BF16) for a in p]
        opt = fastgd.SGD(p, lr=1.0, clip_ratio=0.1, master="split")
        for g in grads:
            opt.step(g)
        found.append(np.concatenate([bits(a) for a in p]))
        low = [a for entry in opt.state.values() for a in entry.values() if np.size(a) > 1]
        found[-1] = np.concatenate([found[-1], *map(bits, low)])
    assert len(found[0]) == 2 * 20_000 * 4
    assert np.array_equal(*found)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_threads_do_not_change_a_bit(layout):
    backend = fastgd.get_backend()
    options = {"clip_ratio": 0.02, "centralize": True, "clip_norm": 2.0, "layout": layout}
    expected, said = run(backend, 1, fastgd.Adam, F32, F32, **options)
    for threads in (2, 3, 8):
        found, records = run(backend, threads, fastgd.Adam, F32, F32, **options)
        assert records == said
        assert all(map(np.array_equal, found, expected))


# --------------------------------------------------------------------------------------- its order


def step(p, g, scale=1.0, **options):
    """What is subtracted from a parameter."""
    p = np.array(p, F64)
    before = p.copy()
    record = fastgd.SGD(p, lr=1.0, **options).step(np.array(g, F64), grad_scale=scale)
    return before - p, record


def test_columns_are_units_of_in_out():
    p, g = [[3.0, 0.0], [4.0, 1.0]], [[30.0, 0.25], [40.0, 0.25]]
    found, _ = step(p, g, clip_ratio=0.5, layout="in_out")
    assert np.allclose(found, [[1.5, 0.25], [2.0, 0.25]], rtol=1e-14)


def test_norms_are_of_what_is_centralized():
    g = [[1001.0, 999.0], [1001.0, 999.0]]
    found, record = step(np.zeros((2, 2)), g, centralize=True, clip_norm=1.0)
    assert record.grad_norm == 2
    assert record.clip_factor == 0.5
    assert found.tolist() == [[0.5, -0.5], [0.5, -0.5]]
    found, record = step(np.ones((2, 2)), g, 2.0, centralize=True, clip_value=0.25)
    assert found.tolist() == [[0.25, -0.25], [0.25, -0.25]]
    assert record.grad_norm is None


def test_decay_is_not_centralized():
    found, _ = step([[2.0, 4.0]], [[3.0, 5.0]], centralize=True, weight_decay=0.5)
    assert found.tolist() == [[0.0, 3.0]]


def test_vectors_and_numbers_are_not_centralized():
    for shape in ((), (3,)):
        found, _ = step(np.zeros(shape), np.full(shape, 2.0), centralize=True)
        assert (found == 2).all()
    found, _ = step(np.zeros((3, 1)), np.full((3, 1), 2.0), centralize=True)
    assert (found == 0).all()  # a mean of one number is that number


def test_gradients_are_only_read_and_groups_may_clip_alone():
    g = [np.full((2, 3), 5.0), np.arange(6.0).reshape(2, 3)]
    for a in g:
        a.flags.writeable = False
    params = [np.zeros((2, 3)), np.ones((2, 3))]
    groups = [{"params": [params[0]]}, {"params": [params[1]], "clip_ratio": 0.5}]
    opt = fastgd.SGD(groups, lr=1.0, centralize=True)
    assert opt.step([[g[0]], [g[1]]]).grad_norm is None
    assert not params[0].any()
    expected = 1 - clipped(centralized(g[1], "out_in"), np.ones((2, 3)), 0.5, "out_in")
    assert np.allclose(params[1], expected)
    assert opt.options["centralize"] is True
    assert opt.options["layout"] == "out_in"


def test_tensors_whose_units_are_not_asked_for_have_room():
    """Their norm takes more chunks than their interleaved units would."""
    p, g = np.zeros((1500, 1500), F32), np.ones((1500, 1500), F32)
    q = np.ones((2, 2), F32)
    groups = [{"params": p, "clip_norm": 1.0}, {"params": q, "clip_ratio": 0.5, "clip_norm": 1.0}]
    opt = fastgd.SGD(groups, lr=1.0, layout="in_out", clip_by="tensor")
    record = opt.step([g, np.ones((2, 2), F32)])
    assert record.grad_norm == pytest.approx(math.sqrt(1500**2 + 4))
    assert np.allclose(p, -1 / 1500)
    assert np.allclose(q, 0.5)


# --------------------------------------------------------------------------------- extreme numbers


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_not_finite_spreads_in_its_unit(layout):
    for bad in (np.nan, np.inf):
        p, g = np.ones((5, 4)), np.full((5, 4), 0.5)
        g[1, 2] = bad
        fastgd.SGD(p, lr=1.0, centralize=True, clip_ratio=10.0, layout=layout).step(g)
        unit = (1, ...) if layout == "out_in" else (..., 2)
        assert np.isnan(p[unit]).all()
        p[unit] = 1
        assert (p == 1).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", [*COMPILED[-1:], "numpy"])
def test_means_do_not_overflow(backend, layout):
    fastgd.set_backend(backend)
    p = np.zeros((300, 70))
    g = np.full_like(p, 1.5e308)
    g[::2, ::2] = 1e308
    fastgd.SGD(p, lr=1.0, centralize=True, layout=layout, nonfinite="raise").step(g)
    expected = -centralized(g / 1e308, layout)
    assert np.allclose(p / 1e308, expected, rtol=1e-10, atol=1e-12)
    # A norm of huge numbers, of interleaved units too, beside others that are clipped as well.
    for shape, column in (((300, 70), 3), ((300, 2), 0)):
        p, g = np.ones(shape), np.ones(shape)
        p[:, column], g[:, column] = 1e200, 1e203
        fastgd.SGD(p, lr=1.0, clip_ratio=0.5, layout="in_out", clip_norm=1e300).step(g)
        assert np.allclose(p[:, column], 0.5e200, rtol=1e-12)
        assert np.allclose(np.delete(p, column, axis=1), 0.5, rtol=1e-12)
    # Sums that overflow on the way to 0, and a number that is lost in them.
    p, g = np.zeros((2, 1025)), np.full((2, 1025), 1e308)
    g[:, 0], g[:, 513:] = 0.5, -1e308
    fastgd.SGD(p, lr=1.0, centralize=True).step(g)
    assert (p == -g).all()
    # Differences may.
    p, g = np.zeros((2, 2)), np.array([[1.7e308, -1.7e308], [1.7e308, 1.7e308]])
    opt = fastgd.SGD(p, centralize=True, layout="in_out", nonfinite="raise")
    g[:, 1] = 1.7e308, -1.7e308
    opt.step(g)
    p = np.zeros((1, 3))
    opt = fastgd.SGD(p, centralize=True, nonfinite="raise")
    with pytest.raises(FloatingPointError, match=r"grads: expected numbers whose differences from"):
        opt.step(np.array([[1.7e308, -1.7e308, -1.7e308]]))
    assert not p.any()


def test_a_norm_that_float32_cannot_clip_is_refused():
    w, g = np.zeros((2, 3), F32), np.ones((2, 3), F32)
    g[:, 1] = 3e38
    opt = fastgd.SGD({"W": w}, clip_ratio=1e-5, layout="in_out")
    with pytest.raises(ValueError, match=r"a norm of 4\.\d+e\+38 in unit 1 can't be clipped"):
        opt.step({"W": g})
    assert not w.any()


@pytest.mark.parametrize(("key", "value", "error"), [
    ("layout", "rows", ValueError), ("layout", None, TypeError), ("centralize", 1, TypeError),
    ("centralize", None, TypeError)])  # fmt: skip
def test_values_that_are_refused(key, value, error):
    with pytest.raises(error, match=f"^{key}: expected "):
        fastgd.SGD(np.zeros(2), **{key: value})


# ------------------------------------------------------------------------------- other libraries


def test_as_optax_does():
    optax, jax = (
        pytest.importorskip("optax", reason="optax is not installed"),
        pytest.importorskip("jax"),
    )
    shapes = [(7,), (7, 3), (3, 3, 5, 6), (65, 4)]
    with jax.enable_x64(True):
        for ours, theirs in (
            ({"clip_ratio": 0.3, "layout": "in_out"}, optax.adaptive_grad_clip(0.3)),
            ({"centralize": True}, optax.centralize()),
        ):
            params, grads = draw(0, shapes=shapes), draw(1, shapes=shapes)
            updates, _ = theirs.update(grads, theirs.init(params), params)
            before = [p.copy() for p in params]
            fastgd.SGD(params, lr=1.0, **ours).step(grads)
            for p, old, u, g in zip(params, before, updates, grads, strict=True):
                atol = 1e-13 * (np.abs(old).max() + np.abs(g).max())
                assert np.allclose(old - p, u, rtol=1e-11, atol=atol)
                assert not np.allclose(old - p, g, rtol=1e-2) or p.ndim < 2


def test_in_torch_as_on_arrays():
    torch, adapter = pytest.importorskip("torch"), pytest.importorskip("fastgd.torch")
    for layout in LAYOUTS:
        options = {"layout": layout, "centralize": True, "clip_ratio": 0.1, "clip_norm": 1.0}
        shapes = [(7,), (9, 30), (6, 5, 3, 3)]
        arrays = draw(0, F32, shapes)
        params = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in arrays]
        # A transpose has its units interleaved where those of the array are contiguous.
        params[1] = torch.nn.Parameter(params[1].detach().t().contiguous().t())
        arrays[1] = np.asfortranarray(arrays[1])
        opt, bare = (
            adapter.AdamW(params, lr=0.1, **options),
            fastgd.AdamW(arrays, lr=0.1, **options),
        )
        for k in range(2):
            grads = draw(k + 1, F32, shapes)
            for p, g in zip(params, grads, strict=True):
                p.grad = torch.empty_like(p).copy_(torch.from_numpy(g))
            grads[1] = np.asfortranarray(grads[1])
            opt.step()
            assert opt.record.grad_norm == bare.step(grads).grad_norm
        assert all(
            np.array_equal(p.detach().numpy(), a) for p, a in zip(params, arrays, strict=True)
        )
