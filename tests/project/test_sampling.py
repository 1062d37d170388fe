"""What is sampled covers what it says."""

from __future__ import annotations

from itertools import combinations

import pytest
from support import sampling

LENGTHS = [(3,), (2, 5), (11, 6, 3, 2, 2), (45, 6, 3, 2, 2), (4, 4, 4, 1)]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_every_pair_of_values_is_met(lengths):
    rows = sampling.covering(lengths)
    assert len(rows) == len(set(rows))
    for i, j in combinations(range(len(lengths)), 2):
        assert len({(row[i], row[j]) for row in rows}) == lengths[i] * lengths[j]
    # No more than half as many again as the two longest axes need.
    longest = sorted(lengths)[-2:]
    assert len(rows) <= 1.5 * longest[0] * longest[-1]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_every_value_is_met(lengths):
    rows = sampling.covering(lengths, 1)
    assert len(rows) == max(lengths)
    for i, length in enumerate(lengths):
        assert {row[i] for row in rows} == set(range(length))


def test_no_pair_depends_on_what_is_skipped(monkeypatch):
    monkeypatch.setattr(sampling, "HOW_MUCH", "pairs")
    absent = pytest.param("absent", marks=pytest.mark.skipif(True, reason="this CPU"))
    axes = {"a": "xyz", "b": ["here", absent], "c, d": [(1, 2), (3, 4)]}
    rows = sampling.sampled(axes).args[1]
    run = [p.values for p in rows if not p.marks]
    assert {(a, b) for a, b, *_ in run} == {(a, "here") for a in "xyz"}
    assert {(a, c, d) for a, _, c, d in run} == {(a, *cd) for a in "xyz" for cd in [(1, 2), (3, 4)]}
    assert [p.values[1] for p in rows if p.marks] == ["absent"]


def test_a_whole_run_has_the_product(monkeypatch):
    monkeypatch.setattr(sampling, "HOW_MUCH", "whole")
    rows = sampling.sampled({"a": range(3), "b": range(4), "c": range(2)}).args[1]
    assert len({p.values for p in rows}) == 24
    monkeypatch.setattr(sampling, "HOW_MUCH", "pairs")
    pairs = sampling.sampled({"a": range(3), "b": range(4), "c": range(2)}).args[1]
    assert {p.values for p in rows if not p.marks} == {p.values for p in pairs}
    assert {mark.name for p in rows for mark in p.marks} == {"more"}


def test_slow_values_are_more_in_a_whole_run(monkeypatch):
    found = {}
    for level in ("pairs", "whole"):
        monkeypatch.setattr(sampling, "HOW_MUCH", level)
        axis = sampling.first_of_each(range(12), lambda n: n % 5, slow=True)
        found[level] = sampling.sampled({"a": axis, "b": range(2)}).args[1]
    usual = {p.values for p in found["whole"] if not p.marks}
    assert usual == {p.values for p in found["pairs"]} == {(a, b) for a in range(5) for b in (0, 1)}
    assert len(found["whole"]) == 24


def test_a_whole_run_draws_from_large_products(monkeypatch):
    monkeypatch.setattr(sampling, "HOW_MUCH", "whole")
    axes = {"a": range(20), "b": range(30), "c": range(4)}
    rows = [p.values for p in sampling.sampled(axes).args[1]]
    assert rows == [p.values for p in sampling.sampled(axes).args[1]]
    assert sampling.MOST <= len({*rows}) == len(rows) < 2400
    assert {row[:2] for row in rows} == {(a, b) for a in range(20) for b in range(30)}
