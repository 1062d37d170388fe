"""The kernels: which backend runs them, on how many threads, and what this build can do.

A backend is the same Cython loops compiled for one level of instruction set, or ``"numpy"``, the
reference itself.  All give the same bits.  The best one that processor and operating system support
is chosen at import, unless the environment variable ``FASTGD_BACKEND`` names another.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from operator import index
from types import ModuleType

import numpy as np

from fastgd._version import __version__
from fastgd.kernels import _engine, quota, tuning
from fastgd.kernels.memory.checks import shown
from fastgd.kernels.tuning import (
    Tuned,
    TunedThreads,
    get_tuning,
    set_tuning,
    threads_record,
    tuning_record,
)

__all__ = [
    "Tuned",
    "TunedThreads",
    "available_backends",
    "get_backend",
    "get_num_threads",
    "get_tuning",
    "set_backend",
    "set_num_threads",
    "set_tuning",
    "show_config",
    "threads_record",
    "tuning_record",
]

# The x86-64 level that each backend needs, best first; 0 is any processor.
_LEVELS = {"x86_64_v4": 4, "x86_64_v3": 3, "baseline": 0, "numpy": 0}

_backend = ""

# What runs on the backend in use is called with its module, or None for the NumPy reference.
_followers: list[Callable[[ModuleType | None], None]] = [_engine.use_backend]


def _why_not(name: str) -> str | None:
    """Why a backend cannot run here, or None if it can."""
    if name not in list(_LEVELS):
        return "no such backend"
    level = _engine.x86_64_level()
    if _LEVELS[name] > level:
        found = f"is at x86-64 level {level}" if level else "is no x86-64"
        return f"it needs x86-64 level {_LEVELS[name]}, and this CPU and operating system {found}"
    if name != "numpy" and find_spec(f"{__name__}._{name}") is None:
        return "it was not built"
    return None


def available_backends() -> tuple[str, ...]:
    """The backends that can run here, the fastest first.

    Examples
    --------
    >>> import fastgd
    >>> fastgd.available_backends()[-2:]
    ('baseline', 'numpy')
    """
    return tuple(name for name in _LEVELS if _why_not(name) is None)


def get_backend() -> str:
    """The backend in use."""
    return _backend


def set_backend(name: str) -> None:
    """Run all steps from now on with a backend.

    Parameters
    ----------
    name : str
        One of `available_backends`.  ``"numpy"`` runs the NumPy reference.

    Raises
    ------
    TypeError, ValueError
        If there is no such backend, or it cannot run here; the one in use stays.

    Examples
    --------
    >>> import fastgd
    >>> before = fastgd.get_backend()
    >>> fastgd.set_backend("numpy")
    >>> fastgd.get_backend()
    'numpy'
    >>> fastgd.set_backend(before)
    """
    global _backend
    if not isinstance(name, str):
        raise TypeError(f"backend: expected a str, found {shown(name)}")
    problem = _why_not(name)
    if problem is not None:
        raise ValueError(
            f"backend {shown(name)}: {problem}; available here: {', '.join(available_backends())}"
        )
    module = _module(name)
    for use in _followers:
        use(module)
    _backend = name


def _module(name: str) -> ModuleType | None:
    """The compiled loops of a backend; the NumPy reference has none."""
    return None if name == "numpy" else import_module(f"{__name__}._{name}")


def _follow(use: Callable[[ModuleType | None], None]) -> None:
    """Have `use` called with the module of the backend, now and at each change."""
    use(_module(_backend))
    _followers.append(use)


def get_num_threads() -> int:
    """The number of threads that a large step uses.

    This is what `set_num_threads` said, else OpenMP's own limit, which follows
    ``OMP_NUM_THREADS``, the affinity mask and threadpoolctl.  Without ``OMP_NUM_THREADS`` it is no
    more than the CPU quota of the container, as it was at import, rounded up.  It is 1 in a forked
    child (OpenMP's threads don't survive a fork) and in a build without OpenMP.
    """
    return _engine.get_num_threads()


def set_num_threads(n: int | None) -> None:
    """Use at most `n` threads for a step; None follows OpenMP's own limit again.

    Results do not depend on it, to the bit.  Steps of fewer than 32,768 elements use one thread,
    and larger ones all, unless they find that it is faster otherwise: see `threads_record`.

    Raises
    ------
    TypeError, ValueError
        If `n` is not an integer of at least 1, or None.
    """
    if n is None:
        _engine.set_num_threads(0)
        return
    try:
        if isinstance(n, bool):
            raise TypeError
        count = index(n)
    except TypeError:
        raise TypeError(f"n: expected an integer or None, found {type(n).__name__}") from None
    if not 1 <= count <= 1024:
        raise ValueError(f"n: expected a number of threads from 1 to 1024, found {shown(n)}")
    _engine.set_num_threads(count)


def _heed_quota() -> float | None:
    """Have OpenMP's number of threads bounded by the container's quota; returns it if it is."""
    _engine.set_most_threads(0)
    most = None if os.environ.get("OMP_NUM_THREADS") else quota.threads()
    before = _engine.get_num_threads()
    _engine.set_most_threads(most or 0)
    return quota.quota() if _engine.get_num_threads() < before else None


def _origin_of_threads() -> str:
    """Where the number of threads comes from."""
    if not _engine.has_openmp():
        return "OpenMP: no"
    if _engine.threads_are_set():
        return "OpenMP: yes, set_num_threads"
    if os.environ.get("OMP_NUM_THREADS"):
        return "OpenMP: yes, OMP_NUM_THREADS"
    if _limiting_quota is not None:
        return f"OpenMP: yes, a quota of {_limiting_quota:g} processors"
    return "OpenMP: yes, processors"


def show_config() -> None:
    """Print version, threads, which backends can run here, or why not, and what was tuned, and why.

    See Also
    --------
    set_tuning, tuning_record, threads_record
    """
    level = _engine.x86_64_level()
    print(f"fastgd {__version__}, NumPy {np.__version__}")
    print(f"processor  {f'x86-64 level {level}' if level else 'not x86-64'}")
    print(f"threads    {get_num_threads()} ({_origin_of_threads()})")
    for name in _LEVELS:
        problem = _why_not(name)
        mark = "available" if problem is None else f"no: {problem}"
        print(f"backend    {name:<10} {'in use' if name == _backend else mark}")
    tuning.show()


def _choose() -> None:
    """Take what the environment names: the backend, or else the best one, and how to tune."""
    name = os.environ.get("FASTGD_BACKEND")
    try:
        set_backend(name or available_backends()[0])
    except ValueError as error:
        raise ValueError(f"environment variable FASTGD_BACKEND: {error}") from None
    try:
        set_tuning(os.environ.get("FASTGD_TUNE") or "on")
    except ValueError as error:
        raise ValueError(f"environment variable FASTGD_TUNE: {error}") from None


_choose()
# The quota that bounds the number of threads, if it does.
_limiting_quota = _heed_quota()
