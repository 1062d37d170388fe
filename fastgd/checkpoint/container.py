"""The file of a checkpoint: a safetensors file with fastgd's JSON in its metadata.

A file that is to the letter as fastgd writes it needs no other check than that.  Of any other the
safetensors library reads and checks the header, which is slower.  The arrays are read here: the
library maps the file, which is slower, too, and kills the process (SIGBUS) if another truncates the
file meanwhile.  It is written here: the library creates the file itself, so that permissions and
flushing to the disk can't be chosen, and reports a full disk as a sentence, not as an OSError.

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
import re
import reprlib
import stat
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader, FileIO
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fastgd.checkpoint.atomic import write_all
from fastgd.checkpoint.packing import (
    CODES,
    FOREIGN,
    Kind,
    Stored,
    as_seen,
    checksum,
    kind_of,
    name_of,
    unpack,
)

Array = NDArray[Any]

DTYPES = {code: dtype for dtype, code in CODES.items()}
LITTLE = {code: np.dtype(dtype).newbyteorder("<") for code, dtype in DTYPES.items()}
FORMAT = "fastgd checkpoint"
VERSION = "1"

_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_NAME = json.encoder.encode_basestring
_START = '{"__metadata__":'
# An array in the content: its name, its dtype and shape, and its checksum.
_NODE = re.compile(
    r'\{"\$array":("[^"\\]*(?:\\.[^"\\]*)*"),"dtype":("\w+","shape":\[[0-9,]*\]),'
    r'"crc32":"([0-9a-f]{8})"\}',
    re.ASCII,
)

LIMIT = 100_000_000  # bytes of a header, at most, that the library opens
SMALL = 2**16  # bytes of an array, at most, that is written together with others
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


def write(file: FileIO, content: Mapping[str, list[str]], arrays: Mapping[str, Stored]) -> None:
    """Write packed content and its arrays, as `pack` left them.

    Each block is copied first, so that checksums are those of the bytes written even if another
    thread writes into the arrays meanwhile.

    Raises
    ------
    OSError
        If the system refuses.
    """
    ordered = _in_order({name: kind for name, (_, kind, _, _) in arrays.items()})
    places = _places(ordered).encode()
    # Checksums are known once the arrays are written, but the header's size is now: the content is
    # in ASCII, and what is escaped in it are quotes and backslashes.
    text = _joined(content)
    size = len(_metadata("")) + len(text) + text.count('"') + text.count("\\") + len(places)
    size += -size % 8
    file.seek(8 + size)
    buffer = np.empty(WRITE, np.uint8)
    small: list[tuple[bytes, list[str], int]] = []  # those to write together
    waiting = 0

    def flush() -> None:
        nonlocal small, waiting
        blocks = [block for block, _, _ in small]
        # All checksums in one text, which costs less than to write one after the other.
        sums = np.fromiter(map(zlib.crc32, blocks), ">u4", len(blocks)).tobytes().hex()
        for k, (_, parts, gap) in enumerate(small):
            parts[gap] = sums[8 * k : 8 * k + 8]
        write_all(file, memoryview(b"".join(blocks)))
        small, waiting = [], 0

    for name in ordered:
        a, kind, parts, gap = arrays[name]
        nbytes = kind.nbytes
        if nbytes <= SMALL:
            small.append((a.tobytes(), parts, gap))
            waiting += nbytes
            if waiting >= WRITE:
                flush()
            continue
        flush()
        flat, crc = a.reshape(-1).view(np.uint8), 0
        for at in range(0, nbytes, WRITE):
            block = buffer[: min(WRITE, nbytes - at)]
            block[...] = flat[at : at + WRITE]
            crc = zlib.crc32(block.data, crc)
            write_all(file, block.data)
        parts[gap] = f"{crc:08x}"
    flush()
    metadata = _metadata(_joined(content))
    padded = places.ljust(size - len(metadata))
    assert len(metadata) + len(padded) == size
    file.seek(0)
    for data in (size.to_bytes(8, "little"), metadata, padded):
        write_all(file, memoryview(data))


def _in_order(kinds: Mapping[str, Kind]) -> dict[str, Kind]:
    """The widest items first: so each array begins at a multiple of its item size."""
    widths = [kind.dtype.itemsize for kind in kinds.values()]
    if len({*widths}) == 1:
        return dict(kinds)
    return dict(sorted(kinds.items(), key=lambda item: -item[1].dtype.itemsize))


def _places(kinds: Mapping[str, Kind]) -> str:
    """The header's end: for each array its type, its shape, and where its bytes are."""
    entries, end = [], 0
    for name, kind in kinds.items():
        start, end = end, end + kind.nbytes
        entries.append(f",{_NAME(name)}{kind.entry}{start},{end}]}}")
    return "".join([*entries, "}"])


def _joined(content: Mapping[str, list[str]]) -> str:
    entries = [f'"{key}":{"".join(text)}' for key, text in content.items()]
    return f"{{{','.join(entries)}}}"


def _metadata(text: str) -> bytes:
    """The header's begin, up to the places."""
    metadata = {"format": FORMAT, "version": VERSION, "content": text}
    return _START.encode() + _JSON({**metadata, "crc32": checksum(text.encode())}).encode()


def check(path: str, name: str, safetensors: Any) -> None:
    """Check that the library can open the new file at `path`, before it replaces `name`.

    What `write` puts together it can, if the header is not too long; so only then is it asked.

    Raises
    ------
    ValueError
        If it can't: its limit is 100 MB for names, shapes and metadata together.
    """
    with open(path, "rb") as file:
        if int.from_bytes(file.read(8), "little") <= LIMIT:
            return
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
        with open(path, "rb") as file:
            if (written := _as_written(file)) is not None:
                return written
        while True:
            with open(path, "rb") as file, safetensors.safe_open(path, framework="np") as opened:
                # Otherwise another save replaced the file before the library opened it.
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    text = _text(opened.metadata() or {})
                    content = json.loads(text, parse_constant=_refuse_constant)
                    names = opened.offset_keys()
                    arrays = {name: _empty(name, opened.get_slice(name)) for name in names}
                    return _unpacked(content, arrays, file)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"expected a whole safetensors file, found another or a truncated one ({error})"
        ) from error
    except RecursionError:
        raise ValueError("content: nested too deeply to be read") from None


def _text(metadata: Mapping[str, str]) -> str:
    """The text of the content."""
    if (found := metadata.get("format")) != FORMAT:
        raise ValueError(f"format: expected {FORMAT!r}, found {reprlib.repr(found)}")
    if (found := metadata.get("version")) != VERSION:
        raise ValueError(f"version: expected {VERSION!r}, found {reprlib.repr(found)}")
    text = metadata.get("content", "")
    if metadata.get("crc32") != checksum(text.encode()):
        raise ValueError("content: its bits have changed since they were saved")
    return text


def _as_written(file: BufferedReader) -> Any:
    """The content of a file that is to the letter as `write` writes it; None of another.

    The header's places of arrays are put together anew from the content, and compared: if they are
    the same, there is nothing else to check.  The library reads all other files: it is slower, and
    says what is wrong.  The content is read without its arrays, with ``NaN`` for each.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.raw.read(8) or b"", "little")
    if length > size - 8:
        return None
    try:
        head = (file.raw.read(length) or b"").decode()
        metadata, end = json.JSONDecoder().raw_decode(head, len(_START))
        parts = _NODE.split(_text(metadata))
        text = "NaN".join(parts[::4])
        names, dtypes = json.loads(f"[{','.join(parts[1::4])}]"), parts[2::4]
        known = {dtype: _described(dtype) for dtype in {*dtypes}}
        own = [known[dtype][1] for dtype in dtypes]
        last = sum([name.startswith("opt") for name in names])  # first in the text, packed last
        packed = zip(names[last:] + names[:last], own[last:] + own[:last], strict=True)
        kinds = _in_order(dict(packed))
        if (
            not head.startswith(_START)
            or len(metadata) != 4
            or len(kinds) != len(names)
            or '"$array":' in text
            or head[end:].rstrip(" ") != _places(kinds)
            or size != 8 + length + sum([kind.nbytes for kind in kinds.values()])
        ):
            return None
        arrays = {name: np.empty(kind.shape, kind.dtype) for name, kind in kinds.items()}
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return None
    sums = _fill(arrays, file)
    in_turn = np.fromiter(map(sums.__getitem__, names), ">u4", len(names))
    if in_turn.tobytes().hex() != "".join(parts[3::4]):
        found = zip(names, parts[3::4], strict=True)
        name = next(name for name, crc32 in found if crc32 != f"{sums[name]:08x}")
        raise ValueError(f"{name}: its bits have changed since they were saved")
    if any(dtype in FOREIGN for dtype, _ in known.values()):
        for name, described in zip(names, dtypes, strict=True):
            arrays[name] = as_seen(arrays[name], known[described][0], name)
    turn = map(arrays.__getitem__, names)

    def take(constant: str) -> Array:
        return next(turn) if constant == "NaN" else _refuse_constant(constant)

    def no_more(*described: object) -> NoReturn:
        raise ValueError(f"expected no other arrays, found {described}")

    try:
        return unpack(json.loads(text, parse_constant=take), no_more)
    except (RecursionError, TypeError, ValueError):
        return None


def _described(text: str) -> tuple[str, Kind]:
    """A dtype's name and the kind of arrays from what `_NODE` finds of them."""
    dtype, shape = json.loads("[" + text.replace('"shape":', "") + "]")
    return dtype, kind_of(dtype, tuple(shape))


def _unpacked(content: Any, arrays: dict[str, Array], file: BufferedReader) -> Any:
    sums = _fill(arrays, file)

    def take(name: str, dtype: str, shape: tuple[int, ...]) -> tuple[Array, str]:
        if name not in arrays:
            raise ValueError(f"{name}: expected one array of that name for each mention")
        a = arrays.pop(name)
        if a.shape != shape or name_of(a.dtype) != dtype:
            raise ValueError(
                f"{name}: expected {CODES[dtype]} of shape {shape}, "
                f"found {CODES[name_of(a.dtype)]} of shape {a.shape}"
            )
        return a, f"{sums[name]:08x}"

    content = unpack(content, take)
    if arrays:
        raise ValueError(f"content: expected a mention of each array, found none of {min(arrays)}")
    return content


def _empty(name: str, stored: Any) -> Array:
    """An empty array to read a stored one into; the library has checked the file's size."""
    code, shape = stored.get_dtype(), stored.get_shape()
    if code not in DTYPES:
        raise ValueError(f"{name}: expected {', '.join(DTYPES)}, found {code}")
    try:
        return np.empty(shape, LITTLE[code])
    except ValueError as error:
        raise ValueError(f"{name}: expected a shape that an array can have ({error})") from None


def _fill(arrays: Mapping[str, Array], file: BufferedReader) -> dict[str, int]:
    """Read all arrays, which are at the file's end, in the order of their bytes.

    Returns their checksums: of what was read, whatever becomes of the file.
    """
    sums = dict.fromkeys(arrays, 0)

    def add(name: str, block: Array) -> None:
        sums[name] = zlib.crc32(block.data, sums[name])

    size = os.fstat(file.fileno()).st_size
    sizes = [a.nbytes for a in arrays.values()]
    file.seek(max(size - sum(sizes), 0))
    with ThreadPoolExecutor(1) as summing:  # one thread: blocks are summed in order
        for (name, a), size in zip(arrays.items(), sizes, strict=True):
            read = 0
            if 0 < size <= SMALL:
                data = a.data
                read = file.readinto(data)
                sums[name] = zlib.crc32(data)
            elif size:
                for block in _blocks(a):
                    read += file.readinto(block.data)
                    summing.submit(add, name, block)
            if read < size:
                raise ValueError(f"{name}: expected {size} bytes, found a truncated file")
    return sums


def _blocks(a: Array) -> Iterator[Array]:
    """The memory of an array in blocks of at most `READ` bytes."""
    data = a.reshape(-1).view(np.uint8)
    for start in range(0, data.size, READ):
        yield data[start : start + READ]


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"content: expected JSON, found {text}")
