"""Lookahead for torch: slow weights, which follow the fast ones every few steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from fastgd.core import domains
from fastgd.core.interrupts import to_the_end
from fastgd.kernels.memory.checks import shown
from fastgd.kernels.spec.coded_array import codec_of
from fastgd.torch import _tensors
from fastgd.torch._binding import Binding
from fastgd.torch._optimizer import Optimizer
from fastgd.torch._states import DTYPES
from fastgd.torch._wrappers import Wrapper, refuse_shards
from fastgd.wrappers.lookahead import Pull, dtype_of, stepped_by, take


class Lookahead(Wrapper):
    """Any optimizer of `fastgd.torch`, pulled back every few steps, as by `fastgd.Lookahead`.

    It is the optimizer itself with one more line to its step: schedulers, ``GradScaler``, hooks,
    groups and states are those of the wrapped one.

    Parameters
    ----------
    optimizer : fastgd.torch.Optimizer
        What to wrap; step, save and load it through this from now on.
    k : int
        After how many steps the slow weights follow.  Steps that were skipped don't count.
    alpha : float
        The part of the way that they go, from 0 to 1.

    Attributes
    ----------
    optimizer : fastgd.torch.Optimizer
        What was wrapped.
    slow : dict of tensor
        The slow weights by parameter, in the precision of what steps update: that of the parameter,
        or of its master.

    Raises
    ------
    TypeError, ValueError
        If an argument is not valid, or the optimizer makes parameters anew from states, averages
        them, or has shards of them.

    References
    ----------
    Zhang, Lucas, Hinton and Ba, "Lookahead optimizer: k steps forward, 1 step back", 2019.

    Examples
    --------
    >>> import torch, fastgd.torch
    >>> w = torch.nn.Parameter(torch.ones(1))
    >>> opt = fastgd.torch.Lookahead(fastgd.torch.SGD([w], lr=0.1), k=2, alpha=0.5)
    >>> for _ in range(2):
    ...     w.grad = torch.ones(1)
    ...     opt.step()
    >>> w.data  # halfway between 1.0 and 0.8
    tensor([0.9000])
    """

    def __init__(self, optimizer: Optimizer, k: int = 5, alpha: float = 0.5) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"optimizer: expected an optimizer of fastgd.torch, found {shown(optimizer)}"
            )
        if optimizer.average is not None:
            raise ValueError(
                "optimizer: expected one without average, which would average the fast weights "
                "before they are pulled back"
            )
        if optimizer.options.storage.catch_up:
            raise ValueError(
                'optimizer: expected one without rows="catch_up": rows would be pulled back from '
                "where they were before they caught up"
            )
        if optimizer.kind.remade:
            raise ValueError(
                f"optimizer: expected one that steps from where parameters are, found "
                f"{optimizer.kind.__name__}, whose states would undo that they are pulled back, "
                "or miss it"
            )
        if not 0 <= domains.number(alpha, "alpha") <= 1:
            raise ValueError(f"alpha: expected a number from 0 to 1, found {alpha}")
        refuse_shards(optimizer, "Lookahead")
        super().__init__(optimizer)
        self.k, self.alpha = domains.integer(k, "k", 1, 2**53), float(alpha)
        self.slow: dict[Any, Any] = {}
        self._pulled = np.zeros(1)  # 1 while parameters are pulled and the slow weights not yet
        self._over: tuple[Binding, Pull] | None = None
        with optimizer._lock:
            optimizer.refuse_evaluated("Lookahead")
            self._last = self._taken()  # as many steps had been taken at the last pull
            self._keep_up()

    def _taken(self) -> float:
        return float(self.optimizer._taken[0])

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step as the wrapped optimizer does; after every k-th step, let the slow weights follow.

        Returns
        -------
        object
            What `closure` returned, or None.
        """
        self._catch_up()  # if the last step was interrupted
        try:
            return self.optimizer.step(closure)
        finally:
            self._catch_up()

    step.hooked = True  # type: ignore[attr-defined]  # the wrapped one has the hooks

    def _catch_up(self) -> None:
        """Pull, if it is time."""
        while self._taken() - self._last >= self.k:
            with self.optimizer._lock:
                to_the_end(self._pull)

    def _pull(self) -> None:
        """Let the slow weights follow; may be done over at any point."""
        binding, pull = self._bound()
        pull(self.alpha, self._pulled)
        binding.changed()
        self._last = self._taken()

    def _bound(self) -> tuple[Binding, Pull]:
        """What pulls the parameters where they are now, with the slow weights laid out as they."""
        binding, _ = self.optimizer.gradients()
        if self._over is not None and self._over[0] is binding:
            return self._over
        stepper = binding.stepper
        params, stepped = stepper.params(), stepped_by(stepper)
        slow = {name: np.empty(0, p.dtype) for name, p in params.items()}  # of what is not bound
        for name, p, tensor in binding.tensors():
            codec = codec_of(dtype_of(params[name], stepped[name]))
            assert codec is not None
            dtype = DTYPES[codec]
            own = self.slow.get(p)
            if own is None or (own.dtype, own.stride()) != (dtype, tensor.stride()):
                made = torch.empty_like(tensor, dtype=dtype, requires_grad=False)
                if own is not None:
                    made.copy_(own)
                else:
                    take(_tensors.flat(made), stepped[name])
                own = self.slow[p] = made
            slow[name] = _tensors.flat(own)
        self._over = binding, Pull(stepper, slow)
        return self._over

    def _keep_up(self) -> None:
        """Start the slow weights of parameters that have none, where these are now."""
        self._bound()
        for group in self.param_groups:
            for p in group["params"]:
                if p not in self.slow:  # it is frozen
                    self.slow[p] = p.detach().clone()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Do what the wrapped optimizer does; the slow weights are the new parameters."""
        self._catch_up()
        super().add_param_group(param_group)
        with self.optimizer._lock:
            self._keep_up()

    # -------------------------------------------------------------------------------- the states

    def state_dict(self) -> dict[str, Any]:
        """That of the wrapped optimizer, with the slow weights beside it."""
        self._catch_up()
        params = [p for group in self.param_groups for p in group["params"]]
        slow = {i: self.slow[p] for i, p in enumerate(params)}
        own = {"step": int(self._taken() - self._last), "slow": slow}
        return {**super().state_dict(), "lookahead": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do what the wrapped optimizer does, with a state dict that a `Lookahead` wrote.

        To go on from another one, load it into the optimizer and then wrap that.
        """
        self._catch_up()
        step, slow = self._read(state_dict)
        super().load_state_dict(state_dict)
        with self.optimizer._lock:
            self._last = self._taken() - step
            for p, value in slow.items():
                self.slow[p].copy_(value)

    def _read(self, state_dict: Mapping[str, Any]) -> tuple[int, dict[Any, Any]]:
        """The steps since the last pull, and the slow weights by parameter, of a state dict."""
        where = 'state_dict["lookahead"]'
        saved = state_dict.get("lookahead") if isinstance(state_dict, Mapping) else None
        if not isinstance(saved, Mapping) or set(saved) != {"step", "slow"}:
            raise ValueError(f"{where}: expected a dict of 'step' and 'slow', found {shown(saved)}")
        step = domains.integer(saved["step"], f'{where}["step"]')
        params = [p for group in self.param_groups for p in group["params"]]
        slow = saved["slow"]
        if not isinstance(slow, Mapping) or set(slow) != set(range(len(params))):
            raise ValueError(
                f'{where}["slow"]: expected slow weights of {len(params)} parameters, found '
                f"{shown(slow)}"
            )
        for i, p in enumerate(params):
            label, value = f'{where}["slow"][{i}]', slow[i]
            if not isinstance(value, torch.Tensor) or not value.dtype.is_floating_point:
                raise TypeError(f"{label}: expected a tensor of floats, found {shown(value)}")
            if value.shape != p.shape:
                raise ValueError(
                    f"{label}: expected shape {tuple(p.shape)}, found {tuple(value.shape)}"
                )
        return step, {p: slow[i].detach().clone() for i, p in enumerate(params)}

    def __getstate__(self) -> dict[str, Any]:
        self._catch_up()
        own = {"_over": None, "_last": self._last - self._taken()}  # a copy counts anew
        return {**super().__getstate__(), **own}
