"""Checkpoints of ranks: written, read, refused, and cut short."""

from __future__ import annotations

import os
import random
import signal
import threading
from pathlib import Path

import numpy as np
from mpi_cases.common import (
    COMM,
    F32,
    F64,
    RANK,
    RANKS,
    SHAPES,
    assert_same,
    assert_shard,
    draw,
    grads_of,
    make,
    raises,
)

import fastgd
from fastgd.mpi import Sharded

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
