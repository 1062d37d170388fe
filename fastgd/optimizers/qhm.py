"""Quasi-hyperbolic momentum: plain and momentum steps, mixed; and the same of Adam."""

from __future__ import annotations

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import flag, fraction, nonnegative, share, two_fractions, two_shares
from fastgd.core.optimizer import Optimizer
from fastgd.kernels._engine import raised
from fastgd.kernels.spec.registry import Array, Scalar, Squares, rule, weighed


class QHM(Optimizer):
    r"""Plain and momentum steps, mixed: Nesterov's are among these, and those of many others.

    .. math::
        m_t = \beta m_{t-1} + (1 - \beta) g_t, \qquad
        W_t = W_{t-1} - \alpha \big((1 - \nu) g_t + \nu m_t\big)

    Use it in the place of momentum where a long memory, β = 0.999, would overshoot by itself.

    Parameters
    ----------
    params, lr, weight_decay, maximize, **options
        As for `SGD`.
    momentum : float
        β.
    nu : float
        ν, what momentum weighs, from 0 to 1.
    decoupled_weight_decay : bool
        Whether weight decay bypasses the gradient, as in `AdamW`: the author's
        ``weight_decay_type="direct"``.

    References
    ----------
    Ma and Yarats, "Quasi-hyperbolic momentum and Adam for deep learning", 2019.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.zeros(1)
    >>> _ = fastgd.QHM(W, lr=1.0, momentum=0.9, nu=0.5).step(np.ones(1))
    >>> W
    array([-0.55])
    """

    year = 2019
    lr = hyper(nonnegative, 1.0)
    momentum = hyper(fraction, 0.999)
    nu = hyper(share, 0.7)
    weight_decay = hyper(nonnegative, 0.0)
    decoupled_weight_decay = hyper(flag, False)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "qhm"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        beta, nu = h["momentum"], h["nu"]
        return beta, 1.0 - beta, h["lr"] * (1.0 - nu), h["lr"] * nu


class QHAdam(Optimizer):
    r"""Adam, whose numerator and denominator each mix in the gradient of the step itself.

    .. math::
        W_t = W_{t-1} - \alpha \frac{(1 - \nu_1) g_t + \nu_1 \hat m_t}
        {\sqrt{(1 - \nu_2) g_t^2 + \nu_2 \hat v_t} + \epsilon}

    with :math:`\hat m_t` and :math:`\hat v_t` as in `Adam`, which are what the states hold here.
    Use it in Adam's place where that is unstable: ν₁ = 0.7 and ν₂ = 1 need no more tuning.

    Parameters
    ----------
    params, lr, maximize, **options
        As for `SGD`.
    betas : (float, float)
        β₁ and β₂.
    nus : (float, float)
        ν₁ and ν₂, each from 0 to 1; with both 1 this is Adam.
    weight_decay : float
        λ.
    decoupled_weight_decay : bool
        Whether weight decay is that of `AdamW`: the author's ``decouple_weight_decay``.
    eps : float
        Added to the root.

    References
    ----------
    Ma and Yarats, "Quasi-hyperbolic momentum and Adam for deep learning", 2019.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.zeros(1)
    >>> _ = fastgd.QHAdam(W, lr=0.5, nus=(0.7, 1.0)).step(np.ones(1))
    >>> W.round(6)
    array([-0.5])
    """

    year = 2019
    lr = hyper(nonnegative, 1e-3)
    betas = hyper(two_fractions, (0.9, 0.999))
    nus = hyper(two_shares, (1.0, 1.0))
    weight_decay = hyper(nonnegative, 0.0)
    decoupled_weight_decay = hyper(flag, False)
    eps = hyper(nonnegative, 1e-8)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "qhadam"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        beta1, beta2 = h["betas"]
        nu1, nu2 = h["nus"]
        # The averages of t gradients with weights βˢ, which have no bias.
        gamma1 = (1.0 - beta1) / (1.0 - raised(beta1, t))
        gamma2 = (1.0 - beta2) / (1.0 - raised(beta2, t))
        return (
            1.0 - gamma1,
            gamma1,
            1.0 - gamma2,
            gamma2,
            h["lr"] * (1.0 - nu1),
            h["lr"] * nu1,
            1.0 - nu2,
            nu2,
            h["eps"],
        )


# --------------------------------------------------------------------------------------- the rules


@rule(catch_up="linear")
def qhm(
    p: Array,
    g: Array,
    momentum_buffer: Array,
    *,
    beta: Scalar,
    gamma: Scalar,
    alpha_g: Scalar,
    alpha_m: Scalar,
) -> None:
    """m ← βm + γg; p ← p − (α_g g + α_m m) (Ma and Yarats, 2019).

    γ = 1 − β; α_g = α(1 − ν), α_m = αν.
    """
    m = momentum_buffer
    m[...] = beta * m + gamma * g
    p[...] = p - (alpha_g * g + alpha_m * m)


@rule
def qhadam(
    p: Array,
    g: Array,
    exp_avg: Array,
    exp_avg_sq: Squares,
    *,
    beta1: Scalar,
    gamma1: Scalar,
    beta2: Scalar,
    gamma2: Scalar,
    alpha_g: Scalar,
    alpha_m: Scalar,
    nu_g: Scalar,
    nu_v: Scalar,
    eps: Scalar,
) -> None:
    """m ← β₁m + γ₁g; v ← β₂v + γ₂g²; p ← p − (α_g g + α_m m) / (√(ν_g g² + ν_v v) + ε).

    Ma and Yarats, 2019.  γ = 1 − β; β follows from the step, so that m and v have no bias.
    """
    m, v, square = exp_avg, exp_avg_sq, g * g
    m[...] = beta1 * m + gamma1 * g
    v[...] = beta2 * v + gamma2 * square
    mixed = weighed(nu_g, square) + weighed(nu_v, v)
    p[...] = p - (alpha_g * g + alpha_m * m) / (np.sqrt(mixed) + eps)
