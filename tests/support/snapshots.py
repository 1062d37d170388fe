"""What an optimizer holds at a moment, to see that a refused call has changed nothing."""

from __future__ import annotations

import numpy as np


def snapshot(opt):
    """Copies of parameters and states, and the groups' entries."""
    arrays = [p.copy() for g in opt.param_groups for p in g["params"]]
    arrays += [a.copy() for s in opt.state.values() for a in s.values()]
    return arrays, [dict(g) for g in opt.param_groups]


def assert_unchanged(opt, before):
    """All is as in a snapshot."""
    after = snapshot(opt)
    for a, b in zip(before[0], after[0], strict=True):
        assert np.array_equal(a, b)
    for g, h in zip(before[1], after[1], strict=True):
        assert g.keys() == h.keys()
        assert all(g[k] == h[k] for k in g if k != "params")
