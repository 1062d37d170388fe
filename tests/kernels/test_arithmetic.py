"""What is worked out before sweeps is as the reference has it, at the edges of its formulas too."""

from __future__ import annotations

import numpy as np
import pytest
from support.helpers import Tensors
from support.sampling import BY_ELEMENT

import fastgd
from fastgd.kernels.reference import RULES, Stages

# Many are 0, many equal; 10⁻²⁰ is where NAdam's product becomes 0.
NUMBERS = (0.0, 0.0, 0.5, 1.0, 2.0, 1e-20, 5e-21)
COEFFICIENTS = (0.0, 0.0, 0.5, 1.0, 1.0, 2.0)


@pytest.mark.parametrize("rule", [r for r in BY_ELEMENT if RULES[r].begin or RULES[r].settle])
def test_edges_are_those_of_the_reference(rule):
    """Numbers, coefficients and norms that are 0, equal to each other, or beside a threshold."""
    row, rng, both = RULES[rule], np.random.default_rng(2), []
    for k in range(150):
        n = 2000 if k % 5 == 0 else 1 + k % 2
        p, g, *states = (
            rng.choice([0.0, 1.0, 1.0, 1e-170]) * rng.choice([-2.0, -1.0, 0.5, 1.0], n)
            for _ in range(2 + len(row.states))
        )
        if n == 2000:
            g[1:] = 0.0  # a share of them that is less than cautious rules let count
        states = [np.abs(s) for s in states]
        numbers = [tuple(np.array(rng.choice(NUMBERS)) for _ in row.numbers)]
        given = rng.choice(COEFFICIENTS, len(row.coefficients)).tolist()
        found = Tensors(rule, [p], [g], [tuple(states)], numbers)
        both.append((found.copy(), found, given))
    for j, backend in enumerate(("numpy", fastgd.available_backends()[0])):
        fastgd.set_backend(backend)
        for *tensors, given in both:
            one = tensors[j]
            one.plan.step(one.grads, lambda *_, c=given: (rule, c, Stages()), 1.0)
    for expected, found, _ in both:
        found.assert_same(expected)
