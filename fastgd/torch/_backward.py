"""Steps within backward: each gradient is used as soon as it is made, and freed."""

from __future__ import annotations

from typing import Any

import torch

from fastgd.kernels.reference import RULES
from fastgd.torch._binding import Binding, Section, hyper_of
from fastgd.torch._optimizer import Optimizer
from fastgd.torch._tensors import is_sharded


def step_in_backward(model: torch.nn.Module, opt: Optimizer) -> StepInBackward:
    """Step each parameter as soon as ``loss.backward()`` has made its gradient, and free that.

    The gradient is still in cache when it is used, and only those that backward itself needs are
    in memory at a time: for a large model, peak memory is a quarter below that of parameters,
    gradients and Adam's two states.  The result is that of ``loss.backward(); opt.step();
    opt.zero_grad()``.

    Parameters
    ----------
    model : torch.nn.Module
        The model.  Its parameters that the optimizer has, and that require gradients now, are
        stepped in backward.
    opt : fastgd.torch.Optimizer
        The optimizer.  ``opt.step()`` steps parameters that still have a gradient then: those that
        are not the model's, or were added later; a training loop that calls it needs no change.

    Returns
    -------
    StepInBackward
        A handle whose ``remove()`` ends this; also a context manager.

    Raises
    ------
    TypeError, ValueError
        If `opt` is no optimizer of this module, has none of the model's parameters, or has options
        that need all gradients at once: an average, ``nonfinite`` other than "propagate",
        ``clip_norm`` other than with ``clip_by="tensor"``, or any of DTensors, for whose norms
        `LAMB` and `LARS` are refused, too; or if it is `Prodigy`, whose step size follows from all
        gradients.  If `model` is, or has, a DistributedDataParallel, or a ZeroRedundancyOptimizer
        made `opt`.

    Notes
    -----
    Every ``backward()`` is a step, so that gradients can't be accumulated over several, nor be
    clipped by the norm of all; and a loss that ``GradScaler`` has scaled must not be used.  The
    optimizer's step hooks run with ``opt.step()``.  Models of ``fully_shard()`` work.  The module
    within a DistributedDataParallel doesn't, which can't be detected.

    Examples
    --------
    >>> import torch, fastgd.torch
    >>> model = torch.nn.Linear(3, 1)
    >>> opt = fastgd.torch.SGD(model.parameters(), lr=0.1)
    >>> before = model.weight.clone()
    >>> with fastgd.torch.step_in_backward(model, opt):
    ...     model(torch.ones(1, 3)).sum().backward()
    >>> bool(torch.allclose(model.weight, before - 0.1)), model.weight.grad
    (True, None)
    """
    if not isinstance(opt, Optimizer):
        raise TypeError(f"opt: expected an optimizer of fastgd.torch, found {type(opt).__name__}")
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, found {type(model).__name__}")
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    shared = [p for group in opt.param_groups for p in group["params"] if id(p) in trained]
    if not shared:
        raise ValueError("model: expected parameters that opt has, and that require gradients")
    refuse_reduced(model, opt)
    refuse_options(opt)
    return StepInBackward(opt, shared)


def refuse_reduced(model: torch.nn.Module, opt: Optimizer) -> None:
    """Raise ValueError if gradients are reduced over processes only after backward made them."""
    if any(isinstance(m, torch.nn.parallel.DistributedDataParallel) for m in model.modules()):
        raise ValueError(
            "model: step_in_backward excludes DistributedDataParallel, which reduces gradients "
            "over processes only after the step has used them; fully_shard() does so before"
        )
    if opt.is_split:
        raise ValueError(
            "opt: step_in_backward excludes ZeroRedundancyOptimizer, which broadcasts parameters "
            "only after its own steps"
        )


def refuse_options(opt: Optimizer) -> None:
    """Raise ValueError for options that need more than the gradient that was just made."""
    opt.options.refuse_in_backward(opt.param_groups, opt.ema is not None)
    if opt.kind.shared:
        raise ValueError(
            f"opt: step_in_backward excludes {opt.kind.__name__}, whose step size follows from all "
            "gradients"
        )
    for k, group in enumerate(opt.param_groups):
        if group["clip_norm"] is not None and any(map(is_sharded, group["params"])):
            raise ValueError(
                f"params[{k}]: step_in_backward excludes clip_norm of DTensors, whose norm needs "
                "all processes"
            )
        for p in filter(is_sharded, group["params"]):
            rule = opt.kind.rule(hyper_of(group, opt.keys), tuple(p.shape))
            if RULES[rule].sums:
                raise ValueError(
                    f"params[{k}]: step_in_backward excludes {opt.kind.__name__} of DTensors, of "
                    "which it adds up what all processes have"
                )


class StepInBackward:
    """The handle that `step_in_backward` returns, a context manager that removes itself."""

    def __init__(self, opt: Optimizer, params: list[Any]) -> None:
        self._opt = opt
        self._bindings: dict[int, Binding] = {}
        self._places: dict[int, tuple[int, int, dict[str, Any]]] = {}
        self._hooks = [p.register_post_accumulate_grad_hook(self._step) for p in params]

    def remove(self) -> None:
        """Leave gradients to ``opt.step()`` again; repeated calls do nothing."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._bindings.clear()

    def __enter__(self) -> StepInBackward:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _step(self, p: Any) -> None:
        """Step a parameter and free its gradient."""
        opt = self._opt
        with opt._lock:
            opt.refuse_evaluated("step")
            k, i = self._place(p)
            binding = self._bindings.get(id(p))
            if binding is None or not binding.step(None, opt.state, 1.0):
                refuse_options(opt)
                section = Section(k, opt.param_groups[k], i, [p])
                before = sum(max(len(group["params"]), 1) for group in opt.param_groups[:k])
                binding = Binding(opt._setup(), [section], opt.state, before + i)
                if not binding.step(None, opt.state, 1.0):
                    raise RuntimeError("params: changed while they were read")
                self._bindings[id(p)] = binding
            p.grad = None
            opt._opt_called = True  # or torch's schedulers warn that no step came before theirs

    def _place(self, p: Any) -> tuple[int, int]:
        """The index of the parameter's group, and its index there, as they are now."""
        groups = self._opt.param_groups
        if known := self._places.get(id(p)):
            k, i, group = known
            if (
                k < len(groups)
                and groups[k] is group
                and p is (group["params"][i : i + 1] or [0])[0]
            ):
                return k, i
        self._bindings.pop(id(p), None)
        for k, group in enumerate(groups):
            for i, q in enumerate(group["params"]):
                if q is p:
                    self._places[id(p)] = k, i, group
                    return k, i
        raise ValueError("opt: no longer has a parameter that step_in_backward was told to step")
