"""Gradient descent: plain, with heavy-ball or Nesterov momentum, and along averaged gradients."""

from __future__ import annotations

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import flag, fraction, nonnegative
from fastgd.core.optimizer import Optimizer
from fastgd.kernels._engine import raised
from fastgd.kernels.spec.registry import Array, Fused, Scalar, rule


class SGD(Optimizer):
    r"""Gradient descent, with heavy-ball or Nesterov momentum as torch has them.

    .. math::
        V_t = \mu V_{t-1} + (1 - d) g_t, \quad V_1 = g_1, \qquad W_t = W_{t-1} - \alpha V_t

    or, with ``nesterov``, :math:`W_t = W_{t-1} - \alpha (g_t + \mu V_t)`; without momentum,
    :math:`W_t = W_{t-1} - \alpha g_t`.

    Parameters
    ----------
    params : array, nested lists and dicts of arrays, or groups
        Arrays of float32, float64, bfloat16 or float16 (see ``master``, ``rounding`` in
        `fastgd.Options`), contiguous and writeable; or a list of dicts, each with
        ``"params"`` and hyper-parameters of its own.
    lr : float
        The learning rate α.
    momentum : float
        μ.  With 0 there is no velocity; with a schedule there always is one, also where it is 0.
    dampening : float
        d, which does not apply to the first step of a velocity (except where schedules of the group
        switch momentum on later: steps are not counted anew then).
    weight_decay : float
        λ of an L2 penalty: λW is added to the gradient.
    nesterov : bool
        Nesterov momentum; needs ``momentum > 0`` and ``dampening = 0``.
    maximize : bool
        Ascend instead of descend.
    **options
        The options of every optimizer: ``grads`` to be bound, ``clip_norm``, ``clip_by``,
        ``clip_value``, ``clip_ratio``, ``centralize``, ``layout``, ``nonfinite``, ``average``,
        ``copy_to``, ``zero_grads``, ``rows``, ``state_dtype``, ``master``, ``rounding``,
        ``min_8bit_size``, ``seed``; see `fastgd.Options`.

    Raises
    ------
    TypeError, ValueError, KeyError
        If a parameter or hyper-parameter is not valid; the message names it.

    References
    ----------
    Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.
    Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum in deep
    learning", 2013.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> w = np.array([1.0, 2.0])
    >>> _ = fastgd.SGD(w, lr=0.5).step(np.array([1.0, 1.0]))
    >>> w
    array([0.5, 1.5])
    """

    year = 1951
    restarts = True  # the first step is that of a new velocity, as in torch
    lr = hyper(nonnegative, 1e-3)
    momentum = hyper(nonnegative, 0.0)
    dampening = hyper(nonnegative, 0.0)
    weight_decay = hyper(nonnegative, 0.0)
    nesterov = hyper(flag, False)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        if h["momentum"] == 0:
            return "sgd"
        return "nesterov" if h["nesterov"] else "momentum"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        # The first step sets V = g, as torch does.
        beta, gamma = (0.0, 1.0) if t == 1 else (h["momentum"], 1.0 - h["dampening"])
        return h["lr"], beta, gamma, h["momentum"]

    @staticmethod
    def consistent(h: Hyper) -> None:
        if h["nesterov"] and (h["momentum"] == 0 or h["dampening"] != 0):
            raise ValueError("nesterov: needs momentum above 0 and dampening of 0")


class Momentum(Optimizer):
    r"""Descent along the exponentially weighted average of the gradients.

    .. math::
        V_t = \beta V_{t-1} + (1 - \beta) g_t, \quad V_0 = 0, \qquad
        W_t = W_{t-1} - \alpha V_t

    with :math:`V_t / (1 - \beta^t)` in the place of :math:`V_t` if ``bias_correction``.

    Parameters
    ----------
    params, lr, weight_decay, maximize, **options
        As for `SGD`.
    beta : float
        β: the average reaches back over about 1/(1 − β) steps.
    bias_correction : bool
        Make up for the average's start from 0.

    Notes
    -----
    This is not ``SGD(momentum=β, dampening=β)``, whose first step sets V = g.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> w = np.array([1.0])
    >>> _ = fastgd.Momentum(w, lr=1.0, beta=0.5).step(np.array([1.0]))
    >>> w
    array([0.5])
    """

    year = 1964
    lr = hyper(nonnegative, 1e-2)
    beta = hyper(fraction, 0.9)
    weight_decay = hyper(nonnegative, 0.0)
    bias_correction = hyper(flag, False)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "momentum"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        beta = h["beta"]
        correction = 1.0 - raised(beta, t) if h["bias_correction"] else 1.0
        return h["lr"] / correction, beta, 1.0 - beta


# ---------------------------------------------------------------------------------------- the rules


@rule(by_rows="exact", catch_up="linear")
def sgd(p: Array, g: Array, *, alpha: Scalar) -> None:
    """Gradient descent: p ← p − αg."""
    p[...] = p - alpha * g


@rule(
    fused=Fused(
        params=("float32",),
        states=("float32", "bfloat16", "8bit"),
        gain="1.0 to 1.1 in cache, 1.05 to 1.15 out of it, Intel Xeon with AVX-512",
    ),
    catch_up="linear",
)
def momentum(
    p: Array, g: Array, momentum_buffer: Array, *, alpha: Scalar, beta: Scalar, gamma: Scalar
) -> None:
    """Momentum: V ← βV + γg; p ← p − αV.

    With γ = 1 − β, V is the exponentially weighted average of the gradients; with γ = 1 it is the
    velocity of the heavy ball (Polyak, 1964).
    """
    V = momentum_buffer
    V[...] = beta * V + gamma * g
    p[...] = p - alpha * V


@rule(
    fused=Fused(
        params=("float32",),
        states=("float32", "bfloat16", "8bit"),
        gain="1.0 to 1.1 in cache, 1.05 to 1.15 out of it, Intel Xeon with AVX-512",
    ),
    catch_up="linear",
)
def nesterov(
    p: Array,
    g: Array,
    momentum_buffer: Array,
    *,
    alpha: Scalar,
    beta: Scalar,
    gamma: Scalar,
    mu: Scalar,
) -> None:
    """Nesterov momentum: V ← βV + γg; p ← p − α(g + μV) (Sutskever et al., 2013)."""
    V = momentum_buffer
    V[...] = beta * V + gamma * g
    p[...] = p - alpha * (g + mu * V)
