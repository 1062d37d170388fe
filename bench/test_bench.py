"""Steps under pytest-benchmark, grouped by optimizer and size: ``make bench``.

For the whole table, interleaved and with the machine's own stream, see compare.py.
"""

from __future__ import annotations

import pytest
from compare import SHAPES, draw
from contestants import CASES, contestants

import fastgd

SMALL = [shape for shape in SHAPES if shape != "32e6"]


@pytest.mark.parametrize("who", contestants(CASES["Adam"], threads=1))
@pytest.mark.parametrize("shape", SMALL)
@pytest.mark.parametrize("name", CASES)
def test_step(benchmark, name, shape, who):
    entrants = contestants(CASES[name], threads=1)
    if who not in entrants:
        pytest.skip(f"{who} has no {name}")
    fastgd.set_num_threads(1)
    params, grads = draw(SHAPES[shape])
    step, _ = entrants[who](params, grads)
    benchmark.group = f"{name}, {shape}"
    benchmark.name = who
    benchmark.extra_info["contestant"] = who
    benchmark(step)
    fastgd.set_num_threads(None)
