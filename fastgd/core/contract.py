"""What a family of optimizers declares: hyper-parameters, rule, coefficients, starts, conflicts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from fastgd.core import domains
from fastgd.core import options as _options
from fastgd.core.rows import row_of
from fastgd.kernels.memory import checks
from fastgd.kernels.reference import RULES

Hyper = Mapping[str, Any]

# The hyper-parameters that several optimizers share.
DOMAINS: dict[str, domains.Domain] = {
    "lr": domains.nonnegative,
    "eps": domains.nonnegative,
    "eps_root": domains.nonnegative,
    "weight_decay": domains.nonnegative,
    "maximize": domains.flag,
    **_options.HYPER,
}

FLOAT32_MAX = float(np.finfo(np.float32).max)


class Contract:
    """What a class of optimizers says of itself; `Stepper` does the rest."""

    domains: ClassVar[Mapping[str, domains.Domain]] = DOMAINS  # a subclass adds those of its own
    decoupled: ClassVar[bool] = False  # whether weight decay acts beside the gradient
    restarts: ClassVar[bool] = False  # whether steps count from when states were made

    @staticmethod
    def rule(h: Hyper) -> str:
        """The rule in `fastgd.kernels.reference` that hyper-parameters ask for.

        What is a schedule here is still one, and counts as a number that isn't 0.
        """
        raise NotImplementedError

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        """The rule's coefficients, in its order, for a parameter's t-th step, counted from 1.

        May go on with those of the class's other rules.  All hyper-parameters are numbers here.
        """
        raise NotImplementedError

    @staticmethod
    def initial(h: Hyper) -> Mapping[str, float]:
        """What states start from, where that isn't 0."""
        return {}

    @staticmethod
    def consistent(h: Hyper) -> None:
        """Raise ValueError if hyper-parameters contradict each other; some may be schedules."""

    @classmethod
    def fits(cls, h: Hyper) -> None:
        """Raise ValueError if a group's hyper-parameters contradict each other or don't fit it."""
        cls.consistent(h)
        if h["clip_ratio"] is not None:
            for name, p in zip(h["param_names"], h["params"], strict=True):
                if not row_of(p.shape, p.strides, p.itemsize):
                    raise ValueError(
                        f"clip_ratio: expected parameters in C order, whose rows it is about, "
                        f"found params{checks.label((name,))} with strides {p.strides} for shape "
                        f"{p.shape}"
                    )
        for key, start in cls.initial(h).items():
            if start > FLOAT32_MAX:
                for p in h["params"]:
                    if p.dtype != np.float64:
                        raise ValueError(f"{key}: can't start from {start} in {p.dtype}")

    @classmethod
    def stages(cls, h: Hyper, unscale: float) -> tuple[float, ...]:
        """The fields of `reference.Stages`: what the stages before the rule are given."""
        decay = h["weight_decay"]
        l2, decoupled = (0.0, 1.0 - h["lr"] * decay) if cls.decoupled else (decay, 1.0)
        factor = -unscale if h["maximize"] else unscale
        no = math.inf
        clip_value, clip_norm, clip_ratio = h["clip_value"], h["clip_norm"], h["clip_ratio"]
        return factor, l2, decoupled, clip_value or no, clip_norm or no, clip_ratio or no

    @classmethod
    def settings(cls, rule: str, h: Hyper, t: int, unscale: float) -> tuple[Any, ...]:
        """What the engine is given for a parameter's t-th step by a rule, counted from 1."""
        # A scheduled momentum may be 0 at a step, and its rule wants it nonetheless: so classes
        # list all coefficients, and each rule takes the first so many.
        coefficients = cls.coefficients(h, t)[: len(RULES[rule].coefficients)]
        return rule, coefficients, cls.stages(h, unscale)
