"""Options of each optimizer that reach every rule, and a nested structure to try them on."""

from __future__ import annotations

import numpy as np
import pytest

import fastgd
from fastgd.core.optimizer import OPTIMIZERS

# Options that between them reach every rule and every stage, for each class.
OPTIONS = {
    "SGD": [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.3},
        {"momentum": 0.8, "nesterov": True},
    ],
    "Momentum": [{}, {"beta": 0.5}, {"bias_correction": True}],
    "Adagrad": [{}, {"lr_decay": 0.1}, {"initial_accumulator_value": 0.1, "eps_root": 1e-6}],
    "RMSprop": [
        {},
        {"centered": True},
        {"momentum": 0.9},
        {"momentum": 0.9, "centered": True, "eps_root": 1e-6},
    ],
    "Adam": [{}, {"amsgrad": True}, {"betas": (0.8, 0.9), "eps": 1e-4, "eps_root": 1e-5}],
    "AdamW": [{}, {"weight_decay": 0.0}, {"amsgrad": True}],
}
COMMON = [{}, {"weight_decay": 0.1}, {"maximize": True}, {"weight_decay": 0.1, "maximize": True}]
CASES = [
    pytest.param(name, {**options, **common}, id=f"{name}-{i}-{j}")
    for name in fastgd.optimizers.__all__
    for i, options in enumerate(OPTIONS.get(name, [{}]))
    for j, common in enumerate(COMMON)
]


def made(name, options, dtype=np.float32, seed=0):
    """An optimizer over a nested structure, and a function that draws its gradients."""
    rng = np.random.default_rng(seed)

    def draw():
        return {
            "layer": {"W": rng.standard_normal((7, 5)).astype(dtype), "b": rng.random(5, dtype)},
            "scale": rng.standard_normal(()).astype(dtype)[...],
            "rest": [rng.standard_normal(300).astype(dtype), np.zeros((0, 3), dtype)],
        }

    params = draw()
    return OPTIMIZERS[name](params, **options), params, draw


def leaves(tree):
    if isinstance(tree, dict):
        return [leaf for child in tree.values() for leaf in leaves(child)]
    if isinstance(tree, (list, tuple)):
        return [leaf for child in tree for leaf in leaves(child)]
    return [tree]
