r"""Weight initialization: random weights, scaled so that activations keep their variance.

A unit that adds up n inputs multiplies their variance by n; weights of standard deviation

.. math:: \sigma = a / \sqrt n

undo that.  `scaled` is this rule; `lecun`, `xavier` (or `glorot`) and `kaiming` (or `he`) are its
instances, with a gain for the nonlinearity and n from the weights' shape.

Every function either allocates an array of a shape, or fills the array ``out``; float32 is drawn as
float32.  Seeds are integers or a NumPy Generator.  **Give all layers of a model the same
Generator**: layers of the same shape and the same integer seed begin equal.  Draws are NumPy's, and
the same on every machine, but for normal values beyond 3.65 standard deviations: these are made by
the C library's logarithm, whose last bit may differ.

The meaning of the axes depends on `layout`:

=================  ======================  =======================  ===========================
layout             dense                   convolution              used by
=================  ======================  =======================  ===========================
``"in_out"``       (in, out): ``x @ W``    (\*kernel, in, out)      NumPy networks, Keras, JAX
``"out_in"``       (out, in): ``x @ W.T``  (out, in, \*kernel)      torch
=================  ======================  =======================  ===========================

>>> import numpy as np
>>> from fastgd import init
>>> rng = np.random.default_rng(0)
>>> params = {"W": init.kaiming((64, 96), seed=rng), "b": init.constant(96, value=0.0)}
>>> params["W"].dtype, bool(abs(params["W"].std() - np.sqrt(2 / 64)) < 0.01)
(dtype('float32'), True)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fastgd.core.domains import nonnegative, number, one_of
from fastgd.core.seeds import Seed, generator
from fastgd.init.draws import (
    DISTRIBUTIONS,
    MODES,
    Array,
    Shape,
    calculate_gain,
    fans,
    fill,
    gain_of,
    given_fans,
    target,
    truncated,
)
from fastgd.init.draws import fans as fans_of
from fastgd.kernels.memory.checks import shown

__all__ = [
    "calculate_gain",
    "constant",
    "fans",
    "glorot",
    "he",
    "kaiming",
    "lecun",
    "orthogonal",
    "scaled",
    "truncated_normal",
    "xavier",
]

# Rejection sampling draws 1/mass times on average, so less mass than this is refused.
LEAST_MASS = 0.01


# ------------------------------------------------------------------- the rule and its instances


def scaled(
    shape: Shape | None = None,
    dtype: DTypeLike | None = None,
    *,
    a: float | str,
    mode: str = "fan_in",
    distribution: str = "normal",
    layout: str = "in_out",
    groups: int = 1,
    fans: tuple[int, int] | None = None,
    seed: Seed = None,
    out: Any = None,
) -> Array:
    r"""Random weights of mean 0 and standard deviation :math:`a / \sqrt n`.

    Parameters
    ----------
    shape : sequence of int, optional
        The shape of new weights, at least 2-D; the module's docstring says what its axes mean.
    dtype : optional
        float32, the default, or float64.
    a : float or str
        The factor, at least 0; or a nonlinearity by the name it has in `calculate_gain`.
    mode : {"fan_in", "fan_out", "fan_avg"}
        n: the number of a unit's inputs, of its outputs, or the mean of both.
    distribution : {"normal", "uniform", "truncated_normal"}
        Each has the standard deviation :math:`\sigma = a / \sqrt n`: uniform reaches from
        :math:`-\sqrt 3 \sigma` to :math:`\sqrt 3 \sigma`; truncated is cut off at two standard
        deviations of a normal distribution, wider by 1/0.8796 to make up for that.
    layout : {"in_out", "out_in"}
        Which axes are inputs and outputs.
    groups : int
        The groups of a convolution; see `fans`.
    fans : (int, int), optional
        The number of inputs and of outputs, for weights whose shape doesn't tell.
    seed : int, Generator or None
        The source of random numbers; None takes a seed from the system.
    out : array, optional
        Weights to fill in place: contiguous, writeable, NumPy or a CPU tensor.  Excludes `shape`
        and `dtype`.  Both memory orders get the same values.

    Returns
    -------
    ndarray
        The new weights, or `out`.

    Raises
    ------
    TypeError, ValueError
        If an argument is not valid; the message names it and nothing is changed.

    Examples
    --------
    >>> from fastgd import init
    >>> w = init.scaled((400, 300), a=2, distribution="uniform", seed=0)
    >>> round(float(w.std()), 2), float(abs(w).max()) <= 2 / 400**0.5 * 3**0.5
    (0.1, True)
    """
    w = target(shape, dtype, out)
    draw = DISTRIBUTIONS[one_of(DISTRIBUTIONS, distribution, "distribution")]
    both = fans_of(w.shape, layout, groups) if fans is None else given_fans(fans)
    n = MODES[one_of(MODES, mode, "mode")](*both)
    if not n:
        raise ValueError(f"shape: expected a {mode} of at least 1, found 0 in {w.shape}")
    std = gain_of(a, "a") / math.sqrt(n)
    rng = generator(seed)
    return fill(w, lambda flat: draw(flat, rng, std))


def lecun(
    shape: Shape | None = None,
    dtype: DTypeLike | None = None,
    *,
    gain: float | str = 1.0,
    mode: str = "fan_in",
    distribution: str = "normal",
    layout: str = "in_out",
    groups: int = 1,
    fans: tuple[int, int] | None = None,
    seed: Seed = None,
    out: Any = None,
) -> Array:
    r""":math:`\sigma = g / \sqrt{n_{in}}`: keeps the variance through linear units and selu.

    Parameters
    ----------
    shape, dtype, mode, distribution, layout, groups, fans, seed, out
        As for `scaled`, with its errors.
    gain : float or str
        g: `a` of `scaled`.

    References
    ----------
    LeCun, Bottou, Orr and Müller, "Efficient BackProp", 1998.

    Examples
    --------
    >>> from fastgd import init
    >>> round(float(init.lecun((400, 300), seed=0).std()), 3)
    0.05
    """
    a = gain_of(gain, "gain")
    return scaled(
        shape, dtype, a=a, mode=mode, distribution=distribution, layout=layout, groups=groups,
        fans=fans, seed=seed, out=out,
    )  # fmt: skip


def xavier(
    shape: Shape | None = None,
    dtype: DTypeLike | None = None,
    *,
    gain: float | str = 1.0,
    mode: str = "fan_avg",
    distribution: str = "normal",
    layout: str = "in_out",
    groups: int = 1,
    fans: tuple[int, int] | None = None,
    seed: Seed = None,
    out: Any = None,
) -> Array:
    r""":math:`\sigma = g \sqrt{2 / (n_{in} + n_{out})}`: for activations and gradients alike.

    Parameters
    ----------
    shape, dtype, mode, distribution, layout, groups, fans, seed, out
        As for `scaled`, with its errors.
    gain : float or str
        g: `a` of `scaled`.  ``"tanh"`` is 5/3.

    References
    ----------
    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks",
    2010.

    Examples
    --------
    >>> from fastgd import init
    >>> round(float(init.xavier((300, 500), seed=0).std()), 3)
    0.05
    """
    a = gain_of(gain, "gain")
    return scaled(
        shape, dtype, a=a, mode=mode, distribution=distribution, layout=layout, groups=groups,
        fans=fans, seed=seed, out=out,
    )  # fmt: skip


def kaiming(
    shape: Shape | None = None,
    dtype: DTypeLike | None = None,
    *,
    gain: float | str = "relu",
    mode: str = "fan_in",
    distribution: str = "normal",
    layout: str = "in_out",
    groups: int = 1,
    fans: tuple[int, int] | None = None,
    seed: Seed = None,
    out: Any = None,
) -> Array:
    r""":math:`\sigma = g / \sqrt{n_{in}}` with :math:`g = \sqrt 2`, as ReLU halves the variance.

    Parameters
    ----------
    shape, dtype, mode, distribution, layout, groups, fans, seed, out
        As for `scaled`, with its errors.
    gain : float or str
        g: `a` of `scaled`.  For leaky units, ``calculate_gain("leaky_relu", slope)``.

    References
    ----------
    He, Zhang, Ren and Sun, "Delving deep into rectifiers", 2015.

    Examples
    --------
    >>> from fastgd import init
    >>> round(float(init.kaiming((200, 400), seed=0).std()), 2)
    0.1
    """
    a = gain_of(gain, "gain")
    return scaled(
        shape, dtype, a=a, mode=mode, distribution=distribution, layout=layout, groups=groups,
        fans=fans, seed=seed, out=out,
    )  # fmt: skip


glorot = xavier
he = kaiming


# -------------------------------------------------------------------------------- other weights


def truncated_normal(
    shape: Shape | None = None,
    dtype: DTypeLike | None = None,
    *,
    mean: float = 0.0,
    std: float = 1.0,
    bounds: tuple[float, float] = (-2.0, 2.0),
    seed: Seed = None,
    out: Any = None,
) -> Array:
    r"""Truncated normal values: those beyond the bounds are drawn anew.

    Parameters
    ----------
    shape : int or sequence of int, optional
        Any shape.
    dtype, seed, out
        As for `scaled`.
    mean, std : float
        Mean and standard deviation σ of the normal distribution **before** truncation, as in
        torch.  The truncated one is narrower: between bounds l and u its variance is

        .. math:: \sigma^2 \left(1 + \frac{l\varphi(l) - u\varphi(u)}{Z}
                  - \left(\frac{\varphi(l) - \varphi(u)}{Z}\right)^2\right), \quad
                  Z = \Phi(u) - \Phi(l),

        which is (0.8796 σ)² for ±2.
    bounds : (float, float)
        l and u **in units of σ from the mean**; torch's ``a`` is mean + lσ, ``b`` mean + uσ.
        Between them must lie 1 % of the normal distribution or more.

    Returns
    -------
    ndarray
        The new array, or `out`.

    Raises
    ------
    TypeError, ValueError
        If an argument is not valid; the message names it and nothing is changed.

    Examples
    --------
    >>> from fastgd import init
    >>> w = init.truncated_normal(100_000, std=0.5, seed=0)
    >>> float(abs(w).max()) <= 1.0, round(float(w.std()), 2)
    (True, 0.44)
    """
    w = target(shape, dtype, out)
    center, width = number(mean, "mean"), nonnegative(std, "std")
    if not isinstance(bounds, (tuple, list, np.ndarray)) or len(bounds) != 2:
        raise TypeError(f"bounds: expected two numbers, found {shown(bounds)}")
    low, high = (number(b, f"bounds[{k}]") for k, b in enumerate(bounds))
    if not low < high:
        raise ValueError(f"bounds: expected the lower one first, found {low} and {high}")
    mass = (math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2))) / 2
    if mass < LEAST_MASS:
        raise ValueError(
            f"bounds: expected {LEAST_MASS:.0%} or more between them, found {mass:.2%}"
        )
    rng = generator(seed)
    return fill(w, lambda flat: truncated(flat, rng, center, width, low, high))


def orthogonal(
    shape: Shape | None = None,
    dtype: DTypeLike | None = None,
    *,
    gain: float | str = 1.0,
    layout: str = "in_out",
    seed: Seed = None,
    out: Any = None,
) -> Array:
    r"""A random orthogonal matrix times a gain, uniform among all of them.

    The weights count as a matrix with a column (``"in_out"``) or row (``"out_in"``) for each
    output, the other axes flattened.  Its columns are orthonormal, times `gain`, if it is at least
    as high as wide: :math:`W^T W = g^2 I`; else its rows are: :math:`W W^T = g^2 I`.

    Parameters
    ----------
    shape, dtype, layout, seed, out
        As for `scaled`, with its errors.
    gain : float or str
        g; or a nonlinearity by the name it has in `calculate_gain`.

    Notes
    -----
    The QR decomposition is LAPACK's, in the dtype of the weights: its last bits depend on the
    build of NumPy and the processor.

    References
    ----------
    Saxe, McClelland and Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep
    linear neural networks", 2014.
    Mezzadri, "How to generate random matrices from the classical compact groups", 2007.

    Examples
    --------
    >>> import numpy as np
    >>> from fastgd import init
    >>> w = init.orthogonal((5, 3), np.float64, gain=2.0, seed=0)
    >>> bool(np.allclose(w.T @ w, 4 * np.eye(3)))
    True
    """
    w = target(shape, dtype, out)
    factor = gain_of(gain, "gain")
    fans_of(w.shape, layout)  # raises unless the weights have inputs and outputs
    outputs = w.shape[-1 if layout == "in_out" else 0]
    rest = w.size // outputs if outputs else 0
    rows, columns = (rest, outputs) if layout == "in_out" else (outputs, rest)
    rng = generator(seed)

    def draw(flat: Array) -> None:
        high, wide = max(rows, columns), min(rows, columns)
        q, r = np.linalg.qr(rng.standard_normal((high, wide), flat.dtype.type))
        q *= np.copysign(factor, np.diagonal(r))  # or Q would depend on LAPACK's choice of signs
        flat.reshape(rows, columns)[...] = q if rows >= columns else q.T

    return fill(w, draw)


def constant(
    shape: Shape | None = None, dtype: DTypeLike | None = None, *, value: float, out: Any = None
) -> Array:
    """The same value everywhere: 0 for biases, 1 for scales.

    Parameters
    ----------
    shape : int or sequence of int, optional
        Any shape.
    dtype, out
        As for `scaled`, with its errors.
    value : float
        The value, finite.

    Examples
    --------
    >>> from fastgd import init
    >>> init.constant(3, value=0.5)
    array([0.5, 0.5, 0.5], dtype=float32)
    """
    w = target(shape, dtype, out)
    w[...] = number(value, "value")
    return w
