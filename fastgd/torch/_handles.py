"""Handles of tensors, by which C code may ask where their memory is without asking Python.

They are those of torch's stable C ABI (torch/csrc/inductor/aoti_torch/c/shim.h), which
https://docs.pytorch.org/docs/stable/notes/libtorch_stable_abi.html describes.  The way to one is an
operator: torch hands its arguments over as handles, which the operator then owns.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch

# torch's library, whose dependencies are looked through as well.
LIBRARY = ctypes.CDLL(torch._C.__file__)
KERNEL = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_uint64), ctypes.c_uint64, ctypes.c_uint64)
NAMESPACE, NAME = b"fastgd", b"handle_of"


@KERNEL
def _handle_of(stack: Any, arguments: int, results: int) -> None:
    """Leave the argument, a handle, where the result is to be, a number."""


def _function(name: str) -> Any:
    """One of torch's functions, which return whether they failed."""
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
    """The operator that makes handles."""
    definition, implementation = ctypes.c_void_p(), ctypes.c_void_p()
    here = __file__.encode(), ctypes.c_uint32(0)
    _call("aoti_torch_library_init_fragment", NAMESPACE, *here, ctypes.byref(definition))
    _call("aoti_torch_library_def", definition, NAME + b"(Tensor tensor) -> int")
    key = b"CompositeExplicitAutograd"
    _call("aoti_torch_library_init_impl", NAMESPACE, key, *here, ctypes.byref(implementation))
    _call("aoti_torch_library_impl", implementation, NAME, _handle_of)
    return torch.ops.fastgd.handle_of.default


def _address(name: str) -> int:
    address = ctypes.cast(_function(name), ctypes.c_void_p).value
    assert address is not None
    return address


_operator = _register()


def hold(tensor: Any) -> int:
    """The handle of a tensor, which holds it until it is let go."""
    with torch._C.DisableTorchFunctionSubclass():
        return int(_operator(tensor))


# What `kernels._tensors.Watch` needs of them.  Memory that is to be written to is a copy of its own
# from when it is asked for, if torch had not made that yet.
HANDLES = hold, _address("torch_get_mutable_data_ptr"), _address("aoti_torch_delete_tensor_object")
