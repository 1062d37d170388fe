"""State dicts in torch.optim's layout: written from groups and states, and checked against them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastgd.core.domains import flag, integer, number, positive
from fastgd.core.groups import ParamGroup
from fastgd.core.storage import (
    ROW_MAP,
    ROW_STEPS,
    Kind,
    Storage,
    kept_by,
    saved_kinds,
    scale_of,
)
from fastgd.core.trees import Name
from fastgd.kernels.memory import checks
from fastgd.kernels.memory.checks import shown
from fastgd.kernels.reference import RULES
from fastgd.kernels.spec.coded_array import as_coded, codec_of, computed

if TYPE_CHECKING:
    from fastgd.core.accumulated import Accumulated
    from fastgd.core.ema import EMA

# The step count and the states of a parameter.
Entry = tuple[int, dict[str, NDArray[Any]]]

# What a table whose rows catch up counts for each of them.
MOST_STEPS = int(np.iinfo(np.uint32).max)

# What torch.optim's groups hold beside hyper-parameters: how to compute, not what.
_TORCH_ONLY = {"foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"}


_COPIED = (np.ndarray, dict, list)


def steps_taken(entries: Iterable[Mapping[str, Any]]) -> int:
    """The step count of the parameter that has stepped most."""
    return max(int(entry["step"]) for entry in entries)


def copied(tree: Any) -> Any:
    """A nested dict or list with copies of its arrays."""
    if isinstance(tree, np.ndarray):
        return tree.copy()
    if isinstance(tree, dict):
        return {k: copied(v) if isinstance(v, _COPIED) else v for k, v in tree.items()}
    if isinstance(tree, list):
        return [copied(v) if isinstance(v, _COPIED) else v for v in tree]
    return tree


def write(
    groups: Sequence[ParamGroup],
    rules: Sequence[str],
    entries: Sequence[Sequence[Mapping[str, Any]]],
    eager: Sequence[bool],
    decoupled: bool,
    storage: Storage,
) -> dict[str, Any]:
    """The state dict of groups whose parameters follow these rules, with these live arrays.

    A parameter that has not stepped has no entry, as in torch, unless its group is eager, or
    its states are not all zero.  For a schedule stands what the last step used: a number, which
    everybody can read, and not the next one, where a schedule might have ended.
    """
    state: dict[int, dict[str, Any]] = {}
    param_groups = []
    first = 0
    kinds = storage.recall()
    for group, own, always in zip(groups, entries, eager, strict=True):
        for i, (p, entry) in enumerate(zip(group["params"], own, strict=True), first):
            arrays = {key: entry[key] for key in kinds(p, rules[i])}
            step = int(entry["step"])
            if step or always or any(a.any() for a in arrays.values()):
                state[i] = {"step": step, **arrays}
        packed = group.at(max(steps_taken(own) - 1, 0)) if group.scheduled else group.hyper()
        packed.setdefault("decoupled_weight_decay", decoupled)
        packed["params"] = list(range(first, first + len(own)))
        packed["param_names"] = list(group["param_names"])
        param_groups.append(packed)
        first += len(own)
    return {"state": state, "param_groups": param_groups}


def read(
    state_dict: Any,
    groups: Sequence[ParamGroup],
    rule: Callable[[Mapping[str, Any], tuple[int, ...]], str],
    decoupled: bool,
    live: Iterable[NDArray[Any]],
    storage: Storage,
) -> tuple[list[dict[str, Any]], list[list[Entry]]]:
    """Check a whole state dict; returns each group's new hyper-parameters and its entries.

    Parameters
    ----------
    state_dict : dict
        In torch.optim's layout, from fastgd or torch.
    groups : sequence of ParamGroup
        What it has to fit.
    rule : callable
        From hyper-parameters and a parameter's shape to the name of its rule.
    decoupled : bool
        Whether weight decay acts beside the gradient, which the state dict may say of itself.
    live : iterable of ndarray
        The optimizer's own states, which may stand in the state dict, and then must be copied
        before any is written.
    storage : Storage
        How the optimizer keeps its states.
    """
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= set(state_dict):
        raise ValueError("state_dict: expected a dict with 'state' and 'param_groups'")
    saved_groups, saved_state = state_dict["param_groups"], state_dict["state"]
    if not isinstance(saved_groups, Sequence) or not isinstance(saved_state, Mapping):
        raise TypeError("state_dict: expected a list of 'param_groups' and a dict of 'state'")
    if len(saved_groups) != len(groups):
        raise ValueError(f"state_dict: expected {len(groups)} groups, found {len(saved_groups)}")
    changes = [
        _read_group(saved, group, decoupled, f'state_dict["param_groups"][{k}]')
        for k, (saved, group) in enumerate(zip(saved_groups, groups, strict=True))
    ]

    numbers = [number for saved in saved_groups for number in saved["params"]]
    if not _are_distinct(numbers):
        raise ValueError(
            f"state_dict: expected params with numbers of their own, found {shown(numbers)}"
        )
    known = set(numbers)
    if unknown := [key for key in saved_state if key not in known]:
        raise ValueError(f"state_dict: has states of parameters in no group: {shown(unknown)}")
    memory = {id(owner) for a in live for owner in (a, a.base) if owner is not None}
    entries = []
    kinds = storage.recall()
    for group, saved, change in zip(groups, saved_groups, changes, strict=True):
        hyper = {**group, **change}
        number_of = match(group["param_names"], saved)
        entries.append(
            [
                _read_entry(
                    saved_state.get(number_of[name], {}), p, name, own, memory, kinds(p, own)
                )
                for name, p in zip(group["param_names"], group["params"], strict=True)
                for own in [rule(hyper, storage.shape(p))]
            ]
        )
    return changes, entries


def _read_group(saved: Any, group: ParamGroup, decoupled: bool, where: str) -> dict[str, Any]:
    """The checked hyper-parameters of a saved group."""
    if not isinstance(saved, Mapping) or not isinstance(saved.get("params"), list):
        raise TypeError(f"{where}: expected a dict with a list of 'params', found {shown(saved)}")
    if len(saved["params"]) != len(group["params"]):
        raise ValueError(
            f"{where}: expected {len(group['params'])} parameters, found {len(saved['params'])}"
        )
    names = saved.get("param_names")
    if names is not None and not isinstance(names, (list, tuple)):
        raise TypeError(f"{where}: expected a list of 'param_names', found {shown(names)}")
    decay = saved.get("decoupled_weight_decay", decoupled)
    if "decoupled_weight_decay" not in group and flag(decay, f"{where}: decoupled") != decoupled:
        raise ValueError(
            f"{where}: expected decoupled_weight_decay to be {decoupled}, found {not decoupled}"
        )
    ignored = {*_TORCH_ONLY - set(group), "params", "param_names", *group.scheduled}
    return group.checked({key: saved[key] for key in saved if key not in ignored})


def _are_distinct(keys: Sequence[Any]) -> bool:
    """Whether something can be looked up by keys."""
    try:
        return len(set(keys)) == len(keys)
    except (TypeError, ValueError):  # the latter of a writeable memoryview
        return False


def match(names: Sequence[Name], saved: Mapping[str, Any]) -> dict[Name, Any]:
    """Which saved parameter each of ours is: by name if both sides have names, else by order."""
    theirs = list(saved.get("param_names") or [])
    positions = re.compile(r"[\d.]+")  # names made up from places in lists
    if not theirs or any(map(positions.fullmatch, map(str, [*names, *theirs]))):
        return dict(zip(names, saved["params"], strict=True))
    if not _are_distinct(theirs) or set(theirs) != set(names):
        raise ValueError(
            f"state_dict: expected parameters {sorted(map(str, names))}, found {shown(theirs)}"
        )
    numbers = dict(zip(theirs, saved["params"], strict=True))
    return {name: numbers[name] for name in names}


def _read_entry(
    entry: Any,
    p: NDArray[Any],
    name: Name,
    rule: str,
    memory: set[int],
    wanted: Mapping[str, Kind],
) -> Entry:
    """The step count and the states of one parameter, checked against what its rule keeps."""
    states = kept_by(rule)
    plain = not RULES[rule].numbers and ROW_STEPS not in wanted
    if plain and _fits_plainly(entry, states, p):
        arrays = {key: entry[key] for key in states}
        return entry["step"], _apart(arrays, memory)
    label = f"state[{name!r}]".replace("'", '"')
    if not isinstance(entry, Mapping):
        raise TypeError(f"{label}: expected a dict of states, found {shown(entry)}")
    given = {key: value for key, value in entry.items() if key != "step" and value is not None}
    known = saved_kinds(rule, p.shape)
    if extra := set(given) - set(known):
        raise ValueError(f"{label}: has {sorted(extra)}, which this optimizer does not keep")
    if given and (missing := set(states) - set(given)):
        raise ValueError(f"{label}: has no {sorted(missing)}")
    # torch counts the steps of some optimizers in a tensor, of SGD not at all.
    step = number(entry.get("step", 1 if given else 0), f"{label}: step")
    if not 0 <= step < 2**53 or step != int(step):
        raise ValueError(f"{label}: step: expected an integer from 0 to 2^53, found {step}")
    arrays = {key: checks.as_array(value, f'{label}["{key}"]') for key, value in given.items()}
    for key, a in arrays.items():
        _check_saved(a, known[key], arrays, p, f'{label}["{key}"]')
    check_rows(arrays, ROW_STEPS in wanted, int(step), label)
    if ROW_STEPS in wanted and ROW_STEPS not in arrays:
        rows = wanted[ROW_STEPS]
        arrays[ROW_STEPS] = np.full(rows.shape, int(step), rows.dtype)
    return int(step), _apart(arrays, memory)


def check_rows(arrays: Mapping[str, Any], wanted: bool, step: int, label: str) -> None:
    """Refuse saved rows that missed steps where they can't catch up, or not all is known of them.

    Of which nothing was saved, they have missed nothing: steps were dense, or lazy for good.

    Parameters
    ----------
    arrays : mapping of ndarray
        What was saved of a parameter, its step count aside.
    wanted : bool
        Whether its rows are to catch up.
    step : int
        The steps that it has taken.
    label : str
        What to call its entry in an error.
    """
    if wanted and step > MOST_STEPS:
        raise ValueError(
            f"{label}: step: expected at most {MOST_STEPS} steps of a table whose rows catch up, "
            f"found {step}"
        )
    there = {ROW_STEPS, ROW_MAP} & arrays.keys()
    if len(there) == 1:
        missing = sorted({ROW_STEPS, ROW_MAP} - there)
        raise ValueError(f'{label}: has no {missing}, which rows="catch_up" keeps')
    if not there:
        return
    counts = arrays[ROW_STEPS]
    if (counts > step).any():
        raise ValueError(f'{label}["{ROW_STEPS}"]: expected at most {step}, the steps of all')
    if (counts != step).any() and not (wanted and arrays[ROW_MAP][0]):
        raise ValueError(
            f'{label}["{ROW_STEPS}"]: expected {step} of all rows, found rows that missed steps; '
            'load them with rows="catch_up", or save them after catch_up()'
        )


def _apart(arrays: dict[str, NDArray[Any]], memory: set[int]) -> dict[str, NDArray[Any]]:
    """The arrays, those copied that are in the memory of live states."""
    return {
        key: a.copy() if id(a) in memory or id(a.base) in memory else a for key, a in arrays.items()
    }


def _fits_plainly(entry: Any, states: Sequence[str], p: NDArray[Any]) -> bool:
    """Whether an entry is at a glance a step count and the states, as most are, and no more."""
    if type(entry) is not dict or len(entry) != 1 + len(states):
        return False
    step, dtype = entry.get("step"), computed(p.dtype)
    if type(step) is not int or not 0 <= step < 2**53:
        return False
    for key in states:
        a = entry.get(key)
        if type(a) is not np.ndarray or a.dtype != dtype or a.shape != p.shape:
            return False
    return True


def _check_saved(
    a: NDArray[Any], kind: Kind, arrays: Mapping[str, NDArray[Any]], p: NDArray[Any], label: str
) -> None:
    """Check that a saved array can be what its key says, however it was kept."""
    if kind.role == "number":
        dtypes = "float64 or float32"
    elif kind.role != "state":
        dtypes = kind.dtype.name
    elif a.dtype == np.uint8:
        dtypes = "uint8"
        if (scale := scale_of(kind.of)) not in arrays:
            raise ValueError(f"{label}: has no {scale}, which its codes need")
    elif p.dtype == np.float64:
        dtypes = "float64, float32, bfloat16 or float16"
    else:
        dtypes = "float32, bfloat16 or float16"
    found = codec_of(a.dtype.newbyteorder("=")) or a.dtype.name
    if found not in dtypes.replace(",", "").split():
        raise TypeError(f"{label}: expected dtype {dtypes}, found {a.dtype}")
    if a.shape != kind.shape:
        raise ValueError(f"{label}: expected shape {kind.shape}, found {a.shape}")


def shared_numbers(entries: Iterable[Iterable[Entry]], rules: Iterable[str]) -> dict[str, float]:
    """The numbers that all parameters share; raises ValueError if saved ones differ in them."""
    keys = {key for rule in set(rules) for key in RULES[rule].shared}
    found: dict[str, float] = {}
    for own in entries if keys else ():
        for _, arrays in own:
            for key in keys & arrays.keys():
                value = float(arrays[key])
                known = found.setdefault(key, value)
                if value != known and (value == value or known == known):
                    raise ValueError(
                        f'state_dict: expected "{key}" to be the same for all parameters, found '
                        f"{known} and {value}"
                    )
    return found


# ------------------------------------------------------------------ what torch's state dicts lack


EXTRAS = 'state_dict["fastgd"]'


class Extras(NamedTuple):
    """What a state dict holds beside states and hyper-parameters."""

    skipped: int
    seed: int | None
    average: tuple[int, Mapping[Name, NDArray[Any]]] | None
    weight: float
    sums: list[NDArray[Any] | None]


def write_extras(
    skipped: int,
    seed: int,
    average: EMA | None,
    accumulated: Accumulated | None,
    names: Sequence[Name],
) -> dict[str, Any]:
    """Skipped steps, averages, and the gradients that no step has taken yet."""
    extras: dict[str, Any] = {"skipped": skipped, "seed": seed}
    if average is not None:
        extras["average"] = {"step": average.step, "averages": dict(average.averages)}
    if accumulated is not None and accumulated.weight[0]:
        counted = zip(names, accumulated.sums, accumulated.counts.tolist(), strict=True)
        extras["accumulated"] = {
            "weight": float(accumulated.weight[0]),
            "grads": {name: a for name, a, n in counted if n},
        }
    return extras


def read_counts(
    state_dict: Mapping[str, Any], known: set[str]
) -> tuple[Mapping[str, Any], dict[str, int]]:
    """What a state dict has that torch's lack, by keys that are known; its counts are checked."""
    extras = state_dict.get("fastgd", {})
    if not isinstance(extras, Mapping):
        raise TypeError(f"{EXTRAS}: expected a dict, found {type(extras).__name__}")
    if unknown := set(extras) - known:
        raise ValueError(f"{EXTRAS}: has unknown {sorted(map(str, unknown))}")
    ends = {"skipped": 2**53, "seed": 2**64}
    return extras, {
        key: integer(extras[key], f'{EXTRAS}["{key}"]', end=end)
        for key, end in ends.items()
        if key in extras
    }


def read_extras(
    state_dict: Mapping[str, Any], params: Mapping[Name, NDArray[Any]], average: EMA | None
) -> Extras | None:
    """Check what `write_extras` wrote; None if the state dict is not fastgd's."""
    if "fastgd" not in state_dict:
        return None
    where = EXTRAS
    known = {"skipped", "seed", "average", "accumulated", "layouts"}
    extras, counts = read_counts(state_dict, known)
    if ("average" in extras) != (average is not None):
        problem = "has none, which this optimizer has" if average else "this optimizer has none"
        raise ValueError(f'{where}["average"]: {problem}')
    layouts = extras.get("layouts", {})
    if not isinstance(layouts, Mapping):
        raise TypeError(f'{where}["layouts"]: expected a dict, found {layouts!r}')
    for name, p in params.items() if layouts else ():
        order = as_coded(p).order
        if layouts.get(name, order) != order and p.ndim > 1:
            raise ValueError(
                f'{where}["layouts"]: expected parameter {name!r} in {order} order, whose 8-bit '
                f"states have a scale for each 256 elements in memory, found {layouts[name]!r}"
            )
    averages = None if average is None else average.check_state_dict(extras["average"])
    weight: float = 0.0
    sums: list[NDArray[Any] | None] = []
    if "accumulated" in extras:
        weight, sums = _read_accumulated(extras["accumulated"], params, f'{where}["accumulated"]')
    return Extras(counts.get("skipped", 0), counts.get("seed"), averages, weight, sums)


def _read_accumulated(
    saved: Any, params: Mapping[Name, NDArray[Any]], where: str
) -> tuple[float, list[NDArray[Any] | None]]:
    if not isinstance(saved, Mapping) or not isinstance(saved.get("grads"), Mapping):
        raise TypeError(f"{where}: expected a dict with 'weight' and a dict of 'grads'")
    weight = positive(saved.get("weight"), f'{where}["weight"]')
    if unknown := set(saved["grads"]) - set(params):
        raise ValueError(f"{where}: has gradients of unknown {sorted(map(str, unknown))}")
    sums: list[NDArray[Any] | None] = []
    for name, p in params.items():
        found = saved["grads"].get(name)
        label = f'{where}["grads"][{name!r}]'
        sums.append(None if found is None else checks.check_values(found, p, label))
    return weight, sums
