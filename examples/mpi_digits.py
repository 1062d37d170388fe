"""Trains a network on handwritten digits on several ranks, and compares with one process.

    pip install "fastgd[mpi,train]" mpich
    OMP_NUM_THREADS=1 mpiexec -n 4 python examples/mpi_digits.py

Each rank computes the gradients of its samples of every batch; `fastgd.mpi.Sharded` averages them
and updates the parameters, with a quarter of the states on each of four ranks.  Rank 0 then trains
the same network alone, accumulating rank by rank, and finds the same bits.
"""

import argparse

import numpy as np
from mpi4py import MPI
from sklearn.datasets import load_digits

import fastgd
from fastgd.commands.mlp import accuracy, init_layers, loss_and_grads
from fastgd.data import batches
from fastgd.mpi import Sharded

SIZES, BATCH, RATE = (64, 96, 32, 10), 128, 2e-3


def digits():
    """Images as rows of 64 floats, and their digits: for training, and for testing."""
    data = load_digits()
    x, y = (data.data / 16).astype(np.float32), data.target
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    return (x[:1500], y[:1500]), (x[1500:], y[1500:])


def train(epochs, comm):
    """Train on all ranks of a communicator."""
    train_data, _ = digits()
    params = init_layers(SIZES, np.random.default_rng(1))
    with Sharded(fastgd.AdamW, params, comm=comm, lr=RATE) as opt:
        for _ in range(epochs):
            # All ranks draw the same batches; each takes every size-th sample from its own on.
            for x, y in batches(train_data, BATCH, seed=2, drop_last=True):
                own = slice(comm.rank, None, comm.size)
                _, grads = loss_and_grads(params, x[own], y[own])
                opt.step(grads)
        states = sum(a.nbytes for entry in opt.state.values() for a in entry.values())
    return params, states


def train_alone(epochs, ranks):
    """Train in one process, which accumulates the gradients of each rank's samples in order."""
    train_data, _ = digits()
    params = init_layers(SIZES, np.random.default_rng(1))
    opt = fastgd.AdamW(params, lr=RATE)
    for _ in range(epochs):
        for x, y in batches(train_data, BATCH, seed=2, drop_last=True):
            for rank in range(ranks):
                own = slice(rank, None, ranks)
                opt.accumulate(loss_and_grads(params, x[own], y[own])[1])
            opt.step()
    return params, sum(a.nbytes for entry in opt.state.values() for a in entry.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    epochs = parser.parse_args().epochs
    comm = MPI.COMM_WORLD
    params, states = train(epochs, comm)
    largest = comm.allreduce(states, MPI.MAX)
    if comm.rank == 0:
        alone, whole = train_alone(epochs, comm.size)
        same = all(
            np.array_equal(params[name][key], alone[name][key])
            for name in params
            for key in params[name]
        )
        if not same:
            raise SystemExit("expected the parameters of one process, found others")
        print(f"test accuracy {accuracy(params, *digits()[1]):.4f} after {epochs} epochs on "
              f"{comm.size} ranks, the same bits as in one process")  # fmt: skip
        print(f"states on a rank: {largest:,} bytes at most, {largest / whole:.3f} of the whole")


if __name__ == "__main__":
    main()
