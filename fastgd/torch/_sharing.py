"""The processes that hold the other shards of parameters, and sums over all of them.

A norm, and whether all is finite, are properties of whole gradients.  Where a process has only
shards of DTensors, or some of the parameters, sums of squares are exchanged.  So are the sums that
a rule takes over a parameter, where a process has a shard of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastgd.torch import _tensors

Array = NDArray[np.float64]


def splitter() -> Any:
    """The process group of the ZeroRedundancyOptimizer that is making an optimizer, or None.

    ZeroRedundancyOptimizer makes its optimizer of some of the parameters without saying so; the
    only trace is the frame of the method that does it.  Other methods, of subclasses say, may make
    optimizers of whatever parameters they like.
    """
    module = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    if module is None:
        return None
    making = module.ZeroRedundancyOptimizer._init_local_optimizer.__code__
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is making:
            return frame.f_locals["self"].process_group
        frame = frame.f_back  # type: ignore[assignment]
    return None


def may_be(params: Iterable[Any], processes: Any) -> bool:
    """Whether other processes may have shards of some gradients, or other parameters."""
    return processes is not None or any(_tensors.is_sharded(p) for p in params)


def shards_over(p: Any) -> tuple[Any, ...]:
    """The process groups that hold the shards of a parameter, one for each axis of its mesh.

    Raises
    ------
    ValueError
        If they aren't known.
    """
    if getattr(p, "_fsdp_flattened", False):
        raise ValueError(
            "expected parameters of fully_shard() for norms, sums and nonfinite, found those of "
            "FullyShardedDataParallel, of which only clip_grad_norm_() knows where the shards are"
        )
    if not _tensors.is_sharded(p):
        return ()
    mesh = p.device_mesh
    if any(placement.is_partial() for placement in p.placements):
        raise ValueError(f"expected shards or replicas, found placements {tuple(p.placements)}")
    return tuple(
        mesh.get_group(axis)
        for axis, placement in enumerate(p.placements)
        if not placement.is_replicate() and mesh.size(axis) > 1
    )


def added(sums: Array, group: Any) -> Array:
    """All-reduce sums over a process group, in the order of ranks: the same bits in each."""
    own = torch.from_numpy(np.ascontiguousarray(sums))
    found = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(found, own, group=group)
    total = np.zeros_like(sums)
    for shard in found:
        total += shard.numpy()
    return total


def refuse_shard(p: Any, rule: str, name: str) -> None:
    """Raise ValueError for a parameter that is a shard, of a rule that needs all of it."""
    if getattr(p, "_fsdp_flattened", False) or shards_over(p):
        raise ValueError(
            f"{name}: expected a whole parameter, as rule {rule} does not step shards, found a "
            "shard"
        )


class Sharing:
    """The exchange of sums among the processes that step together.

    Each of them makes the same calls, whatever gradients it has.

    Parameters
    ----------
    groups : list of list of tensor
        The parameters of each group; a group may have none here, but in other processes.
    names : list of list of str
        Their names in errors, after ``params``.
    processes : ProcessGroup or None
        The processes among which the parameters are split.

    Raises
    ------
    ValueError
        If it isn't known which processes have the other shards of a parameter.
    """

    def __init__(self, groups: list[list[Any]], names: list[list[str]], processes: Any) -> None:
        self._processes = processes
        self._owners: list[int] = []  # the group of each row
        self._n_groups = len(groups)
        self._rows: dict[tuple[Any, ...], list[int]] = {}  # by the process groups of their shards
        for k, group in enumerate(groups):
            for p, name in zip(group, names[k], strict=True):
                try:
                    over = shards_over(p)
                except ValueError as error:
                    raise ValueError(f"params{name}: {error}") from None
                if over:
                    self._rows.setdefault(over, []).append(len(self._owners))
                self._owners.append(k)
            if not group:  # an empty group has a placeholder
                self._owners.append(k)

    def __bool__(self) -> bool:
        """Whether any other process has shards, or other parameters."""
        return bool(self._rows) or self._processes is not None

    def __call__(self, sums: Array) -> None:
        """Turn this process's sums into those over all processes, in place.

        Parameters
        ----------
        sums : ndarray of float64, shape (parameters + groups + 1, 2)
            The sums of squares of each gradient, of each group's, and of all; each as two terms.
        """
        n = len(self._owners)
        self.over_shards(sums)
        if self._rows:
            sums[n:] = 0
            np.add.at(sums[n:-1], self._owners, sums[:n])
            sums[-1] = sums[:n].sum(axis=0)
        if self._processes is not None:
            sums[n:] = added(sums[n:], self._processes)

    def over_shards(self, sums: Array) -> None:
        """Turn the sums of each parameter's shards, of shape (parameters, …), into the wholes'."""
        for over, rows in self._rows.items():
            for processes in over:
                sums[rows] = added(sums[rows], processes)

    def between_sweeps(self, sums: Array) -> None:
        """The same of the terms of rules.

        Raises
        ------
        RuntimeError
            If another process didn't come.
        """
        try:
            self.over_shards(sums)
        except RuntimeError as error:
            raise RuntimeError(
                "step: could not add up the shards' sums between its two sweeps, when states had "
                f"been changed and parameters not: go back to a checkpoint: {error}"
            ) from error
