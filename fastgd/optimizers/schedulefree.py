"""Schedule-free optimizers: an average of the iterates in the place of a falling learning rate."""

from __future__ import annotations

from math import sqrt

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import flag, nonnegative, proper_fraction, proper_fractions, start
from fastgd.core.optimizer import Optimizer
from fastgd.kernels._engine import logarithm, raised
from fastgd.kernels.spec.registry import Array, FullWidth, Number, Scalar, Squares, rule, sets


class SGDScheduleFree(Optimizer):
    r"""Gradient descent without a schedule: gradients are taken near the average of its iterates.

    .. math::
        z_t &= z_{t-1} - \alpha_t g_t, &
        x_t &= (1 - c_t) x_{t-1} + c_t z_t, &
        y_t &= (1 - \beta) z_t + \beta x_t, \\
        w_t &= t^r \max_{s \le t} \alpha_s^p, &
        c_t &= w_t / \textstyle\sum_{s \le t} w_s, &
        \alpha_t &= \alpha \min(1, t / \text{warmup\_steps})

    The parameters hold y, at which gradients are to be taken; what was learned is x.  Evaluate it
    within ``with opt.average.swapped():``, which puts x in the place of the parameters for the
    time of the block.  Use it in the place of SGD with a schedule, if the length of a training
    isn't known beforehand: with a larger learning rate, of 1 to 10.

    Parameters
    ----------
    params, weight_decay, maximize, **options
        As for `SGD`.  With the option ``average``, ``opt.average`` is that of y, and not x.
    lr : float
        α.
    momentum : float
        β, above 0 and below 1; no schedule, and not to be changed between the steps.
    warmup_steps : float
        The number of steps in which the learning rate grows to α; 0 for none.
    r : float
        What the weight of a step grows with: the larger, the less the first steps count for.
    weight_lr_power : float
        p, by which learning rates weigh while they grow.

    Notes
    -----
    Steps and weights are counted for each parameter, where the authors' package counts for each
    group: without a gradient, a parameter's average goes on as if the step had not been.

    z keeps the parameter's full width whatever ``state_dtype`` says, unless it names ``"z"``.
    ``weight_max`` is the largest αᵖ so far.

    In `fastgd.torch` there are also ``opt.eval()`` and ``opt.train()``, which change the parameters
    from y to x and back by the formula, up to rounding, without memory for a copy.

    References
    ----------
    Defazio et al., "The road less scheduled", 2024.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.array([1.0])
    >>> opt = fastgd.SGDScheduleFree(W, lr=0.5)
    >>> for _ in range(3):
    ...     _ = opt.step(W.copy())
    >>> with opt.average.swapped():
    ...     print(W.round(3))
    [0.273]
    >>> W.round(3)
    array([0.253])
    """

    year = 2024
    lr = hyper(nonnegative, 1.0)
    momentum = hyper(proper_fraction, 0.9)
    weight_decay = hyper(nonnegative, 0.0)
    warmup_steps = hyper(start, 0.0)
    r = hyper(nonnegative, 0.0)
    weight_lr_power = hyper(nonnegative, 2.0)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "sgd_schedule_free"

    @staticmethod
    def toward(h: Hyper) -> tuple[str, float]:
        return "z", 1.0 - 1.0 / h["momentum"]

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        power, r = h["weight_lr_power"], h["r"]
        alpha = h["lr"] * (t / h["warmup_steps"] if t < h["warmup_steps"] else 1.0)
        return (
            alpha,
            h["momentum"],
            # No power overflows: weights beyond 10¹⁵⁰ count as that.
            raised(alpha, power) if alpha <= 1.0 or power * logarithm(alpha) < 345.0 else 1e150,
            raised(t, r) if r * logarithm(t) < 345.0 else 1e150,
            1.0 if t == 1 else 0.0,
        )


class AdamWScheduleFree(Optimizer):
    r"""AdamW without a schedule: gradients are taken near the average of its iterates.

    As `SGDScheduleFree`, with

    .. math::
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \qquad
        z_t = z_{t-1} - \alpha_t \Big(\frac{g_t}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}
        + \lambda y_{t-1}\Big)

    and β₁ for β.  Use it in the place of AdamW with a schedule, if the length of a training isn't
    known beforehand.

    Parameters
    ----------
    params, warmup_steps, r, weight_lr_power, maximize, **options
        As for `SGDScheduleFree`.
    lr : float
        α: 1 to 10 times AdamW's.
    betas : (float, float)
        β₁, above 0, and β₂; no schedule, and β₁ not to be changed between the steps.
    eps : float
        Added to the corrected root.
    weight_decay : float
        λ, which bypasses the average of squares.

    References
    ----------
    Defazio et al., "The road less scheduled", 2024.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.array([1.0])
    >>> opt = fastgd.AdamWScheduleFree(W, lr=0.1)
    >>> for _ in range(3):
    ...     _ = opt.step(W.copy())
    >>> with opt.average.swapped():
    ...     print(W.round(3))
    [0.806]
    """

    year = 2024
    own_decay = True
    lr = hyper(nonnegative, 2.5e-3)
    betas = hyper(proper_fractions, (0.9, 0.999))
    eps = hyper(nonnegative, 1e-8)
    weight_decay = hyper(nonnegative, 0.0)
    warmup_steps = hyper(start, 0.0)
    r = hyper(nonnegative, 0.0)
    weight_lr_power = hyper(nonnegative, 2.0)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "adamw_schedule_free"

    @staticmethod
    def toward(h: Hyper) -> tuple[str, float]:
        return "z", 1.0 - 1.0 / h["betas"][0]

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        power, r = h["weight_lr_power"], h["r"]
        beta1, beta2 = h["betas"]
        alpha = h["lr"] * (t / h["warmup_steps"] if t < h["warmup_steps"] else 1.0)
        root = sqrt(1.0 - raised(beta2, t))
        return (
            alpha,
            beta1,
            # No power overflows: weights beyond 10¹⁵⁰ count as that.
            raised(alpha, power) if alpha <= 1.0 or power * logarithm(alpha) < 345.0 else 1e150,
            raised(t, r) if r * logarithm(t) < 345.0 else 1e150,
            1.0 if t == 1 else 0.0,
            beta2,
            1.0 - beta2,
            1.0,
            root,
            h["eps"] * root,
            h["weight_decay"],
        )


class RAdamScheduleFree(Optimizer):
    r"""RAdam without a schedule, and without a warm-up to set: its first steps are rectified.

    As `AdamWScheduleFree`, with :math:`\alpha_t = \alpha r_t`, where

    .. math::
        \rho_\infty = \frac{2}{1 - \beta_2} - 1, \quad
        \rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t}, \quad
        r_t = \sqrt{\frac{(\rho_t - 4)(\rho_t - 2) \rho_\infty}
        {(\rho_\infty - 4)(\rho_\infty - 2) \rho_t}}

    if :math:`\rho_t > 4`, which with the defaults it is from the fifth step on.  Use it in the
    place of `AdamWScheduleFree` where a warm-up would have to be tuned.

    Parameters
    ----------
    params, lr, betas, eps, weight_decay, r, weight_lr_power, maximize, **options
        As for `AdamWScheduleFree`.
    silent_sgd_phase : bool
        Stand still, but for v, until ρₜ > 4; else step along gradients as they are.  With a β₂ of
        at most 0.6 that is for good.

    References
    ----------
    Defazio et al., "The road less scheduled", 2024.
    Liu et al., "On the variance of the adaptive learning rate and beyond", 2020.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.array([1.0])
    >>> opt = fastgd.RAdamScheduleFree(W, lr=0.5)
    >>> for _ in range(4):
    ...     _ = opt.step(W.copy())
    >>> bool(W[0] == 1.0)  # it has stood still so far
    True
    """

    year = 2024
    own_decay = True
    lr = hyper(nonnegative, 2.5e-3)
    betas = hyper(proper_fractions, (0.9, 0.999))
    eps = hyper(nonnegative, 1e-8)
    weight_decay = hyper(nonnegative, 0.0)
    r = hyper(nonnegative, 0.0)
    weight_lr_power = hyper(nonnegative, 2.0)
    silent_sgd_phase = hyper(flag, True)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "adamw_schedule_free"

    @staticmethod
    def toward(h: Hyper) -> tuple[str, float]:
        return "z", 1.0 - 1.0 / h["betas"][0]

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        power, r = h["weight_lr_power"], h["r"]
        beta1, beta2 = h["betas"]
        correction = 1.0 - raised(beta2, t)
        limit = 2.0 / (1.0 - beta2) - 1.0
        length = limit - 2.0 * t * raised(beta2, t) / correction
        if length > 4.0:
            grows = (length - 4.0) * (length - 2.0) * limit
            rate = sqrt(grows / ((limit - 4.0) * (limit - 2.0) * length))
            adaptive = 1.0
        else:
            rate = 0.0 if h["silent_sgd_phase"] else 1.0
            adaptive = 0.0
        alpha = h["lr"] * rate
        root = sqrt(correction)
        return (
            alpha,
            beta1,
            # No power overflows: weights beyond 10¹⁵⁰ count as that.
            raised(alpha, power) if alpha <= 1.0 or power * logarithm(alpha) < 345.0 else 1e150,
            raised(t, r) if r * logarithm(t) < 345.0 else 1e150,
            1.0 if t == 1 else 0.0,
            beta2,
            1.0 - beta2,
            adaptive,
            root,
            h["eps"] * root,
            h["weight_decay"],
        )


# --------------------------------------------------------------------------------------- the rules


@sets("weight_sum", "weight_max", "part", "kappa")
def schedule_free_begin(
    weight_sum: Number, weight_max: Number, *, lr: Scalar, beta: Scalar, weight: Scalar,
    growth: Scalar,
) -> tuple[Scalar, ...]:  # fmt: skip
    """w = tʳ max αᵖ; c = w/Σw, 0 as long as all were 0; κ = α(1 − β(1 − c))."""
    largest = weight if weight > weight_max else weight_max
    w = growth * largest
    total = weight_sum + w
    share = w / total if total != 0.0 else 0.0
    return total, largest, share, lr * (1.0 - beta * (1.0 - share))


@rule(begin=schedule_free_begin, by_rows="moves every row towards its average")
def sgd_schedule_free(
    p: Array,
    g: Array,
    z: FullWidth,
    *,
    lr: Scalar,
    first: Scalar,
    part: Scalar,
    kappa: Scalar,
) -> None:
    """p ← p + c(z − p) − κg, by the old z; z ← z − αg (Defazio et al., 2024).

    p is y; `part` is c.  z ← p at the first step.
    """
    z[...] = p if first != 0 else z
    p[...] = p + part * (z - p) - kappa * g
    z[...] = z - lr * g


@rule(begin=schedule_free_begin, by_rows="moves every row towards its average")
def adamw_schedule_free(
    p: Array,
    g: Array,
    z: FullWidth,
    exp_avg_sq: Squares,
    *,
    lr: Scalar,
    first: Scalar,
    beta2: Scalar,
    gamma2: Scalar,
    adaptive: Scalar,
    correction: Scalar,
    eps: Scalar,
    weight_decay: Scalar,
    part: Scalar,
    kappa: Scalar,
) -> None:
    """v ← β₂v + γ₂g²; p ← p + c(z − p) − κd, by the old z; z ← z − αd; d = g'/(√v + ε) + λp.

    Defazio et al., 2024.  p is y; `part` is c.  z ← p at the first step.  γ = 1 − β.  g' is g times
    the root of the correction, as is ε; where nothing is adapted yet, d = g + λp.
    """
    v = exp_avg_sq
    z[...] = p if first != 0 else z
    v[...] = beta2 * v + gamma2 * (g * g)
    d = (correction * g / (np.sqrt(v) + eps) if adaptive != 0 else g) + weight_decay * p
    p[...] = p + part * (z - p) - kappa * d
    z[...] = z - lr * d
