"""The base of all optimizers: what their users see of a `Stepper`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from operator import index
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from fastgd.core import domains
from fastgd.core import state_dict as _state_dict
from fastgd.core.contract import Contract
from fastgd.core.groups import ParamGroup, not_an_attribute
from fastgd.core.stepper import Stepper
from fastgd.core.storage import Storage
from fastgd.core.trees import Name
from fastgd.kernels._engine import StepRecord

if TYPE_CHECKING:
    from inspect import Signature

    from fastgd.core.ema import EMA
    from fastgd.core.iterates import IterateAverage

Array = NDArray[Any]


class _SignatureOf:
    """The signature of a class, made from its declarations when it is asked for."""

    def __get__(self, _: object, cls: type[Optimizer]) -> Signature:
        from inspect import Parameter, Signature, signature

        if cls.__init__ is not Optimizer.__init__:
            own = signature(cls.__init__)
            return own.replace(parameters=list(own.parameters.values())[1:])
        params = Parameter("params", Parameter.POSITIONAL_OR_KEYWORD, annotation="object")
        options = Parameter("options", Parameter.VAR_KEYWORD, annotation="Unpack[Options]")
        return Signature([params, *cls.parameters(), options])


class Optimizer(Contract):
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
        ``"clip_by"``, ``"layout"``, ``"centralize"``, ``"nonfinite"``, ``"zero_grads"`` and
        ``"rows"`` as given to the constructor; fixed.
    storage : Storage
        How parameters and states are kept, as given to the constructor; fixed.
    average : fastgd.averages.EMA, IterateAverage or None
        The average of the weights that steps update, if wanted; else that which a schedule-free
        optimizer has by itself.
    """

    __signature__ = _SignatureOf()

    def __init__(self, params: object, *args: Any, **kwargs: Any) -> None:
        """Take parameters, hyper-parameters, and `fastgd.Options` by keyword."""
        self.stepper = Stepper(type(self), params, *self.arguments(args, kwargs))

    @property
    def param_groups(self) -> tuple[ParamGroup, ...]:
        """The groups, whose hyper-parameters may be set."""
        return self.stepper.param_groups

    @property
    def state(self) -> Mapping[Name, Mapping[str, Array]]:
        """The states and the step count of each parameter, by its name."""
        return self.stepper.state

    @property
    def options(self) -> Mapping[str, Any]:
        """What steps do beside their update."""
        return self.stepper.options

    @property
    def storage(self) -> Storage:
        """How parameters and states are kept."""
        return self.stepper.storage

    @property
    def average(self) -> EMA | IterateAverage | None:
        """The average of the weights to evaluate, if there is one."""
        return self.stepper.iterates if self.stepper.average is None else self.stepper.average

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The hyper-parameters of groups that say nothing else."""
        return self.stepper.defaults

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

        Notes
        -----
        Each call looks at all parameters again: of many groups, give all that there are to the
        constructor.
        """
        self.stepper.add_group(group, grads, copy_to)

    # --------------------------------------------------------------------------------- the step

    def step(self, grads: object = None, *, grad_scale: float = 1.0) -> StepRecord:
        """Update every parameter that has a gradient, in place.

        Parameters
        ----------
        grads : array or nested lists and dicts of arrays, optional
            The gradients in the form of the parameters, with their shapes and layouts, of any dtype
            of floats.  None in the place of an array leaves its parameter, states and step count
            alone, `fastgd.Rows` all rows but some.  They are only read, unless ``zero_grads`` was
            asked for.  May be left out if gradients were bound in the constructor, or accumulated.
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
            If gradients are not finite and ``nonfinite="raise"``.  Nothing was changed then.
        RuntimeError
            If called from within itself, say by a hyper-parameter or an array-like; while averages
            are swapped in; or with gradients while others wait that were accumulated.

        Notes
        -----
        Threads that step the same optimizer take turns; different optimizers run in parallel.
        """
        return self.stepper.step(grads, grad_scale)

    def catch_up(self, rows: object = None) -> None:
        """Do to rows of tables what they missed, with ``rows="catch_up"``: to all, or to some.

        Afterwards these rows and their states are those of dense steps with zeros for what had no
        gradient, up to rounding.  Call it for the rows that a forward pass is about to look up; or
        for all before tables are evaluated, or saved by themselves, which reads all of each table
        that has missed anything.  Nothing is to be done for other parameters.

        Parameters
        ----------
        rows : tree of arrays of int32 or int64, or of `fastgd.Rows`, optional
            Which rows, in the form of the parameters as gradients are, None in the place of
            parameters of which none are to.  Indices may come in any shape and order, several times
            each.  By default all rows of all tables.

        Raises
        ------
        ValueError
            If the optimizer was made with other ``rows``; if they are nested differently, indices
            are out of range, or a parameter has no rows that catch up.  Nothing was changed then.
        TypeError
            If there is something else in the place of indices.
        RuntimeError
            While averages are swapped in.

        Examples
        --------
        >>> import numpy as np, fastgd
        >>> table = np.ones((4, 1))
        >>> opt = fastgd.SGD(table, lr=0.5, weight_decay=1.0, rows="catch_up")
        >>> for _ in range(2):
        ...     _ = opt.step(fastgd.Rows([1], np.zeros((1, 1))))
        >>> table.ravel()
        array([1.  , 0.25, 1.  , 1.  ])
        >>> opt.catch_up()
        >>> table.ravel()
        array([0.25, 0.25, 0.25, 0.25])
        >>> _ = opt.step(fastgd.Rows([1], np.zeros((1, 1))))
        >>> opt.catch_up([0, 3])
        >>> table.ravel()
        array([0.125, 0.125, 0.25 , 0.125])
        """
        self.stepper.catch_up(rows)

    def accumulate(self, grads: object = None, weight: float = 1.0) -> None:
        """Add gradients to those that the next ``step()`` takes, all tensors in one call.

        The step then uses the weighted mean, Σwg / Σw, of what was accumulated, and forgets it:
        over micro-batches of equal size that is the gradient of the mean loss of the whole batch,
        up to rounding.  A parameter without a gradient in some of them counts as having one of 0.

        Parameters
        ----------
        grads : array or nested lists and dicts of arrays, optional
            As for `step`; only read, even with ``zero_grads``.  Those of a parameter are all arrays
            or all `fastgd.Rows`, which stay rows.
        weight : float
            What to weigh them by, say the number of samples in the micro-batch.  With 0 they are
            left out, whatever they are.

        Raises
        ------
        TypeError, ValueError
            If a gradient doesn't fit, or is `fastgd.Rows` that no step by the hyper-parameters of
            now takes; nothing was changed then.

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
        self.stepper.accumulate(grads, weight)

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
        return int(self.stepper.skipped[0])

    @property
    def lr(self) -> float:
        """The learning rate of all groups; setting it, to a number or a schedule, sets it in all.

        Of a schedule, reading gives the number for the next step of the parameter that has taken
        the most steps; ``param_groups[0]["lr"]`` is the schedule itself.  Raises ValueError on
        reading if groups differ.
        """
        rates = {
            group.value("lr", _state_dict.steps_taken(self.state[name] for name in names))
            for group, names in zip(self.param_groups, self.stepper.names, strict=True)
        }
        if len(rates) != 1:
            raise ValueError(f"lr: differs between groups: {sorted(rates)}; see param_groups")
        return float(rates.pop())

    @lr.setter
    def lr(self, value: domains.Scalar) -> None:
        for group in self.param_groups:
            group.checked({"lr": value})
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
        with self.stepper.following(keep=False):
            copies: dict[str, Any] = _state_dict.copied(self.written())
            return copies

    def written(self) -> dict[str, Any]:
        """The state dict, whose arrays are the live ones; to be called as `Stepper.written`."""
        return self.stepper.written()

    @property
    def title(self) -> str:
        """What checkpoints call the optimizer."""
        return type(self).__name__

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
        self.stepper.load_state_dict(state_dict)

    def __copy__(self) -> Self:
        """Another one over the same parameters and groups, with states of its own."""
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__, stepper=copy(self.stepper))
        return new

    def __repr__(self) -> str:
        lines = []
        for group in self.param_groups:
            elements = sum(p.size for p in group["params"])
            shown = [key for key in self.defaults if group[key] is not None]
            hyper = ", ".join(f"{key}={group[key]!r}" for key in shown)
            size = f"{len(group['params'])} parameters, {elements:,} elements"
            lines.append(f"{type(self).__name__}({size}, {hyper})")
        return "\n".join(lines)
