"""What an array must be before a kernel may touch it, and the errors that say what it isn't.

TypeError is for the wrong kind of thing (not an array, wrong dtype), ValueError for the wrong
shape, layout or memory.  Every message begins with the array's name and says what was expected and
what was found.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NoReturn, overload

import numpy as np
from numpy.typing import NDArray

from fastgd.kernels.memory.buffers import as_array as as_array
from fastgd.kernels.memory.buffers import read_only
from fastgd.kernels.spec.codecs import CODECS
from fastgd.kernels.spec.coded_array import CodedArray, as_coded, codec_of, computed

Array = NDArray[Any]

# Dtypes of floats, by the names of their codecs.
COMPUTED = ("float32", "float64")
ANY = ("float32", "float64", "bfloat16", "float16")
COPIES = ("float32", "bfloat16", "float16")
DTYPES = tuple(map(np.dtype, COMPUTED))


def shown(value: object) -> str:
    """A value in few words, also one that can't be written out."""
    try:
        return reprlib.repr(value)
    except Exception:  # an integer of too many digits, or whatever its __repr__ raises
        return f"something of type {type(value).__name__} that can't be written out"


def label(path: Sequence[object]) -> str:
    """How a path into nested parameters is written after ``params`` or ``grads``."""
    if any(isinstance(step, str) for step in path):
        return '["' + ".".join(map(str, path)) + '"]'
    return "".join(f"[{step!r}]" for step in path)


class Labels(Sequence[str]):
    """The labels of paths, each put into words when it is asked for: in errors."""

    def __init__(self, paths: Sequence[Sequence[object]]) -> None:
        self._paths = paths

    @overload
    def __getitem__(self, i: int) -> str: ...

    @overload
    def __getitem__(self, i: slice) -> Labels: ...

    def __getitem__(self, i: int | slice) -> str | Labels:
        return Labels(self._paths[i]) if isinstance(i, slice) else label(self._paths[i])

    def __len__(self) -> int:
        return len(self._paths)


def state_label(parameter: str, state: str) -> str:
    """What to call a state of a parameter."""
    return f'state{parameter or "[0]"}["{state}"]'


def check_parameter(obj: object, name: str, dtypes: Sequence[str] = COMPUTED) -> Array:
    """The array of a parameter: of one of the dtypes, contiguous, aligned, native, writeable."""
    p = as_array(obj, name)
    _check_dtype(p, name, dtypes)
    _check_memory(p, name)
    if not (p.flags.c_contiguous or p.flags.f_contiguous):
        raise ValueError(
            f"{name}: expected contiguous memory, found strides {p.strides} for shape {p.shape}"
        )
    _check_writeable(p, name, obj)
    return p


def check_like(obj: object, p: Array, name: str, shape: tuple[int, ...] | None = None) -> Array:
    """The array of a state: like its parameter in dtype, shape if not another, and layout."""
    a = as_array(obj, name)
    if a.dtype.newbyteorder("=") != p.dtype:
        raise TypeError(
            f"{name}: expected dtype {p.dtype} as its parameter, found {a.dtype}; "
            f".astype(np.{p.dtype}) makes a fitting copy"
        )
    if shape is not None and a.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, found {a.shape}")
    _check_place(a, p, name, writeable=True, obj=obj, shape=shape)
    return a


def _check_place(
    a: Array,
    p: Array,
    name: str,
    writeable: bool,
    obj: object | None = None,
    shape: tuple[int, ...] | None = None,
) -> None:
    """Check shape, layout and memory of an array, of `obj`, that goes with a parameter."""
    _check_memory(a, name)
    if a.shape != (p.shape if shape is None else shape):
        raise ValueError(f"{name}: expected shape {p.shape} as its parameter, found {a.shape}")
    order = "C" if p.flags.c_contiguous else "F"
    if not (a.flags.c_contiguous if order == "C" else a.flags.f_contiguous):
        raise ValueError(
            f"{name}: expected contiguous memory in {order} order as its parameter, found strides "
            f"{a.strides} for shape {a.shape}; "
            f"np.{'ascontiguousarray' if order == 'C' else 'asfortranarray'} makes a fitting copy"
        )
    if writeable:
        _check_writeable(a, name, obj)


def check_values(obj: object, p: Array, name: str) -> Array:
    """What a parameter is computed with: its shape, in any layout, to be copied from."""
    a, dtype = as_array(obj, name), computed(p.dtype)
    if a.dtype.newbyteorder("=") != dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, found {a.dtype}")
    if a.shape != p.shape:
        raise ValueError(f"{name}: expected shape {p.shape}, found {a.shape}")
    return a


def as_gradient(obj: object, p: Array, name: str) -> Array:
    """The array of a gradient, of any dtype of floats; a NumPy scalar counts as one of shape ()."""
    if isinstance(obj, np.generic) and p.shape == ():
        obj = np.asarray(obj)
    g = as_array(obj, name)
    _check_dtype(g, name, ANY)
    _check_place(g, p, name, writeable=False)
    return g


def check_average(a: Array, p: Array, name: str) -> None:
    """Check an average of a parameter, which is of the type that is computed with."""
    dtype = computed(p.dtype)
    if a.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, found {a.dtype}")
    _check_place(a, p, name, writeable=True)


def check_lines(a: Array, p: Array, count: int, name: str) -> None:
    """Check the numbers of a parameter's rows or columns, or of pairs of these: so many."""
    dtype = computed(p.dtype)
    if a.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, found {a.dtype}")
    _check_memory(a, name)
    if p.size and a.size != count:
        raise ValueError(f"{name}: expected {count} numbers, found {a.size}")
    order = "C" if p.flags.c_contiguous else "F"
    if not (a.flags.c_contiguous if order == "C" else a.flags.f_contiguous):
        raise ValueError(
            f"{name}: expected contiguous memory in {order} order as its parameter, found strides "
            f"{a.strides} for shape {a.shape}"
        )
    _check_writeable(a, name)


def check_number(a: Array, name: str) -> None:
    """Check an array that holds one number that is kept for a parameter."""
    if a.dtype != np.float64 or a.shape != () or not a.flags.aligned:
        raise TypeError(f"{name}: expected one float64, found {a.dtype} of shape {a.shape}")
    _check_writeable(a, name)


def check_coded(a: CodedArray, p: Array, name: str) -> CodedArray:
    """A coded array of a parameter: in its shape and layout, with scales or remainders for all."""
    codec = CODECS[a.codec]
    if a.code.dtype.itemsize != codec.code.itemsize:
        raise TypeError(f"{name}: expected dtype {codec.code}, found {a.code.dtype}")
    _check_place(a.code, p, name, writeable=True)
    if codec.aux is not None:
        size = -(-p.size // codec.per)
        aux = a.aux
        if aux is None or aux.dtype != codec.aux or aux.shape != (size,):
            raise ValueError(f"{name}: expected a {codec.aux} {codec.aux_name} array of {size}")
        if not aux.flags.c_contiguous:
            raise ValueError(f"{name}: expected a contiguous {codec.aux_name} array")
        _check_writeable(aux, name)
    return a


def as_floats(obj: object, name: str) -> Array:
    """The values of an array as one that can be read from start to end; a copy if need be."""
    a = np.asarray(obj) if isinstance(obj, np.floating) else as_array(obj, name)
    _check_dtype(a, name, ANY)
    return np.require(a, a.dtype.newbyteorder("="), ["C", "A"])


def check_floats(a: Array, name: str) -> None:
    """Refuse an array that is not of floats, or can't be read from start to end."""
    _check_dtype(a, name, ANY)
    if not a.flags.c_contiguous:
        raise ValueError(f"{name}: expected a contiguous array, found strides {a.strides}")


def check_copy(obj: object, p: Array, name: str) -> Array:
    """The array that a parameter is copied to."""
    a = as_array(obj, name)
    _check_dtype(a, name, COPIES)
    _check_place(a, p, name, writeable=True, obj=obj)
    return a


def _check_dtype(a: Array, name: str, dtypes: Sequence[str]) -> None:
    """Check that an array is of one of the dtypes; uint16 counts as bfloat16."""
    codec = codec_of(a.dtype.newbyteorder("="))
    if codec is None or codec not in dtypes:
        raw = "; np.frombuffer(x, np.float32) says what raw bytes hold"
        hint = raw if a.dtype in (np.uint8, np.int8) else ""
        expected = f"{', '.join(dtypes[:-1])} or {dtypes[-1]}"
        raise TypeError(f"{name}: expected dtype {expected}, found {a.dtype}{hint}")


def _check_memory(a: Array, name: str) -> None:
    if not a.dtype.isnative:
        raise TypeError(f"{name}: expected native byte order, found {a.dtype.str}")
    if not a.flags.aligned:
        raise ValueError(
            f"{name}: expected memory aligned to {a.itemsize} bytes, found {a.ctypes.data:#x}"
        )


def _check_writeable(a: Array, name: str, obj: object | None = None) -> None:
    """Check that the array of `obj` may be written to."""
    if not a.flags.writeable:
        raise ValueError(f"{name}: expected a writeable array, found {read_only(obj)}")


def check_disjoint(arrays: Sequence[tuple[Array, str]]) -> list[tuple[int, int, str]]:
    """The memory of named arrays, as (start, end, name) by address; refuses overlaps."""
    placed = sorted((a.ctypes.data, a.ctypes.data + a.nbytes, name) for a, name in arrays if a.size)
    for (start, end, name), (start2, end2, name2) in pairwise(placed):
        if (start, end) == (start2, end2):
            raise ValueError(f"{name2}: is the same memory as {name}; give each array once")
        if end > start2:
            raise ValueError(f"{name2}: overlaps {name} in memory; give arrays of their own")
    return placed


def refuse_nonfinite(a: Array, name: str) -> None:
    """Say where an array holds what isn't finite, if it does."""
    coded = as_coded(a)
    a = coded.load(np.float64).reshape(a.shape, order=coded.order)
    bad = ~np.isfinite(a)
    if not bad.any():
        return
    at = tuple(map(int, np.unravel_index(np.argmax(bad), a.shape)))
    where = f" at {at[0] if len(at) == 1 else at}" if at else ""
    more = f", and {bad.sum() - 1} more" if bad.sum() > 1 else ""
    raise FloatingPointError(f"{name}: expected finite gradients, found {a[at]}{where}{more}")


def refuse_structure(structure: object, grads: object, given: str = "grads") -> NoReturn:
    """Say where gradients, or what else is given, are nested differently from their parameters."""
    _compare(structure, grads, (), given)
    raise ValueError(f"{given}: changed while it was read")


def _compare(structure: object, grads: object, path: tuple[object, ...], given: str) -> None:
    name = f"{given}{label(path)}"
    found = type(grads).__name__
    if isinstance(structure, dict):
        if not isinstance(grads, Mapping):
            raise TypeError(f"{name}: expected a dict as in params, found {found}")
        missing = [key for key in structure if key not in grads]
        unknown = [key for key in grads if key not in structure]
        if missing or unknown:
            problems = [f"missing {missing}"] * bool(missing)
            problems += [f"unknown {unknown}"] * bool(unknown)
            raise ValueError(
                f"{name}: expected the keys of params, found {' and '.join(problems)}"
                + ("; give None where there is nothing" if missing else "")
            )
        for key, inner in structure.items():
            _compare(inner, grads[key], (*path, key), given)
    elif isinstance(structure, list):
        if not isinstance(grads, (list, tuple)):
            raise TypeError(
                f"{name}: expected a list or tuple of {len(structure)} as in params, found {found}"
            )
        if len(grads) != len(structure):
            raise ValueError(
                f"{name}: expected {len(structure)} entries as in params, found {len(grads)}"
            )
        for k, inner in enumerate(structure):
            _compare(inner, grads[k], (*path, k), given)
