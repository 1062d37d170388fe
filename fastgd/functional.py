"""The steps as functions, without an optimizer object, for programs that hold the states.

There is one function for each optimizer, by its name in lower case, as `sgd` and `adamw`.  Each
updates one parameter and its states in place::

    fastgd.functional.adam(p, g, exp_avg, exp_avg_sq, step=t, lr=1e-3)

After the parameter and its gradient come the states of the rule that the hyper-parameters pick, in
the order of `fastgd.kernels.reference` and by torch.optim's names (one that is a single number, as
NAdam's ``mu_product``, is an array of float64 of shape ()); then ``step``, the number of
this step counted from 1, and the hyper-parameters of the optimizer, with its defaults.  They are
numbers: the caller, who counts the steps, calls schedules.

Examples
--------
>>> import numpy as np
>>> from fastgd.functional import adam
>>> p, g, m, v = np.ones(3), np.full(3, 0.5), np.zeros(3), np.zeros(3)
>>> adam(p, g, m, v, step=1, lr=0.1)
>>> p
array([0.9, 0.9, 0.9])

`global_norm` is the norm of all gradients, by which the optimizers clip.
"""

from __future__ import annotations

import inspect
from operator import index
from typing import Any, Protocol

import numpy as np

from fastgd.core.names import hint
from fastgd.core.optimizer import Optimizer
from fastgd.core.options import HYPER
from fastgd.kernels._engine import Plan
from fastgd.kernels._engine import global_norm as _global_norm
from fastgd.kernels.memory import checks
from fastgd.kernels.memory.checks import shown
from fastgd.kernels.memory.rows import Rows
from fastgd.kernels.spec.lines import axes_of, line_shape
from fastgd.kernels.spec.registry import RULES
from fastgd.optimizers import OPTIMIZERS


class Update(Protocol):
    """The type of the functions of this module, but for `global_norm`."""

    def __call__(self, p: Any, g: Any, *states: Any, step: int, **hyper: Any) -> None:
        """Update `p` and `states` in place by one step."""


def global_norm(grads: object) -> float:
    """The norm of all arrays together: √Σx² over every element of every array.

    Squares are summed in float64 in a fixed order: the norm has the same bits on every backend and
    number of threads, and is finite unless an element isn't.

    Parameters
    ----------
    grads : array, or nested lists and dicts of arrays
        Arrays of float32, float64, bfloat16 or float16; None counts as no array.

    Returns
    -------
    float
        The norm.

    Raises
    ------
    TypeError
        If something is not an array of floats; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> global_norm({"W": np.array([3.0, 0.0]), "b": [np.array(4.0, np.float32), None]})
    5.0
    """
    return _global_norm(grads)


def __getattr__(name: str) -> Update:
    for cls in OPTIMIZERS.values():
        if cls.__name__.lower() == name:
            globals()[name] = function = _function(name, cls)
            return function
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {__dir__()}")


def __dir__() -> list[str]:
    return ["global_norm", *sorted(map(str.lower, OPTIMIZERS))]


def _function(name: str, cls: type[Optimizer]) -> Update:
    """The function of an optimizer class, with the class's hyper-parameters and defaults."""
    hypers = cls.hypers

    def update(p: Any, g: Any, *states: Any, step: int, **given: Any) -> None:
        p = checks.check_parameter(p, "p")
        if unknown := [key for key in given if key not in hypers]:
            raise TypeError(
                f"{name}: unknown {unknown[0]!r}; there are {', '.join(hypers)}"
                f"{hint(unknown[0], hypers)}"
            )
        h = {key: one.domain(given.get(key, one.default), key) for key, one in hypers.items()}
        h |= dict.fromkeys(HYPER)
        cls.consistent(h)
        try:
            t = index(step)
        except TypeError:
            raise TypeError(f"step: expected an integer, found {shown(step)}") from None
        if not 1 <= t < 2**53:
            found = shown(step)
            raise ValueError(
                f"step: expected a number from 1 to 2^53, counted from 1, found {found}"
            )
        try:
            rule = RULES[cls.rule(h, p.shape)]
        except ValueError as error:
            raise ValueError(f"p: {error}") from None
        kept = (*rule.states, *rule.numbers)
        if len(states) != len(kept):
            raise TypeError(f"{name}: expected the states {kept}, found {len(states)}")
        lines = rule.line_states
        views = tuple(
            checks.check_like(a, p, key, line_shape(p.shape, lines[key]) if key in lines else None)
            for key, a in zip(rule.states, states, strict=False)
        )
        given_numbers = zip(rule.numbers, states[len(views) :], strict=True)
        numbers = tuple(checks.as_array(a, key) for key, a in given_numbers)
        for key, a in zip(rule.numbers, numbers, strict=True):
            checks.check_number(a, key)
        if not isinstance(g, Rows):
            checks.as_gradient(g, p, "g")
        settings = cls.settings(rule.name, h, t, 1.0)
        steps, axes = np.zeros(1, np.int64), axes_of(p.shape, p.strides, p.itemsize)
        plan = Plan(
            None,
            [p],
            [""],
            [0],
            [views],
            [rule.name],
            steps,
            numbers=[numbers],
            axes=[axes],
            sparse=cls.sparse,
        )
        plan.step(g, lambda *_: settings, 1.0)

    leading = list(inspect.signature(Update.__call__).parameters.values())[1:-1]
    given = cls.parameters(schedules=False, keyword=True)
    update.__signature__ = inspect.Signature([*leading, *given], return_annotation=None)  # type: ignore[attr-defined]
    update.__name__ = update.__qualname__ = name
    update.__doc__ = f"""One step of `fastgd.{cls.__name__}` on one parameter, in place.

    Parameters
    ----------
    p : array of float32 or float64, any shape
        The parameter, updated in place.
    g : array like `p`, or fastgd.Rows
        Its gradient, only read.
    *states : arrays like `p`
        The states of the rule that the hyper-parameters and the shape pick, updated in place;
        those of rows and columns with one element along the other axis, those that are one number,
        last, as arrays of float64 of shape ().
    step : int
        The number of this step, counted from 1.
    {", ".join(hypers)}
        As for `fastgd.{cls.__name__}`.
    """
    return update
