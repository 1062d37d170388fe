"""Parameters of one element, and what a refused call must leave alone."""

from __future__ import annotations

import copy

import torch


def one(value=1.0, grad=None, **options):
    """A parameter of one element."""
    p = torch.nn.Parameter(torch.tensor([value], dtype=torch.float64, **options))
    p.grad = None if grad is None else torch.full_like(p, grad)
    return p


def contents(opt):
    """All that a refused call must leave alone."""
    return copy.deepcopy(
        (opt.state_dict(), [p.detach() for g in opt.param_groups for p in g["params"]])
    )


def assert_same(a, b):
    assert str(a) == str(b)
