"""Writes the types of `fastgd.optimizers`, whose signatures are made from declarations."""

from __future__ import annotations

import ast
from pathlib import Path

from generate.families import Family, Optimizer

DOMAINS = Path("fastgd/core/domains.py")


def _annotations() -> dict[str, str]:
    """How a signature writes what each domain takes: the table of `fastgd.core.domains`."""
    for line in ast.parse(DOMAINS.read_text("utf-8")).body:
        if isinstance(line, ast.AnnAssign) and ast.unparse(line.target) == "ANNOTATIONS":
            table = line.value
            assert isinstance(table, ast.Dict)
            pairs = zip(table.keys, table.values, strict=True)
            return {ast.unparse(k): ast.literal_eval(v)[0] for k, v in pairs if k is not None}
    raise LookupError(f"{DOMAINS}: has no ANNOTATIONS")


def _class(cls: Optimizer) -> list[str]:
    annotations = _annotations()
    given = {
        key: f"{key}: {annotations.get(h.domain, 'Any')} = {ast.unparse(h.default)}"
        for key, h in cls.hypers.items()
    }
    keywords = [key for key, h in cls.hypers.items() if h.keyword]
    return [
        "",
        f"class {cls.name}({', '.join(cls.bases)}):",
        "    def __init__(",
        "        self,",
        "        params: object,",
        *(f"        {text}," for key, text in given.items() if key not in keywords),
        "        *,",
        *(f"        {given[key]}," for key in keywords),
        "        maximize: bool = False,",
        "        **options: Unpack[Options],",
        "    ) -> None: ...",
    ]


def optimizers(families: list[Family], note: str) -> str:
    """``fastgd/optimizers/__init__.pyi``."""
    classes = [cls for family in families for cls in family.optimizers]
    lines = [
        f"# {note}",
        "from collections.abc import Mapping",
        "from math import inf",
        "from typing import Any, Unpack",
        "",
        "from fastgd.core.domains import Floors, Pair, Scalar, Triple",
        "from fastgd.core.optimizer import Optimizer",
        "from fastgd.core.options import Options",
        "",
        f"__all__ = {[cls.name for cls in sorted(classes, key=lambda c: c.year)]!r}",
        "",
        "OPTIMIZERS: Mapping[str, type[Optimizer]]",
        "GENERAL: Mapping[str, type[Optimizer]]",
    ]
    for cls in classes:
        lines += _class(cls)
    return "\n".join([*lines, ""])
