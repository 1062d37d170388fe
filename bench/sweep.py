"""A whole training step, against torch's separate calls and the machine's stream.

    python bench/sweep.py                                       all of it; needs torch
    python bench/sweep.py --quick                               large arrays, without torch
    python bench/sweep.py --only "clip + AdamW + average, 32"   what begins so, here the README's

Clipping by the norm of all gradients, AdamW, and the average of the weights: what a loop around
torch does with clip_grad_norm_, a fused AdamW and AveragedModel.  And adaptive gradient clipping of
rows, as timm does it.  The stream moves the same bytes.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from averages import report
from compare import ALL_THREADS
from stream import Stream
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fastgd
from fastgd.commands.work import Work
from fastgd.functional import global_norm

DECAY, LIMIT, RATIO = 0.999, 1.0, 0.01


def clip_units(tensors):
    """timm's adaptive_clip_grad, of tensors of two dimensions."""
    for p in tensors:
        norms = p.detach().norm(2.0, dim=1, keepdim=True)
        most = norms.clamp_(min=1e-3).mul_(RATIO)
        norms = p.grad.norm(2.0, dim=1, keepdim=True)
        clipped = p.grad * (most / norms.clamp(min=1e-6))
        p.grad = torch.where(norms < most, p.grad, clipped)


class Peers:
    """The same parameters and gradients three times: for fastgd, for torch, and to compare."""

    def __init__(self, count, size, width=None):
        rng = np.random.default_rng(0)
        drawn = np.resize(rng.standard_normal(min(size, 1 << 20), np.float32), size)
        if width is not None:
            drawn = drawn.reshape(-1, width)
        self.grads = [drawn * np.float32(1 + k % 3) for k in range(count)]
        self.params = [drawn + np.float32(k) for k in range(count)]
        self.tensors = [torch.tensor(p, requires_grad=True) for p in self.params]
        for tensor, g in zip(self.tensors, self.grads, strict=True):
            tensor.grad = torch.tensor(g)
        self.scale = torch.ones(())

    def torch_step(self, average):
        tensors, grads = self.tensors, [torch.tensor(g) for g in self.grads]
        opt = torch.optim.AdamW(tensors, fused=True)
        model = torch.nn.ParameterList(tensors)
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
        averaged.update_parameters(model)

        def step():
            # Clipping writes to the gradients: the next step must find them as they were, which in
            # a real loop the backward pass sees to; so only what clipping itself costs is counted.
            for tensor, g in zip(tensors, grads, strict=True):
                tensor.grad = g
            torch.nn.utils.clip_grad_norm_(tensors, LIMIT)
            opt.step()
            if average:
                averaged.update_parameters(model)

        return step

    def torch_units_step(self):
        tensors, grads = self.tensors, [torch.tensor(g) for g in self.grads]
        opt = torch.optim.AdamW(tensors, fused=True)

        def step():
            for tensor, g in zip(tensors, grads, strict=True):
                tensor.grad = g
            clip_units(tensors)
            opt.step()

        return step

    def fastgd_step(self, average):
        options = {"average": fastgd.averages.EMA(self.params, DECAY)} if average else {}
        opt = fastgd.AdamW(self.params, clip_norm=LIMIT, **options)
        return lambda: opt.step(self.grads)

    def fastgd_units_step(self):
        opt = fastgd.AdamW(self.params, clip_ratio=RATIO)
        return lambda: opt.step(self.grads)


def whole(stream, count, size, threads, average):
    """Clipping, AdamW and perhaps the average."""
    peers = Peers(count, size)
    yield "fastgd", peers.fastgd_step(average)
    if size > 1000:
        yield "stream", stream.over(count * size, 2 + average, threads, reads=1)
    yield "torch", peers.torch_step(average)


def by_units(stream, count, size, width, threads):
    """Adaptive clipping, which reads gradients and parameters before the step does."""
    peers = Peers(count, size, width)
    yield "fastgd", peers.fastgd_units_step()
    if size > 1000:
        yield "stream", stream.over(count * size, 2, threads, reads=2)
    yield "torch", peers.torch_units_step()


def norms(stream, count, size, threads):
    """The norm of all gradients."""
    grads = Peers(count, size).grads
    tensors = [torch.tensor(g) for g in grads]
    assert abs(global_norm(grads) / float(torch.nn.utils.get_total_norm(tensors)) - 1) < 1e-4
    yield "fastgd", lambda: global_norm(grads)
    yield "read", stream.reading(count * size, threads)
    yield "torch", lambda: torch.nn.utils.get_total_norm(tensors)


def main(work, quick, only):
    """Print a line for each way to step and shape."""
    stream, lines = Stream(), {}
    shapes = [(32, 1_000_000, ALL_THREADS), (300, 64, 1), (1, 100_000, 1)]
    for count, size, threads in shapes[:1] if quick else shapes:
        of, given = f"{count} × {size}", (count, size, threads)
        for words, average in (("clip + AdamW + average", True), ("clip + AdamW", False)):
            lines[f"{words}, {of}"] = threads, whole(stream, *given, average)
        width = 1000 if size > 1000 else 8
        rows = f"{count} × {size // width} × {width}"
        lines[f"units + AdamW, {rows}"] = threads, by_units(stream, count, size, width, threads)
        lines[f"norm, {of}"] = threads, norms(stream, *given)
    chosen = {words: line for words, line in lines.items() if words.startswith(only)}
    if not chosen:
        raise SystemExit(f"--only: expected how a line begins: {'; '.join(lines)}; found {only!r}")
    work.expect(len(chosen))
    for words, (threads, steps) in chosen.items():
        fastgd.set_num_threads(threads)
        torch.set_num_threads(threads)
        report(words, {name: step for name, step in steps if not (quick and name == "torch")})
        work.advance(words)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="large arrays alone, without torch")
    parser.add_argument("--only", default="", help="lines that begin so")
    given = parser.parse_args()
    with Work("sweep") as work:
        main(work, given.quick, given.only)
