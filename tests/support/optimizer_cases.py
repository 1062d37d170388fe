"""Options of each optimizer that reach every rule, and a nested structure to try them on."""

from __future__ import annotations

import numpy as np

from fastgd.core.variants import variants
from fastgd.optimizers import GENERAL, OPTIMIZERS
from support.sampling import optimizer_cases

COMMON = [{}, {"weight_decay": 0.1}, {"maximize": True}, {"weight_decay": 0.1, "maximize": True}]
OPTIONS = {name: variants(cls) for name, cls in GENERAL.items()}
CASES = optimizer_cases(OPTIONS, COMMON)


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
