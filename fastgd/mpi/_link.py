"""MPI collectives with timeouts.

Every collective is non-blocking and polled up to a deadline.  A rank that gives up calls the roll:
it sends a message to all others, who then give up, too, wherever they wait, and answer; so all
ranks that are alive raise within a moment of each other, and know which ones did not answer.
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

NO_BITS = np.zeros(0, bool)  # for `Link.agree`

ROLL_CALL = 1  # the tag of the message of a rank that gives up
# Seconds: of busy-waiting, with a core for each rank and with fewer; of the first sleep and of the
# longest; between probes for such messages; and the maximum that a rank which has given up waits
# for the others' answers.
SPIN, SPIN_CROWDED, NAPS, LOOK, GRACE = 2e-3, 5e-5, (1e-5, 2e-4), 0.01, 2.0
LAST_WORDS = 1.0  # seconds that others have to print their errors before MPI_Abort ends them

_yield = getattr(os, "sched_yield", lambda: time.sleep(0))


class RankError(RuntimeError):
    """A rank died, hung, or did not make the same call within the timeout; the message says which.

    The ranks are no longer in step, and the communicator can't be used any more: all later calls
    raise this, too.  When a process that has raised it ends, it ends all others by ``MPI_Abort``,
    as ``MPI_Finalize`` would wait for dead ranks.
    """


class Link:
    """Private duplicates of a communicator, the collectives on them, and whether they still work.

    Parameters
    ----------
    comm : MPI.Intracomm
        The caller's communicator; nothing is sent on it.
    timeout : float
        Seconds to wait for the other ranks' links.
    """

    def __init__(self, comm: MPI.Intracomm, timeout: float) -> None:
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self.broken: str | None = None
        self.kept: list[Any] = []  # requests and buffers that MPI may still write to
        self.optimizers = 0  # made on this communicator so far
        self._patience = timeout
        self._spin = SPIN_CROWDED
        self._control: MPI.Intracomm | None = None
        # In this order, as the wait for the second can then be ended by messages on the first.
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
        """Use another timeout, in seconds, for each collective within the block."""
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
            If it does not within the timeout, or others have given up.
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
                # Sleep, so that waiting doesn't take a core from others.
                time.sleep(nap)
                nap = min(1.2 * nap, NAPS[1])
        except BaseException as error:
            self.kept.append(request)  # with its buffers, to which MPI may still write
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
        """Refuse all further calls, and call ``MPI_Abort`` when the process ends."""
        if self.broken is None:
            self.broken = why
            atexit.register(_abort)

    def notify(self, error: BaseException) -> None:
        """Tell the others that this rank raised an exception that they did not."""
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
                except MPI.Exception:  # MPI knows already that the rank is dead
                    continue
        self.kept.append(message)

    def _call_roll(self, why: str) -> tuple[dict[int, str], list[int]]:
        """The other ranks' messages, by rank, and the ranks that sent none."""
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
        """Reduce row r of all ranks' arrays to rank r, in an order that MPI chooses."""
        return self._comm.Ireduce_scatter_block(send, receive, MPI.SUM)

    def post_allgather(self, send: Array, receive: Array) -> MPI.Request:
        """Send an array to all ranks, as row r."""
        return self._comm.Iallgather(_bytes(send), _bytes(receive))

    def gather(self, a: Array, what: str) -> Array:
        """All-gather a small array, in the order of ranks."""
        found = np.empty((self.size, *a.shape), a.dtype)
        self.wait(self.post_allgather(a, found), what)
        return found

    def gather_all(self, a: Array, what: str) -> Array:
        """All-gather contiguous arrays, as long as they happen to be, into one, in rank order."""
        sizes = self.gather(np.array([len(a)]), f"the number of {what}")[:, 0]
        found = np.empty((int(sizes.sum()), *a.shape[1:]), a.dtype)
        bits = [x.view(f"u{a.itemsize}") for x in (a, found)]  # of any dtype
        one = MPI.BYTE.Create_contiguous(found[:0].itemsize * int(np.prod(a.shape[1:])))
        try:
            one.Commit()
            starts = np.cumsum(sizes) - sizes
            send, receive = [bits[0], len(a), one], [bits[1], (sizes, starts), one]
            self.wait(self._comm.Iallgatherv(send, receive), what)
        finally:
            one.Free()
        return found

    def broadcast(self, a: Array, what: str, message_bytes: int = 2**24) -> None:
        """Broadcast rank 0's contiguous array to all ranks, in messages of bounded size."""
        data = a.reshape(-1).view(np.uint8)
        for start in range(0, data.size, message_bytes):
            message = [data[start : start + message_bytes], MPI.BYTE]
            self.wait(self._comm.Ibcast(message, 0), what)

    def gather_objects(self, value: object) -> list[Any]:
        """All-gather a picklable value, in the order of ranks."""
        message = np.frombuffer(pickle.dumps(value), np.uint8)
        sizes = self.gather(np.array([message.size]), "the sizes of messages")
        padded = np.zeros(int(sizes.max()), np.uint8)
        padded[: message.size] = message
        return [pickle.loads(row.tobytes()) for row in self.gather(padded, "messages")]

    # ---------------------------------------------------------------------------------- agreement

    def agree(
        self, call: str, error: Exception | None, lines: Sequence[str], bits: Array
    ) -> NDArray[np.bool]:
        """Check that all ranks make the same call with the same arguments, and none has an error.

        Parameters
        ----------
        call : str
            The name of the call.
        error : Exception or None
            The error that this rank would raise.
        lines : sequence of str
            Arguments that must be equal on all ranks, each as "name: value".
        bits : ndarray of bool
            Flags, as many on all ranks.

        Returns
        -------
        ndarray of bool
            The bitwise or of all ranks' flags.

        Raises
        ------
        Exception
            The same on all ranks: of the type of the first error in the order of ranks, or
            ValueError if calls or arguments differ.
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


FAILED = "\x00"  # the first character of the message of a rank that raised


def agreed(error: Exception) -> Exception:
    """Mark an exception as raised on all ranks."""
    error._fastgd_agreed = True  # type: ignore[attr-defined]
    return error


def is_agreed(error: BaseException) -> bool:
    """Whether an exception is raised on all ranks."""
    return isinstance(error, RankError) or getattr(error, "_fastgd_agreed", False)


def _difference(expected: Sequence[str], found: Sequence[str]) -> str | None:
    """The first difference of lines of "name: value" from rank 0's, in words; None if equal."""
    ours, theirs = (
        {line.partition(": ")[0]: line for line in lines} for lines in (expected, found)
    )
    for name, line in ours.items():
        if theirs.get(name) != line:
            return f"{line}, as on rank 0, found {theirs.get(name, 'none')}"
    for name, line in theirs.items():
        if name not in ours:
            return f"no {name}, as on rank 0, found {line}"
    # In another order, or with repeated names.
    for one, other in zip(expected, found, strict=False):
        if one != other:
            return f"{one}, as on rank 0, found {other}"
    if len(expected) != len(found):
        return f"{len(expected)} entries as on rank 0, found {len(found)}"
    return None


def _text(error: Exception) -> str:
    return str(error.args[0]) if len(error.args) == 1 else str(error)  # a KeyError's has quotes


def _exception(name: str, text: str) -> Exception:
    """An exception of the builtin type of that name, else a RuntimeError."""
    kind = getattr(builtins, name, CheckpointError if name == "CheckpointError" else None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(text)
        except TypeError:  # UnicodeError's subclasses take more arguments
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

# A communicator's link is freed with it, which is a collective call.
_KEY = MPI.Comm.Create_keyval(delete_fn=lambda comm, key, link: link.free())


def link_of(comm: MPI.Intracomm, timeout: float) -> Link:
    """The link of a communicator, made by the first call, as MPI's communicators are limited."""
    found = comm.Get_attr(_KEY)
    if found is None:
        found = Link(comm, timeout)
        comm.Set_attr(_KEY, found)
    assert isinstance(found, Link)
    return found
