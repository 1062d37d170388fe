"""What an optimizer holds: parameters in groups, their states, and the plan of a step over them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import RLock
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastgd import _forks, _groups, _options, _storage
from fastgd._accumulated import Accumulated
from fastgd._rows import row_of
from fastgd._trees import Name, Path, Structure, flatten, name_of, unflatten
from fastgd.kernels import checks, reference
from fastgd.kernels._engine import Plan
from fastgd.kernels.reference import RULES
from fastgd.kernels.stored import Stored, as_stored

Array = NDArray[Any]
Hyper = Mapping[str, Any]

# The hyper-parameters that several optimizers share.
DOMAINS: dict[str, _groups.Domain] = {
    "lr": _groups.nonnegative,
    "eps": _groups.nonnegative,
    "eps_root": _groups.nonnegative,
    "weight_decay": _groups.nonnegative,
    "maximize": _groups.flag,
    **_options.HYPER,
}

FLOAT32_MAX = float(np.finfo(np.float32).max)


class Held:
    """Parameters in groups, their states, and the plan of a step over them.

    The base of `Optimizer`, which has the steps.
    """

    domains: ClassVar[Mapping[str, _groups.Domain]] = DOMAINS  # a subclass adds those of its own
    decoupled: ClassVar[bool] = False  # whether weight decay acts beside the gradient
    restarts: ClassVar[bool] = False  # whether steps count from when states were made
    # Of an optimizer whose parameters are pieces; set on the object before its __init__.
    _pieces: Mapping[int, _storage.Piece] | None = None
    # Of one whose arrays are flat, though what they stand for isn't: `row_of` each, by id.
    _rows: Mapping[int, int] = MappingProxyType({})

    # ------------------------------------------------------- what a subclass says of its rule

    @staticmethod
    def rule(h: Hyper) -> str:
        """The rule in `fastgd.kernels.reference` that hyper-parameters ask for.

        What is a schedule here is still one, and counts as a number that isn't 0.
        """
        raise NotImplementedError

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        """The rule's coefficients, in its order, for a parameter's t-th step, counted from 1.

        May go on with those of the class's other rules.  All hyper-parameters are numbers here.
        """
        raise NotImplementedError

    @staticmethod
    def initial(h: Hyper) -> Mapping[str, float]:
        """What states start from, where that isn't 0."""
        return {}

    @staticmethod
    def consistent(h: Hyper) -> None:
        """Raise ValueError if hyper-parameters contradict each other; some may be schedules."""

    @classmethod
    def fits(cls, h: Hyper) -> None:
        """Raise ValueError if a group's hyper-parameters contradict each other or don't fit it."""
        cls.consistent(h)
        if h["clip_ratio"] is not None:
            for name, p in zip(h["param_names"], h["params"], strict=True):
                if not row_of(p.shape, p.strides, p.itemsize):
                    raise ValueError(
                        f"clip_ratio: expected parameters in C order, whose rows it is about, "
                        f"found params{checks.label((name,))} with strides {p.strides} for shape "
                        f"{p.shape}"
                    )
        for key, start in cls.initial(h).items():
            if start > FLOAT32_MAX:
                for p in h["params"]:
                    if p.dtype != np.float64:
                        raise ValueError(f"{key}: can't start from {start} in {p.dtype}")

    @classmethod
    def stages(cls, h: Hyper, unscale: float) -> tuple[float, ...]:
        """The fields of `reference.Stages`: what the stages before the rule are given."""
        decay = h["weight_decay"]
        l2, decoupled = (0.0, 1.0 - h["lr"] * decay) if cls.decoupled else (decay, 1.0)
        factor = -unscale if h["maximize"] else unscale
        no = math.inf
        clip_value, clip_norm, clip_ratio = h["clip_value"], h["clip_norm"], h["clip_ratio"]
        return factor, l2, decoupled, clip_value or no, clip_norm or no, clip_ratio or no

    @classmethod
    def settings(cls, rule: str, h: Hyper, t: int, unscale: float) -> tuple[Any, ...]:
        """What the engine is given for a parameter's t-th step by a rule, counted from 1."""
        # A scheduled momentum may be 0 at a step, and its rule wants it nonetheless: so classes
        # list all coefficients, and each rule takes the first so many.
        coefficients = cls.coefficients(h, t)[: len(RULES[rule].coefficients)]
        return rule, coefficients, cls.stages(h, unscale)

    # ----------------------------------------------------------------------------- construction

    def __init__(self, params: object, arguments: Mapping[str, Any]) -> None:
        """Take the arguments of a subclass's ``__init__``, its ``locals()``."""
        options = arguments["options"]
        self.options = _options.checked(options, type(self).__name__)
        self.storage = _storage.checked(options)._replace(pieces=self._pieces)
        given = {**arguments, **dict.fromkeys(_options.HYPER), **options}
        self.defaults = {key: given[key] for key in given if key in self.domains}
        self.param_groups: tuple[_groups.ParamGroup, ...] = ()
        self.state: Mapping[Name, Mapping[str, Array]] = {}
        self._names: tuple[tuple[Name, ...], ...] = ()  # of each group's parameters, in `state`
        self._paths: tuple[Path, ...] = ()  # where each parameter stands in what was given
        self._structure: Structure = None
        self._skipped = np.zeros(1, np.int64)
        self._copies: list[Array] | None = None
        self._accumulated: Accumulated | None = None
        self._lock = RLock()
        _forks.guard(self, "_lock")
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
                f"{where}: expected a group, a dict with 'params', found {_groups.shown(group)}"
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
        new = _groups.ParamGroup(
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
                rows.append(self._rows.get(id(p), row_of(p.shape, p.strides, p.itemsize)))
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
