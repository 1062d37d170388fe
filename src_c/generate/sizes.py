"""Writes ``src_c/_sizes.h``: the sizes of ``fastgd/kernels/spec/sizes.py``, for C and Cython."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path("fastgd/kernels/spec/sizes.py")


def header(note: str) -> str:
    """The header: an enum of all sizes."""
    lines = [f"/* {note} */", "enum {"]
    for node in ast.parse(SOURCE.read_text("utf-8")).body:
        if isinstance(node, ast.Assign):
            name = ast.unparse(node.targets[0])
            lines += [f"    FASTGD_{name} = {ast.literal_eval(node.value)},"]
    return "\n".join([*lines, "};", ""])
