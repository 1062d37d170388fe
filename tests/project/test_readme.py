"""The README's examples run, and its commands are what continuous integration reads."""

from __future__ import annotations

import re

import numpy as np
import pytest
from support.helpers import ROOT

README = ROOT / "README.md"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), flags=re.M | re.S)


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[0])
def test_examples_run(code, tmp_path, monkeypatch):
    if "import torch" in code:
        pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, str(README), "exec"), names)
    if "error" in names:
        assert np.abs(names["error"]).max() < 1e-2


def test_the_two_commands():
    commands = blocks("sh")[0].splitlines()
    assert len(commands) == 2
    assert all(c.startswith('pip install -e ".[') for c in commands)
    assert "python -m fastgd train" in commands[0]
    assert "python -m pytest" in commands[1]


def test_it_can_be_read_in_a_sitting():
    lines = README.read_text().splitlines()
    assert len(lines) <= 180
    assert sum(line.startswith("![") for line in lines) == 1


def test_the_table_is_that_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    import readme_table

    (shown,) = readme_table.MARKED.findall(README.read_text())
    tables = [readme_table.table(machine) for machine in readme_table.machines().values()]
    assert shown in tables
