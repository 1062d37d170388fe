"""State dicts in torch.optim's layout: written from an optimizer, checked and read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from fastgd._groups import number
from fastgd.kernels import checks
from fastgd.kernels.reference import RULES

if TYPE_CHECKING:
    from fastgd._optimizer import Optimizer

# What torch.optim's groups hold beside hyper-parameters: how to compute, not what.
_TORCH_ONLY = {"foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"}


def write(opt: Optimizer) -> dict[str, Any]:
    """The state dict of an optimizer; all arrays are copies.

    A parameter that has not stepped has no entry, as in torch, unless its states start from given
    values.
    """
    state: dict[int, dict[str, Any]] = {}
    param_groups = []
    first = 0
    for group, rule in zip(opt.param_groups, map(opt.rule, opt.param_groups), strict=True):
        for i, name in enumerate(group["param_names"], first):
            entry = opt.state[name]
            if entry["step"] or opt.initial(group):
                arrays = {key: entry[key].copy() for key in RULES[rule].states}
                state[i] = {"step": int(entry["step"]), **arrays}
        count = len(group["params"])
        packed = {key: group[key] for key in opt.defaults}
        packed["params"] = list(range(first, first + count))
        packed["param_names"] = list(group["param_names"])
        param_groups.append(packed)
        first += count
    return {"state": state, "param_groups": param_groups}


def read(opt: Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Check a whole state dict against an optimizer, and only then take it over."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= set(state_dict):
        raise ValueError("state_dict: expected a dict with 'state' and 'param_groups'")
    saved_groups, saved_state = state_dict["param_groups"], state_dict["state"]
    if len(saved_groups) != len(opt.param_groups):
        raise ValueError(
            f"state_dict: expected {len(opt.param_groups)} groups, found {len(saved_groups)}"
        )
    changes = [_read_group(opt, k, saved) for k, saved in enumerate(saved_groups)]

    numbers = [number for saved in saved_groups for number in saved["params"]]
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"state_dict: expected params with numbers of their own, found {numbers}")
    if unknown := [key for key in saved_state if key not in numbers]:
        raise ValueError(f"state_dict: has states of parameters in no group: {unknown}")
    entries: dict[int | str, tuple[int, dict[str, NDArray[Any]]]] = {}
    for group, saved, change in zip(opt.param_groups, saved_groups, changes, strict=True):
        rule = opt.rule({**group, **change})
        number_of = _match(group["param_names"], saved)
        for name, p in zip(group["param_names"], group["params"], strict=True):
            entry = saved_state.get(number_of[name], {})
            entries[name] = _read_entry(entry, p, name, RULES[rule].states)

    # All fits: from here on nothing fails.
    for group, change in zip(opt.param_groups, changes, strict=True):
        group.update(change)
    opt._make_plan(opt._steps)
    for group in opt.param_groups:
        start = opt.initial(group)
        for name in group["param_names"]:
            step, arrays = entries[name]
            for key, own in opt.state[name].items():
                own[...] = step if key == "step" else arrays.get(key, start.get(key, 0))


def _read_group(opt: Optimizer, k: int, saved: Mapping[str, Any]) -> dict[str, Any]:
    """The checked hyper-parameters of a saved group."""
    where = f'state_dict["param_groups"][{k}]'
    group = opt.param_groups[k]
    if not isinstance(saved, Mapping) or not isinstance(saved.get("params"), list):
        raise TypeError(f"{where}: expected a dict with a list of 'params', found {saved!r}")
    if len(saved["params"]) != len(group["params"]):
        raise ValueError(
            f"{where}: expected {len(group['params'])} parameters, found {len(saved['params'])}"
        )
    decoupled = saved.get("decoupled_weight_decay", opt.decoupled)
    if decoupled != opt.decoupled:
        raise ValueError(
            f"{where}: decoupled_weight_decay is {decoupled}, which is not {type(opt).__name__}'s"
        )
    ignored = _TORCH_ONLY | {"params", "param_names"}
    return group.checked({key: saved[key] for key in saved if key not in ignored})


def _match(names: list[int | str], saved: Mapping[str, Any]) -> dict[int | str, Any]:
    """Which saved parameter each of ours is: by name if both sides have names, else by order."""
    theirs = saved.get("param_names") or []
    if not all(isinstance(name, str) for name in [*names, *theirs]) or not theirs:
        return dict(zip(names, saved["params"], strict=True))
    if set(theirs) != set(names):
        raise ValueError(
            f"state_dict: expected parameters {sorted(map(str, names))}, found {sorted(theirs)}"
        )
    numbers = dict(zip(theirs, saved["params"], strict=True))
    return {name: numbers[name] for name in names}


def _read_entry(
    entry: Mapping[str, Any], p: NDArray[Any], name: int | str, expected: tuple[str, ...]
) -> tuple[int, dict[str, NDArray[Any]]]:
    """The step count and the states of one parameter, checked against what its rule keeps."""
    label = f"state[{name!r}]".replace("'", '"')
    if not isinstance(entry, Mapping):
        raise TypeError(f"{label}: expected a dict of states, found {entry!r}")
    arrays = {key: value for key, value in entry.items() if key != "step" and value is not None}
    if extra := set(arrays) - set(expected):
        raise ValueError(f"{label}: has {sorted(extra)}, which this optimizer does not keep")
    if arrays and (missing := set(expected) - set(arrays)):
        raise ValueError(f"{label}: has no {sorted(missing)}")
    # torch counts the steps of some optimizers in a tensor, of SGD not at all.
    step = number(entry.get("step", 1 if arrays else 0), f"{label}: step")
    if step < 0 or step != int(step):
        raise ValueError(f"{label}: step: expected a whole number of at least 0, found {step}")
    checked = {}
    for key, value in arrays.items():
        a = checks.as_array(value, f'{label}["{key}"]')
        if a.dtype.newbyteorder("=") != p.dtype:
            raise TypeError(f'{label}["{key}"]: expected dtype {p.dtype}, found {a.dtype}')
        if a.shape != p.shape:
            raise ValueError(f'{label}["{key}"]: expected shape {p.shape}, found {a.shape}')
        checked[key] = a
    return int(step), checked
