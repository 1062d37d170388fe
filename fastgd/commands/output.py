"""Where commands write to: paths that are checked before the work starts, and whole files."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def picture(*suffixes: str) -> Callable[[str], Path]:
    """An argument's type: the path of a picture that can be written; makes its folder."""

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


def write(path: Path, content: bytes) -> None:
    """Replace a file atomically: readers see the old one or the new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        # mkstemp's files are for the owner alone; a picture is like any other file.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
