"""``python -m fastgd bytes``."""

from __future__ import annotations

import pytest

pytest.importorskip("rich", reason="the extra `train` is not installed")

from fastgd.__main__ import main
from fastgd.commands.bytes import CHOICES, Cost, count, measure, verdict


def test_prints_every_choice(capsys):
    assert main(["bytes", "--parameters", "20K", "--optimizer", "Adam"]) == 0
    out = capsys.readouterr().out
    assert "20,000 parameters" in out
    assert all(choice in out for choice in CHOICES)
    assert "…" not in out
    assert "faster here" in out


def test_bytes_of_each_choice():
    costs = {c.choice: c for c in measure("Adam", 51_200)}
    states = {name: c.states for name, c in costs.items()}
    assert states["float32"] == 8
    assert states["float32, bf16"] == 4
    assert states["float32, 8-bit"] == 2 + 2 / 256
    assert states["bf16, master"] == 12
    assert states["bf16, split"] == 10
    assert states["bf16, stochastic, 8-bit"] == 2 + 2 / 256
    assert all(c.seconds > 0 for c in costs.values())
    assert costs["bf16, stochastic"].parameter == 2


def test_says_where_fewer_bytes_are_no_faster():
    costs = [
        Cost("all", 4, 4, 8, 1.0),
        Cost("half", 4, 4, 4, 0.9),
        Cost("quarter", 4, 4, 2, 0.99),
        Cost("more", 4, 4, 12, 1.5),
        Cost("eighth", 2, 2, 2, 1.2),
    ]
    assert "Fewer bytes than all, but no faster here: quarter; eighth.\n" in verdict(costs)
    assert verdict(costs[:2]) == "All that moves fewer bytes than all is faster here."


@pytest.mark.parametrize("text", ["", "x", "0", "-1M", "1.5Q", "nan", "inf", "1e99"])
def test_numbers_that_are_none(text, capsys):
    with pytest.raises(SystemExit):
        main(["bytes", f"--parameters={text}"])
    assert "expected a number of parameters" in capsys.readouterr().err


def test_numbers():
    assert [count(t) for t in ("12", "1.5K", "2M", "1.5B", "3g")] == [12, 1500, 2_000_000, 1_500_000_000, 3_000_000_000]  # fmt: skip
