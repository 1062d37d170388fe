"""Batches: the samples of arrays, all at once, one by one, or some at a time.

One function serves batch, stochastic and mini-batch gradient descent; they differ in `batch_size`:

>>> import numpy as np
>>> from fastgd.data import batches
>>> x, y = np.arange(10.0).reshape(5, 2), np.arange(5)
>>> [len(batches((x, y), size)) for size in (None, 1, 2)]
[1, 5, 3]
>>> for xb, yb in batches((x, y), 2, shuffle=False):
...     print(yb, xb.sum(axis=1))
[0 1] [1. 5.]
[2 3] [ 9. 13.]
[4] [17.]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from operator import itemgetter
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastgd.core.domains import flag, integer, two
from fastgd.core.seeds import Seed, generator
from fastgd.kernels.memory import checks

__all__ = ["Batches", "batches"]

Array = NDArray[Any]
Form = TypeVar("Form")


def batches(
    arrays: Form,
    batch_size: int | None = None,
    shuffle: bool = True,
    seed: Seed = None,
    drop_last: bool = False,
    *,
    copy: bool = False,
    part: tuple[int, int] = (0, 1),
) -> Batches[Form]:
    """The samples of one or several arrays in batches; each iteration is one epoch.

    Parameters
    ----------
    arrays : array, or list, tuple or dict of arrays, each of shape (n, ...)
        Samples along the first axis, the same number in each; of any dtype.  NumPy arrays, memory
        maps, CPU tensors, or whatever exposes its buffer.  They are never copied or loaded whole.
    batch_size : int, optional
        Samples in a batch.  None is all of them (batch descent), 1 a single one (stochastic
        descent).
    shuffle : bool
        Draw each epoch's samples in a new random order, without replacement.  A batch of all
        samples stays in the arrays' own order, as its mean does not depend on it.
    seed : int, Generator or None
        The seed of the orders: epoch k depends on the seed and k alone.  From a Generator one draw
        is taken for a seed; None takes one from the system.
    drop_last : bool
        Leave out a last batch of fewer samples than the others.
    copy : bool
        Copy each batch to new arrays, for programs that keep or change batches.
    part : (int, int)
        (k, n) gives only the k-th of every n batches, counted from 0: for worker or rank k of n,
        which all take the same `seed`.  All get as many, so that they stay in step; what is left
        over of an epoch is left out.

    Returns
    -------
    Batches
        Yields each batch in the form of `arrays`: an array, or a list, tuple or dict of arrays of
        shape (batch, ...) and the dtype of their source.  ``len`` of it is the number of batches.

    Raises
    ------
    TypeError
        If something in `arrays` is not an array, or an option is of the wrong type.
    ValueError
        If there are no arrays or no samples, their numbers differ, or an option's value is out of
        range; also if `drop_last` or `part` would leave no batch at all.

    Notes
    -----
    Without `copy`, **a batch is valid only until the next one**: shuffled batches of more than one
    sample are gathered into buffers allocated once per epoch, which the next batch overwrites.
    (Samples that are not in contiguous, aligned memory are gathered into new arrays.)  All other
    batches are read-only views of the arrays.  Shuffling takes 8 bytes per sample for the order.

    Examples
    --------
    >>> import numpy as np
    >>> from fastgd.data import batches
    >>> data = {"x": np.eye(4, dtype=np.float32), "y": np.arange(4)}
    >>> for batch in batches(data, batch_size=2, seed=0):
    ...     print(batch["y"], batch["x"].argmax(axis=1))
    [1 0] [1 0]
    [3 2] [3 2]
    """
    return Batches(arrays, batch_size, shuffle, seed, drop_last, copy=copy, part=part)


class Batches(Generic[Form]):
    """The batches that `batches` returns: a sized iterable, of which each iteration is an epoch.

    Attributes
    ----------
    seed : int
        The seed of the orders, also where none was given: enough to repeat a run.
    epoch : int
        The number of the next epoch, counted from 0.  ``iter`` takes it and adds 1, whether or not
        its epoch is then read to the end.  Set it to begin an epoch from its start; `state_dict`
        says where in an epoch a run is, and `load_state_dict` goes on there.

    Examples
    --------
    >>> import numpy as np
    >>> from fastgd.data import batches
    >>> data = batches(np.arange(8), batch_size=2, seed=0)
    >>> epoch = iter(data)
    >>> _ = next(epoch)
    >>> state = data.state_dict()  # may go to fastgd.save(metadata=…), or JSON
    >>> again = batches(np.arange(8), batch_size=2, seed=0)
    >>> again.load_state_dict(state)
    >>> [b.tolist() for b in again] == [b.tolist() for b in epoch]
    True
    """

    def __init__(
        self,
        arrays: Form,
        batch_size: int | None = None,
        shuffle: bool = True,
        seed: Seed = None,
        drop_last: bool = False,
        *,
        copy: bool = False,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self._pack, self._arrays = _unpack(arrays)
        self._samples = len(self._arrays[0])
        whole = batch_size is None
        self._size = self._samples if whole else integer(batch_size, "batch_size", 1)
        self._shuffle = flag(shuffle, "shuffle") and not whole
        self._copy = flag(copy, "copy")
        self._batches, rest = divmod(self._samples, self._size)
        if not flag(drop_last, "drop_last"):
            self._batches += rest > 0
        elif not self._batches:
            raise ValueError(
                f"batch_size: expected at most {self._samples}, the number of samples, with "
                f"drop_last, found {self._size}"
            )
        own, parts = two(part, "part")
        self._parts = integer(parts, "part[1]", 1)
        self._part = integer(own, "part[0]", end=self._parts)
        if self._batches < self._parts:
            raise ValueError(
                f"part: expected at most {self._batches} parts, the number of batches, "
                f"found {self._parts}"
            )
        self._batches //= self._parts
        self.epoch = 0
        if seed is None or isinstance(seed, np.random.Generator):
            self.seed = int(generator(seed).integers(2**63))
        else:
            generator(seed)  # raises if it isn't one
            self.seed = int(seed)

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return self._batches

    @property
    def epoch(self) -> int:
        """The number of the next epoch."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch = epoch
        self._skipped = 0  # the batches of it to leave out
        # The epoch that was begun last, and the batches given of it; none before the first.
        self._latest: list[int] | None = None

    def __iter__(self) -> Iterator[Form]:
        """One epoch.  Each has its own buffers, so that several may be read at once."""
        epoch, given = integer(self.epoch, "epoch"), self._skipped
        self.epoch = epoch + 1
        self._latest = latest = [epoch, given]
        step = self._parts * self._size
        starts = range(self._part * self._size, self._batches * step, step)[given:]
        if not self._shuffle:
            return self._views(starts, latest)
        sequence = np.random.SeedSequence(self.seed, spawn_key=(epoch,))
        order = np.random.default_rng(sequence).permutation(self._samples)
        if self._size == 1:
            return self._views(map(int, order[starts.start : starts.stop : starts.step]), latest)
        return self._gathered(order, starts, latest)

    def state_dict(self) -> dict[str, int | bool]:
        """Where a run is in the epoch that was begun last, in numbers that JSON can hold.

        A batch counts as soon as it is given.  After the last one, it is the next epoch's start.
        """
        epoch, given = self._latest or (self.epoch, self._skipped)
        if given >= self._batches:
            epoch, given = self.epoch, 0
        return {
            "epoch": epoch,
            "batch": given,
            "seed": self.seed,
            "samples": self._samples,
            "batch_size": self._size,
            "shuffle": self._shuffle,
            "parts": self._parts,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Let the next iteration go on where `state_dict` was called, in the same order.

        Raises
        ------
        TypeError, ValueError
            If it isn't of as many samples in batches of the same size; nothing is changed then.
        """
        own = self.state_dict()
        if not isinstance(state_dict, Mapping) or state_dict.keys() != own.keys():
            raise ValueError(
                f"state_dict: expected a dict of {', '.join(own)}, found {checks.shown(state_dict)}"
            )
        for key in ("samples", "batch_size", "shuffle", "parts"):
            if state_dict[key] != own[key]:
                raise ValueError(f"{key}: expected {own[key]}, found {state_dict[key]}")
        epoch, seed = (integer(state_dict[key], key) for key in ("epoch", "seed"))
        given = integer(state_dict["batch"], "batch", end=self._batches)
        self.epoch, self.seed = epoch, seed
        self._skipped = given

    def _views(self, starts: Iterable[int], latest: list[int]) -> Iterator[Form]:
        """The batches that begin at these samples and follow the order of the arrays."""
        for start in starts:
            latest[1] += 1
            samples = slice(start, start + self._size)
            views = [a[samples] for a in self._arrays]
            yield self._pack([view.copy() for view in views] if self._copy else views)

    def _gathered(
        self, order: NDArray[np.int64], starts: range, latest: list[int]
    ) -> Iterator[Form]:
        """The batches of the samples in this order that begin at these places."""
        size = min(self._size, self._samples)
        gathers = [_gatherer(a, size, self._copy) for a in self._arrays]
        for start in starts:
            latest[1] += 1
            samples = order[start : start + self._size]
            yield self._pack([gather(samples) for gather in gathers])


def _gatherer(a: Array, size: int, copy: bool) -> Callable[[NDArray[np.int64]], Array]:
    """A function that gathers up to `size` samples of `a`, by their indices, in a single pass."""
    if not (a.flags.c_contiguous and a.flags.aligned):
        return a.__getitem__  # take() would first copy all of `a`
    if copy:
        return lambda samples: a.take(samples, axis=0, mode="clip")
    buffer = np.empty((size, *a.shape[1:]), a.dtype)

    def gather(samples: NDArray[np.int64]) -> Array:
        n = len(samples)
        # mode="clip", as with "raise" take() fills a copy of `out` to keep it whole on an error.
        return a.take(samples, 0, buffer if n == size else buffer[:n], "clip")

    return gather


def _unpack(arrays: Any) -> tuple[Callable[[list[Array]], Any], list[Array]]:
    """A function that puts arrays into the form they were given in, and read-only views of them."""
    keys: Iterable[object]
    pack: Callable[[list[Array]], Any]
    if isinstance(arrays, Mapping):
        keys = tuple(arrays)
        pack, found = partial(_as_dict, keys), list(arrays.values())
    elif isinstance(arrays, (list, tuple)):
        keys, found = range(len(arrays)), list(arrays)
        # A named tuple is made from its values by its own _make.
        pack = list if isinstance(arrays, list) else getattr(type(arrays), "_make", tuple)
    else:
        return itemgetter(0), [_view(arrays, "arrays")]
    names = [f"arrays{checks.label((key,))}" for key in keys]
    if not names:
        raise ValueError("arrays: expected at least one array, found none")
    views = [_view(a, name) for a, name in zip(found, names, strict=True)]
    for view, name in zip(views, names, strict=True):
        if len(view) != len(views[0]):
            raise ValueError(
                f"{name}: expected {len(views[0])} samples as in {names[0]}, found {len(view)}"
            )
    return pack, views


def _view(obj: object, name: str) -> Array:
    """A read-only view of an array, so that no batch writes into the data by accident."""
    view = checks.as_array(obj, name).view()
    if view.ndim == 0:
        raise ValueError(f"{name}: expected samples along a first axis, found an array of shape ()")
    if len(view) == 0:
        raise ValueError(f"{name}: expected at least one sample, found none")
    view.flags.writeable = False
    return view


def _as_dict(keys: tuple[object, ...], arrays: list[Array]) -> dict[object, Array]:
    return dict(zip(keys, arrays, strict=True))
