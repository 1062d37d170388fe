"""The optimizers, a module for each family: hyper-parameters, the rule's formula, coefficients.

Each ``family.py`` has a ``family.pxi``, what its rules do to one element, from which the build
makes the loops.  Nothing lists the families: each module in this folder is one.

Hyper-parameters and states go by torch.optim's names, with torch's defaults.  ``eps`` is added to
the square root, as torch does; ``eps_root`` inside it, as the papers of AdaGrad and RMSProp, Keras
and optax do; either may be 0.

Where a docstring says float, a schedule may be given instead, a callable from the step to the
value: `fastgd.schedules` has the usual ones.

Attributes
----------
OPTIMIZERS : mapping of type
    The classes by name, in the order of their papers' years.
GENERAL : mapping of type
    Those of them that step parameters of any shape, and not matrices or tables alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from pkgutil import iter_modules
from types import MappingProxyType

from fastgd.core.optimizer import Optimizer
from fastgd.core.variants import takes


def _classes() -> Iterator[type[Optimizer]]:
    """The optimizers that the modules of this folder define, without subclasses from elsewhere."""
    for module in iter_modules(__path__):
        family = import_module(f"{__name__}.{module.name}")
        for value in vars(family).values():
            own = isinstance(value, type) and value.__module__ == family.__name__
            if own and issubclass(value, Optimizer) and not value.__name__.startswith("_"):
                yield value


OPTIMIZERS: Mapping[str, type[Optimizer]] = MappingProxyType(
    {cls.__name__: cls for cls in sorted(_classes(), key=lambda cls: cls.year)}
)
GENERAL: Mapping[str, type[Optimizer]] = MappingProxyType(
    {
        name: cls
        for name, cls in OPTIMIZERS.items()
        if takes(cls, (), (3,), (4, 3)) and not cls.sparse
    }
)
__all__ = list(OPTIMIZERS)
globals().update(OPTIMIZERS)
