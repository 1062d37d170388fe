"""Sizes, shares, reductions, averages, rows, and several optimizers at a time."""

from __future__ import annotations

from pathlib import Path

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
from fastgd.mpi import Sharded, gather_rows


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
