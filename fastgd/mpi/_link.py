"""Calls that all ranks make together, none of which waits for ever.

Every collective is non-blocking and polled up to a deadline.  A rank that gives up calls the roll:
it says so to all others, who then give up, too, wherever they wait, and answer; so all who live
raise within a moment of each other, and know who did not answer.
"""

from __future__ import annotations

import atexit
import builtins
import os
import pickle
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, NoReturn

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from fastgd.checkpoint import CheckpointError

Array = NDArray[Any]

NO_BITS = np.zeros(0, bool)  # to agree on

ROLL_CALL = 1  # the tag of a message that says: I have given up
# Seconds: of waiting awake, where there is a core for each rank and where there isn't; of the first
# nap and of the longest; between looks for such messages; and the most that those who have given up
# wait for others to say the same.
SPIN, SPIN_CROWDED, NAPS, LOOK, GRACE = 2e-3, 5e-5, (1e-5, 2e-4), 0.01, 2.0
LAST_WORDS = 1.0  # that the others have before they are ended, to say what they found

_yield = getattr(os, "sched_yield", lambda: time.sleep(0))


class RankError(RuntimeError):
    """A rank died, left, or did not come within the time given; the message says which.

    The ranks are no longer in step, and the communicator is of no further use: all later calls
    raise this, too.  When a process that has seen it ends, it ends all others by ``MPI_Abort``, as
    ``MPI_Finalize`` would wait for the dead.
    """


class Link:
    """What belongs to a communicator: private ones beside it, and whether it still works.

    Parameters
    ----------
    comm : MPI.Intracomm
        Somebody's; nothing is sent on it.
    timeout : float
        The seconds to wait for the others to make theirs.
    """

    def __init__(self, comm: MPI.Intracomm, timeout: float) -> None:
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self.broken: str | None = None
        self.kept: list[Any] = []  # with which MPI is not done, and never may be
        self.optimizers = 0  # of this communicator, so far
        self._patience = timeout
        self._spin = SPIN_CROWDED
        self._control: MPI.Intracomm | None = None
        # In this order, as the wait for the second can then be ended by messages.
        self._control = self._private(comm)
        self._comm = self._private(comm)
        self._spin = SPIN_CROWDED if self._is_crowded() else SPIN

    def _is_crowded(self) -> bool:
        """Whether there are more ranks on this machine than cores that they may use."""
        cores = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
        found = self.gather_objects((MPI.Get_processor_name(), list(cores)))
        here = [theirs for name, theirs in found if name == found[self.rank][0]]
        return len(here) > len(set().union(*here))

    def _private(self, comm: MPI.Intracomm) -> MPI.Intracomm:
        new, request = comm.Idup()
        self.wait(request, "the other ranks' Sharded(...)")
        new.Set_errhandler(MPI.ERRORS_RETURN)
        return new

    def free(self) -> None:
        """Give the private communicators back; a collective call."""
        for comm in (self._control, self._comm):
            if comm is not None and self.broken is None:
                comm.Free()

    # ---------------------------------------------------------------------------------- waiting

    @contextmanager
    def patience(self, timeout: float) -> Iterator[None]:
        """Wait so many seconds at each collective within the block."""
        before, self._patience = self._patience, timeout
        try:
            yield
        finally:
            self._patience = before

    def wait(self, request: MPI.Request, what: str) -> None:
        """Wait for a collective to complete.

        Raises
        ------
        RankError
            If it does not in time, or others have given up.
        """
        start = look = time.monotonic()
        nap = NAPS[0]
        try:
            while not request.Test():
                now = time.monotonic()
                if now < start + self._spin:
                    _yield()
                    continue
                if now > start + self._patience:
                    self.give_up(f"waited {now - start:.3g} s for {what}")
                if now > look and self._control is not None:
                    look = now + LOOK
                    if self._control.Iprobe(tag=ROLL_CALL):
                        self.give_up(f"was waiting for {what} when others gave up")
                # Who waits must not keep others from working.
                time.sleep(nap)
                nap = min(1.2 * nap, NAPS[1])
        except BaseException as error:
            self.kept.append(request)  # and its buffers, into which MPI may still write
            if not isinstance(error, MPI.Exception):
                raise
            self.give_up(f"could not wait for {what}: {error}", error)

    def give_up(self, why: str, cause: BaseException | None = None) -> NoReturn:
        """Call the roll, and raise RankError."""
        heard, silent = self._call_roll(why)
        words = f"rank {self.rank} of {self.size} {why}"
        reasons = [f"rank {rank}: {reason}" for rank, reason in sorted(heard.items()) if reason]
        if silent:
            who = f"rank {silent[0]}" if len(silent) == 1 else f"ranks {_listed(silent)}"
            words += f"; no answer from {who}: dead, hung, or gone elsewhere"
        failed = [reason for reason in reasons if FAILED in reason]
        if failed:
            words = f"{failed[0].replace(FAILED, '')} (rank {self.rank} of {self.size} {why})"
        elif reasons and not silent:
            words += "; " + "; ".join(reasons[:3])
        self.mark_broken(words)
        raise RankError(words) from cause

    def mark_broken(self, why: str) -> None:
        """Refuse all further calls, and let the process end all others when it ends."""
        if self.broken is None:
            self.broken = why
            atexit.register(_abort)

    def notify(self, error: BaseException) -> None:
        """Tell the others that this rank raised something they did not."""
        if self.broken is None and self.size > 1:
            words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            self._send_all(FAILED + words)
            self.mark_broken(f"rank {self.rank} of {self.size}: {words}")

    def refuse_broken(self) -> None:
        """Raise RankError if the ranks are no longer in step."""
        if self.broken is not None:
            raise RankError(f"the ranks are no longer in step: {self.broken}")

    def _send_all(self, text: str) -> None:
        assert self._control is not None
        message = text.encode()
        for rank in range(self.size):
            if rank != self.rank:
                try:
                    self.kept.append(self._control.Isend([message, MPI.BYTE], rank, ROLL_CALL))
                except MPI.Exception:  # the MPI library knows already that it is dead
                    continue
        self.kept.append(message)

    def _call_roll(self, why: str) -> tuple[dict[int, str], list[int]]:
        """What the others said, by rank, and who said nothing."""
        others = set(range(self.size)) - {self.rank}
        heard: dict[int, str] = {}
        if self._control is None:
            return heard, sorted(others)
        self._send_all(why)
        end = time.monotonic() + min(GRACE, self._patience)
        while len(heard) < len(others) and time.monotonic() < end:
            status = MPI.Status()
            try:
                if not self._control.Iprobe(tag=ROLL_CALL, status=status):
                    time.sleep(NAPS[1])
                    continue
                message = bytearray(status.Get_count(MPI.BYTE))
                self._control.Recv([message, MPI.BYTE], status.Get_source(), ROLL_CALL)
            except MPI.Exception:
                time.sleep(NAPS[1])
                continue
            heard[status.Get_source()] = message.decode(errors="replace")
            if FAILED in heard[status.Get_source()]:
                break
        return heard, sorted(others - set(heard))

    # ---------------------------------------------------------------------------------- exchanges

    def post_alltoall(self, send: Array, receive: Array) -> MPI.Request:
        """Send row r of an array to rank r, for all r."""
        return self._comm.Ialltoall(_bytes(send), _bytes(receive))

    def post_reduce_scatter(self, send: Array, receive: Array) -> MPI.Request:
        """The sum of row r of all ranks' arrays to rank r, in an order that is MPI's affair."""
        return self._comm.Ireduce_scatter_block(send, receive, MPI.SUM)

    def post_allgather(self, send: Array, receive: Array) -> MPI.Request:
        """Send an array to all ranks, as row r."""
        return self._comm.Iallgather(_bytes(send), _bytes(receive))

    def gather(self, a: Array, what: str) -> Array:
        """A small array of all ranks, one after the other."""
        found = np.empty((self.size, *a.shape), a.dtype)
        self.wait(self.post_allgather(a, found), what)
        return found

    def broadcast(self, a: Array, what: str, piece: int = 2**24) -> None:
        """Give all ranks rank 0's contiguous array."""
        data = a.reshape(-1).view(np.uint8)
        for start in range(0, data.size, piece):
            part = [data[start : start + piece], MPI.BYTE]
            self.wait(self._comm.Ibcast(part, 0), what)

    def gather_objects(self, value: object) -> list[Any]:
        """A value of each rank."""
        message = np.frombuffer(pickle.dumps(value), np.uint8)
        sizes = self.gather(np.array([message.size]), "the sizes of messages")
        padded = np.zeros(int(sizes.max()), np.uint8)
        padded[: message.size] = message
        return [pickle.loads(row.tobytes()) for row in self.gather(padded, "messages")]

    # ---------------------------------------------------------------------------------- agreement

    def agree(
        self, call: str, error: Exception | None, lines: Sequence[str], bits: Array
    ) -> NDArray[np.bool]:
        """See that all ranks make the same call with the same arguments, and none has an error.

        Parameters
        ----------
        call : str
            What is called; the first thing to be alike.
        error : Exception or None
            What this rank would raise.
        lines : sequence of str
            What else has to be alike, each as "name: value".
        bits : ndarray of bool
            Of the same length on all ranks.

        Returns
        -------
        ndarray of bool
            Where a rank has a bit set.

        Raises
        ------
        Exception
            On all ranks the same, of the type of the first rank's error; or ValueError if the
            calls are not alike.
        """
        lines = [f"call: {call}", *lines]
        digest = np.frombuffer(blake2b("\n".join(lines).encode(), digest_size=8).digest(), np.uint8)
        packed = np.packbits(bits)
        words = np.concatenate(([np.uint8(error is not None)], digest, ~digest, packed))
        found = np.empty_like(words)
        request = self._comm.Iallreduce([words, MPI.BYTE], [found, MPI.BYTE], MPI.BOR)
        self.wait(request, f"the other ranks' {call}")
        # Where two digests differ in a bit, both the bit and its complement are set in some.
        if found[0] or (found[1:9] & found[9:17]).any():
            self._dispute(error, lines)
        return np.unpackbits(found[17:], count=bits.size).astype(bool)

    def _dispute(self, error: Exception | None, lines: Sequence[str]) -> NoReturn:
        mine = None if error is None else (type(error).__name__, _text(error))
        said = self.gather_objects((mine, list(lines)))
        for rank, (failure, _) in enumerate(said):
            if failure is not None:
                raise agreed(
                    _exception(failure[0], f"rank {rank} of {self.size}: {failure[1]}")
                ) from error
        for rank, (_, theirs) in enumerate(said):
            if words := _difference(said[0][1], theirs):
                raise agreed(ValueError(f"rank {rank}: expected {words}"))
        raise AssertionError("digests differ, and lines do not")


FAILED = "\x00"  # what begins the message of a rank that raised


def agreed(error: Exception) -> Exception:
    """Mark an exception as one that all ranks raise."""
    error._fastgd_agreed = True  # type: ignore[attr-defined]
    return error


def is_agreed(error: BaseException) -> bool:
    """Whether all ranks raise this."""
    return isinstance(error, RankError) or getattr(error, "_fastgd_agreed", False)


def _difference(expected: Sequence[str], found: Sequence[str]) -> str | None:
    """Where lines of "name: value" first differ from rank 0's."""
    ours, theirs = (
        {line.partition(": ")[0]: line for line in lines} for lines in (expected, found)
    )
    for name, line in ours.items():
        if theirs.get(name) != line:
            return f"{line}, as on rank 0, found {theirs.get(name, 'none')}"
    for name, line in theirs.items():
        if name not in ours:
            return f"no {name}, as on rank 0, found {line}"
    # In another order, or of names that are not their own.
    for one, other in zip(expected, found, strict=False):
        if one != other:
            return f"{one}, as on rank 0, found {other}"
    if len(expected) != len(found):
        return f"{len(expected)} entries as on rank 0, found {len(found)}"
    return None


def _text(error: Exception) -> str:
    return str(error.args[0]) if len(error.args) == 1 else str(error)  # a KeyError's has quotes


def _exception(name: str, text: str) -> Exception:
    """An exception of a builtin type by its name, else a RuntimeError."""
    kind = getattr(builtins, name, CheckpointError if name == "CheckpointError" else None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(text)
        except TypeError:  # the Unicode errors take more than a text
            pass
    return RuntimeError(f"{text} ({name})")


def _bytes(a: Array) -> list[Any]:
    return [a.reshape(-1).view(np.uint8), MPI.BYTE]


def _listed(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8]))
    return shown if len(ranks) <= 8 else f"{shown} and {len(ranks) - 8} more"


def _abort() -> None:
    time.sleep(LAST_WORDS)
    if MPI.Is_initialized() and not MPI.Is_finalized():
        MPI.COMM_WORLD.Abort(1)


# ------------------------------------------------------------------------ one for a communicator

# What belongs to a communicator goes when it is freed, which all its ranks do together.
_KEY = MPI.Comm.Create_keyval(delete_fn=lambda comm, key, link: link.free())


def link_of(comm: MPI.Intracomm, timeout: float) -> Link:
    """The link of a communicator, made when first asked for: MPI has few communicators to give."""
    found = comm.Get_attr(_KEY)
    if found is None:
        found = Link(comm, timeout)
        comm.Set_attr(_KEY, found)
    assert isinstance(found, Link)
    return found
