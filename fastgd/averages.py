"""Exponentially weighted averages: of series, and of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import RLock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastgd import _groups
from fastgd._trees import flatten, name_of
from fastgd.kernels import _series, checks, get_backend, reference
from fastgd.kernels._engine import Plan
from fastgd.kernels.memory import zeros_beside

__all__ = ["EMA", "Ewma", "beta_of", "ewma", "window"]

Array = NDArray[Any]


def window(beta: float) -> float:
    """About how many values an average with weight β reaches back over: 1/(1 − β).

    >>> round(window(0.9))
    10
    """
    return 1.0 / (1.0 - _groups.fraction(beta, "beta"))


def beta_of(window: float) -> float:
    """The weight β of an average over about that many values: 1 − 1/window.

    >>> beta_of(50)
    0.98
    """
    if not _groups.number(window, "window") >= 1:
        raise ValueError(f"window: expected a number of at least 1, found {window}")
    return 1.0 - 1.0 / float(window)


class Ewma(NamedTuple):
    """Where an average stopped: what `ewma` needs to go on.

    Attributes
    ----------
    value : ndarray
        The last V of each series, not corrected; the shape of the input without its axis.
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

    and with ``bias_correction`` the result is :math:`V_t / (1 - \beta^t)`, which makes up for the
    start from 0.

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
        Where to put the result: the shape and dtype of `x`, writeable; may be `x` itself.
    state : Ewma, optional
        Where an earlier call stopped: the result goes on as if the series had never been cut.
    initial : array or number, optional
        V₀ instead of 0, for each series; without bias correction, which is for a start from 0.

    Returns
    -------
    averages : ndarray
        In the shape and dtype of `x`.
    state : Ewma
        To go on from.

    Raises
    ------
    TypeError, ValueError
        If an argument doesn't fit; nothing is written then.

    Notes
    -----
    A NaN stays in the average from where it stands on.

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
    beta = _groups.fraction(beta, "beta")
    correct = _groups.flag(bias_correction, "bias_correction")
    values = np.asarray(x)
    if values.dtype.kind in "iu":
        values = values.astype(np.float64)
    if values.dtype not in checks.DTYPES:
        raise TypeError(f"x: expected dtype float32 or float64, found {values.dtype}")
    if values.ndim == 0:
        raise ValueError("x: expected at least one dimension, found a single number")
    axis = np.lib.array_utils.normalize_axis_index(axis, values.ndim)
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
    """The averages to start from, in memory of their own, and the sum of their weights."""
    if state is not None:
        if initial is not None:
            raise ValueError("initial: expected either this or state, found both")
        if not isinstance(state, Ewma):
            raise TypeError(f"state: expected an Ewma that ewma returned, found {state!r}")
        if state.value.shape != shape or state.value.dtype != dtype:
            raise ValueError(
                f"state: expected series of shape {shape} and dtype {dtype}, "
                f"found {state.value.shape} and {state.value.dtype}"
            )
        return state.value.copy(), state.weight
    if initial is None:
        return np.zeros(shape, dtype), 0.0
    if correct:
        raise ValueError("initial: expected none with bias_correction, which is for a start from 0")
    try:
        return np.array(np.broadcast_to(initial, shape), dtype, order="C"), 1.0
    except ValueError:
        found = np.shape(initial)
        raise ValueError(f"initial: expected shape {shape}, found {found}") from None


def _check_out(out: Any, values: Array) -> None:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out: expected an array, found {type(out).__name__}")
    if out.dtype != values.dtype:
        raise TypeError(f"out: expected dtype {values.dtype} as x, found {out.dtype}")
    if out.shape != values.shape:
        raise ValueError(f"out: expected shape {values.shape} as x, found {out.shape}")
    if not out.flags.writeable:
        raise ValueError("out: expected a writeable array, found a read-only one")


class EMA:
    r"""The exponentially weighted average of a model's weights, over all its arrays in one call.

    .. math::
        A_t = \beta_t A_{t-1} + (1 - \beta_t) W_t

    Parameters
    ----------
    params : array, nested lists and dicts of arrays
        The weights; float32 or float64, contiguous. They are only read, but for `swapped`.
    decay : float
        β, from 0 to below 1.
    bias_correction : bool
        Start from nothing, as an average of the weights seen so far:
        :math:`\beta_t = \beta (1 - \beta^{t-1}) / (1 - \beta^t)`, so that :math:`A_1 = W_1`.
        Otherwise start from the weights as they are now, as torch's ``AveragedModel`` does.
    warmup : bool
        Let the past count for less at first: β at most (1 + t)/(10 + t) at the t-th update.
        Instead of bias correction, not with it.

    Attributes
    ----------
    averages : dict
        The averaged arrays by the name of their parameter.
    step : int
        The number of updates.

    Raises
    ------
    TypeError, ValueError
        If a parameter or `decay` is not usable; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> params = {"W": np.zeros(2)}
    >>> ema = EMA(params, decay=0.9)
    >>> for k in range(3):
    ...     params["W"] += 1.0
    ...     ema.update()
    >>> with ema.swapped():
    ...     print(params["W"].round(2))
    [2.07 2.07]
    >>> params["W"]
    array([3., 3.])
    """

    def __init__(
        self,
        params: object,
        decay: float = 0.999,
        bias_correction: bool = True,
        warmup: bool = False,
    ) -> None:
        self.decay = _groups.fraction(decay, "decay")
        self.bias_correction = _groups.flag(bias_correction, "bias_correction")
        self.warmup = _groups.flag(warmup, "warmup")
        if warmup and bias_correction:
            raise ValueError("warmup: expected without bias_correction, which does the same")
        _, leaves = flatten(params)
        if not leaves:
            raise ValueError("params: expected at least one parameter, found none")
        self._labels = [checks.label(path) for path, _ in leaves]
        self._params = [
            checks.check_parameter(leaf, f"params{label}")
            for (_, leaf), label in zip(leaves, self._labels, strict=True)
        ]
        names = [name_of(path) for path, _ in leaves]
        start = [zeros_beside(p) for p in self._params]
        self.averages = dict(zip(names, start, strict=True))
        if len(self.averages) != len(names):
            raise ValueError(f"params: expected names of their own, found {names}")
        if not self.bias_correction:
            for average, p in zip(start, self._params, strict=True):
                average[...] = p
        self._steps = np.zeros(len(names), np.int64)
        self._lock = RLock()
        self._swapped = False
        self._make_plan()

    def _make_plan(self) -> None:
        # To the engine the averages are what is updated, and the weights what is only read.
        count = len(self._params)
        averages = list(self.averages.values())
        self._plan = Plan(
            [None] * count,
            averages,
            self._labels,
            [0] * count,
            [()] * count,
            [()] * count,
            self._steps,
            self._params,
        )

    @property
    def step(self) -> int:
        """The number of updates."""
        return int(self._steps[0])

    def update(self) -> None:
        """Take the weights as they are now into the averages."""
        with self._lock:
            if self._swapped:
                raise RuntimeError("update: the averages stand in the place of the weights")
            self._plan.step(None, self._configure, 1.0)

    def _configure(self, group: int, t: int, unscale: float) -> tuple[Any, ...]:
        beta = self.decay
        if self.bias_correction:
            beta = beta * (1.0 - beta ** (t - 1)) / (1.0 - beta**t)
        elif self.warmup:
            beta = min(beta, (1.0 + t) / (10.0 + t))
        return "ema", (beta, 1.0 - beta), 1.0, 0.0, 1.0

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Put the averages in the place of the weights; on leaving, the weights are back.

        Whatever happens in between, and to the bit; it takes memory for a copy of the weights.

        Raises
        ------
        ValueError
            If there was no update yet to average.
        RuntimeError
            If entered twice; so does `update` in between.
        """
        with self._lock:
            if not self.step and self.bias_correction:
                raise ValueError("swapped: expected at least one update before, found none")
            if self._swapped:
                raise RuntimeError(
                    "swapped: the averages stand in the place of the weights already"
                )
            kept = [p.copy() for p in self._params]
            self._swapped = True
            try:
                for p, average in zip(self._params, self.averages.values(), strict=True):
                    p[...] = average
                yield
            finally:
                for p, own in zip(self._params, kept, strict=True):
                    p[...] = own
                self._swapped = False

    def __getstate__(self) -> dict[str, Any]:
        """All but the plan, which holds addresses, and the lock."""
        with self._lock:
            return {key: self.__dict__[key] for key in self.__dict__.keys() - {"_plan", "_lock"}}

    def __setstate__(self, content: dict[str, Any]) -> None:
        self.__dict__.update(content, _lock=RLock())
        self._make_plan()

    def state_dict(self) -> dict[str, Any]:
        """A copy of the averages, by name, and the number of updates."""
        with self._lock:
            return {
                "step": self.step,
                "averages": {name: a.copy() for name, a in self.averages.items()},
            }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take averages and the number of updates from a state dict.

        Raises
        ------
        TypeError, ValueError
            If it doesn't fit; nothing has been changed then.
        """
        if not isinstance(state_dict, Mapping) or not {"step", "averages"} <= set(state_dict):
            raise ValueError("state_dict: expected a dict with 'step' and 'averages'")
        step = _groups.nonnegative(state_dict["step"], "step")
        if step != int(step) or step >= 2**53:
            raise ValueError(f"step: expected a whole number from 0 to 2^53, found {step}")
        saved = state_dict["averages"]
        if not isinstance(saved, Mapping) or set(saved) != set(self.averages):
            raise ValueError(f"averages: expected a dict of {list(self.averages)}, found {saved!r}")
        checked = {
            name: checks.check_like(saved[name], a, f"averages[{name!r}]", writeable=False).copy()
            for name, a in self.averages.items()
        }
        with self._lock:
            for name, a in self.averages.items():
                a[...] = checked[name]
            self._steps[...] = int(step)
