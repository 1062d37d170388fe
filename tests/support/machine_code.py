"""The machine code of the compiled backends, as objdump prints it.

Tests name instructions of x86-64; `NEON` says what they are on arm64.  FASTGD_MACHINE_CODE is the
path of a backend that was built for another processor: then that one is read, and no other.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from support.helpers import COMPILED

OTHER = os.environ.get("FASTGD_MACHINE_CODE")
# The backends to read.
READ = ["baseline"] if OTHER else COMPILED


def file_of(backend):
    """The module of a backend."""
    return Path(OTHER or find_spec(f"fastgd.kernels._{backend}").origin)


# What it was built for, by the machine type of its ELF header, and by which compiler.
_module = file_of("baseline").read_bytes()
ARM64 = _module[:4] == b"\x7fELF" and _module[18:20] == b"\xb7\x00"
X86_64 = _module[:4] == b"\x7fELF" and _module[18:20] == b"\x3e\x00"
CLANG = b"clang version" in _module
OBJDUMP = (ARM64 and shutil.which("aarch64-linux-gnu-objdump")) or shutil.which("objdump")

READABLE = [
    pytest.mark.skipif(
        not (X86_64 or ARM64), reason="this CPU or system is none whose code we read"
    ),
    pytest.mark.skipif(OBJDUMP is None, reason="objdump is not installed"),
]
# The widest registers that a backend may use; and half of each.
REGISTERS = {"baseline": "xmm", "x86_64_v3": "ymm", "x86_64_v4": "zmm"}
HALVES = {"xmm": "xmm", "ymm": "xmm", "zmm": "ymm"}

# What instructions on whole registers are on arm64.
NEON = {
    "mulps": r"fmul\s+v\d+\.4s",
    "mulpd": r"fmul\s+v\d+\.2d",
    "sqrtps": r"fsqrt\s+v\d+\.4s",
    "sqrtpd": r"fsqrt\s+v\d+\.2d",
    "divps": r"fdiv\s+v\d+\.4s",
    "divpd": r"fdiv\s+v\d+\.2d",
    "addps": r"fadd\s+v\d+\.4s",
    "addpd": r"fadd\s+v\d+\.2d",
    "cvtps2pd": r"fcvtl2?\s+v\d+\.2d",
    "cvtpd2ps": r"fcvtn2?\s+v\d+\.[24]s",
    "cvtdq2ps": r"[su]cvtf\s+v\d+\.4s",
    "cvttps2dq": r"fcvtz[su]\s+v\d+\.4s",
    "movups": r"(ld|st)[rp]\s+q\d",
    "movupd": r"(ld|st)[rp]\s+q\d",
    "pslld": r"(u?shll2?|shl)\s+v\d+\.4s",
    "psrld": r"(u|s)(shr|sra)\s+v\d+\.4s|shrn2?\s+v\d+\.[48]h",
    "psrad": r"sshr\s+v\d+\.4s",
    "paddd": r"add\s+v\d+\.4s",
    "pmaxsd": r"smax\s+v\d+\.4s",
    "pmaxud": r"umax\s+v\d+\.4s",
    "pmulld": r"mul\s+v\d+\.4s",
    "pxor": r"eor\s+v\d+\.16b",
}


@cache
def disassembly(backend):
    """The instructions of each function of a backend."""
    done = subprocess.run(
        [OBJDUMP, "-d", "--no-show-raw-insn", file_of(backend)], capture_output=True, text=True
    )
    bodies = re.split(r"^[0-9a-f]+ <(.+)>:$", done.stdout, flags=re.M)
    return dict(zip(bodies[1::2], bodies[2::2], strict=True))


def count(body, marks, backend, halves=False):
    """How many instructions of a function, any of some such as ``mulps|mulpd``, take whole registers.

    With `halves` those count that take half of them.
    """
    if ARM64:
        pattern = "|".join(NEON[mark] for mark in marks.split("|") if mark in NEON)
    else:
        register = REGISTERS[backend]
        if halves:
            register = f"({register}|{HALVES[register]})"
        pattern = rf"v?({marks})[xyz]?\s.*%{register}\d"
    return len(re.findall(rf"\b(?:{pattern})", body))


def calls_in(body):
    """The functions that a function calls or goes on with."""
    called = re.findall(r"\b(?:call|jmp|bl?)\s+\w+ <([\w.@]+)>", body)
    return {name.partition("@")[0] for name in called}


def scalars_in(body):
    """The instructions of a function that do arithmetic with a single float32."""
    scalar = r"\bf(?:mul|sqrt|div)\s+s\d" if ARM64 else r"\bv?(?:mul|sqrt|div)ss\b"
    return re.findall(scalar, body)


def keeps_the_contract(body):
    """The numeric contract: nothing is contracted, nothing approximated."""
    contracted = (
        r"\bf(n?m(add|sub)|ml[as]|recp\w|rsqrt\w)\s"
        if ARM64
        else (r"\bvf(n?m(add|sub))\d|\bv?r(sqrt|cp)")
    )
    return not re.search(contracted, body)
