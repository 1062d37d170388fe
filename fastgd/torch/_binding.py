"""An optimizer of fastgd over the memory of torch's tensors, and the watch over that memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fastgd import Optimizer
from fastgd._groups import number
from fastgd.kernels._tensors import Watch
from fastgd.kernels.reference import RULES
from fastgd.torch import _tensors

Array = NDArray[Any]
State = dict[Any, dict[str, Any]]

# Stands for a parameter that isn't bound, so that each has the same place here and there.
NOBODY = np.empty(0, np.float32)


class Section(NamedTuple):
    """Some parameters of one of torch's groups."""

    k: int  # which group
    group: Mapping[str, Any]
    first: int  # the place of the first parameter in the group
    params: list[Any]

    def name(self, i: int) -> str:
        """What to call the i-th parameter after ``params`` or ``grads``."""
        names = self.group.get("param_names")
        called = f" ({names[self.first + i]})" if names else ""
        return f"[{self.k}][{self.first + i}]{called}"


def hyper_of(group: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """The hyper-parameters of one of torch's groups, tensors among them as numbers."""
    return {key: plain(group[key], key) for key in keys}


def plain(value: Any, name: str) -> Any:
    """A hyper-parameter without tensors."""
    if isinstance(value, (float, int)):
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


class Binding:
    """Tensors resolved to memory for as long as they stay where they are.

    Parameters
    ----------
    kind : type
        The optimizer of fastgd.
    keys : sequence of str
        The names of its hyper-parameters.
    sections : list of Section
        The parameters to bind.
    state : dict
        torch's ``optimizer.state``: what it has of a parameter is adopted, as it is where it can
        be.  What it lacks appears there when the parameter has taken a step.

    Raises
    ------
    TypeError, ValueError
        If a parameter with a gradient can't be stepped, or its states don't fit.  One without a
        gradient may be anything.
    """

    def __init__(
        self, kind: type[Optimizer], keys: Sequence[str], sections: list[Section], state: State
    ) -> None:
        self._kind, self._keys, self._sections = kind, keys, sections
        self._hyper = [hyper_of(section.group, keys) for section in sections]
        tensors = [[self._memory(s, i, state) for i in range(len(s.params))] for s in sections]
        self._inner = make_inner(kind, [
            {
                "params": [NOBODY if t is None else _tensors.flat(t) for t in section],
                **hyper,
            }
            for section, hyper in zip(tensors, self._hyper, strict=True)
        ])  # fmt: skip
        self._rules = [kind.rule(group) for group in self._inner.param_groups]
        self._watch = Watch(
            _tensors.API, [s.params for s in sections], tensors, self._shard, self._refuse
        )
        self._adopt(state)
        self._entries = self._seen(state)

    def _memory(self, section: Section, i: int, state: State) -> Any:
        """The tensor that holds a parameter's memory, or None if it needn't be bound."""
        p = section.params[i]
        grad = p.grad
        if grad is None and not p.requires_grad and not state.get(p):
            return None
        tensor = _tensors.local(p)
        error = _tensors.fault(tensor)
        if error is None:
            return tensor
        if grad is None:
            return None
        raise type(error)(f"params{section.name(i)}: {error}")

    def _bound(self) -> Iterator[tuple[int, Section, int, str]]:
        """Running number, section, place there and name inside of each bound parameter."""
        n = 0
        for k, section in enumerate(self._sections):
            for i in range(len(section.params)):
                if self._watch.tensors[n] is not None:
                    yield n, section, i, f"{k}.{i}"
                n += 1

    # ------------------------------------------------------------------------------------ states

    def _adopt(self, state: State) -> None:
        """Let the states be those that torch has, and the rest be zeros of our own."""
        arrays: dict[Any, dict[str, Array]] = {}
        steps = np.zeros(len(self._watch.tensors), np.int64)
        taken: list[tuple[int, Any, dict[str, Any], dict[str, Any]]] = []
        self._states = [
            RULES[rule].states
            for rule, section in zip(self._rules, self._sections, strict=True)
            for _ in section.params
        ]
        for n, section, i, name in self._bound():
            p = section.params[i]
            entry = state.get(p) or {}
            fitting = {
                key: self._fitting(entry[key], p, n, f'state{section.name(i)}["{key}"]')
                for key in self._states[n]
                if entry.get(key) is not None
            }
            arrays[name] = {key: _tensors.flat(_tensors.local(t)) for key, t in fitting.items()}
            if self._kind.restarts:
                # No count is kept: the states themselves say that this isn't the first step.
                steps[n] = len(fitting) == len(self._states[n])
            elif "step" in entry:
                fitting["step"], steps[n] = count_of(entry["step"], f"state{section.name(i)}")
            taken.append((n, p, entry, fitting))
        adopt(self._inner, arrays, steps)
        # All fits: from here on nothing fails.
        for n, _, _, name in self._bound():
            self._watch.count(n, self._inner.state[name]["step"])
        for n, _, entry, fitting in taken:
            entry.update(fitting)
            self._show(n, entry, tuple(fitting))
        self._watch.note(state)

    def _fitting(self, value: Any, p: Any, n: int, name: str) -> Any:
        """A state with dtype and layout of its parameter: the same one, if it has them."""
        check_state(value, p, name)
        tensor, shard = self._watch.tensors[n], _tensors.local(value)
        if shard.shape != tensor.shape:
            raise ValueError(
                f"{name}: expected a shard of shape {tuple(tensor.shape)} as its parameter, "
                f"found {tuple(shard.shape)}"
            )
        if (
            shard.dtype == tensor.dtype
            and shard.device == tensor.device
            and shard.stride() == tensor.stride()
            and not shard.is_inference()
        ):
            return value
        # The parameter has moved to another dtype or memory format, and its states follow.
        return _tensors.like(p, torch.empty_like(tensor, requires_grad=False).copy_(shard.detach()))

    def _show(self, n: int, entry: dict[str, Any], keys: tuple[str, ...]) -> None:
        """Watch what torch's users see of a parameter's states."""
        shown = tuple(entry[key] for key in keys)
        memory = tuple(_tensors.local(tensor) for tensor in shown)
        complete = len(keys) == len(self._states[n]) + (not self._kind.restarts)
        self._watch.show(n, entry, keys, shown, memory, complete)

    def _publish(self, unseen: list[int], state: State) -> None:
        """Let torch's users see the states of parameters that have taken their first step."""
        new = set(unseen)
        for n, section, i, name in self._bound():
            if n not in new:
                continue
            p, tensor, own = section.params[i], self._watch.tensors[n], self._inner.state[name]
            entry = state[p]
            if not self._kind.restarts:
                entry.setdefault("step", torch.tensor(float(own["step"]), dtype=torch.float32))
            for key in self._states[n]:
                if entry.get(key) is None:
                    array = torch.from_numpy(own[key])
                    entry[key] = _tensors.like(p, array.as_strided(tensor.shape, tensor.stride()))
            self._show(n, entry, (*self._states[n], *["step"] * (not self._kind.restarts)))
        self._watch.note(state)
        self._entries = self._seen(state)

    def _seen(self, state: State) -> list[tuple[Any, Any]]:
        """The entry of each parameter in torch's states, None where there is none."""
        return [(p, state.get(p)) for section in self._sections for p in section.params]

    # ---------------------------------------------------------------------------------- the step

    def step(self, groups: list[dict[str, Any]] | None, state: State, scale: float) -> bool:
        """Step every parameter that has a gradient; False if all has to be bound again first.

        Parameters
        ----------
        groups : list of dict or None
            torch's groups, if the parameters bound are all of theirs.
        state : dict
            torch's states.
        scale : float
            What the gradients count as divided by.
        """
        if not self._follow():
            return False
        if groups is None and any(state.get(p) is not entry for p, entry in self._entries):
            return False
        grads = self._watch.read(groups, None if groups is None else state)
        if grads is None:
            return False
        if self._watch.stepped:
            self._inner.step(grads, grad_scale=scale)
            if unseen := self._watch.tick():
                self._publish(unseen, state)
            # Autograd refuses to go backward through what it saved of parameters since changed.
            torch.autograd.graph.increment_version(self._watch.stepped)
        return True

    def _follow(self) -> bool:
        """Take hyper-parameters that were changed; False if they pick another rule."""
        inner = self._inner.param_groups
        for k, section in enumerate(self._sections):
            hyper = hyper_of(section.group, self._keys)
            if hyper != self._hyper[k]:
                before = self._hyper[k]
                inner[k].update({key: hyper[key] for key in hyper if hyper[key] != before[key]})
                self._hyper[k] = hyper
                if self._kind.rule(inner[k]) != self._rules[k]:
                    return False
        return True

    def _shard(self, k: int, i: int, g: Any) -> Any:
        """The shard of a DTensor's gradient, which must be laid out as the parameter is."""
        p, name = self._sections[k].params[i], f"grads{self._sections[k].name(i)}"
        if not _tensors.is_sharded(g):
            raise TypeError(f"{name}: expected a DTensor as its parameter, found a tensor")
        if tuple(g.placements) != tuple(p.placements):
            raise ValueError(
                f"{name}: expected placements {tuple(p.placements)} as its parameter, "
                f"found {tuple(g.placements)}"
            )
        return _tensors.local(g)

    def _refuse(self, k: int, i: int, g: Any) -> None:
        section = self._sections[k]
        p = _tensors.local(section.params[i])
        _tensors.refuse_gradient(g, p, f"grads{section.name(i)}")


def check_state(value: Any, p: Any, name: str) -> None:
    """Refuse what can't be a state of a parameter."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor, found {type(value).__name__}")
    if value.shape != p.shape:
        raise ValueError(
            f"{name}: expected shape {tuple(p.shape)} as its parameter, found {tuple(value.shape)}"
        )


def count_of(step: Any, name: str) -> tuple[Any, int]:
    """A step count as torch's tensor, the same one if it is a float, and as a number."""
    value = number(plain(step, name), f'{name}["step"]')
    if not 0 <= value < 2**53:
        raise ValueError(f'{name}["step"]: expected a number from 0 to 2^53, found {value}')
    if not isinstance(step, torch.Tensor) or _tensors.fault(step) is not None:
        step = torch.tensor(value, dtype=torch.float32)
    return step, int(value)


def make_inner(kind: type[Optimizer], groups: list[dict[str, Any]]) -> Optimizer:
    """An optimizer of fastgd over these groups."""
    make: Any = kind
    inner: Optimizer = make(groups)
    return inner


def adopt(inner: Optimizer, arrays: Mapping[Any, Mapping[str, Array]], steps: Array) -> None:
    """Let an optimizer of fastgd step these states, by name; those that are missing are new."""
    inner.state = dict(arrays)
    inner._make_plan(inner.param_groups, steps)
