"""Which processes hold the rest of the gradients, and sums of squares over all of them.

A norm, and whether all is finite, are properties of whole gradients.  Where a process has only
parts of them, shards of DTensors or some of the parameters, sums of squares are exchanged.
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
    """The processes among which the parameters of an optimizer are split that is being made.

    ZeroRedundancyOptimizer makes its optimizer of some of the parameters and doesn't tell it so;
    the only trace is that the method which does so is among the callers.  Others of its methods,
    which subclasses may have, can make optimizers of whatever they like.
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
    """Whether other processes might have parts of some gradients."""
    return processes is not None or any(_tensors.is_sharded(p) for p in params)


def shards_over(p: Any) -> tuple[Any, ...]:
    """The groups of processes, one for each axis of the mesh, that hold the shards of a parameter.

    Raises
    ------
    ValueError
        If they can't be told.
    """
    if getattr(p, "_fsdp_flattened", False):
        raise ValueError(
            "expected parameters of fully_shard() for norms and for nonfinite, found those of "
            "FullyShardedDataParallel, whose clip_grad_norm_() knows where their shards are"
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
    """Sums over the processes of a group, in the order of ranks: the same bits in all of them."""
    own = torch.from_numpy(np.ascontiguousarray(sums))
    found = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(found, own, group=group)
    total = np.zeros_like(sums)
    for part in found:
        total += part.numpy()
    return total


class Sharing:
    """The exchange of sums of squares among the processes that step together.

    Each of them makes the same calls, whatever gradients it has.

    Parameters
    ----------
    groups : list of list of tensor
        The parameters of each group; some may have none here, as others have them.
    names : list of list of str
        What to call them in an error, after ``params``.
    processes : ProcessGroup or None
        Among which the parameters are split.

    Raises
    ------
    ValueError
        If it can't be told who has the other parts of a parameter.
    """

    def __init__(self, groups: list[list[Any]], names: list[list[str]], processes: Any) -> None:
        self._processes = processes
        self._owners: list[int] = []  # the group of each row
        self._n_groups = len(groups)
        self._rows: dict[tuple[Any, ...], list[int]] = {}  # by who has the other shards
        for k, group in enumerate(groups):
            for p, name in zip(group, names[k], strict=True):
                try:
                    over = shards_over(p)
                except ValueError as error:
                    raise ValueError(f"params{name}: {error}") from None
                if over:
                    self._rows.setdefault(over, []).append(len(self._owners))
                self._owners.append(k)
            if not group:  # for which something stands
                self._owners.append(k)

    def __bool__(self) -> bool:
        """Whether any other process has a part."""
        return bool(self._rows) or self._processes is not None

    def __call__(self, sums: Array) -> None:
        """Turn this process's sums into those over all, in place.

        Parameters
        ----------
        sums : ndarray, shape (parameters + groups + 1, 2)
            The sums of squares of each gradient, of each group's, of all; in two parts.
        """
        n = len(self._owners)
        for over, rows in self._rows.items():
            for processes in over:
                sums[rows] = added(sums[rows], processes)
        if self._rows:
            sums[n:] = 0
            np.add.at(sums[n:-1], self._owners, sums[:n])
            sums[-1] = sums[:n].sum(axis=0)
        if self._processes is not None:
            sums[n:] = added(sums[n:], self._processes)
