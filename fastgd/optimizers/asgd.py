"""ASGD: gradient descent that keeps the average of the points it came through."""

from __future__ import annotations

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import nonnegative
from fastgd.core.optimizer import Optimizer
from fastgd.kernels._engine import raised
from fastgd.kernels.spec.registry import Array, FullWidth, Number, Scalar, rule, sets


class ASGD(Optimizer):
    r"""Gradient descent with a learning rate that falls, and the average of the parameters.

    .. math::
        W_t &= (1 - \lambda \eta_t) W_{t-1} - \eta_t g_t, &
        \bar W_t &= \bar W_{t-1} + \mu_t (W_t - \bar W_{t-1}), \\
        \eta_{t+1} &= \alpha / (1 + \lambda \alpha t)^a, &
        \mu_{t+1} &= 1 / \max(1, t - t_0)

    with :math:`\eta_1 = \alpha` and :math:`\mu_1 = 1`.  The average is the state ``ax``, which
    never comes into the parameters: whoever wants it takes it from there.  It keeps its full width
    where ``state_dtype`` asks for fewer bits.  η and μ are those that the step before has worked
    out, so that a changed learning rate acts one step late, as in torch.

    Use it for convex problems with noisy gradients, whose average is far better than the last
    point; elsewhere the option ``average`` averages the weights of any optimizer, and swaps them.

    Parameters
    ----------
    params, lr, weight_decay, maximize, **options
        As for `SGD`.
    lambd : float
        λ, a decay of the parameters that also slows η down.
    alpha : float
        a, the power by which η falls; α is the learning rate.
    t0 : float
        The steps after which averaging begins.

    References
    ----------
    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992.
    Bottou, "Large-scale machine learning with stochastic gradient descent", 2010 (these rates).

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.ones(1)
    >>> opt = fastgd.ASGD(W, lr=0.5, lambd=0.0, t0=1.0)
    >>> for g in (1.0, 1.0, -1.0, -1.0):
    ...     _ = opt.step(np.array([g]))
    ...     print(W[0], opt.state[0]["ax"][0])
    0.5 0.5
    0.0 0.0
    0.5 0.5
    1.0 0.75
    """

    year = 1992
    remade = True
    lr = hyper(nonnegative, 1e-2)
    lambd = hyper(nonnegative, 1e-4)
    alpha = hyper(nonnegative, 0.75)
    t0 = hyper(nonnegative, 1e6)
    weight_decay = hyper(nonnegative, 0.0)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "asgd"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        since = t - h["t0"]
        return (
            h["lr"],
            # A power that underflows where its inverse would overflow.
            h["lr"] * raised(1.0 + h["lambd"] * h["lr"] * t, -h["alpha"]),
            1.0 / since if since > 1.0 else 1.0,
            h["lambd"],
            1.0 if t == 1 else 0.0,
        )


# ---------------------------------------------------------------------------------------- the rule


@sets("eta", "mu", "alpha", "shrink", "weight")
def asgd_begin(
    eta: Number,
    mu: Number,
    *,
    lr: Scalar,
    eta_next: Scalar,
    mu_next: Scalar,
    lambd: Scalar,
    first: Scalar,
) -> tuple[Scalar, ...]:
    """α = η and the weight μ of the step before, and what 1 − λη shrinks; then η and μ anew."""
    alpha = lr if first != 0.0 else eta
    return eta_next, mu_next, alpha, 1.0 - lambd * alpha, 1.0 if first != 0.0 else mu


@rule(begin=asgd_begin, by_rows="averages every row at every step")
def asgd(
    p: Array, g: Array, ax: FullWidth, *, alpha: Scalar, shrink: Scalar, weight: Scalar
) -> None:
    """p ← (1 − λα)p − αg; ax ← ax + μ(p − ax), or p where μ = 1 (Polyak and Juditsky, 1992)."""
    p[...] = shrink * p - alpha * g
    ax[...] = ax + weight * (p - ax) if weight != 1 else p
