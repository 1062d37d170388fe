"""What fastgd's state dicts have beside torch's, and how arrays and tensors come to each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fastgd.core.domains import integer
from fastgd.core.state_dict import EXTRAS, read_counts
from fastgd.core.storage import Storage
from fastgd.kernels.spec.coded_array import codec_of
from fastgd.torch._states import AVERAGE, AVERAGE_STEP

# The classes whose steps torch counts in Python's integers: of a tensor of float32 it would raise
# the betas to its power in float32.
COUNTS_IN_INTEGERS = {"SparseAdam"}


class Boxed:
    """A tensor that torch hands on as it is, as it sees none."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def __deepcopy__(self, memo: dict[int, Any]) -> Boxed:
        return self


def boxed(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state dict whose states torch doesn't cast: it would make codes and masters the dtype of
    their parameter.
    """
    states = {
        n: {key: Boxed(v) if isinstance(v, torch.Tensor) else v for key, v in entry.items()}
        if isinstance(entry, Mapping)
        else entry
        for n, entry in state_dict["state"].items()
    }
    return {**state_dict, "state": states}


def extras_of(opt: Any) -> dict[str, Any]:
    """What torch's state dict has no place for; nothing of an optimizer without such options."""
    extras: dict[str, Any] = {}
    if opt.skipped or opt.options.given["nonfinite"] == "skip":
        extras["skipped"] = opt.skipped
    if opt.options.storage != Storage():
        extras["seed"] = opt.options.storage.seed
    if opt.ema is not None:
        extras["average"] = {"step": opt.ema.step}
    return extras


def with_steps(state: Mapping[Any, dict[str, Any]], steps: int) -> dict[Any, dict[str, Any]]:
    """The states of a state dict, with the number of updates beside each average."""
    count = torch.tensor(float(steps), dtype=torch.float64, device="cpu")
    return {
        n: {**entry, AVERAGE_STEP: count.clone()} if AVERAGE in entry else entry
        for n, entry in state.items()
    }


def with_integers(state: Mapping[Any, dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """The states of a state dict, with numbers of steps that are integers."""
    return {
        n: {**entry, "step": int(entry["step"])} if "step" in entry else entry
        for n, entry in state.items()
    }


def check_extras(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """What `extras_of` wrote, checked; the average's number of updates is under its name."""
    extras, counts = read_counts(state_dict, {"skipped", "seed", "average", "layouts"})
    found: dict[str, Any] = dict(counts)
    if "average" in extras:
        average = extras["average"]
        if not isinstance(average, Mapping) or "step" not in average:
            raise TypeError(
                f"{EXTRAS}[\"average\"]: expected a dict with 'step', found {average!r}"
            )
        found["average"] = integer(average["step"], f'{EXTRAS}["average"]["step"]', end=2**53)
    return found


def with_tensors(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state dict with tensors, where fastgd's own has arrays; others are returned as they are."""
    entries = state_dict["state"]
    if not any(isinstance(a, np.ndarray) for entry in entries.values() for a in entry.values()):
        return state_dict
    extras = state_dict.get("fastgd", {})
    names = [name for group in state_dict["param_groups"] for name in group["param_names"]]
    layouts = extras.get("layouts", {})
    tensors = {
        n: {
            key: a if key == "step" else tensor_of(a, layouts.get(name, "C"))
            for key, a in entries[n].items()
        }
        for n, name in enumerate(names)
        if n in entries
    }
    for n, a in enumerate(extras.get("average", {}).get("averages", {}).values()):
        tensors.setdefault(n, {})[AVERAGE] = tensor_of(a, "C")
    # Names are what the arrays went by, and torch takes over those that it finds.
    groups = [
        {key: value for key, value in group.items() if key != "param_names"}
        for group in state_dict["param_groups"]
    ]
    return {**state_dict, "state": tensors, "param_groups": groups}


def tensor_of(a: np.ndarray[Any, Any], order: str) -> Any:
    """The tensor of an array of a state dict, whose codes were made in some order of memory."""
    a = np.asarray(a, order=order)  # type: ignore[call-overload]
    if codec_of(a.dtype) == "bfloat16":
        return torch.as_tensor(a.view(np.uint16), device="cpu").view(torch.bfloat16)
    return torch.as_tensor(a, device="cpu")
