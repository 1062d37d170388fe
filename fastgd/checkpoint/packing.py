"""Packing: nested numbers, strings and arrays as JSON and flat named arrays, and back, exactly.

What JSON has stays as it is; the rest is a dict with a key that begins with ``$``:

=========================================  =====================================================
``{"$tuple": [...]}``                      a tuple
``{"$dict": [[key, value], ...]}``         a dict with keys that JSON can't have
``{"$float": "nan"}``, ``inf``, ``-inf``   a float that JSON can't have
``{"$array": name, ...}``                  the array that is stored under that name, with its
                                           ``dtype``, ``shape`` and ``crc32``
``{"$scalar": {"$array": ...}}``           a NumPy scalar
=========================================  =====================================================

No key is looked for by name, so whatever an optimizer puts into its state dict comes back.
"""

from __future__ import annotations

import math
import reprlib
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastgd.kernels.memory import checks

if TYPE_CHECKING:
    from typing_extensions import Buffer

Array = NDArray[Any]
# The description of an array in JSON, and the array itself: in C order, little-endian, of a dtype
# in `CODES`.
Stored = tuple[dict[str, Any], Array]
Take = Callable[[str, str, tuple[int, ...]], tuple[Array, str]]

# The dtypes that are stored as they are, by their names in safetensors.
CODES = {
    "bool": "BOOL",
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
}

# The dtypes of ml_dtypes, stored as integers of their size, as that package is optional.
FOREIGN = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}

_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def checksum(data: Buffer) -> str:
    """The CRC-32 of bytes, as eight hexadecimal digits."""
    return f"{zlib.crc32(data):08x}"


def pack(value: Any, path: tuple[object, ...], arrays: dict[str, Stored]) -> Any:
    """Turn a value into JSON; its arrays are added to `arrays`.

    Arrays are not copied where they can be stored as they are, and have no checksum yet: the writer
    puts it into ``"crc32"``, eight digits for eight.

    Parameters
    ----------
    value : number, string, None, array, or dicts, lists and tuples of these
        The value to pack.
    path : tuple
        Where it is in a larger one, for the names of its arrays and for errors.
    arrays : dict
        Gets the arrays to store, each under a unique name.

    Raises
    ------
    TypeError
        If something of another type is in it.
    ValueError
        If it is nested without end, or an integer has too many digits for Python to write.
    """
    if value is None or isinstance(value, (bool, str)):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, (np.ndarray, np.generic)):
        packed = _pack_array(value, path, arrays)
        return packed if isinstance(value, np.ndarray) else {"$scalar": packed}
    if isinstance(value, int):
        try:
            str(value)
        except ValueError as error:  # Python's limit on digits
            raise ValueError(
                f"{_where(path)}: expected a number in fewer digits ({error})"
            ) from None
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(float(value))}
    try:
        if isinstance(value, (list, tuple)):
            items = [pack(v, (*path, k), arrays) for k, v in enumerate(value)]
            return {"$tuple": items} if isinstance(value, tuple) else items
        if isinstance(value, Mapping):
            # The values go first, so that arrays are named by the keys and not by "$dict".
            values = [pack(v, (*path, key), arrays) for key, v in value.items()]
            if all(isinstance(key, str) and not key.startswith("$") for key in value):
                return {str(key): v for key, v in zip(value, values, strict=True)}
            keys = [pack(key, (*path, "key"), arrays) for key in value]
            return {"$dict": [list(pair) for pair in zip(keys, values, strict=True)]}
    except RecursionError:
        raise ValueError(f"{path[0]}: nested without end (does it contain itself?)") from None
    found = f"{type(value).__name__} {reprlib.repr(value)}"
    raise TypeError(
        f"{_where(path)}: expected numbers, strings, arrays, or dicts and lists of these, "
        f"found {found}"
    )


def _where(path: tuple[object, ...]) -> str:
    return f"{path[0]}{checks.label(path[1:])}"


def _pack_array(value: Any, path: tuple[object, ...], arrays: dict[str, Stored]) -> dict[str, Any]:
    dtype = value.dtype.name
    if isinstance(value, np.ma.MaskedArray) or (dtype not in CODES and dtype not in FOREIGN):
        found = "a masked array" if isinstance(value, np.ma.MaskedArray) else f"dtype {dtype}"
        known = ", ".join([*CODES, *FOREIGN])
        raise TypeError(f"{_where(path)}: expected an array of {known}, found {found}")
    a = np.asarray(value, order="C")
    if dtype in FOREIGN:
        a = a.view(FOREIGN[dtype])
    a = a.astype(a.dtype.newbyteorder("<"), copy=False)
    # Names are for people and other tools, which need valid Unicode.
    plain = ".".join(map(str, path)).encode("utf-8", "backslashreplace").decode()
    name, k = plain, 2
    while name in arrays:
        name, k = f"{plain}#{k}", k + 1
    node = {"$array": name, "dtype": dtype, "shape": [*a.shape], "crc32": checksum(b"")}
    arrays[name] = node, a
    return node


def unpack(packed: Any, take: Take) -> Any:
    """Turn packed JSON back into the value.

    Parameters
    ----------
    packed : object
        What `pack` returned, or anything else that JSON can hold.
    take : callable
        From the name, the stored dtype and the shape of an array to that array, which the value
        owns from then on, and its checksum.

    Raises
    ------
    ValueError
        If `pack` can't have returned it, or an array's checksum differs.
    """
    if isinstance(packed, list):
        return [unpack(v, take) for v in packed]
    if not isinstance(packed, dict):
        return packed
    match packed:
        case {"$tuple": list(items), **rest} if not rest:
            return tuple(unpack(v, take) for v in items)
        case {"$dict": list(pairs), **rest} if not rest:
            return dict(_unpack_pair(pair, take) for pair in pairs)
        case {"$float": str(value), **rest} if not rest and value in _FLOATS:
            return _FLOATS[value]
        case {"$scalar": {"$array": _} as inner, **rest} if not rest and inner.get("shape") == []:
            return _unpack_array(inner, take)[()]
        case {"$array": _}:
            return _unpack_array(packed, take)
    if any(key.startswith("$") for key in packed):
        raise ValueError(f"expected a value that was packed, found {reprlib.repr(packed)}")
    return {key: unpack(v, take) for key, v in packed.items()}


def _unpack_pair(pair: Any, take: Take) -> tuple[Any, Any]:
    if not isinstance(pair, list) or len(pair) != 2:
        raise ValueError(f"expected a key and a value, found {reprlib.repr(pair)}")
    key, value = (unpack(v, take) for v in pair)
    try:
        hash(key)
    except TypeError:
        raise ValueError(f"expected a key of a dict, found {reprlib.repr(key)}") from None
    return key, value


def _unpack_array(packed: Any, take: Take) -> Array:
    match packed:
        case {
            "$array": str(name),
            "dtype": str(dtype),
            "shape": list(shape),
            "crc32": str(saved),
            **rest,
        } if not rest and all(type(n) is int for n in shape):
            pass
        case _:
            raise ValueError(f"expected an array's description, found {reprlib.repr(packed)}")
    if dtype not in CODES and dtype not in FOREIGN:
        known = ", ".join([*CODES, *FOREIGN])
        raise ValueError(f"{name}: expected a dtype of {known}, found {reprlib.repr(dtype)}")
    a, found = take(name, FOREIGN.get(dtype, dtype), tuple(shape))
    if found != saved:
        raise ValueError(f"{name}: its bits have changed since they were saved")
    if dtype in FOREIGN:
        try:
            import ml_dtypes
        except ImportError:
            raise ValueError(f"{name}: dtype {dtype} needs the package ml_dtypes") from None
        a = a.view(getattr(ml_dtypes, dtype))
    return a
