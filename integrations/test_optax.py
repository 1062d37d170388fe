"""optax's transformations beside fastgd's optimizers, step by step in float64.

Where the two mean something else, the case says how one is told to do as the other.  Not here, as
their formulas differ: optax's ``radam`` (ε is added to √v̂), ``amsgrad`` (the maximum is that of v̂,
not of v), ``nadamw`` (the momentum has the bias correction of the next step) and ``rprop``, whose
first step does nothing.  LAMB and LARS are in ``tests/optimizers``.
"""

from __future__ import annotations

import numpy as np
import pytest

import fastgd

jax = pytest.importorskip("jax", reason="jax is not installed")
optax = pytest.importorskip("optax", reason="optax is not installed")

STEPS = 15
SHAPES = [(7,), (5, 4), (3, 3, 2, 4)]
CASES = {
    "sgd": (lambda: optax.sgd(0.1), fastgd.SGD, {"lr": 0.1}),
    "sgd with momentum": (
        lambda: optax.sgd(0.1, momentum=0.9),
        fastgd.SGD,
        {"lr": 0.1, "momentum": 0.9},
    ),
    "nesterov": (
        lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
        fastgd.SGD,
        {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    ),
    "adam": (lambda: optax.adam(0.01, eps=1e-3), fastgd.Adam, {"lr": 0.01, "eps": 1e-3}),
    "adam with a root": (
        lambda: optax.adam(0.01, eps=1e-4, eps_root=1e-3),
        fastgd.Adam,
        {"lr": 0.01, "eps": 1e-4, "eps_root": 1e-3},
    ),
    "adamw": (
        lambda: optax.adamw(0.01, b2=0.9, weight_decay=0.1),
        fastgd.AdamW,
        {"lr": 0.01, "betas": (0.9, 0.9), "weight_decay": 0.1},
    ),
    "adamax": (
        lambda: optax.adamax(0.01, eps=1e-3),
        fastgd.Adamax,
        {"lr": 0.01, "eps": 1e-3},
    ),
    "lion": (
        lambda: optax.lion(0.01, b1=0.95, b2=0.98, weight_decay=0.1),
        fastgd.Lion,
        {"lr": 0.01, "betas": (0.95, 0.98), "weight_decay": 0.1},
    ),
    # optax's ε is within the root.
    "adagrad": (
        lambda: optax.adagrad(0.1, initial_accumulator_value=0.1, eps=1e-3),
        fastgd.Adagrad,
        {"lr": 0.1, "initial_accumulator_value": 0.1, "eps": 0.0, "eps_root": 1e-3},
    ),
    "rmsprop": (
        lambda: optax.rmsprop(0.01, decay=0.95, eps=1e-3, eps_in_sqrt=False),
        fastgd.RMSprop,
        {"lr": 0.01, "alpha": 0.95, "eps": 1e-3},
    ),
    "rmsprop with a root": (
        lambda: optax.rmsprop(0.01, decay=0.95, eps=1e-3, centered=True),
        fastgd.RMSprop,
        {"lr": 0.01, "alpha": 0.95, "eps": 0.0, "eps_root": 1e-3, "centered": True},
    ),
    "adadelta": (
        lambda: optax.adadelta(0.5, rho=0.95, eps=1e-3),
        fastgd.Adadelta,
        {"lr": 0.5, "rho": 0.95, "eps": 1e-3},
    ),
    "sign_sgd": (lambda: optax.sign_sgd(0.01), fastgd.SignSGD, {"lr": 0.01}),
    "clip": (
        lambda: optax.chain(optax.clip(0.3), optax.sgd(0.1)),
        fastgd.SGD,
        {"lr": 0.1, "clip_value": 0.3},
    ),
    "clip_by_global_norm": (
        lambda: optax.chain(optax.clip_by_global_norm(2.0), optax.adam(0.1)),
        fastgd.Adam,
        {"lr": 0.1, "clip_norm": 2.0},
    ),
    # Its units are along the last axis.
    "adaptive_grad_clip": (
        lambda: optax.chain(optax.adaptive_grad_clip(0.3), optax.adam(0.1)),
        fastgd.Adam,
        {"lr": 0.1, "clip_ratio": 0.3, "layout": "in_out"},
    ),
    # And here along the first.
    "centralize": (
        lambda: optax.chain(optax.centralize(), optax.clip_by_global_norm(1.0), optax.adam(0.1)),
        fastgd.Adam,
        {"lr": 0.1, "clip_norm": 1.0, "centralize": True},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_of_optax(name):
    make, kind, hyper = CASES[name]
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        theirs = make()
        params = [rng.standard_normal(shape) for shape in SHAPES]
        others, state = [p.copy() for p in params], theirs.init(params)
        opt = kind(params, **hyper)
        for step in range(STEPS):
            grads = [rng.standard_normal(shape) + 0.25 for shape in SHAPES]
            updates, state = theirs.update(grads, state, others)
            others = [p + np.asarray(u) for p, u in zip(others, updates, strict=True)]
            opt.step(grads)
            for p, other in zip(params, others, strict=True):
                assert np.allclose(p, other, rtol=1e-11, atol=1e-13), step


def test_averages_are_those_of_optax():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        for debias in (True, False):
            theirs = optax.ema(0.9, debias=debias)
            p = rng.standard_normal(5)
            state = theirs.init(p)
            ours = fastgd.averages.EMA(p, 0.9, bias_correction=debias)
            if not debias:  # optax starts from 0, fastgd from the weights
                state = state._replace(ema=p.copy())
            for _ in range(STEPS):
                p[...] = rng.standard_normal(5)
                other, state = theirs.update(p, state)
                ours.update()
                (found,) = ours.averages.values()
                assert np.allclose(found, other, rtol=1e-12)
