"""Shared by the adapters to other libraries: optimizers by name, and these libraries' ``eps``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt

from fastgd.core.names import hint
from fastgd.core.optimizer import Optimizer
from fastgd.kernels._engine import raised
from fastgd.optimizers import GENERAL


def names(known: Mapping[str, type[Optimizer]] = GENERAL) -> list[str]:
    """The names of optimizers, in lower case as in `fastgd.functional`: of those for vectors."""
    return [name.lower() for name in known]


def named(
    name: object, what: str, known: Mapping[str, type[Optimizer]] = GENERAL
) -> type[Optimizer]:
    """The optimizer of a name in lower case: unless said otherwise, one for vectors.

    Raises
    ------
    TypeError, ValueError
        If it isn't the name of an optimizer; the message begins with `what`.
    """
    if not isinstance(name, str):
        raise TypeError(f"{what}: expected the name of an optimizer, found {name!r}")
    for key, kind in known.items():
        if key.lower() == name:
            return kind
    every = names(known)
    raise ValueError(
        f"{what}: expected one of {', '.join(every)}, found {name!r}{hint(name, every)}"
    )


@dataclass(frozen=True)
class RawRootEps:
    r"""The schedule of Adam's ``eps`` for libraries that add it to the uncorrected root.

    scikit-learn, thinc and Keras compute
    :math:`\alpha \sqrt{c_2} / c_1 \cdot m / (\sqrt{v} + \epsilon)`, with
    :math:`c_i = 1 - \beta_i^t`, the efficient form at the end of section 2 of Kingma and Ba, 2015;
    torch and fastgd add ε to the corrected root.  With :math:`\epsilon / \sqrt{c_2}` for ε the two
    are the same.

    Parameters
    ----------
    eps : float
        ε.
    beta2 : float or callable
        β₂, or its schedule.

    Examples
    --------
    >>> RawRootEps(1e-8, 0.75)(0)
    2e-08
    """

    eps: float
    beta2: float | Callable[[int], float]

    def __call__(self, step: int) -> float:
        """ε of a step, counted from 0."""
        beta2 = self.beta2(step) if callable(self.beta2) else self.beta2
        return self.eps / sqrt(1.0 - raised(beta2, step + 1))
