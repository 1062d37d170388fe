"""Steps of ranks are those of one process, to the bit."""

from __future__ import annotations

import numpy as np
from mpi_cases.common import (
    BF16,
    COMM,
    F32,
    RANK,
    RANKS,
    SHAPES,
    assert_same,
    assert_shard,
    both,
    draw,
    grads_of,
    make,
    raises,
    step_both,
    words,
)

import fastgd
from fastgd.core.contract import hyper
from fastgd.core.domains import nonnegative
from fastgd.kernels.spec.registry import RULES, Array, Scalar, Size, Sum, rule, sets
from fastgd.mpi import Sharded
from fastgd.schedules import Cosine, Warmup


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
