"""Sums of gradients over micro-batches, for a step to take."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgd.core.trees import Structure, unflatten
from fastgd.kernels._engine import Plan, has_rows, summed_rows
from fastgd.kernels.memory.alloc import aligned_zeros
from fastgd.kernels.memory.rows import Rows, check_rows
from fastgd.kernels.reference import Stages
from fastgd.kernels.spec.coded_array import computed

Array = NDArray[Any]
Row = tuple[str, tuple[float, ...], Stages]


class Split:
    """A tree of gradients in two: what comes as arrays, and what comes by rows.

    Attributes
    ----------
    rest : object
        The tree with None in the place of `Rows`.
    rows : dict of Rows
        These by the number of their parameter.
    """

    def __init__(self, structure: Structure, grads: object) -> None:
        self.rows: dict[int, Rows] = {}
        self._structure, self._grads = structure, grads
        self.rest = grads
        try:
            found = has_rows(grads)
        except RecursionError:
            raise ValueError("grads: nested without end (do they contain themselves?)") from None
        if found:
            self.rest = self._walk(structure, grads, count())

    @cached_property
    def arrays(self) -> set[int]:
        """The numbers of those that have a gradient which is an array."""
        found: set[int] = set()
        self._walk(self._structure, self._grads, count(), found)
        return found

    def _walk(
        self,
        structure: Structure,
        grads: Any,
        numbers: Iterator[int],
        arrays: set[int] | None = None,
    ) -> object:
        if structure is None:
            i = next(numbers)
            if isinstance(grads, Rows):
                self.rows[i] = grads
                return None
            if arrays is not None and grads is not None:
                arrays.add(i)
            return grads
        # What is nested differently stays as it is, to be refused.
        if isinstance(structure, dict):
            if not isinstance(grads, Mapping) or grads.keys() != structure.keys():
                return grads
            return {
                key: self._walk(own, grads[key], numbers, arrays) for key, own in structure.items()
            }
        if not isinstance(grads, (list, tuple)) or len(grads) != len(structure):
            return grads
        pairs = zip(structure, grads, strict=True)
        return [self._walk(own, g, numbers, arrays) for own, g in pairs]


class Accumulated:
    """Weighted sums of the gradients of several micro-batches.

    Parameters
    ----------
    structure, params, labels
        The optimizer's parameters.
    shapes : sequence of tuple
        Those of the parameters that arrays stand for.
    tables : collection of int
        The parameters whose gradients come by rows: no sums of their size are made.

    Attributes
    ----------
    sums : list of ndarray of float32 or float64
        The sum of each parameter's gradients times their weights, in its compute dtype.
    rows : list of list of Rows
        Of each parameter, the gradients by rows times their weights; each row once in each.
    by_rows : bool
        Whether there are any.
    counts : ndarray of int64, shape (parameters,)
        The number of gradients that each parameter got.
    weight : ndarray of float64, shape (1,)
        The sum of the weights; 0 if nothing was accumulated.
    """

    def __init__(
        self,
        structure: Structure,
        params: Sequence[Array],
        labels: Sequence[str],
        shapes: Sequence[tuple[int, ...]],
        tables: Collection[int] = (),
    ) -> None:
        self.tables = frozenset(tables)
        self.sums = [
            aligned_zeros(p[:0] if i in self.tables else p, computed(p.dtype))
            for i, p in enumerate(params)
        ]
        self.rows: list[list[Rows]] = [[] for _ in params]
        self.by_rows = False
        self._shapes = shapes
        self._in_order = [p.flags.c_contiguous for p in params]
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

    def add(self, grads: Split, weight: float, zero: bool = False) -> None:
        """Add gradients times a weight, and zero them if asked; nothing if they don't fit."""
        if self.by_rows and not self.weight[0]:
            self.rows, self.by_rows = [[] for _ in self.rows], False
        weighed = {i: self._weighed(i, own, weight) for i, own in grads.rows.items()}
        for i in sorted(grads.arrays) if self.tables or self.by_rows else ():
            if i in self.tables or self.rows[i]:
                raise ValueError(
                    f"grads{self._labels[i]}: expected Rows, as were accumulated, found an array"
                )
        if weighed:
            rows, taken = list(self.rows), np.zeros_like(self.counts)
            for i, own in weighed.items():
                rows[i], taken[i] = [*rows[i], own], 1
        if grads.rest is None:
            self.weight += weight
        else:
            # No function is made here: CPython 3.12 and 3.13 crash at that if memory has run out.
            row = partial(_always, ("weighted_sum", (weight,), Stages()))
            self._plan.step(grads.rest, row, 1.0, zero=zero, tally=self.weight, amount=weight)
        if not weighed:
            return
        self.rows, self.by_rows = rows, True
        self.counts += taken
        for given in grads.rows.values() if zero else ():
            given.values[...] = 0

    def _weighed(self, i: int, rows: Rows, weight: float) -> Rows:
        """A gradient by rows times a weight, each row once."""
        name, shape, sums = f"grads{self._labels[i]}", self._shapes[i], self.sums[i]
        check_rows(rows, shape, self._in_order[i], name)
        if self.counts[i] and not self.rows[i]:
            raise ValueError(f"{name}: expected an array, as was accumulated before, found Rows")
        indices, values = summed_rows(rows, shape[0], sums.dtype == np.float64, name)
        with np.errstate(all="ignore"):
            values *= sums.dtype.type(weight)
        return Rows(indices, values.reshape(len(indices), *shape[1:]))

    def grads(self) -> Any:
        """The sums in the form of the parameters, None where there was no gradient."""
        counted = zip(self.sums, self.rows, self.counts.tolist(), strict=True)
        found = [(_joined(rows) if rows else a) if n else None for a, rows, n in counted]
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


def _always(row: Row, *given: object) -> Row:
    return row


def _joined(rows: list[Rows]) -> Rows:
    """Gradients by rows as one; what it says of a row several times is added up by the step."""
    if len(rows) == 1:
        return rows[0]
    return Rows(
        np.concatenate([own.indices for own in rows]), np.concatenate([own.values for own in rows])
    )
