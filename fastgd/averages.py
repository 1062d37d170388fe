"""Exponentially weighted averages: of series, and of a model's weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastgd.core import domains
from fastgd.core.ema import EMA
from fastgd.kernels import _series, get_backend, reference
from fastgd.kernels.memory import checks
from fastgd.kernels.memory.checks import shown

__all__ = ["EMA", "Ewma", "beta_of", "ewma", "window"]

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


class Ewma(NamedTuple):
    """The state of an average, from which `ewma` resumes.

    Attributes
    ----------
    value : ndarray
        The last V of each series, without bias correction; the shape of the input without its axis.
    weight : float
        The sum of the weights so far, 1 − βᵗ from V₀ = 0.
    """

    value: Array
    weight: float


def ewma(
    x: Any,
    beta: float,
    bias_correction: bool = True,
    axis: int = -1,
    out: Array | None = None,
    state: Ewma | None = None,
    initial: Any = None,
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
    From a NaN on, the average of its series is NaN.

    Examples
    --------
    >>> averages, state = ewma([1.0, 1.0, 1.0], beta=0.5)
    >>> averages
    array([1., 1., 1.])
    >>> ewma([1.0, 1.0, 1.0], beta=0.5, bias_correction=False)[0]
    array([0.5  , 0.75 , 0.875])
    >>> ewma([4.0], beta=0.5, state=state)[0].round(2)
    array([2.6])
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
    v, weight = _start(state, initial, correct, series_shape, values.dtype)
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
    run = reference.ewma if get_backend() == "numpy" else _series.ewma
    if blocks.size:
        weight = run(blocks, averages, v.reshape(outer, inner), weight, beta, correct)
    result = averages.reshape(values.shape)
    if out is not None:
        if not out.flags.c_contiguous:
            out[...] = result
        result = out
    return result, Ewma(v, weight)


def _start(
    state: Ewma | None, initial: Any, correct: bool, shape: tuple[int, ...], dtype: Any
) -> tuple[Array, float]:
    """The averages to start from, in new arrays, and the sum of their weights."""
    if state is not None:
        if initial is not None:
            raise ValueError("initial excludes state: both say where to start")
        if not isinstance(state, Ewma):
            raise TypeError(f"state: expected an Ewma that ewma returned, found {shown(state)}")
        if state.value.shape != shape or state.value.dtype != dtype:
            raise ValueError(
                f"state: expected series of shape {shape} and dtype {dtype}, "
                f"found {state.value.shape} and {state.value.dtype}"
            )
        return state.value.copy(), state.weight
    if initial is None:
        return np.zeros(shape, dtype), 0.0
    if correct:
        raise ValueError("initial excludes bias_correction=True, which corrects a start from 0")
    try:
        return np.array(np.broadcast_to(initial, shape), dtype, order="C"), 1.0
    except (TypeError, ValueError):
        found = f"{np.shape(initial)} of {np.asarray(initial).dtype}"
        raise ValueError(f"initial: expected shape {shape} of numbers, found {found}") from None


def _check_out(out: Any, values: Array) -> None:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out: expected an array, found {type(out).__name__}")
    if out.dtype != values.dtype:
        raise TypeError(f"out: expected dtype {values.dtype} as x, found {out.dtype}")
    if out.shape != values.shape:
        raise ValueError(f"out: expected shape {values.shape} as x, found {out.shape}")
    if not out.flags.writeable:
        raise ValueError("out: expected a writeable array, found a read-only one")
