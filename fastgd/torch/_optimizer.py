"""The base of torch's optimizers that step with fastgd."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import RLock
from typing import Any, ClassVar

import numpy as np
import torch
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from fastgd import Optimizer as FastgdOptimizer
from fastgd import _forks
from fastgd._groups import ParamGroup
from fastgd.kernels.reference import RULES
from fastgd.torch import _tensors
from fastgd.torch._binding import Binding, Section, check_state, count_of, hyper_of

# How torch may be told to compute, as far as it is true of a step of fastgd, and why.
HOW: dict[str, tuple[tuple[Any, ...], str]] = {
    "fused": ((None, True), "every step is one fused sweep"),
    "foreach": ((None, False), "torch's foreach kernels have no part in the step"),
    "capturable": ((False,), "there are no CUDA graphs on a CPU"),
    "differentiable": ((False,), "autograd can't look into a step"),
}


class Optimizer(torch.optim.Optimizer):
    """A `torch.optim.Optimizer` whose steps are fastgd's, in the memory of the tensors.

    Not for direct use: the subclasses are made of fastgd's optimizers.
    """

    kind: ClassVar[type[FastgdOptimizer]]
    keys: ClassVar[tuple[str, ...]]  # of its hyper-parameters
    allowed: ClassVar[Mapping[str, tuple[tuple[Any, ...], str]]]  # of options not fastgd's, and why
    # GradScaler hands scale and outcome to the step, instead of sweeping all gradients beforehand.
    _step_supports_amp_scaling = True

    def __init__(self, params: Any, options: dict[str, Any]) -> None:
        self._reset()
        super().__init__(params, options)
        for group in self.param_groups:
            self._start(group)

    def _reset(self) -> None:
        self._binding: Binding | None = None
        self._lock = RLock()
        _forks.guard(self, "_lock")

    def _start(self, group: Mapping[str, Any]) -> None:
        """Make the states that don't start from 0, as torch does when an optimizer is made."""
        hyper = hyper_of(group, self.keys)
        start = self.kind.initial(hyper)
        if start and set(start) == set(RULES[self.kind.rule(hyper)].states):
            for p in group["params"]:
                entry = self.state[p]
                entry["step"] = torch.tensor(0.0, dtype=torch.float32)
                for key, value in start.items():
                    entry[key] = torch.full_like(p, value, requires_grad=False)

    # ------------------------------------------------------------------------------------ groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with hyper-parameters of their own, as torch does.

        Raises
        ------
        TypeError, ValueError
            If a hyper-parameter is out of range, or a parameter that requires gradients is one that
            a step could not update; the optimizer stays as it was.
        """
        k = len(self.param_groups)
        if isinstance(param_group, dict) and not isinstance(
            param_group.get("params"), (torch.Tensor, set, type(None))
        ):
            params = param_group["params"] = list(param_group["params"])
            if len({id(p[1] if isinstance(p, tuple) else p) for p in params}) != len(params):
                raise ValueError(f"params[{k}]: expected each tensor once, found one twice")
        super().add_param_group(param_group)
        try:
            group = self.param_groups[k]
            self._check_group(group, k)
            section = Section(k, group, 0, group["params"])
            for i, p in enumerate(group["params"]):
                error = _tensors.fault(_tensors.local(p)) if p.requires_grad else None
                if error is not None:
                    raise type(error)(f"params{section.name(i)}: {error}")
        except BaseException:
            del self.param_groups[k]
            raise

    def _check_group(self, group: Mapping[str, Any], k: int) -> None:
        """Refuse hyper-parameters that are out of range, and ways to compute that aren't ours."""
        for key, (values, why) in self.allowed.items():
            if not any(group[key] is value or group[key] == value for value in values):
                expected = " or ".join(map(repr, values))
                raise ValueError(f"{key}: expected {expected}, found {group[key]!r}; {why}")
        ParamGroup(
            {},
            hyper_of(group, self.keys),
            {key: self.kind.domains[key] for key in self.keys},
            self.kind.consistent,
            f"params[{k}]: " if k else "",
        )

    # ---------------------------------------------------------------------------------- the step

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient, in place.

        Parameters
        ----------
        closure : callable, optional
            Evaluates the model again, and returns the loss.

        Returns
        -------
        object
            What `closure` returned, or None.

        Raises
        ------
        TypeError, ValueError
            If a parameter, gradient, state or hyper-parameter can't be used.  Nothing was changed
            then.
        """
        # torch's wrapper for hooks and profilers takes as long as the step of a small model.
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
            or torch.autograd._profiler_enabled()
        ):
            return self._hooked_step() if closure is None else self._hooked_step(closure)
        return self._step(closure)

    step.hooked = True  # type: ignore[attr-defined]  # torch, don't wrap it yourself

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # GradScaler sets these for the duration of its step.
        found_inf, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if found_inf is None or not found_inf:
            with self._lock:
                self._update(1.0 if scale is None else float(scale))
        return loss

    _hooked_step = torch.optim.Optimizer.profile_hook_step(_step)

    def _update(self, scale: float) -> None:
        groups, state = self.param_groups, self.state
        if self._binding is not None and self._binding.step(groups, state, scale):
            return
        self._binding = None
        if any(p.grad is not None for group in groups for p in group["params"]):
            sections = [Section(k, group, 0, group["params"]) for k, group in enumerate(groups)]
            binding = Binding(self.kind, self.keys, sections, state)
            if not binding.step(groups, state, scale):
                raise RuntimeError("params: changed while they were read")
            self._binding = binding

    # ------------------------------------------------------------------------------ state dicts

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take states and hyper-parameters from a state dict of torch's, or of fastgd's own.

        Tensors are copied.

        Raises
        ------
        TypeError, ValueError
            If it doesn't fit; the optimizer stays as it was.
        """
        super().load_state_dict(with_tensors(state_dict))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what was pickled, copied, or (by ``load_state_dict``) read from a state dict."""
        loaded = "defaults" not in state
        defaults = self.defaults if loaded else state["defaults"]
        for k, group in enumerate(state["param_groups"]):
            now = self.param_groups[k] if loaded else {}
            for key, default in defaults.items():
                group.setdefault(key, now.get(key, default))
        if loaded:
            self._check_loaded(state)
            # torch would go on with the very tensors of the state dict, which are somebody's.
            for entry in state["state"].values():
                for key, value in entry.items():
                    entry[key] = value.clone() if isinstance(value, torch.Tensor) else value
        else:
            self._reset()
        self._binding = None
        super().__setstate__(state)

    def _check_loaded(self, state: dict[str, Any]) -> None:
        """Refuse a state dict that doesn't fit, before any of it is taken."""
        for k, group in enumerate(state["param_groups"]):
            # Which of torch's kernels made the states doesn't matter to them.
            ways = {key: values[0] for key, (values, _) in self.allowed.items() if key in HOW}
            self._check_group({**group, **ways}, k)
            states = RULES[self.kind.rule(hyper_of(group, self.keys))].states
            section = Section(k, group, 0, group["params"])
            for i, p in enumerate(group["params"]):
                entry = state["state"].get(p) or {}
                if not isinstance(entry, dict):
                    found = type(entry).__name__
                    raise TypeError(f"state{section.name(i)}: expected a dict, found {found}")
                count_of(entry.get("step", 0), f"state{section.name(i)}")
                present = {key for key, value in entry.items() if value is not None} - {"step"}
                if present and (missing := set(states) - present):
                    raise ValueError(f"state{section.name(i)}: has no {sorted(missing)}")
                for key in present & set(states):
                    check_state(entry[key], p, f'state{section.name(i)}["{key}"]')


def with_tensors(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state dict with tensors, where fastgd's own has arrays; others are returned as they are."""
    entries = state_dict["state"]
    if not any(isinstance(a, np.ndarray) for entry in entries.values() for a in entry.values()):
        return state_dict
    tensors = {
        n: {key: torch.as_tensor(a) if key != "step" else a for key, a in entry.items()}
        for n, entry in entries.items()
    }
    # Names are what the arrays went by, and torch takes over those that it finds.
    groups = [
        {key: value for key, value in group.items() if key != "param_names"}
        for group in state_dict["param_groups"]
    ]
    return {**state_dict, "state": tensors, "param_groups": groups}
