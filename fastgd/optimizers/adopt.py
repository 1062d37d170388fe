"""ADOPT: Adam that converges with any β₂, by dividing each gradient by what came before it."""

from __future__ import annotations

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import flag, nonnegative, some_fraction, two_fractions
from fastgd.core.optimizer import Optimizer
from fastgd.kernels._engine import raised
from fastgd.kernels.spec.registry import Array, Scalar, Squares, at_least, at_most, rule


class ADOPT(Optimizer):
    r"""Momentum of gradients that are divided by the second moment of the steps before.

    .. math::
        v_0 &= g_0^2, \\
        u_t &= \operatorname{clip}\big(g_t / \max(\sqrt{v_{t-1}}, \epsilon), \pm t^c\big), &
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) u_t, \\
        W_t &= W_{t-1} - \alpha m_t, &
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2

    The first step, here that of t = 0, fills v alone: parameters stay as they are.

    Use it in the place of Adam where β₂ can't be tuned, as it converges with any.

    Parameters
    ----------
    params, lr, weight_decay, maximize, **options
        As for `SGD`.
    betas : (float, float)
        β₁ and β₂.
    eps : float
        The least that gradients are divided by.
    decouple : bool
        Whether weight decay is that of `AdamW`, from the second step on; else an L2 penalty.
    clip_exp : float or None
        c, how the bound of u grows with the steps, from 0 to below 1; None for no bound.

    References
    ----------
    Taniguchi et al., "ADOPT: modified Adam can converge with any β₂ with the optimal rate", 2024.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.ones(2)
    >>> opt = fastgd.ADOPT(W, lr=0.1, betas=(0.0, 0.99))
    >>> for _ in range(2):
    ...     record = opt.step(np.array([2.0, -3.0]))
    ...     print(W)
    [1. 1.]
    [0.9 1.1]
    """

    year = 2024
    own_decay = True
    lr = hyper(nonnegative, 1e-3)
    betas = hyper(two_fractions, (0.9, 0.9999))
    eps = hyper(nonnegative, 1e-6)
    weight_decay = hyper(nonnegative, 0.0)
    decouple = hyper(flag, False)
    clip_exp = hyper(some_fraction, 0.25, keyword=True)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "adopt"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        beta1, beta2 = h["betas"]
        power = 0.0 if h["clip_exp"] is None else h["clip_exp"]
        return (
            h["lr"],
            beta1,
            1.0 - beta1,
            0.0 if t == 1 else beta2,
            1.0 if t == 1 else 1.0 - beta2,
            h["eps"],
            # Nothing in float32 or float64 is larger.
            1.7976931348623157e308 if h["clip_exp"] is None else raised(t - 1.0, power),
            0.0 if h["decouple"] else h["weight_decay"],
            1.0 - h["lr"] * h["weight_decay"] if h["decouple"] else 1.0,
            1.0 if t == 1 else 0.0,
        )


# ---------------------------------------------------------------------------------------- the rule


@rule(by_rows="makes its states of the first gradient, for all rows at once")
def adopt(
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
    bound: Scalar,
    l2: Scalar,
    shrink: Scalar,
    first: Scalar,
) -> None:
    """m ← β₁m + γ₁ clip(g / max(√v, ε)); p ← p − αm; v ← β₂v + γ₂g² (Taniguchi et al., 2024).

    γ = 1 − β.  At the first step v ← g², and m and p stay.  Weight decay is either l2, which is
    added to g, or what p shrinks by.
    """
    m, v = exp_avg, exp_avg_sq
    d = g + l2 * p
    u = at_most(at_least(d / at_least(np.sqrt(v), eps), -bound), bound)
    m[...] = m if first != 0 else beta1 * m + gamma1 * u
    v[...] = beta2 * v + gamma2 * (d * d)
    p[...] = p if first != 0 else shrink * p - alpha * m
