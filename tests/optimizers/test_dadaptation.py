"""D-Adaptation's Adam against its authors' algorithm, and where its estimate leads."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.formulas import drawn
from support.helpers import COMPILED, same_bits

import fastgd

OPTIONS = [
    {},
    {"weight_decay": 0.1, "use_bias_correction": True},
    {"weight_decay": 0.1, "decouple": True, "lr": 0.5},
    {"growth_rate": 1.05, "d0": 1e-3, "betas": (0.5, 0.9), "eps": 1e-3},
]


class Formula:
    """Algorithm 5 of the paper as dadaptation 3.2 has it; the steps are each parameter's own."""

    def __init__(self, params, lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0,
                 decouple=False, use_bias_correction=False, d0=1e-6, growth_rate=math.inf):  # fmt: skip
        self.h = dict(locals())
        self.params, self.d, self.N = params, d0, 0.0
        self.state = [{"t": 0, "m": 0 * p, "v": 0 * p, "s": 0 * p} for p in params]

    def step(self, grads):
        h, (b1, b2), moved, added = self.h, self.h["betas"], 0.0, 0.0
        b3, used = math.sqrt(b2), []
        for p, g, s in zip(self.params, grads, self.state, strict=True):
            if g is None:
                continue
            g = g if h["decouple"] else g + h["weight_decay"] * p
            s["t"] += 1
            bias = (1 - b2 ** s["t"]) ** 0.5 / (1 - b1 ** s["t"]) if h["use_bias_correction"] else 1
            dlr = self.d * h["lr"] * bias
            added += dlr * np.sum(g * s["s"] / (np.sqrt(s["v"]) + h["eps"]))
            s["m"] = b1 * s["m"] + (1 - b1) * dlr * g
            s["v"] = b2 * s["v"] + (1 - b2) * g * g
            s["s"] = b3 * s["s"] + (1 - b3) * dlr * g
            moved += np.abs(s["s"]).sum()
            used.append((p, s, dlr))
        if moved == 0:
            return
        self.N = b3 * self.N + (1 - b3) * added
        found = self.N / ((1 - b3) * moved)
        self.d = max(self.d, min(found, self.d * h["growth_rate"]))
        for p, s, dlr in used:
            p -= h["decouple"] * h["weight_decay"] * dlr * p
            p -= s["m"] / (np.sqrt(s["v"]) + h["eps"])


@pytest.mark.parametrize("options", OPTIONS)
def test_formula(options):
    """Also where some parameters have no gradient in some steps, and a first step later than others."""
    params = drawn(0)[:3]
    formula = Formula([p.copy() for p in params], **options)
    opt = fastgd.DAdaptAdam(params, **options)
    for t in range(1, 131):
        grads = [g if (t + k) % 4 else None for k, g in enumerate(drawn(t)[:3])]
        formula.step(grads)
        opt.step(grads)
        for p, q in zip(params, formula.params, strict=True):
            np.testing.assert_allclose(p, q, rtol=1e-11, atol=1e-13)
        for entry in opt.state.values():
            found = [float(entry[key]) for key in ("d", "d_numerator")]
            np.testing.assert_allclose(found, [formula.d, formula.N], rtol=1e-11)
    assert formula.d > 2 * formula.h["d0"]


def test_frozen_groups_stand_still():
    """They have no part in d, from whose other groups nothing differs."""
    still, moving, alone = np.ones(3), np.ones(3), np.ones(3)
    opt = fastgd.DAdaptAdam([{"params": still, "lr": 0.0}, {"params": moving}])
    single = fastgd.DAdaptAdam(alone)
    for t in range(1, 30):
        g = np.array([1.0, -2.0, 0.5]) * moving
        opt.step([g + t, g])
        single.step(g)
    assert still.tolist() == [1.0] * 3
    assert same_bits(moving, alone)
    opt.param_groups[0]["lr"] = 0.5
    with pytest.raises(ValueError, match="^lr: expected the same in all groups"):
        opt.step([g, g])


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
def test_no_gradient_at_all_is_no_step_and_a_nan_spreads(backend):
    fastgd.set_backend(backend)
    params = [np.ones(3), np.ones(300)]
    opt = fastgd.DAdaptAdam(params, weight_decay=0.1, decouple=True)
    opt.step([np.zeros(3), np.zeros(300)])
    assert all((p == 1).all() for p in params)
    assert all(float(entry["d"]) == 1e-6 for entry in opt.state.values())
    opt.step([np.ones(3), np.ones(300)])
    opt.step([np.array([1.0, np.nan, 1.0]), np.ones(300)])
    assert all(np.isnan(entry["d"]) for entry in opt.state.values())
    opt.step([np.ones(3), np.ones(300)])
    assert all(np.isnan(p).all() for p in params)
