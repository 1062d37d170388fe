"""What cases share: parameters, gradients, and a sharded optimizer beside one in one process."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from mpi4py import MPI

from fastgd.mpi import Sharded

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
