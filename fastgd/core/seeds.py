"""Seeds and counts: where `fastgd.init` and `fastgd.data` get their random numbers from."""

from __future__ import annotations

import operator
from typing import Any, TypeAlias

import numpy as np

from fastgd.kernels.memory.checks import shown

# A string, so that `import fastgd` need not load numpy.random.
Seed: TypeAlias = "int | np.random.Generator | None"


def integer(value: Any, name: str, low: int) -> int:
    """An integer of at least `low`; raises TypeError or ValueError by its name if it isn't one."""
    try:
        if isinstance(value, bool):
            raise TypeError
        result = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, found {shown(value)}") from None
    if result < low:
        raise ValueError(f"{name}: expected an integer of at least {low}, found {shown(result)}")
    return result


def generator(seed: Any) -> np.random.Generator:
    """The generator of a seed: itself, or a new one; None takes entropy from the system.

    Raises
    ------
    TypeError
        If `seed` is no integer, Generator or None.
    ValueError
        If it is negative.
    """
    if isinstance(seed, np.random.Generator):
        return seed
    if seed is None:
        return np.random.default_rng()
    try:
        return np.random.default_rng(integer(seed, "seed", 0))
    except TypeError:
        found = shown(seed)
        raise TypeError(
            f"seed: expected an integer, a numpy.random.Generator or None, found {found}"
        ) from None
