"""What a step on ranks costs, against the model of docs/scaling.md: time, bytes, states, memory.

    python bench/mpi.py [--tcp] [--elements 8e6] [--rounds 9] [--json FILE]

Adam on float32, one tensor, at 1, 2 and 4 ranks of one thread each; the slowest rank counts.  The
model's constants are measured apart, on as many ranks as there are cores: copies, sums, the
update, a wire that is MPI's bare exchange of buckets; and a step over 64 elements, for what does
not depend on size.  Where ranks are more than cores, all that a core does takes as much longer.
Nothing is fitted.

With --tcp the ranks (of MPICH) talk over TCP on the loopback interface instead of shared memory,
and the bytes are those that the kernel has counted there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path

import numpy as np

import fastgd
from fastgd.commands import output
from fastgd.commands.work import Work

F32 = np.float32
RANKS = (1, 2, 4)
# What makes MPICH use TCP between processes of one machine.
TCP = {"MPIR_CVAR_NOLOCAL": "1", "MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp"}
COLUMNS = ("ranks", "step ms", "model", "ratio", "reduce", "gather", "MPI alone", "small µs",
           "agree µs", "sent MB", "model", "states")  # fmt: skip


def loopback():
    """The bytes that this machine has sent to itself, of all processes."""
    with open("/proc/net/dev") as lines:
        return next(int(s.split()[9]) for s in map(str.strip, lines) if s.startswith("lo:"))


def median(call, rounds, barrier=lambda: None):
    times = []
    for _ in range(rounds):
        barrier()
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def measure(elements, rounds):
    """What this rank finds; run under mpiexec."""
    from mpi4py import MPI

    from fastgd.mpi import Sharded

    comm = MPI.COMM_WORLD
    fastgd.set_num_threads(1)
    rng = np.random.default_rng(comm.rank)
    w = np.zeros(elements, F32)
    g = np.resize(rng.standard_normal(1 << 16).astype(F32), elements)
    opt = Sharded(fastgd.Adam, w, lr=1e-3)
    opt.step(g)
    comm.Barrier()
    before, counted = opt.sent, loopback()
    comm.Barrier()
    for _ in range(4):
        opt.step(g)
    comm.Barrier()
    found = {"sent": (opt.sent - before) / 4, "counted": (loopback() - counted) / 4 / comm.size}
    found["states"] = sum(a.nbytes for a in opt.state[0].values())

    def barrier():
        # Not MPI's own, in which ranks that wait keep others from the cores.
        opt._link.wait(comm.Ibarrier(), "all ranks")

    def timed(call):
        own = median(call, rounds, barrier)
        return comm.allreduce(own, MPI.MAX)

    small = Sharded(fastgd.Adam, np.zeros(64, F32))
    small_g = np.ones(64, F32)
    found["step"] = timed(lambda: opt.step(g))
    found["reduce"] = timed(lambda: opt._exchange.reduce_scatter([g]))
    found["gather"] = timed(opt._exchange.allgather)
    found["small"] = timed(lambda: small.step(small_g))
    found["agree"] = timed(lambda: opt._link.agree("bench", None, [], np.zeros(1, bool)))

    # MPI alone, blocking, over whole buffers: what no loop that must add up gradients can beat.
    part = elements // comm.size
    own, whole = np.zeros(part, F32), np.zeros(part * comm.size, F32)

    def bare():
        comm.Reduce_scatter_block(g[: whole.size], own, MPI.SUM)
        comm.Allgather(own, whole)

    found["bare"] = timed(bare)

    # The wire: rows of a bucket exchanged as the step does it, without what is done to them.
    bucket = opt._exchange._up[0]
    size = (bucket.end - bucket.start) * comm.size * 4
    buffers = [(np.zeros(size, np.uint8), np.zeros(size, np.uint8)) for _ in range(2)]

    def wire():
        requests = []
        for send, receive in buffers * 2:
            if len(requests) == 2:
                opt._link.wait(requests.pop(0), "the wire")
            requests.append(opt._link.post_alltoall(send, receive))
        for request in requests:
            opt._link.wait(request, "the wire")

    found["wire_rate"] = 4 * size / timed(wire)  # bytes through a rank's buffers, its own included

    rates = constants(elements, rounds, barrier)
    return found | {key: comm.allreduce(rate, MPI.MAX) for key, rate in rates.items()}


def constants(elements, rounds, barrier):
    """Seconds for an element, while all ranks do the same: copies, sums, and the update."""
    # Taking turns, so that none is still in cache, as in a step.
    arrays = cycle([np.ones(elements, F32) for _ in range(4)])
    step = min(1 << 20, elements)
    starts = range(0, elements - step + 1, step)
    total = np.zeros(step, F32)

    def copy():
        a, b = next(arrays), next(arrays)
        for start in starts:
            b[start : start + step] = a[start : start + step]

    def add():
        a = next(arrays)
        for start in starts:
            np.add(total, a[start : start + step], out=total)

    opt = fastgd.Adam(next(arrays), lr=1e-3, grads=next(arrays))
    opt.step()
    return {
        "copy": median(copy, rounds, barrier) / (len(starts) * step),
        "add": median(add, rounds, barrier) / (len(starts) * step),
        "update": median(opt.step, rounds, barrier) / elements,
    }


def model(ranks, elements, found):
    """The seconds of a step: what a tiny one takes, pack and sum, wire, update, unpack.

    `found` is what was measured, of which only constants are used: rates of no more ranks than
    there are cores, and the time of a step over 64 elements.
    """
    base = found[max(r for r in found if r <= min(ranks, os.cpu_count()))]
    crowd = max(1.0, ranks / os.cpu_count())
    pack_sum = (base["copy"] + base["add"]) * elements
    unpack = base["copy"] * elements  # its own shard is packed, the others' unpacked
    wire = 2 * 4 * elements / base["wire_rate"]
    update = base["update"] * elements / ranks
    return found[ranks]["small"] + crowd * (pack_sum + wire + unpack + update)


def launch(ranks, arguments):
    mpiexec = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    with tempfile.NamedTemporaryFile("r") as file:
        command = [sys.executable, __file__, "--elements", str(arguments.elements)]
        command += ["--rounds", str(arguments.rounds), "--rank", file.name]
        env = {**os.environ, "OMP_NUM_THREADS": "1", **(TCP if arguments.tcp else {})}
        subprocess.run([mpiexec, "-n", str(ranks), *command], check=True, env=env)
        return json.load(file)


def main(work):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=float, default=8e6)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tcp", action="store_true")
    parser.add_argument("--json", type=output.file(".json"), default=None)
    parser.add_argument("--rank", type=Path, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    n = int(arguments.elements)
    if arguments.rank:
        from mpi4py import MPI

        mine = measure(n, arguments.rounds)
        if MPI.COMM_WORLD.rank == 0:
            arguments.rank.write_text(json.dumps(mine))
        return
    work.expect(len(RANKS))
    found = {}
    for ranks in RANKS:
        found[ranks] = launch(ranks, arguments)
        work.advance(f"{ranks} ranks")
    work.show()
    one = found[1]
    print(f"Adam, {n:,} float32, {os.cpu_count()} cores, {'TCP' if arguments.tcp else 'memory'}")
    for ranks in (1, 2):
        rates = [f"{key} {found[ranks][key] * 1e9:.2f} ns" for key in ("copy", "add", "update")]
        wire = f"wire {found[ranks]['wire_rate'] / 1e9:.2f} GB/s"
        print(f"an element, {ranks} at a time: {', '.join([*rates, wire])}")
    print("".join(f"{name:>10}" for name in COLUMNS))
    for ranks, r in found.items():
        expected, sent = model(ranks, n, found), 2 * (ranks - 1) / ranks * n * 4
        row = [f"{ranks}", f"{r['step'] * 1e3:.1f}", f"{expected * 1e3:.1f}"]
        row += [f"{r['step'] / expected:.2f}"]
        row += [f"{r[key] * 1e3:.1f}" for key in ("reduce", "gather", "bare")]
        row += [f"{r[key] * 1e6:.0f}" for key in ("small", "agree")]
        row += [f"{r['counted' if arguments.tcp else 'sent'] / 1e6:.2f}", f"{sent / 1e6:.2f}"]
        print("".join(f"{cell:>10}" for cell in [*row, f"{r['states'] / one['states']:.4f}"]))
    if arguments.json:
        print("Figures are in", work.write(arguments.json, json.dumps(found, indent=1)))


if __name__ == "__main__":
    with Work("mpi") as work:
        main(work)
