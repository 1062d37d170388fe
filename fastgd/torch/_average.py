"""The average of a model's weights that an optimizer's steps update, over torch's tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastgd import averages as arrays
from fastgd.core import domains
from fastgd.core.ema import Weighting
from fastgd.torch._states import AVERAGE, AVERAGE_STEP, count_of


class EMA(Weighting):
    """The exponentially weighted average of an optimizer's parameters, updated in its sweep.

    Made for one optimizer, ``fastgd.torch.AdamW(params, average=EMA(0.999))``, for which
    ``average=0.999`` is short, and reached as ``opt.average``.  The formula is that of
    `fastgd.averages.EMA`.

    Parameters
    ----------
    decay : float
        β, from 0 to below 1.
    bias_correction, warmup : bool
        As for `fastgd.averages.EMA`; without bias correction the average starts from the weights
        as they are before the first step.

    Raises
    ------
    TypeError, ValueError
        If `decay` is not usable, or `warmup` is wanted with `bias_correction`.

    Examples
    --------
    >>> import torch, fastgd.torch
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> opt = fastgd.torch.SGD([w], lr=1.0, average=0.9)
    >>> for _ in range(3):
    ...     w.grad = -torch.ones(2)
    ...     record = opt.step()
    >>> with opt.average.swapped():
    ...     print(w.data)
    tensor([2.0701, 2.0701])
    >>> w.data, opt.average.step
    (tensor([3., 3.]), 3)
    """

    def __init__(
        self, decay: float = 0.999, bias_correction: bool = True, warmup: bool = False
    ) -> None:
        super().__init__(decay, bias_correction, warmup)
        self._opt: Any = None

    @classmethod
    def of(cls, value: object, opt: Any) -> EMA | None:
        """The average that an optimizer's ``average`` asks for, bound to it."""
        if value is None:
            return None
        if isinstance(value, arrays.EMA):
            raise TypeError("average: expected fastgd.torch.EMA, found fastgd.averages.EMA")
        average = value if isinstance(value, cls) else cls(domains.fraction(value, "average"))
        if average._opt not in (None, opt):
            raise ValueError("average: the EMA is bound to another optimizer already")
        average._opt = opt
        return average

    @property
    def averages(self) -> Mapping[Any, Any]:
        """The average of each parameter that has one: ``opt.state[p]["average"]``."""
        state, groups = self._opt.state, self._opt.param_groups
        params = [p for group in groups for p in group["params"]]
        return MappingProxyType(
            {p: state[p][AVERAGE] for p in params if (state.get(p) or {}).get(AVERAGE) is not None}
        )

    def over(self, params: list[NDArray[Any]], values: list[NDArray[Any]]) -> arrays.EMA:
        """The same average over arrays, which goes on with these values."""
        made = arrays.EMA(params, self.decay, self.bias_correction, self.warmup)
        made.go_on(values, self.step)
        return made

    def take_steps(self, entries: Iterable[dict[str, Any]]) -> None:
        """Go on with the number of updates that the states of a state dict have; removes it."""
        found = [count_of(e.pop(AVERAGE_STEP), AVERAGE)[1] for e in entries if AVERAGE_STEP in e]
        if found:
            self.steps = np.array([max(found)], np.int64)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Put the averages in the place of the parameters; on leaving, the parameters are back.

        To the bit, whatever happens in between.  A parameter that has no average yet, as no step
        has updated it, stays as it is.

        Raises
        ------
        ValueError
            If there was no update yet to average.
        RuntimeError
            If entered twice; so does a step in between.  In a ZeroRedundancyOptimizer, where each
            process has the averages of some parameters.
        """
        if self._opt is None:
            raise ValueError(
                "swapped: expected an EMA that an optimizer was given, found one alone"
            )
        if self._opt.is_split:
            raise RuntimeError(
                "swapped: expected the averages of all parameters, found a "
                "ZeroRedundancyOptimizer's optimizer, which has those of this process; "
                "consolidate_state_dict() and load it into a fastgd.torch optimizer of all "
                "parameters, with average="
            )
        with self._opt._lock:
            self.refuse_to_swap()
            kept: list[tuple[Any, Any]] = []
            self.is_swapped = True
            try:
                with torch.no_grad():
                    for p, average in self.averages.items():
                        kept.append((p, p.detach().clone()))
                        p.copy_(average)
                yield
            finally:
                with torch.no_grad():
                    for p, own in kept:
                        p.copy_(own)
                self.is_swapped = False
