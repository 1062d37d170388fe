"""The optimizer of which each rank keeps a part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from fastgd.core import domains
from fastgd.core import storage as _storage
from fastgd.core.ema import EMA
from fastgd.core.groups import ParamGroup, not_an_attribute
from fastgd.core.layout import Layout
from fastgd.core.optimizer import Optimizer
from fastgd.core.trees import Name, unflatten
from fastgd.kernels._engine import StepRecord
from fastgd.kernels.memory.checks import shown
from fastgd.mpi import _checkpoint, _params
from fastgd.mpi._calls import Calls
from fastgd.mpi._exchange import Exchange
from fastgd.mpi._link import NO_BITS, agreed, link_of
from fastgd.mpi._space import flat, pieces, spaces

Array = NDArray[Any]


TIMEOUT = 60.0  # seconds

# What is waited for between the sweeps of a step, and what that means if nobody comes.
SUMS = "the sums between two sweeps, when states had been changed and parameters not"


class Sharded:
    r"""An optimizer over the ranks of a communicator, each of which keeps its share of the states.

    Every rank holds all parameters and the gradients of its own batch.  A step adds the gradients
    up over ranks, so that each rank gets the sum for its shard, 1/ranks of all elements
    (reduce-scatter); each updates its shard by an optimizer of its own, whose states are 1/ranks
    of the whole; and all get all parameters (allgather).

    Parameters
    ----------
    opt_class : type
        A class of `fastgd`, say ``fastgd.Adam``, but none whose rule needs all of a parameter.
    params : array, nested lists and dicts of arrays, or groups
        As the class takes them, alike on all ranks; rank 0's values are taken by all.
    comm : MPI.Intracomm, optional
        Whose ranks these are; by default ``MPI.COMM_WORLD``.  Messages go over private ones.
    reduction : {"mean", "sum"}
        What to step along: of the ranks' gradients.
    ordered : bool
        Add gradients up in the order of ranks, ((g₀ + g₁) + g₂) + …, so that the bits follow from
        the number of ranks alone.  False leaves order and algorithm to MPI, which for many ranks
        sends fewer messages: logarithmically many.
    timeout : float
        Seconds to wait for the other ranks at any moment, before raising `RankError`.
    bucket_bytes : int
        How much is sent at a time, above 0; four times as much is kept for it.
    **options
        The class's hyper-parameters and `fastgd.Options`, alike on all ranks, less ``copy_to``,
        ``clip_ratio``, ``centralize`` and ``layout``.  ``average`` is a number here.

    Attributes
    ----------
    shard : Optimizer
        The rank's own optimizer, of `opt_class`: of each parameter it has a piece, one-dimensional,
        which may be empty.  Don't step it.
    param_groups, state, lr, skipped, options
        Those of `shard`.  Set hyper-parameters to the same values on all ranks; a step on ranks
        that differ is refused.

    Raises
    ------
    TypeError, ValueError, KeyError
        On all ranks the same, if one of them can't use what it was given or they differ.
    RankError
        If a rank did not come.

    Notes
    -----
    *Equality.*  With ``reduction="mean"`` and ``ordered``, a step on R ranks has the same bits as
    one of ``opt_class`` in a single process that accumulates the ranks' gradients in their order
    (`Optimizer.accumulate`) and steps: parameters, and the pieces of all states, 8-bit ones and
    chance included.  All ranks' parameters are always the same, to the bit.  Only norms make an
    exception, as they are added up over shards: that of ``clip_norm``, and those that `LAMB` and
    `LARS` have in their formulas.  They may differ in the last bits of their float64, and then
    seldom a bit of what is scaled by them.

    *Rows.*  `fastgd.Rows` are refused, as shards may be cut amid a row: see `gather_rows`.

    *Collective calls.*  The constructor, `step`, `accumulate`, `swapped`, `save` and `load` are for
    all ranks to make, in the same order for all optimizers of a communicator.  What a rank is given
    is checked on all ranks before any of them writes: they all raise the first error, or none.

    *Failures.*  Within a ``with`` block an exception of one rank is told to the others, which raise
    `RankError` at once; without, they do when their time is up: after `timeout` and at most 2 s
    more, in which they ask each other who is there.  MPICH's ``mpiexec`` by itself ends all ranks
    as soon as one dies; started with ``-disable-auto-cleanup`` it leaves them to see the error.
    `LAMB` and `LARS` exchange sums amid a step: if a rank is gone then, states have been changed
    and parameters not, as the error says.

    References
    ----------
    Rajbhandari, Rasley, Ruwase and He, "ZeRO: memory optimizations toward training trillion
    parameter models", 2020 (stage 1; gradients are reduced to shards as in stage 2).

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> from mpi4py import MPI
    >>> from fastgd.mpi import Sharded
    >>> params = {"W": np.ones((2, 2), np.float32)}
    >>> with Sharded(fastgd.Adam, params, comm=MPI.COMM_SELF, lr=0.1) as opt:
    ...     record = opt.step({"W": np.ones((2, 2), np.float32)})
    >>> params["W"][0], record.step
    (array([0.9, 0.9], dtype=float32), 1)
    """

    # How to undo that this call's step follows another rule, while it may still be refused.
    _followed: Layout | None = None

    def __init__(
        self,
        opt_class: type[Optimizer],
        params: object,
        *,
        comm: MPI.Intracomm | None = None,
        reduction: str = "mean",
        ordered: bool = True,
        timeout: float = TIMEOUT,
        bucket_bytes: int = 2**24,
        **options: Any,
    ) -> None:
        if comm is None:
            comm = MPI.COMM_WORLD
        if not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL:
            raise TypeError(f"comm: expected an intracommunicator, found {shown(comm)}")
        error: Exception | None = None
        lines: list[str] = []
        patience = TIMEOUT
        try:
            patience = domains.positive(timeout, "timeout")
        except Exception as caught:
            error = caught
        self._link = link_of(comm, patience)
        self._calls = Calls(self._link, patience)
        try:
            lines = self._prepare(opt_class, params, reduction, ordered, bucket_bytes, options)
        except Exception as caught:
            error = error or caught
        with self._calls.together():
            self._link.agree("Sharded(...)", error, lines, NO_BITS)
            self._link.optimizers = self._calls.number
            for p in self._parameters.arrays:
                self._link.broadcast(flat(p, np.uint8), "rank 0's parameters")
            # Masters are copies of the parameters: the optimizer is made when these are there.
            error = None
            try:
                self._make_shard(opt_class, options)
            except Exception as caught:
                error = caught
            self._link.agree("Sharded(...): its optimizer", error, [], NO_BITS)

    def _prepare(
        self,
        opt_class: object,
        params: object,
        reduction: object,
        ordered: bool,
        bucket_bytes: int,
        options: dict[str, Any],
    ) -> list[str]:
        """Check what can be checked without the others; returns what they must have alike."""
        if (
            not (isinstance(opt_class, type) and issubclass(opt_class, Optimizer))
            or opt_class is Optimizer
        ):
            raise TypeError(f"opt_class: expected a class as fastgd.Adam, found {shown(opt_class)}")
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction: expected mean or sum, found {shown(reduction)}")
        ordered = domains.flag(ordered, "ordered")
        size = domains.integer(bucket_bytes, "bucket_bytes", 1, 2**31)
        for key, problem in _params.REFUSED.items():
            if (given := options.get(key)) is not None and given is not False:
                raise ValueError(f"{key}: {problem}")
            options.pop(key, None)
        if options.get("rows") == "catch_up":
            raise ValueError('rows: expected "exact" or "lazy", as shards take no Rows')
        if isinstance(options.get("average"), EMA):
            raise TypeError("average: expected a number, as each rank averages only its pieces")
        self._bound = options.pop("grads", None)
        self._zero = domains.flag(options.pop("zero_grads", False), "zero_grads")
        parameters = _params.read(params)
        if self._bound is not None:
            _params.read_grads(parameters, self._bound, self._zero)
        link = self._link
        kept = options.get("state_dtype")
        in_8_bits = "8bit" in (kept.values() if isinstance(kept, Mapping) else (kept,))
        self._min_8bit_size = (
            _storage.checked(options, opt_class).min_8bit_size if in_8_bits else None
        )
        self._spaces = spaces(parameters.arrays, link.size, self._min_8bit_size)
        self._parameters = parameters
        # What the optimizer refuses it refuses here, where no parameter has been changed yet.
        empty = [
            _storage.Piece(np.zeros(0, p.dtype), 0, p.size, shape=p.shape)
            for p in parameters.arrays
        ]
        _params.refuse_units(opt_class(parameters.with_arrays(empty), **options))
        self._weight = float(link.size) if reduction == "mean" else 1.0
        self._exchange = Exchange(link, self._spaces, parameters.arrays, size, ordered)
        how = [f"reduction: {reduction}", f"ordered: {ordered}", f"bucket_bytes: {size}"]
        own = {**options, "zero_grads": self._zero}
        return [*how, *_params.option_lines(opt_class, own), *parameters.lines()]

    def _make_shard(self, opt_class: type[Optimizer], options: Mapping[str, Any]) -> None:
        parameters, rank = self._parameters, self._link.rank
        own = pieces(self._spaces, rank)
        arrays = [flat(p)[low:high] for p, (low, high) in zip(parameters.arrays, own, strict=True)]
        found = {
            i: sums[space.place(k, rank)]
            for space, sums in zip(self._spaces, self._exchange.sums, strict=True)
            for k, i in enumerate(space.indices)
        }
        self._sums = [found[i] for i in range(len(arrays))]  # the gradients' pieces
        made = [
            _storage.Piece(a, low, p.size, shape=p.shape)
            for a, (low, _), p in zip(arrays, own, parameters.arrays, strict=True)
        ]
        self.shard = opt_class(parameters.with_arrays(made), **options)
        self._stepper = self.shard.stepper
        self._stepper.combine_sums = self._combine_sums if self._link.size > 1 else None

    # ---------------------------------------------------------------------------------- the steps

    def step(self, grads: object = None, *, grad_scale: float = 1.0) -> StepRecord:
        """Update all parameters along the ranks' gradients; to be called by all ranks.

        Parameters
        ----------
        grads, grad_scale
            As for `Optimizer.step`: this rank's gradients.  A parameter for which no rank has any
            stays as it is; None on some ranks counts as zeros.

        Returns
        -------
        StepRecord
            The same on all ranks; the norm is that of the summed or averaged gradients.

        Raises
        ------
        TypeError, ValueError, FloatingPointError, RuntimeError
            As `Optimizer.step`, on all ranks the same, and nothing was changed then.
        RankError
            If a rank did not come.  Parameters may have been changed then, or states alone: go back
            to a checkpoint.
        """
        with self._stepper.lock, self._calls.together(), self._undoing():
            pending = bool(self._stepper.pending)
            held, scale = self._agree("step", grads, grad_scale, "grad_scale", pending)
            self._last = held
            present = None
            if held is not None:
                present = self._reduce(held)
            record = self._update(present, scale)
            self._followed = None  # from here on there is no way back
            if not record.skipped:
                self._exchange.allgather()
            if self._zero:
                for g in held or ():
                    if g is not None:
                        g[...] = 0
            return record

    def accumulate(self, grads: object = None, weight: float = 1.0) -> None:
        """Add the ranks' gradients to those that the next ``step()`` takes, on all ranks.

        As `Optimizer.accumulate`, whose sums are kept in shards: gradients travel at each call.
        """
        with self._stepper.lock, self._calls.together(), self._undoing():
            held, weight = self._agree("accumulate", grads, weight, "weight", False)
            assert held is not None
            self._locally(lambda: self.shard.accumulate(self._reduce(held), weight))

    @contextmanager
    def _undoing(self) -> Iterator[None]:
        """A call that is refused leaves no states of a rule that was to be followed.

        And gradients are kept no longer than a call.
        """
        self._followed = None
        try:
            yield
        except BaseException:
            self._stepper.go_back(self._followed)
            raise
        finally:
            self._last = None

    def _agree(
        self, call: str, grads: object, number: float, name: str, may_lack: bool
    ) -> tuple[list[Array | None] | None, float]:
        """Check this rank's arguments, and that all ranks' are alike and fit."""
        error: Exception | None = None
        held: list[Array | None] | None = None
        lines = [self._calls.which]
        bits = np.zeros(len(self._parameters.arrays), bool)
        try:
            if self.shard.average is not None:
                self.shard.average.refuse_swapped(call)
            check = domains.number if name == "grad_scale" else domains.positive
            number = check(number, name)
            if may_lack and grads is not None:
                raise RuntimeError("step: gradients were accumulated that no step has taken yet")
            if not may_lack:
                given = self._bound if grads is None else grads
                if given is None:
                    raise TypeError(f"{call}() needs gradients, as none were bound with grads=...")
                step = call == "step"
                held = _params.read_grads(self._parameters, given, self._zero and step, step)
                bits = np.array([g is not None for g in held])
            _params.refuse_units(self.shard)
            self._stepper.agree()
            self._followed = self._stepper.follow()
            lines += [f"{name}: {number!r}", f"accumulated: {self._stepper.pending!r}"]
            lines += _params.step_lines(self.shard)
        except Exception as caught:
            error = caught
        self._present = self._link.agree(call, error, lines, bits)
        return held, number

    def _reduce(self, held: list[Array | None]) -> Any:
        """The sum of the ranks' gradients over this rank's pieces, as a tree."""
        self._exchange.reduce_scatter(held)
        present = zip(self._sums, self._present.tolist(), strict=True)
        return unflatten(
            self._parameters.structure, iter([s if has else None for s, has in present])
        )

    def _update(self, grads: Any, scale: float) -> StepRecord:
        measured = self.shard.options["nonfinite"] != "propagate" or any(
            group["clip_norm"] is not None for group in self.shard.param_groups
        )
        self._stepper.combine = self._combine if measured else None
        record: StepRecord = self._locally(
            lambda: self.shard.step(grads, grad_scale=scale * self._weight)
        )
        return record

    def _locally(self, work: Any) -> Any:
        """What a rank does by itself from what all ranks have alike, so that all raise alike."""
        try:
            return work()
        except (TypeError, ValueError, FloatingPointError) as error:
            agreed(error)
            raise

    def _combine(self, sums: Array) -> None:
        """Add up all ranks' sums of squares, in the order of ranks: what `Plan.step` asks for."""
        counts = {"all": 1, "group": 1 + len(self.shard.param_groups), "tensor": len(sums)}
        wanted = sums[-counts[self.shard.options["clip_by"]] :]
        total = self._added(wanted, "the norms")
        if not np.isfinite(total[-1]).all() and self.shard.options["nonfinite"] == "raise":
            self._refuse_nonfinite()
        wanted[...] = total

    def _combine_sums(self, sums: Array) -> None:
        """The same of the terms of rules, between their sweeps."""
        sums[...] = self._added(sums, f"{SUMS}: go back to a checkpoint")

    def _added(self, sums: Array, what: str) -> Array:
        """All ranks' sums, in the order of ranks: on all the same bits."""
        with np.errstate(all="ignore"):
            found = self._link.gather(np.ascontiguousarray(sums), what)
            total: Array = found[0]
            for part in found[1:]:
                total = total + part
        return total

    def _refuse_nonfinite(self) -> NoReturn:
        error: Exception | None = None
        labels = self._parameters.labels
        try:
            for g, label in zip(self._last or (), labels, strict=False):
                if g is not None:
                    _params.refuse_nonfinite(g, f"grads{label}")
        except FloatingPointError as caught:
            error = caught
        self._link.agree("step, whose gradients are not finite", error, [], NO_BITS)
        words = "grads: expected finite gradients, found a sum over ranks that is not"
        raise agreed(FloatingPointError(words))

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
        with self._calls.together():
            self._link.agree("swapped", error, [self._calls.which], NO_BITS)
        assert average is not None
        try:
            with average.swapped():
                with self._calls.together():
                    self._exchange.allgather()
                try:
                    with self._calls.telling():
                        yield
                finally:
                    # The others may be elsewhere, having caught what all raised.
                    if self._link.broken is None:
                        with self._calls.together():
                            self._link.agree(
                                "the end of swapped", None, [self._calls.which], NO_BITS
                            )
        finally:
            for p, own in zip(self._exchange.params, kept, strict=True):
                p[...] = own

    # --------------------------------------------------------------------------------- checkpoints

    def save(
        self,
        path: Any,
        *,
        metadata: Mapping[str, Any] | None = None,
        timeout: float = 600.0,
    ) -> None:
        """Write a checkpoint: a folder with a file for each rank, and an index of them.

        Parameters
        ----------
        path : str or path-like
            The folder, the same for all ranks, who all see it; made if it isn't there.
        metadata : dict, optional
            As for `fastgd.save`; rank 0's is kept.
        timeout : float
            Seconds that ranks wait for each other's files.

        Raises
        ------
        OSError, TypeError, ValueError, ImportError
            As `fastgd.save`, on all ranks the same; and if they save to different folders.
        RuntimeError
            Within `swapped`.

        Notes
        -----
        The index is replaced last, when all files are on the disk: until then, whatever fails or
        dies, the checkpoint is the old one, whose files are removed only afterwards.
        """
        with self._stepper.lock, self._calls.together(), self._link.patience(timeout):
            _checkpoint.save(
                self._link,
                self._calls.which,
                self.shard,
                self._parts(),
                self._min_8bit_size,
                path,
                metadata,
            )

    def load(self, path: Any, *, timeout: float = 600.0) -> dict[str, Any]:
        """Take parameters, states and hyper-parameters from a checkpoint of any number of ranks.

        Parameters
        ----------
        path : str or path-like
            The folder.
        timeout : float
            Seconds that ranks wait for each other's reading.

        Returns
        -------
        dict
            The metadata given to `save`.

        Raises
        ------
        CheckpointError
            On all ranks the same, and nothing was changed: if the checkpoint is damaged, lacks a
            file, is a mixture of two, or doesn't fit.
        OSError
            If there is none, or it can't be read.
        RuntimeError
            Within `swapped`.
        """
        with self._stepper.lock, self._calls.together(), self._link.patience(timeout):
            metadata = _checkpoint.load(
                self._link, self._calls.which, self.shard, self._parts(), path
            )
            self._exchange.allgather()
            return metadata

    def _parts(self) -> list[_checkpoint.Part]:
        """What this rank has of each parameter."""
        parameters = self._parameters
        return [
            _checkpoint.Part(line.partition(": ")[0], line, whole, low, high)
            for line, whole, (low, high) in zip(
                parameters.lines(),
                parameters.arrays,
                pieces(self._spaces, self._link.rank),
                strict=True,
            )
        ]

    # ------------------------------------------------------------------------ what there is to see

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
    def timeout(self) -> float:
        """Seconds to wait for the other ranks at any moment; may be set."""
        return self._calls.timeout

    @timeout.setter
    def timeout(self, value: float) -> None:
        self._calls.timeout = domains.positive(value, "timeout")

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
        if error is not None:
            self._calls.tell(error)

    def __getstate__(self) -> NoReturn:
        raise TypeError("Sharded: belongs to a communicator, and can't be copied or pickled")

    def __repr__(self) -> str:
        return f"Sharded(rank {self._link.rank} of {self._link.size}, {self.shard!r})"
