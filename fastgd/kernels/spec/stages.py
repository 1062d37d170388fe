"""The stages around a rule, in NumPy: twins of the functions in ``loops/stages.pxi``."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fastgd.kernels.spec.average import ema
from fastgd.kernels.spec.coded_array import CodedArray, as_coded
from fastgd.kernels.spec.registry import Array, Scalar


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


def average(mean: Array, p: CodedArray, beta: float, gamma: float) -> None:
    """The stage after the rule that averages weights: the rule `ema`."""
    to = mean.dtype.type
    with np.errstate(all="ignore"):
        ema(as_coded(mean).raw(), p.load(to), beta=to(beta), gamma=to(gamma))


def copy(out: CodedArray, p: CodedArray) -> None:
    """The stage after it that copies the parameter to another type, to nearest."""
    out.store(p.load(np.float64 if p.codec == "float64" else np.float32).copy())
