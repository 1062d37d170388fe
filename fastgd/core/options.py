"""The options of every optimizer: clipping, skipping, averaging, copying, zeroing, storage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypedDict

from numpy.typing import NDArray

from fastgd.core import domains
from fastgd.core.names import hint
from fastgd.core.trees import Name, Path, Structure, flatten
from fastgd.kernels._engine import is_parameter
from fastgd.kernels.memory import checks
from fastgd.kernels.spec.units import LAYOUTS

if TYPE_CHECKING:
    from fastgd.core.ema import EMA

Array = NDArray[Any]


class Options(TypedDict, total=False):
    r"""The options that every optimizer takes by keyword, besides its hyper-parameters.

    Attributes
    ----------
    grads : array or nested lists and dicts of arrays
        Gradients in the form of the parameters, bound once; ``step()`` then reads these.
    clip_norm : float
        The maximum norm of the gradients (torch's ``max_norm``); larger ones are scaled down to it
        (Pascanu, Mikolov and Bengio, 2013).  A hyper-parameter: it may differ between groups,
        change, be a schedule.  None doesn't clip.
    clip_by : {"all", "group", "tensor"}
        Whether the norm is that of all gradients (of all groups, also those that don't clip), of
        each group's, or of each gradient alone.
    clip_value : float
        The maximum absolute value of an element of the gradients.  A hyper-parameter as well.
        Applied after ``clip_norm`` if both are given, so that both bounds hold.  A schedule may
        take this bound or another to 0, where nothing is left of the gradients.
    clip_ratio : float
        The maximum norm of each unit of the gradients, as a multiple of the norm of the unit's
        parameters: adaptive gradient clipping.  A hyper-parameter as well; see Notes.
    centralize : bool
        Subtract from each unit of the gradients its mean: gradient centralization.  See Notes.
    layout : {"out_in", "in_out"}
        Where the outputs are in parameters of two or more axes, which are the units of the two
        options above: the first axis, as torch has them, or the last, as in ``x @ W``.  These are
        the words of `fastgd.init`, whose weights are ``"in_out"`` by default.
    nonfinite : {"propagate", "skip", "raise"}
        What to do if gradients hold an infinity or NaN: use them; leave parameters, states,
        step counts and averages as they are and count the step in ``skipped``; or leave all as it
        is and raise FloatingPointError.
    average : float or EMA
        Average the weights after each step with this decay, or in this `fastgd.averages.EMA`.
    copy_to : array or nested lists and dicts of arrays
        float32, bfloat16 or float16 arrays in the form of the parameters, to which each step copies
        them.  Excludes ``master=True``.
    zero_grads : bool
        Zero the gradients' arrays in the sweep that reads them; also if the step is skipped.
    rows : {"exact", "lazy", "catch_up"}
        What gradients by rows (`fastgd.Rows`) may leave undone.  "exact": nothing; a step raises
        ValueError where rows without a gradient would move, by momentum or decay.  "lazy": these
        wait for their next gradient, and decay acts on the rows that have one.  "catch_up": what a
        row misses is made up for before its next gradient, and by ``opt.catch_up()``, of all rows
        or of those that are about to be looked up, where that has a closed form; a count of steps
        for each row is kept, and hyper-parameters have to be numbers; see ``docs/rows.md``.
    state_dtype : {"float32", "float64", "bfloat16", "float16", "8bit"} or dict by state
        How states are stored; by default in the compute dtype, float64 for float64 parameters, else
        float32.  States in fewer bits are rounded stochastically, so that small changes add up.
        "8bit" is one byte for each element and one for each 256, among which gradients may differ
        by 10⁹ times; see ``docs/formats.md``.
    master : {False, True, "split"}
        For parameters of 16 bits: keep a float32 master in the state, of which they are a copy,
        rounded to nearest; or, for bfloat16, only the remainder, the master's lower 16 bits.
    rounding : {"nearest", "stochastic"}
        Without a master, how updated parameters of 16 bits are rounded.
    min_8bit_size : int
        The states of parameters with fewer elements are stored in the compute dtype.
    seed : int
        The seed of stochastic rounding, which depends on it, the step and the element alone.

    Notes
    -----
    A gradient is centralized, scaled by ``grad_scale``, ``clip_norm`` and ``clip_ratio``, clipped
    by ``clip_value``, and then only has L2 decay added: all of these are about the gradient of the
    loss itself.

    A unit is all that leads to one output.  With ``layout="out_in"`` the parameters' axes are
    ``(out, in)`` or ``(out, in, height, width)``, and units run along the first; with
    ``layout="in_out"`` they are ``(in, out)`` or ``(height, width, in, out)``, and units run along
    the last.  The order of memory doesn't matter.  With the wrong layout units are inputs, which is
    something else.  Parameters of fewer than two axes are one unit each.

    ``clip_ratio`` = λ multiplies unit i of a gradient, :math:`G_i`, whose parameters are
    :math:`W_i`, by

    .. math::
        \min\left(1, \; \lambda \, \frac{\max(\|W_i\|, 10^{-3})}{\|G_i\|}\right)

    The paper clips by 0.01, and everything but a classifier's last layer: put that into a group
    without.  Norms are measured in double precision, that of parameters as they are before the step
    (of their master, if they have one), that of gradients after ``grad_scale`` and ``clip_norm``.
    NaN and infinity spread in their unit.  timm's ``adaptive_clip_grad`` does the same with
    ``"out_in"``, optax's ``adaptive_grad_clip`` with ``"in_out"``, but for arrays of three axes and
    those with at most one axis longer than 1, which it takes otherwise.

    ``centralize`` makes :math:`G_i` of :math:`n` elements

    .. math:: G_i - \frac{1}{n} \sum_{j=1}^{n} G_{ij}

    in parameters of two or more axes, and leaves the others as they are.  Means are taken in double
    precision and rounded to what is computed with; norms to be clipped are those of what is left.
    What is left of units of one element is 0.  optax's ``centralize`` does the same with
    ``"out_in"``, whatever the layout of the weights; the authors' code adds L2 decay first, and so
    centralizes it as well.

    References
    ----------
    Brock, De, Smith and Simonyan, "High-performance large-scale image recognition without
    normalization", 2021, arXiv:2102.06171 (``clip_ratio``).
    Yong, Huang, Hua and Zhang, "Gradient centralization: a new optimization technique for deep
    neural networks", 2020, arXiv:2004.01461 (``centralize``).
    """

    grads: object
    clip_norm: domains.Scalar | None
    clip_by: str
    clip_value: domains.Scalar | None
    clip_ratio: domains.Scalar | None
    centralize: bool
    layout: str
    nonfinite: str
    average: float | EMA | None
    copy_to: object
    zero_grads: bool
    rows: str
    state_dtype: str | Mapping[str, str] | None
    master: bool | str
    rounding: str | None
    min_8bit_size: int
    seed: int


# The options that are hyper-parameters of groups.
HYPER: dict[str, domains.Domain] = {
    "clip_norm": domains.limit,
    "clip_value": domains.limit,
    "clip_ratio": domains.limit,
}

CLIP_BY = ("all", "group", "tensor")
NONFINITE = ("propagate", "skip", "raise")
ROWS = ("exact", "lazy", "catch_up")


def checked(
    given: Mapping[str, Any], optimizer: str, hypers: Iterable[str] = ()
) -> Mapping[str, Any]:
    """Validate the options that are fixed when an optimizer is made, but for arrays and storage."""
    for key in given:
        if key not in Options.__annotations__:
            every = list(hypers)
            raise TypeError(
                f"{optimizer}: got an unexpected keyword argument {key!r}; its hyper-parameters "
                f"are {', '.join(every)}, its options {', '.join(Options.__annotations__)}"
                f"{hint(key, [*every, *Options.__annotations__])}"
            )
    return MappingProxyType(
        {
            "clip_by": domains.one_of(CLIP_BY, given.get("clip_by", "all"), "clip_by"),
            "layout": domains.one_of(LAYOUTS, given.get("layout", "out_in"), "layout"),
            "centralize": domains.flag(given.get("centralize", False), "centralize"),
            "nonfinite": domains.one_of(
                NONFINITE, given.get("nonfinite", "propagate"), "nonfinite"
            ),
            "zero_grads": domains.flag(given.get("zero_grads", False), "zero_grads"),
            "rows": domains.one_of(ROWS, given.get("rows", "exact"), "rows"),
        }
    )


def as_average(value: object, params: Mapping[Name, Array]) -> EMA | None:
    """The `EMA` over an optimizer's parameters for its option ``average``, None for none."""
    if value is None:
        return None
    from fastgd.core.ema import EMA

    if not isinstance(value, EMA):
        return EMA(params, domains.fraction(value, "average"))
    value.refuse_others(list(params.values()))
    return value


def _is_copy(a: Any, p: Array) -> bool:
    """Whether an object is at a glance what `checks.check_copy` wants."""
    return (
        is_parameter(a)
        and a.itemsize <= 4
        and a.shape == p.shape
        and (a.flags.c_contiguous if p.flags.c_contiguous else a.flags.f_contiguous)
    )


def as_copies(
    value: object, structure: Structure, params: Sequence[Array], paths: Sequence[Path]
) -> list[Array]:
    """The arrays of the option ``copy_to`` in the order of the parameters, validated."""
    found, leaves = flatten(value, name="copy_to")
    if found != structure:
        raise ValueError("copy_to: expected the same lists and dicts as in params")
    return [
        leaf if _is_copy(leaf, p) else checks.check_copy(leaf, p, f"copy_to{checks.label(path)}")
        for (_, leaf), p, path in zip(leaves, params, paths, strict=True)
    ]
