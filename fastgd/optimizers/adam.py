"""Adam, and its variants AMSGrad and AdamW."""

from __future__ import annotations

from math import sqrt

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import flag, nonnegative, two_fractions
from fastgd.core.optimizer import Optimizer
from fastgd.kernels._engine import raised
from fastgd.kernels.spec.registry import Array, Fused, Scalar, Squares, rule


class Adam(Optimizer):
    r"""Momentum and RMSProp together, both with their bias corrected.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, &
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \\
        \hat m_t &= m_t / (1 - \beta_1^t), & \hat v_t &= v_t / (1 - \beta_2^t), \\
        W_t &= W_{t-1} - \alpha \hat m_t / (\sqrt{\hat v_t + \epsilon_{root}} + \epsilon)

    ``amsgrad`` takes the largest :math:`v` so far for :math:`v_t` in the last two lines;
    ``nesterov`` takes :math:`\beta_1 m_t + (1 - \beta_1) g_t` for :math:`m_t` there, a step ahead
    of it: the NAdamW of timm, and not `NAdam`, whose β₁ grows.
    ``cautious`` lets an element stay where :math:`m_t g_t \le 0`, and the others of its tensor go
    further by as much: their step is divided by their share, which counts as at least a thousandth.

    Parameters
    ----------
    params, lr, weight_decay, maximize, **options
        As for `SGD`.
    betas : (float, float)
        β₁ and β₂.
    eps, eps_root : float
        Added to the corrected root, and inside it.
    amsgrad : bool
        Divide by the root of the largest v so far, so that step sizes never grow again.
    nesterov : bool
        Nesterov's momentum; excludes ``amsgrad``.
    cautious : bool
        Step only where momentum and gradient agree; excludes ``nesterov``, which looks ahead.

    References
    ----------
    Kingma and Ba, "Adam: a method for stochastic optimization", 2015.
    Reddi, Kale and Kumar, "On the convergence of Adam and beyond", 2018 (amsgrad).
    Dozat, "Incorporating Nesterov momentum into Adam", 2016 (nesterov).
    Liang et al., "Cautious optimizers: improving training with one line of code", 2024 (cautious).

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> params = {"W": np.ones((2, 2), np.float32), "b": np.zeros(2, np.float32)}
    >>> opt = fastgd.Adam(params, lr=0.1)
    >>> _ = opt.step({"W": np.ones((2, 2), np.float32), "b": None})
    >>> params["W"][0], int(opt.state["W"]["step"]), int(opt.state["b"]["step"])
    (array([0.9, 0.9], dtype=float32), 1, 0)
    """

    year = 2015
    lr = hyper(nonnegative, 1e-3)
    betas = hyper(two_fractions, (0.9, 0.999))
    eps = hyper(nonnegative, 1e-8)
    weight_decay = hyper(nonnegative, 0.0)
    amsgrad = hyper(flag, False)
    eps_root = hyper(nonnegative, 0.0, keyword=True)
    nesterov = hyper(flag, False, keyword=True)
    cautious = hyper(flag, False, keyword=True)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        if h["nesterov"]:
            return "adam_nesterov"
        rule = "amsgrad" if h["amsgrad"] else "adam"
        return f"cautious_{rule}" if h["cautious"] else rule

    @staticmethod
    def consistent(h: Hyper) -> None:
        for key in ("amsgrad", "cautious"):
            if h["nesterov"] and h[key]:
                raise ValueError(f"nesterov: excludes {key}")

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        beta1, beta2 = h["betas"]
        correction2 = 1.0 - raised(beta2, t)
        root = sqrt(correction2)
        # The corrections leave the loop: m̂/(√(v̂ + ε_root) + ε) =
        # √c₂/c₁ · m/(√(v + c₂ε_root) + √c₂ε), where c = 1 − βᵗ.
        return (
            h["lr"] * root / (1.0 - raised(beta1, t)),
            beta1,
            1.0 - beta1,
            beta2,
            1.0 - beta2,
            h["eps"] * root,
            h["eps_root"] * correction2,
        )


class AdamW(Adam):
    """Adam with decoupled weight decay: W ← (1 − αλ)W comes first.

    Parameters
    ----------
    params, lr, betas, eps, amsgrad, eps_root, nesterov, cautious, maximize, **options
        As for `Adam`.
    weight_decay : float
        λ, which is not added to the gradient here.

    References
    ----------
    Loshchilov and Hutter, "Decoupled weight decay regularization", 2019.
    """

    year = 2019
    decoupled = True
    weight_decay = hyper(nonnegative, 1e-2)


class SparseAdam(Optimizer):
    r"""Adam for tables of which a step sees some rows: moments of the others wait.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, &
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \\
        W_t &= W_{t-1} - \alpha \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t}
            \frac{m_t}{\sqrt{v_t} + \epsilon} & &\text{in rows that have a gradient}

    where t counts the parameter's steps, not those of each row.

    Parameters
    ----------
    params, lr, maximize, **options
        As for `SGD`.
    betas : (float, float)
        β₁ and β₂.
    eps : float
        Added to the root, which is not corrected here.

    Notes
    -----
    These are the semantics of ``torch.optim.SparseAdam``.  That refuses gradients that are arrays;
    here they are taken as those of all rows.  ``Adam(..., rows="lazy")`` steps rows by Adam's own
    formula, which has ε beside the corrected root, and can decay weights.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> table = np.zeros((4, 2))
    >>> opt = fastgd.SparseAdam(table, lr=0.1)
    >>> _ = opt.step(fastgd.Rows([2], np.array([[1.0, -1.0]])))
    >>> table[1:3].round(6)
    array([[ 0. ,  0. ],
           [-0.1,  0.1]])
    """

    year = 2017
    sparse = True
    lr = hyper(nonnegative, 1e-3)
    betas = hyper(two_fractions, (0.9, 0.999))
    eps = hyper(nonnegative, 1e-8)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "adam"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        beta1, beta2 = h["betas"]
        return (
            h["lr"] * sqrt(1.0 - raised(beta2, t)) / (1.0 - raised(beta1, t)),
            beta1,
            1.0 - beta1,
            beta2,
            1.0 - beta2,
            h["eps"],
            0.0,
        )


# ---------------------------------------------------------------------------------------- the rules


@rule(
    fused=Fused(
        params=("float32", "bfloat16", "split"),
        states=("float32", "bfloat16", "8bit"),
        gain="1.0 to 1.3 in cache, 1.0 to 1.45 out of it, Intel Xeon with AVX-512",
    )
)
def adam(
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
    eps_root: Scalar,
) -> None:
    """m ← β₁m + γ₁g; v ← β₂v + γ₂g²; p ← p − αm / (√(v + ε_root) + ε) (Kingma and Ba, 2015).

    γ = 1 − β.  α, ε and ε_root carry the bias corrections of the step (section 2 of the paper).
    """
    m, v = exp_avg, exp_avg_sq
    m[...] = beta1 * m + gamma1 * g
    v[...] = beta2 * v + gamma2 * (g * g)
    p[...] = p - alpha * m / (np.sqrt(v + eps_root) + eps)


@rule
def amsgrad(
    p: Array,
    g: Array,
    exp_avg: Array,
    exp_avg_sq: Squares,
    max_exp_avg_sq: Squares,
    *,
    alpha: Scalar,
    beta1: Scalar,
    gamma1: Scalar,
    beta2: Scalar,
    gamma2: Scalar,
    eps: Scalar,
    eps_root: Scalar,
) -> None:
    """Adam by the largest v so far: v̂ ← max(v̂, v) (Reddi, Kale and Kumar, 2018)."""
    m, v, largest = exp_avg, exp_avg_sq, max_exp_avg_sq
    m[...] = beta1 * m + gamma1 * g
    v[...] = beta2 * v + gamma2 * (g * g)
    largest[...] = np.where(largest > v, largest, v)  # a NaN in v wins
    p[...] = p - alpha * m / (np.sqrt(largest + eps_root) + eps)


@rule
def adam_nesterov(
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
    eps_root: Scalar,
) -> None:
    """Adam with Nesterov's momentum: p ← p − α(β₁m + γ₁g) / (√(v + ε_root) + ε) (Dozat, 2016)."""
    m, v = exp_avg, exp_avg_sq
    m[...] = beta1 * m + gamma1 * g
    v[...] = beta2 * v + gamma2 * (g * g)
    p[...] = p - alpha * (beta1 * m + gamma1 * g) / (np.sqrt(v + eps_root) + eps)
