"""The registry of rules: what each is called, needs and does.

A rule is the formula of its paper and nothing else, in NumPy: what the compiled kernels must
compute, to the bit.  Its signature is also its declaration: after the parameter ``p`` and the
gradient ``g`` come the states, by torch.optim's names, and after the ``*`` the coefficients, by the
papers' letters, in the order in which the compiled loop takes them.  A state annotated `Squares` is
never negative.  Arrays are updated in place.  Whatever depends on the step count (bias correction,
first step) was worked out in double precision and arrives as a coefficient, rounded once to the
type of ``p``.

The rules stand in the modules of `fastgd.optimizers`, and that of averages in
`fastgd.kernels.spec.average`; the compiled twin of ``family.py`` is ``family.pxi`` in its folder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Squares = Annotated[Array, "never negative"]  # of a state
Update = Callable[..., None]
Scalar = Any  # a NumPy scalar of the arrays' type


# What a rule may annotate a state with, as an object or, by a postponed annotation, in words.
STATE_KINDS: dict[Any, str] = {
    Array: "signed", "Array": "signed", Squares: "squares", "Squares": "squares"
}  # fmt: skip


class Fused(NamedTuple):
    """Which fused loops a rule has: they load, scale, decay, update and store in one go.

    For rules whose states are one of any sign, one of squares, or the one and then the other.

    Attributes
    ----------
    params : tuple of {"float32", "bfloat16", "split"}
        How the parameter may be stored.
    states : tuple of {"float32", "bfloat16", "8bit"}
        How the states may be stored.
    gain : str
        How many times as fast as stage by stage they were measured to be, and where.
    """

    params: tuple[str, ...]
    states: tuple[str, ...]
    gain: str


class Rule(NamedTuple):
    """A row of `RULES`."""

    name: str
    states: tuple[str, ...]
    coefficients: tuple[str, ...]
    update: Update
    squares: frozenset[str]
    fused: Fused | None

    @property
    def summary(self) -> str:
        """The first line of what its function says."""
        return (self.update.__doc__ or "").partition("\n")[0]


RULES: dict[str, Rule] = {}


@overload
def rule(update: Update) -> Update: ...


@overload
def rule(*, fused: Fused) -> Callable[[Update], Update]: ...


def rule(update: Update | None = None, *, fused: Fused | None = None) -> Any:
    """Enter a function in `RULES`, reading states and coefficients off its signature.

    Raises
    ------
    ValueError
        If there is a rule of that name already.
    TypeError
        If a state isn't annotated as `Array` or `Squares`.
    """
    if update is None:
        return lambda function: _entered(function, fused)
    return _entered(update, fused)


def _entered(update: Update, fused: Fused | None) -> Update:
    code = update.__code__
    if code.co_name in RULES:
        raise ValueError(f"rule {code.co_name}: there is one of that name already")
    positional, total = code.co_argcount, code.co_argcount + code.co_kwonlyargcount
    names = code.co_varnames
    states, coefficients = names[2:positional], names[positional:total]
    kinds = {key: update.__annotations__.get(key) for key in states}
    if unknown := [key for key, kind in kinds.items() if kind not in STATE_KINDS]:
        raise TypeError(f"rule {code.co_name}: expected {unknown[0]}: Array or Squares")
    squares = frozenset(key for key, kind in kinds.items() if STATE_KINDS[kind] == "squares")
    RULES[code.co_name] = Rule(code.co_name, states, coefficients, update, squares, fused)
    return update


def positive_part(x: Array) -> Array:
    """x, or 0 where x < 0; NaN stays NaN."""
    clipped: Array = np.where(x < 0, x.dtype.type(0), x)
    return clipped
