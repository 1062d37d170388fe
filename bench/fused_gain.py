"""What the fused loops of each rule gain over the same step stage by stage, in one run.

    python bench/fused_gain.py                  # every rule that opts into them
    python bench/fused_gain.py adam --sizes 1e5 32e6

A step with gradients to be scaled (as when they are clipped), for each way of storing parameters
and states that the rule declares.  A figure is the median of the ratios of paired steps, staged ÷
fused: what a family writes into its row `Fused(..., gain=...)`, with the processor's name.
"""

from __future__ import annotations

import argparse
from time import perf_counter
from types import SimpleNamespace

import numpy as np

import fastgd
from fastgd import kernels
from fastgd.commands.work import Work
from fastgd.core.variants import rules_of
from fastgd.kernels import _engine
from fastgd.kernels.reference import RULES
from fastgd.optimizers import OPTIMIZERS


def use(fused):
    """Run on the backend in use, with its fused loops or without."""
    module = kernels._module(fastgd.get_backend())
    loops = module if fused else SimpleNamespace(**{**vars(module), "FUSED": {}})
    _engine.use_backend(loops)


def picked(rule):
    """A class, and the hyper-parameters and shape of a parameter that step by a rule."""
    for cls in OPTIMIZERS.values():
        if (pick := rules_of(cls).get(rule)) is not None:
            return cls, *pick
    raise ValueError(f"rule: no optimizer picks {rule}")


def made(rule, param, states, n):
    """An optimizer of one parameter, and its step."""
    cls, changes, shape = picked(rule)
    rng = np.random.default_rng(0)
    p, g = np.resize(rng.standard_normal((2, 2**16), np.float32), (2, n))
    options = {"state_dtype": states, "min_8bit_size": 0}
    if param != "float32":
        p = (p.view(np.uint32) >> 16).astype(np.uint16)  # bfloat16
        g = (g.view(np.uint32) >> 16).astype(np.uint16)
        options |= {"master": "split"} if param == "split" else {"rounding": "stochastic"}
    if shape is not None:  # as many axes of even lengths
        p, g = (a.reshape(*[2] * (len(shape) - 1), -1) for a in (p, g))
    opt = cls(p, grads=g, **changes, **options)
    return lambda: opt.step(grad_scale=2.0)


def ratio(step, rounds):
    """The median of staged ÷ fused over pairs of steps."""
    found = []
    for k in range(rounds + 1):
        seconds = {}
        for fused in (True, False) if k % 2 else (False, True):
            use(fused)
            start = perf_counter()
            step()
            seconds[fused] = perf_counter() - start
        found.append(seconds[False] / seconds[True])
    return float(np.median(found[1:]))


def main(work):
    """Print a line for each rule and way to store it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    fusable = [name for name, rule in RULES.items() if rule.fused]
    parser.add_argument("rules", nargs="*", default=fusable)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e5, 32e6])
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    if others := set(given.rules) - set(fusable):
        parser.error(f"expected rules with a row Fused(...), found {', '.join(sorted(others))}")
    print(f"{fastgd.get_backend()}, {fastgd.get_num_threads()} threads: staged ÷ fused")
    work.expect(sum(len(RULES[r].fused.params) * len(RULES[r].fused.states) for r in given.rules))
    for rule in given.rules:
        fused = RULES[rule].fused
        for param in fused.params:
            for states in fused.states:
                ratios = [
                    ratio(made(rule, param, states, int(n)), given.rounds * (10 if n < 1e6 else 1))
                    for n in given.sizes
                ]
                words = "  ".join(f"{r:.2f}" for r in ratios)
                print(f"{rule:<12}{param:<10}states {states:<10}{words}", flush=True)
                work.advance(rule)
    use(True)


if __name__ == "__main__":
    with Work("fused_gain") as work:
        main(work)
