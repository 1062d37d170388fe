"""Arrays over borrowed buffers: who may lend one, how, and what keeps it from going away.

NumPy's arrays are taken as they are.  Of everything else the memory is borrowed, never copied, by
the first of these that it speaks:

1. DLPack (torch, Arrow's tensors, JAX for gradients), in CPU memory;
2. the buffer protocol (memoryview, array.array, mmap, shared memory, Arrow's buffers, ctypes), with
   a format that says what it holds: ``memoryview(x).cast("f")`` makes one of raw bytes;
3. ``__array_interface__``.

What is said wrongly of a buffer can't be found out, unless it contradicts itself.
"""

from __future__ import annotations

import sys
from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# DLPack's numbers of devices whose memory the CPU reads: its own, pinned for CUDA or ROCm, managed.
_ON_CPU = {1, 3, 11, 13}
_DEVICES = {2: "CUDA", 4: "OpenCL", 7: "Vulkan", 8: "Metal", 10: "ROCm", 14: "oneAPI"}
# Packages whose arrays nobody may write to, whether or not they say so when they lend them.
_IMMUTABLE = {"jax": "JAX", "jaxlib": "JAX", "pyarrow": "Arrow"}


def as_array(obj: object, name: str, dtype: str = "np.float32") -> Array:
    """A NumPy array over the memory of `obj`; never a copy.

    bfloat16, which NumPy itself lacks, comes as ml_dtypes has it or as uint16.

    Parameters
    ----------
    obj : object
        A NumPy array or what lends its memory: see the module's docstring.
    name : str
        What to call it in an error,
    dtype : str
        and the dtype to advise there, of a number or list.

    Raises
    ------
    TypeError
        If it is no array, or not in memory that the CPU can reach.
    ValueError
        If what it says of its memory contradicts itself.

    Examples
    --------
    >>> from array import array
    >>> x = array("d", [1.0, 2.0])
    >>> as_array(x, "x")[0] = 5.0
    >>> x
    array('d', [5.0, 2.0])
    """
    if isinstance(obj, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected a plain array, found a masked array")
    if isinstance(obj, np.ndarray):
        return np.asarray(obj)
    found = _kind(obj)
    if isinstance(obj, np.generic):
        raise TypeError(f"{name}: expected an array, found the scalar {found}")
    if str(getattr(obj, "dtype", "")) == "torch.bfloat16":  # which DLPack can't give to NumPy
        obj = obj.detach().view(sys.modules["torch"].uint16)  # type: ignore[attr-defined]
    if hasattr(obj, "__dlpack__"):
        return _from_dlpack(obj, name, found)
    if hasattr(obj, "__cuda_array_interface__"):
        raise TypeError(f"{name}: expected an array in CPU memory, found {found} in CUDA memory")
    try:
        return np.asarray(memoryview(obj))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        pass
    interface = getattr(obj, "__array_interface__", None)
    if interface is None or isinstance(obj, type):
        how = f"; np.array([…], {dtype}) makes one" if _is_number_or_list(obj) else ""
        raise TypeError(f"{name}: expected an array, found {found}{how}")
    return _from_interface(obj, interface, name, found)


def _is_number_or_list(obj: object) -> bool:
    return isinstance(obj, (int, float, complex, list, tuple))


def read_only(obj: object) -> str:
    """What to call something that can't be written to, and what to do about it."""
    owner = _IMMUTABLE.get(_kind(obj).partition(".")[0])
    if owner is None:
        return "a read-only one"
    return f"an immutable one of {owner}; np.array(x) makes a copy that can be updated"


def lent(a: Array) -> memoryview | None:
    """A view that keeps the owner of an array's memory from taking it back while it lives.

    ``np.ndarray(shape, buffer=x)`` holds `x` but not its memory: mmap and shared memory may be
    closed, bytearrays resized, and the array is left with an address at which nothing is.
    Memory that is lent out can't be: trying raises BufferError.
    """
    base: object = a.base
    while isinstance(base, np.ndarray):
        base = base.base
    if base is None:
        return None
    try:
        return memoryview(base)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # who lends in other ways, or was closed already
        return None


def _kind(obj: object) -> str:
    return f"{type(obj).__module__}.{type(obj).__qualname__}"


def _from_dlpack(obj: Any, name: str, found: str) -> Array:
    expected = f"{name}: expected an array in CPU memory, found {found}"
    try:
        device = int(obj.__dlpack_device__()[0])
    except Exception:  # NumPy will say what is wrong
        device = 1
    if device not in _ON_CPU:
        raise TypeError(f"{expected} in {_DEVICES.get(device, f'device {device}')} memory")
    detach = getattr(obj, "detach", None)  # tensors that record gradients
    try:
        a = np.from_dlpack(detach() if detach else obj)
    except Exception as error:
        problem = str(error).partition("\n")[0]
        raise TypeError(f"{expected} ({problem})") from error
    if found.partition(".")[0] in _IMMUTABLE and not getattr(obj, "is_mutable", False):
        a.flags.writeable = False
    return a


class _Holder:
    """An object with the checked ``__array_interface__``, which keeps its owner alive."""

    def __init__(self, owner: object, interface: dict[str, Any]) -> None:
        self.owner = owner
        self.__array_interface__ = interface


def _from_interface(obj: object, interface: Any, name: str, found: str) -> Array:
    """The array that an ``__array_interface__`` describes, version 3 of the protocol."""
    expected = f"{name}: expected a sound __array_interface__ of {found}, found"
    if not isinstance(interface, dict):
        raise TypeError(f"{expected} {type(interface).__name__}")
    if missing := [key for key in ("shape", "typestr", "data") if interface.get(key) is None]:
        raise TypeError(f"{expected} no {missing[0]}")
    if interface.get("mask") is not None:
        raise TypeError(f"{expected} a mask")
    shape: Any = interface["shape"]
    strides: Any = interface.get("strides")
    data: Any = interface["data"]
    typestr: Any = interface["typestr"]
    try:
        dtype = np.dtype(typestr)
        if typestr[0] not in "<>|=" or dtype.hasobject or not dtype.itemsize:
            raise TypeError
    except (TypeError, ValueError):
        raise TypeError(f"{expected} typestr {typestr!r}") from None
    if not _are_ints(shape) or any(n < 0 for n in shape) or len(shape) > 64:
        raise ValueError(f"{expected} shape {shape!r}")
    if strides is not None and (not _are_ints(strides) or len(strides) != len(shape)):
        raise ValueError(f"{expected} strides {strides!r} for shape {shape}")

    if not isinstance(data, tuple):  # something with a buffer, whose end NumPy checks
        try:
            if (offset := index(interface.get("offset", 0))) < 0:
                raise ValueError(f"offset {offset}")
            return np.ndarray(shape, dtype, memoryview(data), offset, strides)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{expected} data that doesn't fit ({error})") from None
    if len(data) != 2 or not _are_ints(data[:1]):
        raise TypeError(f"{expected} data {data!r}")
    # The first and the last byte, counted from the address.
    steps = strides if strides is not None else _c_strides(shape, dtype.itemsize)
    reach = [(n - 1) * step for n, step in zip(shape, steps, strict=True)]
    low = data[0] + sum(r for r in reach if r < 0)
    high = data[0] + sum(r for r in reach if r > 0) + dtype.itemsize
    if 0 not in shape and not 0 < low < high <= sys.maxsize:
        raise ValueError(f"{expected} address {data[0]:#x} for shape {shape} of {dtype}")
    checked = {"shape": shape, "typestr": dtype.str, "strides": strides, "version": 3}
    return np.asarray(_Holder(obj, {**checked, "data": (data[0], bool(data[1]))}))


def _are_ints(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(n, (int, np.integer)) for n in value)


def _c_strides(shape: tuple[int, ...], itemsize: int) -> list[int]:
    steps = [itemsize]
    for n in reversed(shape[1:]):
        steps.insert(0, steps[0] * n)
    return steps[: len(shape)]
