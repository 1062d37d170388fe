"""Final losses with states in fewer bits, against float32's, on three problems.

    python bench/training.py [--problem text] [--optimizer Adam] [--workers 2] [--log FILE]
    python bench/training.py --brief ...

For each problem and optimizer: the final loss of five float32 runs, which differ by their seed, and
of as many with states of 16 and of 8 bits, from the same seeds: the same initial weights and
batches.  Trajectories diverge by rounding, so single runs differ as seeds do: the criterion is
whether the mean lies within the spread of the float32 runs, OUTSIDE if not.  Finer is the mean of
the paired differences, between runs of the same seed, with its standard error.  A run that
diverged has an infinite loss.

Every run with fewer bits also computes its second moments in float32, from the same gradients: if
they don't get stuck, their sum is the same, and few are far off.

digits      a small network on handwritten digits, in NumPy: the loss on all of them
text        a character-level language model of two million parameters on Python's help, in torch:
            the loss on a tenth of it that was held out
quadratic   least squares with a condition number of 10^4, in NumPy

With ``--brief``: a row for each optimizer, of these differences alone, and no second moments.
Optimizers that store no state in fewer bits are left out, if they aren't asked for.

With ``--log`` each run is a line of that file as soon as it ends, and those in it aren't run again.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import numpy as np

import fastgd
from fastgd.commands import output
from fastgd.commands.mlp import init_layers, loss_and_grads
from fastgd.commands.train import SETTINGS
from fastgd.commands.work import Work
from fastgd.core.storage import saved_as
from fastgd.kernels.reference import RULES
from fastgd.optimizers import OPTIMIZERS

F32 = np.float32
# Where the defaults are too slow or too cautious.
TUNED = {
    "Momentum": {"lr": 0.1},
    "Adagrad": {"lr": 0.01},
    "RMSprop": {"lr": 1e-3},
    "Adam": {"lr": 1e-3},
    "AdamW": {"lr": 1e-3, "weight_decay": 0.01},
}
OTHERWISE = {
    "quadratic": {"Adagrad": {"lr": 0.1}, "RMSprop": {"lr": 3e-3}, "Adam": {"lr": 1e-2},
                  "AdamW": {"lr": 1e-2, "weight_decay": 1e-4}},
}  # fmt: skip
FIELDS = ("problem", "seed", "optimizer", "storage", "steps")
STORAGES = {
    "float32": {},
    "bfloat16": {"state_dtype": "bfloat16"},
    "8bit": {"state_dtype": "8bit", "min_8bit_size": 0},
}

# ---------------------------------------------------------------------------------- the problems
# Each is a function from a seed to the parameters, a function that draws a batch and returns their
# gradients, and one that returns the loss.


def digits(seed):
    """Cross-entropy on all digits; batches of 32."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = (data.data / 16).astype(F32), data.target
    rng = np.random.default_rng(seed)
    params = init_layers((64, 96, 32, 10), rng)

    def gradients():
        k = rng.integers(0, len(x), 32)
        return loss_and_grads(params, x[k], y[k])[1]

    return params, gradients, lambda: loss_and_grads(params, x, y)[0]


def quadratic(seed, n=512):
    """½‖A(w − w*)‖²/n with singular values from 1 to 10⁻² times √n; batches of 64 rows."""
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.standard_normal((n, n)))
    v, _ = np.linalg.qr(rng.standard_normal((n, n)))
    a = (u * np.geomspace(1, 1e-2, n) * np.sqrt(n) @ v).astype(F32)
    target = rng.standard_normal(n).astype(F32)
    w = np.zeros(n, F32)

    def gradients():
        rows = a[rng.integers(0, n, 64)]
        return rows.T @ (rows @ (w - target)) / F32(64)

    return w, gradients, lambda: float(np.mean((a.astype(float) @ (w - target)) ** 2) / 2)


CONTEXT, BATCH = 16, 64


@functools.cache
def characters():
    """Python's help as numbers of characters, how many differ, where the held-out begins."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[key] for key in sorted(topics))
    alphabet, codes = np.unique(np.frombuffer(text.encode("utf-32-le"), "<u4"), return_inverse=True)
    return codes.astype(np.int64), len(alphabet), len(codes) * 9 // 10


def windows(starts):
    """The contexts that begin at some characters, and the character after each."""
    import torch

    found = torch.from_numpy(characters()[0][starts[:, None] + np.arange(CONTEXT + 1)])
    return found[:, :-1], found[:, -1]


def network(seed):
    """The language model: an embedding, and two hidden layers over all of the context."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    size = characters()[1]
    model = nn.Sequential(
        nn.Embedding(size, 32),
        nn.Flatten(),
        nn.Linear(32 * CONTEXT, 2048),
        nn.ReLU(),
        nn.Linear(2048, 512),
        nn.ReLU(),
        nn.Linear(512, size),
    )
    assert sum(p.numel() for p in model.parameters()) >= 2_000_000
    return model


def held_out(model):
    """Cross-entropy on every seventh window that training never sees."""
    import torch

    codes, _, end = characters()
    with torch.no_grad():
        x, y = windows(np.arange(end, len(codes) - CONTEXT, 7))
        return float(torch.nn.functional.cross_entropy(model(x), y))


def text(seed):
    """Cross-entropy of the next character; batches of 64 of 420,000 windows, no epoch in all."""
    import torch

    torch.set_num_threads(1)
    model = network(seed)
    tensors = list(model.parameters())
    rng = np.random.default_rng(seed)
    starts = characters()[2] - CONTEXT

    def gradients():
        x, y = windows(rng.integers(0, starts, BATCH))
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        return [p.grad.numpy() for p in tensors]

    return [p.detach().numpy() for p in tensors], gradients, lambda: held_out(model)


PROBLEMS = {"digits": digits, "text": text, "quadratic": quadratic}


def made(problem, name, params, storage, **more):
    """An optimizer with the settings that a problem wants."""
    options = OTHERWISE.get(problem, {}).get(name, TUNED.get(name, SETTINGS.get(name, {})))
    return OPTIMIZERS[name](params, **{**options, **STORAGES[storage], **more})


@functools.cache
def storages(problem, name):
    """float32, and all else that an optimizer takes, and stores a state in."""
    found, full = ["float32"], None
    for storage in STORAGES:
        try:
            opt = made(problem, name, [np.zeros((5, 3), F32), np.zeros(5, F32)], storage)
        except ValueError:
            continue
        dtypes = [a.dtype for entry in opt.state.values() for a in entry.values()]
        if full is None:
            full = dtypes
        elif dtypes != full:
            found.append(storage)
    return found


# -------------------------------------------------------------------------------------- the runs


def copied(tree):
    """The same tree with copies of its arrays."""
    if isinstance(tree, dict):
        return {key: copied(value) for key, value in tree.items()}
    return [copied(value) for value in tree] if isinstance(tree, list) else tree.copy()


def moments(opt, exact):
    """Sum of an optimizer's second moments over the exact ones', and how many are off by double."""
    found = {True: [], False: []}
    rows = zip(opt.state.values(), exact.state.values(), opt.stepper.rules, strict=True)
    for own, whole, rule in rows:
        for key in RULES[rule].squares:
            found[True].append(saved_as(own, rule, key).load(F32))
            found[False].append(saved_as(whole, rule, key).load(F32))
    if not any(map(np.any, found[False])):  # none, or they follow from step sizes that stand still
        return None
    v, w = np.concatenate(found[True]).astype(float), np.concatenate(found[False]).astype(float)
    v, w = v[w > 0], w[w > 0]
    return [v.sum() / w.sum(), float(np.mean((v > 2 * w) | (v < w / 2)))]


def run(job, with_moments=True):
    """One line of the log."""
    problem, seed, name, storage, steps = job
    fastgd.set_num_threads(1)
    params, gradients, loss = PROBLEMS[problem](seed)
    opts = [made(problem, name, params, storage)]
    if STORAGES[storage] and with_moments:
        opts.append(made(problem, name, copied(params), "float32", lr=0.0))
    with np.errstate(all="ignore"):
        for _ in range(steps):
            found = gradients()
            for each in opts:
                each.step(found)
        final = float(loss())
    line = dict(zip(FIELDS, job, strict=True))
    line["loss"] = final if np.isfinite(final) else np.inf
    return line | {"moments": moments(*opts) if len(opts) == 2 else None}


def key(line):
    """The job that a line of the log is the result of."""
    return tuple(line[field] for field in FIELDS)


def measured(work, jobs, workers, log, run=run):
    """A line for each job: those in the log, and all others, which are run and added to it.

    An interrupt is this process's affair, which ends the others.
    """
    lines = {}
    if log and log.exists():
        lines = {key(line): line for line in map(json.loads, log.read_text().splitlines())}
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    missing = [job for job in jobs if job not in lines]
    work.expect(len(missing))
    ignore = signal.signal, (signal.SIGINT, signal.SIG_IGN)
    with multiprocessing.get_context("spawn").Pool(workers, *ignore) as pool:
        for line in pool.imap_unordered(run, missing):
            lines[key(line)] = line
            if log:
                with log.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                work.keep(log)
            work.advance(f"{line['problem']}, {line['optimizer']}")
    work.show()
    if log:
        print("Runs are in", output.with_size(log), file=sys.stderr)
    return [lines[job] for job in jobs]


# ------------------------------------------------------------------------------------- the table


def words(lines):
    """A storage's losses, and its second moments compared with float32's."""
    losses = [line["loss"] for line in lines]
    said = f"{min(losses):.4f} to {max(losses):.4f}"
    found = [line["moments"] for line in lines if line.get("moments")]
    if found:
        total, off = np.mean(found, axis=0)
        said += f", second moments {total:.3f} of float32's in sum, {off:.2%} off by double"
    return said


def compared(lines, full):
    """Whether the mean is in float32's spread; the mean of the paired differences in percent."""
    found, exact = (np.array([line["loss"] for line in each]) for each in (lines, full))
    inside = exact.min() <= found.mean() <= exact.max()
    paired = 100 * (found - exact[: len(found)]) / exact.mean()
    error = paired.std(ddof=1) / np.sqrt(len(paired)) if len(paired) > 1 else np.nan
    return f"{'inside' if inside else 'OUTSIDE'}, paired {paired.mean():+.2f} ± {error:.2f} %"


def percent(lines, full):
    """The mean of the paired differences, in percent of the mean loss, with its standard error."""
    found, exact = (np.array([line["loss"] for line in each]) for each in (lines, full))
    paired = 100 * (found - exact) / exact.mean()
    if len(paired) < 2:
        return f"{paired.mean():+.1f}"
    return f"{paired.mean():+.1f} ± {paired.std(ddof=1) / np.sqrt(len(paired)):.1f}"


def brief(problems, names, of):
    """Print a table: an optimizer's final loss, and by how much fewer bits change it."""
    heads = [f"{p}, {what}" for p in problems for what in ("float32", "bfloat16, %", "8 bits, %")]
    print("| " + " | ".join(["", *heads]) + " |\n|---" + "|--:" * len(heads) + "|")
    for name in names:
        row = [name]
        for problem in problems:
            full, *less = of(problem, name).values()
            row.append(f"{np.mean([line['loss'] for line in full]):.4f}")
            row += [percent(lines, full) if lines else "–" for lines in less]
        print("| " + " | ".join(row) + " |")


def main(work):
    """Print a line for each problem, optimizer and storage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", choices=list(PROBLEMS), nargs="+", default=list(PROBLEMS))
    parser.add_argument("--optimizer", choices=list(OPTIMIZERS), nargs="+", default=None)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--log", type=Path, default=None)
    parser.add_argument("--brief", action="store_true", help="a row of a table for each")
    given = parser.parse_args()
    names = given.optimizer or [
        name for name in OPTIMIZERS if any(len(storages(p, name)) > 1 for p in given.problem)
    ]
    # All of a seed before the next, so that an interrupted log compares what it has.
    jobs = [
        (problem, seed, name, storage, given.steps)
        for problem, seed, name in itertools.product(given.problem, range(given.seeds), names)
        for storage in storages(problem, name)
    ]
    each = functools.partial(run, with_moments=not given.brief)
    lines = measured(work, jobs, given.workers, given.log, each)

    def of(problem, name):
        return {
            storage: [x for x in lines if key(x)[::2] == (problem, name, given.steps)
                      and x["storage"] == storage]
            for storage in STORAGES
        }  # fmt: skip

    if given.brief:
        brief(given.problem, names, of)
        return
    for problem, name in itertools.product(given.problem, names):
        full, *less = of(problem, name).items()
        print(f"{problem}, {name}: float32 {words(full[1])}")
        for storage, found in less:
            if not found:
                continue
            print(f"    {storage:<9}{compared(found, full[1])}; {words(found)}")


if __name__ == "__main__":
    with Work("training") as work:
        main(work)
