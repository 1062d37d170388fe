"""MADGRAD: averages of gradients from the start, divided by the cube root of their squares."""

from __future__ import annotations

from math import sqrt

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import flag, fraction, nonnegative
from fastgd.core.optimizer import Optimizer
from fastgd.kernels.spec.registry import Array, FullWidth, Scalar, cube_root, rule


class MADGRAD(Optimizer):
    r"""Steps from where training began along the sum of all gradients, by the cube root of squares.

    .. math::
        s_t &= s_{t-1} + \alpha' \sqrt{t} \, g_t, &
        \nu_t &= \nu_{t-1} + \alpha' \sqrt{t} \, g_t^2, \\
        z_t &= W_0 - s_t / (\sqrt[3]{\nu_t} + \epsilon), &
        W_t &= \mu W_{t-1} + (1 - \mu) z_t

    with :math:`\alpha' = \alpha + \epsilon`, or 0 where α is 0.  Use it where Adam generalizes
    worse than SGD: it wants another learning rate than either, and little weight decay or none.

    Parameters
    ----------
    params, lr, maximize, **options
        As for `SGD`.
    momentum : float
        μ.
    weight_decay : float
        λ.
    eps : float
        ε; where gradients are tiny, 0 converges better.
    decouple_decay : bool
        Whether :math:`\alpha' \lambda W_{t-1}` is subtracted; else λW is added to the gradient.
        Excludes a momentum of 0, with which nothing of W stays from step to step.

    Notes
    -----
    W₀ is what a parameter was at its first step.  It, s and ν, from which W is made anew at each
    step, keep the parameter's full width whatever ``state_dtype`` says, unless it names ``"x0"``,
    ``"grad_sum"`` or ``"grad_sum_sq"``.  The cube root is worked out by arithmetic, with the
    same bits everywhere.
    Steps are counted for each parameter.

    References
    ----------
    Defazio and Jelassi, "Adaptivity without compromise: a momentumized, adaptive, dual averaged
    gradient method for stochastic optimization", 2021.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.ones(2)
    >>> opt = fastgd.MADGRAD(W, lr=0.1)
    >>> for _ in range(100):
    ...     _ = opt.step(2 * W)
    >>> bool(abs(W).max() < 0.1)
    True
    """

    year = 2021
    own_decay = True
    remade = True
    lr = hyper(nonnegative, 1e-2)
    momentum = hyper(fraction, 0.9)
    weight_decay = hyper(nonnegative, 0.0)
    eps = hyper(nonnegative, 1e-6)
    decouple_decay = hyper(flag, False)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "madgrad"

    @staticmethod
    def consistent(h: Hyper) -> None:
        if h["decouple_decay"] and h["momentum"] == 0:
            raise ValueError("decouple_decay: excludes a momentum of 0")

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        rate = h["lr"] + h["eps"] if h["lr"] != 0.0 else 0.0
        return (
            1.0 if t == 1 else 0.0,
            0.0 if h["decouple_decay"] else h["weight_decay"],
            rate * sqrt(t),
            h["eps"],
            h["momentum"] - (rate * h["weight_decay"] if h["decouple_decay"] else 0.0),
            1.0 - h["momentum"],
        )


# ---------------------------------------------------------------------------------------- the rule


@rule(by_rows="keeps what parameters were at the first step, for all rows at once")
def madgrad(
    p: Array,
    g: Array,
    grad_sum_sq: FullWidth,
    grad_sum: FullWidth,
    x0: FullWidth,
    *,
    first: Scalar,
    l2: Scalar,
    alpha: Scalar,
    eps: Scalar,
    mu: Scalar,
    gamma: Scalar,
) -> None:
    """s ← s + αr; ν ← ν + αr²; p ← μp + γ(x₀ − s / (∛ν + ε)), r = g + λp.

    Defazio and Jelassi, 2021.  x₀ ← p at the first step; α grows with √t; γ = 1 − μ, but
    for what decoupled decay takes off μ.  Where 0 would be divided by 0, x₀ is aimed at.
    """
    nu, s, r = grad_sum_sq, grad_sum, g + l2 * p
    x0[...] = p if first != 0 else x0
    s[...] = s + alpha * r
    nu[...] = nu + alpha * (r * r)
    scale = cube_root(nu) + eps
    moved = np.where(scale == 0, scale, s / scale)
    p[...] = mu * p + gamma * (x0 - moved)
