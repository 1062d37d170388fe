"""scikit-learn's `MLPClassifier` and `MLPRegressor`, whose weights fastgd updates.

>>> import numpy as np
>>> from fastgd.sklearn import MLPRegressor
>>> x = np.random.default_rng(0).standard_normal((200, 3))
>>> model = MLPRegressor(solver="sgd", learning_rate_init=0.05, max_iter=300, random_state=0)
>>> model.fit(x, x[:, 0]).score(x, x[:, 0]) > 0.99
True

They are scikit-learn's estimators with another update: the same parameters, and the same results up
to rounding, faster.  All else works as there: ``partial_fit``, ``early_stopping``, ``warm_start``,
`sklearn.base.clone`, `sklearn.model_selection.GridSearchCV`, pickling.

Two parameters of the estimator are added:

- ``optimizer`` is the name of any optimizer of fastgd in lower case, say ``"adamw"``, in place of
  that of ``solver``, which then only picks how the learning rate changes: as ``learning_rate`` says
  for ``"sgd"``, not at all for ``"adam"``.  Of the estimator's own hyper-parameters it uses
  ``learning_rate_init``, not ``momentum``, ``beta_1``, ….
- ``optimizer_params`` is a dict of hyper-parameters and options for it, say
  ``{"clip_norm": 1.0}``; see `fastgd.Options`.  ``lr`` may be a schedule, from the number of the
  step to the learning rate.  Units, as those of ``clip_ratio``, are what leads to one output.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import sklearn.neural_network as theirs
from numpy.typing import NDArray

from fastgd.adapters import registry
from fastgd.core.optimizer import Optimizer
from fastgd.core.options import Options
from fastgd.optimizers import OPTIMIZERS

__all__ = ["MLPClassifier", "MLPRegressor"]

Array = NDArray[Any]

# Elements of a block that stays in cache from one operation to the next.
BLOCK = 16384

# Options of optimizers that make no sense here: other arrays, 16 bits, ascent, averages that
# nothing reads, and a layout, which is that of scikit-learn's weights.
REFUSED = {"grads", "copy_to", "zero_grads", "master", "rounding", "maximize", "average", "layout"}


def recipe(estimator: Any) -> tuple[type[Optimizer], dict[str, Any]]:
    """The optimizer that an estimator's parameters pick, and its arguments but for the arrays.

    Raises
    ------
    TypeError, ValueError
        If they are not valid.
    """
    name, given = estimator.optimizer, dict(estimator.optimizer_params or {})
    hyper: dict[str, Any] = {"lr": float(estimator.learning_rate_init)}
    if estimator.solver == "lbfgs":
        if name is not None or given:
            raise ValueError(
                "optimizer, optimizer_params: expected with solver 'sgd' or 'adam', found 'lbfgs'"
            )
    elif name is None and estimator.solver == "sgd":
        # With a momentum of 0, Nesterov's step is the plain one.
        nesterov = estimator.nesterovs_momentum and estimator.momentum > 0
        hyper |= {"momentum": estimator.momentum, "nesterov": nesterov}
    elif name is None:
        hyper |= {
            "betas": (estimator.beta_1, estimator.beta_2),
            "eps": registry.RawRootEps(estimator.epsilon, estimator.beta_2),
        }
    kind = registry.named(name or estimator.solver.replace("lbfgs", "sgd"), "optimizer", OPTIMIZERS)
    if kind.averages():
        raise ValueError(
            f"optimizer: expected one whose parameters are what to predict with, found {name!r}, "
            "which learns an average of them that nothing would read"
        )
    # What the estimator has parameters for is given by these, the learning rate as well.
    own = set(hyper) - {"lr"}
    known = {*kind.hypers, *Options.__annotations__} - REFUSED - own
    if unknown := [key for key in given if key not in known]:
        why = "is given by the estimator's own" if unknown[0] in own else "is not taken here"
        raise TypeError(
            f"optimizer_params: expected of {', '.join(sorted(known))}, found {unknown[0]!r}, "
            f"which {why}"
        )
    rates = estimator.learning_rate if estimator.solver == "sgd" else "constant"
    if "lr" in given and not (callable(given["lr"]) and rates == "constant"):
        raise ValueError(
            "optimizer_params: expected an 'lr' that is a schedule, and learning_rate='constant', "
            f"found {given['lr']!r} and {rates!r}; a number is given by learning_rate_init"
        )
    hyper |= given | {"layout": "in_out"}
    kind(np.zeros(1), **hyper)  # which checks them
    return kind, hyper


class Updates:
    """The ``_optimizer`` of an estimator: steps by fastgd, learning rates by scikit-learn.

    Parameters
    ----------
    rates : BaseOptimizer
        scikit-learn's own optimizer, which changes the learning rate after epochs and says when to
        stop; its states stay unused.
    kind, hyper
        As `recipe` returns them.
    heavy_ball : bool
        Whether velocities follow scikit-learn's sgd, where the learning rate is in them:
        v ← μv − αg, where torch and fastgd have V ← μV + g and a step of −αV.
    """

    def __init__(
        self, rates: Any, kind: type[Optimizer], hyper: dict[str, Any], heavy_ball: bool
    ) -> None:
        self._rates, self._kind, self._hyper, self._heavy_ball = rates, kind, hyper, heavy_ball
        for states in ("velocities", "ms", "vs"):
            if hasattr(rates, states):
                setattr(rates, states, [])
        self._opt: Optimizer | None = None
        self._params: list[Array] = []
        self._saved: dict[str, Any] | None = None

    def update_params(self, params: Sequence[Array], grads: Sequence[Array]) -> None:
        """Update the weights in place."""
        opt = self._opt
        if opt is None or any(p is not q for p, q in zip(params, self._params, strict=True)):
            opt = self._bind(list(params))
        if not callable(self._hyper["lr"]):
            self._follow(opt, float(self._rates.learning_rate))
        opt.step([like(g, p) for g, p in zip(grads, params, strict=True)])

    def _bind(self, params: list[Array]) -> Optimizer:
        """Make the optimizer of these arrays, with the states of the one before."""
        opt = self._kind(params, **self._hyper)
        if (saved := self._states()) is not None:
            opt.load_state_dict(saved)
        self._opt, self._params, self._saved = opt, params, None
        return opt

    def _states(self) -> dict[str, Any] | None:
        return self._saved if self._opt is None else self._opt.state_dict()

    def __getstate__(self) -> dict[str, Any]:
        """The attributes without the weights, which copies and pickles have in the estimator."""
        return {**self.__dict__, "_opt": None, "_params": [], "_saved": self._states()}

    def _follow(self, opt: Optimizer, rate: float) -> None:
        """Use a learning rate from now on."""
        before = opt.lr
        if rate == before:
            return
        if self._heavy_ball:
            # scikit-learn's v is −αV, and stays the same when α changes.
            for entry in opt.state.values():
                if "momentum_buffer" in entry:
                    entry["momentum_buffer"][...] *= before / rate
        opt.lr = rate

    def iteration_ends(self, time_step: int) -> None:
        """Change the learning rate after an epoch, as scikit-learn's ``learning_rate`` says."""
        self._rates.iteration_ends(time_step)

    def trigger_stopping(self, msg: str, verbose: bool) -> bool:
        """Whether to stop; otherwise the learning rate may have been lowered."""
        return bool(self._rates.trigger_stopping(msg, verbose))


def like(g: Array, p: Array) -> Array:
    """A gradient in the memory layout of its parameter; a copy only if it has another one."""
    return np.asarray(g, order="C" if p.flags.c_contiguous else "F")


class _Stepping:
    """Mixin that makes an estimator of scikit-learn step with fastgd."""

    def __init__(
        self,
        *args: Any,
        optimizer: str | None = None,
        optimizer_params: dict[str, Any] | None = None,
        **params: Any,
    ) -> None:
        super().__init__(*args, **params)
        self.optimizer = optimizer
        self.optimizer_params = optimizer_params

    def _fit(self, *args: Any, **kwargs: Any) -> Any:
        recipe(self)  # raises for parameters that aren't valid, before anything is changed
        return super()._fit(*args, **kwargs)  # type: ignore[misc]

    @property
    def _optimizer(self) -> Updates:
        # Fitting calls hasattr.
        if "_updates" not in self.__dict__:
            raise AttributeError("_optimizer: made by the first fit")
        return self._updates

    @_optimizer.setter
    def _optimizer(self, rates: Any) -> None:
        heavy_ball = self.optimizer is None and self.solver == "sgd"  # type: ignore[attr-defined]
        self._updates = Updates(rates, *recipe(self), heavy_ball)

    def _compute_loss_grad(
        self, layer: int, total: float, activations: Any, deltas: Any, coef_grads: Any, *rest: Any
    ) -> None:
        """Compute a layer's gradient with scikit-learn's bits, in one array for all batches.

        scikit-learn's method allocates two arrays of the size of the weights for each batch, which
        takes longer than fastgd's update.
        """
        x, delta, g, w = activations[layer], deltas[layer], coef_grads[layer], self.coefs_[layer]  # type: ignore[attr-defined]
        if not (isinstance(x, np.ndarray) and x.dtype == delta.dtype == g.dtype == w.dtype):
            super()._compute_loss_grad(layer, total, activations, deltas, coef_grads, *rest)  # type: ignore[misc]
            return
        np.dot(x.T, delta, out=g)
        rows = max(1, BLOCK // max(1, w.shape[1]))
        penalty = np.empty((rows, w.shape[1]), w.dtype)
        for start in range(0, len(w), rows):
            block = g[start : start + rows]
            block += np.multiply(w[start : start + rows], self.alpha, out=penalty[: len(block)])  # type: ignore[attr-defined]
            block /= total
        (intercept_grads,) = rest
        intercept_grads[layer] = np.sum(delta, axis=0) / total


def make(base: Any) -> Any:
    """The class of an estimator of scikit-learn that steps with fastgd."""

    class Estimator(_Stepping, base):
        _parameter_constraints = {
            **base._parameter_constraints,
            "optimizer": [str, None],
            "optimizer_params": [dict, None],
        }

    # scikit-learn reads the names of parameters from the signature.
    called = inspect.signature(base.__init__)
    own = inspect.signature(_Stepping.__init__).parameters
    parameters = [*called.parameters.values(), own["optimizer"], own["optimizer_params"]]

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        super(Estimator, self).__init__(*args, **kwargs)

    init.__signature__ = called.replace(parameters=parameters)  # type: ignore[attr-defined]
    init.__name__, init.__qualname__ = "__init__", f"{base.__name__}.__init__"
    Estimator.__init__ = init  # type: ignore[method-assign]
    Estimator.__name__ = Estimator.__qualname__ = base.__name__
    Estimator.__module__ = __name__
    Estimator.__doc__ = (
        f"`sklearn.neural_network.{base.__name__}`, whose weights fastgd updates.\n\n"
        "Two more parameters, ``optimizer`` and ``optimizer_params``: see `fastgd.sklearn`.\n"
    )
    return Estimator


MLPClassifier = make(theirs.MLPClassifier)
MLPRegressor = make(theirs.MLPRegressor)
