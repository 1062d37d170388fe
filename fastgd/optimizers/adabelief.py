"""AdaBelief: Adam by how far gradients are from what was expected."""

from __future__ import annotations

from math import sqrt

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import flag, nonnegative, two_fractions
from fastgd.core.optimizer import Optimizer
from fastgd.kernels._engine import raised
from fastgd.kernels.spec.registry import Array, Scalar, Squares, rule


class AdaBelief(Optimizer):
    r"""Adam divided by the root of squared surprises: gradients less their average.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \\
        s_t &= \beta_2 s_{t-1} + (1 - \beta_2) (g_t - m_t)^2 + \epsilon, \\
        W_t &= W_{t-1} - \alpha \hat m_t / (\sqrt{\hat s_t} + \epsilon)

    with :math:`\hat m_t = m_t / (1 - \beta_1^t)` and :math:`\hat s_t = s_t / (1 - \beta_2^t)`.
    ``rectify`` takes the last line of `RAdam` instead, by s for v.

    Use it where Adam learns fast and generalises badly: it takes long steps where gradients agree,
    and short ones where they don't.

    Parameters
    ----------
    params, lr, weight_decay, maximize, **options
        As for `SGD`.
    betas : (float, float)
        β₁ and β₂.
    eps : float
        Added to s at each step, where it piles up to ε/(1 − β₂), and to the root.
    rectify : bool
        Rectify the first steps as `RAdam` does, as the authors' package does by default; the paper
        does not.
    decoupled_weight_decay : bool
        Whether weight decay is that of `AdamW`; else an L2 penalty.

    References
    ----------
    Zhuang et al., "AdaBelief optimizer: adapting stepsizes by the belief in observed gradients",
    2020.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.zeros(1)
    >>> opt = fastgd.AdaBelief(W, lr=0.01, betas=(0.9, 0.99), rectify=False)
    >>> for t in range(20):
    ...     _ = opt.step(np.array([1.0 + 0.1 * (t % 2)]))
    >>> W.round(2)  # Adam would be at -0.2, whatever the gradients' agreement
    array([-0.34])
    """

    year = 2020
    lr = hyper(nonnegative, 1e-3)
    betas = hyper(two_fractions, (0.9, 0.999))
    eps = hyper(nonnegative, 1e-16)
    weight_decay = hyper(nonnegative, 0.0)
    rectify = hyper(flag, True)
    decoupled_weight_decay = hyper(flag, True, keyword=True)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "adabelief"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        beta1, beta2 = h["betas"]
        power = raised(beta2, t)
        alpha = h["lr"] / (1.0 - raised(beta1, t))
        most = 2.0 / (1.0 - beta2) - 1.0
        rho = most - 2.0 * t * power / (1.0 - power)
        if not h["rectify"]:
            # As Adam's: m̂/(√ŝ + ε) = √c₂/c₁ · m/(√s + √c₂ε).
            factor = sqrt(1.0 - power)
            added = h["eps"] * factor
            adapt = 1.0
        elif rho >= 5.0:
            kept = (rho - 4.0) * (rho - 2.0) * most / ((most - 4.0) * (most - 2.0) * rho)
            factor = sqrt(kept * (1.0 - power))
            added = h["eps"]
            adapt = 1.0
        else:
            factor = 1.0
            added = h["eps"]
            adapt = 0.0
        return alpha * factor, beta1, 1.0 - beta1, beta2, 1.0 - beta2, h["eps"], added, adapt


# ---------------------------------------------------------------------------------------- the rule


@rule
def adabelief(
    p: Array,
    g: Array,
    exp_avg: Array,
    exp_avg_var: Squares,
    *,
    alpha: Scalar,
    beta1: Scalar,
    gamma1: Scalar,
    beta2: Scalar,
    gamma2: Scalar,
    least: Scalar,
    eps: Scalar,
    adapt: Scalar,
) -> None:
    """m ← β₁m + γ₁g; s ← β₂s + γ₂(g − m)² + ε; p ← p − αm/(√s + ε) (Zhuang et al., 2020).

    γ = 1 − β.  The ε within s is `least`.  α and the other ε carry the corrections of the step;
    `adapt` is 0 where s doesn't count yet, and steps are p − αm.
    """
    m, s = exp_avg, exp_avg_var
    m[...] = beta1 * m + gamma1 * g
    surprise = g - m
    s[...] = beta2 * s + gamma2 * (surprise * surprise) + least
    p[...] = p - alpha * m / (np.sqrt(s) + eps if adapt != 0 else p.dtype.type(1))
