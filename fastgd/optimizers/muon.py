"""Muon: momentum whose matrices are made orthogonal; AdamW for all that is no matrix."""

from __future__ import annotations

from math import sqrt

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import (
    adjustment,
    count,
    flag,
    nonnegative,
    three_numbers,
    two_fractions,
)
from fastgd.core.optimizer import Optimizer
from fastgd.kernels.spec.registry import (
    Array,
    Kept,
    Scalar,
    Unread,
    rule,
)
from fastgd.optimizers.adam import Adam


class Muon(Optimizer):
    r"""Momentum whose matrices are brought close to orthogonal ones; the rest goes by AdamW.

    .. math::
        B_t &= \mu B_{t-1} + (1 - \mu) g_t, \\
        u_t &= \mu B_t + (1 - \mu) g_t, \\
        W_t &= (1 - \alpha \lambda) W_{t-1} - \alpha f \, \mathrm{NS}(u_t)

    NS does `ns_steps` iterations of Newton and Schulz, :math:`X \leftarrow a X + (b A + c A^2) X`
    with :math:`A = X X^\top`, from :math:`X = u / \max(\|u\|_F, \epsilon)`: they bring all singular
    values near 1, to between about 0.7 and 1.2.  :math:`f = \sqrt{\max(1, r / s)}` for a matrix of
    r rows and s columns.

    Parameters of other shapes, as biases and gains, take the steps of `AdamW`, by the same
    :math:`\alpha` and :math:`\lambda`.  So should embeddings and the last layer, which are matrices
    only by shape: put them into a group with ``use_muon=False``.  That group may have a learning
    rate of its own, as Jordan's have, for the two rules want about the same only with
    "match_rms_adamw".

    Parameters
    ----------
    params, lr, maximize, **options
        As for `SGD`.
    weight_decay : float
        λ, of all parameters.
    momentum : float
        μ.
    nesterov : bool
        False takes :math:`u_t = B_t`.
    ns_coefficients : (float, float, float)
        a, b, c.
    eps : float
        ε.
    ns_steps : int
        The number of iterations, below 100.
    adjust_lr_fn : {None, "original", "match_rms_adamw"}
        The last takes :math:`f = 0.2 \sqrt{\max(r, s)}`, with which steps are about as large as
        those of `AdamW`; None is "original".
    use_muon : bool
        False steps matrices by AdamW, too.
    adamw_betas : (float, float)
        AdamW's β₁ and β₂, for all that is stepped by it.
    adamw_eps : float
        Its ε.

    Notes
    -----
    NS computes in float32 for float32 and 16-bit parameters and in float64 for float64;
    `torch.optim.Muon` does so in bfloat16, and differs by about a hundredth of a step.  The
    products of matrices are NumPy's, by BLAS: other than the rest of fastgd, they may differ in the
    last bits from machine to machine, as ``RULES["muon"].exact`` says.  A shard of a matrix can't
    be stepped, but by AdamW.

    With the momentum stored in 8 bits, digits (bench/SWEEP.md) were learned to several times the
    loss that float32 ends at; with bfloat16 to the same.

    The second rule and its defaults are those of the implementation by Liu et al.; that by Jordan
    et al. has the same with ε of 10⁻¹⁰.  Both flatten, or refuse, what has more than two axes,
    which is AdamW's here.

    References
    ----------
    Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
    Liu et al., "Muon is scalable for LLM training", 2025 ("match_rms_adamw").

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.zeros((2, 2))
    >>> opt = fastgd.Muon(W, lr=1.0, weight_decay=0.0)
    >>> _ = opt.step(np.array([[3.0, 0.0], [0.0, 0.3]]))
    >>> W.round(1)  # both directions count alike
    array([[-0.7,  0. ],
           [ 0. , -0.7]])
    >>> params = {"embedding": np.ones((5, 2)), "W": np.eye(2), "b": np.zeros(2)}
    >>> opt = fastgd.Muon(
    ...     [
    ...         {"params": {"W": params["W"], "b": params["b"]}},
    ...         {"params": params["embedding"], "use_muon": False, "lr": 3e-4},
    ...     ]
    ... )
    >>> [sorted(entry) for entry in opt.state.values()]  # doctest: +NORMALIZE_WHITESPACE
    [['momentum_buffer', 'step'], ['exp_avg', 'exp_avg_sq', 'step'],
     ['exp_avg', 'exp_avg_sq', 'step']]
    """

    year = 2024
    decoupled = True
    lr = hyper(nonnegative, 1e-3)
    weight_decay = hyper(nonnegative, 0.1)
    momentum = hyper(nonnegative, 0.95)
    nesterov = hyper(flag, True)
    ns_coefficients = hyper(three_numbers, (3.4445, -4.775, 2.0315))
    eps = hyper(nonnegative, 1e-7)
    ns_steps = hyper(count, 5)
    adjust_lr_fn = hyper(adjustment, None)
    use_muon = hyper(flag, True, keyword=True)
    adamw_betas = hyper(two_fractions, (0.9, 0.95), keyword=True)
    adamw_eps = hyper(nonnegative, 1e-8, keyword=True)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "muon" if h["use_muon"] and len(shape) == 2 else "adam"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        gamma = 1.0 - h["momentum"]
        a, b, c = h["ns_coefficients"]
        return (
            gamma,
            gamma if h["nesterov"] else 0.0,
            a,
            b,
            c,
            h["eps"],
            h["ns_steps"],
            0.2 if h["adjust_lr_fn"] == "match_rms_adamw" else 0.0,
            h["lr"],
        )

    @staticmethod
    def adam_coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        """The coefficients of what is stepped by AdamW."""
        return Adam.coefficients(
            {
                "lr": h["lr"],
                "betas": h["adamw_betas"],
                "eps": h["adamw_eps"],
                "eps_root": 0.0,
            },
            t,
        )


# ---------------------------------------------------------------------------------------- the rule


def muon_before(
    p: Unread, g: Array, momentum_buffer: Array, *, gamma: Scalar, nu: Scalar
) -> tuple[Array]:
    """B ← B + γ(g − B); returns u = B + ν(g − B).  ν = γ looks ahead as Nesterov does."""
    B = momentum_buffer
    B[...] = B + gamma * (g - B)
    return (B + nu * (g - B),)


def newton_schulz(
    update: Array,
    rows: int,
    columns: int,
    squares: Scalar,
    *,
    a: Scalar,
    b: Scalar,
    c: Scalar,
    eps: Scalar,
    steps: Scalar,
    rms: Scalar,
) -> None:
    """u ← f NS(u), whose singular values are f or near it.

    ``rms`` is what the root mean square of f NS(u) would be if they all were f; 0 takes
    f = √max(1, rows/columns).
    """
    to = update.dtype.type
    norm = np.sqrt(squares)
    update /= to(eps if norm < eps else norm)
    lines, length = update.shape
    for _ in range(int(steps)):
        # On the shorter side, where it is cheaper; BLAS sees that this is symmetric.
        gram = update @ update.T if lines <= length else update.T @ update
        factor = c * (gram @ gram.T) + b * gram
        factor[np.diag_indices_from(factor)] += a
        update[...] = factor @ update if lines <= length else update @ factor
    match, plain = float(rms) * sqrt(max(rows, columns)), sqrt(max(1.0, rows / columns))
    update *= to(match if rms != 0.0 else plain)


@rule(before=muon_before, matrix=newton_schulz, shards=False, exact=False)
def muon(p: Array, update: Kept, *, alpha: Scalar) -> None:
    """p ← p − αO, O a matrix of singular values near f (Jordan et al., 2024)."""
    p[...] = p - alpha * update
