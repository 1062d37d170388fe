"""SignSGD: steps of one size along the sign of the gradient; with momentum, Signum."""

from __future__ import annotations

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import flag, fraction, nonnegative
from fastgd.core.optimizer import Optimizer
from fastgd.kernels.spec.registry import Array, Scalar, rule


class SignSGD(Optimizer):
    r"""Steps of one size along the sign of the gradient, or with momentum of its average (Signum).

    .. math::
        W_t = (1 - \alpha \lambda) W_{t-1} - \alpha \operatorname{sign}(g_t)

    or, with momentum, :math:`- \alpha \operatorname{sign}(m_t)`, where
    :math:`m_t = \beta m_{t-1} + (1 - \beta) g_t`.

    Use it where not even one state fits into memory, or gradients are of very different sizes.

    Parameters
    ----------
    params, lr, maximize, **options
        As for `SGD`.
    momentum : float
        β.  With 0 there is no average; with a schedule there always is one.
    weight_decay : float
        λ.
    decoupled_weight_decay : bool
        Whether weight decay bypasses the gradient; else λW is added to it, and to m.

    Notes
    -----
    sign(0) is 0, and sign(NaN) is NaN.

    References
    ----------
    Bernstein, Wang, Azizzadenesheli and Anandkumar, "signSGD: compressed optimisation for
    non-convex problems", 2018.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.zeros(3)
    >>> _ = fastgd.SignSGD(W, lr=0.5).step(np.array([1e-3, 0.0, -100.0]))
    >>> W
    array([-0.5,  0. ,  0.5])
    """

    year = 2018
    lr = hyper(nonnegative, 1e-3)
    momentum = hyper(fraction, 0.0)
    weight_decay = hyper(nonnegative, 0.0)
    decoupled_weight_decay = hyper(flag, True)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "sign_sgd" if h["momentum"] == 0 else "signum"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        return h["lr"], h["momentum"], 1.0 - h["momentum"]


# --------------------------------------------------------------------------------------- the rules


@rule(by_rows="exact", catch_up="linear without L2 decay")
def sign_sgd(p: Array, g: Array, *, alpha: Scalar) -> None:
    """p ← p − α sign(g) (Bernstein et al., 2018)."""
    p[...] = p - alpha * np.sign(g)


@rule(catch_up="signs")
def signum(
    p: Array, g: Array, exp_avg: Array, *, alpha: Scalar, beta: Scalar, gamma: Scalar
) -> None:
    """m ← βm + γg; p ← p − α sign(m) (Bernstein et al., 2018).  γ = 1 − β."""
    m = exp_avg
    m[...] = beta * m + gamma * g
    p[...] = p - alpha * np.sign(m)
