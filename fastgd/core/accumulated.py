"""Sums of gradients over micro-batches, for a step to take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgd.core.trees import Structure, unflatten
from fastgd.kernels._engine import Plan
from fastgd.kernels.memory.alloc import aligned_zeros
from fastgd.kernels.reference import Stages
from fastgd.kernels.spec.coded_array import computed

Array = NDArray[Any]


class Accumulated:
    """Weighted sums of the gradients of several micro-batches.

    Attributes
    ----------
    sums : list of ndarray of float32 or float64
        The sum of each parameter's gradients times their weights, in its compute dtype.
    counts : ndarray of int64, shape (parameters,)
        The number of gradients that each parameter got.
    weight : ndarray of float64, shape (1,)
        The sum of the weights; 0 if nothing was accumulated.
    """

    def __init__(
        self, structure: Structure, params: Sequence[Array], labels: Sequence[str]
    ) -> None:
        self.sums = [aligned_zeros(p, computed(p.dtype)) for p in params]
        self.counts = np.zeros(len(params), np.int64)
        self.weight = np.zeros(1)
        self._structure, self._labels = structure, labels
        self._make_plan()

    def _make_plan(self) -> None:
        # To the engine the sums are the parameters.
        n = len(self.sums)
        rules = ["weighted_sum"] * n
        self._plan = Plan(
            self._structure, self.sums, self._labels, [0] * n, [()] * n, rules, self.counts
        )

    def add(self, grads: object, weight: float, zero: bool = False) -> None:
        """Add gradients times a weight, and zero them if asked; nothing if they don't fit."""
        row = "weighted_sum", (weight,), Stages()
        self._plan.step(grads, lambda *_: row, 1.0, zero=zero, tally=self.weight, amount=weight)

    def grads(self) -> Any:
        """The sums in the form of the parameters, None where there was no gradient."""
        found = [a if n else None for a, n in zip(self.sums, self.counts.tolist(), strict=True)]
        return unflatten(self._structure, iter(found))

    def load(self, sums: Sequence[Array | None], weight: float) -> None:
        """Copy sums of the right shapes and dtypes in; None where there was no gradient."""
        for k, (own, other) in enumerate(zip(self.sums, sums, strict=True)):
            own[...] = 0 if other is None else other
            self.counts[k] = other is not None
        self.weight[0] = weight

    def __getstate__(self) -> dict[str, Any]:
        """The attributes but for the plan, which holds addresses."""
        return {key: value for key, value in self.__dict__.items() if key != "_plan"}

    def __setstate__(self, content: dict[str, Any]) -> None:
        self.__dict__.update(content)
        self._make_plan()
