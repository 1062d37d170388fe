"""What an optimizer over ranks shows of its own part, and how its calls keep the ranks in step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NoReturn, Self

from numpy.typing import NDArray

from fastgd.core import domains
from fastgd.core.groups import ParamGroup, not_an_attribute
from fastgd.core.optimizer import Optimizer
from fastgd.core.trees import Name
from fastgd.mpi._exchange import Exchange
from fastgd.mpi._link import NO_BITS, Link, is_agreed

Array = NDArray[Any]


class Collective:
    """The base of `Sharded`, which has the calls."""

    shard: Optimizer
    timeout: float
    _link: Link
    _exchange: Exchange
    _zero: bool
    _number: int  # of those of this communicator

    @property
    def _which(self) -> str:
        """A line to be alike on all ranks: optimizers of a communicator take turns in one order."""
        return f"optimizer: number {self._number} of this communicator"

    @contextmanager
    def _together(self) -> Iterator[None]:
        """A collective call."""
        self._link.refuse_broken()
        with self._link.patience(self.timeout), self._telling():
            yield

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What this rank alone raises is told to the others."""
        try:
            yield
        except BaseException as error:
            if not is_agreed(error):
                self._link.notify(error)
            raise

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Put the averaged weights in the place of the parameters, on all ranks, as `EMA.swapped`.

        It takes memory for a copy of all parameters on each rank, which puts them back by itself.
        An exception of one rank in the block is told to the others, as in a ``with`` block of the
        optimizer.

        Raises
        ------
        ValueError
            If there is no average, or no step yet.
        RuntimeError
            If entered twice; so do `step`, `accumulate`, `save` and `load` in between.
        """
        average = self.shard.average
        error: Exception | None = None
        try:
            if average is None:
                raise ValueError("swapped: expected average=..., found none")
            if not average.step:
                raise ValueError("swapped: expected at least one update before, found none")
            average.refuse_swapped("swapped")
            kept = [p.copy() for p in self._exchange.params]
        except Exception as caught:
            error = caught
        with self._together():
            self._link.agree("swapped", error, [self._which], NO_BITS)
        assert average is not None
        try:
            with average.swapped():
                with self._together():
                    self._exchange.allgather()
                try:
                    with self._telling():
                        yield
                finally:
                    # The others may be elsewhere, having caught what all raised.
                    if self._link.broken is None:
                        with self._together():
                            self._link.agree("the end of swapped", None, [self._which], NO_BITS)
        finally:
            for p, own in zip(self._exchange.params, kept, strict=True):
                p[...] = own

    @property
    def param_groups(self) -> tuple[ParamGroup, ...]:
        """The groups, whose ``"params"`` are this rank's pieces."""
        return self.shard.param_groups

    @property
    def state(self) -> Mapping[Name, Mapping[str, Array]]:
        """The states of this rank's pieces."""
        return self.shard.state

    @property
    def options(self) -> Mapping[str, Any]:
        """As `Optimizer.options`."""
        return {**self.shard.options, "zero_grads": self._zero}

    @property
    def skipped(self) -> int:
        """The number of steps skipped as gradients were not finite."""
        return self.shard.skipped

    @property
    def lr(self) -> float:
        """As `Optimizer.lr`; to be set alike on all ranks."""
        return self.shard.lr

    @lr.setter
    def lr(self, value: domains.Scalar) -> None:
        self.shard.lr = value

    @property
    def sent(self) -> int:
        """The bytes of gradients and parameters that this rank has sent to others."""
        return self._exchange.sent

    @property
    def average(self) -> NoReturn:
        """Not here: no rank has all averages at hand but within `swapped`."""
        raise AttributeError(
            "average: each rank has only its pieces of the averages; use opt.swapped() on all ranks"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse to set what would be without effect."""
        shard = self.__dict__.get("shard")
        if name != "lr" and shard is not None and name in shard.domains:
            raise not_an_attribute(name)
        super().__setattr__(name, value)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tell the other ranks, who would wait, what was raised here alone."""
        if error is not None and not is_agreed(error):
            self._link.notify(error)

    def __getstate__(self) -> NoReturn:
        raise TypeError("Sharded: belongs to a communicator, and can't be copied or pickled")

    def __repr__(self) -> str:
        return f"Sharded(rank {self._link.rank} of {self._link.size}, {self.shard!r})"
