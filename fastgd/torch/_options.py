"""fastgd's options as the keywords of torch's optimizers: what there is, and what there isn't."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter
from typing import Any

from fastgd.core import options as _options
from fastgd.core import storage as _storage

# What may be given beside the hyper-parameters, and what it is if it isn't.
FIXED: dict[str, Any] = {
    "clip_by": "all",
    "nonfinite": "propagate",
    "zero_grads": False,
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

# fastgd's options that the tensors themselves take the place of.
ABSENT = {
    "grads": "a step takes each parameter's .grad",
    "copy_to": "master=True keeps a float32 master of parameters in 16 bits, which are its copy",
}


def refuse_absent(given: Mapping[str, Any]) -> None:
    """Raise TypeError for an option that fastgd has for arrays alone."""
    for name, why in ABSENT.items():
        if name in given:
            raise TypeError(f"{name}: is for fastgd's optimizers of arrays; here {why}")


class Options:
    """The options of one optimizer that stay as they are for its life, checked.

    Parameters
    ----------
    given : mapping
        Any of `FIXED`.
    optimizer : str
        The name of the class, for errors.
    """

    def __init__(self, given: Mapping[str, Any], optimizer: str) -> None:
        self.given = {name: given.get(name, FIXED[name]) for name in FIXED if name != "average"}
        _options.checked(self.given, optimizer)
        self.storage = _storage.checked(self.given)

    def reseed(self, seed: int) -> None:
        """Let rounding by chance follow from another seed."""
        self.given["seed"] = seed
        self.storage = self.storage._replace(seed=seed)

    def refuse_split(self) -> None:
        """Raise ValueError for what needs all parameters, where each process has some of them."""
        if self.given["zero_grads"]:
            raise ValueError(
                "zero_grads: expected False in a ZeroRedundancyOptimizer, where a step would leave "
                "the gradients of other processes' parameters as they are, found True; call "
                "zero_grad() of the ZeroRedundancyOptimizer"
            )

    def refuse_in_backward(self, groups: list[dict[str, Any]], averages: bool) -> None:
        """Raise ValueError for what needs all gradients at once, and not one after the other."""
        if averages:
            raise ValueError("average: expected none for steps in backward, which have no end")
        if self.given["nonfinite"] != "propagate":
            raise ValueError(
                'nonfinite: expected "propagate" for steps in backward, where others have stepped '
                f"before a gradient is found, found {self.given['nonfinite']!r}"
            )
        if self.given["clip_by"] != "tensor" and any(g["clip_norm"] is not None for g in groups):
            raise ValueError(
                'clip_norm: expected clip_by="tensor" for steps in backward, where the norm of '
                f"all is known too late, found {self.given['clip_by']!r}"
            )
