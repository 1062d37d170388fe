"""RAdam: Adam that trusts its second moment only once there is enough of it."""

from __future__ import annotations

from math import sqrt

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import flag, nonnegative, two_fractions
from fastgd.core.optimizer import Optimizer
from fastgd.kernels._engine import raised
from fastgd.kernels.spec.registry import Array, Scalar, Squares, rule


class RAdam(Optimizer):
    r"""Adam whose first steps are momentum's, and whose later ones are rectified: no warm-up.

    .. math::
        \rho_\infty &= \frac{2}{1 - \beta_2} - 1, \qquad
        \rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t}, \\
        r_t &= \sqrt{\frac{(\rho_t - 4)(\rho_t - 2) \rho_\infty}
        {(\rho_\infty - 4)(\rho_\infty - 2) \rho_t}}, \\
        W_t &= W_{t-1} - \alpha \hat m_t \, r_t
        \frac{\sqrt{1 - \beta_2^t}}{\sqrt{v_t} + \epsilon}
        \text{ if } \rho_t > 5, \text{ else } W_{t-1} - \alpha \hat m_t

    with :math:`m_t, v_t` and :math:`\hat m_t` as in `Adam`.  ε is added before the bias of the root
    is corrected, as torch does.

    Use it in the place of Adam where a warm-up of the learning rate would have to be found.

    Parameters
    ----------
    params, lr, weight_decay, maximize, **options
        As for `SGD`.
    betas : (float, float)
        β₁ and β₂.  At the default β₂ the first five steps are momentum's, with a β₂ of up to 2/3
        all are.
    eps : float
        Added to the root.
    decoupled_weight_decay : bool
        Whether weight decay is that of `AdamW`.

    References
    ----------
    Liu et al., "On the variance of the adaptive learning rate and beyond", 2020.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.ones(2)
    >>> _ = fastgd.RAdam(W, lr=0.1).step(np.array([1.0, 2.0]))
    >>> W.round(6)
    array([0.9, 0.8])
    """

    year = 2020
    lr = hyper(nonnegative, 1e-3)
    betas = hyper(two_fractions, (0.9, 0.999))
    eps = hyper(nonnegative, 1e-8)
    weight_decay = hyper(nonnegative, 0.0)
    decoupled_weight_decay = hyper(flag, False)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "radam"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        beta1, beta2 = h["betas"]
        power = raised(beta2, t)
        alpha = h["lr"] / (1.0 - raised(beta1, t))
        most = 2.0 / (1.0 - beta2) - 1.0
        rho = most - 2.0 * t * power / (1.0 - power)
        if rho > 5.0:
            kept = (rho - 4.0) * (rho - 2.0) * most / ((most - 4.0) * (most - 2.0) * rho)
            rectified = sqrt(kept * (1.0 - power))
            adapt = 1.0
        else:
            rectified = 1.0
            adapt = 0.0
        return alpha * rectified, beta1, 1.0 - beta1, beta2, 1.0 - beta2, h["eps"], adapt


# ---------------------------------------------------------------------------------------- the rule


@rule
def radam(
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
    adapt: Scalar,
) -> None:
    """m ← β₁m + γ₁g; v ← β₂v + γ₂g²; p ← p − αm / (√v + ε), or p − αm (Liu et al., 2020).

    γ = 1 − β.  α carries the corrections of the step; `adapt` is 0 where v doesn't count yet.
    """
    m, v = exp_avg, exp_avg_sq
    m[...] = beta1 * m + gamma1 * g
    v[...] = beta2 * v + gamma2 * (g * g)
    p[...] = p - alpha * m / (np.sqrt(v) + eps if adapt != 0 else p.dtype.type(1))
