"""NovoGrad: momentum of gradients that are divided by the norm of their tensor."""

from __future__ import annotations

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import flag, nonnegative, two_fractions
from fastgd.core.optimizer import Optimizer
from fastgd.kernels.spec.registry import (
    Array,
    Number,
    Scalar,
    SumOfSquares,
    Unread,
    rule,
    sets,
)


class NovoGrad(Optimizer):
    r"""Momentum of gradients divided by an averaged norm, one of each parameter: Adam by layers.

    .. math::
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) \|g_t\|^2, \quad v_1 = \|g_1\|^2, \qquad
        m_t = \beta_1 m_{t-1} + \frac{g_t}{\sqrt{v_t} + \epsilon} + \lambda W_{t-1}, \qquad
        W_t = W_{t-1} - \alpha m_t

    Use it for large models whose second state of Adam's doesn't fit into memory: v is one number
    for each parameter.

    Parameters
    ----------
    params, lr, maximize, **options
        As for `SGD`.
    betas : (float, float)
        β₁ and β₂: the defaults are those of NVIDIA's code, which the paper's experiments use.
    eps : float
        ε.
    weight_decay : float
        λ, which goes into m.
    grad_averaging : bool
        Multiply what is added to m by 1 − β₁.

    Notes
    -----
    As in NVIDIA's code, v starts anew whenever it is 0, as long as all gradients were.

    References
    ----------
    Ginsburg et al., "Stochastic gradient methods with layer-wise adaptive moments for training of
    deep networks", 2019.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.zeros(2)
    >>> opt = fastgd.NovoGrad(W, lr=1.0)
    >>> _ = opt.step(np.array([3.0, 4.0]))
    >>> W.round(6), float(opt.state[0]["exp_avg_sq"])
    (array([-0.6, -0.8]), 25.0)
    """

    year = 2019
    own_decay = True
    lr = hyper(nonnegative, 1e-3)
    betas = hyper(two_fractions, (0.95, 0.98))
    eps = hyper(nonnegative, 1e-8)
    weight_decay = hyper(nonnegative, 0.0)
    grad_averaging = hyper(flag, False)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "novograd"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        beta1, beta2 = h["betas"]
        gamma = 1.0 - beta1 if h["grad_averaging"] else 1.0
        return beta2, gamma, h["eps"], h["lr"], beta1, gamma * h["weight_decay"]


# ---------------------------------------------------------------------------------------- the rule


def novograd_before(p: Unread, g: Array) -> tuple[Array]:
    """Only the norm of g is wanted."""
    return (g,)


@sets("exp_avg_sq", "q")
def novograd_settle(
    exp_avg_sq: Number, grad: SumOfSquares, *, beta2: Scalar, gamma: Scalar, eps: Scalar
) -> tuple[Scalar, Scalar]:
    """v ← β₂v + (1 − β₂)‖g‖², or ‖g‖² where v is 0; q = γ/(√v + ε), or 0 where v is."""
    v = beta2 * exp_avg_sq + (1.0 - beta2) * grad if exp_avg_sq != 0.0 else grad
    return v, gamma / (np.sqrt(v) + eps) if v != 0.0 else 0.0


@rule(before=novograd_before, settle=novograd_settle)
def novograd(
    p: Array,
    g: Array,
    exp_avg: Array,
    *,
    alpha: Scalar,
    beta1: Scalar,
    weight_decay: Scalar,
    q: Scalar,
) -> None:
    """m ← β₁m + (qg + λp); p ← p − αm, q by ‖g‖ (Ginsburg et al., 2019)."""
    m = exp_avg
    m[...] = beta1 * m + (q * g + weight_decay * p)
    p[...] = p - alpha * m
