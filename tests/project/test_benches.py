"""The scripts that measure run, in small: what the README and bench/ tell to repeat can be repeated."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
from support.helpers import ROOT, unsanitized
from support.sampling import beyond, by_level

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
    "storage.py --elements 8192 --rounds 1 --threads 1": ("8-bit states", None),
    "scaling.py --tensors 20 --calls 1": ("load_state_dict", None),
    "training.py --problem quadratic --optimizer Adam --steps 5 --seeds 2": ("paired", None),
    "threads.py --steps 20 --sizes 16384": ("as tuned", None),
    "muon.py --shapes 64x32 2x16x16 --rounds 1": ("products", None),
    "rows.py --rows 1000 --rounds 1 --sizes 500 --only SGD": ("fastgd / moved", "torch"),
    "low_bits.py --elements 4096 --rounds 1 --only fastgd": ("fastgd, split", "torch"),
}


@pytest.mark.parametrize(
    "run",
    by_level(list(RUNS)[:1], list(RUNS)[:3], beyond(RUNS, list(RUNS)[:3])),
    ids=lambda run: run.partition(".")[0],
)
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


def test_a_machine_s_results_are_added_up(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    import readme_table

    for optimizer in ("Adam", "SGD", "Adam"):
        subprocess.run(
            [sys.executable, BENCH / "compare.py", "--optimizer", optimizer, "--shape", "300x64",
             "--rounds", "1", "--only", "NumPy", "--record", tmp_path, "--machine", "here"],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
    (file,) = tmp_path.iterdir()
    result = json.loads(file.read_text())
    assert [row["optimizer"] for row in result["rows"]] == ["Adam", "SGD"]
    assert result["machine"] == "here"
    assert result["compiler"].partition(" ")[0] in file.stem
    assert "| NumPy expressions |" in readme_table.table(result)
