"""Locks at a fork (`os.fork`) while other threads are in the middle of a call.

A fork copies all memory as it is at that moment, and of the threads only the one that forks: in
the child, a lock that another thread held stays locked for ever, and what that thread was writing
stays half written.  So a fork first waits for the calls of other threads to end, and the child
finds whole optimizers with free locks.  An optimizer that it could not wait for refuses all calls
in the child.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from threading import RLock, get_ident
from time import monotonic
from typing import Any, NoReturn
from weakref import ref

# Seconds that a fork waits at most.  A step takes milliseconds; but a call may itself be waiting
# for the thread that forks, and then the fork must not wait for the call.
PATIENCE = 10.0

# All owners of locks, in the order of their creation: every fork takes the locks in it.
_owners: dict[tuple[int, str, str], ref[Any]] = {}
_serial = count()
_taken: dict[int, list[Any]] = {}  # the locks that each forking thread holds, by its ident


class Lost:
    """Stands in the child for a lock that another thread held when the process forked."""

    def __init__(self, owner: str) -> None:
        self.owner = owner

    def __enter__(self) -> NoReturn:
        raise RuntimeError(
            f"{self.owner}: another thread was in the middle of a call when the process forked, so "
            "its arrays may be half written; make a new one in the child"
        )

    def __exit__(self, *_: object) -> None:
        """Do nothing: `__enter__` always raises, so no block is left."""


def guard(owner: Any, attribute: str, name: str | None = None) -> None:
    """Take the lock in an object's attribute at every fork, as long as the object lives."""
    key = next(_serial), attribute, name or type(owner).__name__
    _owners[key] = ref(owner, lambda _: _owners.pop(key, None))


def _locks() -> Iterator[tuple[Any, list[tuple[Any, str, str]]]]:
    """Each lock once, with the objects and attributes that hold it, and their names."""
    found: dict[int, tuple[Any, list[tuple[Any, str, str]]]] = {}
    for (_, attribute, name), reference in list(_owners.items()):
        owner = reference()
        lock = getattr(owner, attribute, None)  # None: the owner is gone
        if lock is not None and not isinstance(lock, Lost):
            found.setdefault(id(lock), (lock, []))[1].append((owner, attribute, name))
    yield from found.values()


def _before() -> None:
    deadline = monotonic() + PATIENCE
    taken = _taken[get_ident()] = []
    for lock, owners in _locks():
        while True:
            if lock.acquire(timeout=0.01):
                taken.append(lock)
                break
            # While averages are swapped in, the lock is held for as long as the caller likes.
            if monotonic() > deadline or any(
                getattr(owner, "is_swapped", False) for owner, _, _ in owners
            ):
                break


def _after_in_parent() -> None:
    for lock in _taken.pop(get_ident(), ()):
        lock.release()


def _after_in_child() -> None:
    mine = _taken.pop(get_ident(), [])
    _taken.clear()
    for lock, owners in _locks():
        if any(lock is own for own in mine):
            lock.release()
            # A new lock: threads that are gone now may have been waiting for the old one.
            new = RLock()
        elif lock.acquire(blocking=False):
            lock.release()
            continue
        else:
            new = None
        for owner, attribute, name in owners:
            setattr(owner, attribute, Lost(name) if new is None else new)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
    )
