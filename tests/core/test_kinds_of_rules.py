"""Rules of every kind, with all that a step does around them: the same bits on every backend.

A kind is how many sweeps a rule takes, and what is kept or worked out for each of its tensors.
"""

from __future__ import annotations

from functools import cache, partial

import ml_dtypes
import numpy as np
import pytest
from support.helpers import COMPILED, remembered, same_bits
from support.sampling import kinds_of_rules, sampled

import fastgd
from fastgd.core.domains import positive
from fastgd.kernels.reference import BLOCK, RULES
from fastgd.optimizers import OPTIMIZERS

F32, F64, F16, BF16 = np.float32, np.float64, np.float16, ml_dtypes.bfloat16
# Nothing, single numbers, around tiles and blocks, and matrices.
SHAPES = [(0, 3), (), (1,), (17,), (255,), (257,), (33, 40), (40, 5), (BLOCK + 5,), (2, BLOCK)]
AROUND = {
    "plain": {},
    "norm": {"clip_norm": 0.5},
    "norm by tensor": {"clip_norm": 0.5, "clip_by": "tensor", "maximize": True},
    "value": {"clip_value": 0.1, "weight_decay": 0.1},
    "ratio": {"clip_ratio": 0.02, "clip_value": 0.1},
    "means": {"centralize": True, "clip_norm": 0.5},
    "in_out": {"centralize": True, "clip_ratio": 0.02, "layout": "in_out"},
    "average": {"average": 0.9},
    "copies": {"copy_to": True, "zero_grads": True},
    "skip": {"nonfinite": "skip", "average": 0.9},
    "all": {"clip_norm": 0.3, "clip_value": 0.02, "average": 0.9, "copy_to": True,
            "zero_grads": True, "maximize": True, "nonfinite": "skip", "weight_decay": 0.1},
}  # fmt: skip
STORED = {
    "float32": (F32, F32, {}),
    "float64": (F64, F64, {}),
    "states in bfloat16": (F32, F32, {"state_dtype": "bfloat16"}),
    "states in float16": (F32, BF16, {"state_dtype": "float16"}),
    "states in 8 bits": (F32, F32, {"state_dtype": "8bit", "min_8bit_size": 0}),
    "states in 8 bits of float64": (F64, F32, {"state_dtype": "8bit", "min_8bit_size": 0}),
    "states in float32": (F64, F64, {"state_dtype": "float32"}),
    "master": (BF16, BF16, {"master": True}),
    "split": (BF16, BF16, {"master": "split"}),
    "stochastic": (BF16, BF16, {"rounding": "stochastic", "state_dtype": "bfloat16", "seed": 7}),
    "stochastic in 8 bits": (F16, F16, {"rounding": "stochastic", "state_dtype": "8bit",
                                        "min_8bit_size": 0}),
}  # fmt: skip


@cache
def normal(seed):
    """Normal numbers for each shape and 1003 more; drawing them takes longer than compiled steps."""
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape)) for shape in (*SHAPES, 1003)]


def drawn(seed, dtype, order="C"):
    """An array of each shape, in an order of memory, and one that no cache line starts with."""
    *found, more = [a.astype(dtype) for a in normal(seed)]
    return [*(np.asarray(a, order=order) for a in found), more[3:]]


def bits(arrays):
    """Arrays as bits; NaNs are all one."""
    found = []
    for a in arrays:
        own = np.array(a)
        if own.dtype.kind in "fV":  # the latter is bfloat16
            own[np.isnan(own)] = np.nan
        found.append((own.dtype.str, own.shape, own.tobytes()))
    return found


def everything(opt):
    """All that an optimizer holds, as bits."""
    arrays = [*opt.stepper.params().values()]
    arrays += [a for entry in opt.state.values() for a in entry.values()]
    arrays += list(opt.average.averages.values()) if opt.average else []
    return bits([*arrays, *(opt.stepper.copies or ())])


def trained(backend, threads, name, options, around, stored, order="C"):
    """What is there after steps of all sorts, and what the steps said."""
    fastgd.set_backend(backend)
    fastgd.set_num_threads(threads)
    p_dtype, g_dtype, keeping = STORED[stored]
    around = dict(AROUND[around])
    params = drawn(0, p_dtype, order)
    if around.pop("copy_to", False) and keeping.get("master") is not True:
        around["copy_to"] = [np.zeros_like(p, F32, order="K") for p in params]
    opt = OPTIMIZERS[name](params, **{"lr": 0.01, **options, **around, **keeping})
    said, seen = [], []
    for t in range(4):
        grads = drawn(t + 1, g_dtype, order)
        if t == 1:
            grads[3] = grads[8] = None
        if t == 2:
            opt.accumulate(grads, 3.0)
            opt.accumulate(drawn(t + 5, g_dtype, order))
            said.append(repr(opt.step(grad_scale=2.0)))
        else:
            said.append(repr(opt.step(grads, grad_scale=0.5 if t else 1.0)))
        seen += bits(g for g in grads if g is not None)
    bad = drawn(9, g_dtype, order)
    bad[5][...] = np.nan
    bad[6][0, 0] = np.inf
    said.append(repr(opt.step(bad)))
    return everything(opt) + seen, said


@sampled({
    "name, options": kinds_of_rules(), "around": AROUND, "stored": STORED, "backend": COMPILED,
    "order": ["C", "F"], "threads": [1, 2, 3],
})  # fmt: skip
def test_same_bits_as_the_numpy_backend(name, options, around, stored, backend, order, threads):
    around = "all" if around == "ratio" and order == "F" else around  # rows are of C order
    expected, said = trained("numpy", 1, name, options, around, stored, order)
    found, records = trained(backend, threads, name, options, around, stored, order)
    assert records == said
    assert found == expected


REFUSED = {
    "shape": ({}, lambda g: g[:-1], ValueError),
    "dtype": ({}, lambda g: g.astype(np.int32), TypeError),
    "itself": ({}, None, ValueError),
    "strides": ({}, lambda g: np.repeat(g, 2)[::2], ValueError),
    "not finite": ({"nonfinite": "raise"}, lambda g: g * np.inf, FloatingPointError),
    "a norm out of range": ({"clip_norm": 1e-10}, lambda g: g * F32(0) + F32(3e38), ValueError),
    "a unit's norm": ({"clip_ratio": 1e-38}, lambda g: g * F32(0) + F32(3e38), ValueError),
}


@sampled({
    "name, options": kinds_of_rules(), "case": REFUSED, "backend": [*COMPILED, "numpy"],
})  # fmt: skip
def test_a_refused_step_changes_nothing(name, options, case, backend):
    """The last of many gradients is wrong: no state, number or parameter before it has changed."""
    fastgd.set_backend(backend)
    around, bend, error = REFUSED[case]
    params = drawn(0, F32)
    copies = [p.copy() for p in params]
    opt = OPTIMIZERS[name](
        params, **{"lr": 0.01, **options, **around}, average=0.9, copy_to=copies
    )  # fmt: skip
    good = drawn(1, F32)
    if "clip_ratio" in around:
        opt.param_groups[0]["clip_ratio"] = None
    if "clip_norm" in around:
        opt.param_groups[0]["clip_norm"] = None
    opt.step(good)
    opt.param_groups[0].update(around if "nonfinite" not in around else {})
    before = everything(opt), repr(opt.state_dict())
    bad = [*good[:-1], params[-1] if bend is None else bend(good[-1])]
    with pytest.raises(error, match="grads"):
        opt.step(bad)
    assert (everything(opt), repr(opt.state_dict())) == before
    opt.param_groups[0].update(clip_norm=None, clip_ratio=None)
    opt.step(good)
    assert everything(opt) != before[0]


@sampled({"name, options": kinds_of_rules(), "backend": [*COMPILED, "numpy"]})
def test_a_skipped_step_changes_nothing(name, options, backend):
    fastgd.set_backend(backend)
    opt = OPTIMIZERS[name](drawn(0, F32), **options, nonfinite="skip", average=0.9)
    opt.step(drawn(1, F32))
    before, bad = everything(opt), drawn(2, F32)
    bad[-1][-1] = np.nan
    assert opt.step(bad).skipped
    assert everything(opt) == before


def stepped_at_the_edge(backend, name, options, dtype):
    """What is there after steps of zeros, NaN, infinities, squares that overflow, by what is given."""
    fastgd.set_backend(backend)
    largest = float(np.finfo(dtype).max)
    values = [0.0, -0.0, 1.0, np.nan, np.inf, 1e-30, 1e19, largest, largest**0.5 * 4, 5e-324]
    keys = OPTIMIZERS[name](np.zeros(1)).defaults
    results = {}
    for extra in ({}, {"eps": 0.0}, {"lr": 0.0}, {"weight_decay": 0.0}, {"weight_decay": 1.0}):
        extra = {k: (v, v) if isinstance(keys.get(k), tuple) else v for k, v in extra.items()}
        given = {**options, **{key: value for key, value in extra.items() if key in keys}}
        if given.get("eps") == 0 and OPTIMIZERS[name].hypers["eps"].domain is positive:
            continue
        with np.errstate(all="ignore"):
            params = [np.array([[v, v], [1.0, v]], dtype) for v in values for _ in values]
            grads = [np.array([[v, 1.0], [v, v]], dtype) for _ in values for v in values]
        opt = OPTIMIZERS[name](params, **given)
        for _ in range(3):
            opt.step(grads)
        results[repr(given)] = everything(opt)
    return results


at_the_edge_by_numpy = remembered(partial(stepped_at_the_edge, "numpy"))


@sampled({"name, options": kinds_of_rules(), "dtype": [F32, F64], "backend": COMPILED})
def test_values_at_the_edge(name, options, dtype, backend):
    """And ε and learning rates of 0."""
    found = stepped_at_the_edge(backend, name, options, dtype)
    for given, expected in at_the_edge_by_numpy(name, options, dtype).items():
        assert found[given] == expected, given


@sampled({
    "name, options": kinds_of_rules(), "threads": [1, 2, 3], "dtype": [F32, F64],
    "backend": COMPILED,
})  # fmt: skip
def test_more_than_is_swept_over_at_a_time(name, options, threads, dtype, backend):
    """Tensors are swept over twice some at a time, as many as stay in cache."""
    sizes = [0, 300_000, 5, 0, 290_000, 600_001, 1, 0, 33_000, 70_000, 0]
    results = []
    for use, n in (("numpy", 1), (backend, threads)):
        fastgd.set_backend(use)
        fastgd.set_num_threads(n)
        params = [np.random.default_rng(k).random(k_n, dtype) for k, k_n in enumerate(sizes)]
        opt = OPTIMIZERS[name](params, **options, average=0.9)
        opt.step([p * p - dtype(0.3) if k != 4 else None for k, p in enumerate(params)])
        opt.step([p - dtype(0.3) if k != 5 else None for k, p in enumerate(params)])
        results.append(everything(opt))
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("name", "shape"), [("NAdam", (3,)), ("Adafactor", (3, 2)), ("Adam", (3,))]
)
def test_a_state_dict_may_hold_views_of_the_states(name, shape):
    """Two entries that change places are read before either is written."""
    params = [np.ones(shape), np.ones(shape)]
    opt = OPTIMIZERS[name](params, lr=0.01)
    opt.step([np.full(shape, 0.5), np.full(shape, 0.25)])
    opt.step([np.full(shape, 0.5), None])
    first, second = opt.state.values()
    right = [{k: np.array(a) for k, a in entry.items()} for entry in (second, first)]
    saved = opt.state_dict()
    for place, entry in enumerate((second, first)):
        saved["state"][place] = {k: a[...] if k != "step" else int(a) for k, a in entry.items()}
    opt.load_state_dict(saved)
    for entry, expected in zip(opt.state.values(), right, strict=True):
        for key, a in entry.items():
            assert same_bits(np.asarray(a, float), np.asarray(expected[key], float)), key


@pytest.mark.parametrize("name", ["NAdam", "LAMB", "LARS", "Prodigy"])
def test_a_learning_rate_beyond_float32_is_refused(name):
    w = np.ones(4, np.float32)
    with pytest.raises(ValueError, match="lr: expected 0 or a number that float32 can hold"):
        OPTIMIZERS[name](w, lr=1e60)
    opt = OPTIMIZERS[name](w, lr=lambda step: 1e60)
    with pytest.raises(ValueError, match="out of float32's range"):
        opt.step(np.ones(4, np.float32))
    assert (w == 1).all()


def test_adafactors_elements_without_gradient_stand_still():
    for shape in ((4,), (2, 2)):
        w = np.ones(shape, np.float32)
        g = np.zeros(shape, np.float32)
        g.flat[0] = 1
        OPTIMIZERS["Adafactor"](w, eps=(1e-30, 1e-3)).step(g)
        assert (w.ravel()[1:] == 1).all()
        assert w.ravel()[0] < 1


def test_an_empty_tensor_may_come_first():
    params = [np.ones((0, 3)), np.ones((3, 4))]
    OPTIMIZERS["Muon"](params).step([np.ones((0, 3)), np.ones((3, 4))])
    assert (params[1] != 1).all()


@pytest.mark.parametrize("name", sorted(name for name, rule in RULES.items() if rule.before))
def test_first_sweeps_say_whether_they_read_the_parameter(name):
    """What they don't read is not fetched."""
    sweep, found = RULES[name].before, []
    for p in (np.full(3, 1.0), np.full(3, 2.0)):
        states = [np.full(3, 0.5) for _ in sweep.states]
        terms = sweep.update(p, np.ones(3), *states, **dict.fromkeys(sweep.coefficients, 0.5))
        found.append([*states, *terms])
    assert sweep.parameter != all(map(np.array_equal, *found))
