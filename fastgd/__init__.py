"""The optimizer step of CPU training loops: one fused, in-place, bit-reproducible sweep.

>>> import numpy as np, fastgd
>>> params = {"w": np.zeros(3, np.float32)}
>>> opt = fastgd.Adam(params, lr=0.1)
>>> opt.step({"w": np.ones(3, np.float32)})
>>> params["w"].round(3)
array([-0.1, -0.1, -0.1], dtype=float32)
"""

from fastgd import averages, data, functional, init, optimizers
from fastgd._optimizer import Optimizer
from fastgd.kernels import (
    available_backends,
    get_backend,
    get_num_threads,
    set_backend,
    set_num_threads,
    show_config,
)
from fastgd.optimizers import *  # noqa: F403

__version__ = "0.1.0"

__all__ = [
    "Optimizer",
    "available_backends",
    "averages",
    "data",
    "functional",
    "get_backend",
    "get_num_threads",
    "init",
    "set_backend",
    "set_num_threads",
    "show_config",
]
__all__ += optimizers.__all__
