"""The base of torch's optimizers that step with fastgd."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import RLock
from typing import Any, ClassVar

import numpy as np
import torch
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from fastgd import Optimizer as FastgdOptimizer
from fastgd.core import fork_locks
from fastgd.core.contract import Hyper
from fastgd.core.groups import ParamGroup
from fastgd.core.storage import Kind
from fastgd.kernels._engine import StepRecord
from fastgd.kernels.reference import RULES
from fastgd.torch import _sharing, _tensors
from fastgd.torch._average import EMA
from fastgd.torch._binding import Binding, Section, Setup, hyper_of, wants_norms
from fastgd.torch._iterates import IterateAverage
from fastgd.torch._options import Options
from fastgd.torch._state_dict import (
    COUNTS_IN_INTEGERS,
    Boxed,
    boxed,
    check_extras,
    extras_of,
    with_integers,
    with_steps,
    with_tensors,
)
from fastgd.torch._states import AVERAGE, check_entry, saved_kinds_of

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

    Attributes
    ----------
    average : EMA, IterateAverage or None
        The average of the parameters that steps update, if wanted; else that which a schedule-free
        optimizer has by itself.
    ema : EMA or None
        The one that was wanted.
    record : StepRecord or None
        What the last step did that found gradients: ``skipped``, ``grad_norm``, ``clip_factor``.
    skipped : int
        The number of steps skipped as gradients were not finite.
    """

    kind: ClassVar[type[FastgdOptimizer]]
    keys: ClassVar[tuple[str, ...]]  # of its hyper-parameters
    allowed: ClassVar[Mapping[str, tuple[tuple[Any, ...], str]]]  # of options not fastgd's, and why
    # GradScaler hands scale and outcome to the step, instead of sweeping all gradients beforehand.
    _step_supports_amp_scaling = True

    def __init__(self, params: Any, hyper: dict[str, Any], fixed: dict[str, Any]) -> None:
        self._reset()
        self._processes = _sharing.splitter()
        self.options = Options(fixed, type(self).__name__, self.kind)
        if self.is_split:
            self.options.refuse_split()
            if self.kind.shared:
                raise ValueError(
                    f"{self.kind.__name__}: excludes ZeroRedundancyOptimizer, as its step size "
                    "follows from the gradients of all parameters"
                )
        self.ema = EMA.of(fixed["average"], self)
        super().__init__(params, hyper)
        for group in self.param_groups:
            self._start(group)

    def _reset(self) -> None:
        self._binding: Binding | None = None
        self._iterates = IterateAverage(self) if self.kind.averages() else None
        self._lock = RLock()
        fork_locks.guard(self, "_lock")
        self._skipped = np.zeros(1, np.int64)
        self._taken = np.zeros(1)  # steps, without those that were skipped
        self.perturbed = False  # whether parameters are elsewhere for the moment, as SAM takes them
        self.record: StepRecord | None = None

    @property
    def average(self) -> EMA | IterateAverage | None:
        """The average of the parameters to evaluate, if there is one."""
        return self._iterates if self.ema is None else self.ema

    def _refuse_swapped(self, what: str) -> None:
        """Raise RuntimeError while something else is in the place of parameters."""
        self._refuse_perturbed(what)
        for average in (self.ema, self._iterates):
            if average is not None:
                average.refuse_swapped(what)

    def _refuse_perturbed(self, what: str) -> None:
        if self.perturbed:
            raise RuntimeError(f"{what}: the parameters are perturbed, and will be restored")

    def refuse_evaluated(self, what: str) -> None:
        """The same, and also while a schedule-free optimizer's parameters are its averages."""
        self._refuse_perturbed(what)
        if self.ema is not None:
            self.ema.refuse_swapped(what)
        if self._iterates is not None:
            self._iterates.refuse_evaluated(what)

    def _setup(self) -> Setup:
        counts = self._skipped, self._taken
        return Setup(self.kind, self.keys, self.options, self.ema, *counts, self._processes)

    @property
    def skipped(self) -> int:
        """The number of steps skipped as gradients were not finite."""
        return int(self._skipped[0])

    @property
    def is_split(self) -> bool:
        """Whether this is one of several optimizers among which parameters are split."""
        return self._processes is not None

    def _start(self, group: Mapping[str, Any]) -> None:
        """Make the states that don't start from 0, as torch does when an optimizer is made."""
        hyper = hyper_of(group, self.keys)
        start = self.kind.initial(hyper)
        for p in group["params"] if start else ():
            rule = self.kind.rule(hyper, tuple(p.shape))
            if set(start) == set(RULES[rule].states):
                entry, kinds = self.state[p], saved_kinds_of(p, rule)
                entry["step"] = torch.tensor(0.0, dtype=torch.float32, device="cpu")
                for key, value in start.items():
                    dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
                    like = p.new_empty(kinds[key].shape) if kinds[key].lines else p
                    entry[key] = torch.full_like(like, value, dtype=dtype, requires_grad=False)

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
            hyper, kinds = hyper_of(group, self.keys), self.options.storage.recall()
            section = Section(k, group, 0, group["params"])
            for i, p in enumerate(group["params"]):
                if not p.requires_grad:
                    continue
                error = _tensors.fault_in(p, group, self.options.given)
                if error is not None:
                    raise type(error)(f"params{section.name(i)}: {error}")
                self._check_storage(p, kinds, hyper, f"params{section.name(i)}")
        except BaseException:
            del self.param_groups[k]
            raise

    def _check_storage(
        self, p: Any, kinds: Callable[[Any, str], Mapping[str, Kind]], hyper: Hyper, name: str
    ) -> None:
        """Refuse a parameter that can't be kept as was asked for."""
        array = _tensors.flat(_tensors.local(p))
        self.options.storage.refuse_unchosen(array, name)
        try:
            rule = self.kind.rule(hyper, tuple(p.shape))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        if not RULES[rule].shards:
            _sharing.refuse_shard(p, rule, name)
        if _tensors.is_sharded(p) and any(k.role == "scale" for k in kinds(array, rule).values()):
            raise ValueError(
                f"{name}: expected states of 16 bits or more for a DTensor, whose "
                "state dicts could not shard scales"
            )

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
        self.refuse_evaluated("step")
        if self._binding is not None and (record := self._binding.step(groups, state, scale)):
            self.record = self.record if record is True else record
            return
        if self._binding is not None:
            self._binding.stepper.plan.refuse_torn()
        self._binding = None
        # Who has no gradients may still have to exchange sums with others.
        params = [p for group in groups for p in group["params"]]
        if any(p.grad is not None for p in params) or (
            _sharing.may_be(params, self._processes) and self._wants_sums()
        ):
            binding = self._bound()
            record = binding.step(groups, state, scale)
            if not record:
                raise RuntimeError("params: changed while they were read")
            self._binding = binding
            self.record = self.record if record is True else record

    def _bound(self) -> Binding:
        """A binding of all parameters as they are now."""
        groups = self.param_groups
        sections = [Section(k, group, 0, group["params"]) for k, group in enumerate(groups)]
        return Binding(self._setup(), sections, self.state)

    def catch_up(self, rows: Mapping[Any, Any] | None = None) -> None:
        """Do to rows of tables what they missed, with ``rows="catch_up"``: to all, or to some.

        Afterwards these rows and their states are those of dense steps with zeros for what had no
        gradient, up to rounding.  Call it for the rows that a forward pass is about to look up; or
        for all before tables are evaluated, or saved by themselves.

        Parameters
        ----------
        rows : dict of Tensor of int32 or int64, optional
            The indices of rows by their parameter, in any shape and order, as a layer is given
            them: ``{embedding.weight: words}``.  By default all rows of all tables.

        Raises
        ------
        ValueError
            If the optimizer was made with other ``rows``; if it has no such parameter, indices are
            out of range, or a parameter has no rows that catch up.  Nothing was changed then.
        TypeError
            If there is something else in the place of indices.
        RuntimeError
            While averages are swapped in.
        """
        with self._lock:
            self.refuse_evaluated("catch_up")
            if not self.options.storage.catch_up:
                raise ValueError(
                    'catch_up: expected an optimizer that was made with rows="catch_up", found '
                    f'rows="{self.options.given.get("rows", "exact")}"'
                )
            some = (
                None if rows is None else _tensors.indices_of(rows, self.param_groups, self.state)
            )
            if not self.state:
                return
            for _ in range(2):
                if self._binding is not None and self._binding.catch_up(
                    self.param_groups, self.state, some
                ):
                    return
                self._binding = self._bound()
            raise RuntimeError("params: changed while they were read")

    def gradients(self) -> tuple[Binding, list[list[Any]]]:
        """Parameters bound, as they will be in the next step, and the arrays of their gradients."""
        for _ in range(2):
            if self._binding is not None:
                grads = self._binding.gradients(self.param_groups, self.state)
                if grads is not None:
                    return self._binding, grads
            self._binding = self._bound()
        raise RuntimeError("params: changed while they were read")

    def _wants_sums(self) -> bool:
        """Whether a step adds up anything over all of a gradient or of a parameter."""
        if wants_norms(self.options, self.param_groups):
            return True
        rules = {
            self.kind.rule(hyper_of(group, self.keys), tuple(p.shape))
            for group in self.param_groups
            for p in group["params"]
        }
        return any(RULES[rule].sums for rule in rules)

    # ------------------------------------------------------------------------------ state dicts

    def state_dict(self) -> dict[str, Any]:
        """torch's state dict; what torch has no place for is under ``"fastgd"``, if there is any.

        That is the number of skipped steps, the seed of rounding, and the number of updates of the
        average, which itself stands beside the states.  torch's own classes ignore it.
        """
        with self._lock:
            self._refuse_swapped("state_dict")
            written = super().state_dict()
            extras = extras_of(self)
            if type(self).__name__ in COUNTS_IN_INTEGERS:
                written["state"] = with_integers(written["state"])
            if self.ema is not None:
                written["state"] = with_steps(written["state"], self.ema.step)
            return {**written, "fastgd": extras} if extras else written

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take states and hyper-parameters from a state dict of torch's, or of fastgd's own.

        Tensors are copied, and kept as this optimizer keeps its states, however they were kept.
        Averages and counts of skipped steps that the state dict doesn't have stay as they are.

        Raises
        ------
        TypeError, ValueError
            If it doesn't fit; the optimizer stays as it was.
        """
        with self._lock:
            self._refuse_swapped("load_state_dict")
            found: list[dict[str, Any]] = []

            def last(_: Any, given: dict[str, Any]) -> dict[str, Any]:
                found.append(check_extras(given))
                return boxed(given)

            # After what hooks others have registered: torch would cast states to parameters' dtype.
            handle = self.register_load_state_dict_pre_hook(last)
            try:
                super().load_state_dict(with_tensors(state_dict))
            finally:
                handle.remove()
            self._take_extras(found[-1])

    def _take_extras(self, extras: dict[str, Any]) -> None:
        self._skipped[0] = extras.get("skipped", self.skipped)
        if self.ema is not None:
            self.ema.take_steps(self.state.values())
        if "seed" in extras:
            self.options.reseed(extras["seed"])
        if self.ema is not None and any(AVERAGE in entry for entry in self.state.values()):
            self.ema.steps = np.array([extras.get("average", self.ema.step)], np.int64)

    def __getstate__(self) -> dict[str, Any]:
        """What torch copies and pickles, and fastgd's options.

        Raises
        ------
        TypeError
            In a ZeroRedundancyOptimizer: a copy without its processes would be of other norms.
        """
        if self.is_split:
            raise TypeError(
                f"copy: expected an optimizer of all parameters, found the {type(self).__name__} "
                "of a ZeroRedundancyOptimizer, whose processes can't be copied or pickled; "
                "consolidate_state_dict() and state_dict() have its states"
            )
        with self._lock:
            self._refuse_swapped("copy")  # the weights would never come back
            average = self.ema
            settings = None
            if average is not None:
                settings = (average.decay, average.bias_correction, average.warmup, average.step)
            own = {"options": self.options, "average": settings, "skipped": self.skipped}
            return {**super().__getstate__(), "fastgd": own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what was pickled, copied, or (by ``load_state_dict``) read from a state dict."""
        loaded = "defaults" not in state
        defaults = self.defaults if loaded else state["defaults"]
        for k, group in enumerate(state["param_groups"]):
            now = self.param_groups[k] if loaded else {}
            for key, default in defaults.items():
                group.setdefault(key, now.get(key, default))
        if loaded:
            for entry in state["state"].values():
                for key, value in entry.items() if isinstance(entry, dict) else ():
                    entry[key] = value.tensor if isinstance(value, Boxed) else value
            self._check_loaded(state)
            # torch would go on with the very tensors of the state dict, which are the caller's.
            for entry in state["state"].values():
                for key, value in entry.items():
                    entry[key] = (
                        value.detach().clone() if isinstance(value, torch.Tensor) else value
                    )
            if self.ema is not None:
                for p, average in self.ema.averages.items():
                    state["state"][p].setdefault(AVERAGE, average)
        else:
            self._reset()
            state = {**state}
            own = state.pop("fastgd")
            self.options, self._skipped[0] = own["options"], own["skipped"]
            self._processes = None  # those of one with processes are refused
            self.ema = None
            if own["average"] is not None:
                *settings, step = own["average"]
                average = EMA(*settings)
                average.steps[0] = step
                self.ema = EMA.of(average, self)
        self._binding = None
        super().__setstate__(state)

    def _check_loaded(self, state: dict[str, Any]) -> None:
        """Refuse a state dict that doesn't fit, before any of it is taken."""
        for k, group in enumerate(state["param_groups"]):
            # Which of torch's kernels made the states doesn't matter to them.
            ways = {key: values[0] for key, (values, _) in self.allowed.items() if key in HOW}
            self._check_group({**group, **ways}, k)
            hyper = hyper_of(group, self.keys)
            section = Section(k, group, 0, group["params"])
            for i, p in enumerate(group["params"]):
                entry, name = state["state"].get(p) or {}, f"state{section.name(i)}"
                rule = self.kind.rule(hyper, tuple(p.shape))
                check_entry(entry, p, rule, self.ema is not None, self.options.storage, name)
