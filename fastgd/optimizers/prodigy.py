"""Prodigy: Adam that finds its learning rate by itself."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import (
    flag,
    nonnegative,
    positive,
    some_fraction,
    two_fractions,
    unlimited,
)
from fastgd.core.optimizer import Optimizer
from fastgd.kernels._engine import raised
from fastgd.kernels.spec.registry import (
    Array,
    FullWidth,
    Read,
    Scalar,
    Shared,
    Squares,
    Total,
    rule,
    sets,
)


class Prodigy(Optimizer):
    r"""Adam whose step size grows to the distance between the first parameters and the best ones.

    With :math:`D_t = \alpha d_{t-1}`, where α is the learning rate,

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) d_{t-1} g_t, &
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) d_{t-1}^2 g_t^2, \\
        N_t &= \beta_3 N_{t-1} + \tfrac{d_{t-1}}{d_0} D_t \langle g_t, W_0 - W_{t-1} \rangle, &
        s_t &= \beta_3 s_{t-1} + \tfrac{d_{t-1}}{d_0} D_t g_t, \\
        d_t &= \max(d_{t-1}, c N_t / \|s_t\|_1), &
        W_t &= W_{t-1} - D_t \big(m_t / (\sqrt{v_t} + d_t \epsilon) + \lambda W_{t-1}\big)

    The scalar product and the norm are those of all parameters together, and so is d, the estimate
    of the distance: ``opt.state[name]["d"]`` is the same for every name.  A step at which all of s
    is 0 leaves parameters and d as they are.

    Parameters
    ----------
    params, maximize, **options
        As for `SGD`.  W₀ is a state, ``"p0"``, which a ``state_dtype`` leaves as it is unless it
        names it.
    lr : float
        α, a factor of the step size that was found: 1, or a schedule that ends lower.  Groups in
        which it is 0 stand still, and have no part in d; all others must have the same.
    betas : (float, float)
        β₁ and β₂.
    beta3 : float, optional
        β₃; by default √β₂.
    eps : float
        ε, above 0.
    weight_decay : float
        λ.
    decouple : bool
        Whether weight decay bypasses the gradient; else it is L2.
    use_bias_correction : bool
        Whether α is multiplied by Adam's √(1 − β₂ᵗ) / (1 − β₁ᵗ).
    safeguard_warmup : bool
        Leave α out of what s sums up, which a warm-up of the learning rate makes too small.
    d0 : float
        What d starts from, when the optimizer is made: later changes don't move d.
    d_coef : float
        c, by which the estimate is multiplied: what to tune, between ½ and 2.
    growth_rate : float
        How many times as large d may become in one step.

    Raises
    ------
    ValueError
        From a step, if groups differ in more than ``weight_decay``, ``decouple``, ``eps``,
        ``maximize`` and clipping.

    Notes
    -----
    W₀ is what a parameter was when it took its first step.  Steps, which the correction of α and
    schedules depend on, are counted for each parameter.

    References
    ----------
    Mishchenko and Defazio, "Prodigy: an expeditiously adaptive parameter-free learner", 2023.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.full(3, 5.0)
    >>> opt = fastgd.Prodigy(W)
    >>> for _ in range(200):
    ...     _ = opt.step(2 * W)
    >>> bool(abs(W).max() < 0.5), bool(opt.state[0]["d"] > 0.1)
    (True, True)
    """

    year = 2023
    own_decay = True
    shared = ("lr", "betas", "beta3", "use_bias_correction", "safeguard_warmup", "d0", "d_coef",
              "growth_rate")  # fmt: skip
    lr = hyper(nonnegative, 1.0)
    betas = hyper(two_fractions, (0.9, 0.999))
    beta3 = hyper(some_fraction, None)
    eps = hyper(positive, 1e-8)
    weight_decay = hyper(nonnegative, 0.0)
    decouple = hyper(flag, True)
    use_bias_correction = hyper(flag, False)
    safeguard_warmup = hyper(flag, False)
    d0 = hyper(positive, 1e-6)
    d_coef = hyper(positive, 1.0)
    growth_rate = hyper(unlimited, float("inf"))

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "prodigy"

    @staticmethod
    def initial(h: Hyper) -> Mapping[str, float]:
        return {"d": h["d0"], "d_max": h["d0"]}

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        beta1, beta2 = h["betas"]
        last = sqrt(beta2) if h["beta3"] is None else h["beta3"]
        root = sqrt(1.0 - raised(beta2, t)) if h["use_bias_correction"] else 1.0
        alpha = h["lr"] * root / (1.0 - raised(beta1, t) if h["use_bias_correction"] else 1.0)
        frozen = alpha == 0.0
        return (
            0.0 if h["decouple"] else h["weight_decay"],
            1.0 if frozen else beta1,
            1.0 if frozen else beta2,
            1.0 if frozen else last,
            0.0 if frozen else 1.0,
            1.0 if t == 1 else 0.0,
            h["d0"],
            alpha,
            1.0 if h["safeguard_warmup"] and not frozen else alpha,
            last,
            h["d_coef"],
            1.0 / h["growth_rate"],
            h["eps"],
            h["weight_decay"] if h["decouple"] else 0.0,
        )


# ---------------------------------------------------------------------------------------- the rule


@sets("gamma1", "gamma2", "sigma", "tau")
def prodigy_begin(
    d: Shared, *, beta1: Scalar, beta2: Scalar, d0: Scalar, lr: Scalar, weight: Scalar
) -> tuple[Scalar, ...]:
    """What d weighs gradients by; where a group is frozen, β = 1 and both weights are 0."""
    ratio = d / d0
    return d * (1.0 - beta1), d * d * (1.0 - beta2), ratio * d * weight, ratio * d * lr


def prodigy_before(
    p: Array,
    g: Array,
    exp_avg: Array,
    exp_avg_sq: Squares,
    grad_sum: Array,
    p0: FullWidth,
    *,
    l2: Scalar,
    beta1: Scalar,
    gamma1: Scalar,
    beta2: Scalar,
    gamma2: Scalar,
    beta_s: Scalar,
    sigma: Scalar,
    tau: Scalar,
    omega: Scalar,
    first: Scalar,
) -> tuple[Array, Array]:
    """p₀ ← p at the first step; m ← β₁m + γ₁r; v ← β₂v + γ₂r²; s ← β₃s + σr, r = g + λp.

    Returns τr(p₀ − p), and |s|, or where a group is frozen 0.  γ₁ = (1 − β₁)d; γ₂ = (1 − β₂)d².
    """
    m, v, s, r = exp_avg, exp_avg_sq, grad_sum, g + l2 * p
    p0[...] = p if first != 0 else p0
    m[...] = beta1 * m + gamma1 * r
    v[...] = beta2 * v + gamma2 * (r * r)
    s[...] = beta_s * s + sigma * r
    return tau * r * (p0 - p), omega * np.abs(s)


@sets("d", "d_max", "d_numerator", "alpha", "eps")
def prodigy_settle(
    d: Shared,
    d_max: Shared,
    d_numerator: Shared,
    product: Total,
    norm: Total,
    *,
    beta3: Scalar,
    d0: Scalar,
    d_coef: Scalar,
    hold: Scalar,
    lr: Scalar,
    relative_eps: Scalar,
) -> tuple[Scalar, ...]:
    """N ← β₃N + ⟨τr, p₀ − p⟩; d ← cN/‖s‖₁, if that is more; all as it was where s is 0."""
    moved = norm != 0.0
    numerator = beta3 * d_numerator + product if moved else d_numerator
    found = d_coef * numerator / norm if moved else d
    start = found if d == d0 and found > d else d
    most = d_max if found <= d_max else found  # NaN stays NaN
    grown = start / hold
    following = grown if grown < most else most
    settled = following if moved else d
    return (
        settled,
        most if moved else d_max,
        numerator,
        lr * d if moved else 0.0,
        relative_eps * settled,
    )


@rule(before=prodigy_before, begin=prodigy_begin, settle=prodigy_settle)
def prodigy(
    p: Array,
    exp_avg: Read,
    exp_avg_sq: Read,
    *,
    weight_decay: Scalar,
    alpha: Scalar,
    eps: Scalar,
) -> None:
    """p ← p − α (m / (√v + ε) + λp), α and ε by d (Mishchenko and Defazio, 2023)."""
    m, v = exp_avg, exp_avg_sq
    p[...] = p - alpha * (m / (np.sqrt(v) + eps) + weight_decay * p)
