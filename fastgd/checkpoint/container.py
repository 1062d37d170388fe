"""The file of a checkpoint: a safetensors file whose metadata hold our JSON.

The library of safetensors reads and checks the header.  The arrays are read here: the library maps
the file, which is slower, and ends the process where another has cut the file off meanwhile.  It is
written here, too: the library writes into a file of its own making, whose permissions and flushing
to the disk are not ours to decide, and says of a full disk no more than a sentence.

====================  ==================================================================
in the metadata
====================  ==================================================================
``format``            `FORMAT`
``version``           `VERSION`: what else is there, and how it is to be understood
``content``           JSON, as `fastgd.checkpoint.packing` has it, with a checksum of each array
``crc32``             the checksum of that JSON
====================  ==================================================================
"""

from __future__ import annotations

import json
import os
import reprlib
import stat
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader, FileIO
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fastgd.checkpoint.packing import CODES, Stored, checksum, unpack

Array = NDArray[Any]

DTYPES = {code: dtype for dtype, code in CODES.items()}
FORMAT = "fastgd checkpoint"
VERSION = "1"

PIECE = 2**20  # bytes that are copied, summed and written while they are in cache
READ = 2**22  # bytes that one thread reads while another sums up those before


def library(caller: str) -> Any:
    """The package safetensors, which nothing else here needs."""
    try:
        import safetensors
    except ImportError as error:
        hint = f'{caller} needs safetensors: pip install "fastgd[checkpoint]"'
        raise ImportError(hint) from error
    return safetensors


def write(file: FileIO, content: Any, arrays: Mapping[str, Stored]) -> None:
    """Write packed content and its arrays, as `pack` returned them.

    The bytes that are written are those that the checksums are of, even if others write into the
    arrays meanwhile.

    Raises
    ------
    OSError
        If the system refuses.
    """
    # The widest first: so each array begins at a multiple of its items' size.
    ordered = dict(sorted(arrays.items(), key=lambda item: -item[1][1].itemsize))
    # Checksums are known when the arrays have been written; their room in the header is, now.
    header = _header(content, ordered)
    file.seek(len(header))
    piece = np.empty(PIECE, np.uint8)
    for node, a in ordered.values():
        data, crc = a.reshape(-1).view(np.uint8), 0
        for start in range(0, data.size, PIECE):
            part = piece[: min(PIECE, data.size - start)]
            part[...] = data[start : start + PIECE]
            crc = zlib.crc32(part.data, crc)
            _write_all(file, part.data)
        node["crc32"] = f"{crc:08x}"
    file.seek(0)
    _write_all(file, memoryview(_header(content, ordered)))


def _header(content: Any, arrays: Mapping[str, Stored]) -> bytes:
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    crc32 = checksum(text.encode())
    metadata = {"format": FORMAT, "version": VERSION, "content": text, "crc32": crc32}
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, (_, a) in arrays.items():
        offsets = [end, end := end + a.nbytes]
        header[name] = {"dtype": CODES[a.dtype.name], "shape": a.shape, "data_offsets": offsets}
    head = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head


def _write_all(file: FileIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


def check(path: str, name: str, safetensors: Any) -> None:
    """Whether what was written to `path` can be opened, before it replaces `name`, which can.

    Raises
    ------
    ValueError
        If not, as the library has limits: 100 MB for names, shapes and metadata together.
    """
    try:
        with safetensors.safe_open(path, framework="np"):
            pass
    except safetensors.SafetensorError as error:
        raise ValueError(f"{name}: expected what safetensors can open again ({error})") from error


def read(path: str, safetensors: Any) -> Any:
    """The content of a file, unpacked; nothing in it is believed.

    Raises
    ------
    OSError
        If it can't be read.
    ValueError
        If `write` didn't write it so.
    """
    kind = os.stat(path).st_mode
    if not stat.S_ISREG(kind):
        found = "a directory" if stat.S_ISDIR(kind) else "something else"
        raise ValueError(f"expected a file, found {found}")
    try:
        while True:
            with open(path, "rb") as file, safetensors.safe_open(path, framework="np") as opened:
                # Else another save has replaced the file before the library opened it.
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    return _unpacked(opened, file)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"expected a whole safetensors file, found another or a part of one ({error})"
        ) from error
    except RecursionError:
        raise ValueError("content: expected an end to its nesting, found none") from None


def _unpacked(opened: Any, file: BufferedReader) -> Any:
    metadata = opened.metadata() or {}
    if (found := metadata.get("format")) != FORMAT:
        raise ValueError(f"format: expected {FORMAT!r}, found {reprlib.repr(found)}")
    if (found := metadata.get("version")) != VERSION:
        raise ValueError(f"version: expected {VERSION!r}, found {reprlib.repr(found)}")
    text = metadata.get("content", "")
    if metadata.get("crc32") != checksum(text.encode()):
        raise ValueError("content: its bits have changed since they were saved")
    arrays = {name: _empty(name, opened.get_slice(name)) for name in opened.offset_keys()}
    sums = _fill(arrays, file)

    def take(name: str, dtype: str, shape: tuple[int, ...]) -> tuple[Array, str]:
        if name not in arrays:
            raise ValueError(f"{name}: expected one array of that name for each mention")
        a = arrays.pop(name)
        if (a.dtype.name, a.shape) != (dtype, shape):
            raise ValueError(
                f"{name}: expected {CODES[dtype]} of shape {shape}, "
                f"found {CODES[a.dtype.name]} of shape {a.shape}"
            )
        return a, sums[name]

    content = unpack(json.loads(text, parse_constant=_refuse_constant), take)
    if arrays:
        raise ValueError(f"content: expected a mention of each array, found none of {min(arrays)}")
    return content


def _empty(name: str, stored: Any) -> Array:
    """An array to read a stored one into; the file is no smaller, as the library has checked."""
    code, shape = stored.get_dtype(), stored.get_shape()
    if code not in DTYPES:
        raise ValueError(f"{name}: expected {', '.join(DTYPES)}, found {code}")
    try:
        return np.empty(shape, np.dtype(DTYPES[code]).newbyteorder("<"))
    except ValueError as error:
        raise ValueError(f"{name}: expected a shape that an array can have ({error})") from None


def _fill(arrays: Mapping[str, Array], file: BufferedReader) -> dict[str, str]:
    """Read all arrays, which end the file, in the order of their bytes; returns their checksums.

    These are of what the arrays hold, whatever becomes of the file.
    """
    sums = dict.fromkeys(arrays, 0)

    def add(name: str, piece: Array) -> None:
        sums[name] = zlib.crc32(piece.data, sums[name])

    size = os.fstat(file.fileno()).st_size
    file.seek(max(size - sum(a.nbytes for a in arrays.values()), 0))
    with ThreadPoolExecutor(1) as summing:  # which does one after the other
        for name, a in arrays.items():
            data = a.reshape(-1).view(np.uint8)
            for start in range(0, data.size, READ):
                piece = data[start : start + READ]
                if file.readinto(piece.data) < piece.size:
                    raise ValueError(f"{name}: expected the whole of it, found the file cut off")
                summing.submit(add, name, piece)
    return {name: f"{crc32:08x}" for name, crc32 in sums.items()}


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"content: expected JSON, found {text}")
