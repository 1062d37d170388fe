"""The stages around a rule, and a step of one tensor, in NumPy: twins of ``loops/stages.pxi``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fastgd.kernels.spec.average import ema
from fastgd.kernels.spec.coded_array import CodedArray, as_coded, random_bit_offsets
from fastgd.kernels.spec.random_words import random_words
from fastgd.kernels.spec.registry import RULES, Array, Scalar


class Stages(NamedTuple):
    """What the stages of a step are given; at its default a stage is left out.

    Attributes
    ----------
    factor : float
        Of the gradient: the sign of ascent, and what undoes the scale of the loss.
    weight_decay : float
        λ of L2 decay.
    decoupled : float
        Factor of the parameter: decoupled decay.
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
    """Decay that doesn't pass through the gradient (Loshchilov and Hutter, 2019): p ← (1 − αλ)p."""
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


def step_coded(
    name: str,
    p: CodedArray,
    g: CodedArray,
    states: Sequence[CodedArray],
    coefficients: Sequence[float],
    stages: Stages,
    keys: Sequence[int],
    units: Array | None = None,
) -> None:
    """`step` of arrays that may be stored in other types than is computed with: load, step, store.

    Parameters
    ----------
    name, coefficients, stages, units
        As for `step`.
    p, g : CodedArray
        The parameter and its gradient.
    states : sequence of CodedArray
        The states in the rule's order.
    keys : sequence of int
        Of the random words by which stores round; each word serves two, states first.
    """
    dtype = np.float64 if p.codec == "float64" else np.float32
    arrays = [*states, p]
    *loaded, x = [a.load(dtype) for a in arrays]
    step(name, x, g.load(dtype), loaded, coefficients, stages, units)
    words = [random_words(key, p.origin, x.size) for key in keys]
    for a, values, offset in zip(arrays, [*loaded, x], random_bit_offsets(arrays), strict=True):
        if offset < 0:
            a.store(values)
        else:
            a.store(values, words[offset // 32], offset % 32)


def average(mean: Array, p: CodedArray, beta: float, gamma: float) -> None:
    """The stage after the rule that averages weights: the rule `ema`."""
    to = mean.dtype.type
    with np.errstate(all="ignore"):
        ema(as_coded(mean).raw(), p.load(to), beta=to(beta), gamma=to(gamma))


def copy(out: CodedArray, p: CodedArray) -> None:
    """The stage after it that copies the parameter to another type, to nearest."""
    out.store(p.load(np.float64 if p.codec == "float64" else np.float32).copy())
