"""The scripts that measure run, in small: what the README and bench/ tell to repeat can be repeated."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
from support.helpers import ROOT, unsanitized

BENCH = ROOT / "bench"

pytestmark = [
    pytest.mark.slow,
    unsanitized,
    pytest.mark.skipif(
        shutil.which(os.environ.get("CC", "cc")) is None, reason="there is no C compiler"
    ),
]

# A script with its arguments: what it prints, and what it needs.
RUNS = {
    "compare.py --optimizer Adam --shape 300x64 --rounds 1": ("NumPy", None),
    "storage.py --elements 8192 --rounds 1 --threads 1": ("8-bit states", None),
    "scaling.py --tensors 20 --calls 1": ("load_state_dict", None),
    "training.py --problem quadratic --optimizer Adam --steps 5 --seeds 2": ("paired", None),
    "muon.py --shapes 64x32 2x16x16 --rounds 1": ("products", None),
    "rows.py --rows 1000 --rounds 1 --sizes 500 --only SGD": ("fastgd / moved", "torch"),
    "low_bits.py --elements 4096 --rounds 1 --only fastgd": ("fastgd, split", "torch"),
}


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.partition(".")[0])
def test_scripts_run(run):
    printed, needed = RUNS[run]
    if needed and find_spec(needed) is None:
        pytest.skip("torch is not installed: pip install torch==2.13.0")
    script, *arguments = run.split()
    done = subprocess.run(
        [sys.executable, BENCH / script, *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout
