"""LaProp: momentum of gradients that were divided by their root mean square beforehand."""

from __future__ import annotations

from math import sqrt

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import flag, nonnegative, two_fractions
from fastgd.core.optimizer import Optimizer
from fastgd.kernels._engine import raised
from fastgd.kernels.spec.registry import Array, Scalar, Squares, rule


class LaProp(Optimizer):
    r"""Adam with its two parts apart: gradients are scaled first, and averaged then.

    .. math::
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, &
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) \frac{g_t}{\sqrt{\hat v_t} + \epsilon}, \\
        W_t &= W_{t-1} - \alpha \hat m_t

    with :math:`\hat m_t = m_t / (1 - \beta_1^t)` and :math:`\hat v_t = v_t / (1 - \beta_2^t)`.

    Use it where Adam is unstable: no β₁ and β₂ exclude each other, and one huge gradient makes no
    step longer than others.

    Parameters
    ----------
    params, lr, maximize, **options
        As for `SGD`.  With a constant learning rate the steps are those of the authors' code, which
        has α within m.
    betas : (float, float)
        β₁ and β₂.
    eps : float
        Added to the corrected root.
    weight_decay : float
        λ of the decay of `AdamW`: W ← (1 − αλ)W comes first.
    cautious : bool
        Step only where momentum and gradient agree, and there further by as much, as `Adam` does.

    References
    ----------
    Ziyin, Wang and Ueda, "LaProp: separating momentum and adaptivity in Adam", 2020.
    Liang et al., "Cautious optimizers: improving training with one line of code", 2024 (cautious).

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.ones(2)
    >>> _ = fastgd.LaProp(W, lr=0.1).step(np.array([1.0, -3.0]))
    >>> W.round(6)
    array([0.9, 1.1])
    """

    year = 2020
    decoupled = True
    lr = hyper(nonnegative, 4e-4)
    betas = hyper(two_fractions, (0.9, 0.999))
    eps = hyper(nonnegative, 1e-15)
    weight_decay = hyper(nonnegative, 0.0)
    cautious = hyper(flag, False, keyword=True)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "cautious_laprop" if h["cautious"] else "laprop"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        beta1, beta2 = h["betas"]
        root = sqrt(1.0 - raised(beta2, t))
        # 1/(√v̂ + ε) = √c₂/(√v + √c₂ε).
        return (
            h["lr"] / (1.0 - raised(beta1, t)),
            beta1,
            (1.0 - beta1) * root,
            beta2,
            1.0 - beta2,
            h["eps"] * root,
        )


# ---------------------------------------------------------------------------------------- the rule


@rule
def laprop(
    p: Array,
    g: Array,
    exp_avg: Array,
    exp_avg_sq: Squares,
    *,
    alpha: Scalar,
    beta1: Scalar,
    gamma1: Scalar,
    beta2: Scalar,
    gamma2: Scalar,
    eps: Scalar,
) -> None:
    """v ← β₂v + γ₂g²; m ← β₁m + γ₁g/(√v + ε); p ← p − αm (Ziyin, Wang and Ueda, 2020).

    γ₂ = 1 − β₂.  α, γ₁ and ε carry the bias corrections of the step.
    """
    m, v = exp_avg, exp_avg_sq
    v[...] = beta2 * v + gamma2 * (g * g)
    m[...] = beta1 * m + gamma1 * g / (np.sqrt(v) + eps)
    p[...] = p - alpha * m
