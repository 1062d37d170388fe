"""The file of a checkpoint: a safetensors file with fastgd's JSON in its metadata.

The safetensors library reads and checks the header.  The arrays are read here: the library maps the
file, which is slower, and kills the process (SIGBUS) if another truncates the file meanwhile.  It
is written here, too: the library creates the file itself, so that permissions and flushing to the
disk can't be chosen, and reports a full disk as a sentence, not as an OSError.

====================  ==================================================================
in the metadata
====================  ==================================================================
``format``            `FORMAT`
``version``           `VERSION` of the entries below and of the packing
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

from fastgd.checkpoint.atomic import write_all
from fastgd.checkpoint.packing import CODES, Stored, checksum, unpack

Array = NDArray[Any]

DTYPES = {code: dtype for dtype, code in CODES.items()}
FORMAT = "fastgd checkpoint"
VERSION = "1"

WRITE = 2**20  # bytes of a block that is copied, summed and written while it is in cache
READ = 2**22  # bytes of a block that one thread reads while another sums up the one before


def library(caller: str) -> Any:
    """The package safetensors, which only checkpoints need."""
    try:
        import safetensors
    except ImportError as error:
        hint = f'{caller} needs safetensors: pip install "fastgd[checkpoint]"'
        raise ImportError(hint) from error
    return safetensors


def write(file: FileIO, content: Any, arrays: Mapping[str, Stored]) -> None:
    """Write packed content and its arrays, as `pack` returned them.

    Each block is copied first, so that checksums are those of the bytes written even if another
    thread writes into the arrays meanwhile.

    Raises
    ------
    OSError
        If the system refuses.
    """
    # The widest items first: so each array begins at a multiple of its item size.
    ordered = dict(sorted(arrays.items(), key=lambda item: -item[1][1].itemsize))
    # Checksums are known once the arrays are written; the header has the same size without.
    header = _header(content, ordered)
    file.seek(len(header))
    buffer = np.empty(WRITE, np.uint8)
    for node, a in ordered.values():
        data, crc = a.reshape(-1).view(np.uint8), 0
        for start in range(0, data.size, WRITE):
            block = buffer[: min(WRITE, data.size - start)]
            block[...] = data[start : start + WRITE]
            crc = zlib.crc32(block.data, crc)
            write_all(file, block.data)
        node["crc32"] = f"{crc:08x}"
    file.seek(0)
    write_all(file, memoryview(_header(content, ordered)))


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


def check(path: str, name: str, safetensors: Any) -> None:
    """Check that the library can open the new file at `path`, before it replaces `name`.

    Raises
    ------
    ValueError
        If it can't: its limit is 100 MB for names, shapes and metadata together.
    """
    try:
        with safetensors.safe_open(path, framework="np"):
            pass
    except safetensors.SafetensorError as error:
        raise ValueError(f"{name}: expected a file that safetensors can open ({error})") from error


def read(path: str, safetensors: Any) -> Any:
    """The content of a file, unpacked and checked in all that it says.

    Raises
    ------
    OSError
        If it can't be read.
    ValueError
        If it is not what `write` writes.
    """
    kind = os.stat(path).st_mode
    if not stat.S_ISREG(kind):
        found = "a directory" if stat.S_ISDIR(kind) else "something else"
        raise ValueError(f"expected a file, found {found}")
    try:
        while True:
            with open(path, "rb") as file, safetensors.safe_open(path, framework="np") as opened:
                # Otherwise another save replaced the file before the library opened it.
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    return _unpacked(opened, file)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"expected a whole safetensors file, found another or a truncated one ({error})"
        ) from error
    except RecursionError:
        raise ValueError("content: nested too deeply to be read") from None


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
    """An empty array to read a stored one into; the library has checked the file's size."""
    code, shape = stored.get_dtype(), stored.get_shape()
    if code not in DTYPES:
        raise ValueError(f"{name}: expected {', '.join(DTYPES)}, found {code}")
    try:
        return np.empty(shape, np.dtype(DTYPES[code]).newbyteorder("<"))
    except ValueError as error:
        raise ValueError(f"{name}: expected a shape that an array can have ({error})") from None


def _fill(arrays: Mapping[str, Array], file: BufferedReader) -> dict[str, str]:
    """Read all arrays, which are at the file's end, in the order of their bytes.

    Returns their checksums: of what was read, whatever becomes of the file.
    """
    sums = dict.fromkeys(arrays, 0)

    def add(name: str, block: Array) -> None:
        sums[name] = zlib.crc32(block.data, sums[name])

    size = os.fstat(file.fileno()).st_size
    file.seek(max(size - sum(a.nbytes for a in arrays.values()), 0))
    with ThreadPoolExecutor(1) as summing:  # one thread: blocks are summed in order
        for name, a in arrays.items():
            data = a.reshape(-1).view(np.uint8)
            for start in range(0, data.size, READ):
                block = data[start : start + READ]
                if file.readinto(block.data) < block.size:
                    raise ValueError(f"{name}: expected {data.size} bytes, found a truncated file")
                summing.submit(add, name, block)
    return {name: f"{crc32:08x}" for name, crc32 in sums.items()}


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"content: expected JSON, found {text}")
