"""The elements of many parameters as one index space, cut into equal shards.

Parameters of a dtype share an index space: the elements of one after those of the other, in memory
order, each parameter from a multiple of `ALIGN` on.  The space is cut into as many equal shards as
there are ranks, each a multiple of `ALIGN` long; rank r has the r-th.  So each parameter is cut
into consecutive shards, one for each rank and mostly empty, and one exchange serves all parameters.

Buckets cut all shards alike: an exchange of bucket k moves the k-th interval of every shard, as one
row for each rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastgd.kernels.spec.coded_array import as_coded

Array = NDArray[Any]

# Elements: a cache line of float32, so that shards begin on cache lines if parameters do; and the
# block of an 8-bit state that shares a scale.
ALIGN, ALIGN_8BIT = 16, 256


class Interval(NamedTuple):
    """Elements of a parameter in a row of a bucket."""

    rank: int  # the row
    param: int
    inside: slice  # in the parameter, flat
    place: slice  # in the row


class Bucket(NamedTuple):
    """The elements from `start` to `end` of every shard of a space."""

    space: int
    start: int
    end: int
    intervals: list[Interval]


class Space:
    """The index space of the parameters of one dtype.

    Parameters
    ----------
    indices : sequence of int
        The indices of these among all parameters.
    sizes : sequence of int
        The number of elements of each.
    ranks : int
        The number of shards.
    align : int
        Parameters and shards begin at multiples of so many elements.

    Attributes
    ----------
    shard : int
        The number of elements of a shard, with padding.

    Examples
    --------
    >>> space = Space([0, 1], [40, 10], ranks=2)
    >>> space.shard, [space.owned(0, rank) for rank in range(2)], space.owned(1, 0)
    (32, [(0, 32), (32, 40)], (0, 0))
    """

    def __init__(
        self, indices: Sequence[int], sizes: Sequence[int], ranks: int, align: int = ALIGN
    ) -> None:
        self.indices, self.sizes, self.ranks = list(indices), list(sizes), ranks
        self.starts = []
        end = 0
        for size in sizes:
            self.starts.append(end)
            end += -(-size // align) * align
        self.shard = -(-end // (ranks * align)) * align

    def owned(self, k: int, rank: int) -> tuple[int, int]:
        """The first and the end of the k-th parameter's elements in a rank's shard."""
        start, size = self.starts[k], self.sizes[k]
        low, high = (min(max(r * self.shard - start, 0), size) for r in (rank, rank + 1))
        return low, high

    def place(self, k: int, rank: int) -> slice:
        """The slice of a rank's shard that holds the k-th parameter's elements."""
        low, high = self.owned(k, rank)
        start = self.starts[k] + low - rank * self.shard
        return slice(start, start + high - low) if high > low else slice(0, 0)

    def intervals(self, start: int, end: int) -> Iterator[Interval]:
        """The intervals of parameters in the elements from `start` to `end` of every shard."""
        k = 0
        for rank in range(self.ranks):
            first = rank * self.shard + start
            last = first + end - start
            while k < len(self.sizes) and self.starts[k] + self.sizes[k] <= first:
                k += 1
            j = k
            while j < len(self.sizes) and self.starts[j] < last:
                low = max(first - self.starts[j], 0)
                high = min(last - self.starts[j], self.sizes[j])
                if low < high:
                    at = self.starts[j] + low - first
                    inside, place = slice(low, high), slice(at, at + high - low)
                    yield Interval(rank, self.indices[j], inside, place)
                j += 1


def flat(a: Array, dtype: DTypeLike | None = None) -> Array:
    """A flat view of an array in memory order; `dtype` reinterprets its bits."""
    row: Array = a.reshape(-1, order=as_coded(a).order)
    return row if dtype is None else row.view(dtype)


def spaces(params: Sequence[Array], ranks: int, min_8bit_size: int | None) -> list[Space]:
    """The index spaces of parameters, one for each of their dtypes.

    With 8-bit states, parameters that have such states and those that are too small for them are in
    different spaces, so that each rank has its share of both.
    """
    alike: dict[tuple[np.dtype[Any], int], list[int]] = {}
    for i, p in enumerate(params):
        in_8_bits = min_8bit_size is not None and p.size >= min_8bit_size
        alike.setdefault((p.dtype, ALIGN_8BIT if in_8_bits else ALIGN), []).append(i)
    return [
        Space(indices, [params[i].size for i in indices], ranks, align)
        for (_, align), indices in alike.items()
    ]


def pieces(cut: Sequence[Space], rank: int) -> list[tuple[int, int]]:
    """The first and the end of each parameter's elements in a rank's shard."""
    found = {i: s.owned(k, rank) for s in cut for k, i in enumerate(s.indices)}
    return [found[i] for i in range(len(found))]


def buckets(space: Sequence[Space], itemsizes: Sequence[int], size: int) -> list[Bucket]:
    """All elements of some spaces in buckets of at most `size` bytes, but at least one `ALIGN`."""
    cut = []
    for k, (one, itemsize) in enumerate(zip(space, itemsizes, strict=True)):
        row = max(size // (one.ranks * itemsize * ALIGN), 1) * ALIGN
        for start in range(0, one.shard, row):
            end = min(start + row, one.shard)
            cut.append(Bucket(k, start, end, list(one.intervals(start, end))))
    return cut
