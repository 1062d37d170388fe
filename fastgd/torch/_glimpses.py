"""Whether the bytes of torch's tensors tell that nothing of them has changed: tried at import."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastgd.kernels import _tensors


def make() -> Any:
    """A tensor to try things on: 6 elements at an offset of 2 in a storage of 12."""
    return torch.zeros(12)[2:8].view(2, 3).requires_grad_()


def moved_in_storage(t: Any) -> None:
    """The next 6 elements of the same storage."""
    t.data = torch.as_strided(t.detach(), (2, 3), (3, 1), 4)


def swapped(t: Any) -> None:
    """Another tensor in the same Python object, and the first one gone."""
    t.requires_grad_(False)
    torch.utils.swap_tensors(t, torch.zeros(2, 3))


def resized(t: Any) -> None:
    """The storage's memory given up for a larger one."""
    t.untyped_storage().resize_(4 * 1000)


def transposed(t: Any) -> None:
    """The same memory in another order."""
    t.data = t.data.view(3, 2).t()


def of_other_dtype(t: Any) -> None:
    """The same memory as numbers of another kind."""
    t.requires_grad_(False)
    t.data = t.data.view(torch.int32)


def set_anew(t: Any) -> None:
    """Another storage in the same tensor."""
    t.requires_grad_(False)
    t.set_(torch.zeros(2, 3))


# Every way in which a tensor gets another memory, dtype or layout.
CHANGES: dict[str, Callable[[Any], Any]] = {
    "moved in storage": moved_in_storage,
    "swapped": swapped,
    "resized": resized,
    "transposed": transposed,
    "other memory": lambda t: setattr(t, "data", torch.zeros(2, 3)),
    "other shape": lambda t: setattr(t, "data", t.data.view(3, 2)),
    "other dtype": of_other_dtype,
    "set": set_anew,
}
# What leaves all where it was.
REST: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda t: None,
    "values": lambda t: t.detach().fill_(3.0),
    "version": lambda t: torch.autograd.graph.increment_version(t),
}


def learn() -> bool:
    """Find out where things stand in tensors; False, and nothing learned, if something is odd."""
    try:
        base = torch.empty(1_234_600)
        probe = base.as_strided((3, 4), (4, 1), 1_234_577)
        storage = probe.untyped_storage()
        found = _tensors.learn(probe, probe._cdata, storage._cdata, storage.data_ptr(), 1_234_577)
        told = found and all(tells(change) for change in CHANGES.values())
        if told and not any(tells(change) for change in REST.values()):
            return True
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        pass  # of a torch that can't do something of this
    _tensors.forget()
    return False


def tells(change: Callable[[Any], Any]) -> bool:
    """Whether a change is told."""
    tensor = make()
    probe = _tensors.Probe(tensor)
    change(tensor)
    return not probe.unchanged()
