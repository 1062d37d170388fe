"""What the ranks must have alike: the parameters' tree, its groups, and the optimizer's options."""

from __future__ import annotations

import zlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastgd.core.optimizer import Optimizer
from fastgd.core.storage import Piece
from fastgd.core.trees import Name, Path, Structure, flatten, name_of, unflatten
from fastgd.kernels.memory import buffers, checks
from fastgd.kernels.memory.checks import shown
from fastgd.kernels.memory.rows import Rows
from fastgd.kernels.spec.coded_array import as_coded
from fastgd.optimizers import OPTIMIZERS

Array = NDArray[Any]

# Options that are for the whole of a parameter; what becomes of them here.
REFUSED = {
    "copy_to": "expected none, as each rank updates only its shard; copy after the step",
    "clip_ratio": "expected None, as each rank has only parts of the units that it is about",
    "centralize": "expected False, as each rank has only parts of the units that it is about",
    "layout": "expected none, as it says what is a unit, and no option is about units here",
}


class Parameters(NamedTuple):
    """All parameters of a tree or of groups, whole."""

    structure: Structure
    paths: list[Path]
    arrays: list[Array]
    groups: list[Mapping[str, Any]] | None  # as given, or None for a plain tree
    spans: list[tuple[int, int, str]]  # the memory of each, from and to, and its name, sorted
    borrowed: list[Any]  # what keeps memory that others own from going away

    @property
    def labels(self) -> list[str]:
        """What to call each in an error, after ``params`` or ``grads``."""
        return [checks.label(path) for path in self.paths]

    @property
    def names(self) -> list[Name]:
        """What each is called."""
        return [name_of(path) for path in self.paths]

    def with_arrays(self, arrays: Sequence[Array | Piece]) -> Any:
        """What an optimizer takes for these parameters, with other arrays in their places."""
        tree = unflatten(self.structure, iter(arrays))
        if self.groups is None:
            return tree
        return [{**g, "params": part} for g, part in zip(self.groups, tree, strict=True)]

    def lines(self) -> list[str]:
        """What has to be alike on all ranks, a line for each parameter."""
        return [
            f"params{label}: {p.dtype} of shape {p.shape} in {as_coded(p).order} order"
            for label, p in zip(self.labels, self.arrays, strict=True)
        ]


def read(params: object) -> Parameters:
    """Check parameters as an optimizer does.

    Raises
    ------
    TypeError, ValueError
        If one is not usable.
    """
    if isinstance(params, Iterator):
        params = list(params)
    groups = None
    tree: Any = params
    if isinstance(params, (list, tuple)) and any(
        isinstance(entry, Mapping) and "params" in entry for entry in params
    ):
        groups = list(params)
        for k, group in enumerate(groups):
            if not isinstance(group, Mapping) or "params" not in group:
                found = shown(group)
                raise TypeError(
                    f"params[{k}]: expected a group, a dict with 'params', found {found}"
                )
        tree = [group["params"] for group in groups]
    structure, leaves = flatten(tree)
    if not leaves:
        raise ValueError("params: expected at least one parameter, found none")
    paths = [path for path, _ in leaves]
    arrays = [
        checks.check_parameter(leaf, f"params{checks.label(path)}", checks.ANY)
        for path, leaf in leaves
    ]
    spans = checks.check_disjoint(
        [(a, f"params{checks.label(path)}") for a, path in zip(arrays, paths, strict=True)]
    )
    borrowed = [buffers.lent(a) for a in arrays if a.base is not None]
    return Parameters(structure, paths, arrays, groups, spans, borrowed)


def read_grads(
    params: Parameters, grads: object, zero: bool, steps: bool = True
) -> list[Array | None]:
    """The gradients in the order of the parameters, None where there is none, checked.

    They may be in the memory of parameters where they are not for a step, which writes these.

    Raises
    ------
    TypeError, ValueError
        If they don't fit.
    """
    leaves = list(_walk(params.structure, grads, (params.structure, grads)))
    for g, label in zip(leaves, params.labels, strict=True):
        if isinstance(g, Rows):
            raise TypeError(
                f"grads{label}: expected an array, found Rows, amid which shards may be cut; give "
                "the table to an optimizer of each rank's own, and it the rows that "
                "fastgd.mpi.gather_rows returns"
            )
    held = [
        None if g is None else checks.as_gradient(g, p, f"grads{label}")
        for g, p, label in zip(leaves, params.arrays, params.labels, strict=True)
    ]
    if steps:
        _refuse_shared(params, held)
    for p, label in zip(params.arrays, params.labels, strict=True):
        if not p.flags.writeable:
            raise ValueError(f"params{label}: was made read-only after the optimizer was made")
    if zero:
        written = [(p, f"params{s}") for p, s in zip(params.arrays, params.labels, strict=True)]
        for g, label in zip(held, params.labels, strict=True):
            if g is None:
                continue
            if not g.flags.writeable:
                raise ValueError(
                    f"grads{label}: expected a writeable array, which zero_grads zeroes, found a "
                    "read-only one"
                )
            written.append((g, f"grads{label}"))
        checks.check_disjoint(written)
    return held


def _refuse_shared(params: Parameters, grads: Sequence[Array | None]) -> None:
    """Refuse a gradient in the memory of a parameter, as `Plan.step` does."""
    starts = [start for start, _, _ in params.spans]
    for g, label in zip(grads, params.labels, strict=True):
        if g is None or not g.nbytes:
            continue
        start = g.ctypes.data
        k = bisect_left(starts, start + g.nbytes) - 1  # the last that begins before its end
        if k >= 0 and params.spans[k][1] > start:
            raise ValueError(
                f"grads{label}: shares memory with {params.spans[k][2]}, which the step writes; "
                "pass a gradient in memory of its own"
            )


def refuse_nonfinite(g: Array, name: str) -> None:
    """Raise FloatingPointError if a gradient isn't finite; says where.

    Without, return.
    """
    stored = as_coded(g)
    values = stored.load(np.float64).reshape(g.shape, order=stored.order)
    if not np.isfinite(values).all():
        checks.refuse_nonfinite(values, name)


def _walk(structure: Structure, grads: Any, whole: tuple[Structure, object]) -> Iterator[Any]:
    if isinstance(structure, dict):
        if not isinstance(grads, Mapping) or set(grads) != set(structure):
            checks.refuse_structure(*whole)
        for key, inner in structure.items():
            yield from _walk(inner, grads[key], whole)
    elif isinstance(structure, list):
        if not isinstance(grads, (list, tuple)) or len(grads) != len(structure):
            checks.refuse_structure(*whole)
        for k, inner in enumerate(structure):
            yield from _walk(inner, grads[k], whole)
    else:
        yield grads


def option_lines(kind: type[Optimizer], options: Mapping[str, Any]) -> list[str]:
    """An optimizer's class and options, less what can't be compared in words."""
    ours = OPTIMIZERS.get(kind.__name__) is kind
    name = kind.__name__ if ours else f"{kind.__module__}.{kind.__qualname__}"
    return [f"optimizer: {name}"] + [
        f"{key}: {_written(value)}" for key, value in sorted(options.items())
    ]


def _written(value: Any) -> str:
    """A value in full, equal ones alike: 1 and 1.0, lists and tuples, dicts in any order."""
    if callable(value):
        return "a schedule"
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        return repr(int(value))
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(f'{k!r}: {_written(v)}' for k, v in value.items()))}}}"
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(_written, value))})"
    return repr(value)


def refuse_units(opt: Optimizer) -> None:
    """Raise ValueError if norms of units are to be clipped, which a rank may have parts of."""
    for k, group in enumerate(opt.param_groups):
        if group["clip_ratio"] is not None:
            label = f"param_groups[{k}]: " if len(opt.param_groups) > 1 else ""
            raise ValueError(f"{label}clip_ratio: {REFUSED['clip_ratio']}")


def step_lines(opt: Optimizer) -> list[str]:
    """The hyper-parameters that the next step of an optimizer uses, and its counts of steps."""
    lines = []
    start = 0
    for k, group in enumerate(opt.param_groups):
        end = start + len(group["params"])
        label = f"param_groups[{k}]" if len(opt.param_groups) > 1 else ""
        for step in sorted(set(opt.stepper.steps[start:end].tolist())):
            for key, value in group.at(step).items():
                lines.append(f"{label}{'.' if label else ''}{key}: {value!r}")
        start = end
    lines.append(
        f"steps: {int(opt.stepper.steps.max())} ({zlib.crc32(opt.stepper.steps.tobytes()):08x})"
    )
    return lines
