"""The optimizer step of CPU training loops: one fused, in-place, bit-reproducible sweep.

>>> import numpy as np, fastgd
>>> params = {"w": np.zeros(3, np.float32)}
>>> opt = fastgd.Adam(params, lr=0.1)
>>> opt.step({"w": np.ones(3, np.float32)})
>>> params["w"].round(3)
array([-0.1, -0.1, -0.1], dtype=float32)
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from fastgd import functional, optimizers
from fastgd._optimizer import Optimizer
from fastgd._version import __version__ as __version__
from fastgd.kernels import (
    available_backends,
    get_backend,
    get_num_threads,
    set_backend,
    set_num_threads,
    show_config,
)
from fastgd.optimizers import *  # noqa: F403

__all__ = [
    "Optimizer",
    "available_backends",
    "averages",
    "data",
    "functional",
    "get_backend",
    "get_num_threads",
    "init",
    "schedules",
    "set_backend",
    "set_num_threads",
    "show_config",
    "surfaces",
]
__all__ += optimizers.__all__

if TYPE_CHECKING:
    from fastgd import averages, data, init, plot, schedules, surfaces  # noqa: F401

# What not every program needs is imported when it is first asked for; `plot`, which needs
# matplotlib, not even by a star.
_LATER = ("averages", "data", "init", "plot", "schedules", "surfaces")


def __getattr__(name: str) -> ModuleType:
    if name in _LATER:
        return import_module(f"fastgd.{name}")
    raise AttributeError(f"module 'fastgd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
