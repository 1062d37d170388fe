"""What a step does besides its update: clipping, skipping, averaging, copying, zeroing, summing up.

Each against its definition in NumPy or against the separate calls that it stands for; and every
combination against the NumPy backend, bit for bit.
"""

from __future__ import annotations

import copy
import itertools
import pickle

import ml_dtypes
import numpy as np
import pytest
from support.helpers import COMPILED, SIZES, draw, same_bits
from support.sampling import optimizers, sampled

import fastgd
from fastgd.averages import EMA
from fastgd.functional import global_norm
from fastgd.optimizers import OPTIMIZERS

F32, F64 = np.float32, np.float64


def run(backend, threads, dtype, sizes, steps=3, **options):
    """Some steps with everything around them; returns all arrays and records."""
    fastgd.set_backend(backend)
    fastgd.set_num_threads(threads)
    params = draw(0, sizes, dtype)
    copies = [np.zeros(n, F32) for n in sizes] if options.pop("copies", False) else None
    opt = fastgd.AdamW(params, lr=0.01, copy_to=copies, **options)
    records, grads = [], []
    for k in range(steps):
        grads = draw(k + 1, sizes, dtype)
        if k == 1:
            grads[0] = None
        records.append(repr(opt.step(grads)))
    arrays = [*params, *(a for s in opt.state.values() for a in s.values())]
    arrays += list(opt.average.averages.values()) if opt.average else []
    return [*arrays, *(copies or []), *(g for g in grads if g is not None)], records


OPTIONS = [
    {"clip_norm": 0.5},
    {"clip_norm": 0.5, "clip_by": "group"},
    {"clip_norm": 0.5, "clip_by": "tensor"},
    {"clip_norm": 1e9},
    {"clip_value": 0.1},
    {"average": 0.9},
    {"copies": True},
    {"zero_grads": True},
    {"clip_norm": 0.3, "clip_value": 0.02, "average": 0.9, "copies": True, "zero_grads": True,
     "maximize": True, "nonfinite": "skip", "eps_root": 1e-6},
]  # fmt: skip


@sampled({
    "backend": COMPILED, "options": [pytest.param(o, id="-".join(o)) for o in OPTIONS], "dtype": [F32, F64],
})  # fmt: skip
def test_same_bits_on_every_backend(backend, options, dtype):
    sizes = [*SIZES, 3 * 32768 + 5]
    expected, said = run("numpy", 1, dtype, sizes, **options)
    for threads in (1, 2):
        found, records = run(backend, threads, dtype, sizes, **options)
        assert records == said
        assert all(map(same_bits, found, expected))


@pytest.mark.parametrize("threads", [2, 3, 4, 8])
def test_threads_do_not_change_a_bit(threads):
    options, sizes = OPTIONS[-1], [5, 100_000, 0, 64, 270_001, 1]
    expected, said = run(fastgd.get_backend(), 1, F32, sizes, **options)
    found, records = run(fastgd.get_backend(), threads, F32, sizes, **options)
    assert records == said
    assert all(map(same_bits, found, expected))


# ----------------------------------------------------------------------------------------- clipping


def test_clips_the_norm_of_all():
    w, b = np.zeros(3), np.zeros(4)
    record = fastgd.SGD([w, b], lr=1.0, clip_norm=1.0).step([np.full(3, 3.0), np.full(4, 3.0)])
    norm = 3 * np.sqrt(7)
    assert record.grad_norm == pytest.approx(norm, rel=1e-15)
    assert record.clip_factor == pytest.approx(1 / norm, rel=1e-15)
    assert np.allclose(w, -3 / norm, rtol=1e-14)
    assert np.allclose(b, -3 / norm, rtol=1e-14)


def test_clips_by_group_and_by_tensor():
    for by, factors in (("group", (0.2, 0.2, 1.0)), ("tensor", (1 / 3, 0.25, 1.0))):
        a, b, c = np.zeros(1), np.zeros(1), np.zeros(1)
        groups = [{"params": [a, b]}, {"params": [c]}]
        opt = fastgd.SGD(groups, lr=1.0, clip_norm=1.0, clip_by=by)
        record = opt.step([[np.array([3.0]), np.array([4.0])], [np.array([0.5])]])
        assert record.grad_norm == pytest.approx(np.sqrt(25.25))
        assert record.clip_factor == pytest.approx(min(factors))
        assert np.allclose([a[0], b[0], c[0]], -np.array([3, 4, 0.5]) * factors)


def test_a_group_may_have_a_limit_of_its_own_or_none():
    a, b = np.zeros(1), np.zeros(1)
    opt = fastgd.SGD([{"params": a, "clip_norm": 2.5}, {"params": b}], lr=1.0)
    opt.step([np.array([3.0]), np.array([4.0])])
    assert (a[0], b[0]) == (-1.5, -4.0)
    opt.param_groups[1]["clip_norm"] = lambda step: 10.0 / step  # at the second step, 10
    opt.param_groups[0]["clip_norm"] = None
    record = opt.step([np.array([30.0]), np.array([40.0])])
    assert (a[0], b[0]) == (-31.5, -12.0)
    assert record.clip_factor == pytest.approx(0.2)


def test_what_has_no_limit_is_not_touched_by_a_norm_that_is_nan():
    a, b = np.zeros(1), np.zeros(1)
    opt = fastgd.SGD([{"params": a, "clip_norm": 1.0}, {"params": b}], lr=1.0)
    opt.step([np.array([np.nan]), np.array([4.0])])
    assert np.isnan(a[0])
    assert b[0] == -4.0


def test_the_clip_factor_is_the_smallest_in_whatever_order():
    for norms in ((2.0, 1.5), (1.5, 2.0)):
        w = [np.zeros(1), np.zeros(1)]
        record = fastgd.SGD(w, lr=1.0, clip_norm=1.0, clip_by="tensor").step(
            [np.array([norm]) for norm in norms]
        )
        assert record.clip_factor == 0.5


def test_a_norm_at_its_limit_is_not_clipped():
    """Where dividing by the norm would give another factor, by rounding, than scaling does."""
    (g,) = draw(0, [100], F64)
    norm = global_norm(g)
    scale = next(s for s in np.arange(3.0, 100.0) if norm * (1 / s) / norm != 1 / s)
    w, plain = np.zeros(100), np.zeros(100)
    fastgd.SGD(w, lr=1.0, clip_norm=norm * (1 / scale)).step(g, grad_scale=scale)
    fastgd.SGD(plain, lr=1.0).step(g, grad_scale=scale)
    assert same_bits(w, plain)


@pytest.mark.parametrize("scale", [0.5, 2.0, -1.0, -0.5])
def test_gradients_are_divided_by_any_scale(scale):
    w = np.zeros(3, F32)
    fastgd.SGD(w, lr=1.0).step(np.ones(3, F32), grad_scale=scale)
    assert (w == -1 / scale).all()


def test_values_are_clipped_after_the_norm():
    w = np.zeros(3)
    fastgd.SGD(w, lr=1.0, clip_norm=5.0, clip_value=3.5).step(np.array([6.0, -8.0, 0.0]))
    assert w.tolist() == [-3.0, 3.5, 0.0]


def test_the_norm_is_that_of_unscaled_gradients():
    for scale in (1.0, 1024.0, -2.0):
        w = np.zeros(2, F32)
        opt = fastgd.SGD(w, lr=1.0, clip_norm=1.0)
        record = opt.step(np.array([3, 4], F32) * F32(scale), grad_scale=abs(scale))
        assert record.grad_norm == pytest.approx(5.0)
        assert record.clip_factor == pytest.approx(0.2)
        assert np.allclose(w, np.sign(scale) * np.array([-0.6, -0.8]), rtol=1e-6)


def test_small_norms_stay_to_the_bit():
    grads = draw(1, [1000])
    a, b = draw(0, [1000])[0], draw(0, [1000])[0]
    record = fastgd.Adam(a, clip_norm=1e6).step(grads[0])
    fastgd.Adam(b).step(grads[0])
    assert record.clip_factor == 1.0
    assert same_bits(a, b)


def test_what_is_not_finite_propagates_by_default():
    w = np.zeros(3)
    record = fastgd.SGD(w, lr=1.0, clip_norm=1.0).step(np.array([1.0, np.nan, 2.0]))
    assert np.isnan(w).all()
    assert np.isnan(record.grad_norm)
    assert np.isnan(record.clip_factor)
    w = np.zeros(3)
    fastgd.SGD(w, lr=1.0, clip_norm=1.0).step(np.array([1.0, -np.inf, 2.0]))
    assert np.array_equal(w, [0.0, np.nan, 0.0], equal_nan=True)  # as ∞/∞, and the rest 0


def test_a_norm_that_float32_cannot_clip_is_refused():
    w = np.zeros(2, F32)
    opt = fastgd.SGD({"W": w}, clip_norm=1e-10)
    with pytest.raises(ValueError, match=r'grads\["W"\]: a norm of 4\.\d+e\+38 can\'t be clipped'):
        opt.step({"W": np.full(2, 3e38, F32)})
    assert not w.any()
    assert opt.state["W"]["step"] == 0


def test_clipping_never_writes_to_gradients():
    g = np.array([3.0, 4.0])
    g.flags.writeable = False
    w = np.zeros(2)
    opt = fastgd.Adam(w, clip_norm=1.0, clip_value=0.1, weight_decay=0.1, nonfinite="skip")
    opt.step(g)
    assert g.tolist() == [3, 4]


# --------------------------------------------------------------------------------- not finite


@sampled({"name": optimizers(), "dtype": [F32, F64], "bad": [np.nan, np.inf, -np.inf]})
def test_a_skipped_step_leaves_everything(name, dtype, bad):
    p, q = draw(0, [300, 40], dtype), draw(0, [300, 40], dtype)
    a = OPTIMIZERS[name](p, nonfinite="skip", average=0.9, copy_to=[x.astype(F32) for x in p])
    b = OPTIMIZERS[name](q, average=0.9)
    for k in range(4):
        grads = draw(k + 1, [300, 40], dtype)
        assert not a.step(grads).skipped
        b.step(grads)
        grads[1][k] = bad
        before = a.state_dict()
        record = a.step(grads)
        assert record.skipped
        assert not np.isfinite(record.grad_norm)
        assert record.step == k + 1
        assert a.skipped == k + 1
        assert repr(a.state_dict()["state"]) == repr(before["state"])
    for x, y in zip(p, q, strict=True):
        assert same_bits(x, y)
    for x, y in zip(a.average.averages.values(), b.average.averages.values(), strict=True):
        assert same_bits(x, y)
    assert a.average.step == 4
    assert a.state_dict()["fastgd"]["skipped"] == 4


def test_raise_names_the_parameter_and_changes_nothing():
    w, b = np.ones((2, 3), F32), np.ones(2, F32)
    opt = fastgd.Adam({"W": w, "b": b}, nonfinite="raise", average=0.5)
    g = np.ones((2, 3), F32)
    opt.step({"W": g, "b": None})
    before = repr(opt.state_dict()), w.copy()
    g[1, 2], g[0, 1] = np.inf, np.nan
    with pytest.raises(
        FloatingPointError,
        match=r'^grads\["W"\]: expected finite gradients, found nan at \(0, 1\), and 1 more$',
    ):
        opt.step({"W": g, "b": np.ones(2, F32)})
    with pytest.raises(FloatingPointError, match=r'^grads\["b"\]: .*found inf at 1$'):
        opt.step({"W": None, "b": np.array([1, np.inf], F32)})
    assert repr(opt.state_dict()) == before[0]
    assert same_bits(w, before[1])


def test_huge_finite_float64_gradients_are_not_skipped():
    w = np.zeros(3)
    record = fastgd.SGD(w, lr=1.0, nonfinite="skip", clip_norm=1.0).step(np.full(3, 1e200))
    assert not record.skipped
    assert np.allclose(w, -1 / np.sqrt(3), rtol=1e-12)


# ------------------------------------------------------------------------ averages and copies


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("options", [{}, {"bias_correction": False}, {"warmup": True, "bias_correction": False}])  # fmt: skip
def test_the_average_is_that_of_separate_calls(options, dtype):
    p, q = draw(0, SIZES, dtype), draw(0, SIZES, dtype)
    a = fastgd.Adam(p, lr=0.1, average=EMA(p, 0.9, **options))
    b, ema = fastgd.Adam(q, lr=0.1), EMA(q, 0.9, **options)
    for k in range(3):
        grads = draw(k + 1, SIZES, dtype)
        grads[k] = None  # weights that stand still are averaged nonetheless
        a.step(grads)
        b.step(grads)
        ema.update()
    assert a.average.step == ema.step == 3
    for x, y in zip(a.average.averages.values(), ema.averages.values(), strict=True):
        assert same_bits(x, y)


def test_a_bound_average_is_the_steps_alone():
    w = np.zeros(2)
    ema = EMA(w, 0.5)
    opt = fastgd.SGD(w, lr=1.0, average=ema)
    assert opt.average is ema
    opt.step(np.ones(2))
    opt.step(np.ones(2))
    with pytest.raises(RuntimeError, match="^update: the optimizer's step updates"):
        ema.update()
    with opt.average.swapped():
        assert np.allclose(w, (-1 * 0.25 - 2 * 0.5) / 0.75)
        for call in (lambda: opt.step(np.ones(2)), lambda: opt.add_param_group({"params": w})):
            with pytest.raises(RuntimeError, match="averages are swapped in for the weights"):
                call()
    assert w.tolist() == [-2, -2]
    with pytest.raises(ValueError, match="average: the EMA is bound to another optimizer"):
        fastgd.SGD(w, average=ema)
    with pytest.raises(ValueError, match="average: expected an EMA of the optimizer's parameters"):
        fastgd.SGD(w, average=EMA(np.zeros(2)))


def test_a_refused_optimizer_leaves_the_average_free():
    w = np.zeros(2)
    ema = EMA(w)
    with pytest.raises(TypeError, match="grads"):
        fastgd.SGD(w, average=ema, grads="no array")
    ema.update()
    fastgd.SGD(w, average=ema)


def to_bfloat16(x):
    """By integer arithmetic on Python's side: nearest, ties to even."""
    bits = int(np.float32(x).view(np.uint32))
    if np.isnan(x):
        return bits >> 16 | 0x40
    low, high = bits & 0xFFFF, bits >> 16
    return high + (low > 0x8000 or (low == 0x8000 and high & 1))


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
def test_copies_hold_the_nearest_value(backend):
    fastgd.set_backend(backend)
    words = np.array(
        [h << 16 | low for h in range(0, 0x10000, 0x55) for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)],
        np.uint32,
    )  # fmt: skip
    values = words.view(F32)
    same, half = np.zeros(values.size, F32), np.zeros(values.size, np.uint16)
    own = values.copy()
    opt = fastgd.SGD([own, values], lr=0.0, copy_to=[half, same])
    opt.step([np.zeros(values.size, F32), None])
    with np.errstate(all="ignore"):
        assert half.tolist() == [to_bfloat16(x) for x in own]
    assert same_bits(same, values)


def test_copies_are_current_from_the_start_and_need_no_gradient():
    w, b = np.full(3, 1 / 3), np.full(2, 1 / 3)
    copies = {"w": np.zeros(3, F32), "b": np.zeros(2, F32)}
    opt = fastgd.SGD({"w": w, "b": b}, lr=1.0, copy_to=copies)
    assert (copies["w"] == F32(1 / 3)).all()
    b[:] = 0.1
    opt.step({"w": np.ones(3), "b": None})
    assert same_bits(copies["w"], w.astype(F32))
    assert same_bits(copies["b"], b.astype(F32))


def test_copies_that_do_not_fit():
    w = np.zeros((2, 3))
    for bad, error, words in (
        (
            np.zeros((2, 3)),
            TypeError,
            "copy_to: expected dtype float32, bfloat16 or float16, found float64",
        ),
        (np.zeros(6, F32), ValueError, r"copy_to: expected shape \(2, 3\)"),
        (np.zeros((3, 2), F32).T, ValueError, "copy_to: expected contiguous memory in C order"),
        ([np.zeros((2, 3), F32)], ValueError, "copy_to: expected the same lists and dicts"),
        (np.broadcast_to(F32(0), (2, 3)), ValueError, "copy_to: expected"),
    ):
        with pytest.raises(error, match=words):
            fastgd.SGD(w, copy_to=bad)
    v = np.zeros(4, F32)
    with pytest.raises(
        ValueError, match="copy_to: is the same memory as params|params: is the same"
    ):
        fastgd.SGD(v, copy_to=v)
    out = np.zeros(4, F32)
    opt = fastgd.SGD(v, copy_to=out)
    with pytest.raises(ValueError, match="grads: shares memory with copy_to"):
        opt.step(out)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="copy_to: was made read-only"):
        opt.step(np.ones(4, F32))
    assert not v.any()


# --------------------------------------------------------------------------------- zeroing


def test_gradients_are_zeroed_in_the_same_call_also_if_skipped():
    w = np.zeros(3)
    opt = fastgd.SGD(w, lr=1.0, zero_grads=True, nonfinite="skip")
    g = np.array([1.0, 2.0, 3.0])
    opt.step(g)
    assert w.tolist() == [-1, -2, -3]
    assert not g.any()
    g[:] = np.nan
    assert opt.step(g).skipped
    assert not g.any()


def test_gradients_that_cannot_be_zeroed_are_refused():
    a, b = np.zeros(2), np.zeros(2)
    opt = fastgd.SGD([a, b], zero_grads=True)
    g, h = np.ones(2), np.ones(2)
    with pytest.raises(ValueError, match=r"grads\[1\]: is the same memory as grads\[0\]"):
        opt.step([g, g])
    opt.step([g, h])
    both = np.ones(3)
    with pytest.raises(ValueError, match=r"grads\[\d\]: overlaps grads\[\d\]"):
        opt.step([both[:2], both[1:]])
    opt.step([g, None])
    with pytest.raises(ValueError, match="is the same memory"):
        opt.step([g, g])
    g.flags.writeable = False
    with pytest.raises(ValueError, match=r"grads\[0\]: expected a writeable array, which zero_gr"):
        opt.step([g, h])


# ----------------------------------------------------------------------------- accumulation


@sampled({"name": optimizers(), "dtype": [F32, F64]})
def test_micro_batches_are_the_batch(name, dtype):
    """Gradients of integers, whose means are exact: the same bits as the mean's."""
    rng = np.random.default_rng(0)
    p, q = draw(0, [300, 7], dtype), draw(0, [300, 7], dtype)
    a, b = OPTIMIZERS[name](p, lr=0.1, clip_norm=2.0), OPTIMIZERS[name](q, lr=0.1, clip_norm=2.0)
    for _ in range(3):
        parts = [[rng.integers(-8, 8, n).astype(dtype) for n in (300, 7)] for _ in range(4)]
        for grads in parts:
            a.accumulate(grads)
        record = a.step()
        other = b.step([np.mean(gs, axis=0, dtype=dtype) for gs in zip(*parts, strict=True)])
        assert record.grad_norm == pytest.approx(other.grad_norm, rel=1e-7)
    for x, y in zip(p, q, strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5 if dtype == F32 else 1e-12)


def test_weights_and_missing_gradients():
    a, b, c = np.zeros(1), np.zeros(1), np.zeros(1)
    opt = fastgd.SGD([a, b, c], lr=1.0)
    opt.accumulate([np.array([1.0]), np.array([2.0]), None], weight=3)
    opt.accumulate([np.array([5.0]), None, None], weight=1)
    record = opt.step(grad_scale=2.0)
    assert (a[0], b[0], c[0]) == (-(3 + 5) / 8, -6 / 8, 0)
    assert record.step == 1
    assert [int(s["step"]) for s in opt.state.values()] == [1, 1, 0]
    with pytest.raises(TypeError, match="needs gradients"):
        opt.step()


def test_accumulated_gradients_wait_for_a_step():
    g = np.ones(2)
    w = np.zeros(2)
    opt = fastgd.SGD(w, lr=1.0, grads=g, nonfinite="skip")
    opt.accumulate()
    opt.accumulate()
    with pytest.raises(RuntimeError, match="^step: gradients were accumulated"):
        opt.step(g)
    with pytest.raises(RuntimeError, match="^add_param_group: gradients were accumulated"):
        opt.add_param_group({"params": np.zeros(1)}, grads=np.zeros(1))
    with pytest.raises(ValueError, match="weight: expected a number of at least 0"):
        opt.accumulate(weight=-1)
    with pytest.raises(ValueError, match="^grads: expected shape"):
        opt.accumulate(np.ones(3))
    opt.step()
    assert w.tolist() == [-1, -1]
    assert g.tolist() == [1, 1]
    opt.step()  # of the bound gradients again
    assert w.tolist() == [-2, -2]
    opt.accumulate(np.array([np.nan, 1.0]))
    assert opt.step().skipped
    opt.accumulate()
    opt.step()
    assert w.tolist() == [-3, -3]


# --------------------------------------------------------------------- options, state, copies


def test_options_that_are_none():
    w = np.zeros(1)
    for given, error, words in (
        ({"clip_by": "layer"}, ValueError, "clip_by: expected one of all, group, tensor"),
        ({"clip_by": None}, TypeError, "clip_by: expected a str"),
        ({"nonfinite": "ignore"}, ValueError, "nonfinite: expected one of propagate, skip, raise"),
        ({"zero_grads": 1}, TypeError, "zero_grads: expected True or False"),
        ({"average": 1.0}, ValueError, "average: expected a number from 0 to below 1"),
        ({"average": "0.9"}, TypeError, "average: expected a number"),
        (
            {"clip_nrom": 1.0},
            TypeError,
            "SGD: got an unexpected keyword argument 'clip_nrom'; its hyper-parameters are lr, ",
        ),
    ):
        with pytest.raises(error, match=words):
            fastgd.SGD(w, **given)
    opt = fastgd.SGD(w)
    assert dict(opt.options) == {
        "clip_by": "all",
        "layout": "out_in",
        "centralize": False,
        "nonfinite": "propagate",
        "zero_grads": False,
        "rows": "exact",
    }
    with pytest.raises(TypeError):
        opt.options["nonfinite"] = "skip"


def everything(w):
    return fastgd.Adam(
        w, lr=0.1, clip_norm=1.0, nonfinite="skip", average=0.9, copy_to=w.astype(F32)
    )


@pytest.mark.parametrize("way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_an_optimizer_go_on_alike(way):
    w = draw(0, [50], F64)[0]
    opt = everything(w)
    opt.step(draw(1, [50], F64)[0])
    opt.accumulate(draw(2, [50], F64)[0])
    twin = way(opt)
    (v,) = twin.param_groups[0]["params"]
    assert v is not w
    for _ in range(2):
        for o in (opt, twin):
            o.accumulate(draw(3, [50], F64)[0])
            o.step()
    assert same_bits(v, w)
    assert same_bits(twin.average.averages[0], opt.average.averages[0])
    assert same_bits(twin.stepper.copies[0], opt.stepper.copies[0])
    with twin.average.swapped():
        assert same_bits(v, twin.average.averages[0])


def test_state_dicts_hold_averages_and_what_was_accumulated():
    w, v = draw(0, [50], F64)[0], draw(0, [50], F64)[0]
    a, b = everything(w), everything(v)
    a.step(draw(1, [50], F64)[0])
    a.step(np.full(50, np.nan))
    a.accumulate(draw(2, [50], F64)[0], weight=2.5)
    saved = a.state_dict()
    v[...] = w
    b.accumulate(draw(7, [50], F64)[0])  # forgotten
    b.load_state_dict(saved)
    assert b.skipped == 1
    for o in (a, b):
        o.accumulate(draw(3, [50], F64)[0])
        o.step()
    assert same_bits(w, v)
    assert repr(a.state_dict()) == repr(b.state_dict())

    before = repr(b.state_dict())
    broken = a.state_dict()
    for key, value in (
        ("skipped", -1),
        ("skipped", "1"),
        ("seed", -1),
        ("seed", 0.5),
        ("average", {}),
        ("average", {"step": 1, "averages": {0: np.zeros(3)}}),
        ("accumulated", {"weight": 0.0, "grads": {}}),
        ("accumulated", {"weight": 1.0, "grads": {"W": np.zeros(50)}}),
        ("accumulated", {"weight": 1.0, "grads": {0: np.zeros(50, F32)}}),
        ("accumulated", None),
        ("unknown", 1),
    ):
        wrong = {**broken, "fastgd": {**broken["fastgd"], key: value}}
        with pytest.raises((TypeError, ValueError)):
            b.load_state_dict(wrong)
        assert repr(b.state_dict()) == before
    with pytest.raises(ValueError, match="this optimizer has none"):
        fastgd.Adam(v).load_state_dict(saved)
    without = fastgd.Adam(v).state_dict()
    with pytest.raises(ValueError, match="has none, which this optimizer has"):
        b.load_state_dict(without)
    del without["fastgd"]  # torch's
    b.load_state_dict(without)
    assert b.average.step == 2


def test_groups_added_later_join_averages_and_copies():
    w, v = np.zeros(2), np.full(3, 7.0)
    out = [np.zeros(2, F32), np.zeros(3, F32)]
    opt = fastgd.SGD(w, lr=1.0, average=0.5, copy_to=out[0])
    ema = opt.average
    opt.step(np.ones(2))
    with pytest.raises(TypeError, match="copy_to: expected for all groups or for none"):
        opt.add_param_group({"params": v})
    with pytest.raises(ValueError, match="copy_to"):
        opt.add_param_group({"params": v}, copy_to=np.zeros(2, F32))
    assert len(ema.averages) == 1
    opt.add_param_group({"params": v}, copy_to=out[1])
    assert opt.average is ema
    assert (out[1] == 7).all()
    opt.step([np.ones(2), None])
    assert [a.tolist() for a in ema.averages.values()] == [[-5 / 3] * 2, [7, 7, 7]]
    for a, b in itertools.pairwise(opt.state.values()):
        assert a is not b


def test_minimize():
    w = np.array([3.0, -2.0])
    opt = fastgd.SGD(w, lr=0.1)
    seen = []
    losses = opt.minimize(
        lambda: (float(w @ w), 2 * w),
        50,
        lambda k, loss, record: seen.append((k, loss, record.step)) or loss < 1e-3,
    )
    assert losses[0] == 13
    assert losses[-1] < 1e-3 <= losses[-2]
    assert seen[-1] == (len(losses) - 1, losses[-1], len(losses))


def test_scale_and_weight_that_only_together_divide_by_nothing():
    w = np.zeros(2)
    opt = fastgd.SGD(w, lr=1.0)
    opt.accumulate(np.ones(2), weight=1e-200)
    with pytest.raises(ValueError, match="^grad_scale times weight: expected a number to divide"):
        opt.step(grad_scale=1e-200)
    assert not w.any()
    opt.step(grad_scale=1e200)
    assert w.tolist() == [-1e-200] * 2


def test_an_average_is_known_by_the_optimizers_names():
    """Those of groups added later must not meet those of the average's own making."""
    x, y = np.zeros(3), np.ones(3)
    ema = EMA([x, y], 0.5)
    opt = fastgd.SGD({"x": x, "y": y}, lr=1.0, average=ema)
    opt.add_param_group({"params": np.full(3, 2.0)})
    assert list(ema.averages) == list(opt.state) == ["x", "y", 1]
    opt.step([{"x": np.ones(3), "y": np.ones(3)}, np.ones(3)])
    assert [a[0] for a in ema.averages.values()] == [-1, 0, 1]


def test_no_copy_while_averages_are_swapped_in():
    """Its weights would stay the averages for ever."""
    opt = fastgd.SGD(np.zeros(2), average=0.5)
    opt.step(np.ones(2))
    with opt.average.swapped():
        for way in (copy.deepcopy, pickle.dumps):
            with pytest.raises(RuntimeError, match="^copy: the averages are swapped in"):
                way(opt)
    copy.deepcopy(opt).step(np.ones(2))


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
def test_an_average_goes_on_without_a_gradient_where_loops_are_fused(backend):
    fastgd.set_backend(backend)
    params = [np.ones(600, ml_dtypes.bfloat16) for _ in range(2)]
    grads = [np.ones_like(p) for p in params]
    opt = fastgd.AdamW(params, lr=0.5, average=0.5, rounding="stochastic", state_dtype="bfloat16")
    opt.step(grads)
    before, kept = opt.average.averages[1].copy(), params[1].copy()
    opt.step([grads[0], None])
    assert same_bits(params[1], kept)
    assert np.array_equal(opt.average.averages[1], (before + kept.astype(F32)) / 2)
