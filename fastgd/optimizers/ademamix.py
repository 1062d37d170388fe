"""AdEMAMix: Adam with a second, slow momentum."""

from __future__ import annotations

from math import sqrt

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import duration, nonnegative, three_fractions
from fastgd.core.optimizer import Optimizer
from fastgd.kernels._engine import logarithm, raised
from fastgd.kernels.spec.registry import Array, Scalar, Squares, rule


class AdEMAMix(Optimizer):
    r"""AdamW with a second momentum, which remembers tens of thousands of steps.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, &
        n_t &= \beta_3 n_{t-1} + (1 - \beta_3) g_t, \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, &
        W_t &= (1 - \eta \lambda) W_{t-1} - \eta \frac{m_t / (1 - \beta_1^t) + \alpha n_t}
        {\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    where η is the learning rate.  Use it for long trainings, of 10,000 steps and more, in AdamW's
    place.

    Parameters
    ----------
    params, lr, maximize, **options
        As for `SGD`.
    betas : (float, float, float)
        β₁ and β₂, as Adam's, and β₃ of the slow momentum n, whose start from 0 is not corrected.
    alpha : float
        α, what n weighs: 2 as in the author's code; the paper takes 4 to 10.
    beta3_warmup : float, optional
        The number of steps in which β₃ grows from β₁ to its value, by equal amounts of its
        half-life; None for none.  Long trainings need it, and `alpha_warmup`, not to diverge.
    alpha_warmup : float, optional
        The number of steps in which α grows from 0 to its value, by equal amounts.
    eps : float
        Added to the corrected root.
    weight_decay : float
        λ, which bypasses the gradient.

    References
    ----------
    Pagliardini, Ablin and Grangier, "The AdEMAMix optimizer: better, faster, older", 2024.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.ones(2)
    >>> opt = fastgd.AdEMAMix(W, lr=0.1, beta3_warmup=1000, alpha_warmup=1000)
    >>> _ = opt.step(np.ones(2))
    >>> sorted(opt.state[0])
    ['exp_avg_fast', 'exp_avg_slow', 'exp_avg_sq', 'step']
    """

    year = 2024
    decoupled = True
    lr = hyper(nonnegative, 1e-3)
    betas = hyper(three_fractions, (0.9, 0.999, 0.9999))
    alpha = hyper(nonnegative, 2.0)
    beta3_warmup = hyper(duration, None)
    alpha_warmup = hyper(duration, None)
    eps = hyper(nonnegative, 1e-8)
    weight_decay = hyper(nonnegative, 0.0)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "ademamix"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        beta1, beta2, beta3 = h["betas"]
        along = 1.0 if h["beta3_warmup"] is None else t / h["beta3_warmup"]
        share = 1.0 if h["alpha_warmup"] is None else t / h["alpha_warmup"]
        if along < 1.0:
            # By half-lives, less one step each; 10⁻⁸ as in the author's code, lest β₁ = 0 has none,
            # but where they would make 1 of β.
            first = logarithm(0.5) / logarithm(beta1 + (1e-8 if beta1 < 0.9999999 else 0.0)) - 1.0
            last = logarithm(0.5) / logarithm(beta3 + (1e-8 if beta3 < 0.9999999 else 0.0)) - 1.0
            slow = raised(0.5, 1.0 / ((1.0 - along) * first + along * last + 1.0))
        else:
            slow = beta3
        weight = share * h["alpha"] if share < 1.0 else h["alpha"]
        root = sqrt(1.0 - raised(beta2, t))
        # As Adam's: 1/(√v̂ + ε) = √c₂/(√v + √c₂ε).
        return (
            beta1,
            1.0 - beta1,
            slow,
            1.0 - slow,
            beta2,
            1.0 - beta2,
            h["lr"] * root / (1.0 - raised(beta1, t)),
            h["lr"] * root * weight,
            h["eps"] * root,
        )


# ---------------------------------------------------------------------------------------- the rule


@rule
def ademamix(
    p: Array,
    g: Array,
    exp_avg_fast: Array,
    exp_avg_slow: Array,
    exp_avg_sq: Squares,
    *,
    beta1: Scalar,
    gamma1: Scalar,
    beta3: Scalar,
    gamma3: Scalar,
    beta2: Scalar,
    gamma2: Scalar,
    alpha_fast: Scalar,
    alpha_slow: Scalar,
    eps: Scalar,
) -> None:
    """m ← β₁m + γ₁g; n ← β₃n + γ₃g; v ← β₂v + γ₂g²; p ← p − (α_m m + α_n n) / (√v + ε).

    Pagliardini, Ablin and Grangier, 2024.  γ = 1 − β.  Both α and ε carry the bias corrections.
    """
    m, n, v = exp_avg_fast, exp_avg_slow, exp_avg_sq
    m[...] = beta1 * m + gamma1 * g
    n[...] = beta3 * n + gamma3 * g
    v[...] = beta2 * v + gamma2 * (g * g)
    p[...] = p - (alpha_fast * m + alpha_slow * n) / (np.sqrt(v) + eps)
