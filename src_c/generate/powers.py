"""Writes ``src_c/_powers.h``: the table that powers are made of, from the specification."""

from __future__ import annotations

import runpy

SOURCE = "fastgd/kernels/spec/powers.py"


def header(note: str) -> str:
    """The header: the sizes, and the roots of two."""
    spec = runpy.run_path(SOURCE)
    lines = [f"/* {note} */", "enum {"]
    lines += [f"    FASTGD_{key} = {spec[key]}," for key in ("DIGITS", "COUNTED")]
    lines += ["};"]
    lines += ["static const fastgd_wide FASTGD_ROOTS[FASTGD_DIGITS] = {"]
    for root in spec["roots_of_two"]():
        lines += [f"    {{{root >> 64:#018x}, {root % 2**64:#018x}, 0}},"]
    return "\n".join([*lines, "};", ""])
