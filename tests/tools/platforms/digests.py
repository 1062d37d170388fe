"""Prints a digest of what each optimizer, with each of its rules and ways to store, makes of the same numbers.

Equal lines on two machines mean equal bits there.  Optimizers with matrix steps are left out: their
products are BLAS's.
"""

from __future__ import annotations

import hashlib

import numpy as np

from fastgd.core.variants import rules_of, variants
from fastgd.kernels.reference import RULES
from fastgd.optimizers import GENERAL

STEPS, SHAPE = 20, (3, 700)
STORED = {
    "float32": (np.float32, {}),
    "float64": (np.float64, {}),
    "bfloat16": (np.float32, {"state_dtype": "bfloat16"}),
    "float16": (np.float32, {"state_dtype": "float16"}),
    "8bit": (np.float32, {"state_dtype": "8bit"}),
    "half, to random sides": (np.float16, {"state_dtype": "8bit", "rounding": "stochastic"}),
}


def drawn(rng: np.random.Generator, dtype: type) -> np.ndarray:
    """Numbers with 12 bits, as functions of C libraries would differ in the last one."""
    return (rng.integers(-(2**11), 2**11, SHAPE) / 2**11).astype(dtype)


def digest(name: str, options: dict[str, object], dtype: type) -> str:
    """What is left of parameter and states after some steps."""
    rng = np.random.default_rng(0)
    p = drawn(rng, dtype)
    opt = GENERAL[name](p, weight_decay=0.01, **options)
    for _ in range(STEPS):
        opt.step(drawn(rng, dtype))
    found = hashlib.sha256(p.tobytes())
    for key, value in sorted(opt.state_dict()["state"][0].items()):
        found.update(key.encode() + np.asarray(value).tobytes())
    return found.hexdigest()[:16]


for name, cls in GENERAL.items():
    if not all(RULES[rule].exact for rule in rules_of(cls)):
        continue
    for options in variants(cls):
        for stored, (dtype, more) in STORED.items():
            print(name, options, stored, digest(name, {**options, **more}, dtype))
