"""The exponentially weighted average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgd.core import domains, fork_locks
from fastgd.core.home import Home
from fastgd.core.interrupts import to_the_end
from fastgd.core.trees import Name, flatten, name_of
from fastgd.kernels._engine import Plan, is_parameter, raised
from fastgd.kernels.memory import checks
from fastgd.kernels.memory.alloc import aligned_zeros
from fastgd.kernels.memory.checks import shown
from fastgd.kernels.reference import Stages
from fastgd.kernels.spec.coded_array import as_coded, computed

Array = NDArray[Any]


def _like(p: Array) -> Array:
    """Zeros like a parameter, of its compute dtype."""
    return aligned_zeros(p, computed(p.dtype))


def _set(to: Array, values: Array) -> None:
    """Set an array of any dtype of floats to the values of another, rounded to nearest."""
    if to.dtype == values.dtype:
        to[...] = values
        return
    as_coded(to).store(as_coded(values).load(computed(values.dtype)).copy())


class Swapped:
    """Whether other values stand in the place of a model's weights, to be evaluated."""

    is_swapped = False
    homes: tuple[Home, ...] = ()  # parameters that have to know

    def refuse_swapped(self, what: str) -> None:
        """Raise RuntimeError while the averages are swapped in for the weights."""
        if self.is_swapped:
            raise RuntimeError(f"{what}: the averages are swapped in for the weights")

    @contextmanager
    def swapping(self, params: Sequence[Array], values: Iterable[Array]) -> Iterator[None]:
        """Set arrays to these values; on leaving the block, restore them to the bit."""
        saved = [p.copy() for p in params]
        self.is_swapped = True
        try:
            for home in self.homes:
                home.lend()
            for p, value in zip(params, values, strict=True):
                _set(p, value)
            yield
        finally:
            to_the_end(partial(self._restore, params, saved))

    def _restore(self, params: Sequence[Array], saved: Sequence[Array]) -> None:
        for p, value in zip(params, saved, strict=True):
            p[...] = value
        for home in self.homes:
            home.take_back()
        self.is_swapped = False


class Weighting(Swapped):
    """The factors of an exponentially weighted average, and how many updates it has had.

    What `EMA` here, of arrays, and that of `fastgd.torch`, of tensors, have in common.
    """

    def __init__(self, decay: float, bias_correction: bool, warmup: bool) -> None:
        self.decay = domains.fraction(decay, "decay")
        self.bias_correction = domains.flag(bias_correction, "bias_correction")
        self.warmup = domains.flag(warmup, "warmup")
        if warmup and bias_correction:
            raise ValueError("warmup excludes bias_correction=True: both make up for the start")
        self.steps: NDArray[np.int64] = np.zeros(1, np.int64)

    @property
    def step(self) -> int:
        """The number of updates."""
        return int(self.steps[0])

    def weights(self, t: int) -> tuple[float, float]:
        """The factors of the average and of the weights in the t-th update: β_t and 1 − β_t."""
        beta = self.decay
        if self.bias_correction:
            beta = beta * (1.0 - raised(beta, t - 1)) / (1.0 - raised(beta, t))
        elif self.warmup:
            beta = min(beta, (1.0 + t) / (10.0 + t))
        return beta, 1.0 - beta

    def refuse_to_swap(self) -> None:
        """Raise ValueError without an update, RuntimeError while the averages are swapped in."""
        if not self.step and self.bias_correction:
            raise ValueError("swapped: expected at least one update before, found none")
        self.refuse_swapped("swapped")


class EMA(Weighting):
    r"""The exponentially weighted average of a model's weights, over all its arrays in one call.

    .. math::
        A_t = \beta_t A_{t-1} + (1 - \beta_t) W_t

    Parameters
    ----------
    params : array, nested lists and dicts of arrays
        The weights: float32, float64, bfloat16 or float16, contiguous and writeable.  They are
        only read, except by `swapped`.
    decay : float
        β, from 0 to below 1.
    bias_correction : bool
        Start from nothing, as an average of the weights seen so far:
        :math:`\beta_t = \beta (1 - \beta^{t-1}) / (1 - \beta^t)`, so that :math:`A_1 = W_1`.
        Otherwise start from the weights as they are now, as torch's ``AveragedModel`` does.
    warmup : bool
        Let the past count for less at first: β at most (1 + t)/(10 + t) at the t-th update.
        Excludes `bias_correction`.

    Attributes
    ----------
    averages : dict of ndarray
        The averages by the name of their parameter, in its compute dtype: float64 for float64
        parameters, else float32.
    step : int
        The number of updates.
    bound : bool
        Whether an optimizer's steps, and these alone, update it.

    Raises
    ------
    TypeError, ValueError
        If a parameter or `decay` is not valid; the message names it.

    Notes
    -----
    Each update is a step from the nearer side, :math:`A + (1 - \beta)(W - A)` or
    :math:`W + \beta (A - W)`, as ``torch.lerp`` takes it.  So a level is kept, which β and 1 − β
    rounded apart would leave; but what is nearer to A than half its last bit over 1 − β no longer
    moves it: 6e-3 of A in float32 for β = 0.99999, 6e-5 for 0.999.

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
        super().__init__(decay, bias_correction, warmup)
        _, leaves = flatten(params)
        if not leaves:
            raise ValueError("params: expected at least one parameter, found none")
        self._labels: Sequence[str] = checks.Labels([path for path, _ in leaves])
        self._params = [
            leaf
            if is_parameter(leaf)
            else checks.check_parameter(leaf, f"params{checks.label(path)}", checks.ANY)
            for path, leaf in leaves
        ]
        names = [name_of(path) for path, _ in leaves]
        start = [_like(p) for p in self._params]
        self.averages = dict(zip(names, start, strict=True))
        if len(self.averages) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"params: two parameters are named {twice!r}")
        if not self.bias_correction:
            for average, p in zip(start, self._params, strict=True):
                _set(average, p)
        self.steps = np.zeros(len(names), np.int64)
        self.lock = RLock()
        fork_locks.guard(self, "lock")
        self.bound = False
        self._make_plan()

    def refuse_others(self, params: Sequence[Array]) -> None:
        """Raise ValueError unless an optimizer of these parameters may bind this average."""
        if self.bound:
            raise ValueError("average: the EMA is bound to another optimizer already")
        if len(params) != len(self._params) or any(
            p.ctypes.data != q.ctypes.data or p.shape != q.shape or p.dtype != q.dtype
            for p, q in zip(params, self._params, strict=True)
        ):
            raise ValueError("average: expected an EMA of the optimizer's parameters, in its order")

    def bind(self, params: Mapping[Name, Array]) -> None:
        """Leave updates to the optimizer of these parameters, and take over its names."""
        self.averages = dict(zip(params, self.averages.values(), strict=True))
        self._params, self.bound = list(params.values()), True

    def extend(self, params: Mapping[Name, Array]) -> None:
        """Average more parameters, which count as having stood still so far."""
        self.averages = self.averages | {name: _like(p) for name, p in params.items()}
        for name, p in params.items():
            _set(self.averages[name], p)
        self._params = [*self._params, *params.values()]
        self._labels = [*self._labels, *(checks.label((name,)) for name in params)]
        self.steps = np.full(len(self._params), self.step, np.int64)
        self._make_plan()

    def go_on(self, averages: Sequence[Array], step: int) -> None:
        """Go on with these arrays as the averages, after so many updates."""
        self.averages = dict(zip(self.averages, averages, strict=True))
        self.steps[...] = step
        self._make_plan()

    def _make_plan(self) -> None:
        # To the engine the averages are the parameters, and the weights the gradients.
        count = len(self._params)
        averages = list(self.averages.values())
        self._plan = Plan(
            [None] * count,
            averages,
            self._labels,
            [0] * count,
            [()] * count,
            ["ema"] * count,
            self.steps,
            self._params,
        )

    def update(self) -> None:
        """Update the averages with the weights as they are now."""
        with self.lock:
            if self.bound:
                raise RuntimeError("update: the optimizer's step updates this average")
            self.refuse_swapped("update")
            self._plan.step(None, self._configure, 1.0)

    def _configure(self, group: int, t: int, unscale: float) -> tuple[Any, ...]:
        return "ema", self.weights(t), Stages()

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Swap the averages in for the weights; on leaving the block, restore the weights.

        They are restored bit for bit, whatever is raised in the block.  This takes memory for a
        copy of the weights.

        Raises
        ------
        ValueError
            If there was no update yet, with `bias_correction`.
        RuntimeError
            If the averages are swapped in already; `update` raises it within the block, too.
        """
        with self.lock:
            self.refuse_to_swap()
            with self.swapping(self._params, self.averages.values()):
                yield

    def __getstate__(self) -> dict[str, Any]:
        """The attributes but for the plan, which holds addresses, and the lock."""
        with self.lock:
            self.refuse_swapped("copy")  # nothing would restore the weights of the copy
            return {key: self.__dict__[key] for key in self.__dict__.keys() - {"_plan", "lock"}}

    def __setstate__(self, content: dict[str, Any]) -> None:
        self.__dict__.update(content, lock=RLock())
        fork_locks.guard(self, "lock")
        self._make_plan()

    def state_dict(self) -> dict[str, Any]:
        """A copy of the averages, by name, and the number of updates."""
        with self.lock:
            return {
                "step": self.step,
                "averages": {name: a.copy() for name, a in self.averages.items()},
            }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copy averages and the number of updates from a state dict.

        Raises
        ------
        TypeError, ValueError
            If it doesn't fit; nothing is changed then.
        """
        with self.lock:
            self.take(*self.check_state_dict(state_dict))

    def take(self, step: int, averages: Mapping[Name, Array]) -> None:
        """Copy in what `check_state_dict` returned."""
        for name, a in self.averages.items():
            a[...] = averages[name]
        self.steps[...] = step

    def check_state_dict(self, state_dict: object) -> tuple[int, dict[Name, Array]]:
        """The number of updates of a state dict, and copies of its averages.

        Raises
        ------
        TypeError, ValueError
            If they don't fit this EMA.
        """
        if not isinstance(state_dict, Mapping) or not {"step", "averages"} <= set(state_dict):
            raise ValueError("state_dict: expected a dict with 'step' and 'averages'")
        step = domains.nonnegative(state_dict["step"], "step")
        if step != int(step) or step >= 2**53:
            raise ValueError(f"step: expected an integer from 0 to 2^53, found {step}")
        saved = state_dict["averages"]
        if not isinstance(saved, Mapping) or set(saved) != set(self.averages):
            raise ValueError(
                f"averages: expected a dict of {list(self.averages)}, found {shown(saved)}"
            )
        checked = {
            name: checks.check_values(saved[name], a, f"averages[{name!r}]").copy()
            for name, a in self.averages.items()
        }
        return int(step), checked
