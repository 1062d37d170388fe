"""LAMB: Adam whose step is as long as a part of its parameter."""

from __future__ import annotations

from math import sqrt

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import flag, nonnegative, two_fractions
from fastgd.core.optimizer import Optimizer
from fastgd.kernels._engine import raised
from fastgd.kernels.spec.registry import (
    Array,
    Read,
    Scalar,
    Squares,
    SumOfSquares,
    rule,
    sets,
)


class LAMB(Optimizer):
    r"""Adam's step, scaled to the norm of the parameter it changes: for large batches.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, &
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \\
        u_t &= \hat m_t / (\sqrt{\hat v_t} + \epsilon) + \lambda W_{t-1}, &
        W_t &= W_{t-1} - \alpha \frac{\|W_{t-1}\|}{\|u_t\|} u_t

    with :math:`\hat m_t = m_t / (1 - \beta_1^t)` and :math:`\hat v_t = v_t / (1 - \beta_2^t)`.  The
    ratio of the norms, which are each parameter's own, is 1 where one of them is 0.

    Parameters
    ----------
    params, lr, maximize, **options
        As for `SGD`.  The clipping of the gradients' norm to 1 that some implementations do
        is ``clip_norm=1.0``.
    betas : (float, float)
        β₁ and β₂.
    eps : float
        Added to the corrected root.
    weight_decay : float
        λ, which is part of the step whose norm is taken.
    bias_correction : bool
        Whether m and v are corrected; else they are taken as they are.
    trust_clip : bool
        Let the ratio of the norms be at most 1 (LAMBC).
    always_adapt : bool
        Take the ratio also where λ is 0, as the paper does; False is what timm and NVIDIA do.
    cautious : bool
        Take Adam's part of u only where momentum and gradient agree, and more of it there, as
        `Adam` does; the decay acts everywhere.

    References
    ----------
    You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", 2020.
    Liang et al., "Cautious optimizers: improving training with one line of code", 2024 (cautious).

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.full(4, 2.0)
    >>> opt = fastgd.LAMB(W, lr=0.1, weight_decay=0.0)
    >>> _ = opt.step(np.ones(4))
    >>> W.round(6)  # ‖W‖ = 4: the step is a tenth of that
    array([1.8, 1.8, 1.8, 1.8])
    """

    year = 2020
    own_decay = True
    lr = hyper(nonnegative, 1e-3)
    betas = hyper(two_fractions, (0.9, 0.999))
    eps = hyper(nonnegative, 1e-6)
    weight_decay = hyper(nonnegative, 1e-2)
    bias_correction = hyper(flag, True, keyword=True)
    trust_clip = hyper(flag, False, keyword=True)
    always_adapt = hyper(flag, True, keyword=True)
    cautious = hyper(flag, False, keyword=True)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "cautious_lamb" if h["cautious"] else "lamb"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        beta1, beta2 = h["betas"]
        decay = h["weight_decay"]
        correction1 = 1.0 - raised(beta1, t) if h["bias_correction"] else 1.0
        root = sqrt(1.0 - raised(beta2, t)) if h["bias_correction"] else 1.0
        # As Adam's: m̂/(√v̂ + ε) = √c₂/c₁ · m/(√v + √c₂ε).
        return (
            beta1,
            1.0 - beta1,
            beta2,
            1.0 - beta2,
            root / correction1,
            h["eps"] * root,
            decay,
            h["lr"],
            1.0 if h["always_adapt"] or decay != 0.0 else 0.0,
            1.0 if h["trust_clip"] else 0.0,
        )


# ---------------------------------------------------------------------------------------- the rule


def lamb_before(
    p: Array,
    g: Array,
    exp_avg: Array,
    exp_avg_sq: Squares,
    *,
    beta1: Scalar,
    gamma1: Scalar,
    beta2: Scalar,
    gamma2: Scalar,
    mu: Scalar,
    eps: Scalar,
    weight_decay: Scalar,
) -> tuple[Array, Array]:
    """m ← β₁m + γ₁g; v ← β₂v + γ₂g²; returns u = μm / (√v + ε) + λp, and p.

    γ = 1 − β.  μ and ε carry the bias corrections of the step.
    """
    m, v = exp_avg, exp_avg_sq
    m[...] = beta1 * m + gamma1 * g
    v[...] = beta2 * v + gamma2 * (g * g)
    return mu * m / (np.sqrt(v) + eps) + weight_decay * p, p


@sets("alpha")
def lamb_settle(
    update: SumOfSquares, param: SumOfSquares, *, lr: Scalar, adapt: Scalar, clip: Scalar
) -> tuple[Scalar]:
    """α = lr‖p‖/‖u‖, and lr where a norm is 0."""
    ratio = np.sqrt(param) / np.sqrt(update) if param > 0.0 and update > 0.0 else 1.0
    bounded = 1.0 if clip != 0.0 and ratio > 1.0 else ratio
    return (lr * bounded if adapt != 0.0 else lr,)


@rule(before=lamb_before, settle=lamb_settle)
def lamb(
    p: Array,
    exp_avg: Read,
    exp_avg_sq: Read,
    *,
    mu: Scalar,
    eps: Scalar,
    weight_decay: Scalar,
    alpha: Scalar,
) -> None:
    """p ← p − α (μm / (√v + ε) + λp), α by ‖p‖ (You et al., 2020)."""
    m, v = exp_avg, exp_avg_sq
    p[...] = p - alpha * (mu * m / (np.sqrt(v) + eps) + weight_decay * p)
