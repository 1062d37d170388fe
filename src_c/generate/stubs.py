"""Writes the types of `fastgd.optimizers`, whose signatures are made from declarations."""

from __future__ import annotations

import ast

from generate.families import Family, Optimizer

# How a signature writes what a domain takes; a user's own domain may take anything.
ANNOTATIONS = {
    "nonnegative": "Scalar",
    "fraction": "Scalar",
    "limit": "Scalar | None",
    "two_fractions": "Pair",
    "start": "float",
    "flag": "bool",
}


def _class(cls: Optimizer) -> list[str]:
    given = {
        key: f"{key}: {ANNOTATIONS.get(h.domain, 'Any')} = {ast.unparse(h.default)}"
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
        "from typing import Any, Unpack",
        "",
        "from fastgd.core.domains import Pair, Scalar",
        "from fastgd.core.optimizer import Optimizer",
        "from fastgd.core.options import Options",
        "",
        f"__all__ = {[cls.name for cls in sorted(classes, key=lambda c: c.year)]!r}",
        "",
        "OPTIMIZERS: Mapping[str, type[Optimizer]]",
    ]
    for cls in classes:
        lines += _class(cls)
    return "\n".join([*lines, ""])
