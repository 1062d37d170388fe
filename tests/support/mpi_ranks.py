"""What ranks do in test_mpi.py: ``mpiexec -n R python mpi_ranks.py CASE FOLDER``.

Each rank that comes to the end of its case leaves a file in the folder, with what the case returns.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
import weakref
from pathlib import Path

import ml_dtypes
import numpy as np
from mpi4py import MPI

import fastgd
from fastgd.core.contract import hyper
from fastgd.core.domains import nonnegative
from fastgd.kernels.spec.registry import RULES, Array, Scalar, Size, Sum, rule, sets
from fastgd.mpi import RankError, Sharded, gather_rows
from fastgd.schedules import Cosine, Warmup

F32, F64, BF16 = np.float32, np.float64, ml_dtypes.bfloat16
COMM = MPI.COMM_WORLD
RANK, RANKS = COMM.rank, COMM.size

# Uneven, tiny, empty, cut by shards in odd places, float64 among float32, and in Fortran's order.
SHAPES = {"W": (64, 97), "b": (97,), "one": (), "none": (0,), "V": (3, 5, 41), "T": (70, 90)}
DTYPES = {"V": F64}


def draw(key, *seed):
    rng = np.random.default_rng([*map(ord, key), *seed])
    a = np.asarray(rng.standard_normal(SHAPES[key])).astype(DTYPES.get(key, F32))
    return np.asfortranarray(a) if key == "T" else a


def make(seed=0):
    return {key: draw(key, seed) for key in SHAPES}


def grads_of(step, rank):
    """A rank's gradients; some have none, one has none on any rank, one is of another type."""
    grads = {key: draw(key, 1 + step, rank) for key in SHAPES}
    if step == 1:
        grads["b"] = None
    if step == 2 and rank == 0:
        grads["T"] = None
    grads["one"] = grads["one"].astype(F64)
    return grads


def words(a):
    """An array's bits in the order of memory."""
    a = np.asarray(a)
    return a.reshape(-1, order="C" if a.flags.c_contiguous else "F").view(f"u{a.itemsize}")


def assert_same(params, others):
    for key, p in params.items():
        assert (words(p) == words(others[key])).all(), key


def assert_shard(opt, whole):
    """The rank's states are its shards of a whole optimizer's, bit for bit."""
    for (name, entry), part in zip(opt.state.items(), opt._parts(), strict=True):
        low, high = part.low, part.high
        for key, a in entry.items():
            if key == "step" or a.ndim == 0:
                assert a == whole.state[name][key], (name, key)
                continue
            cut = (
                slice(low // 256, -(-high // 256))
                if key.endswith("_exponent")
                else slice(low, high)
            )
            expected = words(whole.state[name][key])[cut]
            assert (words(a) == expected).all(), (name, key)
    if opt.shard.average is not None:
        for part, (name, a) in zip(opt._parts(), opt.shard.average.averages.items(), strict=True):
            assert (words(a) == words(whole.average.averages[name])[part.low : part.high]).all()


def raises(kind, match, call, *args, **kwargs):
    """The message of what a call raises, which has to be of this very kind and hold some words."""
    try:
        call(*args, **kwargs)
    except Exception as error:
        if type(error) is kind and match in str(error):
            return str(error)
        raise AssertionError(f"expected {kind.__name__}: {match}") from error
    raise AssertionError(f"expected {kind.__name__}: {match}, found nothing raised")


def both(cls, options, make=make):
    """A sharded optimizer, whose other ranks began with other numbers, and one in one process."""
    params, whole = make(RANK), make(0)
    return Sharded(cls, params, **options), cls(whole, **options), params, whole


def step_both(opt, one, step, grads_of=grads_of, **scale):
    record = opt.step(grads_of(step, RANK), **scale)
    for rank in range(RANKS):
        one.accumulate(grads_of(step, rank))
    return record, one.step(**scale)


# --------------------------------------------------------------------------- equal to one process


class Shaped(fastgd.Adam):
    """Adam, and AMSGrad for matrices, which are stepped in pieces."""

    @staticmethod
    def rule(h, shape):
        """By the shape of the whole."""
        return "amsgrad" if len(shape) == 2 else "adam"


CLASSES = [
    (fastgd.SGD, {}),
    (Shaped, {"clip_value": 0.5}),
    (fastgd.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "maximize": True}),
    (fastgd.Momentum, {"bias_correction": True}),
    (fastgd.Adagrad, {"initial_accumulator_value": 0.5}),
    (fastgd.RMSprop, {"centered": True, "momentum": 0.5}),
    (fastgd.Adam, {"amsgrad": True}),
    (fastgd.AdamW, {"lr": Warmup(2, Cosine(1e-2, 9)), "clip_value": 0.5}),
]
KEPT = [
    {},
    {"average": 0.9, "nonfinite": "skip"},
    {"state_dtype": "8bit", "seed": 3},
    {"state_dtype": "8bit", "min_8bit_size": 0, "average": 0.99},
    {"state_dtype": "bfloat16", "bucket_bytes": 4000},
]


def equals_one_process(folder):
    """Every class, however its states are kept, gives the same bits; so do all ranks."""
    for cls, options in CLASSES:
        for kept in KEPT:
            kept = dict(kept)
            bucket = {"bucket_bytes": kept.pop("bucket_bytes")} if "bucket_bytes" in kept else {}
            params, whole = make(RANK), make(0)
            opt = Sharded(cls, params, **bucket, **options, **kept)
            one = cls(whole, **options, **kept)
            for step in range(4):
                record, expected = step_both(opt, one, step, grad_scale=2.0)
                assert (record.step, record.skipped) == (expected.step, expected.skipped)
            assert_same(params, whole)
            assert_shard(opt, one)


def make_with_blocks(seed):
    """Parameters of which one has several blocks, cut by shards amid one."""
    rng = np.random.default_rng(seed)
    return {**make(seed), "L": rng.standard_normal((300, 331)).astype(F32)}


def grads_with_blocks(step, rank):
    rng = np.random.default_rng([step, rank])
    return {**grads_of(step, rank), "L": rng.standard_normal((300, 331)).astype(F32)}


SUMMED = [
    (fastgd.LAMB, {"lr": 0.1}),
    (fastgd.LAMB, {"lr": 0.1, "trust_clip": True, "state_dtype": "8bit"}),
    (fastgd.LAMB, {"lr": 0.1, "weight_decay": 0.0, "nonfinite": "skip", "average": 0.9}),
    (fastgd.StableAdamW, {"lr": 0.1, "betas": (0.9, 0.5)}),
    (fastgd.LARS, {"lr": 0.1, "trust_coefficient": 0.1, "clip_norm": 50.0}),
    (fastgd.LARS, {"lr": Warmup(2, 0.5), "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (fastgd.Prodigy, {"d0": 1e-2}),
    (fastgd.Prodigy, {"d0": 1e-2, "weight_decay": 0.1, "decouple": False, "clip_norm": 50.0}),
]


def equals_with_sums(folder):
    """Rules that add up over a parameter: next to the bits of one process, on all ranks the same."""
    for cls, options in SUMMED:
        opt, one, params, whole = both(cls, options, make_with_blocks)
        for step in range(4):
            step_both(opt, one, step, grads_with_blocks)
        if RANKS == 1:
            assert_same(params, whole)
            assert_shard(opt, one)
        for key, p in params.items():
            off = 8 * np.finfo(p.dtype).eps * np.maximum(np.abs(whole[key]), 1)
            assert (np.abs(p - whole[key]) <= off).all(), (cls, key)
        same = COMM.allgather({key: words(p).tobytes() for key, p in params.items()})
        assert all(other == same[0] for other in same)
        for (name, entry), part in zip(opt.state.items(), opt._parts(), strict=True):
            if cls is fastgd.LAMB:  # whose states follow from gradients alone
                expected = words(one.state[name]["exp_avg"])[part.low : part.high]
                assert (words(entry["exp_avg"]) == expected).all()
            elif cls is fastgd.Prodigy:
                found = COMM.allgather(float(entry["d"]))
                assert found == [float(opt.state[next(iter(opt.state))]["d"])] * RANKS
                assert np.isclose(found[0], one.state[name]["d"], rtol=1e-12)


def equals_with_numbers(folder):
    """A number that is kept of each parameter is the same on all ranks, whatever they have of it."""
    for options in (
        {"lr": 0.1, "decoupled_weight_decay": True, "weight_decay": 0.1},
        {"lr": 0.1, "state_dtype": "8bit", "min_8bit_size": 0, "average": 0.9},
    ):
        opt, one, params, whole = both(fastgd.NAdam, options)
        for step in range(4):
            step_both(opt, one, step)
        assert_same(params, whole)
        assert_shard(opt, one)


def mean_before(p: Array, g: Array) -> tuple[Array]:
    return (g,)


@sets("alpha")
def mean_settle(total: Sum, n: Size, *, lr: Scalar) -> tuple[Scalar]:
    return (lr * total / n,)


@rule(before=mean_before, settle=mean_settle)
def mean(p: Array, *, alpha: Scalar) -> None:
    p[...] = p - alpha


class Mean(fastgd.Optimizer):
    """A step along the mean of the gradient, of the whole one."""

    lr = hyper(nonnegative, 1.0)

    @staticmethod
    def rule(h, shape):
        return "mean"

    @staticmethod
    def coefficients(h, t):
        return (h["lr"],)


def elements_of_the_whole(folder):
    """The size that a rule is told is that of the whole, also where a rank has nothing of it."""
    fastgd.set_backend("numpy")
    w = [np.zeros(n) for n in (70_000, 5, 0)]
    opt = Sharded(Mean, w, bucket_bytes=2**16)
    opt.step([np.arange(float(p.size)) for p in w])
    assert [p[:1].tolist() for p in w] == [[-34999.5], [-2.0], []]
    assert all((p == p[:1]).all() for p in w)


def rules_of_wholes(folder):
    """A rule that needs all of a parameter is refused on all ranks, before anything has changed."""
    RULES["amsgrad"] = RULES["amsgrad"]._replace(shards=False)
    match = "params[0]: expected a whole parameter, as rule amsgrad does not step shards"
    w = [np.full((2, 2), float(RANK))]
    raises(ValueError, f"rank 0 of {RANKS}: {match}", Sharded, Shaped, w)
    assert (w[0] == RANK).all()
    opt = Sharded(fastgd.Adam, w)
    opt.param_groups[0]["amsgrad"] = True
    # Rank 0 has all of it, the other nothing.
    raises(ValueError, f"rank 1 of {RANKS}: {match}", opt.step, [np.ones((2, 2))])
    assert not w[0].any()
    assert not opt.state[0]["step"]
    opt.param_groups[0]["amsgrad"] = False
    assert opt.step([np.ones((2, 2))]).step == 1


def equals_with_16_bits(folder):
    """Masters, their split form and stochastic rounding, in shards."""

    def make(seed):
        return {key: draw(key, seed).astype(BF16) for key in SHAPES}

    def grads_of(step, rank):
        grads = {key: draw(key, 1 + step, rank).astype(BF16) for key in SHAPES}
        grads["W"] = grads["W"].view(np.uint16)
        return grads

    for kept in (
        {"master": True},
        {"master": "split", "state_dtype": "8bit"},
        {"rounding": "stochastic", "state_dtype": "float16"},
    ):
        opt, one, params, whole = both(fastgd.Adam, {"lr": 0.01, **kept}, make)
        for step in range(3):
            step_both(opt, one, step, grads_of)
        assert_same(params, whole)
        assert_shard(opt, one)


def equals_with_groups(folder):
    """Groups with hyper-parameters of their own, changed on the way, and norms of each."""

    def make(seed):
        rng = np.random.default_rng(seed)
        a = [rng.standard_normal(n).astype(F32) for n in (1000, 33, 2)]
        return [{"params": a[:2], "lr": 0.1}, {"params": {"w": a[2]}, "weight_decay": 0.5}]

    def grads_of(step, rank):
        rng = np.random.default_rng([step, rank])
        a = [rng.standard_normal(n).astype(F32) for n in (1000, 33, 2)]
        return [a[:2], {"w": a[2]}]

    for clip_by in ("all", "group", "tensor"):
        options = {"lr": 0.01, "clip_norm": 0.5, "clip_by": clip_by}
        opt, one, params, whole = both(fastgd.AdamW, options, make)
        for step in range(3):
            record, expected = step_both(opt, one, step, grads_of)
            assert abs(record.grad_norm / expected.grad_norm - 1) < 1e-14
            assert abs(record.clip_factor / expected.clip_factor - 1) < 1e-14
            opt.param_groups[1]["lr"] = one.param_groups[1]["lr"] = 0.02
        for p, q in zip(params[0]["params"], whole[0]["params"], strict=True):
            assert np.allclose(p, q, rtol=1e-6, atol=0)
        same = COMM.allgather([p.tobytes() for p in params[0]["params"]])
        assert all(other == same[0] for other in same)
        opt.lr = one.lr = 0.5
        assert opt.lr == 0.5


def sizes(folder):
    """Fewer elements than ranks, sizes around what shards begin at, and next to nothing."""
    for n in (0, 1, 2, 3, 15, 16, 17, 63, 64, 65, 255, 257, 1025, 4097):
        for options in ({}, {"state_dtype": "8bit", "min_8bit_size": 0}):
            params, whole = np.full(n, RANK, F32), np.zeros(n, F32)
            opt = Sharded(fastgd.Adam, params, lr=0.1, clip_norm=1e9, **options)
            one = fastgd.Adam(whole, lr=0.1, clip_norm=1e9, **options)
            for step in range(2):
                g = [np.full(n, rank + step, F32) for rank in range(RANKS)]
                opt.step(g[RANK])
                for part in g:
                    one.accumulate(part)
                one.step()
            assert (params == whole).all()
            assert sum(COMM.allgather(opt.state[0]["exp_avg"].size)) == n
            assert_shard(opt, one)


def shares(folder):
    """States of the digits network on each rank, as a share of the whole."""
    from fastgd.commands.mlp import init_layers

    found = {}
    for name, options in {"float32": {}, "8bit": {"state_dtype": "8bit"}}.items():
        params = init_layers((64, 96, 32, 10), np.random.default_rng(0))
        opt, one = Sharded(fastgd.Adam, params, **options), fastgd.Adam(params, **options)
        size, whole = (
            sum(a.nbytes for entry in states.values() for key, a in entry.items() if key != "step")
            for states in (opt.state, one.state)
        )
        found[name] = size / whole
    return found


def reductions(folder):
    """Sums in the place of means, MPI's own order, gradients bound and zeroed, accumulated."""
    params, whole = make(RANK), make(0)
    bound = {key: np.zeros_like(p, order="K") for key, p in params.items()}
    opt = Sharded(fastgd.SGD, params, lr=0.1, reduction="sum", grads=bound, zero_grads=True)
    one = fastgd.SGD(whole, lr=0.1)
    for key in bound:
        bound[key][...] = draw(key, 1, RANK)
    opt.step()
    for rank in range(RANKS):
        one.accumulate({key: draw(key, 1, rank) for key in SHAPES})
    one.step(grad_scale=1 / RANKS)
    assert_same(params, whole)
    assert not any(g.any() for g in bound.values())
    assert opt.options["zero_grads"]

    opt, one, params, whole = both(fastgd.Adam, {"lr": 0.1})
    for weight in (1.0, 3.0):
        opt.accumulate({key: draw(key, 1, RANK) for key in SHAPES}, weight)
    raises(RuntimeError, f"rank 0 of {RANKS}: step: gradients were", opt.step, grads_of(0, RANK))
    opt.step()
    for rank in range(RANKS):
        one.accumulate({key: draw(key, 1, rank) for key in SHAPES})
    one.step()
    assert all(np.allclose(params[key], whole[key], rtol=1e-5) for key in params)

    params, whole = make(RANK), make(0)
    opt = Sharded(fastgd.SGD, params, lr=0.1, ordered=False, bucket_bytes=4000)
    one = fastgd.SGD(whole, lr=0.1)
    step_both(opt, one, 0)
    assert all(np.allclose(params[key], whole[key], rtol=1e-4, atol=1e-6) for key in params)
    same = COMM.allgather({key: words(p).tobytes() for key, p in params.items()})
    assert all(other == same[0] for other in same)


def averages(folder):
    """The averaged weights stand in the parameters' place on all ranks, and these come back."""
    opt, one, params, whole = both(fastgd.Adam, {"lr": 0.1, "average": 0.5})
    raises(ValueError, "expected at least one update", opt.swapped().__enter__)
    step_both(opt, one, 0)
    step_both(opt, one, 3)
    before = {key: p.copy(order="K") for key, p in params.items()}
    with opt.swapped():
        with one.average.swapped():
            assert_same(params, whole)
        raises(RuntimeError, f"rank 0 of {RANKS}: step: the averages", opt.step, grads_of(3, RANK))
        path = Path(folder) / "averaged"
        raises(RuntimeError, f"rank 0 of {RANKS}: save: the averages", opt.save, path)
        raises(RuntimeError, f"rank 0 of {RANKS}: load: the averages", opt.load, path)
        assert not path.exists()
    assert_same(params, before)
    plain = Sharded(fastgd.SGD, make(0))
    raises(ValueError, "expected average=", plain.swapped().__enter__)


def fails_swapped(folder, mode):
    """The last rank raises while averages are swapped in: all others know, and have weights back."""
    params = make(0)
    opt = Sharded(fastgd.Adam, params, lr=0.1, average=0.5, timeout=30.0)
    opt.step(grads_of(0, RANK))
    opt.step(grads_of(3, RANK))
    before = {key: p.copy(order="K") for key, p in params.items()}

    def agreed():
        with opt.swapped():
            opt.step(grads_of(1, RANK))

    raises(RuntimeError, f"rank 0 of {RANKS}: step: the averages", agreed)
    assert_same(params, before)

    def once():
        with opt.swapped():
            assert any((params[key] != before[key]).any() for key in params)
            if RANK == RANKS - 1:
                raise KeyError("of an evaluation")
            if mode == "saves":
                opt.save(Path(folder) / "never")

    start = time.monotonic()
    if RANK == RANKS - 1:
        raises(KeyError, "of an evaluation", once)
    else:
        raises(RankError, f"rank {RANKS - 1}: KeyError: 'of an evaluation'", once)
    assert time.monotonic() - start < 20
    assert_same(params, before)
    assert not (Path(folder) / "never").exists()
    raises(RankError, "no longer in step", opt.step, grads_of(1, RANK))
    return True


def subcommunicators(folder):
    """Two halves that know nothing of each other, and many optimizers of one communicator."""
    half = COMM.Split(RANK % 2, RANK)
    w = np.zeros(100)
    opt = Sharded(fastgd.SGD, w, comm=half, lr=1.0, reduction="sum")
    for _ in range(1 + RANK % 2):
        opt.step(np.ones(100))
    assert (w == -half.size * (1 + RANK % 2)).all()
    for _ in range(300):
        Sharded(fastgd.SGD, np.ones(3), comm=half)
    half.Free()
    for _ in range(50):
        part = COMM.Split(RANK % 2, RANK)
        Sharded(fastgd.SGD, np.ones(3), comm=part)
        part.Free()


def rows(folder):
    """All ranks step along the rows of all, in their order, as one process does; or all refuse."""
    table = np.zeros((7, 5), F32)
    alone = table.copy()
    opt, one = (fastgd.Adagrad(a, lr=0.5, clip_norm=1.0) for a in (table, alone))
    for step in range(3):
        # Rank 0 has none, the others share some.
        indices = [np.arange(rank * (step + 1)) % 7 for rank in range(RANKS)]
        values = [
            np.random.default_rng([step, len(i)]).standard_normal((len(i), 5)) for i in indices
        ]
        found = gather_rows(fastgd.Rows(indices[RANK].astype(np.int32), values[RANK].astype(BF16)))
        assert np.array_equal(found.indices, np.concatenate(indices))
        record = opt.step(found, grad_scale=RANKS)
        whole = fastgd.Rows(np.concatenate(indices), np.concatenate(values).astype(BF16))
        assert str(record) == str(one.step(whole, grad_scale=RANKS))
    assert table.any()
    assert np.array_equal(table, alone)
    last, mine = RANKS - 1, fastgd.Rows([0], np.ones((1, 5)))
    raises(TypeError, f"rank {last} of {RANKS}: rows: expected Rows, found None",
           gather_rows, None if last == RANK else mine)  # fmt: skip
    raises(ValueError, f"rank {last}: expected rows: float64 of shape (5,), as on rank 0",
           gather_rows, fastgd.Rows([0], np.ones((1, 4))) if last == RANK else mine)  # fmt: skip
    with Sharded(fastgd.SGD, np.zeros((3, 5))) as sharded:
        raises(TypeError, f"rank 0 of {RANKS}: grads: expected an array, found Rows",
               sharded.step, mine)  # fmt: skip


def mixed_optimizers(folder):
    """Two optimizers of a communicator that ranks call in another order: refused, and all go on."""
    a, b = np.ones(64), np.ones(64)
    first, second = (Sharded(fastgd.SGD, w, lr=0.1, average=0.5) for w in (a, b))
    mine = second if RANK else first
    number = "rank 1: expected optimizer: number 1 of this communicator, as on rank 0, found"
    one = np.ones(64)
    raises(ValueError, number, mine.step, one)
    raises(ValueError, number, mine.accumulate, one)
    raises(ValueError, number, mine.save, Path(folder) / "mixed")
    assert (a == 1).all()
    assert (b == 1).all()
    # A constructor that is refused doesn't count, wherever it was called.
    raises(
        ValueError, "found call: step", *((first.step, one) if RANK else (Sharded, fastgd.SGD, a))
    )
    raises(TypeError, "nonsense", Sharded, fastgd.SGD, np.ones(3), nonsense=1)
    first.step(one)
    second.step(one)
    raises(ValueError, number, mine.swapped().__enter__)
    first.save(Path(folder) / "mixed")
    raises(ValueError, number, mine.load, Path(folder) / "mixed")
    third = np.ones(3)
    Sharded(fastgd.SGD, third, lr=1.0).step(np.ones(3))
    assert not third.any()


# ------------------------------------------------------------------------- errors of single ranks


def bad_arguments(folder):
    """All ranks raise what one of them would, before anything has changed, and go on."""
    last = RANKS - 1
    who = f"rank {last} of {RANKS}: "

    def only(there, elsewhere):
        return there if last == RANK else elsewhere

    raises(TypeError, who + "opt_class: ", Sharded, only(dict, fastgd.SGD), np.ones(3))
    raises(TypeError, who + "params[0]: ", Sharded, fastgd.SGD, [only(np.arange(3), np.ones(3))])
    raises(ValueError, f"rank {last}: expected optimizer: Adam, as on rank 0, found optimizer: SGD",
           Sharded, only(fastgd.SGD, fastgd.Adam), np.ones(3))  # fmt: skip
    raises(ValueError, f"rank {last}: expected params[0]: float64 of shape (3,)",
           Sharded, fastgd.SGD, [np.ones(only(4, 3))])  # fmt: skip
    raises(ValueError, f"rank {last}: expected no params[1], as on rank 0, found params[1]: float64",
           Sharded, fastgd.SGD, [np.ones(3)] * 0 + [np.ones(3) for _ in range(only(2, 1))])  # fmt: skip
    raises(ValueError, "expected lr: 0.1, as on rank 0, found lr: 0.2",
           Sharded, fastgd.SGD, np.ones(3), lr=only(0.2, 0.1))  # fmt: skip
    raises(ValueError, f"rank 0 of {RANKS}: lr: ", Sharded, fastgd.SGD, np.ones(3), lr=-1.0)
    raises(ValueError, "copy_to: expected none",
           Sharded, fastgd.SGD, np.ones(3), copy_to=np.ones(3, F32))  # fmt: skip
    raises(ValueError, "clip_ratio: expected None", Sharded, fastgd.SGD, np.ones(3), clip_ratio=0.1)
    raises(ValueError, "centralize: expected False", Sharded, fastgd.SGD, np.ones(3),
           centralize=True)  # fmt: skip
    raises(ValueError, "clip_ratio: expected None",
           Sharded, fastgd.SGD, [{"params": np.ones(3), "clip_ratio": 0.1}])  # fmt: skip
    raises(ValueError, who + "timeout: ", Sharded, fastgd.SGD, np.ones(3), timeout=only(-1, 1))
    raises(TypeError, "nonsense", Sharded, fastgd.SGD, np.ones(3), nonsense=1)
    raises(TypeError, "comm: ", Sharded, fastgd.SGD, np.ones(3), comm=3)
    raises(ValueError, "bucket_bytes: ", Sharded, fastgd.SGD, np.ones(3), bucket_bytes=0)
    raises(ValueError, f"rank {last}: expected weight_decay: 0.1, as on rank 0, found none",
           Sharded, fastgd.AdamW, np.ones(3),
           **only({"betas": (0.5, 0.5)}, {"weight_decay": 0.1}))  # fmt: skip
    raises(ValueError, f"rank {last}: expected no eps, as on rank 0, found eps: 0.1",
           Sharded, fastgd.Adam, np.ones(3), **only({"eps": 0.1}, {}))  # fmt: skip
    # Too long to be compared by what is shown of it.
    kinds = {"exp_avg": "float16", "exp_avg_sq": only("bfloat16", "float16")}
    raises(ValueError, "'exp_avg_sq': 'float16'}, as on rank 0, found state_dtype",
           Sharded, fastgd.Adam, np.ones(3), state_dtype=kinds)  # fmt: skip
    w = np.zeros(3)
    alike = only({"lr": 1, "betas": [0.5, np.float64(0.75)]}, {"lr": 1.0, "betas": (0.5, 0.75)})
    Sharded(fastgd.Adam, w, **alike).step(np.ones(3))
    assert np.allclose(w, -1)
    # Refused by the optimizer, after which the parameters have to be each rank's own still.
    for kind, match, options in [
        (ValueError, "lr: ", {"lr": -1.0}),
        (TypeError, "learning_rate", {"learning_rate": 1}),
        (ValueError, "nonfinite", {"nonfinite": "skp"}),
        (ValueError, "state_dtype", {"state_dtype": {"exp_avg": "9bit"}}),
        (ValueError, who + "lr: ", {"lr": only(-1.0, 1.0)}),
        (ValueError, "expected lr: 0.1, as on rank 0, found lr: 0.2", {"lr": only(0.2, 0.1)}),
    ]:
        w = np.full(300, float(RANK))
        raises(kind, match, Sharded, fastgd.Adam, w, **options)
        assert (w == RANK).all(), options
    w = np.full(3, float(RANK)).astype(BF16)
    raises(ValueError, "params: is bfloat16", Sharded, fastgd.Adam, w)
    assert (w == RANK).all()

    params = make()
    opt = Sharded(fastgd.Adam, params, lr=0.1)
    raises(AttributeError, "betas: hyper-parameters but lr are set in groups",
           setattr, opt, "betas", (0.5, 0.5))  # fmt: skip
    raises(AttributeError, "use opt.swapped()", getattr, opt, "average")
    before = {key: p.copy(order="K") for key, p in params.items()}
    good = grads_of(0, RANK)

    def refused(kind, match, grads=good, **scale):
        raises(kind, match, opt.step, grads, **scale)
        assert_same(params, before)
        assert all(not entry["step"] for entry in opt.state.values())

    refused(ValueError, who + 'grads["W"]: expected shape', only({**good, "W": np.ones(3)}, good))
    refused(TypeError, who + 'grads["b"]: expected dtype', only({**good, "b": np.arange(97)}, good))
    refused(ValueError, who + 'grads["W"]: shares memory with params["W"]',
            only({**good, "W": params["W"]}, good))  # fmt: skip
    part = params["T"].reshape(-1, order="F")[5:102]
    refused(ValueError, who + 'grads["b"]: shares memory with params["T"]',
            only({**good, "b": part}, good))  # fmt: skip
    bound = {**good, "W": params["W"]}
    raises(ValueError, f'rank 0 of {RANKS}: grads["W"]: shares memory',
           Sharded, fastgd.Adam, params, grads=bound)  # fmt: skip
    refused(ValueError, who + "grads: expected the keys", only({"W": good["W"]}, good))
    refused(TypeError, who + "grad_scale", grad_scale=only("1", 1.0))
    refused(ValueError, f"rank {last}: expected grad_scale: 1.0, as on rank 0, found grad_scale: 2",
            grad_scale=only(2.0, 1.0))  # fmt: skip
    refused(ValueError, "grad_scale: expected a number to divide by", grad_scale=0.0)
    refused(TypeError, who + "step() needs gradients", only(None, good))
    opt.lr = only(0.2, 0.1)
    refused(ValueError, f"rank {last}: expected lr: 0.1, as on rank 0, found lr: 0.2")
    opt.lr = lambda step: only(-1.0, 0.1)
    refused(ValueError, who + "lr: expected a number of at least 0, found -1.0, from its schedule")
    opt.lr = lambda step: only(0.3, 0.1)
    refused(ValueError, f"rank {last}: expected lr: 0.1, as on rank 0, found lr: 0.3")
    opt.lr = 0.1
    opt.param_groups[0]["clip_ratio"] = only(0.1, None)
    refused(ValueError, who + "clip_ratio: expected None")
    opt.param_groups[0]["clip_ratio"] = None
    opt.param_groups[0]["amsgrad"] = True
    refused(TypeError, who + "grad_scale", grad_scale=only("1", 1.0))
    assert all("max_exp_avg_sq" not in entry for entry in opt.state.values())
    opt.param_groups[0]["amsgrad"] = False
    raises(ValueError, f"rank {last}: expected call: step, as on rank 0, found call: accumulate",
           only(opt.accumulate, opt.step), good)  # fmt: skip

    one = fastgd.Adam(whole := make(), lr=0.1)
    step_both(opt, one, 0)
    assert_same(params, whole)
    raises(TypeError, "belongs to a communicator", __import__("copy").deepcopy, opt)


def gradients_go(folder):
    """Nobody keeps a step's gradients, whether it was refused or not."""
    w = np.zeros(1000)
    opt = Sharded(fastgd.SGD, w, nonfinite="raise")
    for call, bad in ((opt.step, False), (opt.step, True), (opt.accumulate, False)):
        g = np.full(1000, np.nan if bad else 1.0)
        if bad:
            raises(FloatingPointError, "grads: expected finite gradients", call, g)
        else:
            call(g)
        kept = weakref.ref(g)
        del g
        gc.collect()
        assert kept() is None, (call.__name__, bad)
    opt = Sharded(fastgd.SGD, w := np.ones(3), lr=0.5)
    opt.accumulate(w)  # which writes no parameters
    opt.step()
    assert (w == 0.5).all()


def not_finite(folder):
    """Infinities and NaN of one rank are skipped or refused by all."""
    for kind, bad in (("skip", np.inf), ("raise", np.nan)):
        params = make()
        opt = Sharded(fastgd.Adam, params, nonfinite=kind)
        before = {key: p.copy(order="K") for key, p in params.items()}
        grads = {key: draw(key, 1, RANK) for key in SHAPES}
        if RANK == 1:
            grads["T"][3, 4] = bad
        if kind == "skip":
            record = opt.step(grads)
            assert record.skipped
            assert opt.skipped == 1
        else:
            raises(FloatingPointError, f'rank 1 of {RANKS}: grads["T"]: expected finite gradients, '
                   "found nan at (3, 4)", opt.step, grads)  # fmt: skip
        assert_same(params, before)
        grads["T"][3, 4] = 0
        assert opt.step(grads).step == 1
    w = np.zeros(2, F32)
    opt = Sharded(fastgd.SGD, w, nonfinite="raise")
    big = np.full(2, np.finfo(F32).max)
    raises(FloatingPointError, "found a sum over ranks that is not", opt.step, big)
    assert not w.any()


# -------------------------------------------------------------------------------------- failures


def fails(folder, mode):
    """The last rank dies or fails at its sixth step; returns what the others see, and how soon."""
    last = RANKS - 1
    w, g = np.ones(100_000, F32), np.ones(100_000, F32)
    opt = Sharded(fastgd.LAMB if mode == "killed between sweeps" else fastgd.Adam, w)
    found = {}

    def run():
        for step in range(20):
            if step == 5:
                COMM.Barrier()
                found["before"] = w.copy()
                found["start"] = time.monotonic()
                opt.timeout = 1.0
                if last == RANK:
                    fail(opt, mode)
            opt.step(g)

    try:
        if mode == "raises outside":
            run()
        else:
            with opt:
                run()
    except RankError as error:
        found |= {"error": str(error), "seconds": time.monotonic() - found["start"]}
        if mode == "killed between sweeps":
            assert (w == found["before"]).all()
            assert opt.state[0]["step"] == 6
            raises(RuntimeError, "go back to a checkpoint", opt.shard.step, opt._sums[0])
        del found["before"]
        raises(RankError, "no longer in step", opt.step, g)
        raises(RankError, "no longer in step", Sharded, fastgd.Adam, w)
        return found
    raise AssertionError("no RankError")


def fail(opt, mode):
    def killed(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def out_of_memory(*_, **__):
        raise MemoryError("no more")

    if mode == "killed":
        killed()
    elif mode == "killed within a step":
        opt._exchange.allgather = killed
    elif mode == "killed between sweeps":
        opt.shard.stepper.combine_sums = killed
    elif mode == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif mode in ("raises", "raises outside"):
        raise ValueError("what a loss may raise")
    elif mode == "out of memory":
        opt.shard.step = out_of_memory
    elif mode == "late":
        time.sleep(1.5)


# ------------------------------------------------------------------------------------ checkpoints

OPTIONS = {"lr": 0.05, "state_dtype": "8bit", "average": 0.9, "min_8bit_size": 1000}


def trained(cls=fastgd.Adam, **more):
    """A whole optimizer after three steps, the same for any number of ranks, and its parameters."""
    whole = make(0)
    one = cls(whole, **{**OPTIONS, **more})
    for step in range(3):
        one.step({key: draw(key, 1 + step, 0) for key in SHAPES})
    one.accumulate(grads_of(1, 0))
    return one, whole


def saves(folder, name="Adam"):
    """The same three steps on these ranks, in a checkpoint."""
    params, cls = make(RANK), getattr(fastgd, name)
    opt = Sharded(cls, params, reduction="sum", **OPTIONS)
    zeros = {key: np.zeros_like(p, order="K") for key, p in params.items()}
    for step in range(3):
        # Zeros from all ranks but one: the sums are the same for any number of ranks.
        opt.step({key: draw(key, 1 + step, 0) for key in SHAPES} if RANK == 0 else zeros)
    opt.accumulate(grads_of(1, 0) if RANK == 0 else {**zeros, "b": None})
    one, whole = trained(cls)
    assert_same(params, whole)
    for epoch in range(2):
        opt.save(Path(folder) / "set", metadata={"epoch": epoch, "x": np.arange(3)})
    assert_shard(opt, one)


def loads(folder, name="Adam"):
    """Parameters and states of the checkpoint in other hands, and the next step from there."""
    params, cls = make(RANK + 5), getattr(fastgd, name)
    opt = Sharded(cls, params, reduction="sum", **OPTIONS)
    metadata = opt.load(Path(folder) / "set")
    assert metadata["epoch"] == 1
    assert metadata["x"].tolist() == [0, 1, 2]
    one, whole = trained(cls)
    assert_same(params, whole)
    assert_shard(opt, one)
    opt.step()
    one.step()
    assert_same(params, whole)
    assert_shard(opt, one)


def refuses_checkpoints(folder):
    """Whatever doesn't fit or isn't whole is refused by all, and changes nothing."""
    folder = Path(folder) / "other"
    params = make(0)
    opt = Sharded(fastgd.Adam, params)
    before = {key: p.copy(order="K") for key, p in params.items()}
    error = fastgd.CheckpointError

    def refused(kind, match, opt=opt):
        COMM.Barrier()
        raises(kind, match, opt.load, folder)
        assert_same(params, before)
        assert opt.shard.stepper.steps.max() == 0
        COMM.Barrier()

    refused(FileNotFoundError, f"rank 0 of {RANKS}: ")
    moved = Sharded(fastgd.Adam, {key: p.copy(order="K") for key, p in params.items()})
    moved.step(grads_of(0, RANK))
    moved.save(folder)
    old = sorted(folder.iterdir())
    kept = {path: path.read_bytes() for path in old}
    COMM.Barrier()
    refused(error, "expected SGD, found Adam", Sharded(fastgd.SGD, params))
    refused(error, 'expected params["W"]: float64', Sharded(fastgd.Adam, {
        key: p.astype(F64) for key, p in params.items()}))  # fmt: skip
    refused(error, 'expected no params["W"]', Sharded(fastgd.Adam, [np.ones(3)]))
    refused(error, "average", Sharded(fastgd.Adam, params, average=0.5))
    moved.save(folder)
    new = sorted(folder.iterdir())
    assert len(old) == len(new) == RANKS + 1
    assert len(set(old) & set(new)) == 1, "only the index keeps its name"
    if RANK == 0:  # a file of the old set in the place of one of the new
        later = new[-1].read_bytes()
        new[-1].write_bytes(kept[old[-1]])
    refused(error, "set: expected")
    if RANK == 0:
        new[-1].write_bytes(later[:-1])
    refused(error, "expected a whole safetensors file")
    if RANK == 0:
        new[-1].write_bytes(later[:-9] + bytes([later[-9] ^ 1]) + later[-8:])
    refused(error, "bits have changed")
    if RANK == 0:
        new[-1].unlink()
    refused(error, f"expected the files of {RANKS} ranks, found no {new[-1]}")
    if RANK == 0:
        new[-1].write_bytes(later)
        new[0].write_bytes(kept[old[0]])  # the old index, whose files are gone
    refused(error, old[1].name)


def fails_to_save(folder):
    """A file that can't be written: all ranks raise, and the old checkpoint stays."""
    folder = Path(folder) / "full"
    params = make(0)
    opt = Sharded(fastgd.Adam, params)
    opt.step(grads_of(0, RANK))
    opt.save(folder, metadata={"n": 1})
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    COMM.Barrier()
    real = fastgd.checkpoint.save
    for what, who in (("rank", RANKS - 1), ("index", 0)):

        def full(path, *args, what=what, who=who, **kwargs):
            if what in Path(path).name and who == RANK:
                raise OSError(28, "No space left on device")
            real(path, *args, **kwargs)

        fastgd.checkpoint.save = full
        raises(OSError, f"rank {who} of {RANKS}: [Errno 28]", opt.save, folder, metadata={"n": 2})
        fastgd.checkpoint.save = real
        COMM.Barrier()
        found = {path: path.read_bytes() for path in folder.iterdir()}
        assert {path: found.get(path) for path in kept} == kept
        assert opt.load(folder) == {"n": 1}
    words = raises(TypeError, f'rank 0 of {RANKS}: metadata["f"]: ',
                   opt.save, folder, metadata={"f": print})  # fmt: skip
    assert "metadata.f" not in words
    mine = folder.with_name("mine") if RANK == 1 else folder
    raises(
        ValueError, f"rank 1: expected path: '{folder}', as on rank 0, found path: ", opt.save, mine
    )
    # A folder of which rank 0 sees another one, as those of two machines by one name.
    if RANK == 1:
        real, fastgd.checkpoint.save = fastgd.checkpoint.save, lambda *_, **__: None
    raises(FileNotFoundError, f"rank 0 of {RANKS}: path: expected a folder that all ranks see",
           opt.save, folder)  # fmt: skip
    if RANK == 1:
        fastgd.checkpoint.save = real
    COMM.Barrier()
    assert not folder.with_name("mine").exists()
    assert {path: path.read_bytes() for path in folder.iterdir() if path in kept} == kept
    file = folder.with_name("file")
    file.write_text("")
    COMM.Barrier()
    raises(FileExistsError, f"path: expected a folder, found a file: {file}", opt.save, file)
    raises(
        TypeError, f"rank 1 of {RANKS}: metadata", opt.save, folder, metadata=3 if RANK == 1 else {}
    )
    assert opt.load(folder) == {"n": 1}
    opt.save(folder, metadata={"n": 3})
    assert len(list(folder.iterdir())) == RANKS + 1
    assert opt.load(folder) == {"n": 3}


def killed_while_saving(folder, seed):
    """Saves until a rank is killed, at any moment; what is number n has n in all parameters."""
    folder, saved = Path(folder) / "killed", Path(folder) / "saved"
    w = {"a": np.zeros(40_000), "b": np.zeros(70, F32)}
    opt = Sharded(fastgd.SGD, w, momentum=0.5)
    first = 0
    if (folder / "index.safetensors").exists():
        first = opt.load(folder)["n"]
        assert all((a == first).all() for a in w.values()), first
        assert first >= int(saved.read_text()), "lost what was saved"
    rng = random.Random(int(seed))
    victim, moment = rng.randrange(RANKS), rng.uniform(0.02, 0.4)
    if victim == RANK:
        threading.Timer(moment, os.kill, (os.getpid(), signal.SIGKILL)).start()
    for n in range(first + 1, first + 10_000):
        for a in w.values():
            a[...] = n
        opt.save(folder, metadata={"n": n})
        if RANK == 0:
            new = saved.with_name("new")
            new.write_text(str(n))
            new.replace(saved)


# ------------------------------------------------------------------------------------------- main


def main(case, folder, *arguments):
    try:
        found = globals()[case](folder, *arguments)
        (Path(folder) / f"{case}.{RANK}.json").write_text(json.dumps(found))
    except BaseException:
        if case != "fails":
            traceback.print_exc()
            COMM.Abort(1)  # the others may wait where nobody polls
        raise


if __name__ == "__main__":
    main(*sys.argv[1:])
