"""Random optimizers and random sequences of operations, against the NumPy backend, bit for bit.

Hypothesis draws an optimizer with its options, and then what is done to it; a twin on the NumPy
backend gets the same.  After every operation all arrays, counts and hyper-parameters agree to the
bit, and so do return values and errors; whatever raised has changed nothing.

``make fuzz`` runs it with 100,000 examples: as many as FASTGD_FUZZ says, from new seeds each time.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.sampling import by_level
from support.stateful_pairs import KINDS, SCALES, WRONG, Cycle, Leaf, Spec, Twin, available, outcome

import fastgd
from fastgd.core.domains import SCHEDULABLE
from fastgd.core.options import CLIP_BY, HYPER, NONFINITE
from fastgd.kernels.spec.units import LAYOUTS
from fastgd.optimizers import GENERAL, OPTIMIZERS

EXAMPLES = int(os.environ.get("FASTGD_FUZZ", "0"))
SETTINGS = settings(
    max_examples=EXAMPLES or by_level(20, 120, 500),
    stateful_step_count=20 if EXAMPLES else 12,
    derandomize=not EXAMPLES,  # the same ones each time in the ordinary tests
    database=settings.default.database if EXAMPLES else None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

# -------------------------------------------------------------------------------- hyper-parameters

# What a hyper-parameter may be is found by asking its domain, so that an optimizer which is new
# needs no line here.
CANDIDATES = (0.0, 1e-8, 1e-3, 0.1, 0.5, 0.9, 0.999, 1.0, 2.5, 1e5, 1e30, False, True, None,
              (0.9, 0.999), (0.0, 0.5), (0.999, 0.0), (0.5, 1.25), (0.9, 0.5, 0.99), (0.0, 0.0, 0.0),
              -1.0, 1e300, np.nan, "0.1", (0.9,), [1, 2, 3])  # fmt: skip


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
def values_of(domain, wrong=True):
    """Values of a hyper-parameter: mostly numbers, some schedules, some that are refused."""
    fine, refused = accepted(domain)
    usual = [v for v in fine if not isinstance(v, float) or v <= 2.5]
    values = st.sampled_from(usual) | st.sampled_from(usual) | st.sampled_from(fine)
    if domain in SCHEDULABLE:
        some = st.lists(st.sampled_from([*usual, *usual, *refused[: int(wrong)], "error"]),
                        min_size=1, max_size=3)  # fmt: skip
        values |= st.builds(Cycle, st.lists(st.sampled_from(usual), min_size=1).map(tuple))
        values |= st.builds(Cycle, some.map(tuple))
    return values | st.sampled_from(refused) if wrong else values


@cache
def hypers_of(name, wrong=False):
    """Some of an optimizer's hyper-parameters."""
    domains = OPTIMIZERS[name].domains
    own = {key: values_of(domain, wrong) for key, domain in domains.items() if key not in HYPER}
    own = {key: values for key, values in own.items() if key in keys_of(name)}
    limits = st.sampled_from([None, 1e-3, 0.5, 10.0, Cycle((0.5, None, 2.0))])
    return st.fixed_dictionaries({}, optional={**own, **dict.fromkeys(HYPER, limits)})


@cache
def keys_of(name):
    return OPTIMIZERS[name](np.zeros(1)).defaults


# ------------------------------------------------------------------------------------- structures

# Around vectors, tiles and aligned chunks; a size beyond one chunk is dear, and rare.
EDGES = (0, 1, 2, 3, 7, 8, 15, 16, 17, 33, 255, 256, 257, 1023, 1024, 1025)
sizes = st.integers(0, 40) | st.sampled_from(EDGES)
rare = st.integers(0, 30).flatmap(
    lambda k: st.sampled_from((32767, 32769, 40_000, 65_537)) if k == 30 else sizes
)
shapes = st.one_of(
    st.just(()), st.tuples(rare), st.tuples(st.integers(0, 5), st.integers(0, 20)), st.tuples(sizes)
)
leaves = st.builds(
    Leaf, shapes, st.sampled_from(["float32", "float64"]), st.sampled_from("CCF"), st.integers(0, 9)
)
keys = st.sampled_from(["W", "b", "c"])
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3)
        | st.dictionaries(keys, inner, min_size=1, max_size=3)
    ),
    max_leaves=4,
)
averages = st.one_of(
    st.none(),
    st.sampled_from([0.0, 0.9]),
    st.fixed_dictionaries(
        {"decay": st.sampled_from([0.5, 0.99])},
        optional={"bias_correction": st.just(False), "warmup": st.just(True)},
    ),
)
options = st.fixed_dictionaries(
    {},
    optional={
        "clip_by": st.sampled_from(CLIP_BY),
        "nonfinite": st.sampled_from(NONFINITE),
        "centralize": st.booleans(),
        "layout": st.sampled_from(LAYOUTS),
        "zero_grads": st.booleans(),
    },
)


@st.composite
def specs(draw):
    name = draw(st.sampled_from(sorted(GENERAL)))
    grouped = draw(st.booleans())
    some = draw(st.lists(trees, min_size=1, max_size=3 if grouped else 1))
    wrong = draw(st.integers(0, 9)) == 9
    hypers = [draw(hypers_of(name, wrong)), *(draw(hypers_of(name)) for _ in some)]
    return Spec(
        name, tuple(some), grouped, tuple(hypers), draw(options), draw(averages),
        draw(st.sampled_from([None, "float32", "bfloat16"])), draw(st.booleans()),
    )  # fmt: skip


kinds = st.lists(st.sampled_from(list(SCALES)), min_size=1, max_size=3)
any_kinds = st.lists(st.sampled_from([*SCALES, *KINDS]), min_size=1, max_size=4)
wrong_kinds = st.lists(st.sampled_from(["normal", "none", *WRONG]), min_size=1, max_size=3)
seeds = st.integers(0, 50)
scales = st.sampled_from([1.0, 1.0, 2.0, 1024.0, -0.5, 1e-3, 1e-30, 1e40, 0.0])

# ------------------------------------------------------------------------------------ the machine


def follow(twin):
    """Lay out states as rules ask now; a step would, and what only looks doesn't."""
    twin.opt.stepper.follow()


class Machine(RuleBasedStateMachine):
    """Two twins, and what may be done to an optimizer."""

    twins = None

    @initialize(spec=specs())
    def make(self, spec):
        self.backend = available()[0]
        made = []
        results = [self.on(name, lambda: made.append(Twin(spec))) for name in ("numpy", None)]
        assert results[0] == results[1]
        if made:
            self.twins = made
            self.saved = []
            self.seen = self.compare()

    def on(self, backend, call):
        fastgd.set_backend(backend or self.backend)
        return outcome(call)

    def compare(self):
        a, b = (twin.snapshot() for twin in self.twins)
        differ = [key for key in {**a, **b} if a.get(key, self) != b.get(key, self)]
        assert not differ, differ
        return a

    def both(self, operation):
        """Do the same to both; whatever raises has changed nothing."""
        first = self.on("numpy", lambda: operation(self.twins[0]))
        second = self.on(None, lambda: operation(self.twins[1]))
        assert first == second
        after = self.compare()
        if first[0] != "returned":
            changed = [key for key in self.seen if after.get(key) != self.seen[key]]
            assert not changed, (first, changed)
            assert first[0] in ERRORS, first
        self.seen = after
        return first[0] == "returned"

    def kept(self, operation):
        """As `both`, and what there is to see stays as it was."""
        before = self.seen
        if self.both(operation):
            differ = [key for key in before if self.seen.get(key) != before[key]]
            assert not differ, differ

    # ------------------------------------------------------------------------------------- steps

    @precondition(lambda self: self.twins)
    @rule(kinds=kinds, seed=seeds)
    def step(self, kinds, seed):
        self.both(lambda twin: twin.opt.step(twin.grads(kinds, seed)))

    @precondition(lambda self: self.twins)
    @rule(kinds=any_kinds, seed=seeds, scale=scales)
    def step_of_any_kind(self, kinds, seed, scale):
        self.both(lambda twin: twin.opt.step(twin.grads(kinds, seed), grad_scale=scale))

    @precondition(lambda self: self.twins)
    @rule(kinds=wrong_kinds, seed=seeds, bend=st.sampled_from([None, None, "longer", "empty"]))
    def step_that_is_refused(self, kinds, seed, bend):
        self.both(lambda twin: twin.opt.step(twin.grads(kinds, seed, bend)))

    @precondition(lambda self: self.twins)
    @rule(kind=st.sampled_from([*SCALES, *KINDS[-4:-1]]), seed=seeds)
    def bound_step(self, kind, seed):
        def fill_and_step(twin):
            for k, g in enumerate(twin.opt.stepper.plan.bound or ()):
                if g is not None:
                    g[...] = np.float32(SCALES.get(kind, np.nan)) * np.float32(seed + k)
            self.filled = twin.snapshot()
            return twin.opt.step()

        # What has not changed if it raises is what there was after filling.
        first = self.on("numpy", lambda: fill_and_step(self.twins[0]))
        self.seen = self.filled
        second = self.on(None, lambda: fill_and_step(self.twins[1]))
        assert first == second
        after = self.compare()
        assert first[0] == "returned" or after == self.seen
        self.seen = after

    @precondition(lambda self: self.twins)
    @rule(kinds=any_kinds, seed=seeds, weight=st.sampled_from([1.0, 3, 0.25, 0.0, 1e300]))
    def accumulate(self, kinds, seed, weight):
        self.both(lambda twin: twin.opt.accumulate(twin.grads(kinds, seed), weight))

    @precondition(lambda self: self.twins)
    @rule(scale=scales)
    def step_of_accumulated(self, scale):
        if ("accumulated", "weight") in self.seen:
            self.both(lambda twin: twin.opt.step(grad_scale=scale))

    # ---------------------------------------------------------------------------------- changes

    @precondition(lambda self: self.twins)
    @rule(data=st.data(), k=st.integers(0, 4))
    def change(self, data, k):
        name = self.twins[0].spec.name
        key = data.draw(st.sampled_from(sorted(keys_of(name))))
        value = data.draw(values_of(OPTIMIZERS[name].domains[key]))

        def assign(twin):
            twin.opt.param_groups[k % len(twin.opt.param_groups)][key] = value

        self.both(assign)

    @precondition(lambda self: self.twins)
    @rule(value=values_of(OPTIMIZERS["SGD"].domains["lr"]))
    def change_lr(self, value):
        self.both(lambda twin: setattr(twin.opt, "lr", value))
        self.kept(lambda twin: twin.opt.lr)

    @precondition(lambda self: self.twins and len(self.twins[0].trees) < 4)
    @rule(tree=trees, data=st.data())
    def add_group(self, tree, data):
        hyper = data.draw(hypers_of(self.twins[0].spec.name, wrong=True))
        self.both(lambda twin: twin.add(tree, hyper))

    @rule(name=st.sampled_from(available()), threads=st.sampled_from([None, 1, 2, 3]))
    def run_on(self, name, threads):
        self.backend = name
        fastgd.set_num_threads(threads)

    # ------------------------------------------------------------------ states, copies, averages

    @precondition(lambda self: self.twins)
    @rule()
    def save(self):
        saved = []
        self.kept(lambda twin: saved.append(twin.opt.state_dict()))
        if len(saved) == 2:
            self.saved.append(saved)

    @precondition(lambda self: self.twins and self.saved)
    @rule(k=st.integers(0, 9), crossed=st.booleans())
    def load(self, k, crossed):
        """Go back to an earlier state; the twins' own or each other's make no difference."""
        saved = dict(zip(map(id, self.twins), self.saved[k % len(self.saved)][:: 1 - 2 * crossed],
                         strict=True))  # fmt: skip
        self.both(lambda twin: twin.opt.load_state_dict(saved[id(twin)]))

    @precondition(lambda self: self.twins)
    @rule()
    def resume(self):
        """Go on with a fresh optimizer that loaded the state dict of this one."""
        self.both(follow)
        before = self.seen
        if self.both(
            lambda twin: twin.renewed(lambda new: new.load_state_dict(twin.opt.state_dict()))
        ):
            # Gradients are new ones, and states that no rule uses at the moment are not saved.
            differ = {key for key in self.seen if self.seen[key] != before.get(key)}
            assert not {key for key in differ if key[0] not in ("bound", "state")}, differ
            assert not differ & self.twins[0].active(), differ

    if hasattr(fastgd, "save"):

        @precondition(lambda self: self.twins)
        @rule()
        def resume_from_file(self):
            """The same through a checkpoint, which holds the parameters, too."""
            self.both(follow)
            before = self.seen
            with TemporaryDirectory() as folder:
                path = Path(folder) / "checkpoint"

                def through(twin, new):
                    fastgd.save(path, twin.opt)
                    for p in new.param_groups[0]["params"]:
                        p[...] = 0
                    fastgd.load(path, new)

                if self.both(lambda twin: twin.renewed(lambda new: through(twin, new))):
                    differ = {key for key in self.seen if self.seen[key] != before.get(key)}
                    assert not {key for key in differ if key[0] not in ("bound", "state")}, differ
                    assert not differ & self.twins[0].active(), differ

    @precondition(lambda self: self.twins)
    @rule(way=st.sampled_from(["deepcopy", "pickle"]))
    def go_on_with_a_copy(self, way):
        self.both(lambda twin: twin.copied(way))

    @precondition(lambda self: self.twins and self.twins[0].opt.average)
    @rule(kinds=kinds, seed=seeds)
    def swap(self, kinds, seed):
        def swapped(twin):
            opt = twin.opt
            with opt.average.swapped():
                averaged = {key: v for key, v in twin.snapshot().items() if key[0] == "param"}
                steps = outcome(lambda: opt.step(twin.grads(kinds, seed)))
                return averaged, steps

        self.kept(swapped)

    def teardown(self):
        fastgd.set_num_threads(None)


ERRORS = {
    "TypeError", "ValueError", "KeyError", "RuntimeError", "FloatingPointError",
    "LookupError",  # of a schedule
}  # fmt: skip


@pytest.mark.more
def test_random_optimizers_equal_their_numpy_twins():
    run_state_machine_as_test(Machine, settings=SETTINGS)
