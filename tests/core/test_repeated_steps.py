"""A step like the last one works little out anew; it does what it does on a plan that is new."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from support.helpers import draw, same_bits

import fastgd
from fastgd.averages import EMA

SHAPES = [(3, 4), (5,), (64,), (2, 2), (1,)]
OPTIONS = [
    {"nonfinite": "skip"},
    {"rows": "lazy", "zero_grads": True},
    {"state_dtype": "bfloat16", "rounding": "stochastic", "clip_by": "tensor"},
    {"average": 0.5},
]


def shaped(seed):
    """Normal numbers in the form of the parameters."""
    sizes = [int(np.prod(shape)) for shape in SHAPES]
    return [x.reshape(shape) for x, shape in zip(draw(seed, sizes), SHAPES, strict=True)]


def gradients(rng, opt):
    """Gradients of one of many kinds, in the form of the parameters."""
    grads = shaped(rng.integers(99))
    i = rng.integers(len(grads))
    kind = rng.integers(6)
    if kind == 0:
        grads[i] = None
    elif kind == 1:
        grads[i] = grads[i].astype(rng.choice(["f8", "f2"]))
    elif kind == 2 and opt.stepper.options["nonfinite"] == "skip":
        grads[i].flat[0] = np.nan
    elif kind == 3 and opt.stepper.options["rows"] == "lazy":
        grads[0] = fastgd.Rows(np.array([2, 0, 2]), draw(1, [12])[0].reshape(3, 4))
    return grads


def change(rng, opt, group, last):
    """Change something between steps; returns the gradients of the next, often the last ones."""
    what = rng.integers(12)
    if what == 0:
        group["lr"] = float(rng.uniform(0.01, 0.1))
    elif what == 1:
        group["weight_decay"] = float(rng.choice([0.0, 0.1]))
    elif what == 2:
        group["clip_norm"] = [None, 0.5, 1e9][rng.integers(3)]
    elif what == 3:
        group["clip_value"] = [None, 0.5][rng.integers(2)]
    elif what == 4:
        group["maximize"] = bool(rng.integers(2))
    elif what == 5:
        with pytest.raises(ValueError, match="shape"):
            opt.step([*gradients(rng, opt)[:-1], np.zeros(7, np.float32)])
    elif what == 6:
        opt.stepper.steps[rng.integers(len(SHAPES))] += 1
    elif what == 7:
        fastgd.set_backend(str(rng.choice(fastgd.available_backends())))
    elif what == 8:
        state = opt.state_dict()
        state["state"][1]["step"] = 3.0
        opt.load_state_dict(state)
    elif what == 9 and opt.stepper.plan.bound is not None:
        return None
    return last if last is not None and rng.integers(2) else gradients(rng, opt)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options)))
def test_a_step_does_what_it_does_on_a_new_plan(options):
    rng = np.random.default_rng(0)
    params = shaped(2)
    options = copy.deepcopy(options)
    if "nonfinite" in options:
        options["grads"] = [np.ones_like(p) for p in params]
    if "average" in options:
        options["average"] = EMA(params, options["average"])
    opt = fastgd.Adam(params, lr=0.05, **options)
    grads = None
    for _ in range(100):
        grads = change(rng, opt, opt.param_groups[0], grads)
        new = copy.deepcopy(opt)
        given = copy.deepcopy(grads)
        scale = float(rng.choice([1.0, 1.0, 1.0, 4.0]))
        record, theirs = opt.step(grads, grad_scale=scale), new.step(given, grad_scale=scale)
        assert repr(record) == repr(theirs)
        for a, b in zip(arrays(opt), arrays(new), strict=True):
            assert same_bits(a, b)


def arrays(opt):
    """All that a step writes."""
    yield from opt.param_groups[0]["params"]
    for entry in opt.state.values():
        yield from entry.values()
    if opt.average is not None:
        yield from opt.average.averages.values()
