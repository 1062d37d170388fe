"""What goes around an optimizer, and is to torch's schedulers and scalers that optimizer itself."""

from __future__ import annotations

from typing import Any

import torch

from fastgd.torch import _tensors
from fastgd.torch._optimizer import Optimizer


def _handed_on(name: str) -> Any:
    """A property that is the wrapped optimizer's attribute."""
    return property(
        lambda self: getattr(self.optimizer, name),
        lambda self, value: setattr(self.optimizer, name, value),
        lambda self: delattr(self.optimizer, name),
    )


class Wrapper(torch.optim.Optimizer):
    """An optimizer with one more thing to its step; all else is that of the wrapped one.

    Groups, states, hooks and hyper-parameters are the very same objects.
    """

    optimizer: Any
    # GradScaler hands scale and outcome to the step, which goes on to that of the wrapped one.
    _step_supports_amp_scaling = True
    grad_scale = _handed_on("grad_scale")
    found_inf = _handed_on("found_inf")

    def __init__(self, optimizer: Any) -> None:
        # torch's constructor would make groups and states anew.
        self.optimizer = optimizer

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer":  # it is being made
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {self.optimizer!r}"

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Do what the wrapped optimizer does."""
        self.optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The state dict of the wrapped optimizer."""
        written: dict[str, Any] = self.optimizer.state_dict()
        return written

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do what the wrapped optimizer does."""
        self.optimizer.load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "step"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def refuse_shards(opt: Optimizer, wrapper: str) -> None:
    """Raise ValueError where a process has only parts of the parameters."""
    params = [p for group in opt.param_groups for p in group["params"]]
    if opt.is_split or any(
        _tensors.is_sharded(p) or getattr(p, "_fsdp_flattened", False) for p in params
    ):
        raise ValueError(
            f"optimizer: {wrapper} excludes shards, as of fully_shard(), FullyShardedDataParallel "
            "and ZeroRedundancyOptimizer; DistributedDataParallel has whole parameters"
        )
