"""NAdam: Adam with Nesterov's momentum."""

from __future__ import annotations

from math import sqrt

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import flag, nonnegative, two_fractions
from fastgd.core.optimizer import Optimizer
from fastgd.kernels._engine import raised
from fastgd.kernels.spec.registry import Array, Number, Scalar, Squares, rule, sets


class NAdam(Optimizer):
    r"""Adam that looks ahead as Nesterov's momentum does, whose β₁ grows from step to step.

    .. math::
        \mu_t &= \beta_1 (1 - \tfrac12 0.96^{t \psi}), &
        \Pi_t &= \Pi_{t-1} \mu_t, \\
        W_t &= W_{t-1} - \alpha \Big(\frac{1 - \mu_t}{1 - \Pi_t} g_t
        + \frac{\mu_{t+1}}{1 - \Pi_t \mu_{t+1}} m_t\Big) / (\sqrt{\hat v_t} + \epsilon)

    with :math:`m_t` and :math:`\hat v_t` as in `Adam`.  Π is a state of each parameter, one number:
    it goes on where a schedule changes β₁.

    Parameters
    ----------
    params, lr, weight_decay, maximize, **options
        As for `SGD`.
    betas : (float, float)
        β₁ and β₂.
    eps : float
        Added to the corrected root.
    momentum_decay : float
        ψ, how fast μ comes to β₁.
    decoupled_weight_decay : bool
        Whether weight decay is that of `AdamW`.

    References
    ----------
    Dozat, "Incorporating Nesterov momentum into Adam", 2016.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.ones(2)
    >>> opt = fastgd.NAdam(W, lr=0.1)
    >>> _ = opt.step(np.ones(2))
    >>> round(float(opt.state[0]["mu_product"]), 6)
    0.450073
    """

    year = 2016
    lr = hyper(nonnegative, 2e-3)
    betas = hyper(two_fractions, (0.9, 0.999))
    eps = hyper(nonnegative, 1e-8)
    weight_decay = hyper(nonnegative, 0.0)
    momentum_decay = hyper(nonnegative, 4e-3)
    decoupled_weight_decay = hyper(flag, False)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "nadam"

    @staticmethod
    def initial(h: Hyper) -> dict[str, float]:
        return {"mu_product": 1.0}

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        beta1, beta2 = h["betas"]
        decay = h["momentum_decay"]
        root = sqrt(1.0 - raised(beta2, t))
        # As Adam's: 1/(√v̂ + ε) = √c₂/(√v + √c₂ε).
        return (
            h["lr"] * root,
            beta1 * (1.0 - 0.5 * raised(0.96, t * decay)),
            beta1 * (1.0 - 0.5 * raised(0.96, (t + 1) * decay)),
            beta1,
            1.0 - beta1,
            beta2,
            1.0 - beta2,
            h["eps"] * root,
        )


# ---------------------------------------------------------------------------------------- the rule


@sets("mu_product", "alpha_g", "alpha_m")
def nadam_begin(
    mu_product: Number, *, lr: Scalar, mu: Scalar, mu_next: Scalar
) -> tuple[Scalar, ...]:
    """Π ← Πμₜ; α_g = α(1 − μₜ)/(1 − Π), α_m = αμₜ₊₁/(1 − Πμₜ₊₁).

    Π becomes 0 once 1 − Π is 1, before it is subnormal: with that, processors take their time.
    """
    smaller = mu_product * mu
    product = smaller if smaller > 1e-20 or smaller != smaller else 0.0
    return product, lr * (1.0 - mu) / (1.0 - product), lr * mu_next / (1.0 - product * mu_next)


@rule(begin=nadam_begin)
def nadam(
    p: Array,
    g: Array,
    exp_avg: Array,
    exp_avg_sq: Squares,
    *,
    beta1: Scalar,
    gamma1: Scalar,
    beta2: Scalar,
    gamma2: Scalar,
    eps: Scalar,
    alpha_g: Scalar,
    alpha_m: Scalar,
) -> None:
    """m ← β₁m + γ₁g; v ← β₂v + γ₂g²; p ← p − (α_g g + α_m m) / (√v + ε) (Dozat, 2016).

    γ = 1 − β.  The α and ε carry the bias corrections of the step.
    """
    m, v = exp_avg, exp_avg_sq
    m[...] = beta1 * m + gamma1 * g
    v[...] = beta2 * v + gamma2 * (g * g)
    p[...] = p - (alpha_g * g + alpha_m * m) / (np.sqrt(v) + eps)
