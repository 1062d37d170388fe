"""SAM for torch: steps along the gradient of a place nearby, where the loss is higher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastgd.core import domains
from fastgd.core.interrupts import to_the_end
from fastgd.kernels.memory.checks import shown
from fastgd.torch._lookahead import Lookahead
from fastgd.torch._optimizer import Optimizer
from fastgd.torch._wrappers import Wrapper, refuse_shards
from fastgd.wrappers.sam import perturbation


class SAM(Wrapper):
    """Any optimizer of `fastgd.torch`, stepping along the gradient at a worse place nearby.

    The formula, and what happens to masters and parameters of 16 bits: `fastgd.SAM`.  To schedulers
    it is the optimizer that it wraps, whose groups, states, state dicts and hooks it has.

    Parameters
    ----------
    optimizer : fastgd.torch.Optimizer or Lookahead
        What takes the steps.
    rho : float
        ρ, at least 0: how far away the second gradient is taken.
    adaptive : bool
        Measure in multiples of each weight (ASAM).

    Raises
    ------
    TypeError, ValueError
        If an argument is not valid, or the optimizer has shards of parameters, whose norms other
        processes would have to know.

    Notes
    -----
    Two ways to use it::

        loss = sam.step(closure)                  # called twice, after gradients were zeroed

        loss_of(model).backward()
        sam.first_step(zero_grad=True)            # perturbs the parameters
        loss_of(model).backward()
        sam.second_step(zero_grad=True)           # restores them, and steps

    Between the two the optimizer refuses steps, state dicts and copies.  With ``GradScaler`` take
    the second way, with ``scaler.scale(loss).backward()``, and ``scaler.step(sam)`` in the place of
    `second_step`; by what the first loss was scaled makes no difference, so don't unscale.

    References
    ----------
    Foret, Kleiner, Mobahi and Neyshabur, "Sharpness-aware minimization for efficiently improving
    generalization", 2021.
    Kwon, Kim, Park and Choi, "ASAM: adaptive sharpness-aware minimization for scale-invariant
    learning of deep neural networks", 2021 (adaptive).

    Examples
    --------
    >>> import torch, fastgd.torch
    >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> sam = fastgd.torch.SAM(fastgd.torch.SGD([w], lr=0.5), rho=5.0)
    >>> def closure():
    ...     loss = w.square().sum() / 2  # its gradient is w
    ...     loss.backward()
    ...     return loss
    >>> loss = sam.step(closure)
    >>> loss.item(), w.data  # half of twice as far out
    (12.5, tensor([0., 0.]))
    """

    def __init__(
        self, optimizer: Optimizer | Lookahead, rho: float = 0.05, adaptive: bool = False
    ) -> None:
        if not isinstance(optimizer, (Optimizer, Lookahead)):
            raise TypeError(
                f"optimizer: expected an optimizer of fastgd.torch, found {shown(optimizer)}"
            )
        self.rho = domains.nonnegative(rho, "rho")
        self.adaptive = domains.flag(adaptive, "adaptive")
        super().__init__(optimizer)
        refuse_shards(self._base, "SAM")
        if self._base.options.storage.catch_up:
            raise ValueError(
                'optimizer: expected one without rows="catch_up": a gradient nearby is that of '
                "whole parameters, whose rows have to have caught up"
            )
        self._saved: list[tuple[Any, Any]] | None = None

    @property
    def _base(self) -> Optimizer:
        """The optimizer at the bottom."""
        opt = self.optimizer
        base: Optimizer = opt.optimizer if isinstance(opt, Lookahead) else opt
        return base

    def first_step(self, zero_grad: bool = False) -> None:
        """Perturb the parameters along their gradients.

        Those without a gradient stay where they are.  Takes memory for a copy of the others.

        Parameters
        ----------
        zero_grad : bool
            Zero the gradients afterwards.

        Raises
        ------
        TypeError, ValueError
            If a gradient doesn't fit its parameter.  Nothing was changed then.
        FloatingPointError
            If gradients are not finite and the optimizer's ``nonfinite`` is "raise".  Nothing was
            changed then.
        RuntimeError
            If the parameters are perturbed already, or averages are in their place.
        """
        base = self._base
        with base._lock:
            base.refuse_evaluated("first_step")
            binding, grads = base.gradients()
            perturb = perturbation(binding.stepper, grads, self.rho, self.adaptive)
            params = [p for _, p, _ in binding.tensors() if p.grad is not None]
            saved = [(p, p.detach().clone()) for p in params]
            try:
                self._saved = saved
                base.perturbed = True
                perturb()
                binding.changed()
            except BaseException:
                self.restore()
                raise
        if zero_grad:
            self.zero_grad()

    def restore(self) -> None:
        """Put the parameters back where `first_step` found them, to the bit, without a step."""
        with self._base._lock:
            to_the_end(self._restore)

    def _restore(self) -> None:
        with torch.no_grad():
            for p, own in self._saved or ():
                p.copy_(own)
        self._base.perturbed = False
        self._saved = None

    def second_step(self, zero_grad: bool = False) -> None:
        """Restore the parameters to the bit, and step from there along their gradients.

        Parameters
        ----------
        zero_grad : bool
            Zero the gradients afterwards.

        Raises
        ------
        RuntimeError
            If there was no `first_step`.
        Exception
            What the optimizer's step raises; the parameters are restored then.
        """
        if self._saved is None:
            raise RuntimeError("second_step: expected first_step() before")
        self.restore()
        self.optimizer.step()
        if zero_grad:
            self.zero_grad()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step along the gradient nearby.

        Parameters
        ----------
        closure : callable, optional
            Evaluates the model, computes gradients and returns the loss; called twice, each time
            after gradients were zeroed.  None is for after `first_step`: the same as `second_step`.

        Returns
        -------
        object
            The loss at the parameters before the step, or None.

        Raises
        ------
        TypeError
            If there is neither a closure, nor was there a `first_step`.
        Exception
            What `closure`, `first_step` and `second_step` raise; the parameters are restored then.
        """
        if closure is None:
            if self._saved is None:
                raise TypeError("step: expected a closure, or first_step() before")
            self.second_step()
            return None
        if getattr(self._base, "found_inf", None) is not None:
            raise RuntimeError(
                "step: expected first_step() and then GradScaler's step without a closure, as it "
                "looks at gradients before the closure makes them"
            )
        self._base.refuse_evaluated("step")
        with torch.enable_grad():
            self.zero_grad()
            loss = closure()
            self.first_step(zero_grad=True)
            try:
                closure()
            except BaseException:
                self.restore()
                raise
        self.second_step()
        return loss

    step.hooked = True  # type: ignore[attr-defined]  # the wrapped one has the hooks
