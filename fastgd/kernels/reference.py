"""The specification in NumPy: what the compiled kernels must compute, to the bit.

Rules are defined in `fastgd.optimizers`, next to the optimizers that use them; stages, norms and
series in `fastgd.kernels.spec`.  Here they all are by their names: ``reference.adam``,
``reference.step``.
"""

from __future__ import annotations

from typing import Any

from fastgd.kernels.spec.average import ema as ema
from fastgd.kernels.spec.registry import RULES as RULES
from fastgd.kernels.spec.registry import Array as Array
from fastgd.kernels.spec.registry import FullWidth as FullWidth
from fastgd.kernels.spec.registry import Fused as Fused
from fastgd.kernels.spec.registry import Kept as Kept
from fastgd.kernels.spec.registry import Number as Number
from fastgd.kernels.spec.registry import Read as Read
from fastgd.kernels.spec.registry import Rule as Rule
from fastgd.kernels.spec.registry import Scalar as Scalar
from fastgd.kernels.spec.registry import Shared as Shared
from fastgd.kernels.spec.registry import Size as Size
from fastgd.kernels.spec.registry import Squares as Squares
from fastgd.kernels.spec.registry import Sum as Sum
from fastgd.kernels.spec.registry import SumOfSquares as SumOfSquares
from fastgd.kernels.spec.registry import Total as Total
from fastgd.kernels.spec.registry import positive_part as positive_part
from fastgd.kernels.spec.registry import rule as rule
from fastgd.kernels.spec.registry import sets as sets
from fastgd.kernels.spec.series import ewma as ewma
from fastgd.kernels.spec.series import ewma_of_observed as ewma_of_observed
from fastgd.kernels.spec.sizes import BLOCK as BLOCK
from fastgd.kernels.spec.sizes import LANES as LANES
from fastgd.kernels.spec.stages import Stages as Stages
from fastgd.kernels.spec.stages import average as average
from fastgd.kernels.spec.stages import clip_value as clip_value
from fastgd.kernels.spec.stages import copy as copy
from fastgd.kernels.spec.stages import decoupled_decay as decoupled_decay
from fastgd.kernels.spec.stages import l2_decay as l2_decay
from fastgd.kernels.spec.stages import scale as scale
from fastgd.kernels.spec.steps import TensorStep as TensorStep
from fastgd.kernels.spec.steps import step as step
from fastgd.kernels.spec.units import centralize as centralize
from fastgd.kernels.spec.units import scale_units as scale_units
from fastgd.kernels.spec.units import unit_blocks as unit_blocks


def __getattr__(name: str) -> Any:
    if name in RULES:
        return RULES[name].update
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *RULES})
