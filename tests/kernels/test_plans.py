"""Plans: what they refuse of arrays and rules, and what they keep apart of tensors unlike each other."""

from __future__ import annotations

import ctypes
import gc
import sys
from itertools import product

import numpy as np
import pytest
from support.helpers import COMPILED, coefficients_of, numbers_of, same_bits, unsanitized

import fastgd
from fastgd.kernels import _engine
from fastgd.kernels.reference import RULES, Stages
from fastgd.kernels.spec.codecs import CODECS
from fastgd.kernels.spec.coded_array import CodedArray
from fastgd.kernels.spec.lines import Axis, axes_of

F32, F64 = np.float32, np.float64


def plan_of(params, states, rules, **options):
    """A plan over parameters in groups of their own."""
    n = len(params)
    labels, steps = [f"[{k}]" for k in range(n)], np.zeros(n, np.int64)
    return _engine.Plan([None] * n, params, labels, list(range(n)), states, rules, steps, **options)


def by(rules):
    """What configures the steps of such a plan."""
    return lambda owner, t, _: (rules[owner], coefficients_of(rules[owner], t), Stages())


# ------------------------------------------------------------------------------ what they refuse


def test_parameters_that_do_not_fit():
    fixed, part = np.zeros(300, F32), np.zeros((5, 6), F32)[:4]
    fixed.flags.writeable = part.flags.writeable = False
    for p, message in (
        (np.zeros((4, 6))[:, ::2], "expected contiguous memory"),
        (np.zeros(25, np.uint8)[1:].view(F64), "expected memory aligned to 8 bytes"),
        (fixed, "expected a writeable array"),
        (part, "expected a writeable array"),
    ):
        with pytest.raises(ValueError, match=rf"^params\[0\]: {message}"):
            plan_of([p], [()], ["sgd"])
    bytes_of_16_bits = CodedArray(np.zeros(3, np.uint8), None, "bfloat16")
    with pytest.raises(TypeError, match=r"^params\[0\]: expected dtype uint16, found uint8"):
        plan_of([bytes_of_16_bits], [()], ["sgd"])


@pytest.mark.parametrize("n", [2, 300])
def test_remainders_that_do_not_fit(n):
    """As many as elements, each of 16 bits."""
    sizes = [0, n - 2, n - 1, n + 1, n + 2, (n, 1), (1, n), ()]
    wrong = [np.zeros(size, np.int16) for size in sizes]
    wrong += [None, np.zeros(n, np.uint8), np.zeros(n, np.int8), np.zeros(n, np.int32)]
    for aux in wrong:
        p = CodedArray(np.zeros(n, np.uint16), aux, "split")
        with pytest.raises(ValueError, match=rf"^params\[0\]: expected a int16 .* array of {n}$"):
            plan_of([p], [()], ["sgd"])


def test_scales_that_do_not_fit():
    """One of 8 bits for each tile, if the last is of one element only."""
    wrong = [np.zeros(size, np.uint8) for size in (0, 1, 3, 257, 513, (2, 1), (1, 2), ())]
    for aux in (*wrong, None, np.zeros(2, np.int16), np.zeros(2, np.int8)):
        p = CodedArray(np.zeros(257, np.uint16), np.zeros(257, np.int16), "split")
        state = CodedArray(np.zeros(257, np.uint8), aux, "e5m2")
        with pytest.raises(
            ValueError, match=r'^state\[0\]\["mom.*: expected a uint8 scale .* of 2$'
        ):
            plan_of([p], [(state,)], ["momentum"])


@pytest.mark.parametrize(
    ("p_dtype", "dtype"), [(F32, F64), (F64, F32), (F32, np.int32), (F64, np.int64)]
)
def test_averages_of_another_dtype(p_dtype, dtype):
    p, average = np.zeros(3, p_dtype), np.zeros(3, dtype)
    with pytest.raises(TypeError, match=rf"^average\[0\]: expected dtype {p.dtype}, found"):
        plan_of([p], [()], ["sgd"], averages=[average], average_steps=np.zeros(1, np.int64))


def test_numbers_that_do_not_fit():
    p, state, fine = np.zeros(1), np.zeros(1), np.zeros(())
    with pytest.raises(TypeError, match=r'^state\[0\]\["mu"\]: expected one float64'):
        plan_of([p], [(state,)], ["asgd"], numbers=[(fine, np.zeros((), F32))])
    with pytest.raises(ValueError, match=r'^state\[0\]\["mu"\]: is the same memory as params\[0\]'):
        plan_of([p], [(state,)], ["asgd"], numbers=[(fine, p.reshape(()))])


def test_numbers_of_rows_that_are_too_many():
    p = np.zeros((4, 6))
    axes = [axes_of(p.shape, p.strides, p.itemsize)]
    with pytest.raises(ValueError, match=r'^state\[0\]\["row_var"\]: expected 4 numbers, found 5'):
        plan_of([p], [(np.zeros(5), np.zeros(6))], ["adafactor"], axes=axes)


@pytest.mark.parametrize(("rule", "count"), [("adam", 1), ("asgd", 1)])
def test_states_or_numbers_that_their_rule_has_more_of(rule, count):
    states = tuple(np.zeros(3) for _ in range(count))
    with pytest.raises(RuntimeError, match=r"^params\[0\]: its states do not fit the rule"):
        plan_of([np.zeros(3)], [states], [rule])


def test_units_that_are_not_known():
    plan = plan_of([np.zeros(3)], [()], ["sgd"], units=[None])
    row = "sgd", (1.0,), Stages(clip_ratio=0.1)
    with pytest.raises(RuntimeError, match=r"^params\[0\]: its units are neither contiguous nor"):
        plan.step([np.ones(3)], lambda *_: row, 1.0)


# ---------------------------------------------------------------------------- what they keep apart


def stored(kind, rng, n=300, change=np.asarray):
    """An array of numbers kept by a codec, rounded stochastically or not."""
    codec, stochastic = kind
    code, aux = CODECS[codec].new(n)
    CODECS[codec].store(code, aux, change(rng.standard_normal(n).astype(F32)), None, 0)
    return CodedArray(code, aux, codec, stochastic)


def bits(a):
    return a.code.view(np.uint8)


WAYS = [("float32", False), ("float64", False)]
WAYS += product(("bfloat16", "float16"), (False, True))


@pytest.mark.parametrize(
    ("rule", "kinds"), [("momentum", ["e5m2"]), ("adagrad", ["ue6m2"]), ("adam", ["e5m2", "ue6m2"])]
)
def test_whatever_way_is_stored_steps_are_those_of_numpy(rule, kinds):
    """Also ways that no fused loop is made for, and those rounded otherwise than its loop rounds."""
    ways = list(product([*WAYS, ("8bit", False), ("8bit", True)], [*WAYS, ("split", False)]))
    found = []
    for backend in ("numpy", fastgd.available_backends()[0]):
        fastgd.set_backend(backend)
        rng = np.random.default_rng(0)
        params, states, grads = [], [], []
        for (codec, stochastic), p in ways:
            own = [of_8_bits if codec == "8bit" else codec for of_8_bits in kinds]
            states.append(tuple(stored((one, stochastic), rng, 600, abs) for one in own))
            params.append(stored(p, rng, 600))
            grads.append(rng.standard_normal(600).astype(F32))
        plan = plan_of(params, states, [rule] * len(ways))
        for _ in range(2):
            plan.step(grads, by([rule] * len(ways)), 1.0)
        found.append([
            [a.tobytes() for own in (p, *s) for a in own[:2] if a is not None]
            for p, s in zip(params, states, strict=True)
        ])  # fmt: skip
    assert [way for way, a, b in zip(ways, *found, strict=True) if a != b] == []


def test_what_is_stored_in_other_ways():
    """Each tensor is stepped as alone, whatever ways to store parameters and states a plan has."""
    ways = list(product([*WAYS, ("e5m2", True)], [*WAYS, ("split", False)]))
    rules, apart = ["momentum"] * len(ways), []
    grads = [np.random.default_rng(7).standard_normal(300).astype(F32) for _ in ways]

    def draw(k):
        rng = np.random.default_rng(k)
        return stored(ways[k][0], rng), stored(ways[k][1], rng)

    states, params = zip(*map(draw, range(len(ways))), strict=True)
    plan_of(list(params), [(s,) for s in states], rules).step(grads, by(rules), 1.0)
    for k, way in enumerate(ways):
        state, p = draw(k)
        plan = plan_of([p], [(state,)], rules[:1])
        plan.first = k
        plan.step(grads[:1], by(rules), 1.0)
        same = [np.array_equal(bits(a), bits(b)) for a, b in ((p, params[k]), (state, states[k]))]
        if not all(same):
            apart.append(way)
    assert not apart


def made(rule, sizes, seed=0, dtype=F64):
    """Parameters of a rule with their states and gradients."""
    rng = np.random.default_rng(seed)
    arrays = [[rng.standard_normal(n).astype(dtype) for n in sizes] for _ in range(2)]
    states = [
        tuple(np.abs(rng.standard_normal(n)).astype(dtype) for _ in RULES[rule].states)
        for n in sizes
    ]
    return (*arrays, states, [numbers_of(rule) for _ in sizes])


@pytest.mark.parametrize("backend", [*COMPILED[-1:], "numpy"])
def test_sums_over_all_tensors_beside_a_tensor_without_any(backend):
    """The last tensor's rule has no such sums: the others step as without it."""
    fastgd.set_backend(backend)
    found = []
    for more in (0, 1):
        params, grads, states, numbers = made("prodigy", [5, 300])
        rules = ["prodigy"] * 2 + ["sgd"] * more
        plan = plan_of(
            [*params, *[np.zeros(3)] * more],
            [*states, *[()] * more],
            rules,
            numbers=[*numbers, *[()] * more],
        )
        for _ in range(2):
            plan.step([*grads, *[np.ones(3)] * more], by(rules), 1.0)
        found.append([*params, *numbers[0], *numbers[1]])
    assert all(map(same_bits, *found))


@pytest.mark.parametrize("backend", [*COMPILED[-1:], "numpy"])
def test_sums_are_only_combined_where_there_are_some(backend):
    fastgd.set_backend(backend)
    asked = []
    for rule in ("asgd", "lars"):
        params, grads, states, numbers = made(rule, [3])
        plan = plan_of(params, states, [rule], numbers=numbers)
        plan.step(grads, by([rule]), 1.0, combine_sums=lambda sums, r=rule: asked.append((r, sums)))
    ((rule, sums),) = asked
    assert rule == "lars"
    assert sums.shape == (1, _engine.SIZES["MAX_SUMS"])
    assert (sums[0, :2] > 0).all()


@pytest.mark.parametrize("backend", [*COMPILED[-1:], "numpy"])
def test_parts_of_parameters_take_the_combined_sums(backend):
    """With the sums over whole parameters, of each term, parts go as they would in these."""
    fastgd.set_backend(backend)
    rules, terms = ["cautious_lamb", "lars", "sgd", "lamb", "cautious_lamb"], [4, 2, 0, 2, 4]
    sizes, seen, found = [300, 5, 3, 7, 9], [], []
    for cut, combined in ((0, True), (0, False), (2, True)):
        params, grads, states = [], [], []
        for k, (rule, n) in enumerate(zip(rules, sizes, strict=True)):
            (p,), (g,), (own,), _ = made(rule, [n], seed=k)
            part = slice(0, n - cut)
            params, grads = [*params, p[part].copy()], [*grads, g[part].copy()]
            states.append(tuple(a[part].copy() for a in own))

        def combine(sums):
            seen.append(sums.copy())
            sums[...] = seen[0]

        plan = plan_of(params, states, rules, sizes=sizes)
        plan.step(grads, by(rules), 1.0, combine_sums=combine if combined else None)
        found.append([p[: n - 2] for p, n in zip(params, sizes, strict=True)])
    assert all(map(same_bits, *found[:2]))
    assert all(map(same_bits, *found[1:]))
    assert [(a.astype(bool).sum(1).tolist()) for a in seen] == [terms] * 2
    assert (seen[0] != seen[1]).sum(1).tolist() == terms


def test_no_step_follows_one_whose_sums_could_not_be_combined():
    def fail(sums):
        raise OSError("no answer")

    params, grads, states, _ = made("lamb", [5])
    plan = plan_of(params, states, ["lamb"])
    with pytest.raises(OSError, match="no answer"):
        plan.step(grads, by(["lamb"]), 1.0, combine_sums=fail)
    assert plan.torn
    assert plan.wrote
    for call in (lambda: plan.step(grads, by(["lamb"]), 1.0), plan.catch_up):
        with pytest.raises(RuntimeError, match="the last one failed between its two sweeps"):
            call()
    plan.torn = False
    plan.step(grads, by(["lamb"]), 1.0, combine_sums=lambda sums: None)
    assert not plan.torn


@pytest.mark.parametrize("backend", [*COMPILED[-1:], "numpy"])
def test_without_units_each_parameter_is_one(backend):
    fastgd.set_backend(backend)
    found = []
    for units in (None, [Axis(5, 1), Axis(1, 1)]):
        params, grads, states, _ = made("sgd", [5, 1])
        plan = plan_of(params, states, ["sgd"] * 2, units=units)
        row = "sgd", (1.0,), Stages(clip_ratio=0.1)
        plan.step(grads, lambda *_, row=row: row, 1.0)
        found.append(params)
        for p, start in zip(params, made("sgd", [5, 1])[0], strict=True):
            moved = np.linalg.norm(p - start)
            assert moved == pytest.approx(0.1 * np.linalg.norm(start))
    assert all(map(same_bits, *found))


def test_parameters_without_units_beside_others_whose_units_are_clipped():
    found = []
    for clipped in (False, True):
        params = [np.zeros(3), np.ones(3)]
        plan = plan_of(params, [()] * 2, ["sgd"] * 2, units=[None, Axis(3, 1)])
        rows = [
            ("sgd", (1.0,), Stages(clip_ratio=0.5 if k and clipped else np.inf)) for k in (0, 1)
        ]
        plan.step([np.ones(3)] * 2, lambda owner, *_, rows=rows: rows[owner], 1.0)
        found.append([p.tolist() for p in params])
    assert found == [[[-1.0] * 3, [0.0] * 3], [[-1.0] * 3, [0.5] * 3]]


@pytest.mark.parametrize("backend", [*COMPILED[-1:], "numpy"])
def test_sums_that_other_processes_add_to(backend):
    """Those of each parameter's gradient, of each group's, and of all."""
    fastgd.set_backend(backend)
    params, asked = [np.zeros(3), np.zeros(40_000)], []
    plan = plan_of(params, [()] * 2, ["sgd"] * 2)
    grads = [np.full(3, 2.0), np.ones(40_000)]
    plan.step(grads, by(["sgd"] * 2), 1.0, combine=lambda sums: asked.append(sums.copy()))
    (sums,) = asked
    assert sums.tolist() == [[n, 0.0] for n in (12, 40_000, 12, 40_000, 40_012)]


def test_decay_that_is_part_of_the_gradients_of_rows_and_columns():
    """As no optimizer's is; of a parameter with remainders beside one without."""
    found = []
    for backend in ("numpy", fastgd.available_backends()[0]):
        fastgd.set_backend(backend)
        rng = np.random.default_rng(0)
        split = [a.reshape(20, 30) for a in stored(("split", False), rng, 600)[:1]]
        split = CodedArray(split[0], np.arange(600, dtype=np.int16), "split")
        params = [rng.standard_normal((20, 30)).astype(F32), split]
        axes = [axes_of((20, 30), (30, 1))] * 2
        states = [(np.zeros((20, 1), F32), np.zeros((1, 30), F32)) for _ in params]
        plan = plan_of(params, states, ["adafactor"] * 2, axes=axes)
        row = "adafactor", coefficients_of("adafactor"), Stages(weight_decay=0.5)
        grads = [rng.standard_normal((20, 30)).astype(F32) for _ in params]
        plan.step(grads, lambda *_, row=row: row, 1.0)
        found.append([params[0], split.code, split.aux, *states[0], *states[1]])
    assert all(a.tobytes() == b.tobytes() for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("others", [(), ("float32",)])
def test_scales_of_tiles_that_are_rounded_to_nearest(others):
    """Chunks are of whole tiles wherever a parameter lies, also with no random words drawn."""
    rule = ("momentum", "adam")[len(others)]
    raw = np.zeros(3000, F32)
    start = -(raw.ctypes.data // 4) % 16 + 1  # an element beyond a line of cache
    found = []
    for backend in ("numpy", fastgd.available_backends()[0]):
        fastgd.set_backend(backend)
        rng = np.random.default_rng(0)
        p = raw[start : start + 2000]
        p[...] = 1
        states = tuple(stored((codec, False), rng, 2000) for codec in ("e5m2", *others))
        plan = plan_of([p], [states], [rule])
        for _ in range(2):
            plan.step([rng.standard_normal(2000).astype(F32)], by([rule]), 1.0)
        found.append([p.copy(), states[0].code, states[0].aux])
    assert same_bits(found[0][0], found[1][0])
    assert all(map(np.array_equal, found[0][1:], found[1][1:]))


def test_random_words_beside_a_parameter_that_draws_none():
    """They are of their step: others in the next one, also with nothing else new in it."""
    found = []
    for backend in ("numpy", fastgd.available_backends()[0]):
        fastgd.set_backend(backend)
        params = [np.full(300, 0x3F80, np.uint16), np.ones(300, F32)]
        grads = [np.ones(300, F32) for _ in params]
        opt = fastgd.SGD(params, lr=1e-3, rounding="stochastic")
        for _ in range(3):
            opt.step(grads)
        found.append(params[0])
    assert np.array_equal(*found)


def test_a_master_beside_a_parameter_that_is_its_own():
    """Only the first one's array is a copy."""
    params = [np.ones(3, np.float16), np.full(3, 2, F32)]
    fastgd.SGD(params, lr=1.0, master=True).step([np.full(3, 0.5, F32)] * 2)
    assert [p.tolist() for p in params] == [[0.5] * 3, [1.5] * 3]


# ------------------------------------------------------------------------------------- their room


def test_all_arrays_that_many_parameters_may_have():
    """States of 8 bits with scales, remainders, numbers, averages and copies."""
    n, options = 500, {"state_dtype": "8bit", "min_8bit_size": 0, "master": "split"}
    params, copies = [np.ones((n, 1), dtype) for dtype in (np.uint16, F32)]
    opt = fastgd.Prodigy(list(params), average=0.9, copy_to=list(copies), **options)
    opt.step([np.ones(1, F32)] * n)
    assert (copies < 0).all()


def test_sums_of_many_parameters_beside_others_without_any():
    """All with coefficients of their own."""
    n = 500
    rules, (params, grads, states, numbers) = ["asgd"] * n + ["lars"] * n, made("asgd", [3] * n)
    more, more_grads, none, _ = made("lars", [3] * n)
    plan = plan_of(params + more, states + none, rules, numbers=numbers + [()] * n)
    plan.step(grads + more_grads, by(rules), 1.0)
    alone, _, none, _ = made("lars", [3] * n)
    plan_of(alone, none, rules[n:]).step(more_grads, by(rules[n:]), 1.0)
    assert all(map(same_bits, more, alone))


GLIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class Mallinfo2(ctypes.Structure):
    """What glibc tells of allocated memory; the eighth number is the bytes in use."""

    _fields_ = (("numbers", ctypes.c_size_t * 10),)


@unsanitized
@pytest.mark.skipif(not hasattr(GLIBC, "mallinfo2"), reason="glibc counts what is allocated")
def test_room_for_norms_goes_with_its_plan():
    """Also the first one, where a later step wants more."""
    GLIBC.mallinfo2.restype = Mallinfo2

    def in_use():
        params = [np.zeros(2) for _ in range(200)]
        opt = fastgd.SGD(params, clip_norm=1.0, clip_ratio=lambda t: 0.5 if t else None)
        for _ in range(2):
            opt.step([np.ones(2)] * 200)
        del opt
        gc.collect()
        return GLIBC.mallinfo2().numbers[7]

    before = [in_use() for _ in range(3)][-1]
    assert [in_use() for _ in range(5)][-1] - before < 50_000
