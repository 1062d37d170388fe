"""How many processors' time a container may use: the CPU quota of Linux' control groups."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from pathlib import Path


def quota(root: str | Path = "/") -> float | None:
    """The processors' time that this process may use at most, or None without a limit.

    The affinity mask doesn't show it.  Of both versions of control groups, and of a group and those
    above it, the least counts.

    Parameters
    ----------
    root : path
        Where ``proc`` and ``sys`` are.
    """
    limits = []
    for folder in _folders(Path(root)):
        limits += [_of_version_2(folder / "cpu.max")]
        limits += [_of_version_1(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")]
    return min((limit for limit in limits if limit is not None), default=None)


def threads(root: str | Path = "/") -> int | None:
    """As many threads as the quota has work for, or None without one."""
    limit = quota(root)
    return None if limit is None else max(1, ceil(limit))


def _folders(root: Path) -> Iterator[Path]:
    """The folders of the process's group and those above it, as far as they can be seen."""
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return
    mount = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "none", "")
        if controllers and "cpu" not in controllers.split(","):
            continue
        tops = [mount / controllers, mount / "cpu"] if controllers else [mount, mount / "unified"]
        # Within a container the path may be the host's, which isn't mounted here; its top is.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for top in tops:
            yield from (top.joinpath(*parts[:k]) for k in range(len(parts), -1, -1))


def _of_version_2(file: Path) -> float | None:
    return _ratio(_words(file))


def _of_version_1(amount: Path, period: Path) -> float | None:
    return _ratio(_words(amount) + _words(period))


def _words(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8").split()
    except (OSError, ValueError):
        return []


def _ratio(words: list[str]) -> float | None:
    """Time over period; "max" and -1 stand for no limit."""
    try:
        amount, period = map(int, words)
    except ValueError:
        return None
    return amount / period if amount > 0 and period > 0 else None
