"""The file of a checkpoint: a safetensors file whose metadata hold our JSON.

It is read by the library of safetensors, and written here: the library writes into a file of its
own making, whose permissions and flushing to the disk are not ours to decide, and says of a full
disk no more than a sentence.

====================  ==================================================================
in the metadata
====================  ==================================================================
``format``            `FORMAT`
``version``           `VERSION`: what else is there, and how it is to be understood
``content``           JSON, as `fastgd._packing` has it, with a checksum of each array
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
from io import FileIO
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fastgd._packing import CODES, Stored, checksum, unpack

Array = NDArray[Any]

FORMAT = "fastgd checkpoint"
VERSION = "1"

PIECE = 2**20  # bytes that are copied, summed and written while they are in cache


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
        with safetensors.safe_open(path, framework="np") as opened:
            return _unpacked(opened)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"expected a whole safetensors file, found another or a part of one ({error})"
        ) from error
    except RecursionError:
        raise ValueError("content: expected an end to its nesting, found none") from None


def _unpacked(opened: Any) -> Any:
    metadata = opened.metadata() or {}
    if (found := metadata.get("format")) != FORMAT:
        raise ValueError(f"format: expected {FORMAT!r}, found {reprlib.repr(found)}")
    if (found := metadata.get("version")) != VERSION:
        raise ValueError(f"version: expected {VERSION!r}, found {reprlib.repr(found)}")
    text = metadata.get("content", "")
    if metadata.get("crc32") != checksum(text.encode()):
        raise ValueError("content: its bits have changed since they were saved")
    unread = set(opened.keys())

    def take(name: str, dtype: str, shape: tuple[int, ...]) -> Array:
        if name not in unread:
            raise ValueError(f"{name}: expected one array of that name for each mention")
        unread.remove(name)
        stored = opened.get_slice(name)
        code, dims = stored.get_dtype(), tuple(stored.get_shape())
        if (code, dims) != (CODES[dtype], shape):
            raise ValueError(
                f"{name}: expected {CODES[dtype]} of shape {shape}, found {code} of shape {dims}"
            )
        a: Array = opened.get_tensor(name)
        return a

    content = unpack(json.loads(text, parse_constant=_refuse_constant), take)
    if unread:
        raise ValueError(f"content: expected a mention of each array, found none of {min(unread)}")
    return content


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"content: expected JSON, found {text}")
