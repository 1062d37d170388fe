"""The base class of surfaces, and surfaces given by formulas.

The public names are in `fastgd.surfaces`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Function = Callable[[Array], Any]


class Known(NamedTuple):
    """A point where the gradient is known to vanish, and the value there."""

    point: tuple[float, ...]
    value: float


@dataclass(frozen=True, eq=False)
class Surface:
    """A function of d variables to descend on, with its gradient.

    Attributes
    ----------
    name, formula, source : str
        Its name, its formula, and the publication it is from.
    domain : tuple of (float, float)
        The usual interval of each variable.
    start : tuple of float
        A point from which descents are instructive.
    minima : tuple of Known
        The known minima, local ones too.
    saddles : tuple of Known
        The known saddle points.
    """

    name: str
    formula: str
    source: str
    domain: tuple[tuple[float, float], ...]
    start: tuple[float, ...]
    minima: tuple[Known, ...]
    saddles: tuple[Known, ...]

    @property
    def dim(self) -> int:
        """The number of variables, d."""
        return len(self.domain)

    @property
    def minimum(self) -> Known:
        """The lowest of the known minima."""
        return min(self.minima, key=lambda known: known.value)

    def value(self, points: object) -> Any:
        """The values at points.

        Parameters
        ----------
        points : array_like, shape (..., d)
            float32 or float64; whole numbers count as float64.

        Returns
        -------
        ndarray or scalar, shape (...)
            Of the dtype of `points`.

        Raises
        ------
        TypeError, ValueError
            If `points` has another dtype or shape.
        """
        raise NotImplementedError

    def gradient(self, points: object) -> Array:
        """The gradients at points, in the form that `Optimizer.step` takes.

        Parameters
        ----------
        points : array_like, shape (..., d)
            As for `value`, with the same errors.

        Returns
        -------
        ndarray, shape (..., d)
            Of the dtype of `points`.
        """
        raise NotImplementedError

    def checked(self, points: object) -> Array:
        """The points as an array of float32 or float64; raises as `value` does."""
        x = np.asarray(points)
        if x.dtype.kind in "iu":
            x = x.astype(np.float64)
        if x.dtype not in (np.float32, np.float64):
            raise TypeError(f"points: expected dtype float32 or float64, found {x.dtype}")
        if x.shape[-1:] != (self.dim,):
            raise ValueError(f"points: expected shape (..., {self.dim}), found {x.shape}")
        return x


@dataclass(frozen=True, eq=False)
class FormulaSurface(Surface):
    """A surface given by a formula and that of its gradient, both over arrays of shape (..., d)."""

    f: Function = field(repr=False)
    df: Function = field(repr=False)

    def value(self, points: object) -> Any:
        return self.f(self.checked(points))

    def gradient(self, points: object) -> Array:
        return np.asarray(self.df(self.checked(points)))
