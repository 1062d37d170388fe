"""Random optimizers and random sequences of operations, against the NumPy backend, bit for bit.

Hypothesis draws an optimizer with its options, and then what is done to it; a twin on the NumPy
backend gets the same.  After every operation all arrays, counts and hyper-parameters agree to the
bit, and so do return values and errors; whatever raised has changed nothing.  So do those of rules
with products of matrices (Muon, SOAP), whose bits may differ between machines, but not on one.

``make fuzz`` runs it with 100,000 examples: as many as FASTGD_FUZZ says, from new seeds each time.
"""

from __future__ import annotations

import copy
import os
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
from support.stateful_draws import (
    any_kinds,
    hypers_of,
    keys_of,
    kinds,
    row_kinds,
    scales,
    seeds,
    specs,
    trees,
    trees_with_tables,
    values_of,
    wrong_kinds,
    wrong_row_kinds,
)
from support.stateful_pairs import (
    IN_GRADIENTS,
    KINDS,
    SCALES,
    Twin,
    available,
    leaves_of,
    outcome,
)

import fastgd
from fastgd.optimizers import OPTIMIZERS

EXAMPLES = int(os.environ.get("FASTGD_FUZZ", "0"))
SETTINGS = settings(
    max_examples=EXAMPLES or by_level(20, 100, 400),
    stateful_step_count=20 if EXAMPLES else 12,
    derandomize=not EXAMPLES,  # the same ones each time in the ordinary tests
    database=settings.default.database if EXAMPLES else None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


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

    @property
    def has_tables(self):
        """Whether gradients by rows were thought of when the optimizers were made."""
        return self.twins and "rows" in self.twins[0].spec.options

    @property
    def catches_up(self):
        return self.twins and self.twins[0].opt.options["rows"] == "catch_up"

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
    @rule(data=st.data(), seed=seeds)
    def step(self, data, seed):
        some = data.draw(row_kinds if self.has_tables else kinds)
        self.both(lambda twin: twin.opt.step(twin.grads(some, seed)))

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

    @precondition(lambda self: self.has_tables)
    @rule(kinds=row_kinds, seed=seeds, count=st.integers(1, 4), scale=scales)
    def steps_by_rows(self, kinds, seed, count, scale):
        """Rows that have no gradient stay as they are, where they don't catch up."""
        for k in range(count):
            self.give(kinds, seed + k)
            before = self.seen
            if not self.both(lambda twin: twin.opt.step(twin.given, grad_scale=scale)):
                break
            if not self.catches_up:
                assert not self.twins[0].moved_others(before)

    @precondition(lambda self: self.has_tables)
    @rule(kinds=wrong_row_kinds, seed=seeds)
    def step_by_rows_that_is_refused(self, kinds, seed):
        self.both(lambda twin: twin.opt.step(twin.grads(kinds, seed)))

    @precondition(lambda self: self.has_tables)
    @rule(kinds=row_kinds, seed=seeds, weight=st.sampled_from([1.0, 0.25, 0.0, 1e300]))
    def accumulate_rows(self, kinds, seed, weight):
        self.both(lambda twin: twin.opt.accumulate(twin.grads(kinds, seed), weight))

    @precondition(lambda self: self.catches_up)
    @rule(kinds=row_kinds, seed=seeds, count=st.integers(0, 4), lr=st.sampled_from([None, 0.25]))
    def catch_up(self, kinds, seed, count, lr):
        """After steps by rows, perhaps by two learning rates, and again, when nothing is missed."""
        self.steps_by_rows(kinds, seed, count, 1.0)
        early = None
        if lr is not None and self.both(follow):  # as copies do
            # Whoever catches up before a change gets what a step after it would do to all rows of
            # tables that miss something else from then on; others catch up in one go, by one rounding.
            before = self.seen
            early = copy.deepcopy(self.twins[0])
            self.on("numpy", early.opt.catch_up)
            early.opt.lr = lr
            self.change_lr(lr)
            self.steps_by_rows(kinds, seed + count, 1, 1.0)
            self.on("numpy", lambda: early.opt.step(early.grads(kinds, seed + count)))
            self.on("numpy", early.opt.catch_up)
        if self.both(lambda twin: twin.opt.catch_up()):
            for entry in self.twins[1].opt.state.values():
                assert (entry.get("row_steps", entry["step"]) == entry["step"]).all()
            if early is not None:
                split = {
                    key[1]
                    for key in before
                    if key[-1] == "row_map" and before[key] == self.seen[key]
                }
                found = early.snapshot()
                assert found.keys() == self.seen.keys()
                assert all(found[k] == self.seen[k] for k in found if not {*k[1:2]} & split)
            self.kept(lambda twin: twin.opt.catch_up())

    @precondition(lambda self: self.twins)
    @rule(
        seed=seeds,
        steps=st.integers(1, 5),
        change=st.deferred(lambda: st.sampled_from([*IN_GRADIENTS, *OTHER_CHANGES])),
        data=st.data(),
    )
    def steps_that_are_alike(self, seed, steps, change, data):
        """The same gradients several times, then something else, and again the same."""
        self.give(data.draw(kinds | row_kinds if self.has_tables else kinds), seed)
        if self.steps_of_given(1 + steps):
            k = data.draw(st.integers(0, sum(1 for _ in leaves_of(self.twins[0].trees)) - 1))
            if change in IN_GRADIENTS:
                for twin in self.twins:
                    twin.change_given(k, change, seed)
            else:
                OTHER_CHANGES[change](self, k, data)
            if self.twins:
                self.steps_of_given(1 + steps)

    def give(self, kinds, seed):
        for twin in self.twins:
            twin.given = twin.grads(kinds, seed)

    def steps_of_given(self, count, **how):
        return all(self.both(lambda twin: twin.opt.step(twin.given, **how)) for _ in range(count))

    def reshape(self, k):
        """A parameter without a gradient may have another shape of as many elements."""
        without = [*leaves_of(self.twins[0].given)][k] is None
        (self.both if without else self.kept)(lambda twin: twin.reshaped_step(k))

    def resize(self, k, data):
        """As a parameter's memory is elsewhere then, nothing can be done any more."""
        self.both(lambda twin: twin.resized_step(k))
        self.twins = None

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
    @rule(data=st.data())
    def add_group(self, data):
        tree = data.draw(trees_with_tables if self.has_tables else trees)
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


# What may be done between steps that are alike, with the k-th parameter if with one.
OTHER_CHANGES = {
    "lr": lambda m, k, data: m.both(lambda twin: setattr(twin.opt, "lr", 0.0625)),
    "hyper-parameter": lambda m, k, data: m.change(data, k),
    "step count": lambda m, k, data: m.both(lambda twin: twin.count_up(k)),
    "scale": lambda m, k, data: [m.steps_of_given(1, grad_scale=by) for by in (2.0, 4.0)],
    "bound": lambda m, k, data: m.bound_step("normal", k),
    "load": lambda m, k, data: m.both(lambda twin: twin.opt.load_state_dict(twin.opt.state_dict())),
    "average": lambda m, k, data: m.twins[0].opt.average and m.swap(["normal"], k),
    "backend": lambda m, k, data: m.run_on(data.draw(st.sampled_from(available())), 1 + k % 3),
    "shape": lambda m, k, data: m.reshape(k),
    "size": lambda m, k, data: m.resize(k, data),
}
ERRORS = {
    "TypeError", "ValueError", "KeyError", "RuntimeError", "FloatingPointError",
    "LookupError",  # of a schedule
}  # fmt: skip


@pytest.mark.more
def test_random_optimizers_equal_their_numpy_twins():
    run_state_machine_as_test(Machine, settings=SETTINGS)
