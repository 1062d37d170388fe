"""Arguments of commands: names, and paths that are checked before the work starts; whole files."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from fastgd.checkpoint.atomic import replacement, write_all
from fastgd.core.names import hint


def one_of(known: Iterable[str]) -> Callable[[str], str]:
    """An argument's type on the command line: one of these names."""
    every = list(known)

    def parse(text: str) -> str:
        if text not in every:
            problem = f"expected one of {', '.join(every)}, found {text}{hint(text, every)}"
            raise argparse.ArgumentTypeError(problem)
        return text

    return parse


def file(*suffixes: str) -> Callable[[str], Path]:
    """An argument's type: the path of a file that can be written; makes its folder."""

    def parse(text: str) -> Path:
        path = Path(text)
        if path.suffix.lower() not in suffixes or path.is_dir():
            wanted = " or ".join(suffixes)
            raise argparse.ArgumentTypeError(f"expected a file ending in {wanted}, not {text!r}")
        folder(str(path.parent))
        return path

    return parse


def folder(text: str) -> Path:
    """An argument's type: a folder that can be written to; makes it."""
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot make the folder {text!r}: {error}") from None
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write to the folder {text!r}: {error}") from None
    return path


def with_size(path: Path) -> str:
    """A file's path and size, for the line that says what was written.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.truncate(1_234_567)
    ...     print(with_size(Path(file.name)).removeprefix(file.name))
     (1.2 MB)
    """
    size, unit = float(path.stat().st_size), "bytes"
    for larger in ("kB", "MB", "GB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{path} ({size:.{0 if size >= 10 or unit == 'bytes' else 1}f} {unit})"


def write(path: Path, content: bytes) -> None:
    """Replace a file atomically: readers see the old one or the new one."""
    with replacement(str(path)) as file:
        write_all(file, memoryview(content))
