"""Ranks that raise, die, hang or run out of memory amid a call."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
from mpi_cases.common import COMM, F32, RANK, RANKS, assert_same, grads_of, make, raises

import fastgd
from fastgd.mpi import RankError, Sharded


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
