"""The average of the iterates of optimizers that need no schedule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastgd.core.ema import Swapped
from fastgd.core.trees import Name
from fastgd.kernels.spec.coded_array import CodedArray, computed

if TYPE_CHECKING:
    from fastgd.core.stepper import Stepper

Array = NDArray[Any]


def moved(p: CodedArray, z: CodedArray, weight: float) -> Array:
    """p + w(z − p), in the order of memory, in the type that p is computed with."""
    dtype = computed(p.code.dtype)
    start, end = p.load(dtype), z.load(dtype)
    with np.errstate(all="ignore"):
        values: Array = start + dtype.type(weight) * (end - start)
    return values


class IterateAverage(Swapped):
    """What a schedule-free optimizer has learned: the average of its iterates.

    Made with such an optimizer, and reached as ``opt.average``.  It takes no memory of its own, as
    it follows from the parameters and a state; see `fastgd.SGDScheduleFree`.

    Attributes
    ----------
    averages : dict of ndarray
        The averages by the name of their parameter, worked out now.
    step : int
        The number of steps of the parameter that has taken the most.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.array([1.0])
    >>> opt = fastgd.SGDScheduleFree(W, lr=0.5)
    >>> _ = opt.step(np.array([1.0])), opt.step(np.array([1.0]))
    >>> with opt.average.swapped():
    ...     print(W)
    [0.25]
    >>> W.round(3), opt.average.averages[0], opt.average.step
    (array([0.225]), array([0.25]), 2)
    """

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self._held: dict[Name, Array] = {}  # those that are swapped in

    @property
    def step(self) -> int:
        """The most steps that a parameter has taken."""
        return int(self._stepper.steps.max())

    @property
    def averages(self) -> dict[Name, Array]:
        """The average of each parameter; itself, as long as it has taken no step."""
        with self._stepper.lock:
            if self.is_swapped:
                return dict(self._held)
            return {name: self._average(k, name, p) for k, name, p in self._params()}

    def _params(self) -> Iterator[tuple[int, Name, Array]]:
        """The group, name and array of each parameter."""
        stepper = self._stepper
        for k, (names, group) in enumerate(zip(stepper.names, stepper.param_groups, strict=True)):
            for name, p in zip(names, group["params"], strict=True):
                yield k, name, p

    def _average(self, k: int, name: Name, p: Array) -> Array:
        stepper = self._stepper
        entry, storage = stepper.state[name], stepper.storage
        own, toward = storage.parameter(p, entry), stepper.kind.toward(stepper.param_groups[k])
        if toward is None or not entry["step"]:
            values = own.load(computed(p.dtype)).copy()
        else:
            key, weight = toward
            rule = stepper.kind.rule(stepper.param_groups[k], storage.shape(p))
            z = storage.state(p, rule, key, entry)
            if z.code.size != p.size:
                label = stepper.labels()[list(stepper.state).index(name)]
                raise ValueError(
                    f"params{label}: was given another shape after the optimizer was made"
                )
            values = moved(own, z, weight)
        return values.reshape(p.shape, order=own.order)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Put the averages in the place of the parameters; on leaving the block, these are back.

        They are restored bit for bit, whatever is raised in the block.  This takes memory for a
        copy of the parameters, and of the averages.

        Raises
        ------
        RuntimeError
            If the averages are swapped in already; so do `Optimizer.step` and `fastgd.save`
            within the block.
        """
        with self._stepper.lock:
            self.refuse_swapped("swapped")
            self._held = self.averages
            try:
                with self.swapping([p for *_, p in self._params()], self._held.values()):
                    yield
            finally:
                self._held = {}
