"""fastgd's optimizers as methods of `scipy.optimize.minimize`.

>>> import numpy as np, fastgd.scipy
>>> from scipy.optimize import minimize, rosen, rosen_der
>>> x0, options = np.array([-1.0, 2.0]), {"lr": 0.05, "maxiter": 5000}
>>> result = minimize(rosen, x0, jac=rosen_der, method=fastgd.scipy.adam, options=options)
>>> result.success, result.x.round(3)
(True, array([1., 1.]))

There is a method for every optimizer, by its name in lower case.  The arguments of `minimize`:

- ``jac``: True (the function returns value and gradient), a callable, or left out for forward
  differences, whose steps suit the precision that the function computes in.  With a callable the
  function itself is called only where its value is needed, so that stochastic gradients cost
  nothing else.
- ``bounds``: every step is followed by the projection onto them, as is the start; differences
  are taken within them, and none of a variable that equal bounds fix.
- ``callback``: called after each step with ``x``, or with ``intermediate_result`` if that is what
  its one argument is called; ends the descent by raising StopIteration.
- ``tol``: the value of `gtol` if that isn't among the options.
- ``options``: those of `Method`, the optimizer's hyper-parameters, which may be schedules, and
  those of `fastgd.Options` that make sense here: ``clip_norm``, ``average``, ``nonfinite``, ….

The function is called with a read-only view of the array that the steps update, not with a copy as
by SciPy's own methods; one that keeps or overwrites its argument needs the option ``copy``.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, OptimizeResult, OptimizeWarning
from scipy.optimize._optimize import MemoizeJac

from fastgd.adapters import registry
from fastgd.adapters.differences import Differences
from fastgd.averages import EMA
from fastgd.core.domains import flag, integer, nonnegative
from fastgd.core.optimizer import Optimizer
from fastgd.core.options import Options

Array = NDArray[Any]

# Options of optimizers that make no sense here: other arrays, 16 bits, ascent, what is about
# several axes.
REFUSED = {"grads", "copy_to", "zero_grads", "master", "rounding", "maximize"}
REFUSED |= {"centralize", "layout"}

CONVERGED = 0, "Optimization terminated successfully."
STALLED = 0, "The function's value stopped falling by more than ftol."
EXHAUSTED = 1, "Maximum number of iterations has been exceeded."
NONFINITE = 3, "The function's value is not finite."
STOPPED = 99, "`callback` raised `StopIteration`."

# Elements of a block in which the gradient is compared with gtol, up to the first too large one.
BLOCK = 4096


class Method:
    """One optimizer as a ``method`` of `scipy.optimize.minimize`.

    Not for direct use: `fastgd.scipy` has one for each optimizer.

    Parameters
    ----------
    fun, x0, args, jac, hess, hessp, bounds, constraints, callback, tol
        As `scipy.optimize.minimize` passes them.  float32 stays float32; all else is computed in
        float64.
    maxiter : int
        The maximum number of steps.
    gtol : float
        Converged if the largest absolute element of the gradient is at most this; under bounds, of
        x − P(x − g), where P projects onto them.  1e-5 unless ``tol`` is given.
    ftol : float, optional
        If given, also stop when `patience` steps have not lowered the least value so far by more
        than ``ftol · max(|f|, 1)``, which suits values that rise now and then.
    patience : int
        See `ftol`.
    best : bool
        Return the point of least value, not the last one; for functions with noise.  Excludes
        ``average``.
    finite_diff_rel_step : float or array, optional
        The relative step of finite differences, where there is no ``jac``.
    copy : bool
        Call the function with a new copy of x each time.
    disp : bool
        Print the message at the end.
    return_all : bool
        Return a copy of every point in ``allvecs``.
    **options
        The optimizer's own.  Unknown ones are warned of, as by SciPy's methods.

    Returns
    -------
    scipy.optimize.OptimizeResult
        ``x``, ``fun`` and ``jac`` there, ``nit`` steps, ``nfev``, ``njev``, ``success``,
        ``message`` and ``status``: 0 converged or stalled, 1 `maxiter` reached, 3 not finite,
        99 stopped by the callback.  With ``average``, ``x`` is the average of the points,
        and of schedule-free optimizers, without bounds, that which they have learned.

    Raises
    ------
    TypeError, ValueError
        If an option, the bounds, or the function's result is not valid.

    Warns
    -----
    OptimizeWarning
        Of unknown options.
    RuntimeWarning
        If ``hess`` or ``hessp`` is given, which no optimizer here uses.
    """

    def __init__(self, kind: type[Optimizer]) -> None:
        self.kind = kind
        self.__name__ = self.__qualname__ = name = kind.__name__.lower()
        known = {*kind.hypers, *Options.__annotations__} - REFUSED
        self._known = frozenset(known)
        self.__doc__ = (
            f"`fastgd.{kind.__name__}` as a method of `scipy.optimize.minimize`.\n\n"
            f"Use it as ``minimize(fun, x0, jac=True, method=fastgd.scipy.{name}, options=…)``; "
            f"the options are those of\n`fastgd.scipy.Method` and {', '.join(sorted(known))}.\n"
        )

    def __repr__(self) -> str:
        return f"fastgd.scipy.{self.__name__}"

    def __reduce__(self) -> str:
        return self.__name__

    def __call__(
        self,
        fun: Callable[..., Any],
        x0: Array,
        args: Any = (),
        *,
        jac: Any = None,
        hess: Any = None,
        hessp: Any = None,
        bounds: Any = None,
        constraints: Any = (),
        callback: Callable[..., object] | None = None,
        tol: float | None = None,
        maxiter: int = 1000,
        gtol: float | None = None,
        ftol: float | None = None,
        patience: int = 10,
        best: bool = False,
        finite_diff_rel_step: Any = None,
        copy: bool = False,
        disp: bool = False,
        return_all: bool = False,
        **options: Any,
    ) -> OptimizeResult:
        if hess is not None or hessp is not None:
            message = f"Method {self.__name__} does not use Hessian information (hess, hessp)."
            warnings.warn(message, RuntimeWarning, stacklevel=3)
        if not (isinstance(constraints, (list, tuple)) and not constraints):
            raise ValueError("constraints: expected none, as steps are projected onto bounds alone")
        maxiter, patience = integer(maxiter, "maxiter"), integer(patience, "patience", 1)
        gtol = nonnegative(gtol if gtol is not None else 1e-5 if tol is None else tol, "gtol")
        ftol = None if ftol is None else nonnegative(ftol, "ftol")
        if flag(best, "best") and options.get("average") is not None:
            raise ValueError("best excludes average: the value at the average is not known")
        if unknown := [key for key in options if key not in self._known]:
            warnings.warn(
                f"Unknown solver options: {', '.join(unknown)}", OptimizeWarning, stacklevel=3
            )
        hyper = {key: value for key, value in options.items() if key in self._known}

        x = np.array(x0, x0.dtype if np.asarray(x0).dtype == np.float32 else np.float64, ndmin=1)
        box = None if bounds is None else Box(bounds, x)
        if box is not None:
            box.project(x)
            average = hyper.pop("average", None)
        opt = self.kind(x, **hyper)
        # The average is one of projected points, so it can't be taken in the sweep of the step.
        ema = opt.average if box is None else None if average is None else EMA(x, average)
        report = None if callback is None else Reporter(callback)
        wants_value = best or ftol is not None or (report is not None and report.whole)
        objective = Objective(fun, jac, args, x, box, finite_diff_rel_step, flag(copy, "copy"))

        small = Smallness(gtol, box)
        f, g = objective(wants_value)
        vecs = [x.copy()] if flag(return_all, "return_all") else []
        least = (np.inf, x, g)
        stalled = Stall(ftol, patience)
        nit = 0
        while True:
            if f is not None:
                if not np.isfinite(f) and options.get("nonfinite") != "skip":
                    status, message = NONFINITE
                    break
                if best and f < least[0]:
                    least = f, x.copy(), np.array(g)
                if stalled(f, nit):
                    status, message = STALLED
                    break
            if small(x, g):
                status, message = CONVERGED
                break
            if nit == maxiter:
                status, message = EXHAUSTED
                break
            opt.step(g)
            if box is not None:
                box.project(x)
                if isinstance(ema, EMA):
                    ema.update()
            nit += 1
            f, g = objective(wants_value)
            if return_all:
                vecs.append(x.copy())
            try:
                if report is not None:
                    report(x, f)
            except StopIteration:
                status, message = STOPPED
                break

        if best and np.isfinite(least[0]):
            f, x[...], g = least
        elif ema is not None and nit:
            x[...] = next(iter(ema.averages.values()))
            f, g = objective(True)
        if f is None:
            f = objective.value()
        if status in {0, 1} and not np.isfinite(f):
            status, message = NONFINITE
        result = OptimizeResult(
            x=x, fun=f, jac=np.array(g), nit=nit, nfev=objective.nfev, njev=objective.njev,
            success=status == 0, status=status, message=message,
        )  # fmt: skip
        if return_all:
            result.allvecs = vecs
        if flag(disp, "disp"):
            print(f"{message}\n  value {f:g} after {nit} steps, {objective.nfev} evaluations")
        return result


class Objective:
    """The function and its gradient at x as it is, counted."""

    def __init__(
        self, fun: Any, jac: Any, args: Any, x: Array, box: Box | None, step: Any, copy: bool
    ) -> None:
        self._args = args if isinstance(args, tuple) else (args,)
        self._x, self._copy = x, copy
        low, high = (-np.inf, np.inf) if box is None else (box.low, box.high)
        self._differences = Differences(self._value_at, x, low, high, step)
        self._precision = 0.0  # the coarsest of the values so far
        self.nfev = self.njev = 0
        # minimize(jac=True) passes a memo of the function, which compares and copies all of x at
        # each call, and would keep a stochastic function from being called twice at one point.
        self._both = fun.fun if isinstance(fun, MemoizeJac) and jac == fun.derivative else None
        self._fun, self._jac = fun, jac

    def __call__(self, wants_value: bool) -> tuple[float | None, Array]:
        """The value, if it is wanted or costs nothing, and the gradient."""
        if self._both is not None:
            self.nfev += 1
            self.njev += 1
            value, g = self._call(self._both, "fun", self._x)
            return number(value)[0], self._gradient(g)
        if callable(self._jac):
            f = self.value() if wants_value else None
            self.njev += 1
            return f, self._gradient(self._call(self._jac, "jac", self._x))
        f = self.value()
        self.njev += 1
        return f, self._differences(self._x, f, self._precision)

    def value(self) -> float:
        """The value alone."""
        if self._both is not None:
            return self(True)[0]  # type: ignore[return-value]
        return self._value_at(self._x)

    def _value_at(self, x: Array) -> float:
        self.nfev += 1
        value, precision = number(self._call(self._fun, "fun", x))
        self._precision = max(self._precision, precision)
        return value

    def _call(self, function: Callable[..., Any], name: str, x: Array) -> Any:
        shown = x.copy() if self._copy else x.view()
        shown.flags.writeable = self._copy
        try:
            return function(shown, *self._args)
        except ValueError as error:
            if self._copy or not str(error).endswith("read-only"):
                raise
            raise ValueError(
                f"{name}: expected a function that leaves its x as it is, found one that writes "
                f"({error}); with options={{'copy': True}} each call gets an array of its own"
            ) from error

    def _gradient(self, given: Any) -> Array:
        """The gradient as an array that doesn't alias x, to which the step writes."""
        x = self._x
        g: Array = np.atleast_1d(np.asarray(given))
        if g.dtype.kind not in "fiu":
            raise TypeError(f"jac: expected an array of numbers, found dtype {g.dtype}")
        if g.shape != x.shape:
            raise ValueError(f"jac: expected shape {x.shape} as of x, found {g.shape}")
        g = np.require(g, g.dtype if g.dtype in (np.float32, np.float64) else x.dtype, ["C", "A"])
        return g.copy() if np.may_share_memory(g, x) else g


class Box:
    """Bounds, and the projection onto them."""

    def __init__(self, bounds: Any, x: Array) -> None:
        if isinstance(bounds, Bounds):
            low, high = bounds.lb, bounds.ub
        else:
            if not isinstance(bounds, (Sequence, np.ndarray)) or len(bounds) != x.size:
                raise ValueError(f"bounds: expected {x.size} pairs as of x, found {bounds!r}")
            low = [-np.inf if a is None else a for a, _ in bounds]
            high = [np.inf if b is None else b for _, b in bounds]
        try:
            self.low = np.broadcast_to(np.asarray(low, x.dtype), x.shape)
            self.high = np.broadcast_to(np.asarray(high, x.dtype), x.shape)
        except ValueError as error:
            raise ValueError(f"bounds: expected {x.size} as of x, found {error}") from None
        if not np.all(self.low <= self.high):
            raise ValueError("bounds: expected lower ones no higher than upper ones")

    def project(self, x: Array) -> None:
        """Bring x into the bounds, in place."""
        np.clip(x, self.low, self.high, out=x)


class Smallness:
    """Whether all of a gradient is within gtol; as long as it isn't, mostly one block is read."""

    def __init__(self, gtol: float, box: Box | None) -> None:
        self._gtol, self._box = gtol, box
        self._at = 0  # the block in which the last call found a too large element

    def __call__(self, x: Array, g: Array) -> bool:
        if x.size and not self._within(x, g, self._at):
            return False
        for start in range(0, x.size, BLOCK):
            if not self._within(x, g, start):
                self._at = start
                return False
        return True

    def _within(self, x: Array, g: Array, start: int) -> bool:
        block = slice(start, start + BLOCK)
        step = g[block]
        if self._box is not None:
            there = np.clip(x[block] - step, self._box.low[block], self._box.high[block])
            step = x[block] - there
        return bool(np.all(np.abs(step) <= self._gtol))  # False for NaN


class Stall:
    """Whether values have stopped falling: for `patience` steps none was lower by enough."""

    def __init__(self, ftol: float | None, patience: int) -> None:
        self._ftol, self._patience = ftol, patience
        self._lowest, self._since = np.inf, 0

    def __call__(self, f: float, nit: int) -> bool:
        if self._ftol is None:
            return False
        if f < self._lowest - self._ftol * max(abs(f), 1.0):
            self._lowest, self._since = f, nit
        return nit - self._since >= self._patience


class Reporter:
    """A callback in either of SciPy's styles, called with x and the value there."""

    def __init__(self, callback: Callable[..., object]) -> None:
        self._callback = callback
        try:
            self.whole = set(inspect.signature(callback).parameters) == {"intermediate_result"}
        except ValueError:  # builtins without a signature
            self.whole = False

    def __call__(self, x: Array, f: float | None) -> None:
        if self.whole:
            self._callback(intermediate_result=OptimizeResult(x=x.copy(), fun=f))
        else:
            self._callback(x.copy())


def number(value: Any) -> tuple[float, float]:
    """The function's result as a float, which may be infinite or NaN, and its type's precision."""
    a = np.asarray(value)
    if a.dtype.kind not in "fiub":
        raise TypeError(f"fun: expected a number, found {value!r}")
    if a.size != 1:
        raise ValueError(f"fun: expected one number, found {a.size}")
    return float(a.reshape(())), float(np.finfo(a.dtype if a.dtype.kind == "f" else float).eps)


def __getattr__(name: str) -> Method:
    if name in registry.names():
        globals()[name] = method = Method(registry.named(name, "method"))
        return method
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {__dir__()}")


def __dir__() -> list[str]:
    return ["Method", *sorted(registry.names())]
