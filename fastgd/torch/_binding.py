"""An optimizer of fastgd over the memory of torch's tensors, and the watch over that memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import is_
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fastgd import Optimizer
from fastgd.core.stepper import Stepper
from fastgd.core.storage import Piece, Storage
from fastgd.kernels._engine import StepRecord
from fastgd.kernels._watch import Watch
from fastgd.kernels.memory.rows import Rows
from fastgd.kernels.reference import RULES
from fastgd.kernels.spec.lines import axes_of
from fastgd.kernels.spec.units import units_of
from fastgd.torch import _tensors
from fastgd.torch._average import EMA
from fastgd.torch._handles import handles
from fastgd.torch._options import Options
from fastgd.torch._sharing import Sharing, refuse_shard
from fastgd.torch._states import (
    AVERAGE,
    Kept,
    count_of,
    order_of,
    plain,
    rows_kept,
    saved_kinds_of,
)

Array = NDArray[Any]
State = dict[Any, dict[str, Any]]

CONSTANT = {float, int, bool, type(None)}

# Stands for a parameter that isn't bound, so that each has the same place here and there.
NOBODY = np.empty(0, np.float32)


class Section(NamedTuple):
    """Some parameters of one of torch's groups."""

    k: int  # which group
    group: Mapping[str, Any]
    first: int  # the place of the first parameter in the group
    params: list[Any]

    def name(self, i: int) -> str:
        """What to call the i-th parameter after ``params`` or ``grads``."""
        names = self.group.get("param_names")
        called = f" ({names[self.first + i]})" if names else ""
        return f"[{self.k}][{self.first + i}]{called}"


def is_constant(value: Any) -> bool:
    """Whether a hyper-parameter is what it is for as long as it is the same object."""
    return type(value) in CONSTANT or (type(value) is tuple and all(map(is_constant, value)))


def hyper_of(group: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """The hyper-parameters of one of torch's groups, tensors among them as numbers."""
    return {key: plain(group[key], key) for key in keys}


def wants_norms(options: Options, groups: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a step has to measure the gradients before it uses them."""
    return options.given["nonfinite"] != "propagate" or any(
        group["clip_norm"] is not None for group in groups
    )


class Setup(NamedTuple):
    """What a binding has to know of its optimizer."""

    kind: type[Optimizer]
    keys: Sequence[str]  # the names of its hyper-parameters
    options: Options
    average: EMA | None
    skipped: NDArray[np.int64]  # the number of steps skipped, counted up in place,
    taken: NDArray[np.float64]  # and of those that were not
    processes: Any  # among which the parameters are split, or None


class Binding:
    """Tensors resolved to memory for as long as they stay where they are.

    Parameters
    ----------
    setup : Setup
        The optimizer.
    sections : list of Section
        The parameters to bind.
    state : dict
        torch's ``optimizer.state``: what it has of a parameter is adopted, as it is where it can
        be.  What it lacks appears there when the parameter has taken a step.
    first : int
        What stochastic rounding counts the first parameter as.

    Raises
    ------
    TypeError, ValueError
        If a parameter with a gradient can't be stepped, or its states don't fit.  One without a
        gradient may be anything.
    """

    def __init__(self, setup: Setup, sections: list[Section], state: State, first: int = 0) -> None:
        self._setup, self._kind, self._sections = setup, setup.kind, sections
        self._first = first
        # torch's SGD counts no steps; stochastic rounding follows from them.
        self._counted = not setup.kind.restarts or setup.options.storage != Storage()
        self._given = self._values()
        self._constant = all(map(is_constant, self._given))
        self._hyper = [hyper_of(section.group, setup.keys) for section in sections]
        tensors = [[self._memory(s, i, state) for i in range(len(s.params))] for s in sections]
        self._arrays = [
            [NOBODY if t is None else _tensors.flat(t) for t in section or [None]]
            for section in tensors
        ]
        self._names = [f"{k}.{i}" for k, own in enumerate(self._arrays) for i in range(len(own))]
        self._watch = Watch(
            _tensors.API,
            [s.params for s in sections],
            tensors,
            self._shard,
            self._odd,
            handles(),
        )
        self._average_of: dict[int, Any] = {}
        self._versions: dict[int, int] = {}
        self._adopt(state)
        self._entries = self._seen(state)
        self._share()

    def _memory(self, section: Section, i: int, state: State) -> Any:
        """The tensor that holds a parameter's memory, or None if it needn't be bound."""
        p = section.params[i]
        grad = p.grad
        if grad is None and not p.requires_grad and not state.get(p):
            return None
        error = _tensors.fault_in(p, section.group, self._setup.options.given)
        if error is None:
            return _tensors.local(p)
        if grad is None:
            return None
        raise type(error)(f"params{section.name(i)}: {error}")

    def _bound(self) -> Iterator[tuple[int, Section, int, str]]:
        """Running number, section, place there and name inside of each bound parameter."""
        n = 0
        for section in self._sections:
            for i in range(len(section.params)):
                if self._watch.tensors[n] is not None:
                    yield n, section, i, self._names[n]
                n += 1
            n += not section.params

    # ------------------------------------------------------------------------------------ states

    def _adopt(self, state: State) -> None:
        """Let the states be those that torch has, and the rest be new ones of our own."""
        arrays: dict[Any, dict[str, Array]] = {}
        averages: dict[str, Array] = {}
        steps = np.zeros(len(self._names), np.int64)
        taken: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
        average, kinds = self._setup.average, self._setup.options.storage.recall()
        owned = [array for own in self._arrays for array in own]
        hypers = dict(zip(map(id, self._sections), self._hyper, strict=True))
        self._kept: dict[int, Kept] = {}
        if average is not None:
            average.take_steps(state.values())
        for n, section, i, name in self._bound():
            p, array = section.params[i], owned[n]
            rule = self._kind.rule(hypers[id(section)], tuple(p.shape))
            if not RULES[rule].shards:
                refuse_shard(p, rule, f"params{section.name(i)}")
            own = {**kinds(array, rule), **rows_kept(self._setup.options.storage, p, rule)}
            kept = Kept(p, self._watch.tensors[n], rule, array, own, average is not None)
            self._kept[n] = kept
            entry = state.get(p) or {}
            label = f"state{section.name(i)}" if entry else ""
            fitting = kept.fitting(entry, label)
            kept.follow_master(fitting)
            found = {key: kept.memory(key, t) for key, t in fitting.items()}
            if average is not None:
                averages[name] = found.pop(AVERAGE)
            if found:
                arrays[name] = found
            if "step" not in entry or not self._counted:
                # No count is kept: the states themselves say that this isn't the first step.
                known = bool(kept.states) and all(key in fitting for key in kept.states)
                steps[n] = self._kind.restarts and known
            else:
                fitting["step"], steps[n] = count_of(entry["step"], label)
            if fitting or entry:
                taken[n] = entry, fitting
        self.stepper = self._made(arrays, averages, steps)
        # All fits: from here on nothing fails.
        for n, section, i, _ in self._bound():
            p = section.params[i]
            entry, fitting = taken.get(n, ({}, {}))
            self._watch.count(n, self.stepper.state[self._names[n]]["step"])
            self._average_of[n] = fitting.get(AVERAGE)
            if p not in state:
                if not self._kept[n].keys and not self._counted:  # there is nothing to be shown
                    self._show(n, {}, ())
                continue
            for key, kind in saved_kinds_of(p, self._kept[n].rule).items():
                if kind.role != "state" and key in entry and key not in fitting:
                    del entry[key]
            entry.update(fitting)
            self._show(n, entry, tuple(fitting))
        self._watch.note(state)

    def _made(
        self,
        states: dict[Any, dict[str, Array]],
        averages: dict[str, Array],
        steps: NDArray[np.int64],
    ) -> Stepper:
        """What steps the parameters with these states, by name; those that are missing are new."""
        setup = self._setup
        options = dict(setup.options.given)
        if setup.average is not None:
            values = [averages.get(name, NOBODY) for name in self._names]
            options["average"] = setup.average.over(
                [a for own in self._arrays for a in own], values
            )
        arrays: list[Any] = [a for own in self._arrays for a in own]
        for n, section, i, _ in self._bound():
            arrays[n] = self._flat(arrays[n], self._watch.tensors[n], section.params[i])
        flat = iter(arrays)
        groups = [
            {**hyper, "params": [next(flat) for _ in own]}
            for hyper, own in zip(self._hyper, self._arrays, strict=True)
        ]
        stepper = Stepper(
            setup.kind,
            groups,
            self._hyper[0],
            options,
            states=states,
            steps=steps,
            skipped=setup.skipped,
            first=self._first,
        )
        stepper.taken = setup.taken
        if setup.average is not None and stepper.average is not None:
            setup.average.steps = stepper.average.steps
        return stepper

    def _flat(self, a: Array, tensor: Any, p: Any) -> Piece:
        """The flat array in the place of a parameter's memory: it doesn't tell rows and shape."""
        shape, strides = tuple(tensor.shape), tensor.stride()
        units = units_of(shape, strides, layout=self._setup.options.given["layout"])
        order = order_of(tensor)
        return Piece(a, 0, a.size, units, order, tuple(p.shape), axes_of(shape, strides))

    def _show(self, n: int, entry: dict[str, Any], keys: tuple[str, ...]) -> None:
        """Watch what torch's users see of a parameter's states."""
        memory = tuple(_tensors.local(entry[key]) for key in keys)
        complete = len(keys) == len(self._kept[n].keys) + self._counted
        self._watch.show(n, entry, keys, memory, complete)

    def _publish(self, unseen: list[int], state: State) -> None:
        """Let torch's users see the states of parameters that have taken their first step."""
        new = set(unseen)
        for n, section, i, name in self._bound():
            if n not in new:
                continue
            p, kept, own = section.params[i], self._kept[n], self.stepper.state[name]
            entry = state[p]
            if self._counted:
                step = torch.scalar_tensor(float(own["step"]), dtype=torch.float32, device="cpu")
                entry.setdefault("step", step)
            for key in kept.keys:
                if entry.get(key) is None:
                    entry[key] = (
                        self._average_of[n] if key == AVERAGE else kept.shown(key, own[key])
                    )
            self._show(n, entry, (*kept.keys, *["step"] * self._counted))
        self._watch.note(state)
        self._entries = self._seen(state)

    def _seen(self, state: State) -> list[Any]:
        """The entry of each parameter in torch's states, None where there is none."""
        return [state.get(p) for section in self._sections for p in section.params]

    # ---------------------------------------------------------------------------------- the step

    def step(
        self, groups: list[dict[str, Any]] | None, state: State, scale: float
    ) -> StepRecord | bool:
        """Step every parameter that has a gradient; False if all has to be bound again first.

        Returns what the step did, or True if there was nothing to do.

        Parameters
        ----------
        groups : list of dict or None
            torch's groups, if the parameters bound are all of theirs.
        state : dict
            torch's states.
        scale : float
            What the gradients count as divided by.
        """
        if not self._follow():
            return False
        if groups is None and not all(map(is_, self._seen(state), self._entries)):
            return False
        grads = self._watch.read(groups, None if groups is None else state)
        if grads is None:
            return False
        stepped = self._watch.stepped
        if not stepped and self.stepper.combine is self.stepper.combine_sums is None:
            return True
        self._follow_masters()
        record = self.stepper.step(self._with_rows() if self._watch.odds else grads, scale)
        if unseen := self._watch.tick(record.skipped):
            self._publish(unseen, state)
        # Autograd refuses to go backward through what it saved of tensors since changed.
        if not record.skipped:
            torch.autograd.graph.increment_version(stepped)
        if self._setup.options.given["zero_grads"]:
            torch.autograd.graph.increment_version([p.grad for p in stepped])
        self._note_masters()
        return record

    def gradients(self, groups: list[dict[str, Any]], state: State) -> list[list[Any]] | None:
        """The arrays of all gradients, by groups; None if all has to be bound again first."""
        if not self._follow() or self._watch.read(groups, state) is None:
            return None
        self._watch.tick(skipped=True)  # lets go of them
        each = iter([self._as_given(n, a) for n, a in enumerate(self._gradients())])
        return [[next(each) for _ in own] for own in self._arrays]

    def catch_up(
        self, groups: list[dict[str, Any]], state: State, rows: Mapping[Any, Array] | None
    ) -> bool:
        """Let rows catch up, all or these; False if all has to be bound again first."""
        if self._watch.read(groups, state) is None:
            return False
        self._watch.tick(skipped=True)  # lets go of gradients
        self._follow_masters()
        if rows is None:
            self.stepper.catch_up()
            self.changed()
            return True
        some: list[list[Array | None]] = [[None] * len(own) for own in self._arrays]
        for k, section in enumerate(self._sections):
            for i, p in enumerate(section.params):
                some[k][i] = rows.get(p)
        self.stepper.catch_up(some)
        torch.autograd.graph.increment_version([*rows])
        self._note_masters()
        return True

    def _as_given(self, n: int, g: Any) -> Any:
        """A gradient as an optimizer of arrays takes it, the n-th."""
        if g is None:
            return None
        if g.layout is torch.sparse_coo:
            return _tensors.rows(g, self._watch.tensors[n], f"grads[{n}]")
        return _tensors.flat(_tensors.local(g))

    def _gradients(self) -> Iterator[Any]:
        """The gradient of each parameter, None for those that are not bound."""
        n = 0
        for section in self._sections:
            for p in section.params or [None]:
                yield None if p is None or self._watch.tensors[n] is None else p.grad
                n += 1

    def changed(self) -> None:
        """Tell autograd that parameters were changed by other steps than these."""
        bound = [section.params[i] for _, section, i, _ in self._bound()]
        torch.autograd.graph.increment_version(bound)
        self._note_masters()

    def tensors(self) -> Iterator[tuple[str, Any, Any]]:
        """The name, parameter, and tensor with its memory, of all that is bound."""
        for n, section, i, name in self._bound():
            yield name, section.params[i], self._watch.tensors[n]

    def _follow_masters(self) -> None:
        """Take what was written to parameters since the last step into their masters."""
        for n, version in self._versions.items():
            kept = self._kept[n]
            if kept.tensor._version != version:
                name = self._names[n]
                kept.follow_master(
                    {"master": kept.shown("master", self.stepper.state[name]["master"])}
                )

    def _note_masters(self) -> None:
        """Note the versions of parameters that have a master, which change with writes."""
        if self._setup.options.storage.master is True:
            self._versions = {
                n: kept.tensor._version for n, kept in self._kept.items() if "master" in kept.keys
            }

    def _values(self) -> list[Any]:
        """The hyper-parameters of all groups, as they are given."""
        keys = self._setup.keys
        return [section.group[key] for section in self._sections for key in keys]

    def _follow(self) -> bool:
        """Take hyper-parameters that were changed; False if they ask for another binding."""
        given = self._values()
        if self._constant and all(map(is_, given, self._given)):
            return True
        # Until all is taken: a step after one that was refused must not go on without.
        self._constant = False
        inner = self.stepper.param_groups
        for k, section in enumerate(self._sections):
            hyper = hyper_of(section.group, self._setup.keys)
            if hyper != self._hyper[k]:
                before = self._hyper[k]
                inner[k].update({key: hyper[key] for key in hyper if hyper[key] != before[key]})
                if before["clip_ratio"] is None and hyper["clip_ratio"] is not None:
                    return False
                self._hyper[k], self._shared = hyper, False
        if not self._shared:
            with self.stepper.lock:
                if (layout := self.stepper.follow()) is not None:
                    self.stepper.go_back(layout)
                    return False
            self._share()
        self._given, self._constant = given, all(map(is_constant, given))
        return True

    def _share(self) -> None:
        """Exchange sums with the processes that have other parts of gradients and parameters."""
        self.stepper.combine = self.stepper.combine_sums = None
        norms = wants_norms(self._setup.options, self._hyper)
        sums = any(RULES[rule].sums for rule in self.stepper.rules)
        if norms or sums:
            names = [[s.name(i) for i in range(len(s.params))] for s in self._sections]
            params = [s.params for s in self._sections]
            sharing = Sharing(params, names, self._setup.processes)
            self.stepper.combine = sharing if norms and sharing else None
            self.stepper.combine_sums = sharing.between_sweeps if sums and sharing else None
        self._shared = True

    def _shard(self, k: int, i: int, g: Any) -> Any:
        """The shard of a DTensor's gradient, which must be laid out as the parameter is."""
        p, name = self._sections[k].params[i], f"grads{self._sections[k].name(i)}"
        if not _tensors.is_sharded(g):
            raise TypeError(f"{name}: expected a DTensor as its parameter, found a tensor")
        if tuple(g.placements) != tuple(p.placements):
            raise ValueError(
                f"{name}: expected placements {tuple(p.placements)} as its parameter, "
                f"found {tuple(g.placements)}"
            )
        return _tensors.local(g)

    def _odd(self, k: int, i: int, g: Any) -> Rows:
        """The rows of a sparse gradient; whatever else isn't like its parameter is refused."""
        section = self._sections[k]
        p, name = _tensors.local(section.params[i]), f"grads{section.name(i)}"
        if g.layout is torch.sparse_coo and not _tensors.is_sharded(section.params[i]):
            return _tensors.rows(g, p, name)
        _tensors.refuse_gradient(g, p, name)

    def _with_rows(self) -> list[list[Any]]:
        """The gradients of the last reading as arrays and rows, in the structure of parameters."""
        odds = self._watch.odds
        given = (
            odds[n] if n in odds else None if tensor is None else _tensors.flat(tensor)
            for n, tensor in enumerate(self._watch.lent())
        )
        return [[next(given) for _ in own] for own in self._arrays]
