"""RMSProp: steps divided by the root of averaged squared gradients; centered, with momentum."""

from __future__ import annotations

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import flag, fraction, nonnegative
from fastgd.core.optimizer import Optimizer
from fastgd.kernels.spec.registry import Array, Fused, Scalar, Squares, positive_part, rule


class RMSprop(Optimizer):
    r"""Steps divided by the root of the average of squared gradients.

    .. math::
        \nu_t = \beta \nu_{t-1} + (1 - \beta) g_t^2, \qquad
        W_t = W_{t-1} - \frac{\alpha}{\sqrt{\nu_t + \epsilon_{root}} + \epsilon} \, g_t

    ``centered`` takes the variance, ν minus the square of the average gradient, for ν;
    ``momentum`` feeds the scaled gradients to heavy-ball momentum.

    Parameters
    ----------
    params, lr, weight_decay, maximize, **options
        As for `SGD`.
    alpha : float
        β of the formula, by torch's name.
    eps, eps_root : float
        Added to the root, and inside it.
    momentum : float
        μ.  With 0 there is no velocity; with a schedule there always is one.
    centered : bool
        Divide by the root of the variance.  Where rounding makes it negative, it counts as 0.
    cautious : bool
        Step only where velocity and gradient agree, and there further by as much, as `Adam` does.
        Needs momentum: without it the two always agree.

    References
    ----------
    Tieleman and Hinton, "Lecture 6.5: rmsprop", 2012.
    Graves, "Generating sequences with recurrent neural networks", 2013 (centered).
    Liang et al., "Cautious optimizers: improving training with one line of code", 2024 (cautious).
    """

    year = 2012
    lr = hyper(nonnegative, 1e-2)
    alpha = hyper(fraction, 0.99)
    eps = hyper(nonnegative, 1e-8)
    weight_decay = hyper(nonnegative, 0.0)
    momentum = hyper(nonnegative, 0.0)
    centered = hyper(flag, False)
    eps_root = hyper(nonnegative, 0.0, keyword=True)
    cautious = hyper(flag, False, keyword=True)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        centered = "_centered" if h["centered"] else ""
        if h["cautious"]:
            return f"cautious_rmsprop{centered}"
        return f"rmsprop{centered}" if h["momentum"] == 0 else f"rmsprop{centered}_momentum"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        beta = h["alpha"]
        return h["lr"], beta, 1.0 - beta, h["eps"], h["eps_root"], h["momentum"]

    @staticmethod
    def consistent(h: Hyper) -> None:
        if h["cautious"] and h["momentum"] == 0:
            raise ValueError("cautious: needs momentum above 0")


# ---------------------------------------------------------------------------------------- the rules


@rule(
    fused=Fused(
        params=("float32",),
        states=("float32", "bfloat16", "8bit"),
        gain="1.0 to 1.25 in cache, 1.05 to 1.35 out of it, Intel Xeon with AVX-512",
    ),
    catch_up="linear without L2 decay",
)
def rmsprop(
    p: Array,
    g: Array,
    square_avg: Squares,
    *,
    alpha: Scalar,
    beta: Scalar,
    gamma: Scalar,
    eps: Scalar,
    eps_root: Scalar,
) -> None:
    """ν ← βν + γg²; p ← p − αg / (√(ν + ε_root) + ε), γ = 1 − β (Tieleman and Hinton, 2012)."""
    nu = square_avg
    nu[...] = beta * nu + gamma * (g * g)
    p[...] = p - alpha * g / (np.sqrt(nu + eps_root) + eps)


@rule(catch_up="linear without L2 decay")
def rmsprop_momentum(
    p: Array,
    g: Array,
    square_avg: Squares,
    momentum_buffer: Array,
    *,
    alpha: Scalar,
    beta: Scalar,
    gamma: Scalar,
    eps: Scalar,
    eps_root: Scalar,
    mu: Scalar,
) -> None:
    """RMSProp with momentum: V ← μV + g/(√(ν + ε_root) + ε); p ← p − αV."""
    nu, V = square_avg, momentum_buffer
    nu[...] = beta * nu + gamma * (g * g)
    V[...] = mu * V + g / (np.sqrt(nu + eps_root) + eps)
    p[...] = p - alpha * V


@rule(catch_up="linear without L2 decay")
def rmsprop_centered(
    p: Array,
    g: Array,
    square_avg: Squares,
    grad_avg: Array,
    *,
    alpha: Scalar,
    beta: Scalar,
    gamma: Scalar,
    eps: Scalar,
    eps_root: Scalar,
) -> None:
    """RMSProp by the variance ν − ḡ², ḡ ← βḡ + γg (Graves, 2013); negative values count as 0."""
    nu, mean = square_avg, grad_avg
    nu[...] = beta * nu + gamma * (g * g)
    mean[...] = beta * mean + gamma * g
    p[...] = p - alpha * g / (np.sqrt(positive_part(nu - mean * mean) + eps_root) + eps)


@rule(catch_up="linear without L2 decay")
def rmsprop_centered_momentum(
    p: Array,
    g: Array,
    square_avg: Squares,
    grad_avg: Array,
    momentum_buffer: Array,
    *,
    alpha: Scalar,
    beta: Scalar,
    gamma: Scalar,
    eps: Scalar,
    eps_root: Scalar,
    mu: Scalar,
) -> None:
    """Centered RMSProp with momentum."""
    nu, mean, V = square_avg, grad_avg, momentum_buffer
    nu[...] = beta * nu + gamma * (g * g)
    mean[...] = beta * mean + gamma * g
    V[...] = mu * V + g / (np.sqrt(positive_part(nu - mean * mean) + eps_root) + eps)
    p[...] = p - alpha * V
