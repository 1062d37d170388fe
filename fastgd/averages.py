"""Exponentially weighted averages: of series, and of a model's weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastgd.core import domains
from fastgd.core.ema import EMA
from fastgd.kernels import _series, get_backend, reference
from fastgd.kernels._engine import raised
from fastgd.kernels.memory import checks
from fastgd.kernels.memory.checks import shown

__all__ = ["EMA", "Ewma", "beta_of", "beta_of_half_life", "ewma", "window"]

Array = NDArray[Any]


def window(beta: float) -> float:
    """The window of an average with weight β, about how many values it reaches back: 1/(1 − β).

    >>> round(window(0.9))
    10
    """
    return 1.0 / (1.0 - domains.fraction(beta, "beta"))


def beta_of(window: float) -> float:
    """The weight β of an average over a window of about so many values: 1 − 1/window.

    >>> beta_of(50)
    0.98
    """
    if not domains.number(window, "window") >= 1:
        raise ValueError(f"window: expected a number of at least 1, found {window}")
    return 1.0 - 1.0 / float(window)


def beta_of_half_life(half_life: float) -> float:
    """The weight β of an average in which a value counts half as much so many places later.

    >>> beta_of_half_life(1)
    0.5
    """
    return raised(0.5, 1.0 / domains.positive(half_life, "half_life"))


class Ewma(NamedTuple):
    """The state of an average, from which `ewma` resumes.

    Attributes
    ----------
    value : ndarray of float64
        The last V of each series, without bias correction; the shape of the input without its axis.
        With `ignore_na` or `times` the average itself, NaN before the first value.
    weight : float, or ndarray of float64
        The sum of the weights so far, 1 − βᵗ from V₀ = 0.  With `ignore_na` or `times` that of each
        series' past, beside 1 or 1 − β for the next value.
    time : float, optional
        The time of the last value, with `times`.
    """

    value: Array
    weight: Any
    time: float | None = None


def ewma(
    x: Any,
    beta: float,
    bias_correction: bool = True,
    axis: int = -1,
    out: Array | None = None,
    state: Ewma | None = None,
    initial: Any = None,
    *,
    ignore_na: bool | None = None,
    times: Any = None,
) -> tuple[Array, Ewma]:
    r"""The exponentially weighted average of series.

    .. math::
        V_t = \beta V_{t-1} + (1 - \beta) X_t, \quad V_0 = 0

    With ``bias_correction`` the result is :math:`V_t / (1 - \beta^t)`, which makes up for the start
    from 0.

    Parameters
    ----------
    x : array of float32 or float64, any shape and layout
        One or many series; integers count as float64.
    beta : float
        β, from 0 to below 1: the average reaches back over about `window` (β) values.
    bias_correction : bool
        Divide by the sum of the weights. This is what pandas calls ``adjust=True``; its
        ``adjust=False`` is ``bias_correction=False, initial=x[0]``.
    axis : int
        The axis along which the series run.
    out : ndarray, optional
        The array for the result: of the shape and dtype of `x`, writeable; may be `x` itself.
    state : Ewma, optional
        The state that an earlier call returned: the result goes on as if the series were one.
    initial : array or number, optional
        V₀ instead of 0, for each series.  Excludes `state`, and `bias_correction`, which corrects a
        start from 0.
    ignore_na : bool, optional
        Leave out values that are NaN, as pandas does: with False their places count, so that the
        past has decayed meanwhile; with True they don't.  None lets NaN spread.  `initial` may then
        be NaN, for an average that starts from its first value.
    times : array of numbers, shape (length of the series,), optional
        When each value was, not decreasing: the past decays by β to the power of the time that
        passed, in the same unit as the half-life that `beta_of_half_life` turns into β.  Without
        bias correction a value gets what that leaves of 1.  Values that are NaN are left out, as
        with ``ignore_na=False``.

    Returns
    -------
    averages : ndarray
        In the shape and dtype of `x`.
    state : Ewma
        The state after the last value, for the next call.

    Raises
    ------
    TypeError, ValueError
        If an argument is not valid; nothing is written then.

    Notes
    -----
    From a NaN on, the average of its series is NaN, unless `ignore_na` or `times` says otherwise.
    Averages are worked out in float64 and rounded to the dtype of `x`, so that a level stays where
    it is however near β is to 1.  With `times`, powers of β are NumPy's, whose last bit may
    differ between processors.

    Examples
    --------
    >>> averages, state = ewma([1.0, 1.0, 1.0], beta=0.5)
    >>> averages
    array([1., 1., 1.])
    >>> ewma([1.0, 1.0, 1.0], beta=0.5, bias_correction=False)[0]
    array([0.5  , 0.75 , 0.875])
    >>> ewma([4.0], beta=0.5, state=state)[0].round(2)
    array([2.6])
    >>> ewma([1.0, np.nan, 5.0], beta=0.5, ignore_na=False)[0]
    array([1. , 1. , 4.2])
    """
    beta = domains.fraction(beta, "beta")
    correct = domains.flag(bias_correction, "bias_correction")
    try:
        values = np.asarray(x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"x: expected an array of numbers ({error})") from None
    if values.dtype.kind in "iu":
        values = values.astype(np.float64)
    if values.dtype not in checks.DTYPES:
        raise TypeError(f"x: expected dtype float32 or float64, found {values.dtype}")
    if values.ndim == 0:
        raise ValueError("x: expected at least one dimension, found a single number")
    try:
        axis = np.lib.array_utils.normalize_axis_index(axis, values.ndim)
    except (TypeError, OverflowError):
        raise TypeError(f"axis: expected an index, found {shown(axis)}") from None
    series_shape = values.shape[:axis] + values.shape[axis + 1 :]
    v, weight = _start(state, initial, correct, series_shape)
    if ignore_na is not None:
        domains.flag(ignore_na, "ignore_na")
    observed = ignore_na is not None or times is not None
    if observed:
        v, weight, past, time = _observed(
            state, initial, correct, v, weight, beta, ignore_na, times, values.shape[axis]
        )
    elif state is not None and not isinstance(weight, float):
        raise ValueError("state: expected one of a call without ignore_na and times")
    if out is not None:
        _check_out(out, values)

    outer, length = int(np.prod(values.shape[:axis])), values.shape[axis]
    inner = int(np.prod(values.shape[axis + 1 :]))
    blocks = np.ascontiguousarray(values).reshape(outer, length, inner)
    averages = np.empty(blocks.shape, blocks.dtype)
    if out is not None and out.flags.c_contiguous:
        averages = out.reshape(blocks.shape)
        if np.may_share_memory(out, blocks) and out.ctypes.data != blocks.ctypes.data:
            blocks = blocks.copy()
    kernels: Any = reference if get_backend() == "numpy" else _series
    a = v.reshape(outer, inner)
    if blocks.size and observed:
        gamma = 1.0 - beta if times is None else np.nan
        w = weight.reshape(outer, inner)
        kernels.ewma_of_observed(blocks, averages, a, w, past, gamma, correct, bool(ignore_na))
    elif blocks.size:
        weight = kernels.ewma(blocks, averages, a, weight, beta, correct)
    result = averages.reshape(values.shape)
    if out is not None:
        if not out.flags.c_contiguous:
            out[...] = result
        result = out
    return result, Ewma(v, weight, time if observed else None)


def _start(
    state: Ewma | None, initial: Any, correct: bool, shape: tuple[int, ...]
) -> tuple[Array, Any]:
    """The averages to start from, in new arrays, and the sum of their weights."""
    if state is not None:
        if initial is not None:
            raise ValueError("initial excludes state: both say where to start")
        if not isinstance(state, Ewma):
            raise TypeError(f"state: expected an Ewma that ewma returned, found {shown(state)}")
        if state.value.shape != shape or state.value.dtype not in checks.DTYPES:
            raise ValueError(
                f"state: expected series of shape {shape} in float64, "
                f"found {state.value.shape} in {state.value.dtype}"
            )
        return state.value.astype(np.float64), state.weight
    if initial is None:
        return np.zeros(shape), 0.0
    if correct:
        raise ValueError("initial excludes bias_correction=True, which corrects a start from 0")
    try:
        return np.array(np.broadcast_to(initial, shape), np.float64, order="C"), 1.0
    except (TypeError, ValueError):
        found = f"{np.shape(initial)} of {np.asarray(initial).dtype}"
        raise ValueError(f"initial: expected shape {shape} of numbers, found {found}") from None


def _observed(
    state: Ewma | None, initial: Any, correct: bool, v: Array, weight: Any, beta: float,
    ignore_na: bool | None, times: Any, length: int,
) -> tuple[Array, Array, Array, float | None]:  # fmt: skip
    """Averages and weights to start from where NaN is left out, β of each place, the last time."""
    if state is None:
        weight = np.ones_like(v)
        if correct and initial is None:
            v = np.full_like(v, np.nan)
    elif not isinstance(weight, np.ndarray) or weight.shape != v.shape:
        raise ValueError("state: expected one of a call with ignore_na or times")
    else:
        weight = weight.astype(np.float64)
    if times is None:
        return v, weight, np.full(length, beta), None
    if ignore_na:
        raise ValueError("times excludes ignore_na=True, by which places of NaN don't count")
    try:
        at = np.asarray(times, np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"times: expected an array of numbers, found {shown(times)}") from None
    if at.shape != (length,):
        raise ValueError(f"times: expected shape {(length,)} as the series, found {at.shape}")
    before = state.time if state is not None else None
    if state is not None and before is None and length:
        raise ValueError("state: expected one of a call with times")
    passed = np.diff(at, prepend=at[:1] if before is None else before)
    if not np.all(passed >= 0):
        raise ValueError("times: expected numbers that don't decrease, in the state neither")
    return v, weight, beta**passed, float(at[-1]) if length else before


def _check_out(out: Any, values: Array) -> None:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out: expected an array, found {type(out).__name__}")
    if out.dtype != values.dtype:
        raise TypeError(f"out: expected dtype {values.dtype} as x, found {out.dtype}")
    if out.shape != values.shape:
        raise ValueError(f"out: expected shape {values.shape} as x, found {out.shape}")
    if not out.flags.writeable:
        raise ValueError("out: expected a writeable array, found a read-only one")
