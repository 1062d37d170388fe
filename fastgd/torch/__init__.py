"""fastgd's optimizers as `torch.optim.Optimizer`: the step of torch's CPU training loops."""

from __future__ import annotations

from typing import Any

from fastgd.torch._backward import StepInBackward, step_in_backward
from fastgd.torch._classes import CLASSES
from fastgd.torch._optimizer import Optimizer

__all__ = ["Optimizer", "StepInBackward", "step_in_backward", *CLASSES]

globals().update(CLASSES)


def __getattr__(name: str) -> Any:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {__all__}")
