"""Whether training comes out the same with states in fewer bits, on three problems.

    python bench/training.py [--problem digits] [--optimizer Adam] [--steps 1500] [--json FILE]

For each problem and optimizer: the final loss of five float32 runs, which differ by their seed, and
of as many with states of 16 and of 8 bits.  Rounding makes paths part, so single runs differ as
seeds do: what counts is whether the mean lies within the spread of the float32 runs.  A run that
diverged has an infinite loss.

digits      a small network on handwritten digits, in NumPy
text        a character-level language model of two million parameters on Python's help, in torch
quadratic   least squares with a condition number of 10^4, in NumPy
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

import fastgd
from fastgd.commands.mlp import init_layers, loss_and_grads

F32 = np.float32
OPTIMIZERS = {
    "Momentum": {"lr": 0.1},
    "Adagrad": {"lr": 0.01},
    "RMSprop": {"lr": 1e-3},
    "Adam": {"lr": 1e-3},
    "AdamW": {"lr": 1e-3, "weight_decay": 0.01},
}
STORAGES = {
    "float32": {},
    "bfloat16": {"state_dtype": "bfloat16"},
    "8bit": {"state_dtype": "8bit", "min_8bit_size": 0},
}
SEEDS = range(5)


def digits(name, storage, seed, steps):
    """Cross-entropy on all digits after training on batches of 32."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = (data.data / 16).astype(F32), data.target
    rng = np.random.default_rng(seed)
    params = init_layers((64, 96, 32, 10), rng)
    opt = getattr(fastgd, name)(params, **OPTIMIZERS[name], **storage)
    for _ in range(steps):
        k = rng.integers(0, len(x), 32)
        opt.step(loss_and_grads(params, x[k], y[k])[1])
    return loss_and_grads(params, x, y)[0]


def quadratic(name, storage, seed, steps, n=512):
    """½‖A(w − w*)‖²/n with singular values from 1 to 10⁻², gradients from batches of rows."""
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.standard_normal((n, n)))
    v, _ = np.linalg.qr(rng.standard_normal((n, n)))
    a = (u * np.geomspace(1, 1e-2, n) * np.sqrt(n) @ v).astype(F32)
    target = rng.standard_normal(n).astype(F32)
    w = np.zeros(n, F32)
    opt = getattr(fastgd, name)(w, **{**OPTIMIZERS[name], **SLOWER.get(name, {})}, **storage)
    for _ in range(steps):
        rows = a[rng.integers(0, n, 64)]
        opt.step(rows.T @ (rows @ (w - target)) / F32(64))
    return float(np.mean((a.astype(float) @ (w - target)) ** 2) / 2)


SLOWER = {"Adagrad": {"lr": 0.1}, "RMSprop": {"lr": 3e-3}, "Adam": {"lr": 1e-2},
          "AdamW": {"lr": 1e-2, "weight_decay": 0.0}}  # fmt: skip


class Text:
    """Windows of characters of Python's own help, and a network that predicts the next one."""

    CONTEXT, BATCH = 16, 64

    def __init__(self):
        from pydoc_data.topics import topics

        text = "\n".join(topics[key] for key in sorted(topics))
        alphabet = sorted(set(text))
        codes = np.array([alphabet.index(c) for c in alphabet])
        self.size = len(alphabet)
        table = {c: k for k, c in zip(codes, alphabet, strict=True)}
        self.data = np.array([table[c] for c in text], np.int64)
        held = len(self.data) // 10
        self.train, self.test = self.data[:-held], self.data[-held:]

    def windows(self, data, starts):
        import torch

        index = starts[:, None] + np.arange(self.CONTEXT + 1)
        found = torch.from_numpy(data[index])
        return found[:, :-1], found[:, -1]

    def run(self, name, storage, seed, steps):
        import torch
        from torch import nn

        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Embedding(self.size, 32),
            nn.Flatten(),
            nn.Linear(32 * self.CONTEXT, 2048),
            nn.ReLU(),
            nn.Linear(2048, 512),
            nn.ReLU(),
            nn.Linear(512, self.size),
        )
        tensors = list(model.parameters())
        assert sum(p.numel() for p in tensors) >= 2_000_000
        opt = getattr(fastgd, name)([p.detach().numpy() for p in tensors],
                                    **OPTIMIZERS[name], **storage)  # fmt: skip
        rng = np.random.default_rng(seed)
        for _ in range(steps):
            x, y = self.windows(
                self.train, rng.integers(0, len(self.train) - self.CONTEXT, self.BATCH)
            )
            model.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            opt.step([p.grad.numpy() for p in tensors])
        with torch.no_grad():
            starts = np.arange(0, len(self.test) - self.CONTEXT - 1, 7)
            x, y = self.windows(self.test, starts)
            return float(nn.functional.cross_entropy(model(x), y))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", choices=["digits", "text", "quadratic"], default=None)
    parser.add_argument("--optimizer", choices=list(OPTIMIZERS), default=None)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    fastgd.set_num_threads(1)
    problems = {"digits": digits, "quadratic": quadratic, "text": None}
    wanted = [arguments.problem] if arguments.problem else list(problems)
    figures = []
    for problem in wanted:
        train = problems[problem] or Text().run
        for name in [arguments.optimizer] if arguments.optimizer else OPTIMIZERS:
            losses = {}
            for kind, storage in STORAGES.items():
                with np.errstate(all="ignore"):
                    losses[kind] = [train(name, storage, s, arguments.steps) for s in SEEDS]
                figures.append((problem, name, kind, losses[kind]))
            full = np.array(losses["float32"])
            low, high = full.min(), full.max()
            words = f"{problem:<10}{name:<9} float32 {full.mean():.4g} ({low:.4g} to {high:.4g})"
            for kind in list(STORAGES)[1:]:
                found = np.array(losses[kind])
                words += f"; {kind} {found.mean():.4g} ({found.min():.4g} to {found.max():.4g})"
                words += "" if low <= found.mean() <= high else " OUTSIDE"
            print(words, flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
