"""Atomic replacement of files: whole or not at all, whenever the process or the machine stops."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = re.compile(r"\.fastgd-[0-9a-f]{16}\.tmp")


@contextmanager
def replacement(path: str) -> Iterator[FileIO]:
    """A temporary file to fill, which replaces `path` if the block ends without an exception.

    Parameters
    ----------
    path : str
        The file to replace.  A symbolic link stays one: its target is replaced.  Permissions of an
        existing file are kept; a new one has those that the umask leaves.

    Yields
    ------
    FileIO
        An empty file in the same folder, to write to; its ``name`` is its path.

    Raises
    ------
    OSError
        If the system refuses (no such folder, full disk, …); `path` is as it was then, and the
        temporary file removed.  Only if the folder itself can't be flushed to the disk, at the end,
        `path` is the new file already.
    ValueError
        If `path` exists and is not a regular file.

    Notes
    -----
    The file is flushed to the disk (fsync) before it is renamed, and the folder afterwards.  A
    process that is killed leaves its temporary file behind, ``.fastgd-….tmp``; the next replacement
    in the folder removes it.  Running processes hold locks on theirs.
    """
    target = os.path.realpath(path)
    try:
        kind = os.stat(target).st_mode
    except FileNotFoundError:
        mode = None
    else:
        if not stat.S_ISREG(kind):
            found = "a directory" if stat.S_ISDIR(kind) else "something else"
            raise ValueError(f"{path}: expected a file to replace, found {found}")
        mode = stat.S_IMODE(kind) & 0o777
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            errno.ENOENT, "expected a file in a folder that exists, found none such", folder
        )
    try:
        _clean(folder)
        # Until it is filled, its owner must be able to write, and nobody more than before to read.
        with _create(folder, 0o666 if mode is None else mode | 0o600) as file:
            try:
                yield file
                if mode is not None:
                    os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
                os.replace(file.name, target)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(file.name)
                raise
        _sync_folder(folder)
    except OSError as error:
        if error.filename is None or _is_temporary(error.filename):
            error.filename, error.filename2 = path, None  # the path that the caller gave
        raise


def write_all(file: FileIO, data: memoryview) -> None:
    """Write bytes, of which a system may take some at a time."""
    while data:
        data = data[file.write(data) :]


def _is_temporary(path: object) -> bool:
    return isinstance(path, str) and bool(_TEMPORARY.fullmatch(os.path.basename(path)))


def _create(folder: str, mode: int) -> FileIO:
    """An empty temporary file, open and locked."""
    while True:
        path = os.path.join(folder, f".fastgd-{secrets.token_hex(8)}.tmp")
        file = FileIO(path, "xb", opener=lambda path, flags: os.open(path, flags, mode))
        _lock(file.fileno(), wait=True)
        # Before it was locked, another process may have removed it as left behind.
        if os.path.exists(path):
            return file
        file.close()


def _lock(fd: int, wait: bool) -> bool:
    """Lock a file until it is closed or the process ends; returns whether that succeeded."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # locked by another process, or a file system without locks
        return False
    return True


def _clean(folder: str) -> None:
    """Remove temporary files that no process holds a lock on: theirs were killed."""
    if fcntl is None:
        return
    with os.scandir(folder) as entries:
        paths = [entry.path for entry in entries if _is_temporary(entry.path)]
    for path in paths:
        with suppress(OSError):  # not ours to open, or gone by now
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if stat.S_ISREG(os.fstat(fd).st_mode) and _lock(fd, wait=False):
                    os.unlink(path)
            finally:
                os.close(fd)


def _sync_folder(folder: str) -> None:
    """Flush a folder's entries to the disk (fsync), where the system has that."""
    if fcntl is None:
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        os.close(fd)
