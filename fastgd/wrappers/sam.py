"""SAM: steps along the gradient of a place nearby, where the loss is higher."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgd.core import domains
from fastgd.core.accumulated import Split
from fastgd.core.interrupts import to_the_end
from fastgd.core.optimizer import Optimizer
from fastgd.core.stepper import Stepper
from fastgd.kernels._engine import Plan, StepRecord, global_norm
from fastgd.kernels.memory.checks import shown
from fastgd.kernels.reference import Stages
from fastgd.kernels.spec.coded_array import as_coded

Array = NDArray[Any]

# So that parameters of 16 bits are perturbed with other random words than they are stepped with.
_SALT = 0x7654321


class SAM:
    r"""Any optimizer, stepping along the gradient at a worse place nearby: towards flat minima.

    .. math::
        \epsilon = \rho \frac{g(W)}{\|g(W)\| + 10^{-12}}, \qquad
        \epsilon = \rho \frac{W^2 g(W)}{\|W g(W)\| + 10^{-12}} \text{ (adaptive)}

    with norms over all parameters; the optimizer then steps from :math:`W` along
    :math:`g(W + \epsilon)`.  Each step takes two gradients.

    Parameters
    ----------
    optimizer : Optimizer
        What takes the steps; groups, states and checkpoints are its own, and a run is resumed by
        saving and loading it alone.
    rho : float
        ρ, at least 0: how far away the second gradient is taken.  The papers take 0.05, and for
        `adaptive` about ten times as much.
    adaptive : bool
        Measure in multiples of each weight (ASAM), so that rescaling weights changes nothing.

    Raises
    ------
    TypeError, ValueError
        If an argument is not valid.

    Notes
    -----
    Where a group maximizes, its parameters are perturbed against the gradient.  Those without a
    gradient stay where they are; all others are perturbed, whatever their learning rate.  With a
    master, the parameter is perturbed and the master stays as it is; parameters of 16 bits are
    rounded stochastically, as most perturbations are smaller than they can tell apart.

    If gradients are not finite, ``nonfinite`` of the optimizer says what happens: "raise" does so
    before anything is changed; with "skip" nothing is perturbed, and the step decides by the second
    gradient; else parameters become what the formula says, until they are restored.

    References
    ----------
    Foret, Kleiner, Mobahi and Neyshabur, "Sharpness-aware minimization for efficiently improving
    generalization", 2021.
    Kwon, Kim, Park and Choi, "ASAM: adaptive sharpness-aware minimization for scale-invariant
    learning of deep neural networks", 2021.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> w = np.array([3.0, 4.0])
    >>> sam = fastgd.SAM(fastgd.SGD(w, lr=0.1), rho=0.5)
    >>> loss, record = sam.step(lambda: (float(w @ w) / 2, w.copy()))
    >>> loss, w.round(2)  # the second gradient is that of (3.3, 4.4)
    (12.5, array([2.67, 3.56]))

    The same in two halves, for loops that have the first gradient already:

    >>> with sam.perturbed(w.copy()):
    ...     grads = w.copy()
    >>> record = sam.optimizer.step(grads)
    """

    def __init__(self, optimizer: Optimizer, rho: float = 0.05, adaptive: bool = False) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: expected a fastgd.Optimizer, found {shown(optimizer)}")
        if optimizer.storage.catch_up:
            raise ValueError(
                'optimizer: expected one without rows="catch_up": a gradient nearby is that of '
                "whole parameters, whose rows have to have caught up"
            )
        self.optimizer = optimizer
        self.rho = domains.nonnegative(rho, "rho")
        self.adaptive = domains.flag(adaptive, "adaptive")

    def __repr__(self) -> str:
        return f"SAM(rho={self.rho}, adaptive={self.adaptive}):\n{self.optimizer!r}"

    def step(
        self, loss_and_grads: Callable[[], tuple[float, object]], *, grad_scale: float = 1.0
    ) -> tuple[float, StepRecord]:
        """Take one step along the gradient that a function works out nearby.

        Parameters
        ----------
        loss_and_grads : callable
            From nothing to the loss at the parameters as they are and its gradients, as
            `Optimizer.minimize` takes it; called twice.  It may return the same arrays again.
        grad_scale : float
            As for `Optimizer.step`.

        Returns
        -------
        loss : float
            The loss at the parameters before the step.
        record : StepRecord
            What the optimizer's step did.

        Raises
        ------
        Exception
            What `loss_and_grads`, `perturbed` and the optimizer's step raise.  Parameters and
            states are then what they were.
        """
        with self.optimizer.stepper.lock:
            loss, grads = loss_and_grads()
            with self.perturbed(grads):
                _, second = loss_and_grads()
            return loss, self.optimizer.step(second, grad_scale=grad_scale)

    @contextmanager
    def perturbed(self, grads: object = None) -> Iterator[None]:
        """Perturb the parameters along gradients; on leaving the block, restore them.

        They, and what they are copied to, are restored bit for bit, whatever is raised in the
        block.  This takes memory for a copy of them, and while the block is entered with
        `adaptive` for one of the gradients.

        Parameters
        ----------
        grads : array or nested lists and dicts of arrays, optional
            The gradients at the parameters, as for `Optimizer.step`.  By what their loss was
            scaled makes no difference.

        Raises
        ------
        TypeError, ValueError
            If a gradient is missing or doesn't fit its parameter.  Nothing was changed then.
        FloatingPointError
            If gradients are not finite and the optimizer's ``nonfinite`` is "raise".  Nothing was
            changed then.
        RuntimeError
            In such a block, or while averages are swapped in.  Steps, checkpoints and copies of the
            optimizer raise it within the block, too.
        """
        stepper = self.optimizer.stepper
        with stepper.lock:
            stepper.refuse_elsewhere("perturbed")
            params, copies = list(stepper.params().values()), stepper.copies
            if grads is None and (grads := stepper.bound()) is None:
                raise TypeError("perturbed() needs gradients, as no gradients were bound")
            perturb = perturbation(stepper, grads, self.rho, self.adaptive)
            changed = [*params, *(copies or ())]
            saved = [a.copy("K") for a in changed]
            try:
                stepper.perturbed = True
                for home in stepper.homes.values():
                    home.lend()
                perturb()
                yield
            finally:
                to_the_end(partial(self._restore, changed, saved))

    def _restore(self, changed: list[Array], saved: list[Array]) -> None:
        for a, value in zip(changed, saved, strict=True):
            a[...] = value
        for home in self.optimizer.stepper.homes.values():
            home.take_back()
        self.optimizer.stepper.perturbed = False


def perturbation(stepper: Stepper, grads: object, rho: float, adaptive: bool) -> Callable[[], None]:
    """What perturbs the parameters of a stepper along gradients, of which the norm is taken here.

    Raises
    ------
    TypeError, ValueError, FloatingPointError
        As `SAM.perturbed`; the function itself may only find that gradients don't fit their
        parameters, before it changes anything.
    """
    params, copies = list(stepper.params().values()), stepper.copies
    split = Split(stepper.structure, grads)
    for i in split.rows:
        raise ValueError(
            f"grads{stepper.labels()[i]}: expected an array, as SAM perturbs and restores whole "
            "parameters, found Rows"
        )
    with np.errstate(all="ignore"):
        along, norm = (
            _by_weights(stepper, params, split) if adaptive else (grads, global_norm(grads))
        )
    finite, nonfinite = math.isfinite(norm), stepper.options["nonfinite"]
    if not finite and nonfinite == "raise":
        raise FloatingPointError(f"grads: expected a finite norm, found {norm}")
    plan, scale = _plan(stepper, params, copies), rho / (norm + 1e-12)

    def configure(k: int, *_: Any) -> tuple[Any, ...]:
        sign = 1.0 if stepper.param_groups[k]["maximize"] else -1.0
        return "sgd", (sign * scale,), Stages()

    def perturb() -> None:
        if finite or nonfinite == "propagate":
            zero = stepper.options["zero_grads"]
            if zero and adaptive:  # what `along` is made of
                stepper.nothing_accumulated().add(split, 1.0, zero=True)
            plan.step(along, configure, 1.0, zero=zero)

    return perturb


def _by_weights(stepper: Stepper, params: list[Array], grads: Split) -> tuple[object, float]:
    """W²g, what to perturb along with `adaptive`, and the norm of Wg."""
    # A copy of the gradients, in the order of the parameters.
    sums = stepper.nothing_accumulated()
    sums.add(grads, 1.0)
    weights = [as_coded(p).load(a.dtype) for p, a in zip(params, sums.sums, strict=True)]
    for own, w in zip(sums.sums, weights, strict=True):
        as_coded(own).raw()[...] *= w
    norm = global_norm(sums.sums)
    for own, w in zip(sums.sums, weights, strict=True):
        as_coded(own).raw()[...] *= w
    return sums.grads(), norm


def _plan(stepper: Stepper, params: list[Array], copies: list[Array] | None) -> Plan:
    """What adds to the parameters, which has none of the optimizer's states."""
    n = len(params)
    groups = [k for k, names in enumerate(stepper.names) for _ in names]
    given = [as_coded(p)._replace(stochastic=p.itemsize == 2) for p in params]
    return Plan(
        stepper.structure,
        given,
        stepper.labels(),
        groups,
        [()] * n,
        ["sgd"] * n,
        stepper.steps.copy(),
        copies=copies,
        seed=(stepper.plan.seed ^ _SALT) % 2**64,
    )
