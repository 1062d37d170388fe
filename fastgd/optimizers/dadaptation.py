"""D-Adaptation: Adam that finds its learning rate by itself."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import flag, nonnegative, positive, two_fractions, unlimited
from fastgd.core.optimizer import Optimizer
from fastgd.kernels._engine import raised
from fastgd.kernels.spec.registry import Array, Read, Scalar, Shared, Squares, Total, rule, sets


class DAdaptAdam(Optimizer):
    r"""Adam whose step size grows to the distance between the first parameters and the best ones.

    With :math:`D_t = \alpha d_{t-1}`, where α is the learning rate, and
    :math:`\beta_3 = \sqrt{\beta_2}`,

    .. math::
        N_t &= \beta_3 N_{t-1} + (1 - \beta_3) D_t
        \langle g_t, s_{t-1} / (\sqrt{v_{t-1}} + \epsilon) \rangle, \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) D_t g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \\
        s_t &= \beta_3 s_{t-1} + (1 - \beta_3) D_t g_t, \qquad
        d_t = \max\Big(d_{t-1}, \frac{N_t}{(1 - \beta_3) \|s_t\|_1}\Big), \\
        W_t &= W_{t-1} - m_t / (\sqrt{v_t} + \epsilon)

    The scalar product and the norm are those of all parameters together, and so is d: see
    `Prodigy`, by the same authors, which adapts faster and is to be preferred.  Use this to go on
    with what was trained by it.

    Parameters
    ----------
    params, maximize, **options
        As for `SGD`.
    lr : float
        α, a factor of the step size that was found: 1, or a schedule that ends lower.  Groups in
        which it is 0 stand still, and have no part in d; all others must have the same.
    betas : (float, float)
        β₁ and β₂.
    eps : float
        ε, above 0.
    weight_decay : float
        λ.
    decouple : bool
        Whether :math:`\lambda D_t W_{t-1}` is subtracted; else λW is added to the gradient.
    use_bias_correction : bool
        Whether α is multiplied by Adam's √(1 − β₂ᵗ) / (1 − β₁ᵗ).
    d0 : float
        What d starts from, when the optimizer is made: later changes don't move d.
    growth_rate : float
        How many times as large d may become in one step.

    Raises
    ------
    ValueError
        From a step, if groups differ in more than ``weight_decay``, ``decouple``, ``eps``,
        ``maximize`` and clipping.

    Notes
    -----
    A step at which all of s is 0 leaves parameters and d as they are.  A gradient that never turns,
    as that of a parameter that is projected onto a bound, lets d grow without end.  Steps, which
    the correction of α and schedules depend on, are counted for each parameter.

    References
    ----------
    Defazio and Mishchenko, "Learning-rate-free learning by D-Adaptation", 2023.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.full(3, 5.0)
    >>> opt = fastgd.DAdaptAdam(W)
    >>> for _ in range(500):
    ...     _ = opt.step(2 * W)
    >>> bool(abs(W).max() < 0.5), bool(opt.state[0]["d"] > 0.01)
    (True, True)
    """

    year = 2023
    own_decay = True
    shared = ("lr", "betas", "use_bias_correction", "d0", "growth_rate")
    lr = hyper(nonnegative, 1.0)
    betas = hyper(two_fractions, (0.9, 0.999))
    eps = hyper(positive, 1e-8)
    weight_decay = hyper(nonnegative, 0.0)
    decouple = hyper(flag, False)
    use_bias_correction = hyper(flag, False)
    d0 = hyper(positive, 1e-6)
    growth_rate = hyper(unlimited, float("inf"))

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "dadapt_adam"

    @staticmethod
    def initial(h: Hyper) -> Mapping[str, float]:
        return {"d": h["d0"]}

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        beta1, beta2 = h["betas"]
        beta3 = sqrt(beta2)
        root = sqrt(1.0 - raised(beta2, t)) if h["use_bias_correction"] else 1.0
        alpha = h["lr"] * root / (1.0 - raised(beta1, t) if h["use_bias_correction"] else 1.0)
        frozen = alpha == 0.0
        return (
            0.0 if h["decouple"] else h["weight_decay"],
            1.0 if frozen else beta1,
            1.0 if frozen else beta2,
            0.0 if frozen else 1.0 - beta2,
            1.0 if frozen else beta3,
            0.0 if frozen else 1.0,
            h["eps"],
            alpha,
            beta3,
            1.0 / h["growth_rate"],
            h["weight_decay"] if h["decouple"] else 0.0,
        )


# ---------------------------------------------------------------------------------------- the rule


@sets("gamma1", "gamma_s", "tau")
def dadapt_begin(d: Shared, *, lr: Scalar, beta1: Scalar, beta_s: Scalar) -> tuple[Scalar, ...]:
    """What D weighs gradients by; all 0 where a group is frozen, as there D is 0 and β is 1."""
    step = d * lr
    return step * (1.0 - beta1), step * (1.0 - beta_s), step


def dadapt_before(
    p: Array,
    g: Array,
    exp_avg: Array,
    exp_avg_sq: Squares,
    grad_sum: Array,
    *,
    l2: Scalar,
    beta1: Scalar,
    gamma1: Scalar,
    beta2: Scalar,
    gamma2: Scalar,
    beta_s: Scalar,
    gamma_s: Scalar,
    tau: Scalar,
    omega: Scalar,
    eps: Scalar,
) -> tuple[Array, Array]:
    """m ← β₁m + γ₁r; v ← β₂v + γ₂r²; s ← β₃s + γ₃r, r = g + λp.

    Returns τr · s / (√v + ε) by the old s and v, and |s| by the new one, or 0 where a group is
    frozen.  γ₁ = (1 − β₁)D; γ₃ = (1 − β₃)D.
    """
    m, v, s, r = exp_avg, exp_avg_sq, grad_sum, g + l2 * p
    product = tau * r * (s / (np.sqrt(v) + eps))
    m[...] = beta1 * m + gamma1 * r
    v[...] = beta2 * v + gamma2 * (r * r)
    s[...] = beta_s * s + gamma_s * r
    return product, omega * np.abs(s)


@sets("d", "d_numerator", "moves", "shrink")
def dadapt_settle(
    d: Shared,
    d_numerator: Shared,
    product: Total,
    norm: Total,
    *,
    beta3: Scalar,
    hold: Scalar,
    lr: Scalar,
    omega: Scalar,
    decay: Scalar,
) -> tuple[Scalar, ...]:
    """N ← β₃N + (1 − β₃)⟨…⟩; d ← N/((1 − β₃)‖s‖₁), if that is more; as it was where s is 0."""
    moved = norm != 0.0
    numerator = beta3 * d_numerator + (1.0 - beta3) * product if moved else d_numerator
    found = numerator / ((1.0 - beta3) * norm) if moved else d
    grown = d / hold
    bounded = grown if grown < found else found  # NaN stays NaN
    return (
        d if bounded <= d else bounded,
        numerator,
        omega if moved else 0.0,
        decay * (d * lr),
    )


@rule(before=dadapt_before, begin=dadapt_begin, settle=dadapt_settle)
def dadapt_adam(
    p: Array,
    exp_avg: Read,
    exp_avg_sq: Read,
    *,
    eps: Scalar,
    moves: Scalar,
    shrink: Scalar,
) -> None:
    """p ← p − ω (m / (√v + ε) + λDp), m by d (Defazio and Mishchenko, 2023); ω is 1, or 0."""
    m, v = exp_avg, exp_avg_sq
    p[...] = p - moves * (m / (np.sqrt(v) + eps) + shrink * p)
