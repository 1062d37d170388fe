"""Lookahead: slow weights, which every few steps go a part of the way of the fast ones."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fastgd.core import domains
from fastgd.core.interrupts import to_the_end
from fastgd.core.optimizer import Optimizer
from fastgd.core.stepper import Stepper
from fastgd.core.trees import Name
from fastgd.kernels._engine import Plan, StepRecord
from fastgd.kernels.memory import checks
from fastgd.kernels.memory.alloc import aligned_zeros
from fastgd.kernels.memory.checks import shown
from fastgd.kernels.reference import Stages
from fastgd.kernels.spec.coded_array import CodedArray, as_coded, codec_of, computed

Array = NDArray[Any]

# So that parameters of 16 bits are pulled with other random words than they are stepped with.
_SALT = 0x1234567


class Lookahead(Optimizer):
    r"""Any optimizer, pulled back every few steps: less noise, and fewer steps that go astray.

    .. math::
        \phi \leftarrow \phi + \alpha (W - \phi), \qquad W \leftarrow \phi

    after every k steps of the optimizer; the slow weights :math:`\phi` are what the parameters were
    when it was wrapped.

    It is the optimizer itself, with one more line to its step: groups, options, schedules, states
    and checkpoints are those of the wrapped one, which goes on with its momentum.

    Parameters
    ----------
    optimizer : Optimizer
        What to wrap; step, save and load it through this from now on.
    k : int
        After how many steps the slow weights follow.  Steps that were skipped don't count.
    alpha : float
        The part of the way that they go, from 0 to 1.

    Attributes
    ----------
    optimizer : Optimizer
        What was wrapped.
    slow : dict of ndarray
        The slow weights by the name of their parameter, in the precision of what steps update: that
        of the parameter, or of its master.

    Raises
    ------
    TypeError, ValueError
        If an argument is not valid, or the optimizer makes parameters anew from states, as FTRL,
        MADGRAD and ASGD do, or it averages weights, as schedule-free ones do by
        themselves: it would average the fast ones, before they are pulled back.  A
        `fastgd.averages.EMA` of the parameters that is updated after each step averages what they
        are then.

    Notes
    -----
    The slow weights take as much memory as the parameters, and pulling takes a sweep over both and
    a copy.  Parameters of 16 bits without a master are pulled by the rounding that was chosen.
    Where parameters are evaluated amid k steps, they are the fast ones; `slow` has the others.

    References
    ----------
    Zhang, Lucas, Hinton and Ba, "Lookahead optimizer: k steps forward, 1 step back", 2019.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> w = np.array([1.0])
    >>> opt = fastgd.Lookahead(fastgd.SGD(w, lr=0.1), k=2, alpha=0.5)
    >>> for _ in range(2):
    ...     _ = opt.step(np.array([1.0]))
    >>> w  # halfway between 1.0 and 0.8
    array([0.9])
    """

    def __init__(self, optimizer: Optimizer, k: int = 5, alpha: float = 0.5) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: expected a fastgd.Optimizer, found {shown(optimizer)}")
        if isinstance(optimizer, Lookahead):
            raise ValueError("optimizer: expected one without Lookahead, found one with it")
        if optimizer.average is not None:
            raise ValueError(
                "optimizer: expected one without average, which would average the fast weights "
                "before they are pulled back; update a fastgd.averages.EMA after each step"
            )
        if optimizer.storage.catch_up:
            raise ValueError(
                'optimizer: expected one without rows="catch_up": rows would be pulled back from '
                "where they were before they caught up"
            )
        if optimizer.remade:
            raise ValueError(
                f"optimizer: expected one that steps from where parameters are, found "
                f"{shown(optimizer)}, whose states would undo that they are pulled back, or miss it"
            )
        if not 0 <= domains.number(alpha, "alpha") <= 1:
            raise ValueError(f"alpha: expected a number from 0 to 1, found {alpha}")
        self._k, self._alpha = domains.integer(k, "k", 1, 2**53), float(alpha)
        self.optimizer, self.stepper = optimizer, optimizer.stepper
        # What may not be set as an attribute, as it would do nothing.
        self.__dict__["domains"] = optimizer.domains
        self.slow: dict[Name, Array] = {}
        self._over: Pull | None = None
        self._pulled = np.zeros(1)  # 1 while parameters are pulled and the slow weights not yet
        with self.stepper.lock:
            self.stepper.refuse_elsewhere("Lookahead")
            self._last = self._taken()  # as many steps had been taken at the last pull
            self._keep_up()

    @property
    def k(self) -> int:
        """After how many steps the slow weights follow."""
        return self._k

    @property
    def alpha(self) -> float:
        """The part of the way that they go."""
        return self._alpha

    @property
    def title(self) -> str:
        """What checkpoints call the optimizer."""
        return f"Lookahead({self.optimizer.title})"

    def __repr__(self) -> str:
        return f"Lookahead(k={self.k}, alpha={self.alpha}):\n{self.optimizer!r}"

    def _taken(self) -> float:
        return float(self.stepper.taken[0])

    def _keep_up(self) -> None:
        """Start the slow weights of parameters that have none, where these are now."""
        if self._over is not None and len(self.slow) == len(self.stepper.steps):
            return
        stepped = stepped_by(self.stepper)
        slow = dict(self.slow)
        for name, p in self.stepper.params().items():
            if name not in slow:
                slow[name] = aligned_zeros(p, dtype_of(p, stepped[name]))
                take(slow[name], stepped[name])
        self._over = Pull(self.stepper, slow)
        self.slow = slow

    def _pull(self) -> None:
        """Let the slow weights follow, if it is time; to be called with the lock held.

        It may be done over at any point: parameters that were pulled are where the slow weights go.
        """
        while self._taken() - self._last >= self.k:
            assert self._over is not None
            self._over(self.alpha, self._pulled)
            self._last = self._taken()

    def step(self, grads: object = None, *, grad_scale: float = 1.0) -> StepRecord:
        """Do what `Optimizer.step` says; after every k-th step, let the slow weights follow."""
        with self.stepper.lock:
            self._keep_up()
            to_the_end(self._pull)  # if the last step was interrupted
            try:
                return self.optimizer.step(grads, grad_scale=grad_scale)
            finally:
                to_the_end(self._pull)

    def add_param_group(
        self, group: Mapping[str, Any], grads: object = None, copy_to: object = None
    ) -> None:
        """Do what `Optimizer.add_param_group` says; the slow weights are the new parameters."""
        with self.stepper.lock:
            to_the_end(self._pull)
            super().add_param_group(group, grads, copy_to)
            self._keep_up()

    # -------------------------------------------------------------------------------- the states

    def written(self) -> dict[str, Any]:
        """The state dict, whose arrays are the live ones; to be called as `Stepper.written`."""
        self._keep_up()
        to_the_end(self._pull)
        own = {"step": int(self._taken() - self._last), "slow": dict(self.slow)}
        return {**super().written(), "lookahead": own}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Do what `Optimizer.load_state_dict` says, with one that a `Lookahead` wrote.

        To go on from another one, load it into the optimizer and then wrap that.
        """
        with self.stepper.lock:
            self._keep_up()
            to_the_end(self._pull)
            step, slow = self._read(state_dict)
            super().load_state_dict(state_dict)
            self._last = self._taken() - step
            for name, a in self.slow.items():
                a[...] = slow[name]

    def _read(self, state_dict: Mapping[str, Any]) -> tuple[int, dict[Name, Array]]:
        """The steps since the last pull, and copies of the slow weights, of a state dict."""
        where = 'state_dict["lookahead"]'
        saved = state_dict.get("lookahead") if isinstance(state_dict, Mapping) else None
        if not isinstance(saved, Mapping) or set(saved) != {"step", "slow"}:
            raise ValueError(f"{where}: expected a dict of 'step' and 'slow', found {shown(saved)}")
        step = domains.integer(saved["step"], f'{where}["step"]')
        slow = saved["slow"]
        if not isinstance(slow, Mapping) or set(slow) != set(self.slow):
            raise ValueError(
                f'{where}["slow"]: expected a dict of {list(self.slow)}, found {shown(slow)}'
            )
        found = {}
        for name, own in self.slow.items():
            label = f'{where}["slow"][{name!r}]'
            a = checks.as_array(slow[name], label)
            if a.dtype.newbyteorder("=") != own.dtype:
                raise TypeError(f"{label}: expected dtype {own.dtype}, found {a.dtype}")
            if a.shape != own.shape:
                raise ValueError(f"{label}: expected shape {own.shape}, found {a.shape}")
            found[name] = a.copy()
        return step, found

    def __copy__(self) -> Self:
        """Another one over the same parameters and groups, with states of its own."""
        with self.stepper.lock:
            content = self.__getstate__()
            optimizer = copy(self.optimizer)
            slow = {name: a.copy("K") for name, a in self.slow.items()}
            pulled = self._pulled.copy()
            new = type(self).__new__(type(self))
            new.__dict__.update(
                content, optimizer=optimizer, stepper=optimizer.stepper, slow=slow, _pulled=pulled
            )
            return new

    def __getstate__(self) -> dict[str, Any]:
        """The attributes but for the plan and the views, which hold addresses."""
        with self.stepper.lock:
            self._keep_up()
            to_the_end(self._pull)
            return {**self.__dict__, "_over": None}


class Pull:
    """What pulls all that a stepper steps towards slow weights, and these after.

    Parameters
    ----------
    stepper : Stepper
        It goes by where its parameters are now.
    slow : mapping of ndarray
        The slow weights, by the name of their parameter.
    """

    def __init__(self, stepper: Stepper, slow: Mapping[Name, Array]) -> None:
        stepped, n = stepped_by(stepper), len(slow)
        self._stepper = stepper
        # The slow weights in the order of memory, with what they are set to.
        self._pairs = [_pair(slow[name], own) for name, own in stepped.items()]
        self._plan = Plan(
            [None] * n,
            list(stepped.values()),
            stepper.labels(),
            [0] * n,
            [()] * n,
            ["sgd"] * n,
            np.zeros(n, np.int64),
            [slow[name] for name in stepped],
            copies=stepper.all_copies(),
        )

    def __call__(self, alpha: float, pulled: Array) -> None:
        """Pull; may be done over at any point, as `pulled` is 1 while the slow weights are due."""
        # p ← p − (1 − α)(p − φ): the stage of L2 decay makes the difference of −φ.
        row = "sgd", (1.0 - alpha,), Stages(factor=-1.0, weight_decay=1.0)
        if not pulled[0]:
            self._plan.steps[...] = self._stepper.steps
            self._plan.seed = (self._stepper.plan.seed ^ _SALT) % 2**64
            self._plan.step(None, lambda *_: row, 1.0, tally=pulled, amount=1.0)
        for pair in self._pairs:
            _take(pair)
        pulled[0] = 0.0


def stepped_by(stepper: Stepper) -> dict[Name, CodedArray]:
    """What a stepper updates: parameters, or their masters."""
    params = stepper.params().items()
    return {name: stepper.storage.parameter(p, stepper.state[name]) for name, p in params}


def dtype_of(p: Array, own: CodedArray) -> np.dtype[Any]:
    """The type of the slow weights of a parameter, of which a stepper updates `own`."""
    return p.dtype if own.codec == codec_of(p.dtype) else computed(p.dtype)


def take(slow: Array, own: CodedArray) -> None:
    """Set slow weights to what a stepper updates."""
    _take(_pair(slow, own))


def _pair(slow: Array, own: CodedArray) -> tuple[Array, Array | CodedArray]:
    """Slow weights in the order of memory, and what they are set to: the same, unless split."""
    return as_coded(slow).raw(), own if own.codec == "split" else own.raw()


def _take(pair: tuple[Array, Array | CodedArray]) -> None:
    """Set slow weights to what steps update."""
    slow, own = pair
    slow[...] = own.load(slow.dtype) if isinstance(own, CodedArray) else own
