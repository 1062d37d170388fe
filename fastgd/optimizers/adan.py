"""Adan: Nesterov's momentum for Adam, by the differences of gradients."""

from __future__ import annotations

from math import sqrt

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import flag, nonnegative, three_fractions
from fastgd.core.optimizer import Optimizer
from fastgd.kernels._engine import raised
from fastgd.kernels.spec.registry import Array, Scalar, Squares, rule


class Adan(Optimizer):
    r"""Adam of gradients and of their differences, which say where they are going.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, &
        d_t &= \beta_2 d_{t-1} + (1 - \beta_2) (g_t - g_{t-1}), \\
        n_t &= \beta_3 n_{t-1} + (1 - \beta_3) (g_t + \beta_2 (g_t - g_{t-1}))^2, &
        W_t &= \Big(W_{t-1} - \alpha \frac{\hat m_t + \beta_2 \hat d_t}{\sqrt{\hat n_t} + \epsilon}
        \Big) / (1 + \alpha \lambda)

    where a hat corrects the bias as in `Adam`, and the first difference is 0.

    Use it for large batches and long training, whose learning rate it lets be several times
    Adam's; it keeps four states.

    Parameters
    ----------
    params, lr, maximize, **options
        As for `SGD`.  The authors' ``max_grad_norm`` is ``clip_norm``.
    betas : (float, float, float)
        β₁, β₂ and β₃: weights of the past, which the paper calls 1 − β.
    eps : float
        Added to the corrected root.
    weight_decay : float
        λ, by which parameters are divided after the step.
    no_prox : bool
        Let weight decay be that of `AdamW`: W ← (1 − αλ)W comes first.

    References
    ----------
    Xie et al., "Adan: adaptive Nesterov momentum algorithm for faster optimizing deep models",
    2022.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.ones(2)
    >>> _ = fastgd.Adan(W, lr=0.1).step(np.array([1.0, -3.0]))
    >>> W.round(6)
    array([0.9, 1.1])
    """

    year = 2022
    own_decay = True
    lr = hyper(nonnegative, 1e-3)
    betas = hyper(three_fractions, (0.98, 0.92, 0.99))
    eps = hyper(nonnegative, 1e-8)
    weight_decay = hyper(nonnegative, 0.0)
    no_prox = hyper(flag, False)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "adan"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        beta1, beta2, beta3 = h["betas"]
        decay = h["lr"] * h["weight_decay"]
        root = sqrt(1.0 - raised(beta3, t))
        # As Adam's: 1/(√n̂ + ε) = √c₃/(√n + √c₃ε).
        return (
            h["lr"] * root / (1.0 - raised(beta1, t)),
            h["lr"] * root * beta2 / (1.0 - raised(beta2, t)),
            beta1,
            1.0 - beta1,
            beta2,
            1.0 - beta2,
            beta3,
            1.0 - beta3,
            h["eps"] * root,
            1.0 - decay if h["no_prox"] else 1.0,
            1.0 if h["no_prox"] else 1.0 / (1.0 + decay),
            1.0 if t == 1 else 0.0,
        )


# ---------------------------------------------------------------------------------------- the rule


@rule(by_rows="compares a gradient with that of the step before")
def adan(
    p: Array,
    g: Array,
    exp_avg: Array,
    exp_avg_sq: Squares,
    exp_avg_diff: Array,
    neg_pre_grad: Array,
    *,
    alpha: Scalar,
    alpha_diff: Scalar,
    beta1: Scalar,
    gamma1: Scalar,
    beta2: Scalar,
    gamma2: Scalar,
    beta3: Scalar,
    gamma3: Scalar,
    eps: Scalar,
    shrink: Scalar,
    proximal: Scalar,
    first: Scalar,
) -> None:
    """p ← p − (αm + α_d d)/(√n + ε), by m of g, d of changes, n of (g + β₂ change)² (Xie, 2022).

    Each is an average: m ← β₁m + γ₁g, where γ = 1 − β.  The α, which have β₂ in one, and ε carry
    the bias corrections of the step.  Weight decay is what p is multiplied by before or after.  The
    gradient before is −`neg_pre_grad`; at the first step the change is 0.
    """
    m, v, d = exp_avg, exp_avg_sq, exp_avg_diff
    change = np.zeros_like(g) if first != 0 else g + neg_pre_grad
    m[...] = beta1 * m + gamma1 * g
    d[...] = beta2 * d + gamma2 * change
    ahead = g + beta2 * change
    v[...] = beta3 * v + gamma3 * (ahead * ahead)
    neg_pre_grad[...] = -g
    p[...] = proximal * (shrink * p - (alpha * m + alpha_diff * d) / (np.sqrt(v) + eps))
