"""What docs/rows.md says runs and is so, and the example of word vectors learns."""

from __future__ import annotations

import re
import runpy
import sys

import numpy as np
import pytest
from support.helpers import ROOT

from fastgd.kernels.reference import RULES
from fastgd.optimizers import OPTIMIZERS

PAGE = ROOT / "docs" / "rows.md"
TEXT = PAGE.read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, flags=re.M | re.S)


@pytest.mark.parametrize("code", BLOCKS, ids=lambda code: code.split("\n\n")[1].split()[0])
def test_examples_run(code, tmp_path, monkeypatch):
    if "import torch" in code:
        pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(PAGE), "exec"), {})


def test_the_table_says_what_optimizers_declare():
    said: dict[str, str] = {}
    for row in re.findall(r"^\| (exact|lazy|refused) \| (.*?) \|", TEXT, flags=re.M):
        said |= dict.fromkeys(
            set(re.findall(r"\w+", row[1])) & OPTIMIZERS.keys() - said.keys(), row[0]
        )
    assert said.keys() == OPTIMIZERS.keys()
    for name, cls in OPTIMIZERS.items():
        known = RULES[cls(np.zeros((4, 3))).stepper.rules[0]].by_rows
        assert said[name] == (known if known in ("exact", "lazy") else "refused"), name


@pytest.mark.slow
def test_word_vectors(capsys, monkeypatch, tmp_path):
    """In short: on a tenth of the text."""
    monkeypatch.setattr(sys, "argv", ["word_vectors.py", "--words", "30000", "--epochs", "3"])
    example = runpy.run_path(str(ROOT / "examples" / "word_vectors.py"))
    example["main"]()
    said = capsys.readouterr().out
    losses = [float(x) for x in re.findall(r"loss ([\d.]+)", said)]
    assert len(losses) == 3
    assert losses[-1] < losses[0] - 0.25
    assert re.search(r"^ +list: \w+, ", said, flags=re.M)
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    vectors = np.random.default_rng(0).standard_normal((400, 8))
    words = [*example["ASKED"], *map(str, range(400 - len(example["ASKED"])))]
    example["plot"](tmp_path / "words.png", words, vectors, np.linspace(5, 2, 300))
    assert (tmp_path / "words.png").stat().st_size > 10_000
