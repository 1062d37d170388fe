"""The states of a parameter as tensors: which there are, how each is kept, and what becomes of it
when the parameter is given another dtype or layout, or a state dict was kept otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastgd.core.domains import number
from fastgd.core.state_dict import check_rows
from fastgd.core.storage import (
    Kind,
    Storage,
    kept_by,
    kinds_of_rows,
    saved_as,
    saved_kinds,
    scale_of,
)
from fastgd.kernels.reference import RULES
from fastgd.kernels.spec.codecs import CODECS
from fastgd.kernels.spec.coded_array import codec_of, computed
from fastgd.kernels.spec.lines import line_shape
from fastgd.kernels.spec.registry import PAIRS
from fastgd.kernels.spec.units import units_of
from fastgd.torch import _tensors

Array = NDArray[Any]

# The average of a parameter, which stands beside its states, and in state dicts the number of its
# updates: what shards or gathers state dicts hands on nothing but states and hyper-parameters.
AVERAGE = "average"
AVERAGE_STEP = "average_step"
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "e5m2": torch.uint8,
    "ue6m2": torch.uint8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "uint32": torch.uint32,
}


def check_state(value: Any, p: Any, kind: Kind | None, name: str) -> None:
    """Refuse what can't be a state of a parameter; without a kind, its average."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor, found {type(value).__name__}")
    role = "average" if kind is None else kind.role
    # Scales are those of the tiles in a parameter's memory; numbers of lines have their own shape.
    own = kind is not None and (role in {"scale", "number", "rows"} or kind.lines)
    shape = kind.shape if kind is not None and own else tuple(p.shape)
    if tuple(value.shape) != shape:
        of = " as its parameter" if shape == tuple(p.shape) else ""
        raise ValueError(f"{name}: expected shape {shape}{of}, found {tuple(value.shape)}")
    if kind is not None and role in {"scale", "remainder", "rows"}:
        if value.dtype != DTYPES[kind.dtype.name]:
            expected = DTYPES[kind.dtype.name]
            raise TypeError(f"{name}: expected dtype {expected}, found {value.dtype}")
    elif role in {"master", "average", "number"} and not value.dtype.is_floating_point:
        raise TypeError(f"{name}: expected a dtype of floats, found {value.dtype}")


def saved_kinds_of(p: Any, rule: str) -> Mapping[str, Kind]:
    """What there may be of a parameter that a rule steps, however it was kept."""
    kinds = shaped(saved_kinds(rule, (_tensors.local(p).numel(),)), rule, p)
    return {**kinds, **kinds_of_rows(rule, tuple(p.shape))}


def order_of(tensor: Any) -> str:
    """Whether the entries of a tensor along its first axis follow each other in memory: "C"."""
    rows = units_of(tuple(tensor.shape), tensor.stride())
    return "C" if rows is not None and rows.stride == 1 else "F"


def rows_kept(storage: Storage, p: Any, rule: str) -> Mapping[str, Kind]:
    """What is kept of a parameter's rows, if these catch up."""
    if not storage.catch_up or _tensors.is_sharded(p) or order_of(p) != "C":
        return {}
    return kinds_of_rows(rule, tuple(p.shape))


def shaped(kinds: Mapping[str, Kind], rule: str, p: Any) -> Mapping[str, Kind]:
    """The kinds of what stands for a parameter, flat but for its numbers of rows and columns."""
    lines, shape = RULES[rule].line_states, tuple(p.shape)
    own = {key: kinds[key]._replace(shape=line_shape(shape, lines[key])) for key in lines}
    return {**kinds, **own} if own else kinds


def check_entry(
    entry: Mapping[str, Any], p: Any, rule: str, averages: bool, storage: Storage, name: str
) -> None:
    """Refuse what a state dict has of a parameter if it doesn't fit."""
    if not isinstance(entry, Mapping):
        raise TypeError(f"{name}: expected a dict, found {type(entry).__name__}")
    count_of(entry.get("step", 0), name)
    count_of(entry.get(AVERAGE_STEP, 0), name, AVERAGE_STEP)
    present = {key for key, value in entry.items() if value is not None} - {"step"}
    states, kinds = kept_by(rule), saved_kinds_of(p, rule)
    beside = {*kinds, AVERAGE, AVERAGE_STEP} - set(states)
    if present - beside and (missing := set(states) - present):
        raise ValueError(f"{name}: has no {sorted(missing)}")
    if AVERAGE in present and not averages:
        raise ValueError(f'{name}["average"]: expected none, as this optimizer does not average')
    for key in present & {*kinds, AVERAGE}:
        check_state(entry[key], p, kinds.get(key), f'{name}["{key}"]')
        if entry[key].dtype == torch.uint8 and key in states and scale_of(key) not in present:
            raise ValueError(f"{name}: has no ['{scale_of(key)}'], which the codes of {key} need")
    rows = {key: entry[key].cpu().numpy() for key in kinds_of_rows(rule, p.shape) if key in present}
    if present:
        wanted = bool(rows_kept(storage, p, rule))
        check_rows(rows, wanted, count_of(entry.get("step", 0), name)[1], name)


def count_of(step: Any, name: str, key: str = "step") -> tuple[Any, int]:
    """A step count as torch's tensor, the same one if it is a float, and as a number."""
    value = number(plain(step, name), f'{name}["{key}"]')
    if not 0 <= value < 2**53:
        raise ValueError(f'{name}["{key}"]: expected a number from 0 to 2^53, found {value}')
    if (
        not isinstance(step, torch.Tensor)
        or step.dtype not in {torch.float32, torch.float64}
        or _tensors.fault(step) is not None
    ):
        step = torch.tensor(value, dtype=torch.float32, device="cpu")
    return step, int(value)


def plain(value: Any, name: str) -> Any:
    """A hyper-parameter without tensors."""
    if isinstance(value, (float, int)) or value is None:
        return value
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise TypeError(f"{name}: expected a number, found a tensor of {value.numel()}")
        return value.item()
    if isinstance(value, (tuple, list)):
        return tuple(plain(v, f"{name}[{k}]") for k, v in enumerate(value))
    if callable(value):
        raise TypeError(
            f"{name}: expected a number, found {value!r}; torch.optim.lr_scheduler has schedules"
        )
    return value


class Kept:
    """What there is, and is to be, beside one parameter.

    Parameters
    ----------
    p, tensor : tensor
        The parameter, and the tensor that holds its memory.
    rule : str
        What steps it.
    array : ndarray
        The memory of that tensor.
    kinds : mapping
        What `Storage.kinds` says of it.
    averages : bool
        Whether it is averaged.
    """

    __slots__ = ("array", "averages", "kinds", "p", "rule", "states", "tensor")

    def __init__(
        self,
        p: Any,
        tensor: Any,
        rule: str,
        array: Array,
        kinds: Mapping[str, Kind],
        averages: bool,
    ) -> None:
        self.p, self.tensor, self.rule, self.array = p, tensor, rule, array
        self.kinds = shaped(kinds, rule, p)
        self.states = RULES[rule].states
        self.averages = averages

    @property
    def keys(self) -> list[str]:
        """The keys of all that is kept."""
        return [*self.kinds, *[AVERAGE] * self.averages]

    def fitting(self, entry: Mapping[str, Any], name: str) -> dict[str, Any]:
        """The states that there are, as they are to be kept: the same tensors where they can be."""
        found: dict[str, Any] = {}
        for key in self.keys:
            kind = self.kinds.get(key)
            if entry.get(key) is None or (kind is not None and kind.role == "scale"):
                continue  # scales come with their codes
            value, label = entry[key], f'{name}["{key}"]'
            check_state(value, self.p, kind, label)
            if kind is not None and kind.role == "number":
                found[key] = value.detach().to("cpu", torch.float64)
                continue
            if kind is not None and kind.lines:
                found[key] = self._lined(_tensors.local(value), kind)
                continue
            if kind is not None and kind.role == "rows":
                here = value.device.type == "cpu" and value.is_contiguous()
                found[key] = value if here and not value.is_inference() else value.cpu().clone()
                continue
            if _tensors.local(value).shape != self.tensor.shape:
                raise ValueError(
                    f"{label}: expected a shard of shape {tuple(self.tensor.shape)} as its "
                    f"parameter, found {tuple(_tensors.local(value).shape)}"
                )
            if kind is not None and kind.role == "state":
                found |= self._state(kind, entry, label)
            else:
                dtype = self._computed if kind is None else DTYPES[kind.dtype.name]
                found[key] = self._laid(value, dtype)
        if AVERAGE in self.keys and AVERAGE not in found:
            # One that starts later counts as having stood still.
            found[AVERAGE] = self._laid(self.p, self._computed, copy=True)
        return found

    @property
    def _computed(self) -> torch.dtype:
        return DTYPES[computed(self.array.dtype).name]

    def _laid(self, value: Any, dtype: torch.dtype, copy: bool = False) -> Any:
        """Numbers with some dtype in the parameter's layout: the same tensor, if it is so."""
        shard, tensor = _tensors.local(value), self.tensor
        if (
            not copy
            and shard.dtype == dtype
            and shard.device == tensor.device
            and shard.stride() == tensor.stride()
            and not shard.is_inference()
        ):
            return value
        # The parameter has moved to another dtype or memory format, and its states follow.
        made = torch.empty_like(tensor, dtype=dtype, requires_grad=False).copy_(shard.detach())
        return _tensors.like(self.p, made)

    def _line_strides(self, kind: Kind) -> list[int]:
        """The strides of numbers of rows or columns: their axes lie as the parameter's do."""
        if kind.lines in PAIRS:
            n = kind.shape[0]
            return [n, 1] if self.tensor.is_contiguous() else [1, n]
        strides, size = [0] * self.tensor.ndim, 1
        for k in sorted(range(self.tensor.ndim), key=self.tensor.stride):
            strides[k], size = size, size * kind.shape[k]
        return strides

    def _lined(self, value: Any, kind: Kind) -> Any:
        """The numbers of rows or columns: the same tensor, if they lie as they have to."""
        strides, dtype = self._line_strides(kind), DTYPES[kind.dtype.name]
        axes = zip(value.stride(), strides, kind.shape, strict=True)
        lies = value.device.type == "cpu" and all(own == s for own, s, n in axes if n > 1)
        if lies and value.dtype == dtype and not value.is_inference():
            return value
        made = torch.empty_strided(kind.shape, strides, dtype=dtype, device="cpu")
        return made.copy_(value.detach())

    def _state(self, kind: Kind, entry: Mapping[str, Any], label: str) -> dict[str, Any]:
        """A state of the rule's and its scales, in the codec that is wanted."""
        key, scale_key, name = kind.of, scale_of(kind.of), kind.codec
        value, scale = entry[key], entry.get(scale_key)
        codec = CODECS[name]
        shard = _tensors.local(value)
        if shard.dtype == torch.uint8:
            if scale is None:
                raise ValueError(f"{label}: has no {scale_key}, which its codes need")
            check_state(
                scale,
                self.p,
                saved_kinds_of(self.p, self.rule)[scale_key],
                label.replace(f'"{key}"', f'"{scale_key}"'),
            )
            if not _tensors.is_dense(shard) or not scale.is_contiguous():
                raise ValueError(f"{label}: expected codes and scales in memory without holes")
            same = shard.stride() == self.tensor.stride() and shard.device == self.tensor.device
            if codec.aux is not None and same and not shard.is_inference():
                return {key: value, scale_key: scale}
            # Tiles are those of the memory that was coded, which another layout cuts elsewhere.
            codes = {key: _tensors.flat(shard.cpu()), scale_key: _tensors.flat(scale.cpu())}
            numbers = saved_as(codes, self.rule, key).load(computed(self.array.dtype))
            value = torch.from_numpy(numbers).as_strided(shard.shape, shard.stride())
        if codec.aux is None and name != "bfloat16" and name != "float16":
            return {key: self._laid(value, DTYPES[name])}
        if _tensors.local(value).dtype == DTYPES[name]:
            return {key: self._laid(value, DTYPES[name])}
        numbers = _tensors.flat(_tensors.local(self._laid(value, self._computed)))
        made = kind.new(self.array)
        kind.stored(made).store(numbers.copy())
        return {own: self.shown(own, array) for own, array in made.items()}

    def memory(self, key: str, tensor: Any) -> Array:
        """The array over the memory of a tensor: flat, unless it is a number."""
        flat = _tensors.flat(_tensors.local(tensor))
        kind = self.kinds.get(key)
        return flat.reshape(()) if kind is not None and kind.role == "number" else flat

    def shown(self, key: str, array: Array) -> Any:
        """A tensor over the memory of a state that fastgd has made."""
        bits = codec_of(array.dtype) == "bfloat16"
        kind = self.kinds[key]
        if kind.lines:
            return torch.from_numpy(array).as_strided(kind.shape, self._line_strides(kind))
        apart, shape = kind.role in {"scale", "number", "rows"}, self.tensor.shape
        if not apart and array.shape != shape:
            array = array.reshape(shape)
        tensor = torch.from_numpy(array.view(np.uint16) if bits else array)
        if bits:
            tensor = tensor.view(torch.bfloat16)
        if apart:
            return tensor
        kind = self.kinds[key]
        if kind.lines:
            return tensor.as_strided(kind.shape, self._line_strides(kind))
        if tensor.stride() != self.tensor.stride():
            tensor = tensor.as_strided(shape, self.tensor.stride())
        return _tensors.like(self.p, tensor)

    def follow_master(self, fitting: Mapping[str, Any]) -> bool:
        """Take what was written to a parameter into the master that it is a copy of."""
        if "master" not in fitting:
            return False
        master = _tensors.local(fitting["master"])
        tensor = self.tensor.detach()
        changed = master.to(tensor.dtype) != tensor
        if not changed.any():
            return False
        master[changed] = tensor[changed].to(master.dtype)
        return True
