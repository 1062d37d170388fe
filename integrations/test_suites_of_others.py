"""The tests that other libraries ship, with fastgd in the place of what they test."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# The library, its tests, and how many of them pass at least.
SUITES = [
    ("sklearn", "sklearn.neural_network.tests.test_mlp", 40),
    ("thinc", "thinc.tests.test_optimizers", 10),
    ("pandas", "pandas.tests.window.test_ewm", 250),
    ("optax", "optax.transforms._clipping_test optax._src.transform_test", 8),
]


@pytest.mark.parametrize(("library", "modules", "least"), SUITES, ids=[s[0] for s in SUITES])
def test_a_suite_passes_with_fastgd_in_its_place(tmp_path, library, modules, least):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    here = str(Path(__file__).parent)
    paths = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": paths, "FASTGD_IN_PLACE_OF": library, "PYTEST_ADDOPTS": ""}
    options = ["-q", "-p", "in_place_of", "-p", "no:cacheprovider", "-c", os.devnull]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--pyargs", *modules.split()],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= least, done.stdout[-2000:]
