"""The base of all optimizers: parameters, groups, states and steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from operator import index
from threading import RLock
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastgd.core import domains, fork_locks
from fastgd.core import state_dict as _state_dict
from fastgd.core.accumulated import Accumulated
from fastgd.core.groups import not_an_attribute
from fastgd.core.stepper import Held
from fastgd.kernels._engine import StepRecord
from fastgd.kernels.memory.alloc import copy_beside

if TYPE_CHECKING:
    from inspect import Signature

Array = NDArray[Any]
Hyper = Mapping[str, Any]


class _SignatureOf:
    """The signature of a class, made from its declarations when somebody asks."""

    def __get__(self, _: object, cls: type[Optimizer]) -> Signature:
        from inspect import Parameter, Signature, signature

        if cls.__init__ is not Optimizer.__init__:
            own = signature(cls.__init__)
            return own.replace(parameters=list(own.parameters.values())[1:])
        params = Parameter("params", Parameter.POSITIONAL_OR_KEYWORD, annotation="object")
        options = Parameter("options", Parameter.VAR_KEYWORD, annotation="Unpack[Options]")
        return Signature([params, *cls.parameters(), options])


class Optimizer(Held):
    """Parameters, and the step that updates them in place.

    Not for direct use: each subclass is an optimizer.  It declares its hyper-parameters, and says
    with `rule`, `coefficients`, `initial` and `consistent` what a step does with them; see
    ``docs/architecture.md``.

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

    __signature__ = _SignatureOf()
    # Of an optimizer whose parameters are pieces: `Plan.step`'s argument of that name.
    _combine: Callable[[Array], object] | None = None

    def __init__(self, params: object, *args: Any, **kwargs: Any) -> None:
        """Take parameters, hyper-parameters, and `fastgd.Options` by keyword."""
        super().__init__(params, *self.arguments(args, kwargs))

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
        usual = type(grad_scale) is float and grad_scale == 1.0
        scale = 1.0 if usual else domains.number(grad_scale, "grad_scale")
        unscale = _inverse(scale, "grad_scale")
        with self._lock:
            before = self._follow_rules()
            try:
                return self._step(grads, scale, unscale)
            except BaseException:
                self._go_back(before)
                raise

    def _step(self, grads: object, scale: float, unscale: float) -> StepRecord:
        average = None
        if self.average is not None:
            self.average.refuse_swapped("step")
            average = self.average.weights(self.average.step + 1)
        zero, pending = self.options["zero_grads"], self._accumulated
        if pending is None or not pending.weight[0]:
            return self._plan.step(
                grads,
                self._configure,
                unscale,
                average=average,
                zero=zero,
                combine=self._combine,
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
            combine=self._combine,
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
        weight = domains.positive(weight, "weight")
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

    def __setattr__(self, name: str, value: object) -> None:
        # As `opt.lr = …` works, so may others be tried, and would do nothing.
        if name in self.domains and name != "lr":
            raise not_an_attribute(name)
        super().__setattr__(name, value)

    @property
    def skipped(self) -> int:
        """The number of steps skipped as gradients were not finite."""
        return int(self._skipped[0])

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
    def lr(self, value: domains.Scalar) -> None:
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
        with self._following(keep=False):
            copies: dict[str, Any] = _state_dict.copied(self._written())
            return copies

    def _written(self) -> dict[str, Any]:
        """The state dict of live arrays; for who is `_following`."""
        groups = self.param_groups
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
        with self._following():
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
        fork_locks.guard(self, "_lock")
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
