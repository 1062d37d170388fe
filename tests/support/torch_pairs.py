"""Options of torch's optimizers, parameters, and the same training under fastgd.torch and torch.optim."""

from __future__ import annotations

import inspect
from contextlib import contextmanager

import torch

import fastgd.torch
from fastgd.core.variants import rules_of, variants
from fastgd.kernels.reference import RULES
from fastgd.optimizers import GENERAL, OPTIMIZERS
from support.sampling import optimizer_cases, optimizers


def known_to_torch(name):
    """The option sets of an optimizer that torch's class of that name takes."""
    theirs = inspect.signature(getattr(torch.optim, name)).parameters
    return [options for options in variants(OPTIMIZERS[name]) if options.keys() <= theirs.keys()]


# Options of torch's classes; every one also runs with weight decay and maximize.
OPTIONS = {name: known_to_torch(name) for name in GENERAL if hasattr(torch.optim, name)}
COMMON = [{}, {"weight_decay": 0.1}, {"maximize": True, "weight_decay": 0.01}]
# Not all of torch's classes decay weights.
DECAY = {
    name: "weight_decay" in inspect.signature(getattr(torch.optim, name)).parameters
    for name in OPTIONS
}
CASES = [
    case
    for decay in (True, False)
    for case in optimizer_cases(
        {name: own for name, own in OPTIONS.items() if DECAY[name] == decay},
        COMMON if decay else [{}, {"maximize": True}],
        lr=0.01,
    )
]
NAMES = optimizers(OPTIONS)
SHAPES = [(5, 3), (300,), (), (0, 3), (4, 3, 2, 2)]


def numbers_of(name):
    """The states of one number that an optimizer keeps of each parameter."""
    return {key for rule in rules_of(OPTIMIZERS[name]) for key in RULES[rule].numbers}


@contextmanager
def exact_numbers(name):
    """In this torch makes such states in float64, as fastgd does; elsewhere it leaves all alone."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if numbers_of(name) else before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def parameters(name, dtype=torch.float64, seed=0):
    make = torch.Generator().manual_seed(seed)
    # torch's Adafactor divides by the number of elements, and raises where there are none.
    shapes = [(1, 3) if name == "Adafactor" and s == (0, 3) else s for s in SHAPES]
    params = [torch.nn.Parameter(torch.randn(s, dtype=dtype, generator=make)) for s in shapes]
    # One in channels_last, whose memory is in the order of neither C nor Fortran.
    params[-1] = torch.nn.Parameter(params[-1].detach().to(memory_format=torch.channels_last))
    return params


class Twins:
    """The same parameters under both, fed the same gradients."""

    def __init__(self, name, options, dtype=torch.float64, seed=0):
        self.make = torch.Generator().manual_seed(seed + 1)
        self.ours, self.theirs = parameters(name, dtype, seed), parameters(name, dtype, seed)
        self.name, self.options = name, options
        self.opt = getattr(fastgd.torch, name)(self.ours, **options)
        self.torch_opt = getattr(torch.optim, name)(self.theirs, **options)

    def draw(self, skip=()):
        for i, (p, q) in enumerate(zip(self.ours, self.theirs, strict=True)):
            if i in skip:
                p.grad = q.grad = None
                continue
            p.grad = torch.empty_like(p).copy_(
                torch.randn(p.shape, dtype=p.dtype, generator=self.make) + 0.1
            )
            q.grad = p.grad.clone()

    def step(self, skip=()):
        self.draw(skip)
        self.opt.step()
        with exact_numbers(self.name):
            self.torch_opt.step()

    def assert_close(self, rtol=1e-12, atol=1e-14):
        for p, q in zip(self.ours, self.theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=rtol, atol=atol)
