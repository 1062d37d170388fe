"""A little of everything, for valgrind, under which a whole test run would take hours.

Every rule and stage in both types, at sizes around vectors, tiles, blocks and chunks, on every
compiled backend that runs there; each result against the NumPy backend's, bit for bit.
"""

from __future__ import annotations

from itertools import product

import numpy as np

import fastgd
from fastgd.averages import EMA, ewma
from fastgd.core.variants import rules_of
from fastgd.kernels.reference import RULES
from fastgd.optimizers import OPTIMIZERS

SIZES = (0, 1, 3, 17, 255, 257, 1025, 33_000)
# Every rule, by a class and the hyper-parameters and shape that pick it.
MADE = [(cls, pick) for cls in OPTIMIZERS.values() for pick in rules_of(cls).values()]
# The classes with rules that keep or work out something of their own for each tensor, once each.
STORED = {fastgd.AdamW: {}} | {
    cls: changes
    for cls in OPTIMIZERS.values()
    for rule, (changes, _) in rules_of(cls).items()
    if RULES[rule].numbers or RULES[rule].begin or RULES[rule].before
}


def results(backend, dtype):
    """The bytes of all that some steps wrote, and what they said."""
    fastgd.set_backend(backend)
    rng = np.random.default_rng(0)
    found, seen = [], set()
    for k, (cls, (changes, shape)) in enumerate(MADE):
        shapes = [(n,) if shape is None else (*[1] * (len(shape) - 1), n) for n in SIZES]
        params = [rng.standard_normal(n).astype(dtype) for n in shapes]
        around = {}
        if k % 2 == 0:
            around = {"copy_to": [np.zeros(n, np.float32) for n in shapes], "average": 0.9}
            around |= {"clip_norm": 0.1, "clip_value": 0.01, "zero_grads": True}
            around |= {"clip_ratio": 0.01} if k % 4 == 0 else {}
            around |= {"centralize": k % 3 == 0, "layout": ("out_in", "in_out")[k // 4 % 2]}
            around |= {"nonfinite": "skip", "clip_by": ("all", "group", "tensor")[k // 2 % 3]}
        opt = cls(params, **changes, **around)
        seen |= set(opt.stepper.rules)
        if k % 4 == 0:  # bfloat16, which NumPy has no type for
            around["copy_to"] = opt.stepper.copies = [np.zeros(n, np.uint16) for n in shapes]
            opt.stepper.lay_out(opt.param_groups, opt.stepper.steps)
        for t in range(2):
            grads = [rng.standard_normal(n).astype(dtype) for n in shapes]
            grads[t] = None
            found.append(repr(opt.step(grads)))
        opt.accumulate([rng.standard_normal(n).astype(dtype) for n in shapes])
        found.append(repr(opt.step(grad_scale=2.0)))
        grads = [rng.standard_normal(n).astype(dtype) for n in shapes]
        grads[-1][..., -1] = np.nan
        found.append(fastgd.functional.global_norm(grads[:-1]))
        if k % 2 == 0:
            found.append(repr(opt.step(grads)))
            found += [a.tobytes() for a in [*opt.average.averages.values(), *around["copy_to"]]]
        found += [p.tobytes() for p in params]
        found += [a.tobytes() for entry in opt.state.values() for a in entry.values()]
    found += stored_results(rng, dtype)
    ema = EMA(params, decay=0.9)
    ema.update()
    found += [a.tobytes() for a in ema.averages.values()]
    found.append(ewma(rng.standard_normal((3, 40)).astype(dtype), beta=0.9)[0].tobytes())
    others = {rule for rule in RULES if rule.startswith("missed_")} | {"ema", "weighted_sum"}
    assert seen == set(RULES) - others, "every rule"
    return found


def stored_results(rng, dtype):
    """Step parameters and states that are stored in fewer bits."""
    found = []
    choices = [(dtype, {"state_dtype": kind}) for kind in ("8bit", "bfloat16", "float16")]
    if dtype == np.float32:
        choices += [(np.uint16, {"master": "split"})]  # uint16: bfloat16
        for kind in (np.uint16, np.float16):
            choices += [(kind, {"master": True}), (kind, {"rounding": "stochastic"})]
            choices.append((kind, {"rounding": "stochastic", "state_dtype": "8bit", "seed": 3}))
    for (kind, choice), (cls, changes) in product(choices, STORED.items()):
        params = [rng.standard_normal(n).astype(dtype) for n in SIZES]
        if kind == np.uint16:
            params = [(p.view(np.uint32) >> 16).astype(kind) for p in params]
        params = [p.astype(kind) for p in params]
        around = {"clip_norm": 1.0, "average": 0.9, "zero_grads": True}
        opt = cls(params, **changes, **around, **choice)
        for _ in range(2):
            grads = [rng.standard_normal(n).astype(dtype) for n in SIZES]
            found.append(repr(opt.step(grads)))
        found += [p.tobytes() for p in params]
        found += [a.tobytes() for entry in opt.state.values() for a in entry.values()]
    return found


def main():
    """Compare all backends with the specification."""
    for dtype in (np.float32, np.float64):
        expected = results("numpy", dtype)
        for backend in fastgd.available_backends()[:-1]:
            assert results(backend, dtype) == expected, (backend, dtype)
            print(f"{backend}, {np.dtype(dtype)}: {len(expected)} results, all bits the same")


if __name__ == "__main__":
    main()
