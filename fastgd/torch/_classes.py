"""The classes of `fastgd.torch`: each optimizer of fastgd, with torch's signature if it has one."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from fastgd import Optimizer as FastgdOptimizer
from fastgd.core.options import HYPER
from fastgd.optimizers import OPTIMIZERS
from fastgd.torch._iterates import MODE
from fastgd.torch._optimizer import HOW, Optimizer
from fastgd.torch._options import FIXED, PARAMETERS, refuse_absent


def keys_of(kind: type[FastgdOptimizer]) -> tuple[str, ...]:
    """The names of an optimizer's hyper-parameters."""
    return (*kind.hypers, *HYPER)


def signature(kind: type[FastgdOptimizer]) -> inspect.Signature:
    """The signature of torch's class of the same name, followed by fastgd's further options."""
    theirs = getattr(torch.optim, kind.__name__, None)
    if theirs is None:
        self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = {"self": self, **inspect.signature(kind).parameters}
    else:
        parameters = dict(inspect.signature(theirs.__init__).parameters)
        for one in kind.parameters(keyword=True):
            parameters.setdefault(one.name, one)
    parameters.pop("options", None)
    parameters |= {parameter.name: parameter for parameter in PARAMETERS}
    return inspect.Signature(list(parameters.values()))


def ways(kind: type[FastgdOptimizer]) -> dict[str, tuple[tuple[Any, ...], str]]:
    """torch's options that fastgd lacks: by name, the accepted values, and why no others are.

    Of an option that is not in `HOW`, only the default is accepted.
    """
    unknown = "fastgd's optimizer has no such option"
    known = {
        name: HOW.get(name, ((parameter.default,), unknown))
        for name, parameter in signature(kind).parameters.items()
        if name not in ("self", "params", *keys_of(kind), *FIXED)
    }
    if "decoupled_weight_decay" in known or kind.decoupled:
        known["decoupled_weight_decay"] = (kind.decoupled,), "Adam and AdamW differ in just that"
    if kind.averages():
        known[MODE] = (True, False), "parameters are either trained or evaluated"
    return known


class ScheduleFree(Optimizer):
    """What the classes have whose parameters are not what is to be evaluated."""

    def eval(self) -> None:
        """Change the parameters to the averages, which were learned, up to rounding.

        Steps are refused until `train`; state dicts say in which of the two modes they were made.
        ``opt.average.swapped()`` does so for the time of a block, and restores every bit.

        Raises
        ------
        RuntimeError
            Within ``opt.average.swapped()``, and in a ZeroRedundancyOptimizer.
        """
        self._iterates.switch(train=False)  # type: ignore[union-attr]

    def train(self) -> None:
        """Change the parameters back to where gradients are to be taken, as they are at first."""
        self._iterates.switch(train=True)  # type: ignore[union-attr]


def make(kind: type[FastgdOptimizer], module: str) -> type[Optimizer]:
    """The subclass of torch's Optimizer that steps with one of fastgd's."""
    called = signature(kind)
    keys = keys_of(kind)
    options = [name for name in called.parameters if name not in ("self", "params", *keys)]
    known = f"its hyper-parameters are {', '.join(keys)}, its options {', '.join(options)}"

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        refuse_absent(kwargs)
        try:
            bound = called.bind(self, *args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{kind.__name__}: {error}; {known}") from None
        bound.apply_defaults()
        options = dict(bound.arguments)
        del options["self"]
        params = options.pop("params")
        fixed = {name: options.pop(name) for name in FIXED}
        # torch's AdamW is an Adam, and the two tell each other's state dicts apart by this.
        if kind.decoupled:
            options["decoupled_weight_decay"] = True
        if kind.averages():
            options[MODE] = True
        Optimizer.__init__(self, params, options, fixed)

    init.__signature__ = called  # type: ignore[attr-defined]
    init.__name__, init.__qualname__ = "__init__", f"{kind.__name__}.__init__"
    init.__doc__ = f"Take the arguments of `{kind.__name__}`."
    return type(
        kind.__name__,
        (ScheduleFree if kind.averages() else Optimizer,),
        {
            "__init__": init,
            "__doc__": describe(kind),
            "__module__": module,
            "kind": kind,
            "keys": keys,
            "allowed": ways(kind),
        },
    )


def describe(kind: type[FastgdOptimizer]) -> str:
    """The docstring of a class: its summary, and where to find the rest."""
    theirs = getattr(torch.optim, kind.__name__, None)
    summary = (kind.__doc__ or "").partition("\n")[0]
    called = f"`torch.optim.{kind.__name__}`" if theirs else f"`fastgd.{kind.__name__}`"
    options = [key for key in signature(kind).parameters if key in keys_of(kind)]
    options = [key for key in options if key not in HYPER]
    further = [key for key in options if theirs and key not in inspect.signature(theirs).parameters]
    also = f"  By keyword there is {', '.join(f'``{key}``' for key in further)}, too." * bool(
        further
    )
    return (
        f"{summary}\n\nCalled as {called} is.{also}\nThe formula, its paper and what the "
        f"hyper-parameters are: `fastgd.{kind.__name__}`.  The options that all have: "
        "`fastgd.torch`.\n"
    )


CLASSES: dict[str, type[Optimizer]] = {
    name: make(kind, "fastgd.torch") for name, kind in OPTIMIZERS.items()
}
