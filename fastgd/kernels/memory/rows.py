"""Gradients by rows: the few rows of a table that a step changes, and what an array of them is."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastgd.kernels.memory import checks
from fastgd.kernels.spec.catch_up import KNOWN as CATCH_UP
from fastgd.kernels.spec.catch_up import LINEAR
from fastgd.kernels.spec.registry import Rule
from fastgd.kernels.spec.sizes import TILE

Array = NDArray[Any]


class Rows:
    """The gradient of a table that is 0 but for some of its rows.

    It stands in the place of an array wherever a step takes gradients, for a parameter of two or
    more axes in C order, whose rows are the entries along its first axis.  The step reads and
    writes only these rows of parameter and states; see `fastgd.Options` (``rows``) for what that
    means to optimizers with momentum or decay.

    Parameters
    ----------
    indices : array of int32 or int64, shape (k,)
        The rows, from 0, in any order.  One may stand there several times: the values for it are
        added up in their order, in the dtype that the parameter is computed with.
    values : array of floats, shape (k, ...)
        The gradient of each, in the shape of the parameter's rows, of any dtype that gradients may
        have.

    Attributes
    ----------
    indices : ndarray of int32 or int64, shape (k,)
    values : ndarray, shape (k, ...)
        The same memory as was given, where that is contiguous; else a copy.

    Raises
    ------
    TypeError
        If either is no array, or of another dtype.
    ValueError
        If there are not as many values as indices, or axes are missing.

    Notes
    -----
    Only the attributes are fixed.  Whoever writes into the arrays changes the gradient.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> table = np.zeros((5, 2))
    >>> opt = fastgd.SGD(table, lr=1.0)
    >>> values = np.array([[1.0, 2.0], [5.0, 5.0], [1.0, 1.0]])
    >>> _ = opt.step(fastgd.Rows(np.array([3, 0, 3]), values))
    >>> table[[0, 3]]
    array([[-5., -5.],
           [-2., -3.]])
    """

    __slots__ = ("copied", "indices", "values")
    indices: Array
    values: Array
    copied: bool  # whether `values` are a copy of what was given

    def __init__(self, indices: ArrayLike, values: ArrayLike) -> None:
        given = checks.as_array(values, "values")
        own = checks.as_floats(given, "values")
        # Views, which stay as they are whatever is done to the arrays' dtype and shape.
        object.__setattr__(self, "indices", _as_indices(indices, "indices").view())
        object.__setattr__(self, "values", own.view())
        object.__setattr__(self, "copied", bool(own.size) and not np.may_share_memory(own, given))
        if self.values.ndim < 2 or len(self.values) != len(self.indices):
            raise ValueError(
                f"values: expected shape ({len(self.indices)}, …), a row for each index, found "
                f"{self.values.shape}"
            )

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        return f"Rows({len(self)} of {self.values.dtype}, shape {self.values.shape[1:]})"

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name}: the arrays of Rows are fixed; make others")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name}: the arrays of Rows are fixed; make others")

    def __reduce__(self) -> tuple[type[Rows], tuple[Array, Array]]:
        return Rows, (self.indices, self.values)


def _as_indices(obj: object, name: str) -> Array:
    """Indices as int32 or int64, native, aligned and contiguous; a copy if need be."""
    a = checks.as_array(_as_given(obj, name, "one axis of integers"), name, "np.int64")
    if a.ndim != 1:
        raise ValueError(f"{name}: expected one axis, found shape {a.shape}")
    kind = a.dtype.newbyteorder("=")
    if kind.kind not in "iu" or not np.can_cast(kind, np.int64):
        raise TypeError(f"{name}: expected dtype int32 or int64, found {a.dtype}")
    return np.require(a, np.int32 if np.can_cast(kind, np.int32) else np.int64, ["C", "A"])


def _as_given(obj: object, name: str, expected: str) -> object:
    """What was given, or the array of a list."""
    if not isinstance(obj, (list, tuple)):
        return obj
    try:
        return np.asarray(obj, None if obj else np.int64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected {expected} ({error})") from None


def rows_to_catch_up(given: object, name: str) -> Rows | Array:
    """Rows, or indices of any shape as an array of one axis, which has those of `Rows`."""
    if isinstance(given, Rows):
        return given
    given = _as_given(given, name, "integers in any shape")
    return _as_indices(checks.as_array(given, name, "np.int64").reshape(-1), name)


def check_catching_up(
    rows: Rows | Array, shape: tuple[int, ...], in_order: bool, rule: Rule, name: str
) -> None:
    """Refuse rows of a parameter whose rows can't be made up for, but for what indices are.

    Arguments are as for `check_rows`; `rule` is the parameter's.
    """
    if isinstance(rows, Rows):
        check_rows(rows, shape, in_order, name)
    else:
        _check_has_rows(shape, name)
    why = None if in_order else "the parameter is not in C order"
    if rule.catch_up not in CATCH_UP:
        why = f"rule {rule.name} {rule.catch_up}"
    if why is not None:
        raise ValueError(f"{name}: expected None, as rows cannot catch up: {why}; found some")


def check_indices(indices: Rows | Array, shape: tuple[int, ...], name: str) -> None:
    """Refuse indices of rows that a parameter doesn't have, where it isn't stepped."""
    _check_has_rows(shape, name)
    own = indices.indices if isinstance(indices, Rows) else indices
    wrong = np.flatnonzero((own < 0) | (own >= shape[0]))
    if len(wrong):
        refuse_index(own, int(wrong[0]), shape[0], name)


def _check_has_rows(shape: tuple[int, ...], name: str) -> None:
    if len(shape) < 2:
        raise ValueError(
            f"{name}: expected None, as its parameter of shape {shape} has no rows, found indices"
        )


def check_rows(rows: Rows, shape: tuple[int, ...], in_order: bool, name: str) -> None:
    """Refuse rows that can't be those of a parameter, but for what their indices are."""
    i, v = rows.indices, rows.values
    if not (i.ndim == 1 and i.dtype in (np.int32, np.int64) and len(v) == len(i) and v.ndim > 1):
        raise ValueError(f"{name}: expected Rows as they were made, found others in their arrays")
    checks.check_floats(v, f"{name}.values")
    if len(shape) < 2:
        raise ValueError(
            f"{name}: expected an array, as its parameter of shape {shape} has no rows, found Rows"
        )
    if not in_order:
        raise ValueError(f"{name}: expected a parameter in C order, of which Rows are whole pieces")
    if rows.values.shape[1:] != shape[1:]:
        expected = ", ".join(map(str, (len(rows), *shape[1:])))
        raise ValueError(
            f"{name}: expected values of shape ({expected}), rows of a parameter of shape {shape}, "
            f"found {rows.values.shape}"
        )


def check_zeroable(rows: Rows, name: str) -> None:
    """Refuse values that zero_grads can't zero where they came from."""
    if rows.copied:
        raise ValueError(
            f"{name}: expected contiguous values, which zero_grads zeroes, found a copy of others"
        )


def refuse_index(indices: Array, position: int, n: int, name: str) -> None:
    """Say which index is not that of one of a parameter's `n` rows."""
    raise ValueError(
        f"{name}: expected indices from 0 to below {n}, found {indices[position]} at "
        f"position {position}"
    )


def refuse_nonfinite(rows: Rows, name: str) -> None:
    """Say where values aren't finite, or that their sums aren't."""
    checks.refuse_nonfinite(rows.values, f"{name}.values")
    raise FloatingPointError(f"{name}: expected finite gradients, found rows whose sum is not")


def check_start(p: Array, name: str) -> None:
    """Refuse rows as a first gradient where the rule makes states of all of the parameter then."""
    if p.any():
        raise ValueError(
            f"{name}: expected a parameter that starts from 0, or an array as its first gradient, "
            "as its rule makes states of the parameter at the first step, found Rows"
        )


def refuse_units(name: str, centralized: bool) -> None:
    """Refuse a gradient by rows where the step wants means or norms of units that rows are not."""
    why = (
        "centralize takes means of whole gradients"
        if centralized
        else (
            'clip_ratio takes norms of columns with layout="in_out"; with "out_in" they are of rows'
        )
    )
    raise ValueError(f"{name}: expected an array, as {why}, found Rows")


def refuse_tiles(name: str) -> None:
    """Refuse rows that begin or end amid what shares a scale."""
    raise ValueError(
        f"{name}: expected rows of a multiple of {TILE} elements, as so many share a scale of the "
        "states in 8 bits; keep these in another state_dtype"
    )


def check_catch_up(rule: Rule, name: str, why: str | None, clips_rows: bool) -> None:
    """Refuse a gradient by rows where what the others miss has no closed form.

    Parameters
    ----------
    rule : Rule
        The parameter's.
    name : str
        What to call the gradient in an error.
    why : str or None
        Why steps by the hyper-parameters of the moment have none.
    clips_rows : bool
        Whether norms of rows are clipped.
    """
    if rule.catch_up not in CATCH_UP:
        why = f"rule {rule.name} {rule.catch_up}"
    elif why is None and clips_rows:
        why = "clip_ratio takes norms of rows that have not caught up yet"
    if why is not None:
        raise ValueError(
            f'{name}: expected an array, as rows cannot catch up (rows="catch_up"): {why}; found '
            "Rows"
        )


def check_rule(
    rule: Rule,
    name: str,
    lazy: bool,
    sparse: bool,
    decays: bool,
    by_l2: bool,
    averaged: bool,
    whole_tiles: bool,
) -> None:
    """Refuse a gradient by rows where the step needs all of its parameter, or all rows.

    Parameters
    ----------
    rule : Rule
        The parameter's.
    name : str
        What to call the gradient in an error.
    lazy : bool
        Whether what happens to rows without a gradient may be left undone,
    sparse : bool
        or at least what the rule does.
    decays : bool
        Whether the step decays weights,
    by_l2 : bool
        and does so by what it adds to gradients.
    averaged : bool
        Whether there is an average of the parameter.
    whole_tiles : bool
        Whether rows begin and end where the scales of codes do.
    """
    if rule.by_rows not in ("exact", "lazy"):
        raise ValueError(
            f"{name}: expected an array, as rule {rule.name} {rule.by_rows}, found Rows"
        )
    if averaged:
        raise ValueError(
            f"{name}: expected an array, as an average of the weights goes on in all rows at every "
            "step, found Rows"
        )
    if not whole_tiles:
        refuse_tiles(name)
    stands_still = sparse or rule.by_rows == "exact"
    if lazy or (stands_still and not decays):
        return
    why = "weight_decay acts" if stands_still else f"rule {rule.name} changes states"
    can = rule.catch_up == LINEAR or (rule.catch_up in CATCH_UP and not by_l2)
    otherwise = 'rows="catch_up", if they are to make up for it then, ' if can else ""
    raise ValueError(
        f"{name}: {why} on rows without a gradient, too, which Rows leave alone; say "
        'rows="lazy" when you make the optimizer, if they are to wait for their next gradient, '
        f"{otherwise}or give the whole gradient as an array"
    )
