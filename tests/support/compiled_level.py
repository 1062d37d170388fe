"""A door to the C level: its functions with the arguments that the header gives them, by name."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import fastgd
from fastgd.kernels.c_api import ADDRESSES

TYPES = {
    "ptrdiff_t": ctypes.c_ssize_t,
    "double": ctypes.c_double,
    "int": ctypes.c_int,
    "long long": ctypes.c_longlong,
}
HEADER = Path(fastgd.get_include()) / "fastgd.h"


def prototypes():
    """The prototype of each function in the header, on one line: {name: arguments}."""
    text = HEADER.read_text("utf-8")
    found = re.findall(r"^typedef void \(\*(fastgd_\w+)_t\)\(([^)]*)\);", text, flags=re.M)
    return {name: re.sub(r"\s+", " ", arguments) for name, arguments in found}


def function(name):
    """A function that takes NumPy arrays, numbers and None by position; `names` lists them."""
    arguments = [re.fullmatch(r"(.*?)(\w+)", a).groups() for a in prototypes()[name].split(", ")]
    types = [ctypes.c_void_p if "*" in kind else TYPES[kind.strip()] for kind, _ in arguments]
    call = ctypes.CFUNCTYPE(None, *types)(ADDRESSES[name])

    def run(*given):
        call(*(a.ctypes.data if isinstance(a, np.ndarray) else a for a in given))

    run.names = [name for _, name in arguments]
    return run


class Entry(ctypes.Structure):
    """The header's fastgd_entry."""

    _fields_ = [("name", ctypes.c_char_p), ("function", ctypes.c_void_p)]


class Table(ctypes.Structure):
    """The header's fastgd_table."""

    _fields_ = [
        ("abi_version", ctypes.c_int),
        ("n_entries", ctypes.c_int),
        ("entries", ctypes.POINTER(Entry)),
    ]


def backend_that_notes(rules, notes):
    """A backend whose loops note which one was called and do nothing else; keep it referenced."""
    pointers = [ctypes.c_void_p] * 3
    kinds = (ctypes.CFUNCTYPE(None, *pointers, ctypes.c_ssize_t, ctypes.c_void_p),
             ctypes.CFUNCTYPE(None, *pointers, ctypes.c_void_p))  # fmt: skip
    kept = []

    def loop(kind, name):
        kept.append(kinds[kind](lambda *_: notes.append(name)))
        return ctypes.cast(kept[-1], ctypes.c_void_p).value

    return SimpleNamespace(
        RULES={name: (loop(0, (name, "f32")), loop(0, (name, "f64"))) for name in rules},
        STAGED=(loop(1, ("staged", "f32")), loop(1, ("staged", "f64"))),
        kept=kept,
    )
