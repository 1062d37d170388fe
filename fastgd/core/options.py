"""What a step does beside its update: clipping, skipping, averaging, copying, zeroing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypedDict

from numpy.typing import NDArray

from fastgd.core import domains
from fastgd.core.trees import Name, Path, Structure, flatten
from fastgd.kernels.memory import checks

if TYPE_CHECKING:
    from fastgd.core.ema import EMA

Array = NDArray[Any]


class Options(TypedDict, total=False):
    r"""What every optimizer takes by keyword, beside its hyper-parameters.

    Attributes
    ----------
    grads : array or nested lists and dicts of arrays
        Gradients in the form of the parameters, bound once; ``step()`` then reads these.
    clip_norm : float
        The most that the gradients' norm may be; larger ones are scaled down to it (Pascanu,
        Mikolov and Bengio, 2013).  A hyper-parameter: it may differ between groups, change, be a
        schedule.  None doesn't clip.
    clip_by : {"all", "group", "tensor"}
        Whether the norm is that of all gradients (of all groups, also those that don't clip), of
        each group's, or of each gradient alone.
    clip_value : float
        The most that an element of the gradients may be, either way.  A hyper-parameter as well.
        Comes after ``clip_norm`` if both are given, so that both bounds hold.
    clip_ratio : float
        The most that the norm of each unit of the gradients may be, as a multiple of the norm of
        its parameters: adaptive gradient clipping.  A hyper-parameter as well; see Notes.
    nonfinite : {"propagate", "skip", "raise"}
        What to do with gradients that hold an infinity or NaN: use them; leave parameters, states,
        step counts and averages as they are and count the step in ``skipped``; or leave all as it
        is and raise FloatingPointError.
    average : float or EMA
        Average the weights after each step with this decay, or in this `fastgd.averages.EMA`.
    copy_to : array or nested lists and dicts of arrays
        float32 or bfloat16 arrays in the form of the parameters, to which each step copies them.
    zero_grads : bool
        Zero the gradients' arrays in the sweep that reads them; also if the step is skipped.
    state_dtype : {"float32", "float64", "bfloat16", "float16", "8bit"} or dict by state
        How states are kept; by default in the type that is computed with, float64 for float64
        parameters, else float32.  What is kept in fewer bits is rounded up or down by chance, so
        that small changes add up.  "8bit" is one byte for each element and one for each 256; see
        ``docs/formats.md``.
    master : {False, True, "split"}
        For parameters of 16 bits: keep a float32 master in the state, of which they are the nearest
        copy; or, for bfloat16, only its lower half beside them.
    rounding : {"nearest", "stochastic"}
        Without a master, how updated parameters of 16 bits are rounded.
    min_8bit_size : int
        Parameters with fewer elements keep the states as they are computed with.
    seed : int
        Of rounding by chance, which follows from it, the step and the element alone.

    Notes
    -----
    ``clip_ratio`` = λ scales the unit :math:`G_i` of a gradient, its parameters being
    :math:`W_i`, by

    .. math::
        \min\left(1, \; \lambda \, \frac{\max(\|W_i\|, 10^{-3})}{\|G_i\|}\right)

    Units are the rows along the first axis of arrays of two or more dimensions, ``(n_out, n_in)``
    or ``(n_out, n_in, height, width)`` as PyTorch keeps weights: all that leads to one output.
    Arrays of less are a unit each.  Weights kept as ``(n_in, n_out)`` are clipped by inputs then,
    which is something else.  Rows have to be pieces of memory, as in C order.

    The paper clips by 0.01, and everything but a classifier's last layer: put that into a group
    without.  Norms are measured in double precision, that of parameters as they are before the step
    (of their master, if they have one), that of gradients after ``grad_scale`` and ``clip_norm``
    and before ``clip_value`` and L2 decay: λ bounds the gradient that the loss has.  What isn't
    finite spreads in its unit.

    References
    ----------
    Brock, De, Smith and Simonyan, "High-performance large-scale image recognition without
    normalization", 2021, arXiv:2102.06171 (``clip_ratio``).
    """

    grads: object
    clip_norm: domains.Scalar | None
    clip_by: str
    clip_value: domains.Scalar | None
    clip_ratio: domains.Scalar | None
    nonfinite: str
    average: float | EMA | None
    copy_to: object
    zero_grads: bool
    state_dtype: str | Mapping[str, str] | None
    master: bool | str
    rounding: str | None
    min_8bit_size: int
    seed: int


# Those that are hyper-parameters of groups.
HYPER: dict[str, domains.Domain] = {
    "clip_norm": domains.limit,
    "clip_value": domains.limit,
    "clip_ratio": domains.limit,
}

CLIP_BY = ("all", "group", "tensor")
NONFINITE = ("propagate", "skip", "raise")


def checked(given: Mapping[str, Any], optimizer: str) -> Mapping[str, Any]:
    """The options that stay as they are for an optimizer's life, without arrays."""
    for key in given:
        if key not in Options.__annotations__:
            raise TypeError(
                f"{optimizer}: got an unexpected keyword argument {key!r}; beside its "
                f"hyper-parameters there are {', '.join(Options.__annotations__)}"
            )
    return MappingProxyType(
        {
            "clip_by": domains.one_of(CLIP_BY, given.get("clip_by", "all"), "clip_by"),
            "nonfinite": domains.one_of(
                NONFINITE, given.get("nonfinite", "propagate"), "nonfinite"
            ),
            "zero_grads": domains.flag(given.get("zero_grads", False), "zero_grads"),
        }
    )


def as_average(value: object, params: Mapping[Name, Array]) -> EMA | None:
    """The `EMA` over an optimizer's parameters that its ``average`` asks for."""
    if value is None:
        return None
    from fastgd.core.ema import EMA

    if not isinstance(value, EMA):
        return EMA(params, domains.fraction(value, "average"))
    value.refuse_others(list(params.values()))
    return value


def as_copies(
    value: object, structure: Structure, params: Sequence[Array], paths: Sequence[Path]
) -> list[Array]:
    """The arrays to copy parameters to, in order, with the parameters' values."""
    found, leaves = flatten(value)
    if found != structure:
        raise ValueError("copy_to: expected the same lists and dicts as in params")
    return [
        checks.check_copy(leaf, p, f"copy_to{checks.label(path)}")
        for (_, leaf), p, path in zip(leaves, params, paths, strict=True)
    ]
