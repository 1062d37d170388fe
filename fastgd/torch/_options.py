"""fastgd's options as keyword arguments of torch's optimizers."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter
from typing import Any

from fastgd.core import options as _options
from fastgd.core import storage as _storage
from fastgd.core.contract import Contract

# Keyword options and their defaults.
FIXED: dict[str, Any] = {
    "clip_by": "all",
    "layout": "out_in",
    "centralize": False,
    "nonfinite": "propagate",
    "zero_grads": False,
    "rows": "exact",
    "average": None,
    "state_dtype": None,
    "min_8bit_size": 4096,
    "master": False,
    "rounding": None,
    "seed": 0,
}
KEYWORDS = dict.fromkeys(_options.HYPER) | FIXED
PARAMETERS = [
    Parameter(name, Parameter.KEYWORD_ONLY, default=default) for name, default in KEYWORDS.items()
]

# fastgd's options for arrays alone, and what replaces them here.
ABSENT = {
    "grads": "a step takes each parameter's .grad",
    "copy_to": "master=True has a float32 master of 16-bit parameters, which are its copy",
}


def refuse_absent(given: Mapping[str, Any]) -> None:
    """Raise TypeError for an option that fastgd has for arrays alone."""
    for name, why in ABSENT.items():
        if name in given:
            raise TypeError(f"{name}: is for fastgd's optimizers of arrays; here {why}")


class Options:
    """The options of one optimizer that are fixed when it is made, validated.

    Parameters
    ----------
    given : mapping
        Any of `FIXED`.
    optimizer : str
        The name of the class, for errors.
    kind : type
        fastgd's class.
    """

    def __init__(self, given: Mapping[str, Any], optimizer: str, kind: type[Contract]) -> None:
        self.given = {name: given.get(name, FIXED[name]) for name in FIXED if name != "average"}
        _options.checked(self.given, optimizer)
        self.storage = _storage.checked({**self.given, "average": given.get("average")}, kind)

    def reseed(self, seed: int) -> None:
        """Set the seed of stochastic rounding."""
        self.given["seed"] = seed
        self.storage = self.storage._replace(seed=seed)

    def refuse_split(self) -> None:
        """Raise ValueError for options that need all parameters, where processes split them."""
        if self.given["zero_grads"]:
            raise ValueError(
                "zero_grads: ZeroRedundancyOptimizer excludes zero_grads=True: a step would leave "
                "the gradients of other processes' parameters as they are; call its zero_grad()"
            )

    def refuse_in_backward(self, groups: list[dict[str, Any]], averages: bool) -> None:
        """Raise ValueError for options that need all gradients at once."""
        if averages:
            raise ValueError("average: step_in_backward excludes an average: no step ends there")
        if self.given["nonfinite"] != "propagate":
            raise ValueError(
                'nonfinite: step_in_backward excludes all but "propagate": other parameters were '
                f"stepped before a gradient is seen, found {self.given['nonfinite']!r}"
            )
        if self.given["clip_by"] != "tensor" and any(g["clip_norm"] is not None for g in groups):
            raise ValueError(
                'clip_norm: step_in_backward excludes all but clip_by="tensor": the norm of all '
                f"is known too late, found {self.given['clip_by']!r}"
            )
