"""Steps by rows of a table, against torch's, FBGEMM's, and moving as many bytes.

    python bench/rows.py [--rows 4000000] [--rounds 8] [--only Adagrad]        needs torch

For each optimizer, batches of 8,192 and 262,144 indices, uniform and by Zipf's law (1.1): the time
of a row of the gradient in nanoseconds, torch's time and FBGEMM's as multiples of fastgd's, and
fastgd's as a multiple of "moved", a loop in C that reads all values, and their rows of table and
states, and writes these.  Lines come sorted, worst against torch first.
Then the same batch in tables of 10,000 rows and more, and on one thread and two.

The contestants take turns in the same memory, each with other indices than the last, two steps at
a time of which the second counts: until then other contestants' threads have ceased to spin.  torch
is given its gradient uncoalesced, as autograd makes it.  FBGEMM's kernels (`pip install --no-deps
fbgemm-gpu-cpu==1.8.0`, for torch 2.13) step within backward, in a table of their own; it has none
for a lazy Adam.  A table of 10,000,000 rows takes 2.6 GB, each state and FBGEMM as much more.
"""

from __future__ import annotations

import argparse
from functools import lru_cache
from statistics import median
from time import perf_counter, sleep

import numpy as np
import torch
from stream import Stream

import fastgd
from fastgd.commands.work import Work

try:
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    IN_FBGEMM = {
        "SGD": EmbOptimType.EXACT_SGD,
        "Adagrad": EmbOptimType.EXACT_ADAGRAD,
        "RowWiseAdagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    }
except (ImportError, OSError) as error:
    print(f"FBGEMM is left out: {str(error).splitlines()[0]}")
    IN_FBGEMM = {}

LENGTH, LR = 64, 0.01
BATCHES = (8192, 262_144)
OPTIMIZERS = [n for n in ("SGD", "Adagrad", "SparseAdam", "RowWiseAdagrad") if hasattr(fastgd, n)]


def draw(law, rows, k, rng):
    """Indices of one batch."""
    if law == "uniform":
        return rng.integers(0, rows, k)
    chance, row = zipf(rows)
    return row[np.searchsorted(chance, rng.random(k))]


@lru_cache(1)
def zipf(rows):
    """The chance of a rank or a better one, and the row that has a rank."""
    chance = (np.arange(1, rows + 1, dtype=np.float64) ** -1.1).cumsum()
    return chance / chance[-1], np.random.default_rng(1).permutation(rows)


class Bench:
    """One optimizer over one table, in every library that has it."""

    def __init__(self, name, rows, plain, rounds):
        self.name, self.rows, self.plain, self.rounds = name, rows, plain, rounds
        table = np.zeros((rows, LENGTH), np.float32)
        table += 0.5
        self.opt = getattr(fastgd, name)(table, lr=LR)
        states = {key: a for key, a in self.opt.state[0].items() if a.ndim}
        for a in states.values():
            a[...] = 0.1
        self.arrays = [table, *(a for a in states.values() if a.size == table.size)]
        self.lines = next((a for a in states.values() if a.size == rows), None)
        self.steps = {"fastgd": self.in_fastgd}
        if name != "RowWiseAdagrad":
            self.param = torch.nn.Parameter(torch.from_numpy(table))
            self.torch_opt = getattr(torch.optim, name)([self.param], lr=LR)
            if name != "SGD":
                step = torch.tensor(1.0) if name == "Adagrad" else 1
                own = {key: torch.from_numpy(a) for key, a in states.items()}
                self.torch_opt.state[self.param] = {"step": step, **own}
            self.steps["torch"] = self.in_torch
        if name in IN_FBGEMM:
            self.bags = SplitTableBatchedEmbeddingBagsCodegen(
                [(rows, LENGTH, EmbeddingLocation.HOST, ComputeDevice.CPU)],
                optimizer=IN_FBGEMM[name],
                learning_rate=LR,
                pooling_mode=PoolingMode.SUM,
            )
            self.steps["FBGEMM"] = self.in_fbgemm
        self.steps["moved"] = self.moved

    def in_fastgd(self, indices, values, batch):
        return lambda: self.opt.step(batch)

    def in_torch(self, indices, values, batch):
        shape = self.param.shape
        self.param.grad = torch.sparse_coo_tensor(
            torch.from_numpy(indices)[None], torch.from_numpy(values), shape, check_invariants=False
        )
        return self.torch_opt.step

    def in_fbgemm(self, indices, values, batch):
        offsets = torch.arange(len(indices) + 1)
        out = self.bags(torch.from_numpy(indices), offsets)
        return lambda: out.backward(torch.from_numpy(values))

    def moved(self, indices, values, batch):
        return lambda: self.plain.rows(self.arrays, self.lines, self.threads)(indices, values)

    def times(self, law, k, threads):
        """The median time of each contestant for a row of the gradient, in nanoseconds."""
        fastgd.set_num_threads(threads)
        torch.set_num_threads(threads)
        self.threads = threads
        rng = np.random.default_rng(0)
        values = rng.standard_normal((k, LENGTH), np.float32)
        several = [draw(law, self.rows, k, rng) for _ in range(9 if k < 100_000 else 3)]
        batches = [fastgd.Rows(indices, values) for indices in several]
        taken = {name: [] for name in self.steps}
        turn = 0
        for _ in range(self.rounds + 1):
            for name, prepare in self.steps.items():
                sleep(0.01)
                for _ in range(2):
                    turn += 1
                    n = turn % len(several)
                    step = prepare(several[n], values, batches[n])
                    start = perf_counter()
                    step()
                    passed = perf_counter() - start
                taken[name].append(passed)
        return {name: median(own[1:]) / k * 1e9 for name, own in taken.items()}


def shown(found, key, of="fastgd"):
    return f"{found[key] / found[of]:7.2f}" if key in found and of in found else "      –"


def line(found):
    return (
        f"{found['fastgd']:8.1f} ns {shown(found, 'torch')} {shown(found, 'FBGEMM')} "
        f"{shown(found, 'fastgd', 'moved')}"
    )


def main(work):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--only", nargs="+", choices=OPTIMIZERS, default=OPTIMIZERS)
    parser.add_argument("--sizes", nargs="+", type=int, default=[10_000, 100_000, 1_000_000])
    arguments = parser.parse_args()
    plain, found, by_size, threaded = Stream(), [], [], []
    work.expect(len(arguments.only) * (2 * len(BATCHES) + len(arguments.sizes) + 1))
    for name in arguments.only:
        bench = Bench(name, arguments.rows, plain, arguments.rounds)
        for k in BATCHES:
            for law in ("uniform", "Zipf"):
                one, two = (bench.times(law, k, threads) for threads in (1, 2))
                found += [((name, k, law, 1), one), ((name, k, law, 2), two)]
                threaded.append(((name, k, law), one["fastgd"] / two["fastgd"]))
                work.advance(f"{name}, {k:,d} indices")
        for rows in (*arguments.sizes, arguments.rows):
            if rows < arguments.rows:
                bench = None
                small = Bench(name, rows, plain, arguments.rounds)
            else:
                small = bench or Bench(name, rows, plain, arguments.rounds)
            by_size.append(((name, rows), small.times("uniform", 8192, 1)))
            del small
            work.advance(f"{name}, {rows:,d} rows")
    work.show()
    print(
        "optimizer, indices, law, threads: a row, torch / fastgd, FBGEMM / fastgd, fastgd / moved"
    )
    for (name, k, law, threads), own in sorted(
        found, key=lambda one: one[1].get("torch", np.inf) / one[1]["fastgd"]
    ):
        print(f"{name:14s} {k:7,d} {law:8s} {threads} {line(own)}")
    print("\noptimizer, rows of the table, 8,192 uniform indices, 1 thread: the same")
    for (name, rows), own in by_size:
        print(f"{name:14s} {rows:10,d} {line(own)}")
    print("\noptimizer, indices, law: time on one thread / on two")
    for (name, k, law), ratio in sorted(threaded, key=lambda one: one[1]):
        print(f"{name:14s} {k:7,d} {law:8s} {ratio:5.2f}")


if __name__ == "__main__":
    with Work("rows") as work:
        main(work)
