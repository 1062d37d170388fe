"""Handles of tensors, by which C code reads their data pointers without calling Python.

They are those of torch's stable C ABI (torch/csrc/inductor/aoti_torch/c/shim.h), which
https://docs.pytorch.org/docs/stable/notes/libtorch_stable_abi.html describes.  To get one takes an
operator: torch passes its arguments as handles, which the operator then owns.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch

from fastgd.kernels import _watch

# torch's library; symbols of its dependencies are found through it as well.
LIBRARY = ctypes.CDLL(torch._C.__file__)
NAMESPACE, NAME = b"fastgd", b"handle_of"


def _function(name: str) -> Any:
    """One of torch's C functions; they return 0 on success."""
    try:
        return getattr(LIBRARY, name)
    except AttributeError:
        raise ImportError(
            f"torch: expected a version with {name} in its stable ABI, as 2.13 is, "
            f"found {torch.__version__}"
        ) from None


def _call(name: str, *arguments: Any) -> None:
    if _function(name)(*arguments):
        raise ImportError(f"torch: {name} failed, by which fastgd.torch gets handles of tensors")


def _register() -> Any:
    """Register the operator that makes handles, and return it."""
    definition, implementation = ctypes.c_void_p(), ctypes.c_void_p()
    here = __file__.encode(), ctypes.c_uint32(0)
    _call("aoti_torch_library_init_fragment", NAMESPACE, *here, ctypes.byref(definition))
    _call("aoti_torch_library_def", definition, NAME + b"(Tensor tensor) -> int")
    key = b"CompositeExplicitAutograd"
    _call("aoti_torch_library_init_impl", NAMESPACE, key, *here, ctypes.byref(implementation))
    _call("aoti_torch_library_impl", implementation, NAME, ctypes.c_void_p(_watch.RETURN_ARGUMENT))
    return torch.ops.fastgd.handle_of.default


def _address(name: str) -> int:
    address = ctypes.cast(_function(name), ctypes.c_void_p).value
    assert address is not None
    return address


_operator = _register()


def hold(tensors: Iterable[Any]) -> list[int]:
    """The handles of tensors, owning references until they are deleted."""
    with torch._C.DisableTorchFunctionSubclass():
        return [_operator(tensor) for tensor in tensors]


def _inside() -> int:
    """How far into the object of a tensor its own handle is; 0 if it can't be told.

    A handle is the address of a pointer, which tensor objects begin with: then the word there is
    that which handles of the same tensor point to.
    """
    place = object.__basicsize__
    tensors = torch.empty(2, device="cpu"), torch.nn.Parameter(torch.empty(2, 2, device="cpu"))
    for tensor, handle in zip(tensors, hold(tensors), strict=True):
        words = [ctypes.c_void_p.from_address(at).value for at in (id(tensor) + place, handle)]
        _call("aoti_torch_delete_tensor_object", ctypes.c_void_p(handle))
        if words[0] != words[1]:
            return 0
    return place


# As `Functions` of kernels/watch/handles.pxi has them.  The first also copies memory that torch
# shares copy-on-write.
FUNCTIONS = (
    "torch_get_mutable_data_ptr",
    "aoti_torch_delete_tensor_object",
    "aoti_torch_get_dtype",
    "aoti_torch_get_device_type",
    "aoti_torch_get_layout",
    "aoti_torch_get_dim",
    "aoti_torch_get_sizes",
    "aoti_torch_get_strides",
)
ADDRESSES = tuple(map(_address, FUNCTIONS))


@cache
def handles() -> tuple[Callable[[Iterable[Any]], list[int]], tuple[int, ...], type, int]:
    """What a `Watch` takes of handles."""
    return hold, ADDRESSES, torch.Tensor, _inside()
