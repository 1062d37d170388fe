"""Yogi: Adam whose second moment changes by a bounded amount."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import nonnegative, start, two_fractions
from fastgd.core.optimizer import Optimizer
from fastgd.kernels._engine import raised
from fastgd.kernels.spec.registry import Array, Scalar, Squares, rule


class Yogi(Optimizer):
    r"""Adam whose average of squared gradients moves towards each by a part of that square alone.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \\
        v_t &= v_{t-1} - (1 - \beta_2) \operatorname{sign}(v_{t-1} - g_t^2) \, g_t^2, \\
        W_t &= W_{t-1} - \alpha \hat m_t / (\sqrt{\hat v_t} + \epsilon)

    with :math:`\hat m_t` and :math:`\hat v_t` as in `Adam`.  Small gradients, however many, shrink
    v only slowly, so that step sizes don't explode.

    Use it where gradients are sparse or bursts of them come after silence, and Adam forgets their
    size too soon.

    Parameters
    ----------
    params, lr, weight_decay, maximize, **options
        As for `SGD`.
    betas : (float, float)
        β₁ and β₂.
    eps : float
        Added to the corrected root: large here, as the authors advise.
    initial_accumulator_value : float
        What m and v start from, as in TensorFlow and optax; never a schedule.

    References
    ----------
    Zaheer et al., "Adaptive methods for nonconvex optimization", 2018.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.ones(1)
    >>> opt = fastgd.Yogi(W, lr=0.1, eps=0.0)
    >>> for g in (1.0, 0.0, 0.0):
    ...     _ = opt.step(np.array([g]))
    >>> opt.state[0]["exp_avg_sq"].round(6)  # Adam would have forgotten a part
    array([0.001001])
    """

    year = 2018
    lr = hyper(nonnegative, 1e-2)
    betas = hyper(two_fractions, (0.9, 0.999))
    eps = hyper(nonnegative, 1e-3)
    initial_accumulator_value = hyper(start, 1e-6)
    weight_decay = hyper(nonnegative, 0.0)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "yogi"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        beta1, beta2 = h["betas"]
        root = sqrt(1.0 - raised(beta2, t))
        # As Adam's: m̂/(√v̂ + ε) = √c₂/c₁ · m/(√v + √c₂ε).
        return (
            h["lr"] * root / (1.0 - raised(beta1, t)),
            beta1,
            1.0 - beta1,
            1.0 - beta2,
            h["eps"] * root,
        )

    @staticmethod
    def initial(h: Hyper) -> Mapping[str, float]:
        value = h["initial_accumulator_value"]
        return {"exp_avg": value, "exp_avg_sq": value}


# ---------------------------------------------------------------------------------------- the rule


@rule
def yogi(
    p: Array,
    g: Array,
    exp_avg: Array,
    exp_avg_sq: Squares,
    *,
    alpha: Scalar,
    beta1: Scalar,
    gamma1: Scalar,
    gamma2: Scalar,
    eps: Scalar,
) -> None:
    """m ← β₁m + γ₁g; v ← v − γ₂ sign(v − g²) g²; p ← p − αm/(√v + ε) (Zaheer et al., 2018).

    γ = 1 − β.  α and ε carry the bias corrections of the step.
    """
    m, v = exp_avg, exp_avg_sq
    square = g * g
    m[...] = beta1 * m + gamma1 * g
    v[...] = v - gamma2 * (np.sign(v - square) * square)
    p[...] = p - alpha * m / (np.sqrt(v) + eps)
