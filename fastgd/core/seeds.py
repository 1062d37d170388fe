"""Seeds: where `fastgd.init` and `fastgd.data` get their random numbers from."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from fastgd.core.domains import integer
from fastgd.kernels.memory.checks import shown

# A string, so that `import fastgd` need not load numpy.random.
Seed: TypeAlias = "int | np.random.Generator | None"


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
        return np.random.default_rng(integer(seed, "seed"))
    except TypeError:
        found = shown(seed)
        raise TypeError(
            f"seed: expected an integer, a numpy.random.Generator or None, found {found}"
        ) from None
