"""Parameters larger than memory: in a file, with the states of their optimizer in files beside it.

A folder has one parameter:

====================  ==================================================================
``parameter.bin``     its elements in C order and native byte order, and nothing else
``exp_avg.bin``, …    a state each, likewise
``table.json``        shapes, dtypes, the number of steps, and whether all of it is whole
``lock``              empty; locked by the process that has the table open
====================  ==================================================================
"""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastgd.checkpoint import CheckpointError
from fastgd.checkpoint.atomic import replacement, write_all
from fastgd.core.domains import flag
from fastgd.core.home import Home
from fastgd.core.storage import ROW_MAP, ROW_STEPS, Kind, visible
from fastgd.kernels.memory.checks import shown
from fastgd.kernels.spec.codecs import TILE
from fastgd.kernels.spec.coded_array import as_coded, codec_of

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Array = NDArray[Any]

FORMAT, VERSION = "fastgd table", 1
HEADER, LOCK, PARAMETER = "table.json", "lock", "parameter"
# By the names that headers have.
DTYPES = {
    name: np.dtype(name)
    for name in ("float32", "float64", "float16", "uint8", "int8", "int16", "int32", "int64")
}
DTYPES["uint32"] = np.dtype(np.uint32)
DTYPES["bfloat16"] = np.dtype(np.uint16)
COPIED = 1 << 20  # elements at a time of what is copied into a file


class Spec(NamedTuple):
    """What a file holds."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """The size of the file."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class Mapped(Home):
    """A parameter in a file, which an optimizer steps there, and keeps its states in files beside.

    It stands in the place of an array among an optimizer's parameters.  With gradients by rows
    (`fastgd.Rows`) a step reads and writes the pages of the rows that it touches, and nothing else:
    table and states may be larger than memory.  New files are sparse: what is zero and was never
    written takes no room on the disk.

    Parameters
    ----------
    folder : str or path-like
        The folder of the table; made if it isn't there, its parent has to be.
    shape : tuple of int, optional
        The shape.  May be left out where there is a table already; else it has to be that one's.
    dtype : dtype, optional
        That of floats; "bfloat16" and uint16 stand for bits of bfloat16.  By default that of the
        table that there is, or float32.
    accept_torn : bool
        Open a table also if it was not whole when it was left.

    Attributes
    ----------
    array : ndarray
        The parameter, zeros at first.  Call `mark` before you write to it.
    step : int
        The number of steps that the parameter has taken.

    Raises
    ------
    CheckpointError
        A ValueError: if the table is torn, damaged, or of another shape or dtype.
    FileNotFoundError
        If there is no table, and no shape for a new one.
    BlockingIOError
        If another process has the table open, or this one has by another object.

    Notes
    -----
    *What is promised.*  Before the first write after `flush` a mark is written to the disk (fsync);
    `flush` writes all pages to the disk (msync), and only then takes the mark away (fsync, rename).
    So a table without the mark is the one that was flushed, whole and to the bit, whatever
    happened: a killed process, a machine without power.  A table with the mark was left amid
    training, and is refused: ``accept_torn=True`` opens it all the same.

    *What is not.*  A torn table is no older state of the table, as writes go to the one copy that
    there is: of a killed process at most one step is halfway, as its writes are in the system's
    memory; after a machine has stopped, each page is as old or as new as happened to be.  Nothing
    tells which rows.  A block of ``with`` that ends by an exception flushes what steps did, as they
    are done whole or not at all, unless `mark` was called by hand since the last `flush`.
    The number of steps is that of the last `flush`.  To go back, copy the folder
    after a `flush`.  A disk that is full ends the process as it writes to a page (SIGBUS), and the
    file systems of networks may promise less.  Hyper-parameters are not kept, and have to be given
    again, as for any optimizer.

    The next optimizer goes on from the states in the folder, and is refused if these lack some that
    it keeps; the one before it refuses to step from then on.  A state that doesn't start from zero,
    and a master, are written in full when they are made.  ``opt.state_dict()`` and `fastgd.save`
    copy all there is to memory or to a file, and averages are kept in memory.  Optimizers of such
    parameters can't be copied or pickled.

    Examples
    --------
    >>> import tempfile, numpy as np, fastgd
    >>> folder = tempfile.TemporaryDirectory()
    >>> with fastgd.Mapped(f"{folder.name}/words", (1000, 4)) as words:
    ...     opt = fastgd.Adagrad(words, lr=0.5)
    ...     _ = opt.step(fastgd.Rows([7], np.ones((1, 4), np.float32)))
    >>> words = fastgd.Mapped(f"{folder.name}/words")
    >>> words.step, words.array[7]
    (1, array([-0.5, -0.5, -0.5, -0.5], dtype=float32))
    >>> words.close()
    >>> folder.cleanup()
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        shape: tuple[int, ...] | None = None,
        dtype: DTypeLike | None = None,
        *,
        accept_torn: bool = False,
    ) -> None:
        self._folder = os.fsdecode(folder)
        self._maps: dict[str, mmap.mmap] = {}
        self._entry: Mapping[str, Any] | None = None
        self._owner: Callable[[], Any] = lambda: None
        self._lent = self._by_hand = self._failed = False
        wanted = _spec(shape, dtype)
        accept_torn = flag(accept_torn, "accept_torn")
        new = not os.path.exists(self._path(HEADER))
        if new and wanted[0] is None:
            raise FileNotFoundError(f"{self._folder}: expected a table, or a shape for a new one")
        if new:
            try:
                os.mkdir(self._folder)
            except FileExistsError:
                pass
            except FileNotFoundError:
                words = "expected its parent to be a folder, found none"
                raise FileNotFoundError(errno.ENOENT, words, self._folder) from None
        self._lock: int | None = _locked(self._path(LOCK), self._folder)
        try:
            if new and (there := sorted(f for f in os.listdir(self._folder) if f.endswith(".bin"))):
                raise CheckpointError(
                    f"{self._folder}: expected a table or an empty folder, found {there} without "
                    f"{HEADER}"
                )
            self._specs, self._steps, self._marked = (
                ({PARAMETER: Spec(wanted[0] or (), wanted[1] or "float32")}, 0, True)
                if new
                else self._read(wanted, accept_torn)
            )
            self.array = self._map(PARAMETER, self._specs[PARAMETER], new)
            if new:
                self._write(whole=False)
        except BaseException:
            self._let_go()
            raise

    @property
    def step(self) -> int:
        """The number of steps that the parameter has taken."""
        return self._steps if self._entry is None else int(self._entry["step"])

    def __repr__(self) -> str:
        spec = self._specs[PARAMETER]
        return f"Mapped({self._folder!r}, {spec.shape}, {spec.dtype})"

    # ---------------------------------------------------------------------------- what users call

    def mark(self, owner: Any = None) -> None:
        """Note on the disk that the table is being written to, until the next `flush`.

        Steps do so by themselves; call it before you write to `array`, or to states.

        Raises
        ------
        RuntimeError
            If ``owner``, an optimizer that steps, is not the last one that was made of the table.
        """
        if owner is not None and self._owner() is not owner:
            raise RuntimeError(
                f"{self._folder}: expected to be stepped by the last optimizer that was made of it"
            )
        self._by_hand |= owner is None
        if not self._marked:
            self._refuse_closed()
            self._write(whole=False)
            self._marked = True

    def flush(self) -> None:
        """Write all to the disk, and take the mark away: from here on the table is whole.

        Steps of other threads wait meanwhile.

        Raises
        ------
        OSError
            If the system could not, now or before; the mark stays then.
        RuntimeError
            While averages, or perturbed weights, are in the place of the parameter.
        """
        owner = self._owner()
        with nullcontext() if owner is None else owner.lock:
            self._refuse_closed()
            if self._lent:
                raise RuntimeError(
                    f"{self._folder}: expected the parameter, found others in its place for a while"
                )
            if self._failed:
                raise OSError(errno.EIO, "could not be written before, and is torn", self._folder)
            if self._marked:
                self._write_pages()
                self._steps = self.step
                self._write(whole=True)
                self._marked = self._by_hand = False

    def _write_pages(self) -> None:
        try:
            for name in self._specs:
                if name in self._maps:
                    self._maps[name].flush()
        except OSError:
            self._failed = True  # the system says so once
            raise

    def close(self) -> None:
        """`flush`, and let other processes open the table; repeated calls do nothing.

        Its arrays stay valid for those that still have them, but must not be written to any more.
        """
        if self._lock is not None:
            self.flush()
            self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None and self._by_hand:
            self._let_go()  # who wrote may not be done: the mark stays
        else:
            self.close()

    # ------------------------------------------------------------------------ what optimizers call

    def known(self, kinds: Mapping[str, Kind], restarts: bool) -> dict[str, Array]:
        """See `Home.known`."""
        self._refuse_closed()
        for name, kind in kinds.items():
            spec, found = Spec(kind.shape, _name_of(kind.dtype)), self._specs.get(name)
            if found is not None and found != spec and name != ROW_MAP:
                raise CheckpointError(
                    f"{self._folder}: {name}: expected {_shown(spec)}, found {_shown(found)}"
                )
            # Of rows that could not miss steps nothing was kept: they have missed none.
            if found is None and self.step and not restarts and name not in (ROW_STEPS, ROW_MAP):
                kept = sorted(self._specs.keys() - {PARAMETER}) or "no states"
                raise CheckpointError(
                    f"{self._folder}: expected {name} of a table that has taken {self.step} "
                    f"steps, found {kept}: those of another optimizer"
                )
        there = kinds.keys() & self._specs.keys()
        counts, row_map = self._specs.get(ROW_STEPS), kinds.get(ROW_MAP)
        same = row_map and Spec(row_map.shape, _name_of(row_map.dtype)) == self._specs.get(ROW_MAP)
        if counts and not same:
            if (self._map(ROW_STEPS, counts, new=False) != self.step).any():
                problem = (
                    "steps by another rule: open it by that one, and call catch_up() first"
                    if row_map
                    else 'steps: open it with rows="catch_up", or leave it after catch_up()'
                )
                raise CheckpointError(f"{self._folder}: has rows that missed {problem}")
            there -= {ROW_MAP}  # of which nothing is needed any more
        return {name: self._opened(name, kinds[name]) for name in there}

    def new(self, kind: Kind, start: float) -> dict[str, Array]:
        """See `Home.new`."""
        made: dict[str, Array] = {}
        by_hand = self._by_hand
        self.mark()
        self._by_hand = by_hand
        # A state in 8 bits comes with its scales: a tile tells the numbers that all tiles have.
        for name, small in _sample(kind, self.array.dtype, start).items():
            shape = kind.shape if name == kind.of else (-(-self.array.size // TILE),)
            a = made[name] = self._map(name, Spec(shape, _name_of(small.dtype)), new=True)
            if kind.role == "master":
                flat, values = a.reshape(-1), self.array.reshape(-1)
                for k in range(0, a.size, COPIED):
                    flat[k : k + COPIED] = as_coded(values[k : k + COPIED]).load(a.dtype)
            elif small.tobytes().strip(b"\0"):
                a[...] = small.view(a.dtype).reshape(-1)[0]
        if kind.role == "state":
            made[kind.of] = visible(made[kind.of], kind.codec)
        return made

    def _opened(self, name: str, kind: Kind) -> Array:
        """A state that is there."""
        a = self._map(name, self._specs[name], new=False)
        return visible(a, kind.codec) if kind.role == "state" else a

    def bind(self, entry: Mapping[str, Any], owner: Any) -> None:
        """See `Home.bind`."""
        self._entry, self._owner = entry, weakref.ref(owner)
        self._specs = {PARAMETER: self._specs[PARAMETER]}
        for name, a in entry.items():
            if name in self._maps:
                self._specs[name] = Spec(a.shape, _name_of(a.dtype))

    def lend(self) -> None:
        """See `Home.lend`."""
        self.mark(self._owner())
        self._lent = True

    def take_back(self) -> None:
        """See `Home.take_back`."""
        self._lent = False

    # ----------------------------------------------------------------------------------- the files

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name if "." in name or name == LOCK else f"{name}.bin")

    def _map(self, name: str, spec: Spec, new: bool) -> Array:
        """The array over a file, which is made anew or has to have its size."""
        path = self._path(name)
        if new:
            with suppress(FileNotFoundError):
                os.unlink(path)
        if not new and not os.path.exists(path):
            raise CheckpointError(f"{path}: expected a file of the table, found none")
        with open(path, "x+b" if new else "r+b") as file:
            if new:
                file.truncate(spec.bytes)
            found = os.fstat(file.fileno()).st_size
            if found != spec.bytes:
                raise CheckpointError(f"{path}: expected {spec.bytes} bytes, found {found}")
            made = mmap.mmap(file.fileno(), spec.bytes)
        # What lies beside a row is not what is wanted next: don't read ahead.
        if hasattr(mmap, "MADV_RANDOM"):
            made.madvise(mmap.MADV_RANDOM)
        self._maps[name] = made
        return np.frombuffer(made, DTYPES[spec.dtype]).reshape(spec.shape)

    def _write(self, whole: bool) -> None:
        """Replace the header by one that says so, and wait until it is on the disk."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "byteorder": sys.byteorder,
            "whole": whole,
            "step": self._steps,
            "arrays": {name: [list(spec.shape), spec.dtype] for name, spec in self._specs.items()},
        }
        with replacement(self._path(HEADER)) as file:
            write_all(file, memoryview(json.dumps(content, indent=1).encode() + b"\n"))

    def _read(
        self, wanted: tuple[tuple[int, ...] | None, str | None], accept_torn: bool
    ) -> tuple[dict[str, Spec], int, bool]:
        """The arrays of the table that there is, its steps, and whether it has the mark."""
        path = self._path(HEADER)
        with open(path, "rb") as file:
            specs, step, whole = _parsed(file.read(), path)
        for given, found in zip(wanted, specs[PARAMETER], strict=True):
            if given is not None and given != found:
                raise CheckpointError(f"{self._folder}: expected {given}, found {found}")
        if not whole and not accept_torn:
            raise CheckpointError(
                f"{self._folder}: was left amid training or before its first flush(), and is torn: "
                f"some of it may be newer than the rest (the last flush was at step {step}); "
                "accept_torn=True opens it all the same"
            )
        return specs, step, not whole

    def _let_go(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
        self._lock = None

    def _refuse_closed(self) -> None:
        if self._lock is None:
            raise ValueError(f"{self._folder}: expected an open table, found a closed one")


def _shown(spec: Spec) -> str:
    return f"{spec.dtype} of shape {spec.shape}"


def _spec(shape: object, dtype: DTypeLike | None) -> tuple[tuple[int, ...] | None, str | None]:
    """The shape and the name of the dtype that are asked for, checked."""
    name = None
    if dtype is not None:
        bits = isinstance(dtype, str) and dtype == "bfloat16"
        name = "bfloat16" if bits else codec_of(np.dtype(dtype))
        if name not in ("float32", "float64", "float16", "bfloat16"):
            raise TypeError(f"dtype: expected one of floats, found {shown(dtype)}")
    if shape is None:
        return None, name
    if not isinstance(shape, tuple) or not all(
        isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n > 0 for n in shape
    ):
        raise ValueError(f"shape: expected a tuple of integers above 0, found {shown(shape)}")
    return tuple(map(int, shape)), name


def _sample(kind: Kind, dtype: np.dtype[Any], start: float) -> dict[str, Array]:
    """What `Kind.new` makes for a parameter of a tile."""
    role = kind.role
    if role in ("state", "number"):
        return kind._replace(shape=(1,) if kind.lines or role == "number" else (TILE,)).new(
            np.zeros(TILE, dtype), start
        )
    return {kind.of: np.zeros(1, kind.dtype)}


def _name_of(dtype: np.dtype[Any]) -> str:
    return "bfloat16" if codec_of(dtype) == "bfloat16" else dtype.name


def _parsed(text: bytes, path: str) -> tuple[dict[str, Spec], int, bool]:
    """The content of a header."""
    try:
        content = json.loads(text)
        if (content["format"], content["version"]) != (FORMAT, VERSION):
            raise ValueError
        if content["byteorder"] != sys.byteorder:
            raise CheckpointError(
                f"{path}: expected bytes in {sys.byteorder} endian order, found others"
            )
        specs = {name: Spec(*_array(*array)) for name, array in content["arrays"].items()}
        step, whole = content["step"], content["whole"]
        if PARAMETER not in specs or type(step) is not int or step < 0 or type(whole) is not bool:
            raise ValueError
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError):
        raise CheckpointError(
            f"{path}: expected the header of a table, found another file"
        ) from None
    return specs, step, whole


def _array(shape: Any, dtype: Any) -> Iterator[Any]:
    """The shape and dtype of an array in a header, checked."""
    if dtype not in DTYPES or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError
    yield from (tuple(shape), dtype)


def _locked(path: str, folder: str) -> int:
    """A file that this process alone has locked, until it is closed or the process ends."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        words = (
            "expected a table that nobody has open, found one that a process has, maybe this one"
        )
        raise BlockingIOError(errno.EWOULDBLOCK, words, folder) from None
    except OSError:  # a file system without locks
        pass
    return fd
