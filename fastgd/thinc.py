"""thinc's Adam, RAdam and SGD, stepped by fastgd: for models of thinc and pipelines of spaCy.

A config names them where it names thinc's, and they take the same arguments::

    [training.optimizer]
    @optimizers = "fastgd.Adam.v1"
    learn_rate = 0.001
    L2 = 0.01
    grad_clip = 1.0

thinc finds ``fastgd.Adam.v1``, ``fastgd.RAdam.v1`` and ``fastgd.SGD.v1`` by the package's entry
points, without an import.  From Python:

>>> import numpy as np, fastgd.thinc
>>> optimizer = fastgd.thinc.Adam(0.1, grad_clip=0.0)
>>> w, g = np.ones(2, np.float32), np.full(2, 3, np.float32)
>>> w, g = optimizer((1, "W"), w, g)
>>> w.round(3), g
(array([0.9, 0.9], dtype=float32), array([0., 0.], dtype=float32))
>>> optimizer.averages[1, "W"].round(3)
array([0.736, 0.736], dtype=float32)

A call does in one sweep what thinc does in several: clipping by the gradient's norm, the update,
weight decay, the average of the weights, and zeroing the gradient.
"""

from math import inf, isfinite, sqrt
from typing import Any, NamedTuple

import numpy as np
import thinc.optimizers as theirs
from numpy.typing import NDArray
from thinc.config import registry

from fastgd.kernels._engine import Plan, raised
from fastgd.kernels.reference import RULES
from fastgd.optimizers import OPTIMIZERS

__all__ = ["SGD", "Adam", "Optimizer", "RAdam"]

Array = NDArray[Any]
Key = tuple[int, str]

# thinc's type of a number that may change; pydantic reads it from the signatures below, so
# annotations can't be strings in this module.
Rate: Any = theirs.ScheduleT if hasattr(theirs, "ScheduleT") else theirs.FloatOrSeq

ADAM: dict[str, Any] = theirs.ADAM_DEFAULTS
PLAIN: dict[str, Any] = theirs.SGD_DEFAULTS


class Bound(NamedTuple):
    """A plan, and the arrays whose addresses it holds."""

    rule: str
    weights: Array
    states: tuple[Array, ...]
    average: Array | None
    plan: Plan


class Optimizer(theirs.Optimizer):
    r"""An optimizer of thinc, made by `Adam`, `RAdam` or `SGD`, whose calls are fastgd's steps.

    Attributes
    ----------
    mom1, mom2, averages, nr_update
        As in thinc: arrays and step counts by key.  The next step uses arrays that are put there.

    Notes
    -----
    The formulas are those of thinc, which adds ε to the root before its bias is corrected, and
    decays the weights after the update:

    .. math::
        W_t = (1 - \alpha\lambda)
        \Big(W_{t-1} - \alpha \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t}
        \frac{m_t}{\sqrt{v_t} + \epsilon}\Big)

    Its RAdam corrects biases as at the step after, t + 1, and leaves ``lr_scale`` out, which counts
    here.
    """

    __slots__ = ["_bound"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._bound: dict[Key, Bound] = {}

    def __call__(
        self, key: Key, weights: Any, gradient: Any, *, lr_scale: float = 1.0
    ) -> tuple[Array, Array]:
        """Update the weights of a key.

        Parameters
        ----------
        key : (int, str)
            The parameter: the number of a node, and a name there.
        weights, gradient : ndarray of float32 or float64
            The parameter, updated in place, and its gradient, left zeroed.  Weights that are not
            contiguous are copied, and the copy is returned.
        lr_scale : float
            The factor of the learning rate.

        Returns
        -------
        tuple of two ndarrays
            Weights and gradient.

        Raises
        ------
        TypeError, ValueError
            If an array or a schedule's value is not valid; nothing is changed then.
        NotImplementedError
            If beta2 is above 0 and beta1 is not, as in thinc.
        """
        if len(gradient) < 1:
            return weights, gradient
        rate, beta1, beta2, eps, decay, clip = self._now(key)
        alpha, clip = lr_scale * rate, clip or inf
        if not isfinite(alpha + beta1 + beta2 + eps + decay) or not clip > 0:
            names = ("learn_rate", "beta1", "beta2", "eps", "L2")
            given = dict(zip(names, (alpha, beta1, beta2, eps, decay), strict=True))
            bad = next((name for name in names if not isfinite(given[name])), "grad_clip")
            expected = "a number of at least 0" if bad == "grad_clip" else "a finite number"
            found = given.get(bad, clip)
            raise ValueError(f"{bad}: expected {expected}, found {found} for {key}")
        t = self.nr_update.get(key, 0) + 1
        # Decay that comes after the update is decay before it, and a shorter update.
        factor = 1.0 - alpha * decay if self.L2_is_weight_decay else 1.0
        penalty = 0.0 if self.L2_is_weight_decay else decay
        coefficients: tuple[float, ...]
        if self.use_radam:
            rule, size = "radam", alpha * factor
            hyper = {"lr": size, "betas": (beta1, beta2), "eps": eps}
            coefficients = OPTIMIZERS["RAdam"].coefficients(hyper, t + 1)
        elif beta1 > 0 and beta2 > 0:
            rule = "adam"
            size = alpha * factor * sqrt(1.0 - raised(beta2, t)) / (1.0 - raised(beta1, t))
            coefficients = (
                size,
                beta1,
                1.0 - beta1,
                beta2,
                1.0 - beta2,
                eps,
                0.0,
            )
        elif beta2 > 0:
            raise NotImplementedError("beta2: expected 0 where beta1 is 0")
        else:
            rule, coefficients = "sgd", (alpha * factor,)

        bound = self._bind(key, rule, weights)
        weights = bound.weights
        g = gradient
        if penalty and clip < inf and g.shape == weights.shape:
            # thinc clips the gradient and the penalty's together, the engine clips it without.
            g, penalty = g + penalty * weights, 0.0
        g = np.ascontiguousarray(g)
        average = None
        if bound.average is not None:
            decay_t = min((1.0 + t) / (10.0 + t), 0.9999)
            average = decay_t, 1.0 - decay_t
        settings = rule, coefficients, (1.0, penalty, factor, inf, clip, inf)
        bound.plan.step(g, lambda *_: settings, 1.0, average=average, zero=True)
        if g is not gradient:
            gradient[...] = 0
        # The step succeeded: now store what was made for it.
        self.nr_update[key] = t
        if self._bound.get(key) is not bound:
            self._bound[key] = bound
            for store, array in zip((self.mom1, self.mom2), bound.states, strict=False):
                store[key] = array
            if self.averages is not None:
                self.averages[key] = bound.average
        return weights, gradient

    def _now(self, key: Key) -> list[float]:
        """The hyper-parameters of this step."""
        found = [self.learn_rate, self.b1, self.b2, self.eps, self.L2, self.grad_clip]
        if not callable(found[0]):  # thinc 8's attributes are the numbers of the current step
            return found
        given = {"key": key, "last_score": self.last_score}
        return [schedule(self.step, **given) for schedule in found]

    def _bind(self, key: Key, rule: str, weights: Any) -> Bound:
        """The plan over a key's arrays, a new one if any of these was replaced."""
        stores = (self.mom1, self.mom2) if RULES[rule].states else ()
        found = [store.get(key) for store in stores]
        average = None if self.averages is None else self.averages.get(key)
        held = self._bound.get(key)
        if (
            held is not None
            and held.weights is weights
            and held.rule == rule
            and held.average is average
            and all(a is b for a, b in zip(held.states, found, strict=True))
        ):
            return held
        if not isinstance(weights, np.ndarray):
            kind = f"{type(weights).__module__}.{type(weights).__qualname__}"
            raise TypeError(f"weights: expected a NumPy array, found {kind} for {key}")
        weights = np.ascontiguousarray(weights)
        states = tuple(np.zeros(weights.size, weights.dtype) if a is None else a for a in found)
        if average is None and self.averages is not None:
            average = np.zeros(weights.shape, weights.dtype)
        plan = Plan(
            None,
            [weights],
            [f"[{key!r}]"],
            [0],
            [tuple(a.reshape(weights.shape) for a in states)],
            [rule],
            np.zeros(1, np.int64),
            averages=None if average is None else [average],
            average_steps=np.zeros(1, np.int64),
        )
        return Bound(rule, weights, states, average, plan)

    def __getstate__(self) -> Any:
        """The attributes without the plans, which hold addresses."""
        slots = {
            key: getattr(self, key) for key in theirs.Optimizer.__slots__ if hasattr(self, key)
        }
        return None, slots

    def __setstate__(self, state: Any) -> None:
        for key, value in state[1].items():
            setattr(self, key, value)
        self._bound = {}


@registry.optimizers("fastgd.Adam.v1")
def Adam(  # noqa: N802  # as thinc names it
    learn_rate: Rate = ADAM["learn_rate"],
    *,
    L2: Rate = ADAM["L2"],
    beta1: Rate = ADAM["beta1"],
    beta2: Rate = ADAM["beta2"],
    eps: Rate = ADAM["eps"],
    grad_clip: Rate = ADAM["grad_clip"],
    L2_is_weight_decay: bool = ADAM["L2_is_weight_decay"],
    use_averages: bool = True,
) -> Optimizer:
    r"""Make thinc's ``Adam.v1`` as fastgd steps it.

    Parameters
    ----------
    learn_rate, L2, beta1, beta2, eps, grad_clip : float, list, generator or Schedule
        :math:`\alpha, \lambda, \beta_1, \beta_2, \epsilon`, and the maximum norm of a parameter's
        gradient, 0 for no limit.
    L2_is_weight_decay : bool
        Decoupled weight decay; otherwise λW is added to the gradient.
    use_averages : bool
        Average the weights, for ``model.use_params(optimizer.averages)``.

    Returns
    -------
    Optimizer

    References
    ----------
    Kingma and Ba, "Adam: a method for stochastic optimization", 2015.
    """
    return Optimizer(
        learn_rate,
        L2=L2,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        grad_clip=grad_clip,
        L2_is_weight_decay=L2_is_weight_decay,
        use_averages=use_averages,
    )


@registry.optimizers("fastgd.RAdam.v1")
def RAdam(  # noqa: N802
    learn_rate: Rate = ADAM["learn_rate"],
    *,
    beta1: Rate = ADAM["beta1"],
    beta2: Rate = ADAM["beta2"],
    eps: Rate = ADAM["eps"],
    L2: Rate = ADAM["L2"],
    L2_is_weight_decay: bool = ADAM["L2_is_weight_decay"],
    grad_clip: Rate = ADAM["grad_clip"],
    use_averages: bool = True,
) -> Optimizer:
    """Make thinc's ``RAdam.v1`` as fastgd steps it; the arguments are those of `Adam`.

    References
    ----------
    Liu et al., "On the variance of the adaptive learning rate and beyond", 2020.
    """
    return Optimizer(
        learn_rate,
        L2=L2,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        grad_clip=grad_clip,
        L2_is_weight_decay=L2_is_weight_decay,
        use_averages=use_averages,
        use_radam=True,
    )


@registry.optimizers("fastgd.SGD.v1")
def SGD(  # noqa: N802
    learn_rate: Rate,
    *,
    L2: Rate = PLAIN["L2"],
    grad_clip: Rate = PLAIN["grad_clip"],
    L2_is_weight_decay: bool = PLAIN["L2_is_weight_decay"],
    use_averages: bool = True,
) -> Optimizer:
    """Make thinc's ``SGD.v1`` as fastgd steps it; the arguments are those of `Adam`."""
    return Optimizer(
        learn_rate,
        L2=L2,
        beta1=0.0,
        beta2=0.0,
        grad_clip=grad_clip,
        L2_is_weight_decay=L2_is_weight_decay,
        use_averages=use_averages,
    )
