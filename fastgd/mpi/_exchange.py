"""Reduce-scatter of gradients to the ranks' shards, and all-gather of parameters, in buckets."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from fastgd.kernels.spec.coded_array import as_coded, computed
from fastgd.mpi._link import Link
from fastgd.mpi._space import Bucket, Interval, Space, buckets, flat

Array = NDArray[Any]

# Buckets in flight at a time: one is packed or summed while the other is sent.
DEPTH = 2


class Exchange:
    """The reduce-scatter and the all-gather of a step, and their buffers.

    Parameters
    ----------
    link : Link
        The link to the other ranks.
    spaces : sequence of Space
        The index spaces, which say how the parameters are sharded.
    params : sequence of ndarray
        The parameters.
    bucket_bytes : int
        Bytes of a bucket, over all ranks; the buffers hold four buckets.
    ordered : bool
        Whether to sum gradients in the order of ranks.

    Attributes
    ----------
    params : list of ndarray
        The parameters' bits as unsigned integers, flat.
    sums : list of ndarray
        The rank's shard of the gradients' sum, one for each space.
    sent : int
        The bytes that this rank has sent to others.
    """

    def __init__(
        self,
        link: Link,
        spaces: Sequence[Space],
        params: Sequence[Array],
        bucket_bytes: int,
        ordered: bool,
    ) -> None:
        self._link, self._ordered = link, ordered
        kinds = [params[space.indices[0]].dtype for space in spaces]
        self._dtypes = [computed(kind) for kind in kinds]
        self._bits = [np.dtype(f"u{kind.itemsize}") for kind in kinds]
        self.params = [flat(p, f"u{p.itemsize}") for p in params]
        self.sums = [
            np.zeros(space.shard, dtype) for space, dtype in zip(spaces, self._dtypes, strict=True)
        ]
        self._up = buckets(spaces, [d.itemsize for d in self._dtypes], bucket_bytes)
        self._down = buckets(spaces, [d.itemsize for d in self._bits], bucket_bytes)
        most = max(
            (
                (b.end - b.start) * link.size * dtypes[b.space].itemsize
                for cut, dtypes in ((self._up, self._dtypes), (self._down, self._bits))
                for b in cut
            ),
            default=0,
        )
        self._slots = [(np.zeros(most, np.uint8), np.zeros(most, np.uint8)) for _ in range(DEPTH)]
        self.sent = 0

    def _rows(self, raw: Array, bucket: Bucket, dtype: np.dtype[Any]) -> Array:
        """A view of a buffer with a row for each rank."""
        shape = self._link.size, bucket.end - bucket.start
        return raw[: shape[0] * shape[1] * dtype.itemsize].view(dtype).reshape(shape)

    def reduce_scatter(self, grads: Sequence[Array | None]) -> None:
        """Sum the gradients over ranks into `sums`; None counts as zeros."""
        readers = [None if g is None else _reader(g) for g in grads]

        def post(bucket: Bucket, send: Array, receive: Array) -> tuple[MPI.Request, Array]:
            dtype = self._dtypes[bucket.space]
            rows = self._rows(send, bucket, dtype)
            for rank, param, inside, place in bucket.intervals:
                read = readers[param]
                rows[rank, place] = 0 if read is None else read(inside, dtype)
            self.sent += rows[0].nbytes * (self._link.size - 1)
            if not self._ordered:
                total = self.sums[bucket.space][bucket.start : bucket.end]
                return self._link.post_reduce_scatter(rows, total), total
            into = self._rows(receive, bucket, dtype)
            return self._link.post_alltoall(rows, into), into

        def finish(bucket: Bucket, rows: Array) -> None:
            if self._ordered:
                total = self.sums[bucket.space][bucket.start : bucket.end]
                # Start from 0, as accumulation does: -0 + 0 is 0.
                np.add(rows[0], 0, out=total)
                for row in rows[1:]:
                    np.add(total, row, out=total)

        with np.errstate(all="ignore"):
            self._pipeline(self._up, post, finish, "the gradients")

    def allgather(self) -> None:
        """Send all ranks' shards of the parameters to all ranks."""
        own = self._link.rank

        def post(bucket: Bucket, send: Array, receive: Array) -> tuple[MPI.Request, Array]:
            bits = self._bits[bucket.space]
            row = self._rows(send, bucket, bits)[0]
            for _, param, inside, place in _of_rank(bucket.intervals, own):
                row[place] = self.params[param][inside]
            self.sent += row.nbytes * (self._link.size - 1)
            into = self._rows(receive, bucket, bits)
            return self._link.post_allgather(row, into), into

        def finish(bucket: Bucket, rows: Array) -> None:
            for rank, param, inside, place in bucket.intervals:
                if rank != own:
                    self.params[param][inside] = rows[rank, place]

        self._pipeline(self._down, post, finish, "the parameters")

    def _pipeline(
        self,
        cut: Sequence[Bucket],
        post: Callable[[Bucket, Array, Array], tuple[MPI.Request, Array]],
        finish: Callable[[Bucket, Array], None],
        what: str,
    ) -> None:
        """Exchange all buckets, `DEPTH` of them in flight at a time."""
        under_way: deque[tuple[MPI.Request, Bucket, Array]] = deque()

        def finish_first() -> None:
            request, bucket, rows = under_way.popleft()
            self._link.wait(request, what)
            finish(bucket, rows)

        try:
            for k, bucket in enumerate(cut):
                if len(under_way) == DEPTH:
                    finish_first()
                request, rows = post(bucket, *self._slots[k % DEPTH])
                under_way.append((request, bucket, rows))
            while under_way:
                finish_first()
        except BaseException:
            self._link.kept += [under_way, self._slots, self.sums]  # MPI may still write to these
            raise


def _of_rank(intervals: Sequence[Interval], rank: int) -> Iterator[Interval]:
    return (interval for interval in intervals if interval.rank == rank)


def _reader(g: Array) -> Callable[[slice, np.dtype[Any]], Array]:
    """A function from a slice of a gradient, in memory order, and a dtype to its numbers."""
    stored = as_coded(g)
    row = flat(g)
    if stored.codec in {"float32", "float64", "float16"}:
        return lambda inside, dtype: row[inside]  # assignment rounds to another dtype
    return lambda inside, dtype: stored._replace(code=row[inside]).load(dtype)
