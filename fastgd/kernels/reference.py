"""Every rule and every stage in NumPy: what the compiled kernels must compute, to the bit.

A rule is the formula of its paper and nothing else.  Its signature is also its declaration: after
the parameter ``p`` and the gradient ``g`` come the states, by torch.optim's names, and after the
``*`` the coefficients, by the papers' letters, in the order in which the compiled loop takes them.
Arrays are updated in place.  Whatever depends on the step count (bias correction, first step) was
worked out in double precision and arrives as a coefficient, rounded once to the type of ``p``.

The compiled twins stand in ``_rules.pxi`` and ``_stages.pxi`` under the same names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastgd.kernels.spec.coded_array import Stored, as_stored, shifts
from fastgd.kernels.spec.random_words import random_words

Array = NDArray[Any]
Squares = Array  # a state that is never negative
Scalar = Any  # a NumPy scalar of the arrays' type


class Rule(NamedTuple):
    """A row of `RULES`: what a rule is called, needs and does."""

    name: str
    states: tuple[str, ...]
    coefficients: tuple[str, ...]
    update: Callable[..., None]
    squares: frozenset[str]


RULES: dict[str, Rule] = {}


def rule(update: Callable[..., None]) -> Callable[..., None]:
    """Enter a function in `RULES`, reading states and coefficients off its signature."""
    code = update.__code__
    positional, total = code.co_argcount, code.co_argcount + code.co_kwonlyargcount
    names = code.co_varnames
    states, coefficients = names[2:positional], names[positional:total]
    squares = frozenset(key for key in states if update.__annotations__[key] == "Squares")
    RULES[code.co_name] = Rule(code.co_name, states, coefficients, update, squares)
    return update


# ---------------------------------------------------------------------------------------- rules


@rule
def sgd(p: Array, g: Array, *, alpha: Scalar) -> None:
    """Gradient descent: p ← p − αg."""
    p[...] = p - alpha * g


@rule
def momentum(
    p: Array, g: Array, momentum_buffer: Array, *, alpha: Scalar, beta: Scalar, gamma: Scalar
) -> None:
    """Descent along an accumulated direction: V ← βV + γg; p ← p − αV.

    γ = 1 − β makes V the exponentially weighted average of the gradients, γ = 1 the heavy ball
    of Polyak (1964).
    """
    V = momentum_buffer
    V[...] = beta * V + gamma * g
    p[...] = p - alpha * V


@rule
def nesterov(
    p: Array,
    g: Array,
    momentum_buffer: Array,
    *,
    alpha: Scalar,
    beta: Scalar,
    gamma: Scalar,
    mu: Scalar,
) -> None:
    """Heavy ball that looks ahead: V ← βV + γg; p ← p − α(g + μV) (Sutskever et al., 2013)."""
    V = momentum_buffer
    V[...] = beta * V + gamma * g
    p[...] = p - alpha * (g + mu * V)


@rule
def adagrad(
    p: Array, g: Array, sum: Squares, *, alpha: Scalar, eps: Scalar, eps_root: Scalar
) -> None:
    """ν ← ν + g²; p ← p − αg / (√(ν + ε_root) + ε) (Duchi, Hazan and Singer, 2011)."""
    nu = sum
    nu[...] = nu + g * g
    p[...] = p - alpha * g / (np.sqrt(nu + eps_root) + eps)


@rule
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


@rule
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
    """RMSProp whose scaled gradients feed a heavy ball: V ← μV + g/(√(ν + ε_root) + ε)."""
    nu, V = square_avg, momentum_buffer
    nu[...] = beta * nu + gamma * (g * g)
    V[...] = mu * V + g / (np.sqrt(nu + eps_root) + eps)
    p[...] = p - alpha * V


@rule
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
    """RMSProp by the variance ν − ḡ², ḡ ← βḡ + γg (Graves, 2013); rounding below 0 counts as 0."""
    nu, mean = square_avg, grad_avg
    nu[...] = beta * nu + gamma * (g * g)
    mean[...] = beta * mean + gamma * g
    p[...] = p - alpha * g / (np.sqrt(positive_part(nu - mean * mean) + eps_root) + eps)


@rule
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
    """Centered RMSProp whose scaled gradients feed a heavy ball."""
    nu, mean, V = square_avg, grad_avg, momentum_buffer
    nu[...] = beta * nu + gamma * (g * g)
    mean[...] = beta * mean + gamma * g
    V[...] = mu * V + g / (np.sqrt(positive_part(nu - mean * mean) + eps_root) + eps)
    p[...] = p - alpha * V


@rule
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


def positive_part(x: Array) -> Array:
    """x, or 0 where x < 0; NaN stays NaN."""
    clipped: Array = np.where(x < 0, x.dtype.type(0), x)
    return clipped


@rule
def ema(p: Array, g: Array, *, beta: Scalar, gamma: Scalar) -> None:
    """The exponentially weighted average of weights: p ← βp + γg, p the average, g the weights."""
    p[...] = beta * p + gamma * g


# --------------------------------------------------------------------------------------- series


def ewma(x: Array, out: Array, v: Array, weight: float, beta: float, correct: bool) -> float:
    """Averages along the middle axis: V ← βV + (1 − β)X, c ← βc + (1 − β), out = V or V/c.

    c is the sum of the weights, 1 − βᵗ after t values from V = 0; see `fastgd.averages.ewma`.
    Returns the last c.
    """
    to = x.dtype.type
    past, now, c = to(beta), to(1.0 - beta), to(weight)
    with np.errstate(all="ignore"):
        for t in range(x.shape[1]):
            v[...] = past * v + now * x[:, t]
            c = past * c + now
            out[:, t] = v / c if correct else v
    return float(c)


# --------------------------------------------------------------------------------------- stages


class Stages(NamedTuple):
    """What the stages of a step are given; at its default a stage is left out.

    Attributes
    ----------
    factor : float
        Of the gradient: the sign of ascent, and what undoes the scale of the loss.
    weight_decay : float
        λ of L2 decay.
    decoupled : float
        Factor of the parameter: decay beside the gradient.
    clip_value : float
        The most that an element of the gradient may be, either way.
    clip_norm : float
        The most that the gradients' norm may be; the engine turns it into a factor.
    clip_ratio : float
        The most that the norm of a unit of the gradient may be, as a multiple of its parameters';
        the engine turns it into the factors of units.
    """

    factor: float = 1.0
    weight_decay: float = 0.0
    decoupled: float = 1.0
    clip_value: float = math.inf
    clip_norm: float = math.inf
    clip_ratio: float = math.inf


def scale(g: Array, factor: Scalar) -> Array:
    """The gradient times a factor."""
    scaled: Array = factor * g
    return scaled


def scale_units(g: Array, factors: Array) -> Array:
    """The gradient times the factor of each of its units, which follow each other in memory."""
    scaled: Array = np.repeat(factors, g.size // factors.size) * g
    return scaled


def clip_value(g: Array, bound: Scalar) -> Array:
    """The gradient with each element brought into [−bound, bound]; NaN stays NaN."""
    low = np.where(g < -bound, -bound, g)
    clipped: Array = np.where(low > bound, bound, low)
    return clipped


def l2_decay(g: Array, p: Array, weight_decay: Scalar) -> Array:
    """The gradient of the loss with a penalty ½λ‖p‖²: g + λp."""
    decayed: Array = g + weight_decay * p
    return decayed


def decoupled_decay(p: Array, factor: Scalar) -> None:
    """Decay beside the gradient (Loshchilov and Hutter, 2019): p ← (1 − αλ)p."""
    p[...] = factor * p


def step(
    name: str,
    p: Array,
    g: Array,
    states: Sequence[Array],
    coefficients: Sequence[float],
    stages: Stages = Stages(),  # noqa: B008 - immutable
    units: Array | None = None,
) -> None:
    """A step of one tensor: scale → value clipping → L2 decay → decoupled decay → rule.

    Scaled are all elements alike, or each unit by a factor of its own.

    Parameters
    ----------
    name : str
        A key of `RULES`.
    p : ndarray of float32 or float64
        The parameter, updated in place.
    g : ndarray, like `p`
        Its gradient, only read.
    states : sequence of ndarray, like `p`
        The states in the rule's order, updated in place.
    coefficients : sequence of float
        The coefficients in the rule's order, not yet rounded.
    stages : Stages
        What the stages are given, not yet rounded; the factor that clips a norm is in its factor.
    units : ndarray of float64, shape (units,), optional
        The factor of each unit, in the place of `stages.factor`.
    """
    to = p.dtype.type
    with np.errstate(all="ignore"):
        if units is not None:
            g = scale_units(g, units.astype(to))
        elif stages.factor != 1.0:
            g = scale(g, to(stages.factor))
        if stages.clip_value != math.inf:
            g = clip_value(g, to(stages.clip_value))
        if stages.weight_decay != 0.0:
            g = l2_decay(g, p, to(stages.weight_decay))
        if stages.decoupled != 1.0:
            decoupled_decay(p, to(stages.decoupled))
        row = RULES[name]
        rounded = dict(zip(row.coefficients, map(to, coefficients), strict=True))
        row.update(p, g, *states, **rounded)


def step_stored(
    name: str,
    p: Stored,
    g: Stored,
    states: Sequence[Stored],
    coefficients: Sequence[float],
    stages: Stages,
    keys: Sequence[int],
    units: Array | None = None,
) -> None:
    """`step` of arrays that may be kept in other types than is computed with: load → step → store.

    Parameters
    ----------
    name, coefficients, stages, units
        As for `step`.
    p, g : Stored
        The parameter and its gradient.
    states : sequence of Stored
        The states in the rule's order.
    keys : sequence of int
        Of the random words by which stores round; each word serves two, states first.
    """
    dtype = np.float64 if p.codec == "float64" else np.float32
    kept = [*states, p]
    *loaded, x = [a.load(dtype) for a in kept]
    step(name, x, g.load(dtype), loaded, coefficients, stages, units)
    words = [random_words(key, p.origin, x.size) for key in keys]
    for a, values, shift in zip(kept, [*loaded, x], shifts(kept), strict=True):
        if shift < 0:
            a.store(values)
        else:
            a.store(values, words[shift // 32], shift % 32)


def average(mean: Array, p: Stored, beta: float, gamma: float) -> None:
    """The stage after the rule that averages weights: the rule `ema`."""
    to = mean.dtype.type
    with np.errstate(all="ignore"):
        ema(Stored(mean, None, mean.dtype.name).raw(), p.load(to), beta=to(beta), gamma=to(gamma))


def copy(out: Stored, p: Stored) -> None:
    """The stage after it that copies the parameter to another type, to nearest."""
    out.store(p.load(np.float64 if p.codec == "float64" else np.float32).copy())


# ---------------------------------------------------------------------------------------- norms

LANES = 16  # sums that run side by side
BLOCK = 32768  # elements after which they are added up


def sums_of_squares(x: Array | Stored, factor: float = 1.0, unit: int = 0) -> Array:
    """The sum of (factor·x)² over each block of an array, in memory's order, in double precision.

    A block's elements go to its lanes in turn, and lanes are added up as a binary tree: so the bits
    depend on neither vectors nor threads.  Each `unit` elements, by default all, have blocks of
    their own, the last of which is shorter.
    """
    flat = as_stored(x).load(np.float64)
    rows = flat.reshape(-1, unit or max(flat.size, 1))
    sums = np.empty((len(rows), -(-rows.shape[1] // BLOCK)))
    with np.errstate(all="ignore"):
        for k in range(sums.shape[1]):
            y = factor * rows[:, k * BLOCK : (k + 1) * BLOCK]
            turns = -(-y.shape[1] // LANES)
            square = np.zeros((len(y), turns * LANES))
            square[:, : y.shape[1]] = y * y
            lane = np.add.accumulate(square.reshape(len(y), turns, LANES), axis=1)[:, -1]
            while lane.shape[1] > 1:
                middle = lane.shape[1] // 2
                lane = lane[:, :middle] + lane[:, middle:]
            sums[:, k] = lane[:, 0]
    return sums.ravel()
