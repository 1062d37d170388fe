"""Lion: steps of one size along the sign of a momentum."""

from __future__ import annotations

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import flag, nonnegative, two_fractions
from fastgd.core.optimizer import Optimizer
from fastgd.kernels.spec.registry import Array, Scalar, rule


class Lion(Optimizer):
    r"""Steps of one size along the sign of a momentum: Adam's results with one state, in less time.

    .. math::
        W_t &= (1 - \alpha \lambda) W_{t-1}
        - \alpha \operatorname{sign}(\beta_1 m_{t-1} + (1 - \beta_1) g_t), \\
        m_t &= \beta_2 m_{t-1} + (1 - \beta_2) g_t

    Use it for large batches, where memory for Adam's second state is wanted: with a learning rate 3
    to 10 times smaller than Adam's, and a weight decay as many times larger.

    Parameters
    ----------
    params, lr, maximize, **options
        As for `SGD`.
    betas : (float, float)
        β₁, what the momentum weighs in the direction, and β₂, what it keeps.
    weight_decay : float
        λ, which bypasses the gradient.
    cautious : bool
        Step only where the direction and the gradient agree, and there further by as much, as
        `Adam` does.

    Notes
    -----
    sign(0) is 0, and sign(NaN) is NaN: a NaN in a gradient reaches its parameter, where torch's
    sign on CPUs hides it until the next step.

    References
    ----------
    Chen et al., "Symbolic discovery of optimization algorithms", 2023.
    Liang et al., "Cautious optimizers: improving training with one line of code", 2024 (cautious).

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.zeros(3)
    >>> _ = fastgd.Lion(W, lr=0.5).step(np.array([1e-3, 0.0, -100.0]))
    >>> W
    array([-0.5,  0. ,  0.5])
    """

    year = 2023
    decoupled = True
    lr = hyper(nonnegative, 1e-4)
    betas = hyper(two_fractions, (0.9, 0.99))
    weight_decay = hyper(nonnegative, 0.0)
    cautious = hyper(flag, False, keyword=True)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "cautious_lion" if h["cautious"] else "lion"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        beta1, beta2 = h["betas"]
        return h["lr"], beta1, 1.0 - beta1, beta2, 1.0 - beta2


# ---------------------------------------------------------------------------------------- the rule


@rule(catch_up="signs")
def lion(
    p: Array,
    g: Array,
    exp_avg: Array,
    *,
    alpha: Scalar,
    beta1: Scalar,
    gamma1: Scalar,
    beta2: Scalar,
    gamma2: Scalar,
) -> None:
    """p ← p − α sign(β₁m + γ₁g), by the old m; m ← β₂m + γ₂g (Chen et al., 2023).  γ = 1 − β."""
    m = exp_avg
    p[...] = p - alpha * np.sign(beta1 * m + gamma1 * g)
    m[...] = beta2 * m + gamma2 * g
