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

import json
import math
import reprlib
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastgd.kernels.memory import checks

if TYPE_CHECKING:
    from typing_extensions import Buffer

Array = NDArray[Any]
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

# Integers that Python can write, whatever its limit on digits is.
_FEW = 10**18

_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}

_TEXT = json.encoder.encode_basestring_ascii
_JSON = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


class Kind(NamedTuple):
    """How arrays of a dtype and a shape are stored, and the text that describes them."""

    dtype: np.dtype[Any]  # little-endian
    shape: tuple[int, ...]
    nbytes: int
    node: str  # in the JSON, from the name to the checksum
    entry: str  # in the file's header, from the name to the place of the bytes


# An array to store, in C order, its kind, and the parts of a JSON text with the index of the gap
# for its checksum.
Stored = tuple[Array, Kind, list[str], int]


def checksum(data: Buffer) -> str:
    """The CRC-32 of bytes, as eight hexadecimal digits."""
    return f"{zlib.crc32(data):08x}"


@lru_cache(64)  # NumPy puts a dtype's name together anew each time
def name_of(dtype: np.dtype[Any]) -> str:
    """The name of a dtype."""
    return dtype.name


@lru_cache(4096)
def kind_of(dtype: str, shape: tuple[int, ...]) -> Kind:
    """The kind of arrays of a dtype, by its name, and a shape; KeyError if there is none."""
    stored = FOREIGN.get(dtype, dtype)
    code, little = CODES[stored], np.dtype(stored).newbyteorder("<")
    sides = f"[{','.join(map(str, shape))}]"
    return Kind(
        little,
        shape,
        little.itemsize * math.prod(shape),
        f',"dtype":"{dtype}","shape":{sides},"crc32":"',
        f':{{"dtype":"{code}","shape":{sides},"data_offsets":[',
    )


@lru_cache(4096)
def _kind_for(cls: type, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Kind | None:
    """How an array of a class can be stored, if it can."""
    name = name_of(dtype)
    masked = issubclass(cls, np.ma.MaskedArray)
    return None if masked or name not in {**CODES, **FOREIGN} else kind_of(name, shape)


def pack(value: Any, path: tuple[object, ...], arrays: dict[str, Stored]) -> list[str]:
    """Turn a value into JSON, in parts to be joined; its arrays are added to `arrays`.

    Arrays are not copied where they can be stored as they are, and have no checksum yet: the writer
    puts it into its gap, eight digits for eight.

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
    text: list[str] = []
    try:
        _pack(value, path, ".".join(map(str, path)), arrays, text)
    except RecursionError:
        raise ValueError(f"{path[0]}: nested without end (does it contain itself?)") from None
    return text


def _pack(
    value: Any, path: tuple[object, ...], name: str, arrays: dict[str, Stored], text: list[str]
) -> None:
    """Append a value; `name` is the path in one word."""
    if value is None or isinstance(value, (bool, str)):
        text.append(_JSON(str(value) if isinstance(value, str) else value))
    elif isinstance(value, np.ndarray):
        _pack_array(value, path, name, arrays, text)
    elif isinstance(value, np.generic):
        text.append('{"$scalar":')
        _pack_array(value, path, name, arrays, text)
        text.append("}")
    elif isinstance(value, int):
        try:
            text.append(int.__repr__(value))
        except ValueError as error:  # Python's limit on digits
            raise ValueError(
                f"{_where(path)}: expected a number in fewer digits ({error})"
            ) from None
    elif isinstance(value, float):
        finite = math.isfinite(value)
        text.append(float.__repr__(value) if finite else f'{{"$float":"{float(value)}"}}')
    elif isinstance(value, (list, tuple)):
        text.append('{"$tuple":[' if isinstance(value, tuple) else "[")
        for k, item in enumerate(value):
            _pack_item("," if k else "", item, (*path, k), f"{name}.{k}", arrays, text)
        text.append("]}" if isinstance(value, tuple) else "]")
    elif isinstance(value, Mapping):
        _pack_dict(value, path, name, arrays, text)
    else:
        found = f"{type(value).__name__} {checks.shown(value)}"
        raise TypeError(
            f"{_where(path)}: expected numbers, strings, arrays, or dicts and lists of these, "
            f"found {found}"
        )


def _pack_item(
    before: str,
    value: Any,
    path: tuple[object, ...],
    name: str,
    arrays: dict[str, Stored],
    text: list[str],
) -> None:
    """Append what is before a value, and the value, quickly if it is of a frequent type."""
    kind = type(value)
    if kind is np.ndarray:
        _pack_array(value, path, name, arrays, text, before)
    elif kind is int and -_FEW < value < _FEW:
        text.append(f"{before}{value}")
    elif kind is dict:
        text.append(before)
        _pack_dict(value, path, name, arrays, text)
    else:
        text.append(before)
        _pack(value, path, name, arrays, text)


def _pack_dict(
    value: Mapping[Any, Any],
    path: tuple[object, ...],
    name: str,
    arrays: dict[str, Stored],
    text: list[str],
) -> None:
    keys = [key for key in value if isinstance(key, str) and key[:1] != "$"]
    if len(keys) == len(value):
        before = "{"
        for key, v in value.items():
            before += f"{_TEXT(key)}:"
            if type(v) is np.ndarray:  # as most are
                _pack_array(v, (*path, key), f"{name}.{key!s}", arrays, text, before)
            else:
                _pack_item(before, v, (*path, key), f"{name}.{key!s}", arrays, text)
            before = ","
        text.append("}" if value else "{}")
        return
    before = '{"$dict":[['
    for key, v in value.items():
        _pack_item(before, key, (*path, "key"), f"{name}.key", arrays, text)
        _pack_item(",", v, (*path, key), f"{name}.{key!s}", arrays, text)
        before = "],["
    text.append("]]}")


def _where(path: tuple[object, ...]) -> str:
    return f"{path[0]}{checks.label(path[1:])}"


def _pack_array(
    value: Any,
    path: tuple[object, ...],
    name: str,
    arrays: dict[str, Stored],
    text: list[str],
    before: str = "",
) -> None:
    cls: Any = type(value)
    kind = _kind_for(cls, value.dtype, value.shape)
    if kind is None:
        dtype = name_of(value.dtype)
        found = "a masked array" if isinstance(value, np.ma.MaskedArray) else f"dtype {dtype}"
        known = ", ".join([*CODES, *FOREIGN])
        raise TypeError(f"{_where(path)}: expected an array of {known}, found {found}")
    a = np.asarray(value, order="C")
    if a.dtype != kind.dtype:
        if name_of(a.dtype) in FOREIGN:
            a = a.view(FOREIGN[name_of(a.dtype)])
        a = a.astype(kind.dtype, copy=False)
    if not name.isascii():
        # Names are for people and other tools, which need valid Unicode.
        name = name.encode("utf-8", "backslashreplace").decode()
    if name in arrays:
        k = 2
        while f"{name}#{k}" in arrays:
            k += 1
        name = f"{name}#{k}"
    arrays[name] = a, kind, text, len(text) + 1
    text += (f'{before}{{"$array":{_TEXT(name)}{kind.node}', "00000000", '"}')


def unpack(packed: Any, take: Take) -> Any:
    """Turn packed JSON back into the value.

    Parameters
    ----------
    packed : object
        What `pack` wrote, or anything else that JSON can hold.  Arrays may stand in it instead of
        their descriptions, and are taken as they are.
    take : callable
        From the name, the stored dtype and the shape of an array to that array, which the value
        owns from then on, and its checksum.

    Raises
    ------
    ValueError
        If `pack` can't have returned it, or an array's checksum differs.
    """
    if isinstance(packed, list):
        return [unpack(v, take) if isinstance(v, _NESTED) else v for v in packed]
    if not isinstance(packed, dict):
        return packed
    if "$array" in packed:
        return _unpack_array(packed, take)
    if "$" not in "".join(packed) or not any(key[:1] == "$" for key in packed):
        return {k: unpack(v, take) if isinstance(v, _NESTED) else v for k, v in packed.items()}
    match packed:
        case {"$tuple": list(items), **rest} if not rest:
            return tuple(unpack(v, take) for v in items)
        case {"$dict": list(pairs), **rest} if not rest:
            return dict(_unpack_pair(pair, take) for pair in pairs)
        case {"$float": str(value), **rest} if not rest and value in _FLOATS:
            return _FLOATS[value]
        case {"$scalar": {"$array": _} as inner, **rest} if not rest and inner.get("shape") == []:
            return _unpack_array(inner, take)[()]
        case {"$scalar": np.ndarray() as a, **rest} if not rest and not a.ndim:
            return a[()]
    raise ValueError(f"expected a value that was packed, found {reprlib.repr(packed)}")


_NESTED = (dict, list)


def _unpack_pair(pair: Any, take: Take) -> tuple[Any, Any]:
    if not isinstance(pair, list) or len(pair) != 2:
        raise ValueError(f"expected a key and a value, found {reprlib.repr(pair)}")
    key, value = pair
    value = unpack(value, take) if isinstance(value, _NESTED) else value
    if not isinstance(key, _NESTED):
        return key, value
    key = unpack(key, take)
    try:
        hash(key)
    except TypeError:
        raise ValueError(f"expected a key of a dict, found {reprlib.repr(key)}") from None
    return key, value


def _unpack_array(packed: Any, take: Take) -> Array:
    name, dtype, shape, saved = map(packed.get, ("$array", "dtype", "shape", "crc32"))
    if not (
        len(packed) == 4
        and isinstance(name, str)
        and isinstance(dtype, str)
        and isinstance(saved, str)
        and isinstance(shape, list)
        and all(type(n) is int for n in shape)
    ):
        raise ValueError(f"expected an array's description, found {reprlib.repr(packed)}")
    if dtype not in CODES and dtype not in FOREIGN:
        known = ", ".join([*CODES, *FOREIGN])
        raise ValueError(f"{name}: expected a dtype of {known}, found {reprlib.repr(dtype)}")
    a, found = take(name, FOREIGN.get(dtype, dtype), tuple(shape))
    if found != saved:
        raise ValueError(f"{name}: its bits have changed since they were saved")
    return as_seen(a, dtype, name)


def as_seen(a: Array, dtype: str, name: str) -> Array:
    """A stored array as one of the dtype that it had."""
    if dtype not in FOREIGN:
        return a
    try:
        import ml_dtypes
    except ImportError:
        raise ValueError(f"{name}: dtype {dtype} needs the package ml_dtypes") from None
    return a.view(getattr(ml_dtypes, dtype))
