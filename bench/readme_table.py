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


def machines() -> dict[str, dict[str, Any]]:
    """The results by machine."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))}


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
    """One machine's results as a table in Markdown."""
    rows = [
        ["", *result["columns"]],
        ["---", *["--:"] * len(result["columns"])],
        ["**fastgd**", *(f"**{in_words(seconds)}**" for seconds in result["fastgd"])],
        *([name, *map(times, ratios)] for name, ratios in result["others"].items()),
    ]
    lines = ("|".join(f" {cell} " if cell else " " for cell in row) for row in rows)
    return "".join(f"|{line}|\n" for line in lines)


def main() -> None:
    readme = TOP / "README.md"
    first = next(iter(machines().values()))
    readme.write_text(MARKED.sub(lambda _: table(first), readme.read_text()))


if __name__ == "__main__":
    main()
