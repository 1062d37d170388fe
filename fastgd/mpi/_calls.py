"""How the calls of an optimizer over ranks keep these in step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fastgd.mpi._link import Link, is_agreed


class Calls:
    """The collective calls of one optimizer.

    Parameters
    ----------
    link : Link
        To the other ranks.
    timeout : float
        Seconds to wait for them.
    """

    def __init__(self, link: Link, timeout: float) -> None:
        link.refuse_broken()
        self.link, self.timeout = link, timeout
        self.number = link.optimizers + 1  # of those of this communicator

    @property
    def which(self) -> str:
        """A line to be alike on all ranks: optimizers of a communicator take turns in one order."""
        return f"optimizer: number {self.number} of this communicator"

    @contextmanager
    def together(self) -> Iterator[None]:
        """A collective call."""
        self.link.refuse_broken()
        with self.link.patience(self.timeout), self.telling():
            yield

    @contextmanager
    def telling(self) -> Iterator[None]:
        """What this rank alone raises is told to the others."""
        try:
            yield
        except BaseException as error:
            self.tell(error)
            raise

    def tell(self, error: BaseException) -> None:
        """Tell the other ranks, who would wait, what was raised here alone."""
        if not is_agreed(error):
            self.link.notify(error)
