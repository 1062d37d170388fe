"""Kills a process again and again while it saves, and reads what is there: old or new, never less.

Run by test_atomic.py in a process of its own, as it forks: ``python kill_saves.py FOLDER TIMES``.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

import fastgd


def made():
    params = {"W": np.zeros(20_000), "b": np.zeros(300, np.float32)}
    return fastgd.Adam(params, lr=0.5), params


def save_forever(file, opt, params, first, ready):
    """What is saved as number n has n everywhere."""
    os.write(ready, b"!")
    for n in itertools.count(first):
        for a in arrays_of(opt, params):
            a[...] = n
        fastgd.save(file, opt, metadata={"n": n})


def arrays_of(opt, params):
    return [*params.values(), *(a for s in opt.state.values() for a in s.values())]


def main(folder, times):
    file = Path(folder) / "run.safetensors"
    opt, params = made()
    opt.step({"W": np.ones(20_000), "b": np.ones(300, np.float32)})
    for a in arrays_of(opt, params):
        a[...] = 0
    start = time.perf_counter()
    for _ in range(10):
        fastgd.save(file, params=[])
    fastgd.save(file, opt, metadata={"n": 0})
    span = (time.perf_counter() - start) / 10
    rng = random.Random(0)
    read, ready = os.pipe()
    other, back = made()
    last = interrupted = 0
    for _ in range(times):
        child = os.fork()
        if not child:
            try:
                save_forever(file, opt, params, last + 1, ready)
            finally:
                os._exit(1)
        os.read(read, 1)
        time.sleep(rng.uniform(0, 5) * span)
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "the child failed by itself"

        left = [path for path in Path(folder).iterdir() if path != file]
        assert len(left) <= 1, left
        interrupted += len(left)
        n = fastgd.load(file, other)["n"]
        assert n >= last, (n, last)
        assert all((a == n).all() for a in arrays_of(other, back)), n
        last = n
    fastgd.save(file, opt)
    assert os.listdir(folder) == [file.name]
    print(f"killed {times}, in the middle {interrupted}, saved {last}, lost 0")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
