"""Adadelta: steps in the units of the parameters, without a learning rate to find."""

from __future__ import annotations

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import fraction, nonnegative
from fastgd.core.optimizer import Optimizer
from fastgd.kernels.spec.registry import Array, Scalar, Squares, rule


class Adadelta(Optimizer):
    r"""Steps as long as the steps before them, by the ratio of two running averages.

    .. math::
        v_t &= \rho v_{t-1} + (1 - \rho) g_t^2, &
        \Delta_t &= \frac{\sqrt{u_{t-1} + \epsilon}}{\sqrt{v_t + \epsilon}} g_t, \\
        u_t &= \rho u_{t-1} + (1 - \rho) \Delta_t^2, &
        W_t &= W_{t-1} - \alpha \Delta_t

    Use it where scales of gradients differ widely and no learning rate is known: α stays 1.  Its
    first steps are of about :math:`\sqrt\epsilon`, so that a larger ε starts faster.

    Parameters
    ----------
    params, lr, weight_decay, maximize, **options
        As for `SGD`; a factor of the step here.
    rho : float
        ρ, the weight of the past in both averages.
    eps : float
        Added inside both roots.

    References
    ----------
    Zeiler, "ADADELTA: an adaptive learning rate method", 2012.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.ones(2)
    >>> _ = fastgd.Adadelta(W, rho=0.5, eps=1e-2).step(np.array([1.0, 100.0]))
    >>> W.round(3)  # nearly alike, whatever the scale
    array([0.86 , 0.859])
    """

    year = 2012
    lr = hyper(nonnegative, 1.0)
    rho = hyper(fraction, 0.9)
    eps = hyper(nonnegative, 1e-6)
    weight_decay = hyper(nonnegative, 0.0)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "adadelta"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        return h["lr"], h["rho"], 1.0 - h["rho"], h["eps"]


# ---------------------------------------------------------------------------------------- the rule


@rule(catch_up="linear without L2 decay")
def adadelta(
    p: Array,
    g: Array,
    square_avg: Squares,
    acc_delta: Squares,
    *,
    alpha: Scalar,
    beta: Scalar,
    gamma: Scalar,
    eps: Scalar,
) -> None:
    """v ← βv + γg²; Δ = √(u + ε)/√(v + ε) g; u ← βu + γΔ²; p ← p − αΔ (Zeiler, 2012).

    β is ρ, γ = 1 − β.
    """
    v, u = square_avg, acc_delta
    v[...] = beta * v + gamma * (g * g)
    delta = np.sqrt(u + eps) / np.sqrt(v + eps) * g
    u[...] = beta * u + gamma * (delta * delta)
    p[...] = p - alpha * delta
