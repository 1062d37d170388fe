"""What an optimizer holds: parameters in groups, their states, and the plan of a step over them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import RLock
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgd.core import fork_locks
from fastgd.core import options as _options
from fastgd.core import storage as _storage
from fastgd.core.accumulated import Accumulated
from fastgd.core.contract import Contract, Hyper
from fastgd.core.groups import ParamGroup
from fastgd.core.trees import Name, Path, Structure, flatten, name_of, unflatten
from fastgd.kernels import reference
from fastgd.kernels._engine import Plan
from fastgd.kernels.memory import checks
from fastgd.kernels.memory.checks import shown
from fastgd.kernels.reference import RULES
from fastgd.kernels.spec.coded_array import Stored, as_stored
from fastgd.kernels.spec.norms import unit_length

Array = NDArray[Any]


class Held(Contract):
    """Parameters in groups, their states, and the plan of a step over them.

    The base of `Optimizer`, which has the steps.
    """

    # Of an optimizer whose parameters are pieces; set on the object before its __init__.
    _pieces: Mapping[int, _storage.Piece] | None = None
    # Of one whose arrays are flat, though what they stand for isn't: `unit_length` each, by id.
    _rows: Mapping[int, int] = MappingProxyType({})

    # ----------------------------------------------------------------------------- construction

    def __init__(self, params: object, hyper: dict[str, Any], options: Mapping[str, Any]) -> None:
        """Take parameters, the hyper-parameters of groups that have none of their own, options."""
        self.options = _options.checked(options, type(self).__name__)
        self.storage = _storage.checked(options)._replace(pieces=self._pieces)
        self.defaults = hyper
        self.param_groups: tuple[ParamGroup, ...] = ()
        self.state: Mapping[Name, Mapping[str, Array]] = {}
        self._names: tuple[tuple[Name, ...], ...] = ()  # of each group's parameters, in `state`
        self._paths: tuple[Path, ...] = ()  # where each parameter stands in what was given
        self._structure: Structure = None
        self._skipped = np.zeros(1, np.int64)
        self._copies: list[Array] | None = None
        self._accumulated: Accumulated | None = None
        self._lock = RLock()
        fork_locks.guard(self, "_lock")
        if isinstance(params, Iterator):
            params = list(params)
        if isinstance(params, (list, tuple)) and any(
            isinstance(entry, Mapping) and "params" in entry for entry in params
        ):
            self._structure = [self._take_group(g, (k,)) for k, g in enumerate(params)]
            self._grouped = True
        else:
            self._structure = self._take_group({"params": params}, ())
            self._grouped = False
        if (copies := options.get("copy_to")) is not None:
            self._copies = _options.as_copies(
                copies, self._structure, [*self._params().values()], self._paths
            )
        self.average = _options.as_average(options.get("average"), self._params())
        if self.average is not None:
            self._lock = self.average.lock  # whose averages nobody may swap in during a step
        steps = np.zeros(len(self._paths), np.int64)
        self._make_plan(self.param_groups, steps, options.get("grads"))
        # All fits: from here on nothing fails.
        if self.average is not None:
            self.average.bind(self._params())
        self._copy_out()

    def _params(self) -> dict[Name, Array]:
        """All parameters by name, in order."""
        return {
            name: p
            for names, group in zip(self._names, self.param_groups, strict=True)
            for name, p in zip(names, group["params"], strict=True)
        }

    def _labels(self) -> list[str]:
        """What to call each parameter in an error, after ``params``."""
        return [checks.label(path) for path in self._paths]

    def _copy_out(self) -> None:
        """Bring the copies up to date with the parameters."""
        for out, (name, p) in zip(self._copies or (), self._params().items(), strict=False):
            kept = self.storage.parameter(p, self.state[name])
            reference.copy(as_stored(out), kept)

    def _all_copies(self) -> list[Array | None] | None:
        """Where each parameter is copied to: a parameter with a master is itself such a copy."""
        params = list(self._params().values())
        if not any(map(self.storage.has_master, params)):
            return None if self._copies is None else list(self._copies)
        if self._copies is not None:
            raise ValueError("copy_to: expected without master=True, which makes copies itself")
        return [p if self.storage.has_master(p) else None for p in params]

    def _take_group(self, group: Any, prefix: Path) -> Structure:
        """Check a group and append it; returns its structure."""
        where = f"params{checks.label(prefix)}"
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError(
                f"{where}: expected a group, a dict with 'params', found {shown(group)}"
            )
        structure, leaves = flatten(group["params"])
        if not leaves:
            raise ValueError(f"{where}: expected at least one parameter, found none")
        paths = tuple((*prefix, *path) for path, _ in leaves)
        names = tuple(name_of(path) for path in paths)
        taken = {name for group_names in self._names for name in group_names}
        for name in names:
            if name in taken:
                raise ValueError(f"{where}: expected names of their own, found {name!r} twice")
            taken.add(name)
        arrays = tuple(
            checks.check_parameter(leaf, f"params{checks.label(path)}", checks.ANY)
            for path, (_, leaf) in zip(paths, leaves, strict=True)
        )
        for p, path in zip(arrays, paths, strict=True):
            self.storage.refuse_unchosen(p, f"params{checks.label(path)}")
        new = ParamGroup(
            {"params": arrays, "param_names": tuple(name_of(path) for path, _ in leaves)},
            self.defaults | {key: group[key] for key in group if key != "params"},
            {key: self.domains[key] for key in self.defaults},
            self.fits,
            f"{where}: " if prefix else "",
        )
        self.param_groups += (new,)
        self._names += (names,)
        self._paths += paths
        return structure

    def _make_plan(
        self, hypers: Sequence[Hyper], steps: NDArray[np.int64], grads: object = None
    ) -> None:
        """Lay out the states that each group's rule asks for, and resolve all to pointers.

        Changes nothing if it raises.
        """
        rules = [self.rule(h) for h in hypers]
        steps = steps.copy()
        state: dict[Name, Mapping[str, Array]] = {}
        params: list[Stored] = []
        arrays: list[tuple[Stored, ...]] = []
        owners: list[int] = []
        rows: list[int] = []
        storage = self.storage
        for k, (group, h, rule) in enumerate(zip(self.param_groups, hypers, rules, strict=True)):
            for name, p in zip(self._names[k], group["params"], strict=True):
                i = len(params)
                kept = {**self.state.get(name, {}), "step": steps[i, ...]}
                start = self.initial(h)
                for key in storage.keys(p, rule):
                    if key not in kept:
                        kept |= storage.new(p, key, start.get(key, 0.0))
                        # Schedules go on from the steps taken; a velocity may then start from 0.
                        if self.restarts and not group.scheduled and key in RULES[rule].states:
                            steps[i] = 0
                state[name] = MappingProxyType(kept)
                arrays.append(tuple(storage.state(p, key, kept) for key in RULES[rule].states))
                params.append(storage.parameter(p, kept))
                owners.append(k)
                rows.append(self._rows.get(id(p), unit_length(p.shape, p.strides, p.itemsize)))
        names = [RULES[rules[k]].states for k in owners]
        average = self.average
        plan = Plan(
            self._structure,
            params,
            self._labels(),
            owners,
            arrays,
            names,
            steps,
            grads,
            averages=None if average is None else list(average.averages.values()),
            average_steps=None if average is None else average.steps,
            copies=self._all_copies(),
            clip_by=self.options["clip_by"],
            nonfinite=self.options["nonfinite"],
            skipped=self._skipped,
            seed=storage.seed,
            rows=rows,
        )
        self.state, self._rules, self._steps = MappingProxyType(state), rules, steps
        self._plan = plan

    def _bound(self) -> object:
        """The bound gradients in the structure of the parameters, or None."""
        held = self._plan.bound
        return None if held is None else unflatten(self._structure, iter(held))

    def add_param_group(
        self, group: Mapping[str, Any], grads: object = None, copy_to: object = None
    ) -> None:
        """Add parameters, with hyper-parameters of their own if wanted.

        From then on gradients come as a list with one entry a group, each in the form of its
        group's ``"params"``.  An average of the weights takes the new ones as if they had stood
        still before.

        Parameters
        ----------
        group : dict
            ``"params"``, in any form that the constructor takes, and any hyper-parameters that
            differ from the constructor's.
        grads, copy_to : object, optional
            The new parameters' gradients, to be bound, and the arrays to copy them to, if there
            are such of the others.

        Raises
        ------
        TypeError, ValueError, KeyError
            As for the constructor; the optimizer stays as it was.
        RuntimeError
            If gradients were accumulated that no step has taken, or averages are swapped in.
        """
        with self._lock:
            self._refuse_pending("add_param_group")
            bound = self._bound()
            for name, given, kept in (("grads", grads, bound), ("copy_to", copy_to, self._copies)):
                if (given is None) != (kept is None):
                    raise TypeError(f"{name}: expected for all groups or for none")
            before = dict(self.__dict__)
            average = {} if self.average is None else dict(self.average.__dict__)
            try:
                if not self._grouped:
                    self._structure, bound = [self._structure], [bound]
                    self._paths = tuple((0, *path) for path in self._paths)
                    self._grouped = True
                known = len(self._paths)
                new = self._take_group(group, (len(self.param_groups),))
                self._structure = [*self._structure, new]  # type: ignore[misc]
                params = dict(list(self._params().items())[known:])
                if self._copies is not None:
                    arrays, paths = list(params.values()), self._paths[known:]
                    self._copies = [
                        *self._copies,
                        *_options.as_copies(copy_to, new, arrays, paths),
                    ]
                if self.average is not None:
                    self.average.extend(params)
                self._accumulated = None
                steps = np.append(self._steps, np.zeros(len(params), np.int64))
                grads = None if grads is None else [*bound, grads]  # type: ignore[misc]
                self._make_plan(self.param_groups, steps, grads)
            except BaseException:
                self.__dict__.update(before)
                if self.average is not None:
                    self.average.__dict__.update(average)
                raise
            self._copy_out()

    def _refuse_pending(self, what: str) -> None:
        if self._accumulated is not None and self._accumulated.weight[0]:
            raise RuntimeError(f"{what}: gradients were accumulated that no step has taken yet")
        if self.average is not None:
            self.average.refuse_swapped(what)

    def _follow_rules(self) -> tuple[Any, ...] | None:
        """Make a new plan if a hyper-parameter that picks the rule was changed.

        Returns what `_go_back` takes to undo it, or None if nothing was done.
        """
        if [self.rule(group) for group in self.param_groups] == self._rules:
            return None
        before = self.state, self._rules, self._steps, self._plan
        self._make_plan(self.param_groups, self._steps, self._bound())
        return before

    def _go_back(self, before: tuple[Any, ...] | None) -> None:
        if before is not None:
            self.state, self._rules, self._steps, self._plan = before

    @contextmanager
    def _following(self, keep: bool = True) -> Iterator[None]:
        """Follow the rules while nobody else steps; if the block raises or only looks, go back."""
        with self._lock:
            before = self._follow_rules()
            try:
                yield
            except BaseException:
                self._go_back(before)
                raise
            if not keep:
                self._go_back(before)

    def _configure(self, k: int, t: int, unscale: float) -> tuple[Any, ...]:
        """What the engine asks of group `k` for a parameter's t-th step."""
        group = self.param_groups[k]
        h = group.at(t - 1) if group.scheduled else group
        return self.settings(self._rules[k], h, t, unscale)
