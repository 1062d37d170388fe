"""Surfaces: test functions for optimization, with value and gradient, over many points at once.

`SURFACES` has one of each by its name; the functions of this module make them with other numbers
of variables, other eigenvalues, other columns of data.

>>> import numpy as np, fastgd
>>> from fastgd.surfaces import SURFACES
>>> beale = SURFACES["beale"]
>>> w = np.array(beale.start)
>>> opt = fastgd.Adam(w, lr=0.05)
>>> for _ in range(2000):
...     _ = opt.step(beale.gradient(w))
>>> w.round(3), beale.minimum
(array([3. , 0.5]), Known(point=(3.0, 0.5), value=0.0))

The last axis of an array of points are the variables: the contours of a picture take one call of
`value`, and a thousand descents from different starts one array of shape (1000, 2).

Two surfaces are the losses of linear models on data sets of scikit-learn.  These also take the
samples of a mini-batch:

>>> diabetes = SURFACES["least_squares"]
>>> diabetes.gradient(np.zeros(diabetes.dim), samples=[0, 7, 99]).shape
(11,)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from fastgd.core.domains import integer, number
from fastgd.surfaces.base import Array, FormulaSurface, Known, Surface
from fastgd.surfaces.data import DataSurface, least_squares, logistic_regression

__all__ = [
    "SURFACES",
    "DataSurface",
    "Known",
    "Surface",
    "beale",
    "double_well",
    "himmelblau",
    "least_squares",
    "logistic_regression",
    "plateau",
    "quadratic",
    "rastrigin",
    "rosenbrock",
    "saddle",
    "styblinski_tang",
]


def _dim(d: Any, least: int = 1) -> int:
    count = integer(d, "d")
    if count < least:
        raise ValueError(f"d: expected at least {least} variables, found {count}")
    return count


def quadratic(
    eigenvalues: Sequence[float] = (1.0, 10.0),
    basis: object = None,
    center: Sequence[float] | None = None,
) -> Surface:
    r"""A convex quadratic of any conditioning: :math:`\frac 1 2 (x - c)^T Q \Lambda Q^T (x - c)`.

    Gradient descent converges for learning rates below :math:`2 / \lambda_{max}`, at a rate that
    the condition number :math:`\lambda_{max} / \lambda_{min}` sets.

    Parameters
    ----------
    eigenvalues : sequence of float, length d
        The diagonal of Λ, all above 0.
    basis : array_like, shape (d, d), optional
        Q, whose columns are the axes; orthogonal.  The coordinate axes if left out.
    center : sequence of float, length d, optional
        c, the minimum; the origin if left out.

    Examples
    --------
    >>> quadratic([1, 100]).gradient([[3.0, 0.0], [0.0, 3.0]])
    array([[  3.,   0.],
           [  0., 300.]])
    """
    scales = np.array([number(v, f"eigenvalues[{k}]") for k, v in enumerate(eigenvalues)])
    d = len(scales)
    if not d or scales.min() <= 0:
        raise ValueError(f"eigenvalues: expected numbers above 0, found {list(eigenvalues)}")
    axes = np.eye(d) if basis is None else np.asarray(basis, np.float64)
    if axes.shape != (d, d):
        raise ValueError(f"basis: expected shape {(d, d)}, found {axes.shape}")
    if not np.abs(axes.T @ axes - np.eye(d)).max() < 1e-9:
        raise ValueError("basis: expected orthogonal columns of length 1")
    middle = (0.0,) * d if center is None else center
    c = np.array([number(v, f"center[{k}]") for k, v in enumerate(middle)])
    if len(c) != d:
        raise ValueError(f"center: expected {d} numbers, found {len(c)}")

    def coordinates(x: Array) -> Any:
        return (x - c.astype(x.dtype)) @ axes.astype(x.dtype)

    def f(x: Array) -> Any:
        return 0.5 * (coordinates(x) ** 2) @ scales.astype(x.dtype)

    def df(x: Array) -> Any:
        return (coordinates(x) * scales.astype(x.dtype)) @ axes.T.astype(x.dtype)

    return FormulaSurface(
        "quadratic",
        "½ (x − c)ᵀ Q Λ Qᵀ (x − c)",
        "Nocedal and Wright, Numerical Optimization, 2006, chapter 3",
        tuple((v - 3.0, v + 3.0) for v in c.tolist()),
        tuple(v + 2.0 for v in c.tolist()),
        (Known(tuple(c.tolist()), 0.0),),
        (),
        f,
        df,
    )


def double_well() -> Surface:
    """x⁴ − 3x² + x: one variable, a local and a global minimum with a hill between them."""
    return FormulaSurface(
        "double_well",
        "x⁴ − 3x² + x",
        "the tilted double well of textbooks, a Landau potential in an outer field",
        ((-2.0, 2.0),),
        (1.9,),
        (
            Known((-1.3008395659415772,), -3.5139050389347894),
            Known((1.1309011226299859,), -1.0702301817761541),
        ),
        (),
        lambda p: (p**4 - 3 * p**2 + p)[..., 0],
        lambda p: 4 * p**3 - 6 * p + 1,
    )


def saddle() -> Surface:
    """½x² − ½y² + ¼y⁴: a saddle at the origin between two minima.

    From a start on the ridge y = 0 gradient descent runs into the saddle; the suggested start is
    1e-6 off it.
    """
    return FormulaSurface(
        "saddle",
        "½x² − ½y² + ¼y⁴",
        "Nesterov, Introductory Lectures on Convex Optimization, 2004, example 1.2.2",
        ((-2.0, 2.0), (-2.0, 2.0)),
        (1.5, 1e-6),
        (Known((0.0, 1.0), -0.25), Known((0.0, -1.0), -0.25)),
        (Known((0.0, 0.0), 0.0),),
        lambda p: 0.5 * p[..., 0] ** 2 - 0.5 * p[..., 1] ** 2 + 0.25 * p[..., 1] ** 4,
        lambda p: np.stack([p[..., 0], p[..., 1] ** 3 - p[..., 1]], axis=-1),
    )


def plateau() -> Surface:
    """1 − exp(−(x² + y²)/2): a basin in a plain, where gradients all but vanish."""

    def f(p: Array) -> Any:
        return -np.expm1(-0.5 * (p**2).sum(axis=-1))

    def df(p: Array) -> Any:
        return p * np.exp(-0.5 * (p**2).sum(axis=-1, keepdims=True))

    return FormulaSurface(
        "plateau",
        "1 − exp(−(x² + y²)/2)",
        "Welsch's loss, in two variables; after Easom's function of 1990",
        ((-5.0, 5.0), (-5.0, 5.0)),
        (3.0, 2.5),
        (Known((0.0, 0.0), 0.0),),
        (),
        f,
        df,
    )


def rosenbrock(d: int = 2) -> Surface:
    """Σ 100 (xₖ₊₁ − xₖ²)² + (1 − xₖ)²: a flat valley along a bent path.

    Listed is the global minimum; with 4 to 7 variables there is a local one near (−1, 1, …, 1).

    Parameters
    ----------
    d : int
        The number of variables, at least 2.
    """
    d = _dim(d, 2)

    def f(p: Array) -> Any:
        x, after = p[..., :-1], p[..., 1:]
        return (100 * (after - x**2) ** 2 + (1 - x) ** 2).sum(axis=-1)

    def df(p: Array) -> Any:
        x, rise = p[..., :-1], p[..., 1:] - p[..., :-1] ** 2
        g = np.zeros_like(p)
        g[..., :-1] = -400 * x * rise - 2 * (1 - x)
        g[..., 1:] += 200 * rise
        return g

    return FormulaSurface(
        "rosenbrock",
        "Σ 100 (xₖ₊₁ − xₖ²)² + (1 − xₖ)²",
        "Rosenbrock, An automatic method for finding the greatest or least value, 1960",
        ((-2.0, 2.0),) * d,
        (-1.2,) + (1.0,) * (d - 1),
        (Known((1.0,) * d, 0.0),),
        (),
        f,
        df,
    )


def beale() -> Surface:
    """(1.5 − x + xy)² + (2.25 − x + xy²)² + (2.625 − x + xy³)²: plains, walls, a narrow valley."""
    targets = (1.5, 2.25, 2.625)

    def f(p: Array) -> Any:
        x, y = p[..., 0], p[..., 1]
        return sum((c - x + x * y**k) ** 2 for k, c in enumerate(targets, 1))

    def df(p: Array) -> Any:
        x, y = p[..., 0], p[..., 1]
        g = np.zeros_like(p)
        for k, c in enumerate(targets, 1):
            rest = 2 * (c - x + x * y**k)
            g[..., 0] += rest * (y**k - 1)
            g[..., 1] += rest * k * x * y ** (k - 1)
        return g

    return FormulaSurface(
        "beale",
        "(1.5 − x + xy)² + (2.25 − x + xy²)² + (2.625 − x + xy³)²",
        "Beale, On an iterative method for finding a local minimum of a function, 1958",
        ((-4.5, 4.5), (-4.5, 4.5)),
        (1.0, 1.5),
        (Known((3.0, 0.5), 0.0),),
        (
            Known((0.0, 1.0), 14.203125),
            Known((0.10053793732415837, -2.644513585023125), 9.86451228475556),
        ),
        f,
        df,
    )


def himmelblau() -> Surface:
    """(x² + y − 11)² + (x + y² − 7)²: four minima of the same depth, and four saddles."""

    def f(p: Array) -> Any:
        x, y = p[..., 0], p[..., 1]
        return (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2

    def df(p: Array) -> Any:
        x, y = p[..., 0], p[..., 1]
        a, b = x**2 + y - 11, x + y**2 - 7
        return np.stack([4 * x * a + 2 * b, 2 * a + 4 * y * b], axis=-1)

    return FormulaSurface(
        "himmelblau",
        "(x² + y − 11)² + (x + y² − 7)²",
        "Himmelblau, Applied Nonlinear Programming, 1972",
        ((-5.0, 5.0), (-5.0, 5.0)),
        (-0.4, -0.6),
        (
            Known((3.0, 2.0), 0.0),
            Known((-2.805118086952745, 3.131312518250573), 0.0),
            Known((-3.779310253377747, -3.2831859912861696), 0.0),
            Known((3.5844283403304917, -1.8481265269644036), 0.0),
        ),
        (
            Known((0.08667750455539634, 2.884254701174776), 67.71915008752613),
            Known((-3.0730257507643897, -0.08135304428796752), 104.01516291755811),
            Known((-0.12796134673068008, -1.9537149802445766), 178.33723920192745),
            Known((3.385154183607021, 0.07385187983774928), 13.311926270405587),
        ),
        f,
        df,
    )


def rastrigin(d: int = 2) -> Surface:
    """10d + Σ xₖ² − 10 cos 2πxₖ: a bowl covered with minima, one near each whole number.

    Listed are the global minimum, and its neighbours in each direction with the saddles between.

    Parameters
    ----------
    d : int
        The number of variables.
    """
    d = _dim(d)
    circle = 2 * np.pi

    def around(x: float, value: float) -> tuple[Known, ...]:
        signed = [(k, sign * x) for k in range(d) for sign in (1, -1)]
        return tuple(Known((0.0,) * k + (v,) + (0.0,) * (d - k - 1), value) for k, v in signed)

    return FormulaSurface(
        "rastrigin",
        "10d + Σ xₖ² − 10 cos 2πxₖ",
        "Rastrigin, Systems of Extremal Control, 1974",
        ((-5.12, 5.12),) * d,
        (2.2,) * d,
        (Known((0.0,) * d, 0.0), *around(0.9949586376523348, 0.9949590570932916)),
        around(0.5025460365546747, 20.251272990990113) if d > 1 else (),
        lambda p: (p**2 + 10 * (1 - np.cos(circle * p))).sum(axis=-1),
        lambda p: 2 * p + 10 * circle * np.sin(circle * p),
    )


def styblinski_tang(d: int = 2) -> Surface:
    """½ Σ xₖ⁴ − 16xₖ² + 5xₖ: 2ᵈ minima, of which one is the lowest.

    Listed are all minima and the saddles between two of them, with up to 4 variables; with more,
    the global minimum.

    Parameters
    ----------
    d : int
        The number of variables.
    """
    d = _dim(d)
    low = Known((-2.9035340277711783,), -39.16616570377141)
    high = Known((2.7468027709908376,), -25.02944665528394)
    hill = Known((0.15673125678034014,), 0.1956123590553581)
    corners = list(product([low, high, hill], repeat=d)) if d <= 4 else [(low,) * d]
    known = [
        (
            corner.count(hill),
            Known(sum((v.point for v in corner), ()), sum(v.value for v in corner)),
        )
        for corner in corners
    ]
    return FormulaSurface(
        "styblinski_tang",
        "½ Σ xₖ⁴ − 16xₖ² + 5xₖ",
        "Styblinski and Tang, Experiments in nonconvex optimization, 1990",
        ((-5.0, 5.0),) * d,
        (4.0, 1.0) * (d // 2) + (4.0,) * (d % 2),
        tuple(point for hills, point in known if hills == 0),
        tuple(point for hills, point in known if hills == 1 and d > 1),
        lambda p: 0.5 * (p**4 - 16 * p**2 + 5 * p).sum(axis=-1),
        lambda p: 2 * p**3 - 16 * p + 2.5,
    )


class _Surfaces(Mapping[str, Surface]):
    """The surfaces by name, made when they are first asked for: two of them load data."""

    def __init__(self, *makers: Callable[[], Surface]) -> None:
        self._makers = {maker.__name__: maker for maker in makers}
        self._made: dict[str, Surface] = {}

    def __getitem__(self, name: str) -> Surface:
        if name not in self._makers:
            raise KeyError(f"{name}: no such surface; there are {', '.join(self._makers)}")
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __repr__(self) -> str:
        return f"SURFACES({', '.join(self._makers)})"


SURFACES: Mapping[str, Surface] = _Surfaces(
    quadratic,
    double_well,
    saddle,
    plateau,
    rosenbrock,
    beale,
    himmelblau,
    rastrigin,
    styblinski_tang,
    least_squares,
    logistic_regression,
)
