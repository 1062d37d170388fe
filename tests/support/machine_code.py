"""The machine code of the compiled backends, as objdump prints it."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from functools import cache
from importlib.util import find_spec

import pytest

READABLE = [
    pytest.mark.skipif(
        platform.machine() not in {"x86_64", "AMD64"}, reason="this CPU is no x86-64"
    ),
    pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed"),
]
# The widest registers that a backend may use.
REGISTERS = {"baseline": "xmm", "x86_64_v3": "ymm", "x86_64_v4": "zmm"}


@cache
def disassembly(backend):
    """The instructions of each function of a backend."""
    path = find_spec(f"fastgd.kernels._{backend}").origin
    done = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", path], capture_output=True, text=True
    )
    bodies = re.split(r"^[0-9a-f]+ <(.+)>:$", done.stdout, flags=re.M)
    return dict(zip(bodies[1::2], bodies[2::2], strict=True))
