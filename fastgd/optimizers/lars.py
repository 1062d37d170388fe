"""LARS: gradient descent whose step is as long as a part of its parameter."""

from __future__ import annotations

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import flag, nonnegative
from fastgd.core.optimizer import Optimizer
from fastgd.kernels.spec.registry import Array, Scalar, SumOfSquares, rule, sets


class LARS(Optimizer):
    r"""Momentum along gradients scaled to the norm of the parameter they change: for large batches.

    .. math::
        q_t &= \eta \|W_{t-1}\| / (\|g_t\| + \lambda \|W_{t-1}\| + \epsilon), \\
        V_t &= \mu V_{t-1} + (1 - \tau) q_t (g_t + \lambda W_{t-1}), \\
        W_t &= W_{t-1} - \alpha V_t

    with :math:`V_1 = q_1 (g_1 + \lambda W_0)`.  :math:`q_t` is each parameter's own, and 1 where
    one of the norms is 0.

    Parameters
    ----------
    params, lr, maximize, **options
        As for `SGD`.
    momentum : float
        μ; 0 keeps no V.
    dampening : float
        τ.
    weight_decay : float
        λ, which is part of what is scaled.
    nesterov : bool
        Step along q(g + λW) + μV.
    trust_coefficient : float
        η.
    eps : float
        ε.
    trust_clip : bool
        Let q be at most α, divided by which it scales: a step no longer than without it (LARC).
    always_adapt : bool
        Scale also where λ is 0, as the paper does; False is what timm does.

    References
    ----------
    You, Gitman and Ginsburg, "Large batch training of convolutional networks", 2017.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.full(4, 2.0)
    >>> opt = fastgd.LARS(W, lr=1.0, trust_coefficient=0.1)
    >>> _ = opt.step(np.ones(4))
    >>> W.round(6)  # ‖W‖ = 4: the step is a tenth of that
    array([1.8, 1.8, 1.8, 1.8])
    """

    year = 2017
    own_decay = True
    restarts = True
    lr = hyper(nonnegative, 1.0)
    momentum = hyper(nonnegative, 0.0)
    dampening = hyper(nonnegative, 0.0)
    weight_decay = hyper(nonnegative, 0.0)
    nesterov = hyper(flag, False)
    trust_coefficient = hyper(nonnegative, 1e-3)
    eps = hyper(nonnegative, 1e-8)
    trust_clip = hyper(flag, False, keyword=True)
    always_adapt = hyper(flag, True, keyword=True)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        if h["momentum"] == 0:
            return "lars"
        return "lars_nesterov" if h["nesterov"] else "lars_momentum"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        decay = h["weight_decay"]
        # The first step sets V, as that of SGD does.
        beta, gamma = (0.0, 1.0) if t == 1 else (h["momentum"], 1.0 - h["dampening"])
        return (
            decay,
            h["trust_coefficient"],
            h["eps"],
            h["lr"],
            1.0 if h["always_adapt"] or decay != 0.0 else 0.0,
            1.0 if h["trust_clip"] else 0.0,
            h["lr"],
            beta,
            gamma,
            h["momentum"],
        )

    @staticmethod
    def consistent(h: Hyper) -> None:
        if h["nesterov"] and (h["momentum"] == 0 or h["dampening"] != 0):
            raise ValueError("nesterov: needs momentum above 0 and dampening of 0")


# --------------------------------------------------------------------------------------- the rules


def norms_before(p: Array, g: Array) -> tuple[Array, Array]:
    """Only the norms of g and p are wanted."""
    return g, p


@sets("q")
def lars_settle(
    grad: SumOfSquares,
    param: SumOfSquares,
    *,
    weight_decay: Scalar,
    trust: Scalar,
    eps: Scalar,
    lr: Scalar,
    adapt: Scalar,
    clip: Scalar,
) -> tuple[Scalar]:
    """q = η‖p‖/(‖g‖ + λ‖p‖ + ε), and 1 where a norm is 0."""
    norm = np.sqrt(param)
    both = adapt != 0.0 and param > 0.0 and grad > 0.0
    ratio = trust * norm / (np.sqrt(grad) + weight_decay * norm + eps) if both else 1.0
    bounded = ratio / lr if ratio < lr else 1.0
    return (bounded if both and clip != 0.0 else ratio,)


@rule(before=norms_before, settle=lars_settle)
def lars(p: Array, g: Array, *, weight_decay: Scalar, alpha: Scalar, q: Scalar) -> None:
    """p ← p − αq(g + λp), q by ‖p‖ and ‖g‖ (You, Gitman and Ginsburg, 2017)."""
    p[...] = p - alpha * (q * (g + weight_decay * p))


@rule(before=norms_before, settle=lars_settle)
def lars_momentum(
    p: Array,
    g: Array,
    momentum_buffer: Array,
    *,
    weight_decay: Scalar,
    alpha: Scalar,
    beta: Scalar,
    gamma: Scalar,
    q: Scalar,
) -> None:
    """V ← βV + γq(g + λp); p ← p − αV.  At the first step β = 0 and γ = 1."""
    V = momentum_buffer
    V[...] = beta * V + gamma * (q * (g + weight_decay * p))
    p[...] = p - alpha * V


@rule(before=norms_before, settle=lars_settle)
def lars_nesterov(
    p: Array,
    g: Array,
    momentum_buffer: Array,
    *,
    weight_decay: Scalar,
    alpha: Scalar,
    beta: Scalar,
    gamma: Scalar,
    mu: Scalar,
    q: Scalar,
) -> None:
    """V ← βV + γd; p ← p − α(d + μV), d = q(g + λp)."""
    V = momentum_buffer
    d = q * (g + weight_decay * p)
    V[...] = beta * V + gamma * d
    p[...] = p - alpha * (d + mu * V)
