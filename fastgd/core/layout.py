"""The states of an optimizer's parameters, and the plan of a step over both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastgd.core.contract import Contract, Hyper
from fastgd.core.ema import EMA
from fastgd.core.grouped import Grouped
from fastgd.core.groups import ParamGroup
from fastgd.core.iterates import IterateAverage
from fastgd.core.storage import ROW_MAP, ROW_STEPS, Kind
from fastgd.core.trees import Name, unflatten
from fastgd.kernels import reference
from fastgd.kernels._engine import HyperRows, Plan
from fastgd.kernels.reference import RULES
from fastgd.kernels.spec.coded_array import CodedArray, as_coded
from fastgd.kernels.spec.lines import Axes, Axis

Array = NDArray[Any]
# The rules of parameters by their shapes.
Picks = dict[tuple[int, ...], str]


class Layout(NamedTuple):
    """What changes when a parameter follows another rule."""

    state: Mapping[Name, Mapping[str, Array]]
    rules: list[str]  # of each parameter
    picks: list[Picks]  # of each group
    owners: list[tuple[int, str]]  # groups with a rule of theirs, whose coefficients tensors share
    steps: NDArray[np.int64]  # taken by each parameter
    plan: Plan
    configure: Callable[[int, int, float], tuple[Any, ...]]  # what the plan asks, if C doesn't know
    seen: object  # the latest change of groups that was looked at


class LaidOut(Grouped):
    """Parameters with the states that their rules ask for; see `Stepper` for the attributes."""

    options: Mapping[str, Any]
    state: Mapping[Name, Mapping[str, Array]]
    rules: list[str]
    picks: list[Picks]
    owners: list[tuple[int, str]]
    steps: NDArray[np.int64]
    plan: Plan
    configure: Callable[[int, int, float], tuple[Any, ...]]
    average: EMA | None
    iterates: IterateAverage | None
    copies: list[Array] | None
    skipped: NDArray[np.int64]
    _first: int

    def lay_out(
        self, hypers: Sequence[Hyper], steps: NDArray[np.int64], grads: object = None
    ) -> None:
        """Lay out the states that each group's rule asks for, and resolve all to pointers.

        Changes nothing if it raises.
        """
        kind, storage = self.kind, self.storage
        picks, rules = self._picked(hypers)
        before = dict(zip(self.state, self.rules, strict=False))
        steps = steps.copy()
        state: dict[Name, Mapping[str, Array]] = {}
        params: list[Array | CodedArray] = []
        arrays: list[tuple[Array | CodedArray, ...]] = []
        groups: list[int] = []
        owners: dict[tuple[int, str], int] = {}
        units: list[Axis | None] = []
        numbers: list[tuple[Array, ...]] = []
        missed: list[tuple[Array, Array, ParamGroup] | None] = []
        axes: list[Axes | None] = []
        recall = storage.recall()
        starts = self._starts(hypers, rules, self._shared_numbers(rules))
        for k, (group, start) in enumerate(zip(self.param_groups, starts, strict=True)):
            for name, p in zip(self.names[k], group["params"], strict=True):
                i = len(params)
                rule = rules[i]
                if not RULES[rule].shards and storage.is_shard(p):
                    raise ValueError(
                        f"params{self.labels()[i]}: expected a whole parameter, as rule {rule} "
                        "does not step shards, found a shard"
                    )
                kinds = recall(p, rule)
                kept = {**self._kept(name, p, kinds), "step": steps[i, ...]}
                for key in self._rows_anew(kept, kinds, group):
                    del kept[key]
                if before.get(name, rule) != rule and not self.homes:
                    storage.keep_as_wanted(p, rule, kinds, kept)
                for key, what in kinds.items():
                    if key not in kept:
                        kept |= self._new(what, p, start.get(key, 0.0))
                        if key == ROW_STEPS and steps[i]:
                            kept[key].fill(steps[i])
                        # Schedules go on from the steps taken; a velocity may then start from 0.
                        if kind.restarts and not group.scheduled and what.role == "state":
                            steps[i] = 0
                state[name] = MappingProxyType(kept)
                arrays.append(tuple([kinds[key].given(kept) for key in RULES[rule].states]))
                numbers.append(tuple([kept[key] for key in RULES[rule].numbers]))
                rows = (kept[ROW_STEPS], kept[ROW_MAP], group) if ROW_STEPS in kinds else None
                missed.append(rows)
                params.append(storage.given(p, kept))
                groups.append(k)
                owners.setdefault((k, rule), len(owners))
                units.append(storage.units(p, self.options["layout"]))
                axes.append(storage.axes(p) if RULES[rule].line_states else None)
        average = self.average
        all_params = (p for group in self.param_groups for p in group["params"])
        with_matrices = any(RULES[rule].matrix for rule in set(rules))
        plan = Plan(
            self.structure,
            params,
            self.labels(),
            groups,
            arrays,
            rules,
            steps,
            grads,
            averages=None if average is None else list(average.averages.values()),
            average_steps=None if average is None else average.steps,
            copies=self.all_copies(),
            clip_by=self.options["clip_by"],
            nonfinite=self.options["nonfinite"],
            skipped=self.skipped,
            seed=storage.seed,
            units=units,
            centralized=self._centralized(),
            numbers=numbers,
            owners=[owners[key] for key in zip(groups, rules, strict=True)],
            sizes=[*map(storage.size, self.params().values())] if storage.pieces else None,
            axes=axes,
            hyper_rows=self._hyper_rows(),
            matrices=[*map(storage.matrix, all_params)] if with_matrices else None,
            shapes=[*map(storage.shaped, self.params().values())] if storage.pieces else None,
            lazy=self.options["rows"] == "lazy",
            sparse=kind.sparse,
            missed=missed if storage.catch_up else None,
        )
        plan.first = self._first
        self.state, self.rules, self.steps = MappingProxyType(state), rules, steps
        self.picks, self.owners, self.plan = picks, list(owners), plan
        self.configure = partial(_settings, kind, self.param_groups, self.owners)
        for name, p in self.params().items() if self.homes else ():
            if (home := self.homes.get(id(p))) is not None:
                home.bind(state[name], self)
        for swapping in (self.average, self.iterates):
            if swapping is not None:
                swapping.homes = tuple(self.homes.values())

    def _kept(self, name: Name, p: Array, kinds: Mapping[str, Kind]) -> Mapping[str, Array]:
        """The states that there are of a parameter."""
        home = self.homes.get(id(p))
        if home is None or name in self.state:
            return self.state.get(name, {})
        return home.known(kinds, self.kind.restarts)

    def _new(self, kind: Kind, p: Array, start: float) -> dict[str, Array]:
        """A state that there was none of, where its parameter wants it to be."""
        home = self.homes.get(id(p))
        return kind.new(p, start) if home is None else home.new(kind, start)

    def _rows_anew(
        self, kept: Mapping[str, Array], kinds: Mapping[str, Kind], group: ParamGroup
    ) -> set[str]:
        """What was kept of a table's rows, none of which has missed anything, and is made anew.

        That is where the rule has other numbers or none, or steps are counted from new states on.
        """
        own = {ROW_STEPS, ROW_MAP} & kept.keys()
        fitting = {key for key in own & kinds.keys() if kept[key].shape == kinds[key].shape}
        new = any(what.role == "state" and key not in kept for key, what in kinds.items())
        if new and self.kind.restarts and not group.scheduled:
            fitting.discard(ROW_STEPS)
        return own - fitting

    def _centralized(self) -> list[bool] | None:
        """Of which parameters the gradients are centralized: those that have weights of inputs."""
        if not self.options["centralize"]:
            return None
        return [len(self.storage.shape(p)) > 1 for p in self.params().values()]

    def _shared_numbers(self, rules: list[str]) -> dict[str, float]:
        """The numbers that all parameters have alike, as those have them that were stepped."""
        keys = {key for rule in set(rules) for key in RULES[rule].shared}
        entries = self.state.values() if keys else ()
        return {key: float(entry[key]) for entry in entries for key in keys & entry.keys()}

    def _starts(
        self, hypers: Sequence[Hyper], rules: list[str], known: Mapping[str, float]
    ) -> list[dict[str, float]]:
        """What each group's states start from; shared numbers, unless known, as in the first."""
        keys = {key for rule in set(rules) for key in RULES[rule].shared}
        first = self.kind.initial(hypers[0]) if keys else {}
        shared = {**{key: first[key] for key in keys & first.keys()}, **known}
        return [{**self.kind.initial(h), **shared} for h in hypers]

    def _hyper_rows(self) -> HyperRows | None:
        """The groups' hyper-parameters for C, if it works out what `configure` does."""
        kind = self.kind
        if (translation := kind.in_c()) is None:
            return None
        return HyperRows(self.param_groups, *translation, kind.decoupled, kind.own_decay)

    def _picked(self, hypers: Sequence[Hyper]) -> tuple[list[Picks], list[str]]:
        """The rules that groups' hyper-parameters pick: by shapes, and of each parameter."""
        shapes = [[self.storage.shape(p) for p in group["params"]] for group in self.param_groups]
        picks = [self._pick(h, dict.fromkeys(own)) for h, own in zip(hypers, shapes, strict=True)]
        return picks, [pick[k] for pick, own in zip(picks, shapes, strict=True) for k in own]

    def _pick(self, h: Hyper, shapes: Iterable[tuple[int, ...]]) -> Picks:
        """The rule for parameters of each of these shapes, by a group's hyper-parameters."""
        found = {}
        for shape in shapes:
            try:
                found[shape] = self.kind.rule(h, shape)
            except ValueError as error:
                raise ValueError(f"{self._label_of(shape)}: {error}") from None
        return found

    def bound(self) -> object:
        """The bound gradients in the structure of the parameters, or None."""
        held = self.plan.bound
        return None if held is None else unflatten(self.structure, iter(held))

    def _steps_at_home(self, params: Iterable[Array]) -> NDArray[np.int64]:
        """The steps that parameters have taken before they came here."""
        homes = [self.homes.get(id(p)) for p in params]
        return np.array([0 if home is None else home.step for home in homes], np.int64)

    def copy_out(self) -> None:
        """Bring the copies up to date with the parameters."""
        for out, (name, p) in zip(self.copies or (), self.params().items(), strict=False):
            reference.copy(as_coded(out), self.storage.parameter(p, self.state[name]))

    def all_copies(self) -> list[Array | None] | None:
        """Where each parameter is copied to: a parameter with a master is itself such a copy."""
        params = list(self.params().values())
        if not any(map(self.storage.has_master, params)):
            return None if self.copies is None else list(self.copies)
        if self.copies is not None:
            raise ValueError("copy_to excludes master=True: the parameter already is the copy")
        return [p if self.storage.has_master(p) else None for p in params]


def _settings(
    kind: type[Contract],
    groups: Sequence[ParamGroup],
    owners: Sequence[tuple[int, str]],
    owner: int,
    t: int,
    unscale: float,
) -> tuple[Any, ...]:
    """What the engine asks of an owner for a parameter's t-th step, if C doesn't know."""
    k, rule = owners[owner]
    group = groups[k]
    h = group.at(t - 1) if group.scheduled else group
    return kind.settings(rule, h, t, unscale)
