"""docs/faults.md: each row names tests, and these exist."""

from __future__ import annotations

import ast
import re

from support.helpers import ROOT


def test_the_table_names_tests_that_exist():
    table = (ROOT / "docs" / "faults.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| ") and "---" not in line]
    rows = [line for line in rows if not line.startswith("| what happens")]
    assert len(rows) > 40
    for row in rows:
        named = re.findall(r"`(test_\w+)\.py::(test_\w+)`", row)
        assert named, f"no test shows: {row}"
        for file, test in named:
            (path,) = (ROOT / "tests").rglob(f"{file}.py")
            tree = ast.parse(path.read_text())
            names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert test in names, f"{file}.py has no {test}: {row}"
