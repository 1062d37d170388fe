"""A step of one tensor, in NumPy: its sweeps, and what is worked out before each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add

import numpy as np

from fastgd.kernels.spec.coded_array import CodedArray, as_coded, random_bit_offsets
from fastgd.kernels.spec.lines import Axes, Axis, axes_of, spread, sums_over
from fastgd.kernels.spec.matrices import Matrix, as_matrix, matrix_of, renewed
from fastgd.kernels.spec.norms import sums_of, sums_of_squares
from fastgd.kernels.spec.random_words import random_words
from fastgd.kernels.spec.registry import RULES, Arithmetic, Array, rounded
from fastgd.kernels.spec.stages import (
    Stages,
    clip_value,
    decoupled_decay,
    l2_decay,
    scale,
)
from fastgd.kernels.spec.units import centralize, scale_units


class TensorStep:
    """A step of one tensor, in its parts; one after the other they are all of it.

    Arrays may be stored in other types than is computed with: each sweep loads them, computes, and
    stores what it writes.

    Parameters
    ----------
    name : str
        A key of `RULES`.
    p, g : CodedArray
        The parameter, updated in place, and its gradient.
    states : sequence of CodedArray
        The states in the rule's order, updated in place.
    coefficients : sequence of float
        The coefficients in the rule's order, not yet rounded.
    stages : Stages
        What the stages are given, not yet rounded; the factor that clips a norm is in its factor.
    keys : sequence of int
        Of the random words by which stores round; each word serves two, states first.
    units : Axis, optional
        Where the units lie, if they have any of the following.
    means : ndarray of float64, shape (units,), optional
        The mean of each unit of the gradient, which is subtracted from it.
    factors : ndarray of float64, shape (units,), optional
        The factor of each unit, in the place of `stages.factor`.
    numbers : mapping of ndarray of float64, shape ()
        The states of one number, by name, updated in place.
    size : float, optional
        The elements of the whole parameter, where this is a shard of it.
    matrix : Matrix, optional
        What the parameter is as a matrix, where its array doesn't tell.
    axes : Axes, optional
        Those of rows and columns, where states have numbers of these.

    Attributes
    ----------
    sums : ndarray of float64, shape (terms,)
        After `first`: of the terms, which may be replaced by those over all shards or tensors.
    """

    def __init__(
        self,
        name: str,
        p: CodedArray,
        g: CodedArray,
        states: Sequence[CodedArray],
        coefficients: Sequence[float],
        stages: Stages = Stages(),  # noqa: B008 - immutable
        keys: Sequence[int] = (),
        units: Axis | None = None,
        means: Array | None = None,
        factors: Array | None = None,
        numbers: Mapping[str, Array] | None = None,
        size: float | None = None,
        matrix: Matrix | None = None,
        axes: Axes | None = None,
    ) -> None:
        self.matrix = matrix_of(p.code.shape, p.order) if matrix is None else matrix
        self.rule, self.p, self.g, self.stages = RULES[name], p, g, stages
        self.units, self.means, self.factors = units, means, factors
        self.states = dict(zip(self.rule.states, states, strict=True))
        self.numbers = numbers or {}
        self.size = np.float64(p.code.size if size is None else size)
        self.axes = axes
        self._lines: dict[str, Array] = {}  # what sweeps see of rows and columns
        self.dtype = np.dtype(np.float64 if p.codec == "float64" else np.float32)
        given = zip(self.rule.coefficients, coefficients, strict=True)
        self.worked = {key: rounded(key, value, np.float64) for key, value in given}
        self.sums: Array = np.zeros(len(self.rule.sums))
        self._words = [random_words(key, p.origin, p.code.size) for key in keys]
        offsets = random_bit_offsets([*states, p])
        self._offsets = dict(zip([*self.rule.states, "p"], offsets, strict=True))

    def renew(self) -> None:
        """Set what the rule wants to be set before a step; `Plan.step` does so by itself."""
        if self.rule.renew is not None and self.p.code.size:
            for state, new in renewed(self.rule.renew, self._matrices(), self.worked):
                state[...] = new

    def begin(self) -> None:
        """Work out what is known before the first sweep."""
        self._work_out(self.rule.begin)

    def lines(self) -> None:
        """Update the states of rows and columns, where there are any elements."""
        lines, rows, columns = self.rule.lines, self.rule.rows, self.rule.columns
        if lines is None or rows is None:
            return
        if self.axes is None or not self.p.code.size:
            return
        with np.errstate(all="ignore"):
            g = self.gradient(self.p.load(self.dtype)).astype(np.float64)
            for key, kind in self.rule.line_states.items():
                axis: Axis = getattr(self.axes, kind)
                mean = (sums_over(g * g, axis) / axis.length).astype(self.dtype)
                state = self.states[key].load(self.dtype)
                lines.update(state, mean, **self._rounded(lines.coefficients))
                seen = state.copy()
                if kind == "rows":
                    along = self.axes.matrices
                    of_matrix = (sums_over(state, along) / along.length).astype(self.dtype)
                    mean = spread(of_matrix, along)
                    rows.update(seen, mean, **self._rounded(rows.coefficients))
                else:
                    of_line = columns if kind == "columns" else rows
                    assert of_line is not None
                    of_line.update(seen, **self._rounded(of_line.coefficients))
                self._lines[key] = spread(seen, axis)

    def first(self) -> None:
        """The sweep before the rule, if it has one, and the sums of its terms."""
        sweep = self.rule.before
        if sweep is None:
            return
        with np.errstate(all="ignore"):
            p = self.p.load(self.dtype)
            loaded = {key: self._loaded(key) for key in sweep.states}
            g = (self.gradient(p),) if sweep.gradient else ()
            terms = sweep.update(p, *g, *loaded.values(), **self._rounded(sweep.coefficients))
            if self.rule.after.kept:
                self.kept = terms[0]
            for k, (term, kind) in enumerate(zip(terms, self.rule.sums, strict=True)):
                blocks = sums_of_squares(term) if kind == "squares" else sums_of(term)
                # Not `sum`, which from Python 3.12 on makes up for what rounding loses.
                self.sums[k] = reduce(add, blocks.tolist(), 0.0)
        for key in sweep.written:
            self._store(key, self.states[key], loaded[key])

    def settle(self) -> None:
        """Work out what follows from the sums, and do the matrix step."""
        self._work_out(self.rule.settle)
        step = self.rule.matrix
        if step is not None and self.kept.size:
            lines, length, transposed = self.matrix
            shape = (length, lines) if transposed else (lines, length)
            update, states = self.kept.reshape(lines, length), []
            if step.states:
                update = as_matrix(self.kept, self.matrix)
                states = [*self._matrices().values()]
            with np.errstate(all="ignore"):
                given = self._rounded(step.coefficients)
                step.transform(update, *shape, self.sums[0], *states, **given)

    def last(self) -> None:
        """The sweep that writes the parameter."""
        sweep = self.rule.after
        with np.errstate(all="ignore"):
            p = self.p.load(self.dtype)
            loaded = {key: self._loaded(key) for key in sweep.states}
            g = (self.gradient(p),) if sweep.gradient else (self.kept,) if sweep.kept else ()
            if self.stages.decoupled != 1.0:
                decoupled_decay(p, self.dtype.type(self.stages.decoupled))
            sweep.update(p, *g, *loaded.values(), **self._rounded(sweep.coefficients))
        for key in sweep.written:
            self._store(key, self.states[key], loaded[key])
        self._store("p", self.p, p)

    def gradient(self, p: Array) -> Array:
        """The gradient as a sweep gets it: centralize → scale → value clipping → L2 decay.

        Scaled are all elements alike, or each unit by a factor of its own.
        """
        to, stages, g = self.dtype.type, self.stages, self.g.load(self.dtype)
        if self.units is not None and self.means is not None:
            g = centralize(g, self.means.astype(to), self.units)
        if self.units is not None and self.factors is not None:
            g = scale_units(g, self.factors.astype(to), self.units)
        elif stages.factor != 1.0:
            g = scale(g, to(stages.factor))
        if stages.clip_value != math.inf:
            g = clip_value(g, to(stages.clip_value))
        if stages.weight_decay != 0.0:
            g = l2_decay(g, p, to(stages.weight_decay))
        return g

    def _matrices(self) -> dict[str, Array]:
        """The states of the matrix step, as matrices."""
        assert self.rule.matrix is not None
        of, matrix = self.rule.line_states, self.matrix
        return {
            key: as_matrix(self.states[key].raw(), matrix, of.get(key, ""))
            for key in self.rule.matrix.states
        }

    def _loaded(self, key: str) -> Array:
        if key in self.rule.line_states:
            return self._lines.get(key, np.zeros(0, self.dtype))
        return self.states[key].load(self.dtype)

    def _rounded(self, names: Sequence[str]) -> dict[str, np.floating]:
        with np.errstate(all="ignore"):
            return {key: rounded(key, self.worked[key], self.dtype.type) for key in names}

    def _store(self, key: str, to: CodedArray, x: Array) -> None:
        offset = self._offsets[key]
        if offset < 0:
            to.store(x)
        else:
            to.store(x, self._words[offset // 32], offset % 32)

    def _work_out(self, part: Arithmetic | None) -> None:
        if part is None:
            return
        sums = iter(self.sums)
        given = []
        for key, kind in part.arguments:
            if kind in ("number", "shared"):
                given.append(np.float64(self.numbers[key]))
            else:
                given.append(self.size if kind == "size" else next(sums))
        with np.errstate(all="ignore"):
            found = part.work_out(*given, **{key: self.worked[key] for key in part.coefficients})
        for key, value in zip(part.sets, found, strict=True):
            if key in self.numbers:
                self.numbers[key][...] = value
            else:
                self.worked[key] = rounded(key, value, np.float64)


def step(
    name: str,
    p: Array,
    g: Array,
    states: Sequence[Array],
    coefficients: Sequence[float],
    stages: Stages = Stages(),  # noqa: B008 - immutable
    numbers: Mapping[str, Array] | None = None,
) -> None:
    """A whole step of one tensor in arrays of float32 or float64; see `TensorStep`."""
    arrays = [as_coded(a) for a in states]
    axes = axes_of(p.shape, p.strides, p.itemsize)
    whole = TensorStep(
        name, as_coded(p), as_coded(g), arrays, coefficients, stages, numbers=numbers, axes=axes
    )
    whole.renew()
    whole.begin()
    whole.lines()
    whole.first()
    whole.settle()
    whole.last()
