"""A door to the C level: its functions with the arguments that the header gives them, by name."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import fastgd
from fastgd.kernels import _engine
from fastgd.kernels.c_api import ADDRESSES
from fastgd.kernels.reference import RULES

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


def comments():
    """What the header says of each function, above its prototype: {name: text}."""
    text = HEADER.read_text("utf-8")
    found = re.findall(r"/\* ([^*]*) \*/\ntypedef void \(\*(fastgd_\w+)_t\)", text)
    return {name: " ".join(about.split()) for about, name in found}


def functions_of(rule):
    """The functions of a rule, in the order in which a step calls them: {name: arguments}."""
    row, found = RULES[rule], {}
    for part, sweep in ((row.begin, row.before), (row.settle, row.after)):
        if part is not None:
            found[f"fastgd_{part.name}"] = ["coefficients", "numbers", "sums", "n"]
        if sweep is not None:
            first, kept = sweep is row.before, [row.after.kept] * (row.matrix is not None)
            arguments = ["p", *["g"] * sweep.gradient, *([] if first else kept), *sweep.states]
            arguments += ["n", "coefficients", "stages", *(kept if first else [])]
            for suffix in ("f32", "f64"):
                found[f"fastgd_{sweep.name}_{suffix}"] = [*arguments, *["sums"] * first]
    return found


def step(rule, p, g, states, numbers, coefficients, stages):
    """A step of a tensor by the functions of its rule, one after the other."""
    other = {4: "_f64", 8: "_f32"}[p.itemsize]
    c = np.full(_engine.SIZES["MAX_COEFFICIENTS"], np.nan)
    c[: len(coefficients)] = coefficients
    given = {"p": p, "g": g, "n": p.size, "coefficients": c, "stages": stages}
    given |= zip(RULES[rule].states, states, strict=True)
    given |= {"numbers": numbers, "sums": np.full(len(RULES[rule].sums), np.nan)}
    given[RULES[rule].after.kept] = np.full_like(p, np.nan)
    for name, arguments in functions_of(rule).items():
        if not name.endswith(other):
            function(name)(*(given[key] for key in arguments))
            if RULES[rule].matrix is not None and arguments[-1] == "sums" and p.size:
                transform(RULES[rule], given)


def transform(row, given):
    """The matrix step of a rule, which is the caller's, on a matrix of one row."""
    kept, c = given[row.after.kept], dict(zip(row.order, given["coefficients"], strict=False))
    with np.errstate(all="ignore"):
        rounded = {key: kept.dtype.type(c[key]) for key in row.matrix.coefficients}
        row.matrix.transform(kept.reshape(1, -1), 1, kept.size, given["sums"][0], **rounded)


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
    plain = ctypes.CFUNCTYPE(None, *pointers, ctypes.c_ssize_t, ctypes.c_void_p)
    staged = ctypes.CFUNCTYPE(None, *pointers, ctypes.c_void_p)
    summed = ctypes.CFUNCTYPE(None, *pointers, ctypes.c_void_p, ctypes.c_void_p)
    kept, names = [], {}

    def pair(kind, note):
        made = [kind(note(suffix)) for suffix in ("f32", "f64")]
        kept.extend(made)
        return tuple(ctypes.cast(one, ctypes.c_void_p).value for one in made)

    def rows(chosen):
        found = {
            name: pair(plain, lambda s, n=name: lambda *_: notes.append((n, s))) for name in chosen
        }
        names.update({address: name for name, row in found.items() for address in row})
        return found

    two = [rule for rule in rules if RULES[rule].before]

    def around(word):
        return lambda suffix: lambda rule, *_: notes.append((word, names[rule], suffix))

    return SimpleNamespace(
        RULES=rows(rules),
        FIRST=dict(zip(two, rows([f"{rule}_before" for rule in two]).values(), strict=True)),
        STAGED=pair(staged, around("staged")),
        SUMMED=pair(summed, around("summed")),
        kept=kept,
    )
