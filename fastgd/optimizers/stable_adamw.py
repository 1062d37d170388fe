"""StableAdamW: AdamW whose steps are clipped by how far gradients outgrow their second moment."""

from __future__ import annotations

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import nonnegative, two_fractions
from fastgd.core.optimizer import Optimizer
from fastgd.kernels._engine import raised
from fastgd.kernels.spec.registry import (
    Array,
    Read,
    Scalar,
    Size,
    Squares,
    Sum,
    Unread,
    at_least,
    rule,
    sets,
)


class StableAdamW(Optimizer):
    r"""AdamW with Adafactor's clipping: a spike in a tensor's gradient shortens its step.

    .. math::
        \hat\beta &= (\beta^t - \beta) / (\beta^t - 1), \\
        m_t &= \hat\beta_1 m_{t-1} + (1 - \hat\beta_1) g_t, &
        v_t &= \hat\beta_2 v_{t-1} + (1 - \hat\beta_2) g_t^2, \\
        q_t &= \operatorname{mean}\big(g_t^2 / \max(v_t, \epsilon^2)\big), &
        \alpha_t &= \alpha / \max(1, \sqrt{q_t}), \\
        W_t &= (1 - \alpha_t \lambda) W_{t-1} - \alpha_t m_t / (\sqrt{v_t} + \epsilon)

    The mean is each tensor's own; where it is NaN the step is not shortened.  m and v are free of
    bias by themselves, as their weights of the past grow from 0.

    Use it for transformers in the place of AdamW and gradient clipping: losses don't spike.

    Parameters
    ----------
    params, lr, maximize, **options
        As for `SGD`.
    betas : (float, float)
        β₁ and β₂.
    eps : float
        Added to the root; its square is the least that squares are divided by.
    weight_decay : float
        λ, by the shortened learning rate.

    References
    ----------
    Wortsman et al., "Stable and low-precision training for large-scale vision-language models",
    2023.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.zeros(2)
    >>> opt = fastgd.StableAdamW(W, lr=0.1, betas=(0.0, 0.99))
    >>> for g in (1.0, 100.0):
    ...     _ = opt.step(np.full(2, g))
    ...     print(W.round(3))
    [-0.1 -0.1]
    [-0.2 -0.2]
    """

    year = 2023
    own_decay = True
    lr = hyper(nonnegative, 1e-3)
    betas = hyper(two_fractions, (0.9, 0.99))
    weight_decay = hyper(nonnegative, 1e-2)
    eps = hyper(nonnegative, 1e-6)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "stable_adamw"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        beta1, beta2 = h["betas"]
        correction1 = 1.0 - raised(beta1, t)
        correction2 = 1.0 - raised(beta2, t)
        square = h["eps"] * h["eps"]
        return (
            (beta1 - raised(beta1, t)) / correction1,
            (1.0 - beta1) / correction1,
            (beta2 - raised(beta2, t)) / correction2,
            (1.0 - beta2) / correction2,
            square if square > 1.2e-38 else 1.2e-38,  # a normal number in float32, too
            h["lr"],
            h["weight_decay"],
            h["eps"],
        )


# ---------------------------------------------------------------------------------------- the rule


def stable_adamw_before(
    p: Unread,
    g: Array,
    exp_avg: Array,
    exp_avg_sq: Squares,
    *,
    beta1: Scalar,
    gamma1: Scalar,
    beta2: Scalar,
    gamma2: Scalar,
    least: Scalar,
) -> tuple[Array]:
    """m ← β₁m + γ₁g; v ← β₂v + γ₂g²; returns g² / max(v, ε²).

    γ = 1 − β, of the β of this step.
    """
    m, v = exp_avg, exp_avg_sq
    square = g * g
    m[...] = beta1 * m + gamma1 * g
    v[...] = beta2 * v + gamma2 * square
    return (square / at_least(v, least),)


@sets("alpha", "shrink")
def stable_adamw_settle(
    growth: Sum, size: Size, *, lr: Scalar, weight_decay: Scalar
) -> tuple[Scalar, Scalar]:
    """α = lr / max(1, the root of the mean growth), and 1 − αλ."""
    rms = np.sqrt(growth / size)
    alpha = lr / rms if rms > 1.0 else lr
    return alpha, 1.0 - alpha * weight_decay


@rule(before=stable_adamw_before, settle=stable_adamw_settle)
def stable_adamw(
    p: Array,
    exp_avg: Read,
    exp_avg_sq: Read,
    *,
    eps: Scalar,
    alpha: Scalar,
    shrink: Scalar,
) -> None:
    """p ← (1 − αλ)p − αm / (√v + ε), α by how much g² outgrows v (Wortsman et al., 2023)."""
    m, v = exp_avg, exp_avg_sq
    p[...] = shrink * p - alpha * m / (np.sqrt(v) + eps)
