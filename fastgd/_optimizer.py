"""The base of all optimizers: parameters, groups, states and steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import index
from threading import RLock
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastgd import _forks, _groups, _options, _state_dict, _storage
from fastgd._accumulated import Accumulated
from fastgd._trees import Name, Path, Structure, flatten, name_of, unflatten
from fastgd.kernels import checks, reference
from fastgd.kernels._engine import Plan, StepRecord
from fastgd.kernels.memory import copy_beside
from fastgd.kernels.reference import RULES
from fastgd.kernels.stored import Stored, as_stored, computed

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

if TYPE_CHECKING:
    pass

# The subclasses, by name in the order of their definition.
OPTIMIZERS: dict[str, type[Optimizer]] = {}


class Optimizer:
    """Parameters, and the step that updates them in place.

    Not for direct use: each subclass is an optimizer.  It declares its hyper-parameters by the
    arguments of its ``__init__``, and says with `rule`, `coefficients`, `initial` and `consistent`
    what a step does with them.

    Attributes
    ----------
    param_groups : tuple of dict
        The groups.  ``param_groups[0]["lr"] = 0.01`` takes effect with the next step; a value that
        is out of range is refused there and then.  A hyper-parameter that is a number may be a
        schedule as well: see `fastgd.schedules`.
    state : mapping
        The states of each parameter by its name (its index in a list, its keys joined by dots in
        dicts): the arrays that the steps update, and ``"step"``, the number of steps taken.  Write
        into these arrays to change them.
    options : mapping
        ``"clip_by"``, ``"nonfinite"`` and ``"zero_grads"`` as given to the constructor; fixed.
    storage : Storage
        How parameters and states are kept, as given to the constructor; fixed.
    average : fastgd.averages.EMA or None
        The average of the weights that steps update, if wanted.
    """

    domains: ClassVar[Mapping[str, _groups.Domain]] = DOMAINS  # a subclass adds those of its own
    decoupled: ClassVar[bool] = False  # whether weight decay acts beside the gradient
    restarts: ClassVar[bool] = False  # whether steps count from when states were made

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.domains = {**cls.__base__.domains, **cls.domains}  # type: ignore[union-attr]
        OPTIMIZERS[cls.__name__] = cls

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
    def stages(cls, h: Hyper, unscale: float) -> tuple[float, float, float, float, float]:
        """The fields of `reference.Stages`: what the stages before the rule are given."""
        decay = h["weight_decay"]
        l2, decoupled = (0.0, 1.0 - h["lr"] * decay) if cls.decoupled else (decay, 1.0)
        factor = -unscale if h["maximize"] else unscale
        return factor, l2, decoupled, h["clip_value"] or math.inf, h["clip_norm"] or math.inf

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
        self.storage = _storage.checked(options)
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
            self.consistent,
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
        storage = self.storage
        for k, (group, h, rule) in enumerate(zip(self.param_groups, hypers, rules, strict=True)):
            for name, p in zip(self._names[k], group["params"], strict=True):
                i = len(params)
                kept = {**self.state.get(name, {}), "step": steps[i, ...]}
                start = self.initial(h)
                for key in storage.keys(p, rule):
                    if start.get(key, 0.0) > float(np.finfo(computed(p.dtype)).max):
                        label = checks.state_label(checks.label(self._paths[i]), key)
                        raise ValueError(f"{label}: can't start from {start[key]} in {p.dtype}")
                    if key not in kept:
                        kept |= storage.new(p, key, start.get(key, 0.0))
                        # Schedules go on from the steps taken; a velocity may then start from 0.
                        if self.restarts and not group.scheduled and key in RULES[rule].states:
                            steps[i] = 0
                state[name] = MappingProxyType(kept)
                arrays.append(tuple(storage.state(p, key, kept) for key in RULES[rule].states))
                params.append(storage.parameter(p, kept))
                owners.append(k)
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

    # --------------------------------------------------------------------------------- the step

    def step(self, grads: object = None, *, grad_scale: float = 1.0) -> StepRecord:
        """Update every parameter that has a gradient, in place.

        Parameters
        ----------
        grads : array or nested lists and dicts of arrays, optional
            The gradients in the form of the parameters, with their shapes and layouts, of any dtype
            of floats; None in the place of an array leaves its parameter, states and step count
            alone.  They are only read, unless ``zero_grads`` was asked for.  May be left out if
            gradients were bound in the constructor, or accumulated.
        grad_scale : float
            The factor by which the loss was scaled: gradients count as divided by it.

        Returns
        -------
        StepRecord
            ``step``, the number of steps taken; ``skipped``, whether this one was not; and where
            the step needed them ``grad_norm`` and ``clip_factor``, else None.

        Raises
        ------
        TypeError, ValueError
            If a gradient is missing or doesn't fit its parameter, or a schedule's value is out of
            range.  Nothing was changed then.
        FloatingPointError
            If gradients are not finite and ``nonfinite="raise"``.  Likewise.
        RuntimeError
            If called from within itself, say by a hyper-parameter or an array-like; while averages
            are swapped in; or with gradients while others wait that were accumulated.

        Notes
        -----
        Threads that step the same optimizer take turns; different optimizers run in parallel.
        """
        scale = 1.0 if grad_scale == 1.0 else _groups.number(grad_scale, "grad_scale")
        unscale = _inverse(scale, "grad_scale")
        with self._lock:
            self._follow_rules()
            average = None
            if self.average is not None:
                self.average.refuse_swapped("step")
                average = self.average.weights(self.average.step + 1)
            pending = self._accumulated
            if pending is None or not pending.weight[0]:
                return self._plan.step(
                    grads,
                    self._configure,
                    unscale,
                    average=average,
                    zero=self.options["zero_grads"],
                )
            if grads is not None:
                self._refuse_pending("step")
            weight = float(pending.weight[0])
            return self._plan.step(
                pending.grads(),
                self._configure,
                _inverse(scale * weight, "grad_scale times weight"),
                average=average,
                zero=True,
                reset=(pending.counts, pending.weight),
            )

    def accumulate(self, grads: object = None, weight: float = 1.0) -> None:
        """Add gradients to those that the next ``step()`` takes, all tensors in one call.

        The step then uses the weighted mean, Σwg / Σw, of what was accumulated, and forgets it:
        over micro-batches of equal size that is the gradient of the mean loss of the whole batch,
        up to rounding.  A parameter without a gradient in some of them counts as having one of 0.

        Parameters
        ----------
        grads : array or nested lists and dicts of arrays, optional
            As for `step`; only read, even with ``zero_grads``.
        weight : float
            What to weigh them by, say the number of samples in the micro-batch.

        Raises
        ------
        TypeError, ValueError
            If a gradient doesn't fit; nothing was changed then.

        Examples
        --------
        >>> import numpy as np, fastgd
        >>> w = np.zeros(2)
        >>> opt = fastgd.SGD(w, lr=1.0)
        >>> opt.accumulate(np.array([1.0, 2.0]))
        >>> opt.accumulate(np.array([3.0, 4.0]))
        >>> _ = opt.step()
        >>> w
        array([-2., -3.])
        """
        weight = _groups.positive(weight, "weight")
        with self._lock:
            if grads is None and (grads := self._bound()) is None:
                raise TypeError("accumulate() needs gradients, as no gradients were bound")
            pending = self._accumulated
            if pending is None:
                params = list(self._params().values())
                pending = Accumulated(self._structure, params, self._labels())
            if not math.isfinite(pending.weight[0] + weight):
                raise ValueError(f"weight: expected finite sums, found {weight} on top")
            pending.add(grads, weight)
            self._accumulated = pending

    def minimize(
        self,
        loss_and_grads: Callable[[], tuple[float, object]],
        steps: int,
        callback: Callable[[int, float, StepRecord], object] | None = None,
    ) -> Array:
        """Take a number of steps along the gradients that a function works out.

        Parameters
        ----------
        loss_and_grads : callable
            From nothing to the loss at the parameters as they are and its gradients.
        steps : int
            How many steps to take, at most.
        callback : callable, optional
            Called after each step with its number from 0, the loss before it, and its record;
            ends the descent by returning True.

        Returns
        -------
        ndarray of float64
            The loss before each step.

        Examples
        --------
        >>> import numpy as np, fastgd
        >>> w = np.array([1.0])
        >>> opt = fastgd.SGD(w, lr=0.25)
        >>> opt.minimize(lambda: (float(w @ w), 2 * w), steps=3)
        array([1.    , 0.25  , 0.0625])
        """
        losses = []
        for k in range(index(steps)):
            loss, grads = loss_and_grads()
            record = self.step(grads)
            losses.append(float(loss))
            if callback is not None and callback(k, losses[-1], record) is True:
                break
        return np.array(losses, np.float64)

    @property
    def skipped(self) -> int:
        """The number of steps skipped as gradients were not finite."""
        return int(self._skipped[0])

    def _follow_rules(self) -> None:
        """Make a new plan if a hyper-parameter that picks the rule was changed."""
        if [self.rule(group) for group in self.param_groups] != self._rules:
            self._make_plan(self.param_groups, self._steps, self._bound())

    def _configure(self, k: int, t: int, unscale: float) -> tuple[Any, ...]:
        """What the engine asks of group `k` for a parameter's t-th step."""
        group = self.param_groups[k]
        h = group.at(t - 1) if group.scheduled else group
        return self.settings(self._rules[k], h, t, unscale)

    @property
    def lr(self) -> float:
        """The learning rate of all groups; setting it, to a number or a schedule, sets it in all.

        Of a schedule, reading gives the number for the next step of the parameter that has taken
        the most steps; ``param_groups[0]["lr"]`` is the schedule itself.  Raises ValueError on
        reading if groups differ.
        """
        rates = {
            group.value("lr", _state_dict.steps_taken(self.state[name] for name in names))
            for group, names in zip(self.param_groups, self._names, strict=True)
        }
        if len(rates) != 1:
            raise ValueError(f"lr: differs between groups: {sorted(rates)}; see param_groups")
        return float(rates.pop())

    @lr.setter
    def lr(self, value: _groups.Scalar) -> None:
        for group in self.param_groups:
            group["lr"] = value

    # -------------------------------------------------------------------------------- the states

    def state_dict(self) -> dict[str, Any]:
        """A copy of all states, step counts and hyper-parameters, in torch.optim's layout.

        Returns
        -------
        dict
            ``"state"`` maps the running number of each parameter to its states (arrays) and
            ``"step"``; ``"param_groups"`` lists each group's hyper-parameters, the numbers of its
            parameters (``"params"``) and their names (``"param_names"``); ``"fastgd"``, which torch
            ignores, the rest: skipped steps, averages, what was accumulated.

        Notes
        -----
        Schedules are code, and not saved: in their place stands the number that the last step
        used.  An optimizer that was made with the same schedules resumes them exactly, as they
        depend on step counts alone.
        """
        groups = self.param_groups
        with self._lock:
            self._follow_rules()
            eager = [bool(self.initial(group)) for group in groups]
            entries = [[self.state[name] for name in names] for names in self._names]
            written = _state_dict.write(
                groups, self._rules, entries, eager, self.decoupled, self.storage
            )
            written["fastgd"] = _state_dict.write_beside(
                self.skipped, self.storage.seed, self.average, self._accumulated, list(self.state)
            )
            rules = {
                name: rule
                for names, rule in zip(self._names, self._rules, strict=True)
                for name in names
            }
            if layouts := self.storage.layouts(self._params(), rules):
                written["fastgd"]["layouts"] = layouts
            return written

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take states, step counts and hyper-parameters from a state dict, fastgd's or torch's.

        Arrays are copied into the optimizer's own.  Parameters are matched by name where both
        sides have names, else by order.  A hyper-parameter that is a schedule here stays that
        schedule, whatever number was saved, and goes on from the saved step counts.

        Raises
        ------
        TypeError, ValueError, KeyError
            If it doesn't fit: other groups, names, shapes, dtypes or states, or hyper-parameters
            out of range.  The optimizer stays as it was.

        Notes
        -----
        torch's state dicts know no averages, skipped or accumulated steps: these stay.
        """
        groups = self.param_groups
        with self._lock:
            live = [array for entry in self.state.values() for array in entry.values()]
            changes, entries = _state_dict.read(
                state_dict, groups, self.rule, self.decoupled, live, self.storage
            )
            beside = _state_dict.read_beside(state_dict, self._params(), self.average)
            pending = None
            if beside is not None and beside.weight:
                params = list(self._params().values())
                pending = Accumulated(self._structure, params, self._labels())
            hypers = [{**group, **change} for group, change in zip(groups, changes, strict=True)]
            self._make_plan(hypers, self._steps, self._bound())
            # All fits: from here on nothing fails.
            for group, change, names, own in zip(
                groups, changes, self._names, entries, strict=True
            ):
                group.update(change)
                rule = self.rule(group)
                for name, p, (step, arrays) in zip(names, group["params"], own, strict=True):
                    self.storage.fill(p, rule, self.state[name], arrays, self.initial(group))
                    self.state[name]["step"][...] = step
            if beside is not None:
                self._skipped[0] = beside.skipped
                if beside.seed is not None:
                    self._plan.seed = beside.seed
                    self.storage = self.storage._replace(seed=beside.seed)
                if self.average is not None and beside.average is not None:
                    self.average.take(*beside.average)
                if pending is not None:
                    pending.load(beside.sums, beside.weight)
                self._accumulated = pending

    def __getstate__(self) -> dict[str, Any]:
        """All but the plan, which holds addresses, and the lock."""
        with self._lock:
            self._follow_rules()
            content = {key: self.__dict__[key] for key in self.__dict__.keys() - {"_plan", "_lock"}}
            content["options"] = dict(self.options)
            state = {name: dict(entry) for name, entry in self.state.items()}
            return {**content, "state": state, "bound": self._bound()}

    def __setstate__(self, content: dict[str, Any]) -> None:
        grads = content.pop("bound")
        saved = content.pop("state")
        content["options"] = MappingProxyType(content["options"])
        lock = RLock() if content["average"] is None else content["average"].lock
        self.__dict__.update(content, _lock=lock)
        _forks.guard(self, "_lock")
        # Also those that the rule of the moment leaves alone, in memory laid out as ever.
        self.state = {
            name: {k: a if k == "step" else copy_beside(a, p) for k, a in saved[name].items()}
            for name, p in self._params().items()
        }
        self._make_plan(self.param_groups, self._steps, grads)

    def __repr__(self) -> str:
        lines = []
        for group in self.param_groups:
            elements = sum(p.size for p in group["params"])
            shown = [key for key in self.defaults if group[key] is not None]
            hyper = ", ".join(f"{key}={group[key]!r}" for key in shown)
            size = f"{len(group['params'])} parameters, {elements:,} elements"
            lines.append(f"{type(self).__name__}({size}, {hyper})")
        return "\n".join(lines)


def _inverse(value: float, name: str) -> float:
    if value == 0 or not math.isfinite(inverse := 1.0 / value):
        raise ValueError(f"{name}: expected a number to divide by, found {value}")
    return inverse
