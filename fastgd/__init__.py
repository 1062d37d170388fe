"""The optimizer step of CPU training loops: one fused, in-place, bit-reproducible sweep.

>>> import numpy as np, fastgd
>>> params = {"w": np.zeros(3, np.float32)}
>>> opt = fastgd.Adam(params, lr=0.1)
>>> _ = opt.step({"w": np.ones(3, np.float32)})
>>> params["w"].round(3)
array([-0.1, -0.1, -0.1], dtype=float32)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastgd import optimizers
from fastgd._version import __version__ as __version__
from fastgd.core.optimizer import Optimizer
from fastgd.core.options import Options
from fastgd.kernels import (
    Tuned,
    TunedThreads,
    available_backends,
    get_backend,
    get_num_threads,
    get_tuning,
    set_backend,
    set_num_threads,
    set_tuning,
    show_config,
    threads_record,
    tuning_record,
)
from fastgd.kernels._engine import StepRecord
from fastgd.kernels.memory.rows import Rows
from fastgd.optimizers import *  # noqa: F403

__all__ = [
    "SAM",
    "CheckpointError",
    "Lookahead",
    "Mapped",
    "Optimizer",
    "Options",
    "Rows",
    "StepRecord",
    "Tuned",
    "TunedThreads",
    "available_backends",
    "averages",
    "checkpoint",
    "data",
    "functional",
    "get_backend",
    "get_include",
    "get_num_threads",
    "get_tuning",
    "init",
    "load",
    "save",
    "schedules",
    "set_backend",
    "set_num_threads",
    "set_tuning",
    "show_config",
    "surfaces",
    "threads_record",
    "tuning_record",
]
__all__ += optimizers.__all__

if TYPE_CHECKING:
    from fastgd import (  # noqa: F401
        averages,
        checkpoint,
        data,
        functional,
        init,
        plot,
        schedules,
        surfaces,
    )
    from fastgd.checkpoint import CheckpointError, load, save
    from fastgd.kernels.include import get_include
    from fastgd.mapped import Mapped
    from fastgd.wrappers import SAM, Lookahead

# Modules, and names in them, that are imported when first accessed, as not every program needs
# them.  A star import leaves out `plot`, which needs matplotlib.
_LATER = (
    "averages",
    "checkpoint",
    "data",
    "functional",
    "init",
    "plot",
    "schedules",
    "surfaces",
)
_LATER_FROM = {
    "CheckpointError": "checkpoint",
    "Lookahead": "wrappers",
    "Mapped": "mapped",
    "SAM": "wrappers",
    "get_include": "kernels.include",
    "load": "checkpoint",
    "save": "checkpoint",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return import_module(f"fastgd.{name}")
    if name in _LATER_FROM:
        return getattr(import_module(f"fastgd.{_LATER_FROM[name]}"), name)
    raise AttributeError(f"module 'fastgd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER, *_LATER_FROM})
