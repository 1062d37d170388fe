"""AdaMax: Adam by the largest gradient of late instead of the root of averaged squares."""

from __future__ import annotations

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import nonnegative, two_fractions
from fastgd.core.optimizer import Optimizer
from fastgd.kernels._engine import raised
from fastgd.kernels.spec.registry import Array, Scalar, Squares, larger, rule


class Adamax(Optimizer):
    r"""Adam whose steps are divided by a decaying maximum of gradients.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, &
        u_t &= \max(\beta_2 u_{t-1}, |g_t| + \epsilon), \\
        W_t &= W_{t-1} - \frac{\alpha}{1 - \beta_1^t} \frac{m_t}{u_t}

    Use it where gradients are sparse or now and then huge: no step is longer than about α, and one
    outlier is forgotten at a known pace.

    Parameters
    ----------
    params, lr, weight_decay, maximize, **options
        As for `SGD`.
    betas : (float, float)
        β₁ and β₂.
    eps : float
        Added to each gradient's magnitude, as torch does.

    References
    ----------
    Kingma and Ba, "Adam: a method for stochastic optimization", 2015, section 7.1.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.ones(2)
    >>> _ = fastgd.Adamax(W, lr=0.1).step(np.array([1.0, -100.0]))
    >>> W.round(6)
    array([0.9, 1.1])
    """

    year = 2015
    lr = hyper(nonnegative, 2e-3)
    betas = hyper(two_fractions, (0.9, 0.999))
    eps = hyper(nonnegative, 1e-8)
    weight_decay = hyper(nonnegative, 0.0)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "adamax"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        beta1, beta2 = h["betas"]
        return h["lr"] / (1.0 - raised(beta1, t)), beta1, 1.0 - beta1, beta2, h["eps"]


# ---------------------------------------------------------------------------------------- the rule


@rule
def adamax(
    p: Array,
    g: Array,
    exp_avg: Array,
    exp_inf: Squares,
    *,
    alpha: Scalar,
    beta1: Scalar,
    gamma1: Scalar,
    beta2: Scalar,
    eps: Scalar,
) -> None:
    """m ← β₁m + γ₁g; u ← max(β₂u, |g| + ε); p ← p − αm / u (Kingma and Ba, 2015).

    γ₁ = 1 − β₁.  α carries the bias correction of the step; NaN is larger than any number.
    """
    m, u = exp_avg, exp_inf
    m[...] = beta1 * m + gamma1 * g
    u[...] = larger(beta2 * u, np.abs(g) + eps)
    p[...] = p - alpha * m / u
