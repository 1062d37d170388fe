"""Checks of tensors before a step may touch them, and the local shards of DTensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from fastgd.kernels import _watch
from fastgd.kernels.memory.rows import Rows, check_indices, rows_to_catch_up
from fastgd.kernels.spec.units import units_of

# DLPack's table of C functions, through which data pointers are read.
API = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
if API is None:
    raise ImportError(
        "torch: expected a version with DLPack's C exchange API, as 2.13 is, "
        f"found {torch.__version__}"
    )

# What makes a dense gradient of one that isn't.
DENSE = "; p.grad.to_dense() makes a dense one, as does sparse=False in the layer"

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a DTensor, whose memory another tensor holds."""
    return hasattr(tensor, "_local_tensor")


def local(tensor: Any) -> Any:
    """The tensor that holds a tensor's memory: of a DTensor its local shard, else itself."""
    if not is_sharded(tensor):
        return tensor
    shard = tensor._local_tensor
    return shard.wait() if hasattr(shard, "wait") else shard  # the result of a pending collective


def like(p: Any, shard: Any) -> Any:
    """A tensor over the memory of a shard, sharded as `p` is."""
    if not is_sharded(p):
        return shard
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        shard, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride()
    )


def fault(tensor: Any) -> Exception | None:
    """The error for a tensor that a step can't use, without the tensor's name; None if it can."""
    if tensor.layout is not torch.strided:
        return TypeError(f"expected a dense tensor, found layout {tensor.layout}")
    if tensor.device.type != "cpu":
        return TypeError(f"expected a tensor in CPU memory, found device {tensor.device}")
    if tensor.dtype not in DTYPES:
        known = "torch.float32, float64, bfloat16 or float16"
        return TypeError(f"expected dtype {known}, found {tensor.dtype}")
    if tensor.is_inference():
        return ValueError("expected a tensor made outside inference mode, found one made inside")
    if tensor.is_neg():
        return TypeError(
            "expected a tensor that holds its own values, found a view of negative ones; "
            "resolve_neg() makes a fitting copy"
        )
    if _watch.flat(API, tensor, None) is None:
        return TypeError(f"expected a tensor with a storage, found {type(tensor).__name__}")
    if not is_dense(tensor):
        return ValueError(
            "expected a dense tensor without overlap, found strides "
            f"{tuple(tensor.stride())} for shape {tuple(tensor.shape)}"
        )
    return None


def fault_in(p: Any, group: Mapping[str, Any], options: Mapping[str, Any]) -> Exception | None:
    """The error for a parameter of a group that a step can't use, without its name, or None."""
    error = fault(local(p))
    for key, given, none in (
        ("clip_ratio", group["clip_ratio"], None),
        ("centralize", options["centralize"], False),
    ):
        if error is not None or given is none:
            continue
        if is_sharded(p) or getattr(p, "_fsdp_flattened", False):
            error = ValueError(
                f"{key}: expected {none} for shards, as the units that it is about may reach into "
                f"other processes' shards, found {given}"
            )
        elif units_of(p.shape, p.stride(), layout=options["layout"]) is None:
            error = ValueError(
                f"{key}: expected {none}, or an axis of outputs that is the first or the last in "
                f"memory, found {given} and strides {tuple(p.stride())} for shape "
                f"{tuple(p.shape)} and layout {options['layout']}"
            )
    return error


def is_dense(tensor: Any) -> bool:
    """Whether a tensor is non-overlapping and dense: contiguous in some order of its axes."""
    if tensor.is_contiguous():
        return True
    axes = sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1)
    expected = 1
    for stride, size in axes:
        if stride != expected:
            return bool(tensor.numel() == 0)
        expected *= size
    return True


def flat(tensor: Any) -> NDArray[Any]:
    """A flat array that aliases a tensor without `fault`, in the order of addresses.

    The array keeps that memory alive, but doesn't follow the tensor: after ``tensor.data = ...`` it
    still aliases the old memory.  Unlike after ``tensor.numpy()``, the storage can be resized.
    """
    array = _watch.flat(API, tensor, tensor.detach())
    if array is None:
        raise RuntimeError("a tensor without fault has no memory")
    return array


def rows(g: Any, p: Any, name: str) -> Rows:
    """A sparse gradient over its own memory; values that are not contiguous are copied.

    Indices may be in any order, and some be there more than once, as autograd leaves them.
    """
    if g.device.type != "cpu":
        raise TypeError(f"{name}: expected a tensor in CPU memory, found device {g.device}")
    if g.dtype not in DTYPES:
        raise TypeError(f"{name}: expected a dtype of floats, found {g.dtype}")
    if g.shape != p.shape:
        raise ValueError(
            f"{name}: expected shape {tuple(p.shape)} as its parameter, found {tuple(g.shape)}"
        )
    if g.sparse_dim() != 1 or p.ndim < 2:
        raise ValueError(
            f"{name}: expected a sparse tensor of whole rows, with sparse_dim 1, of a parameter of "
            f"two axes or more, found sparse_dim {g.sparse_dim()} and shape {tuple(p.shape)}{DENSE}"
        )
    if not p.is_contiguous():
        raise ValueError(
            f"{name}: expected a contiguous parameter, whose rows a sparse gradient has, found "
            f"strides {tuple(p.stride())}{DENSE}"
        )
    indices, values = g._indices()[0].detach(), g._values().detach()
    if not values.numel():  # autograd resizes them where they are to add to them
        indices, values = indices.clone(), values.clone()
    if values.is_contiguous():
        return Rows(indices.numpy(), flat(values).reshape(tuple(values.shape)))
    if values.dtype == torch.bfloat16:
        values = values.view(torch.int16)
        return Rows(indices.numpy(), values.numpy().view(np.uint16))
    return Rows(indices.numpy(), values.numpy())


def indices_of(
    rows: Any, groups: Iterable[Mapping[str, Any]], state: Mapping[Any, Any]
) -> dict[Any, Any]:
    """The indices of rows by parameter as arrays, without those that could not miss a step.

    What has no state was never stepped; of others the step's own checks look whether they have
    such rows.
    """
    if not isinstance(rows, Mapping):
        raise TypeError(
            f"rows: expected a dict of indices by parameter, found {type(rows).__name__}"
        )
    names = {p: f"rows[{k}][{i}]" for k, g in enumerate(groups) for i, p in enumerate(g["params"])}
    found = {}
    for p, indices in rows.items():
        if not isinstance(p, torch.Tensor) or p not in names:
            what = "another" if isinstance(p, torch.Tensor) else f"{type(p).__name__} {p!r:.40}"
            raise ValueError(f"rows: expected parameters of the optimizer as keys, found {what}")
        if not isinstance(indices, torch.Tensor):
            raise TypeError(f"{names[p]}: expected a tensor, found {type(indices).__name__}")
        if indices.device.type != "cpu" or indices.layout is not torch.strided:
            raise TypeError(
                f"{names[p]}: expected a dense tensor in CPU memory, found {indices.layout} on "
                f"{indices.device}"
            )
        some = rows_to_catch_up(indices.detach().resolve_neg().numpy(), names[p])
        if state.get(p):
            found[p] = some
        else:
            check_indices(some, tuple(p.shape), names[p])
    return found


def refuse_gradient(g: Any, p: Any, name: str) -> NoReturn:
    """Raise the error for a gradient, or the shard of one, that isn't like its parameter."""
    hint = ""
    if g.layout is not torch.strided:
        hint = DENSE
    if (error := fault(g)) is not None and not isinstance(error, ValueError):
        raise TypeError(f"{name}: {error}{hint}")
    if g.shape != p.shape:
        raise ValueError(
            f"{name}: expected shape {tuple(p.shape)} as its parameter, found {tuple(g.shape)}"
        )
    raise ValueError(
        f"{name}: expected strides {tuple(p.stride())} as its parameter, found "
        f"{tuple(g.stride())} for shape {tuple(g.shape)}; "
        "p.grad = torch.empty_like(p).copy_(p.grad) makes a fitting copy"
    )
