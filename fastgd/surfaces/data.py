"""Losses of linear models on real data as surfaces, over all samples or a mini-batch.

The public names are in `fastgd.surfaces`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fastgd.core.domains import nonnegative, positive
from fastgd.surfaces.base import Array, Known, Surface

# Points times samples of a block, small enough for the cache, whatever the size of a grid.
BLOCK = 1 << 18


class Loss(NamedTuple):
    """The loss of a sample as a function of the model's output z and the target y.

    `slope` and `curvature` are its derivatives by z.
    """

    value: Callable[[Array, Array], Array]
    slope: Callable[[Array, Array], Array]
    curvature: Callable[[Array, Array], Array]


SQUARED = Loss(
    lambda z, y: 0.5 * (z - y) ** 2,
    lambda z, y: z - y,
    lambda z, y: np.ones_like(z),
)


def _sigmoid(z: Array) -> Any:
    # By logaddexp, as the exponential of a large z would overflow.
    return np.exp(-np.logaddexp(z.dtype.type(0), -z))


LOGISTIC = Loss(
    lambda z, y: np.logaddexp(z.dtype.type(0), -y * z),
    lambda z, y: -y * _sigmoid(-y * z),
    lambda z, y: _sigmoid(z) * _sigmoid(-z),
)


@dataclass(frozen=True, eq=False)
class DataSurface(Surface):
    r"""The mean loss of a linear model over samples, as a function of its d weights.

    .. math:: f(w) = \frac 1 n \sum_i L(x_i \cdot w, y_i) + \frac 1 2 \sum_j \lambda_j w_j^2

    `value` and `gradient` take some of the samples as a mini-batch; the penalty is the whole one
    in each, so that the gradients of batches of one size are unbiased.

    Attributes
    ----------
    x : ndarray of float64, shape (n, d)
        The samples.
    y : ndarray of float64, shape (n,)
        Their targets.
    penalty : ndarray of float64, shape (d,)
        λ of each weight.
    loss : Loss
        L.
    """

    x: Array = field(repr=False)
    y: Array = field(repr=False)
    penalty: Array = field(repr=False)
    loss: Loss = field(repr=False)

    @property
    def n_samples(self) -> int:
        """The number of samples, n."""
        return len(self.y)

    def value(self, points: object, samples: object = None) -> Any:
        """The mean loss over samples at points.

        Parameters
        ----------
        points : array_like, shape (..., d)
            As for `Surface.value`.
        samples : int, slice, or array_like of int, optional
            The samples of a batch; all of them if left out.

        Returns
        -------
        ndarray or scalar, shape (...)

        Raises
        ------
        TypeError, ValueError
            If points or samples are not usable.
        """
        w = self.checked(points)
        x, y, penalty = self._batch(samples, w.dtype)
        found = [
            self.loss.value(block @ x.T, y).mean(axis=-1) + 0.5 * (block * block) @ penalty
            for block in _blocks(w, len(y))
        ]
        return np.concatenate(found).reshape(w.shape[:-1])[()]

    def gradient(self, points: object, samples: object = None) -> Array:
        """The gradient of `value` over the same samples; shape (..., d)."""
        w = self.checked(points)
        x, y, penalty = self._batch(samples, w.dtype)
        found = [
            self.loss.slope(block @ x.T, y) @ x / len(y) + block * penalty
            for block in _blocks(w, len(y))
        ]
        return np.concatenate(found).reshape(w.shape)

    def _batch(self, samples: object, dtype: np.dtype[Any]) -> tuple[Array, Array, Array]:
        """The samples of a batch, their targets and the penalty."""
        chosen = _chosen(samples, self.n_samples)
        x, y = self.x[chosen], self.y[chosen]
        return x.astype(dtype, copy=False), y.astype(dtype, copy=False), self.penalty.astype(dtype)


def _blocks(w: Array, n: int) -> Iterator[Array]:
    """Points as a matrix, in blocks of `BLOCK` elements with n samples for each point."""
    w = w.reshape(-1, w.shape[-1])
    size = max(1, BLOCK // n)
    for first in range(0, max(len(w), 1), size):
        yield w[first : first + size]


def _chosen(samples: object, n: int) -> Any:
    """An index of some of n samples: a slice or an array of int that isn't empty."""
    if samples is None:
        return slice(None)
    if isinstance(samples, slice):
        if not range(n)[samples]:
            raise ValueError(f"samples: expected at least one of {n}, found {samples}")
        return samples
    k = np.asarray(samples)
    if k.size == 0 or k.ndim > 1:
        raise ValueError(f"samples: expected one sample or a list of them, found shape {k.shape}")
    if k.dtype.kind not in "iu":
        raise TypeError(f"samples: expected a slice or whole numbers, found dtype {k.dtype}")
    if k.min() < 0 or k.max() >= n:
        raise ValueError(
            f"samples: expected numbers from 0 to {n - 1}, found {k.min()} to {k.max()}"
        )
    return np.atleast_1d(k)


def linear_model(
    name: str,
    formula: str,
    source: str,
    x: Array,
    y: Array,
    penalty: Array,
    loss: Loss,
) -> DataSurface:
    """The surface of a linear model; its minimum is found by Newton's method.

    The losses are convex: with steps halved until the loss falls, it converges from anywhere.
    """
    n, d = x.shape

    def surface(minima: tuple[Known, ...] = ()) -> DataSurface:
        return DataSurface(
            name, formula, source, ((-3.0, 3.0),) * d, (0.0,) * d, minima, (), x, y, penalty, loss
        )

    bare, w = surface(), np.zeros(d)
    for _ in range(100):
        g, z = bare.gradient(w), x @ w
        if np.abs(g).max() < 1e-14:
            break
        hessian = (x.T * loss.curvature(z, y)) @ x / n + np.diag(penalty)
        step, before = np.linalg.solve(hessian, g), bare.value(w)
        while bare.value(w - step) > before + 1e-15 * abs(before):
            step /= 2
        w = w - step
    return surface((Known(tuple(w.tolist()), float(bare.value(w))),))


def least_squares(features: Sequence[int | str] | None = None, l2: float = 0.0) -> DataSurface:
    r"""Linear regression on the diabetes data: :math:`\frac 1 {2n} \sum_i (x_i \cdot w - y_i)^2`.

    442 patients; the progress of the disease, standardised, is predicted from 10 standardised
    measurements and a constant 1, whose weight is the last variable.

    Parameters
    ----------
    features : sequence of int or str, optional
        The columns to use, by number or scikit-learn's name, say ``["bmi"]`` for a surface of two
        variables; all if left out.
    l2 : float
        λ of the penalty :math:`\frac \lambda 2 \sum_j w_j^2`, which leaves out the constant.

    Raises
    ------
    ImportError
        If scikit-learn is not installed.
    """
    x, y, decay = _load("diabetes", features, nonnegative(l2, "l2"))
    return linear_model(
        "least_squares",
        "1/2n Σ (xᵢ·w − yᵢ)² + ½ λ Σ wⱼ²",
        "diabetes data of Efron, Hastie, Johnstone and Tibshirani, Least angle regression, 2004",
        x,
        (y - y.mean()) / y.std(),
        decay,
        SQUARED,
    )


def logistic_regression(
    features: Sequence[int | str] | None = None, l2: float = 1e-2
) -> DataSurface:
    r"""Logistic regression on the breast cancer data.

    .. math:: \frac 1 n \sum_i \ln(1 + e^{-y_i x_i \cdot w}) + \frac \lambda 2 \sum_j w_j^2

    569 tumours, malignant (y = −1) or benign (y = 1), by 30 standardised measurements and a
    constant 1, whose weight is the last variable.

    Parameters
    ----------
    features, l2
        As for `least_squares`; l2 is above 0, as the minimum may otherwise be at infinity.

    Raises
    ------
    ImportError
        If scikit-learn is not installed.
    """
    x, y, decay = _load("breast_cancer", features, positive(l2, "l2"))
    return linear_model(
        "logistic_regression",
        "1/n Σ ln(1 + exp(−yᵢ xᵢ·w)) + ½ λ Σ wⱼ²",
        "breast cancer data of Street, Wolberg and Mangasarian, Nuclear feature extraction, 1993",
        x,
        2.0 * y - 1.0,
        decay,
        LOGISTIC,
    )


def _load(name: str, features: Any, l2: float) -> tuple[Array, Array, Array]:
    """Standardised columns of a data set of scikit-learn and a constant, targets, and penalties."""
    try:
        from sklearn import datasets
    except ImportError as error:
        hint = 'surfaces of real data need scikit-learn: pip install "fastgd[train]"'
        raise ImportError(hint) from error
    data = getattr(datasets, f"load_{name}")()
    known = [str(key) for key in data.feature_names]
    if features is None:
        features = known
    if isinstance(features, str) or not isinstance(features, Iterable):
        raise TypeError(f"features: expected a list of columns, found {features!r}")
    columns: list[int] = []
    for k, key in enumerate(features):
        column = known.index(key) if key in known else key
        if isinstance(column, str) or column not in range(len(known)):
            wanted = f"a number below {len(known)} or one of {known}"
            raise ValueError(f"features[{k}]: expected {wanted}, found {key!r}")
        columns.append(int(column))
    if not columns or len(set(columns)) < len(columns):
        raise ValueError(f"features: expected different columns, found {features!r}")
    x = np.asarray(data.data, np.float64)[:, columns]
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    decay = np.full(len(columns) + 1, l2)
    decay[-1] = 0.0
    return np.column_stack([x, np.ones(len(x))]), np.asarray(data.target, np.float64), decay
