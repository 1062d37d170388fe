"""Cautious rules: momentum that waits where the gradient says otherwise.

An update u that has momentum may point against the gradient of the moment.  With ``cautious`` these
elements stay, and the others of the tensor step further by as much::

    mask = [u·g > 0]; u ← u · mask / max(mean(mask), 10⁻³)

What is kept of the momentum goes on as ever.  The sign of u is that of what it is the quotient of.
The classes whose option it is stand in modules of their own.

The first sweeps take α, which they don't need, so that coefficients have the order of the rule
without caution, and a class lists them once for both.

References
----------
Liang, Chen, Liu and Liu, "Cautious optimizers: improving training with one line of code", 2024.
"""

from __future__ import annotations

import numpy as np

from fastgd.kernels.spec.registry import (
    Array,
    Read,
    Scalar,
    Size,
    Squares,
    Sum,
    SumOfSquares,
    Unread,
    is_positive,
    positive_part,
    rule,
    sets,
)


@sets("rate")
def cautious_settle(agreeing: Sum, size: Size, *, alpha: Scalar) -> tuple[Scalar]:
    """The rate is α over the share of elements that step, which counts as at least a thousandth."""
    share = agreeing / size
    return (alpha / share if share > 1e-3 else alpha / 1e-3,)


# -------------------------------------------------------------------------------------------- Adam


def cautious_adam_before(
    p: Unread,
    g: Array,
    exp_avg: Array,
    exp_avg_sq: Squares,
    *,
    alpha: Scalar,
    beta1: Scalar,
    gamma1: Scalar,
    beta2: Scalar,
    gamma2: Scalar,
) -> tuple[Array]:
    """m ← β₁m + γ₁g; v ← β₂v + γ₂g²; returns [m·g > 0].  γ = 1 − β."""
    m, v = exp_avg, exp_avg_sq
    m[...] = beta1 * m + gamma1 * g
    v[...] = beta2 * v + gamma2 * (g * g)
    return (is_positive(m * g),)


@rule(before=cautious_adam_before, settle=cautious_settle)
def cautious_adam(
    p: Array,
    g: Array,
    exp_avg: Read,
    exp_avg_sq: Read,
    *,
    eps: Scalar,
    eps_root: Scalar,
    rate: Scalar,
) -> None:
    """Adam where the gradient agrees: p ← p − rate [m·g > 0] m / (√(v + ε_root) + ε)."""
    m, v = exp_avg, exp_avg_sq
    p[...] = p - rate * (is_positive(m * g) * m) / (np.sqrt(v + eps_root) + eps)


@rule(before=cautious_adam_before, settle=cautious_settle)
def cautious_amsgrad(
    p: Array,
    g: Array,
    exp_avg: Read,
    exp_avg_sq: Read,
    max_exp_avg_sq: Squares,
    *,
    eps: Scalar,
    eps_root: Scalar,
    rate: Scalar,
) -> None:
    """AMSGrad where the gradient agrees: as cautious Adam, by v̂ ← max(v̂, v)."""
    m, v, largest = exp_avg, exp_avg_sq, max_exp_avg_sq
    largest[...] = np.where(largest > v, largest, v)  # a NaN in v wins
    p[...] = p - rate * (is_positive(m * g) * m) / (np.sqrt(largest + eps_root) + eps)


# ----------------------------------------------------------------------------------------- RMSProp


def cautious_rmsprop_before(
    p: Unread,
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
) -> tuple[Array]:
    """ν ← βν + γg²; V ← μV + g/(√(ν + ε_root) + ε); returns [V·g > 0]."""
    nu, V = square_avg, momentum_buffer
    nu[...] = beta * nu + gamma * (g * g)
    V[...] = mu * V + g / (np.sqrt(nu + eps_root) + eps)
    return (is_positive(V * g),)


@rule(before=cautious_rmsprop_before, settle=cautious_settle)
def cautious_rmsprop(p: Array, g: Array, momentum_buffer: Read, *, rate: Scalar) -> None:
    """RMSProp with momentum where the gradient agrees: p ← p − rate [V·g > 0] V."""
    V = momentum_buffer
    p[...] = p - rate * (is_positive(V * g) * V)


def cautious_rmsprop_centered_before(
    p: Unread,
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
) -> tuple[Array]:
    """As of cautious RMSProp, by the variance ν − ḡ²; ḡ ← βḡ + γg."""
    nu, mean, V = square_avg, grad_avg, momentum_buffer
    nu[...] = beta * nu + gamma * (g * g)
    mean[...] = beta * mean + gamma * g
    V[...] = mu * V + g / (np.sqrt(positive_part(nu - mean * mean) + eps_root) + eps)
    return (is_positive(V * g),)


@rule(before=cautious_rmsprop_centered_before, settle=cautious_settle)
def cautious_rmsprop_centered(p: Array, g: Array, momentum_buffer: Read, *, rate: Scalar) -> None:
    """Centered RMSProp with momentum where the gradient agrees."""
    V = momentum_buffer
    p[...] = p - rate * (is_positive(V * g) * V)


# ------------------------------------------------------------------------------------ LaProp, Lion


def cautious_laprop_before(
    p: Unread,
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
) -> tuple[Array]:
    """v ← β₂v + γ₂g²; m ← β₁m + γ₁g/(√v + ε); returns [m·g > 0]."""
    m, v = exp_avg, exp_avg_sq
    v[...] = beta2 * v + gamma2 * (g * g)
    m[...] = beta1 * m + gamma1 * g / (np.sqrt(v) + eps)
    return (is_positive(m * g),)


@rule(before=cautious_laprop_before, settle=cautious_settle)
def cautious_laprop(p: Array, g: Array, exp_avg: Read, *, rate: Scalar) -> None:
    """LaProp where the gradient agrees: p ← p − rate [m·g > 0] m."""
    m = exp_avg
    p[...] = p - rate * (is_positive(m * g) * m)


def cautious_lion_before(
    p: Unread, g: Array, exp_avg: Read, *, alpha: Scalar, beta1: Scalar, gamma1: Scalar
) -> tuple[Array]:
    """Returns [u·g > 0], u = β₁m + γ₁g."""
    return (is_positive((beta1 * exp_avg + gamma1 * g) * g),)


@rule(before=cautious_lion_before, settle=cautious_settle)
def cautious_lion(
    p: Array,
    g: Array,
    exp_avg: Array,
    *,
    beta1: Scalar,
    gamma1: Scalar,
    beta2: Scalar,
    gamma2: Scalar,
    rate: Scalar,
) -> None:
    """Lion where the gradient agrees: p ← p − rate [u·g > 0] sign(u), u = β₁m + γ₁g."""
    m = exp_avg
    u = beta1 * m + gamma1 * g
    p[...] = p - rate * (is_positive(u * g) * np.sign(u))
    m[...] = beta2 * m + gamma2 * g


# -------------------------------------------------------------------------------------------- LAMB


def cautious_lamb_before(
    p: Array,
    g: Array,
    exp_avg: Array,
    exp_avg_sq: Squares,
    *,
    beta1: Scalar,
    gamma1: Scalar,
    beta2: Scalar,
    gamma2: Scalar,
    mu: Scalar,
    eps: Scalar,
) -> tuple[Array, Array, Array, Array]:
    """m ← β₁m + γ₁g; v ← β₂v + γ₂g²; returns a = [m·g > 0] μm / (√v + ε), ap, p and [m·g > 0]."""
    m, v = exp_avg, exp_avg_sq
    m[...] = beta1 * m + gamma1 * g
    v[...] = beta2 * v + gamma2 * (g * g)
    agrees = is_positive(m * g)
    a = mu * (agrees * m) / (np.sqrt(v) + eps)
    return a, a * p, p, agrees


@sets("weight", "alpha")
def cautious_lamb_settle(
    update: SumOfSquares,
    dot: Sum,
    param: SumOfSquares,
    agreeing: Sum,
    size: Size,
    *,
    weight_decay: Scalar,
    lr: Scalar,
    adapt: Scalar,
    clip: Scalar,
) -> tuple[Scalar, Scalar]:
    """The weight w of a, and α = lr‖p‖/‖wa + λp‖, lr where a norm is 0.

    ‖wa + λp‖² = w²‖a‖² + 2wλ⟨a, p⟩ + λ²‖p‖².
    """
    share = agreeing / size
    weight = 1.0 / share if share > 1e-3 else 1.0 / 1e-3
    squares = (
        weight * weight * update
        + 2.0 * weight * weight_decay * dot
        + weight_decay * weight_decay * param
    )
    ratio = np.sqrt(param) / np.sqrt(squares) if param > 0.0 and squares > 0.0 else 1.0
    bounded = 1.0 if clip != 0.0 and ratio > 1.0 else ratio
    return weight, lr * bounded if adapt != 0.0 else lr


@rule(before=cautious_lamb_before, settle=cautious_lamb_settle)
def cautious_lamb(
    p: Array,
    g: Array,
    exp_avg: Read,
    exp_avg_sq: Read,
    *,
    mu: Scalar,
    eps: Scalar,
    weight_decay: Scalar,
    weight: Scalar,
    alpha: Scalar,
) -> None:
    """LAMB where the gradient agrees: p ← p − α (w [m·g > 0] μm / (√v + ε) + λp), α by ‖p‖."""
    m, v = exp_avg, exp_avg_sq
    a = mu * (is_positive(m * g) * m) / (np.sqrt(v) + eps)
    p[...] = p - alpha * (weight * a + weight_decay * p)
