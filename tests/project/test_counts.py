"""What bench/counts.py makes of its counts; test_instruction_counts.py counts."""

from __future__ import annotations

import json

import pytest
from support.helpers import ROOT


@pytest.fixture
def counts(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    import counts

    return counts


def test_what_has_grown_is_told(counts):
    before = {"a": 1000, "b": 1000, "c": 1000, "gone": 10, "failed": "KeyError: …"}
    now = {"a": 1029, "b": 1031, "c": 500, "failed": 7, "new": 9}
    assert counts.compared(now, before) == ["b: 1,031 instructions, +3.1% of 1,000"]


def test_what_could_not_be_counted_has_grown(counts):
    assert counts.compared({"a": "TypeError: no"}, {"a": 1000}) == ["a: TypeError: no"]


def test_what_is_chosen_has_short_names(counts, monkeypatch, capsys):
    for arguments, status, said in (
        (["--help"], 0, "  bound       300 x 64, bound\n"),
        (["--only", "bond"], 2, "invalid choice: 'bond'"),
        (["--against", "--nowhere"], 2, "expected one argument"),
        (["--against", "nowhere"], 2, "error: --against: no such commit: nowhere\n"),
    ):
        monkeypatch.setattr("sys.argv", ["counts.py", *arguments])
        with pytest.raises(SystemExit) as caught:
            counts.main()
        assert caught.value.code == status
        assert said in "".join(capsys.readouterr())
    assert len(counts.CALLED) == len(counts.SCENARIOS)


def test_counts_are_noted_beside_those_of_other_keys(counts, monkeypatch, tmp_path):
    monkeypatch.setattr(counts, "TABLE", tmp_path / "counts.json")
    counts.note({"key": "here", "counts": {"a": 1, "b": 2}})
    counts.note({"key": "there", "counts": {"a": 3}})
    counts.note({"key": "here", "counts": {"b": 4, "c": "KeyError: …"}})
    assert json.loads(counts.TABLE.read_text()) == {"here": {"a": 1, "b": 4}, "there": {"a": 3}}
