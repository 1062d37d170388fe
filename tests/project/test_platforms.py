"""tests/tools/platforms/run knows what it can bring; `make platforms` runs it."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from support.helpers import ROOT


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
@pytest.mark.parametrize("given", [[], ["nope"], ["python"], ["python3.12/.."]])
def test_other_platforms_are_refused_before_anything_is_made(given, tmp_path):
    folder = tmp_path / "platforms"
    done = subprocess.run(
        ["bash", ROOT / "tests/tools/platforms/run", *given],
        env={**os.environ, "FASTGD_PLATFORMS": str(folder)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    *problem, usage = done.stderr.splitlines()
    assert usage.endswith("python3.12|python3.13|python3.13t|…|clang|aarch64 [pytest arguments]")
    assert [line.rpartition(": ")[2] for line in problem] == given
    assert not folder.exists()
