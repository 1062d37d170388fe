"""Adafactor: a step of its own length along gradients that are scaled by rows and columns."""

from __future__ import annotations

from math import sqrt

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import at_least_one, floors, nonnegative, nonpositive
from fastgd.core.optimizer import Optimizer
from fastgd.kernels._engine import raised
from fastgd.kernels.spec.registry import (
    Array,
    Columns,
    Read,
    Rows,
    Scalar,
    Size,
    Squares,
    SumOfSquares,
    at_least,
    at_most,
    epsilon,
    rule,
    sets,
)


class Adafactor(Optimizer):
    r"""Steps as long as a part of their parameter, with one number a row and a column for states.

    .. math::
        R_t &= (1 - a_t) R_{t-1} + a_t \, \mathrm{mean}_{\text{row}} (g_t^2), &
        C_t &= (1 - a_t) C_{t-1} + a_t \, \mathrm{mean}_{\text{column}} (g_t^2), \\
        V_t &= R_t C_t / \max(\mathrm{mean} (R_t), \epsilon_1), &
        U_t &= g_t / \sqrt{\max(V_t, \epsilon_1^2)}, \\
        \alpha_t &= \max(\epsilon_2, \mathrm{RMS}(W_{t-1})) \min(\alpha, 1/\sqrt t), &
        W_t &= (1 - \alpha \lambda) W_{t-1} - \alpha_t U_t / \max(1, \mathrm{RMS}(U_t) / d)

    with :math:`a_t = t^{\tau}`.  Rows run along the last axis and columns along the second-last; of
    arrays of more axes each matrix along these two has its own.  Vectors and numbers have
    :math:`V_t = (1 - a_t) V_{t-1} + a_t g_t^2`.

    Parameters
    ----------
    params, maximize, **options
        As for `SGD`.  ``state_dtype`` is for the states of vectors: those of rows and columns are
        kept in the type that is computed with.
    lr : float
        α, the most that a step may be as a part of its parameter, and the factor of weight decay.
    beta2_decay : float
        τ, at most 0.
    eps : (float or None, float)
        ε₁ and ε₂.  None for ε₁ is the machine epsilon of the type that is computed with: 2⁻⁵² for
        parameters of float64, 2⁻²³ for others, those of 16 bits among them.
    d : float
        The most that the root mean square of U may be.
    weight_decay : float
        λ, decoupled.

    Notes
    -----
    These are the semantics of ``torch.optim.Adafactor``, whose states load.  There, None for ε₁ is
    the machine epsilon of the dtype of the group's first parameter.

    References
    ----------
    Shazeer and Stern, "Adafactor: adaptive learning rates with sublinear memory cost", 2018.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.full((2, 3), 2.0)
    >>> opt = fastgd.Adafactor(W, lr=0.1)
    >>> _ = opt.step(np.ones((2, 3)))
    >>> W.round(6)[0]  # a tenth of 2
    array([1.8, 1.8, 1.8])
    >>> opt.state[0]["row_var"].shape, opt.state[0]["col_var"].shape
    ((2, 1), (1, 3))
    """

    year = 2018
    decoupled = True
    lr = hyper(nonnegative, 1e-2)
    beta2_decay = hyper(nonpositive, -0.8)
    eps = hyper(floors, (None, 1e-3))
    d = hyper(at_least_one, 1.0)
    weight_decay = hyper(nonnegative, 0.0)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "adafactor" if len(shape) > 1 else "adafactor_vector"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        eps1, eps2 = h["eps"]
        gamma2 = raised(t, h["beta2_decay"])
        bound = 1.0 / sqrt(t)
        return (
            1.0 - gamma2,
            gamma2,
            -1.0 if eps1 is None else eps1,
            h["lr"] if h["lr"] < bound else bound,
            eps2,
            h["d"],
        )


# --------------------------------------------------------------------------------------- the rules


def adafactor_lines(p: Array, g: Array, *, beta2: Scalar, gamma2: Scalar) -> None:
    """R ← β₂R + γ₂ḡ of rows, C ← β₂C + γ₂ḡ of columns; ḡ is the mean of g²."""
    p[...] = beta2 * p + gamma2 * g


def adafactor_rows(p: Array, g: Array, *, eps: Scalar) -> None:
    """r = 1 / √(R / max(R̄, ε₁)), R̄ the mean of R."""
    p[...] = 1 / np.sqrt(p / at_least(g, epsilon(eps)))


def adafactor_columns(p: Array) -> None:
    """c = 1 / √C."""
    p[...] = 1 / np.sqrt(p)


def _by_lines(g: Array, r: Array, c: Array, eps: Scalar) -> Array:
    """U = g min(rc, 1/ε₁), which is g / √max(V, ε₁²) without a root of each element."""
    U: Array = g * at_most(r * c, 1 / epsilon(eps))
    return U


def adafactor_before(
    p: Array, g: Array, row_var: Rows, col_var: Columns, *, eps: Scalar
) -> tuple[Array, Array]:
    """Only the norms of U and p are wanted."""
    return _by_lines(g, row_var, col_var, eps), p


def _by_elements(g: Array, V: Array, eps: Scalar) -> Array:
    """U = g min(1/√V, 1/ε₁), which is g / √max(V, ε₁²), also where ε₁² is 0 in float32."""
    U: Array = g * at_most(1 / np.sqrt(V), 1 / epsilon(eps))
    return U


def vector_before(
    p: Array, g: Array, variance: Squares, *, beta2: Scalar, gamma2: Scalar, eps: Scalar
) -> tuple[Array, Array]:
    """V ← β₂V + γ₂g²; returns U and p."""
    V = variance
    V[...] = beta2 * V + gamma2 * (g * g)
    return _by_elements(g, V, eps), p


@sets("alpha")
def adafactor_settle(
    update: SumOfSquares, param: SumOfSquares, size: Size, *, rho: Scalar, least: Scalar, d: Scalar
) -> tuple[Scalar]:
    """α = ρ max(ε₂, RMS(p)) / max(1, RMS(U)/d)."""
    rms = np.sqrt(param / size)
    excess = np.sqrt(update / size) / d
    length = rho * (rms if rms > least else least)
    return (length / excess if excess > 1.0 else length,)


@rule(
    lines=adafactor_lines,
    rows=adafactor_rows,
    columns=adafactor_columns,
    before=adafactor_before,
    settle=adafactor_settle,
)
def adafactor(
    p: Array, g: Array, row_var: Rows, col_var: Columns, *, eps: Scalar, alpha: Scalar
) -> None:
    """p ← p − αU, U = g / √max(RC/R̄, ε₁²), α by RMS(p) and RMS(U) (Shazeer and Stern, 2018)."""
    p[...] = p - alpha * _by_lines(g, row_var, col_var, eps)


@rule(before=vector_before, settle=adafactor_settle)
def adafactor_vector(p: Array, g: Array, variance: Read, *, eps: Scalar, alpha: Scalar) -> None:
    """p ← p − αU, U = g / √max(V, ε₁²), V ← β₂V + γ₂g² (Shazeer and Stern, 2018)."""
    p[...] = p - alpha * _by_elements(g, variance, eps)
