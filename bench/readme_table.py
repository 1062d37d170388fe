"""The README's table of measured steps, from what is in bench/results/.

``python bench/readme_table.py`` writes it into README.md, between the lines that mark it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

TOP = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
MARKED = re.compile(r"(?<=<!-- bench/readme_table.py -->\n).*?(?=<!-- end -->)", re.S)


# What contestants of compare.py are called where there is room for it.
WORDS = {
    "fastgd fresh": "fastgd, gradients in new memory",
    "fastgd bound": "fastgd, gradients bound",
    "NumPy": "NumPy expressions",
}
SHAPES = {
    "4 tensors, 7.5k": "4 tensors, 7.5 k",
    "300x64": "300 × 64",
    "1e5": "one of 1e5",
    "1e6": "one of 1e6",
    "32e6": "one of 32e6",
}
OWN = {"fastgd", "stream"}


def machines() -> dict[str, dict[str, Any]]:
    """The results by machine."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))}


def steps_of(result: dict[str, Any], optimizer: str = "Adam") -> list[dict[str, Any]]:
    """An optimizer's rows, one for each shape: small ones on one thread, large ones on all."""
    found: dict[str, dict[str, Any]] = {}
    for row in result["rows"]:
        known = found.get(row["shape"])
        if row["optimizer"] == optimizer and (
            known is None or (row["threads"] > known["threads"]) == (row["shape"] != "1e5")
        ):
            found[row["shape"]] = row
    return [found[shape] for shape in SHAPES if shape in found]


def in_shape(row: dict[str, Any]) -> str:
    """A row's shape and threads, in words."""
    return f"{SHAPES[row['shape']]}, {row['threads']} thread{'s' * (row['threads'] > 1)}"


def others_in(rows: list[dict[str, Any]]) -> dict[str, list[float | None]]:
    """Of each contestant its time over fastgd's, by rows; None where it took no part."""
    names = dict.fromkeys(name for row in rows for name in row["seconds"] if name not in OWN)
    return {
        WORDS.get(name, name): [
            row["seconds"][name] / row["seconds"]["fastgd"] if name in row["seconds"] else None
            for row in rows
        ]
        for name in names
    }


def in_words(seconds: float) -> str:
    """A time in the unit that suits it.

    >>> in_words(5.7e-6), in_words(0.0171)
    ('5.7 µs', '17.1 ms')
    """
    unit, size = ("ms", 1e-3) if seconds >= 1e-3 else ("µs", 1e-6)
    return f"{seconds / size:.3g} {unit}"


def times(ratio: float | None) -> str:
    """A ratio as one reads it."""
    if ratio is None:
        return "–"
    return f"{ratio:.2f}" if ratio < 2 else f"{ratio:.1f}" if ratio < 10 else f"{ratio:.3g}"


def table(result: dict[str, Any]) -> str:
    """One machine's Adam as a table in Markdown."""
    found = steps_of(result)
    rows = [
        ["", *map(in_shape, found)],
        ["---", *["--:"] * len(found)],
        ["**fastgd**", *(f"**{in_words(row['seconds']['fastgd'])}**" for row in found)],
        *([name, *map(times, ratios)] for name, ratios in others_in(found).items()),
    ]
    lines = ("|".join(f" {cell} " if cell else " " for cell in row) for row in rows)
    return "".join(f"|{line}|\n" for line in lines)


def main() -> None:
    readme = TOP / "README.md"
    first = next(iter(machines().values()))
    readme.write_text(MARKED.sub(lambda _: table(first), readme.read_text()))


if __name__ == "__main__":
    main()
