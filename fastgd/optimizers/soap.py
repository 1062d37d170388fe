"""SOAP: Adam in the eigenbases of a matrix's rows and columns; AdamW for all that is no matrix."""

from __future__ import annotations

from math import fmod, sqrt
from typing import Any

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import (
    dimension,
    flag,
    nonnegative,
    own_fraction,
    period,
    two_fractions,
)
from fastgd.core.optimizer import Optimizer
from fastgd.kernels._engine import raised
from fastgd.kernels.spec.registry import (
    Array,
    ColumnPairs,
    Kept,
    RowPairs,
    Scalar,
    Squares,
    Unread,
    rule,
)


class SOAP(Optimizer):
    r"""Adam in the eigenbases of Shampoo's preconditioner; all that is no matrix goes by AdamW.

    .. math::
        g'_t &= Q_L^\top g_t Q_R, \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g'_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t'^2, \\
        u_t &= Q_L \frac{m_t}{\sqrt{v_t} + \epsilon} Q_R^\top, \qquad
        \alpha_k = \alpha \frac{\sqrt{1 - \beta_2^k}}{1 - \beta_1^k}, \quad k = t - 1, \\
        W_t &= (1 - \alpha \lambda) (W_{t-1} - \alpha_k u_t), \\
        L_t &= \beta L_{t-1} + (1 - \beta) g_t g_t^\top, \qquad
        R_t = \beta R_{t-1} + (1 - \beta) g_t^\top g_t

    :math:`Q_L` and :math:`Q_R` hold eigenvectors of L and R, of falling eigenvalues.  **The first
    step of a matrix only makes L and R, and moves nothing**: no gradient is turned into bases that
    it has had a part in.  Then, each `precondition_frequency` steps, a step of power iteration
    follows L and R: the columns of Q are sorted by the diagonal of :math:`Q^\top L Q`, v along
    with them, and Q becomes the orthogonal factor of :math:`L Q`; m is turned from the old bases
    into the new ones.

    Parameters of other shapes, as biases and gains, take the steps of `AdamW`, by the same α, β, ε
    and λ, and from their first step on.  So should what is a matrix only by shape: put it into a
    group with ``use_soap=False``.

    Parameters
    ----------
    params, lr, maximize, **options
        As for `SGD`.
    betas : (float, float)
        β₁ and β₂.
    shampoo_beta : float
        β; a negative number takes β₂.
    eps : float
        ε.
    weight_decay : float
        λ.  It shrinks a matrix after the step, and all else before it.
    precondition_frequency : int
        The bases are renewed every so many steps.
    max_precond_dim : int
        The longest axis that has a factor and a basis; a longer one, as that of a vocabulary, is
        left as it is, and a matrix of two such axes goes by AdamW.
    precondition_1d : bool
        Whether vectors are stepped as matrices of one row, by R alone.
    normalize_grads : bool
        Whether u is divided by its root mean square.
    correct_bias : bool
        False takes :math:`\alpha_k = \alpha`, and AdamW's corrections away.
    use_soap : bool
        False steps matrices by AdamW, too.

    Notes
    -----
    The states of a matrix of r rows and c columns are ``exp_avg`` and ``exp_avg_sq``, m and v, and
    the square matrices ``GG_l`` and ``Q_l`` (L and its basis) of r² numbers and ``GG_r`` and
    ``Q_r`` of c²: in float32 8 + 8(r² + c²)/(rc) bytes a parameter, 24 where it is square.  All are
    kept in the type that is computed with; `state_dtype` holds for what AdamW steps.  A step takes
    six products of matrices.

    `use_soap`, `max_precond_dim` and `precondition_1d` are to be chosen at the start: m and v stay
    in the bases in which they were taken, and whoever changes these amid a training lets them be
    read in others, until they have averaged over new gradients.

    Products are NumPy's, by BLAS, and eigenvectors by LAPACK: their last bits may differ from
    machine to machine, as ``RULES["soap"].exact`` says.  Bases are worked out when nothing is
    written yet, at the beginning of the step that first uses them, the first ones in float64.  A
    factor with a number that isn't finite (squares of gradients beyond 1e19 overflow in float32)
    has a basis of NaN if it is the first one; a basis that there is stays as it is from then on.
    A first gradient that is longer than wide, or the other way, leaves some axes of its longer side
    open: there LAPACK chooses.  A shard of a matrix can't be stepped, but by AdamW.

    All this is as in the authors' implementation, but for what is no matrix: there vectors wait a
    step, too, and decay after it, and tensors of more axes have a factor for each.

    References
    ----------
    Vyas et al., "SOAP: improving and stabilizing Shampoo using Adam", 2024.
    Gupta et al., "Shampoo: preconditioned stochastic tensor optimization", 2018.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.zeros((2, 2))
    >>> opt = fastgd.SOAP(W, lr=1.0, weight_decay=0.0)
    >>> g = np.array([[3.0, 1.0], [1.0, 0.3]])
    >>> _ = opt.step(g)
    >>> W.any()  # the first step only looks
    np.False_
    >>> _ = opt.step(g)
    >>> np.linalg.svd(W)[1].round(3)  # in the eigenbases all directions count alike
    array([1., 1.])
    >>> sorted(opt.state[0])
    ['GG_l', 'GG_r', 'Q_l', 'Q_r', 'exp_avg', 'exp_avg_sq', 'step']
    """

    year = 2024
    decoupled = True
    lr = hyper(nonnegative, 3e-3)
    betas = hyper(two_fractions, (0.95, 0.95))
    shampoo_beta = hyper(own_fraction, -1.0)
    eps = hyper(nonnegative, 1e-8)
    weight_decay = hyper(nonnegative, 0.01)
    precondition_frequency = hyper(period, 10)
    max_precond_dim = hyper(dimension, 10000)
    precondition_1d = hyper(flag, False)
    normalize_grads = hyper(flag, False)
    correct_bias = hyper(flag, True)
    use_soap = hyper(flag, True, keyword=True)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        most = h["max_precond_dim"]
        if not h["use_soap"] or len(shape) not in (1, 2):
            return "adam"
        if len(shape) == 1:
            return "soap_right" if h["precondition_1d"] and shape[0] <= most else "adam"
        left, right = (length <= most for length in shape)
        if left:
            return "soap" if right else "soap_left"
        return "soap_right" if right else "adam"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        beta1, beta2 = h["betas"]
        beta = h["shampoo_beta"] if h["shampoo_beta"] >= 0 else beta2
        moved, lr = t - 1.0, h["lr"]
        corrected = h["correct_bias"] and t > 1
        root = sqrt(1.0 - raised(beta2, moved)) if corrected else 1.0
        correction1 = 1.0 - raised(beta1, moved) if corrected else 1.0
        follows = 1.0 if t > 2 and fmod(t - 2.0, h["precondition_frequency"]) == 0 else 0.0
        return (
            beta1,
            1.0 - beta1,
            beta2,
            1.0 - beta2,
            1.0 - beta,
            h["eps"],
            1.0 if h["normalize_grads"] else 0.0,
            -1.0 if t == 1 else follows,
            lr * root / correction1 if t > 1 else 0.0,
            1.0 - lr * h["weight_decay"] if t > 1 else 1.0,
        )

    @staticmethod
    def adam_coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        """The coefficients of what is stepped by AdamW."""
        beta1, beta2 = h["betas"]
        root = sqrt(1.0 - raised(beta2, t)) if h["correct_bias"] else 1.0
        correction1 = 1.0 - raised(beta1, t) if h["correct_bias"] else 1.0
        alpha = h["lr"] * root / correction1
        return alpha, beta1, 1.0 - beta1, beta2, 1.0 - beta2, h["eps"] * root, 0.0


# --------------------------------------------------------------------------------------- the bases

Side = tuple[Array, Array]  # a factor and its basis


def turned_adam(
    update: Array,
    m: Array,
    v: Array,
    left: Side | None,
    right: Side | None,
    *,
    beta1: Scalar,
    gamma1: Scalar,
    beta2: Scalar,
    gamma2: Scalar,
    gamma: Scalar,
    eps: Scalar,
    normalize: Scalar,
) -> None:
    """L ← L + γ(ggᵀ − L), R alike; g ← Q_L (m / (√v + ε)) Q_Rᵀ, m and v those of Q_Lᵀ g Q_R.

    With bases of zeros, which are none yet, g becomes 0, and m and v stay.
    """

    def times(a: Array, b: Array) -> Array:
        product: Array = np.matmul(a, b, out=np.empty_like(update))  # to lie as g does
        return product

    started = False
    for side, a, b in ((left, update, update.T), (right, update.T, update)):
        if side is not None:
            factor, basis = side
            factor[...] = factor + gamma * (np.matmul(a, b) - factor)
            started = bool(basis[:, 0].any())
    if not started:
        update[...] = 0
        return
    x = update if left is None else times(left[1].T, update)
    x = x if right is None else times(x, right[1])
    m[...] = beta1 * m + gamma1 * x
    v[...] = beta2 * v + gamma2 * (x * x)
    x = m / (np.sqrt(v) + eps)
    x = x if left is None else times(left[1], x)
    x = x if right is None else times(x, right[1].T)
    if normalize != 0:
        flat = x.reshape(1, -1, order="C" if x.flags.c_contiguous else "F")
        mean = np.matmul(flat, flat.T)[0, 0] / x.dtype.type(x.size)
        x = x / (np.sqrt(mean) + x.dtype.type(1e-30))
    update[...] = x


def eigenvectors(factor: Array) -> Array:
    """Those of a symmetric matrix, of falling eigenvalues; of zeros, which is none, the axes."""
    if not factor.any():
        return np.eye(len(factor))
    if not np.isfinite(factor).all():
        return np.full_like(factor, np.nan)
    vectors: Array = np.linalg.eigh(factor.astype(np.float64))[1][:, ::-1]
    return vectors


def followed(factor: Array, basis: Array) -> tuple[Array, Array] | None:
    """The order of the columns of a basis, and a step of power iteration from these.

    None if the factor isn't finite: it leads nowhere, and the basis stays.
    """
    product = factor @ basis
    if not np.isfinite(product).all():
        return None
    order = np.argsort(-np.einsum("ij,ij->j", basis, product), kind="stable")
    return order, np.linalg.qr(product[:, order])[0]


def renewed_bases(
    m: Array, v: Array, left: Side | None, right: Side | None, due: float
) -> dict[str, Array]:
    """What bases are to be before a step, and m and v with them; nothing, unless it is due.

    ``due`` is −1 before the first step, when there is no factor yet, and 1 where bases are to
    follow factors; bases that there are not are made.
    """
    sides = {"Q_l": left, "Q_r": right}
    known = {key: side for key, side in sides.items() if side is not None}
    if due < 0:
        return {}
    if not all(basis[:, 0].any() for _, basis in known.values()):
        return {key: eigenvectors(factor) for key, (factor, _) in known.items()}
    if due == 0:
        return {}
    found: dict[str, Array] = {}
    for key, (factor, basis) in known.items():
        ahead = followed(factor, basis)
        if ahead is None:
            continue
        order, found[key] = ahead
        turn = found[key].T @ basis
        m, v = (turn @ m, v[order]) if key == "Q_l" else (m @ turn.T, v[:, order])
    return {**found, "exp_avg": m, "exp_avg_sq": v} if found else {}


# --------------------------------------------------------------------------------------- the rules


def soap_before(p: Unread, g: Array) -> tuple[Array]:
    """Returns g, as the stages before the rule have made it: a copy, as it will be changed."""
    return (g.copy(),)


def soap_between(
    update: Array,
    rows: int,
    columns: int,
    squares: Scalar,
    exp_avg: Array,
    exp_avg_sq: Squares,
    GG_l: RowPairs,
    GG_r: ColumnPairs,
    Q_l: RowPairs,
    Q_r: ColumnPairs,
    *,
    beta1: Scalar,
    gamma1: Scalar,
    beta2: Scalar,
    gamma2: Scalar,
    gamma: Scalar,
    eps: Scalar,
    normalize: Scalar,
) -> None:
    """`turned_adam` with bases of both sides."""
    given = {"beta1": beta1, "gamma1": gamma1, "beta2": beta2, "gamma2": gamma2, "gamma": gamma}
    sides = (GG_l, Q_l), (GG_r, Q_r)
    turned_adam(update, exp_avg, exp_avg_sq, *sides, **given, eps=eps, normalize=normalize)


def soap_renew(
    exp_avg: Array,
    exp_avg_sq: Squares,
    GG_l: RowPairs,
    GG_r: ColumnPairs,
    Q_l: RowPairs,
    Q_r: ColumnPairs,
    *,
    due: float,
) -> dict[str, Any]:
    """`renewed_bases` of both sides."""
    return renewed_bases(exp_avg, exp_avg_sq, (GG_l, Q_l), (GG_r, Q_r), due)


@rule(
    before=soap_before,
    matrix=soap_between,
    renew=soap_renew,
    shards=False,
    exact=False,
    own_decay=True,
)
def soap(p: Array, update: Kept, *, alpha: Scalar, kappa: Scalar) -> None:
    """p ← κ(p − αu), u Adam's in the eigenbases of rows and columns (Vyas et al., 2024)."""
    p[...] = kappa * (p - alpha * update)


def soap_left_between(
    update: Array,
    rows: int,
    columns: int,
    squares: Scalar,
    exp_avg: Array,
    exp_avg_sq: Squares,
    GG_l: RowPairs,
    Q_l: RowPairs,
    *,
    beta1: Scalar,
    gamma1: Scalar,
    beta2: Scalar,
    gamma2: Scalar,
    gamma: Scalar,
    eps: Scalar,
    normalize: Scalar,
) -> None:
    """`turned_adam` with a basis of rows alone."""
    given = {"beta1": beta1, "gamma1": gamma1, "beta2": beta2, "gamma2": gamma2, "gamma": gamma}
    sides = (GG_l, Q_l), None
    turned_adam(update, exp_avg, exp_avg_sq, *sides, **given, eps=eps, normalize=normalize)


def soap_left_renew(
    exp_avg: Array, exp_avg_sq: Squares, GG_l: RowPairs, Q_l: RowPairs, *, due: float
) -> dict[str, Any]:
    """`renewed_bases` of rows alone."""
    return renewed_bases(exp_avg, exp_avg_sq, (GG_l, Q_l), None, due)


@rule(
    before=soap_before,
    matrix=soap_left_between,
    renew=soap_left_renew,
    shards=False,
    exact=False,
    own_decay=True,
)
def soap_left(p: Array, update: Kept, *, alpha: Scalar, kappa: Scalar) -> None:
    """p ← κ(p − αu), u Adam's in the eigenbasis of rows alone (Vyas et al., 2024)."""
    p[...] = kappa * (p - alpha * update)


def soap_right_between(
    update: Array,
    rows: int,
    columns: int,
    squares: Scalar,
    exp_avg: Array,
    exp_avg_sq: Squares,
    GG_r: ColumnPairs,
    Q_r: ColumnPairs,
    *,
    beta1: Scalar,
    gamma1: Scalar,
    beta2: Scalar,
    gamma2: Scalar,
    gamma: Scalar,
    eps: Scalar,
    normalize: Scalar,
) -> None:
    """`turned_adam` with a basis of columns alone."""
    given = {"beta1": beta1, "gamma1": gamma1, "beta2": beta2, "gamma2": gamma2, "gamma": gamma}
    sides = None, (GG_r, Q_r)
    turned_adam(update, exp_avg, exp_avg_sq, *sides, **given, eps=eps, normalize=normalize)


def soap_right_renew(
    exp_avg: Array, exp_avg_sq: Squares, GG_r: ColumnPairs, Q_r: ColumnPairs, *, due: float
) -> dict[str, Any]:
    """`renewed_bases` of columns alone."""
    return renewed_bases(exp_avg, exp_avg_sq, None, (GG_r, Q_r), due)


@rule(
    before=soap_before,
    matrix=soap_right_between,
    renew=soap_right_renew,
    shards=False,
    exact=False,
    own_decay=True,
)
def soap_right(p: Array, update: Kept, *, alpha: Scalar, kappa: Scalar) -> None:
    """p ← κ(p − αu), u Adam's in the eigenbasis of columns alone (Vyas et al., 2024)."""
    p[...] = kappa * (p - alpha * update)
