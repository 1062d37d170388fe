"""What hypothesis draws for the machine: optimizers with their options, gradients, changes.

What comes first among the values to draw from is what examples shrink to.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from hypothesis import strategies as st

from fastgd.core.domains import SCHEDULABLE
from fastgd.core.options import CLIP_BY, HYPER, NONFINITE
from fastgd.core.variants import rules_of
from fastgd.kernels.reference import RULES
from fastgd.kernels.spec.catch_up import KNOWN, LINEAR
from fastgd.kernels.spec.units import LAYOUTS
from fastgd.optimizers import OPTIMIZERS
from support.stateful_pairs import BY_ROWS, KINDS, SCALES, WRONG, WRONG_ROWS, Cycle, Leaf, Spec

# -------------------------------------------------------------------------------- hyper-parameters

# What a hyper-parameter may be is found by asking its domain, so that an optimizer which is new
# needs no line here.
CANDIDATES = (0.0, 1e-8, 1e-3, 0.1, 0.5, 0.9, 0.999, 1.0, 2.5, 1e5, 1e30, 1, 2, 3, False, True, None,
              (0.9, 0.999), (0.0, 0.5), (0.999, 0.0), (0.5, 1.25), (0.9, 0.5, 0.99), (0.0, 0.0, 0.0),
              -1.0, 1e300, np.nan, "0.1", "match_rms_adamw", (0.9,), [1, 2, 3])  # fmt: skip

# Bases of longer axes take long to find, and each axis has one where nothing else is said.
SHORT = {"max_precond_dim": st.sampled_from([40, 3])}


@cache
def accepted(domain):
    """The candidates that a domain takes, and those that it refuses."""
    fine, refused = [], []
    for value in CANDIDATES:
        try:
            domain(value, "value")
            fine.append(value)
        except (TypeError, ValueError):
            refused.append(value)
    assert fine
    return fine, refused


@cache
def values_of(domain, wrong=True, scheduled=True):
    """Values of a hyper-parameter: mostly numbers, some schedules, some that are refused."""
    fine, refused = accepted(domain)
    usual = [v for v in fine if not isinstance(v, float) or v <= 2.5]
    values = st.sampled_from(usual) | st.sampled_from(usual) | st.sampled_from(fine)
    if scheduled and domain in SCHEDULABLE:
        some = st.lists(st.sampled_from([*usual, *usual, *refused[: int(wrong)], "error"]),
                        min_size=1, max_size=3)  # fmt: skip
        values |= st.builds(Cycle, st.lists(st.sampled_from(usual), min_size=1).map(tuple))
        values |= st.builds(Cycle, some.map(tuple))
    return values | st.sampled_from(refused) if wrong else values


@cache
def hypers_of(name, wrong=False, rows=None):
    """Some of an optimizer's hyper-parameters; with ``rows``, such as steps by rows mostly take."""
    domains = {k: d for k, d in OPTIMIZERS[name].domains.items() if k in keys_of(name)}
    own = {k: values_of(d, wrong, not rows) for k, d in domains.items() if k not in HYPER}
    limits = st.sampled_from([None, 1e-3, 0.5, 10.0, Cycle((0.5, None, 2.0))])
    optional = {**own, **dict.fromkeys(HYPER, limits)}
    if rows:
        optional |= dict.fromkeys(HYPER, st.sampled_from([None, 1e-3, 0.5]))
    if rows == "catch_up":
        del optional["clip_ratio"]
        if "weight_decay" in own:
            optional["weight_decay"] = st.sampled_from(
                [0.0, 0.1] if LINEAR in ways(name) else [0.0]
            )
    required = {key: optional.pop(key) for key in SHORT.keys() & optional.keys()}
    return st.fixed_dictionaries({key: SHORT[key] for key in required}, optional=optional)


@cache
def keys_of(name):
    return OPTIMIZERS[name](np.zeros(1)).defaults


@cache
def ways(name):
    """How rows of an optimizer's rules may catch up."""
    return {RULES[rule].catch_up for rule in rules_of(OPTIMIZERS[name])}


def takes_rows(name):
    """Whether some rule of an optimizer takes gradients by rows."""
    return any(RULES[rule].by_rows in ("exact", "lazy") for rule in rules_of(OPTIMIZERS[name]))


# Which optimizers take gradients by rows with a value of that option.
SPARSE = {"exact": [name for name, cls in OPTIMIZERS.items() if takes_rows(name)
                    and (cls.sparse or RULES[next(iter(rules_of(cls)))].by_rows == "exact")],
          "lazy": [name for name in OPTIMIZERS if takes_rows(name)],
          "catch_up": [name for name in OPTIMIZERS if ways(name) & {*KNOWN}]}  # fmt: skip

# ------------------------------------------------------------------------------------- structures

# Around vectors, tiles and aligned chunks; a size beyond one chunk is dear, and rare.
EDGES = (0, 1, 2, 3, 7, 8, 15, 16, 17, 33, 255, 256, 257, 1023, 1024, 1025)
sizes = st.integers(0, 40) | st.sampled_from(EDGES)
seldom = st.integers(0, 30).map(lambda k: k == 30)
rare = seldom.flatmap(
    lambda dear: st.sampled_from((32767, 32769, 40_000, 65_537)) if dear else sizes
)
shapes = st.one_of(
    st.just(()), st.tuples(rare), st.tuples(st.integers(0, 5), st.integers(0, 20)), st.tuples(sizes)
)
dtypes = st.sampled_from(["float32", "float64"])
leaves = st.builds(Leaf, shapes, dtypes, st.sampled_from("CCF"), st.integers(0, 9))
lengths = st.sampled_from([1, 2, 5, 16, 17, 0, 256])
table_shapes = st.one_of(
    st.tuples(st.integers(1, 9), lengths),
    st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(1, 5)),
    seldom.map(lambda dear: (300, 120) if dear else (20, 3)),
)
tables = st.builds(Leaf, table_shapes, dtypes, st.just("C"), st.integers(0, 9))
keys = st.sampled_from(["W", "b", "c"])


def trees_of(leaves):
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, min_size=1, max_size=3)
            | st.dictionaries(keys, inner, min_size=1, max_size=3)
        ),
        max_leaves=4,
    )


trees = trees_of(leaves)
trees_with_tables = trees_of(tables | tables | leaves)
averages = st.one_of(
    st.none(),
    st.sampled_from([0.0, 0.9]),
    st.fixed_dictionaries(
        {"decay": st.sampled_from([0.5, 0.99])},
        optional={"bias_correction": st.just(False), "warmup": st.just(True)},
    ),
)
OPTIONS = {
    "clip_by": st.sampled_from(CLIP_BY),
    "nonfinite": st.sampled_from(NONFINITE),
    "centralize": st.booleans(),
    "layout": st.sampled_from(LAYOUTS),
    "zero_grads": st.booleans(),
}
options = st.fixed_dictionaries({}, optional=OPTIONS)
# These two are mostly refused where gradients come by rows.
options_by_rows = st.fixed_dictionaries(
    {}, optional={k: v for k, v in OPTIONS.items() if k not in ("centralize", "layout")}
)
# How states are stored: mostly as they are computed with.
storages = st.sampled_from(
    [
        {},
        {},
        {},
        {"state_dtype": "bfloat16"},
        {"state_dtype": "float16"},
        {"state_dtype": "8bit", "min_8bit_size": 0},
    ]
)


@st.composite
def specs(draw):
    rows = draw(st.sampled_from([None, None, None, "exact", "lazy", "catch_up"]))
    name = draw(st.sampled_from(SPARSE[rows] if rows else sorted(OPTIMIZERS)))
    grouped = draw(st.booleans())
    form = trees_with_tables if rows else trees
    some = draw(st.lists(form, min_size=1, max_size=3 if grouped else 1))
    wrong = draw(st.integers(0, 9)) == 9
    hypers = [draw(hypers_of(name, wrong, rows)), *(draw(hypers_of(name, rows=rows)) for _ in some)]
    given = draw(options_by_rows) | {"rows": rows} if rows else draw(options)
    given |= draw(storages)
    return Spec(
        name, tuple(some), grouped, tuple(hypers), given, None if rows else draw(averages),
        draw(st.sampled_from([None, "float32", "bfloat16"])), draw(st.booleans()),
    )  # fmt: skip


kinds = st.lists(st.sampled_from(list(SCALES)), min_size=1, max_size=3)
any_kinds = st.lists(st.sampled_from([*SCALES, *KINDS]), min_size=1, max_size=4)
wrong_kinds = st.lists(st.sampled_from(["normal", "none", *WRONG]), min_size=1, max_size=3)
row_kinds = st.lists(
    st.sampled_from([*BY_ROWS, *BY_ROWS, "normal", "none"]), min_size=1, max_size=3
)
wrong_row_kinds = st.lists(st.sampled_from(["rows", "none", *WRONG_ROWS]), min_size=1, max_size=3)
seeds = st.integers(0, 50)
scales = st.sampled_from([1.0, 1.0, 2.0, 1024.0, -0.5, 1e-3, 1e-30, 1e40, 0.0])
