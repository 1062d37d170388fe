r"""Schedules: hyper-parameters that change from step to step.

A schedule is a callable from the step, counted from 0, to the value that this step uses: any
function will do, and this module has the usual ones.  It goes wherever a number would, for any
numeric hyper-parameter of any optimizer, in the constructor, in a group, and later on:

>>> import numpy as np, fastgd
>>> from fastgd.schedules import Cosine, Warmup
>>> w = np.zeros(1)
>>> opt = fastgd.Adam(w, lr=Warmup(10, Cosine(0.1, 90)), betas=(lambda step: 0.8, 0.999))
>>> for _ in range(10):
...     _ = opt.step(np.ones(1))
>>> opt.lr  # that of the next step
0.1
>>> opt.param_groups[0]["weight_decay"] = fastgd.schedules.Step(0.1, step_size=30)

Only the step goes in, so the step counts of a `state_dict` are all it takes to resume, given an
optimizer that was made with the same schedules.  Each parameter's own count decides, as it does for
the bias correction: a parameter whose gradient was None for a while is that far behind.

The classes here are immutable, compare by their arguments, and pickle.  They give values, not
factors, so that one serves for a learning rate and for a momentum alike; arguments that
torch.optim.lr_scheduler has go by its names, and the values equal its, but for the last digits:
here they have the same bits on every machine.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import sqrt

from fastgd.core.domains import flag, nonnegative, number, one_of, positive
from fastgd.kernels._engine import cospi, raised
from fastgd.schedules.base import (
    Constant,
    Interpolated,
    Piecewise,
    Product,
    Schedule,
    Sequential,
    Warmup,
    at_least,
    line,
    milestones_of,
)

__all__ = [
    "Constant",
    "Cosine",
    "CosineRestarts",
    "Exponential",
    "Interpolated",
    "InverseSqrt",
    "Linear",
    "MultiStep",
    "OneCycle",
    "Piecewise",
    "Polynomial",
    "Product",
    "Schedule",
    "Sequential",
    "Step",
    "Warmup",
]


def _half_wave(start: float, end: float, share: float) -> float:
    """Cosine annealing: from start to end along half a period of the cosine, exact at both."""
    return line(start, end, (1.0 - cospi(share)) / 2.0)


@dataclass(frozen=True)
class Step(Schedule):
    r"""Decay every k steps: :math:`a_t = a \gamma^{\lfloor t / k \rfloor}`; torch's StepLR.

    Parameters
    ----------
    initial : float
        a.
    step_size : int
        k.
    gamma : float
        γ.

    Examples
    --------
    >>> [Step(1.0, step_size=2, gamma=0.5)(t) for t in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    initial: float
    step_size: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        self._clean(initial=number, step_size=at_least(1), gamma=number)

    def value(self, step: int) -> float:
        return self.initial * raised(self.gamma, step // self.step_size)


@dataclass(frozen=True)
class MultiStep(Schedule):
    r"""Decay at milestones: :math:`a_t = a \gamma^{k}` past k of them; torch's MultiStepLR.

    Parameters
    ----------
    initial : float
        a.
    milestones : sequence of int
        The first steps with a new value, in rising order.
    gamma : float
        γ.
    """

    initial: float
    milestones: tuple[int, ...]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        self._clean(initial=number, milestones=milestones_of, gamma=number)

    def value(self, step: int) -> float:
        return self.initial * raised(self.gamma, bisect_right(self.milestones, step))


@dataclass(frozen=True)
class Exponential(Schedule):
    r"""Exponential decay: :math:`a_t = a \gamma^t`; torch's ExponentialLR.

    Parameters
    ----------
    initial : float
        a.
    gamma : float
        γ.
    """

    initial: float
    gamma: float

    def __post_init__(self) -> None:
        self._clean(initial=number, gamma=number)

    def value(self, step: int) -> float:
        return self.initial * raised(self.gamma, step)


@dataclass(frozen=True)
class Polynomial(Schedule):
    r"""Polynomial decay: :math:`a_t = e + (a - e)(1 - \min(t, T) / T)^p`; torch's PolynomialLR.

    Parameters
    ----------
    initial : float
        a.
    total_iters : int
        T.
    power : float
        p.
    end : float
        e, which is 0 in torch.
    """

    initial: float
    total_iters: int
    power: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        self._clean(initial=number, total_iters=at_least(1), power=positive, end=number)

    def value(self, step: int) -> float:
        rest = 1.0 - min(step, self.total_iters) / self.total_iters
        return line(self.end, self.initial, raised(rest, self.power))


@dataclass(frozen=True)
class Linear(Schedule):
    r"""Linear, then constant: :math:`a_t = a + (e - a) \min(t, T) / T`; torch's LinearLR.

    Parameters
    ----------
    initial, end : float
        a and e.
    total_iters : int
        T.
    """

    initial: float
    end: float
    total_iters: int

    def __post_init__(self) -> None:
        self._clean(initial=number, end=number, total_iters=at_least(1))

    def value(self, step: int) -> float:
        return line(self.initial, self.end, min(step, self.total_iters) / self.total_iters)


@dataclass(frozen=True)
class Cosine(Schedule):
    r"""Cosine annealing: :math:`a_t = e + (a - e)(1 + \cos \pi t / T) / 2`, e from step T on.

    torch's CosineAnnealingLR, except that torch's rises again after T.

    Parameters
    ----------
    initial : float
        a.
    T_max : int
        T.
    eta_min : float
        e.

    References
    ----------
    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017.
    """

    initial: float
    T_max: int
    eta_min: float = 0.0

    def __post_init__(self) -> None:
        self._clean(initial=number, T_max=at_least(1), eta_min=number)

    def value(self, step: int) -> float:
        return _half_wave(self.initial, self.eta_min, min(step, self.T_max) / self.T_max)


@dataclass(frozen=True)
class CosineRestarts(Schedule):
    """Cosine annealing with warm restarts; torch's CosineAnnealingWarmRestarts.

    Parameters
    ----------
    initial : float
        The first value of each cycle.
    T_0 : int
        The steps of the first cycle.
    T_mult : int
        The factor by which each cycle is longer than the one before.
    eta_min : float
        The value that each cycle approaches.

    References
    ----------
    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017.
    """

    initial: float
    T_0: int
    T_mult: int = 1
    eta_min: float = 0.0

    def __post_init__(self) -> None:
        self._clean(initial=number, T_0=at_least(1), T_mult=at_least(1), eta_min=number)

    def value(self, step: int) -> float:
        length = self.T_0
        if self.T_mult == 1:
            step %= length
        # In integers: torch's logarithm may round into the wrong cycle.
        while step >= length:
            step -= length
            length *= self.T_mult
        return _half_wave(self.initial, self.eta_min, step / length)


@dataclass(frozen=True)
class InverseSqrt(Schedule):
    r"""Linear warm-up, then decay by the inverse root: with the step s = t + 1 counted from 1,

    .. math:: a_t = a \min(s / T, \sqrt{T / s}).

    Parameters
    ----------
    initial : float
        a, the peak.
    total_iters : int
        T, the steps of the warm-up; 1 for none.

    References
    ----------
    Vaswani et al., "Attention is all you need", 2017; there :math:`a = (d T)^{-1/2}`.
    """

    initial: float
    total_iters: int

    def __post_init__(self) -> None:
        self._clean(initial=number, total_iters=at_least(1))

    def value(self, step: int) -> float:
        s = step + 1
        return self.initial * min(s / self.total_iters, sqrt(self.total_iters / s))


@dataclass(frozen=True)
class OneCycle(Schedule):
    """The 1cycle policy: up to a peak, and down to a fraction of the start; torch's OneCycleLR.

    For the momentum that torch cycles the other way, from 0.95 to 0.85 and back:
    ``OneCycle(0.85, steps, div_factor=0.85 / 0.95, final_div_factor=1.0)``.

    Parameters
    ----------
    peak : float
        The largest value, torch's max_lr.
    total_steps : int
        The number of steps of the cycle; from there on the last value holds, where torch raises.
    pct_start : float
        The share of the steps that lead to the peak, minus one step, as in torch; at most 1.
    anneal_strategy : {"cos", "linear"}
        Whether to interpolate by cosines or linearly.
    div_factor : float
        The peak divided by the first value.
    final_div_factor : float
        The first value divided by the last.
    three_phase : bool
        Go down to the first value in as many steps as up, and then to the last; `pct_start` is at
        most 0.5 then.  Otherwise go down from the peak to the last value directly.

    References
    ----------
    Smith and Topin, "Super-convergence: very fast training of neural networks using large learning
    rates", 2018.
    """

    peak: float
    total_steps: int
    pct_start: float = 0.3
    anneal_strategy: str = "cos"
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    three_phase: bool = False

    def __post_init__(self) -> None:
        self._clean(peak=number, total_steps=at_least(1), pct_start=nonnegative)
        self._clean(div_factor=positive, final_div_factor=positive, three_phase=flag)
        most = 0.5 if self.three_phase else 1.0
        if self.pct_start > most:
            raise ValueError(f"pct_start: expected at most {most}, found {self.pct_start}")
        self._clean(anneal_strategy=partial(one_of, ("cos", "linear")))

    def value(self, step: int) -> float:
        last = self.total_steps - 1
        first = self.peak / self.div_factor
        end = first / self.final_div_factor
        top = self.pct_start * self.total_steps - 1.0
        points = [(0.0, first), (top, self.peak), (last, end)]
        if self.three_phase:
            points.insert(2, (2.0 * top, first))
        step = min(step, last)
        (a, start), (b, stop) = next(pair for pair in pairwise(points) if step <= pair[1][0])
        share = (step - a) / (b - a) if b > a else 1.0
        return (line if self.anneal_strategy == "linear" else _half_wave)(start, stop, share)
