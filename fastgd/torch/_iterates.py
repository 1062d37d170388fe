"""The average of the iterates that schedule-free optimizers have, over torch's tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray

from fastgd.core.ema import Swapped
from fastgd.core.iterates import moved
from fastgd.kernels.spec.coded_array import CodedArray, as_coded, computed
from fastgd.torch import _tensors
from fastgd.torch._binding import hyper_of
from fastgd.torch._states import Kept

# What a group says of its parameters: whether they are where gradients are taken, or the average.
MODE = "train_mode"


class Pair(NamedTuple):
    """What the average of a parameter follows from."""

    p: Any  # the parameter,
    array: NDArray[Any]  # its memory,
    own: CodedArray  # what steps update: it, or its master
    z: CodedArray
    weight: float  # from where gradients are taken to the average

    def average(self) -> NDArray[Any]:
        """The average, in the order of memory."""
        return moved(self.own, self.z, self.weight)

    def set(self, values: NDArray[Any]) -> None:
        """Set a parameter, and its master."""
        self.own.store(values)
        if self.own.code is not self.array:
            as_coded(self.array).store(values)
        torch.autograd.graph.increment_version([self.p])


class IterateAverage(Swapped):
    """What a schedule-free optimizer has learned: the average of its iterates.

    Reached as ``opt.average``; see `fastgd.SGDScheduleFree`.

    Examples
    --------
    >>> import torch, fastgd.torch
    >>> w = torch.nn.Parameter(torch.ones(1))
    >>> opt = fastgd.torch.SGDScheduleFree([w], lr=0.5)
    >>> for _ in range(2):
    ...     w.grad = torch.ones(1)
    ...     record = opt.step()
    >>> with opt.average.swapped():
    ...     print(w.data)
    tensor([0.2500])
    >>> w.data
    tensor([0.2250])
    """

    def __init__(self, opt: Any) -> None:
        self._opt = opt
        self._held: Mapping[Any, Any] = {}  # those that are swapped in

    @property
    def step(self) -> int:
        """The number of steps of the parameter that has taken the most."""
        return max((int(entry.get("step", 0)) for entry in self._opt.state.values()), default=0)

    @property
    def averages(self) -> Mapping[Any, Any]:
        """The average of each parameter that has taken a step, worked out now."""
        with self._opt._lock:
            if self.is_swapped:
                return self._held
            found = {}
            for k, group in enumerate(self._opt.param_groups):
                for pair in self._pairs(k, group):
                    tensor = _tensors.local(pair.p)
                    values = (
                        pair.average() if group[MODE] else pair.own.load(computed(pair.array.dtype))
                    )
                    made = torch.from_numpy(values.copy())
                    own = made.as_strided(tensor.shape, tensor.stride())
                    found[pair.p] = _tensors.like(pair.p, own)
            return MappingProxyType(found)

    def refuse_evaluated(self, what: str) -> None:
        """Raise RuntimeError unless parameters are where gradients are to be taken."""
        self.refuse_swapped(what)
        if not all(group[MODE] for group in self._opt.param_groups):
            raise RuntimeError(f"{what}: expected train() after eval(), found averages as weights")

    def _refuse_split(self, what: str) -> None:
        if self._opt.is_split:
            raise RuntimeError(
                f"{what}: expected all parameters, found a ZeroRedundancyOptimizer's optimizer, "
                "which has those of this process; consolidate_state_dict() and load it into a "
                "fastgd.torch optimizer of all parameters"
            )

    def _pairs(self, k: int, group: Mapping[str, Any]) -> Iterator[Pair]:
        """What there is of a group's parameters that have taken a step."""
        opt, storage = self._opt, self._opt.options.storage
        hyper = hyper_of(group, opt.keys)
        key, weight = opt.kind.toward(hyper)
        for i, p in enumerate(group["params"]):
            entry = opt.state.get(p) or {}
            if entry.get(key) is None:
                continue
            tensor, rule = _tensors.local(p), opt.kind.rule(hyper, tuple(p.shape))
            array = _tensors.flat(tensor)
            kept = Kept(p, tensor, rule, array, storage.kinds(array, rule), averages=False)
            fitting = kept.fitting(entry, f"state[{k}][{i}]")
            arrays = {name: kept.memory(name, value) for name, value in fitting.items()}
            own = storage.parameter(array, arrays)
            yield Pair(p, array, own, kept.kinds[key].stored(arrays), weight)

    def switch(self, train: bool) -> None:
        """Change parameters to the average, or back, in all groups that aren't so yet."""
        what = "train" if train else "eval"
        with self._opt._lock:
            self.refuse_swapped(what)
            self._refuse_split(what)
            groups = [group for group in self._opt.param_groups if bool(group[MODE]) != train]
            for k, group in enumerate(groups):
                for pair in list(self._pairs(k, group)):
                    back = 1.0 - 1.0 / (1.0 - pair.weight)
                    pair.set(moved(pair.own, pair.z, back) if train else pair.average())
                group[MODE] = train

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Put the averages in the place of the parameters; on leaving, the parameters are back.

        To the bit, whatever happens in between.  A parameter that has taken no step stays as it is,
        and so do all after ``opt.eval()``.

        Raises
        ------
        RuntimeError
            If entered twice; so do a step and a state dict in between.  In a
            ZeroRedundancyOptimizer, where each process has the averages of some parameters.
        """
        self._refuse_split("swapped")
        with self._opt._lock:
            self.refuse_swapped("swapped")
            self._held = self.averages
            kept: list[tuple[Any, Any]] = []
            self.is_swapped = True
            try:
                with torch.no_grad():
                    for p, average in self._held.items():
                        kept.append((p, p.detach().clone()))
                        p.copy_(average)
                yield
            finally:
                with torch.no_grad():
                    for p, own in kept:
                        p.copy_(own)
                self.is_swapped, self._held = False, {}
