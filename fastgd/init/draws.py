"""The helpers of `fastgd.init`: fans and gains, the array to fill, and the distributions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastgd.core.domains import integer, nonnegative, number, one_of, two
from fastgd.kernels.memory import checks
from fastgd.kernels.memory.checks import shown

Array = NDArray[Any]
Shape = int | Sequence[int]

LAYOUTS = ("in_out", "out_in")
MODES: dict[str, Callable[[int, int], float]] = {
    "fan_in": lambda fan_in, fan_out: fan_in,
    "fan_out": lambda fan_in, fan_out: fan_out,
    "fan_avg": lambda fan_in, fan_out: (fan_in + fan_out) / 2,
}
LINEAR = ("linear", "sigmoid", *(f"conv{t}{d}d" for t in ("", "_transpose") for d in (1, 2, 3)))
GAINS = {**dict.fromkeys(LINEAR, 1.0), "tanh": 5 / 3, "relu": math.sqrt(2), "selu": 3 / 4}
# The standard deviation of a standard normal distribution truncated at ±2: √(1 − 4φ(2) / erf √2).
NARROWED = 0.8796256610342398


def fans(shape: Sequence[int], layout: str = "in_out", groups: int = 1) -> tuple[int, int]:
    r"""Fan-in and fan-out: the inputs of a unit, and the units that an input feeds.

    Both are channels times the elements of the kernel, which are 1 for dense weights.  A
    convolution in groups has the inputs of one group in its shape, and the outputs of all, of which
    an input feeds those of its group.

    Parameters
    ----------
    shape : sequence of int
        (in, out) or (\*kernel, in, out); or, with ``"out_in"``, (out, in) or (out, in, \*kernel).
    layout : {"in_out", "out_in"}
        The order of the axes.
    groups : int
        The groups of a convolution: channels of each are connected among themselves alone.

    Returns
    -------
    fan_in, fan_out : int

    Raises
    ------
    TypeError, ValueError
        If `shape` is not two or more integers of at least 0, there is no such layout, or outputs
        can't be divided into so many groups.

    Examples
    --------
    >>> from fastgd.init import fans
    >>> fans((64, 96)), fans((3, 3, 16, 32)), fans((32, 16, 3, 3), "out_in")
    ((64, 96), (144, 288), (144, 288))
    >>> fans((4, 1, 3, 3), "out_in", groups=4)
    (9, 9)
    """
    sizes = as_shape(shape)
    if len(sizes) < 2:
        raise ValueError(f"shape: expected inputs and outputs, at least 2-D, found {sizes}")
    if one_of(LAYOUTS, layout, "layout") == "in_out":
        *kernel, inputs, outputs = sizes
    else:
        outputs, inputs, *kernel = sizes
    if outputs % integer(groups, "groups", 1):
        raise ValueError(f"groups: expected a divisor of the {outputs} outputs, found {groups}")
    field = math.prod(kernel)
    return inputs * field, outputs // groups * field


def given_fans(value: Any) -> tuple[int, int]:
    """Fan-in and fan-out as a caller gives them."""
    fan_in, fan_out = two(value, "fans")
    return integer(fan_in, "fans[0]"), integer(fan_out, "fans[1]")


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    r"""The gain of a nonlinearity: the factor of weights that makes up for its change of variance.

    1 for linear, convolutions and sigmoid; 5/3 for tanh, :math:`\sqrt 2` for relu, 3/4 for selu,
    and :math:`\sqrt{2 / (1 + s^2)}` for leaky_relu of slope s: torch's names and values.

    Parameters
    ----------
    nonlinearity : str
        Its name.
    param : float, optional
        The slope of leaky_relu below 0, by default 0.01; the others have none.

    Raises
    ------
    TypeError, ValueError
        If there is no such nonlinearity, or it has no such parameter.

    Examples
    --------
    >>> from fastgd.init import calculate_gain
    >>> calculate_gain("leaky_relu", 1.0), round(calculate_gain("tanh"), 3)
    (1.0, 1.667)
    """
    if one_of((*GAINS, "leaky_relu"), nonlinearity, "nonlinearity") != "leaky_relu":
        if param is not None:
            raise TypeError(f"param: expected None for {nonlinearity}, found {shown(param)}")
        return GAINS[nonlinearity]
    slope = 0.01 if param is None else number(param, "param")
    return math.sqrt(2 / (1 + slope * slope))


def gain_of(value: float | str, name: str) -> float:
    """A gain, at least 0, from a number or the name of a nonlinearity."""
    if isinstance(value, str):
        return calculate_gain(one_of((*GAINS, "leaky_relu"), value, name))
    return nonnegative(value, name)


# ----------------------------------------------------------------------------- arrays to fill


def as_shape(shape: Any) -> tuple[int, ...]:
    """The shape of an array, as NumPy takes it; raises if it isn't one."""
    if isinstance(shape, (tuple, list)):
        return tuple(integer(n, f"shape[{k}]") for k, n in enumerate(shape))
    return (integer(shape, "shape"),)


def target(shape: Shape | None, dtype: DTypeLike | None, out: Any) -> Array:
    """The array to fill: `out`, or else a new one."""
    if out is not None:
        if shape is not None or dtype is not None:
            raise TypeError("out excludes shape and dtype: it has its own")
        return checks.check_parameter(out, "out")
    if shape is None:
        raise TypeError("shape: expected a shape, or an array as out, found neither")
    try:
        kind = np.dtype(np.float32 if dtype is None else dtype)
    except TypeError:
        raise TypeError(f"dtype: expected float32 or float64, found {shown(dtype)}") from None
    if kind not in checks.DTYPES:
        raise TypeError(f"dtype: expected float32 or float64, found {kind}")
    sizes = as_shape(shape)
    try:
        return np.empty(sizes, kind)
    except ValueError as error:  # too many dimensions, or too large
        raise ValueError(f"shape: expected one that an array can have ({error})") from None


def fill(w: Array, draw: Callable[[Array], None]) -> Array:
    """Fill `w` by `draw`, which gets a flat array in C order, whatever the memory order of `w`."""
    if w.flags.c_contiguous:
        draw(w.reshape(-1))
    else:
        flat = np.empty(w.size, w.dtype)
        draw(flat)
        w[...] = flat.reshape(w.shape)
    return w


# ---------------------------------------------------------------------------------- the draws


def normal(flat: Array, rng: np.random.Generator, std: float) -> None:
    """Normal values of mean 0."""
    rng.standard_normal(dtype=flat.dtype.type, out=flat)
    flat *= std


def uniform(flat: Array, rng: np.random.Generator, std: float) -> None:
    """Uniform values of mean 0 and standard deviation `std`, from −√3 to √3 times that."""
    bound = math.sqrt(3) * std
    rng.random(dtype=flat.dtype.type, out=flat)
    flat *= 2 * bound
    flat -= bound


def truncated(
    flat: Array, rng: np.random.Generator, mean: float, std: float, low: float, high: float
) -> None:
    """Normal values, drawn again until all are within bounds in units of `std` from `mean`."""
    rng.standard_normal(dtype=flat.dtype.type, out=flat)
    outside = np.flatnonzero((flat < low) | (flat > high))
    while outside.size:
        again = rng.standard_normal(outside.size, flat.dtype.type)
        flat[outside] = again
        outside = outside[(again < low) | (again > high)]
    flat *= std
    flat += mean


def truncated_at_two(flat: Array, rng: np.random.Generator, std: float) -> None:
    """Values of mean 0 and standard deviation `std`, of a normal truncated at ±2 of its own σ."""
    truncated(flat, rng, 0.0, std / NARROWED, -2.0, 2.0)


DISTRIBUTIONS: dict[str, Callable[[Array, np.random.Generator, float], None]] = {
    "normal": normal,
    "uniform": uniform,
    "truncated_normal": truncated_at_two,
}
