"""Small steps take no more instructions than was noted: half a minute, so in whole runs alone."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
from support.helpers import ROOT, unsanitized
from support.sampling import HOW_MUCH

assert HOW_MUCH == "whole", "conftest.py leaves this out of other runs"


@pytest.mark.slow
@unsanitized
def test_no_count_has_grown(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    import counts

    if lacking := counts.missing():
        pytest.skip(lacking)
    noted = json.loads(counts.TABLE.read_text())
    if (key := counts.key()) not in noted:
        pytest.skip(f"no counts are noted for {key}: python bench/counts.py --accept")
    names = [n for n in counts.SCENARIOS if n not in counts.WITH_TORCH or find_spec("torch")]
    assert set(names) <= noted[key].keys(), "python bench/counts.py --accept notes the missing ones"
    found = counts.counted(names=names)
    assert found["key"] == key
    known = {name: noted[key][name] for name in names}
    grown = counts.compared(found["counts"], known)
    advice = "if they are worth that, python bench/counts.py --accept notes the new counts"
    assert not grown, "\n".join([*grown, advice])
