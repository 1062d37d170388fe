"""The optimizers: hyper-parameters, and how they become a rule's coefficients at step t.

The formulas themselves stand in `fastgd.kernels.reference`, in rising order of complexity as here.
Hyper-parameters and states go by torch.optim's names, with torch's defaults.  ``eps`` is added to
the square root, as torch does; ``eps_root`` inside it, as the papers of AdaGrad and RMSProp, Keras
and optax do; either may be 0.

What is listed as a float may be a schedule instead, a callable from the step to the value:
`fastgd.schedules` has the usual ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Unpack

from fastgd.core.contract import Hyper
from fastgd.core.domains import Pair, Scalar, flag, fraction, nonnegative, start, two_fractions
from fastgd.core.optimizer import Optimizer
from fastgd.core.options import Options

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Momentum", "RMSprop"]


class SGD(Optimizer):
    r"""Gradient descent, with the heavy ball and Nesterov's look-ahead as torch has them.

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
        μ; 0 keeps no velocity.  As a schedule it always keeps one, also where it is 0.
    dampening : float
        d, which does not apply to a velocity's first step (unless that comes after others of a
        group with schedules, whose steps are not counted anew).
    weight_decay : float
        λ of an L2 penalty: λW is added to the gradient.
    nesterov : bool
        Look ahead; needs ``momentum > 0`` and ``dampening = 0``.
    maximize : bool
        Ascend instead of descend.
    **options
        What every optimizer takes: ``grads`` to be bound, ``clip_norm``, ``clip_by``,
        ``clip_value``, ``clip_ratio``, ``nonfinite``, ``average``, ``copy_to``, ``zero_grads``;
        see `fastgd.Options`.

    Raises
    ------
    TypeError, ValueError, KeyError
        If a parameter or hyper-parameter is not usable; the message names it.

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

    domains = {"momentum": nonnegative, "dampening": nonnegative, "nesterov": flag}
    restarts = True  # the first step is that of a new velocity, as in torch

    def __init__(
        self,
        params: object,
        lr: Scalar = 1e-3,
        momentum: Scalar = 0.0,
        dampening: Scalar = 0.0,
        weight_decay: Scalar = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def rule(h: Hyper) -> str:
        if h["momentum"] == 0:
            return "sgd"
        return "nesterov" if h["nesterov"] else "momentum"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        # The first step sets V = g: there is nothing yet to weigh it against.
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

    domains = {"beta": fraction, "bias_correction": flag}

    def __init__(
        self,
        params: object,
        lr: Scalar = 1e-2,
        beta: Scalar = 0.9,
        weight_decay: Scalar = 0.0,
        bias_correction: bool = False,
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def rule(h: Hyper) -> str:
        return "momentum"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        beta = h["beta"]
        correction = 1.0 - beta**t if h["bias_correction"] else 1.0
        return h["lr"] / correction, beta, 1.0 - beta


class Adagrad(Optimizer):
    r"""Steps scaled down by all gradients so far.

    .. math::
        \nu_t = \nu_{t-1} + g_t^2, \qquad
        W_t = W_{t-1} - \frac{\alpha_t}{\sqrt{\nu_t + \epsilon_{root}} + \epsilon} \, g_t, \qquad
        \alpha_t = \frac{\alpha}{1 + (t - 1) \, \text{lr\_decay}}

    Parameters
    ----------
    params, lr, weight_decay, maximize, **options
        As for `SGD`.
    lr_decay : float
        How fast the learning rate falls with the step count.
    initial_accumulator_value : float
        What ν starts from when the optimizer is made; never a schedule.
    eps, eps_root : float
        Added to the root, and inside it.

    References
    ----------
    Duchi, Hazan and Singer, "Adaptive subgradient methods for online learning and stochastic
    optimization", 2011.
    """

    domains = {"lr_decay": nonnegative, "initial_accumulator_value": start}

    def __init__(
        self,
        params: object,
        lr: Scalar = 1e-2,
        lr_decay: Scalar = 0.0,
        weight_decay: Scalar = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: Scalar = 1e-10,
        *,
        eps_root: Scalar = 0.0,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def rule(h: Hyper) -> str:
        return "adagrad"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        return h["lr"] / (1.0 + (t - 1) * h["lr_decay"]), h["eps"], h["eps_root"]

    @staticmethod
    def initial(h: Hyper) -> Mapping[str, float]:
        return {"sum": h["initial_accumulator_value"]}


class RMSprop(Optimizer):
    r"""Steps scaled down by the recent size of the gradients.

    .. math::
        \nu_t = \beta \nu_{t-1} + (1 - \beta) g_t^2, \qquad
        W_t = W_{t-1} - \frac{\alpha}{\sqrt{\nu_t + \epsilon_{root}} + \epsilon} \, g_t

    ``centered`` takes the variance, ν less the square of the gradients' average, for ν;
    ``momentum`` feeds the scaled gradients to a heavy ball.

    Parameters
    ----------
    params, lr, weight_decay, maximize, **options
        As for `SGD`.
    alpha : float
        β of the formula, by torch's name.
    eps, eps_root : float
        Added to the root, and inside it.
    momentum : float
        μ of the heavy ball; 0 keeps no velocity.  As a schedule it always keeps one.
    centered : bool
        Scale by the variance.  Where rounding makes it negative, it counts as 0.

    References
    ----------
    Tieleman and Hinton, "Lecture 6.5: rmsprop", 2012.
    Graves, "Generating sequences with recurrent neural networks", 2013 (centered).
    """

    domains = {"alpha": fraction, "momentum": nonnegative, "centered": flag}

    def __init__(
        self,
        params: object,
        lr: Scalar = 1e-2,
        alpha: Scalar = 0.99,
        eps: Scalar = 1e-8,
        weight_decay: Scalar = 0.0,
        momentum: Scalar = 0.0,
        centered: bool = False,
        *,
        eps_root: Scalar = 0.0,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def rule(h: Hyper) -> str:
        centered = "_centered" if h["centered"] else ""
        return f"rmsprop{centered}" if h["momentum"] == 0 else f"rmsprop{centered}_momentum"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        beta = h["alpha"]
        return h["lr"], beta, 1.0 - beta, h["eps"], h["eps_root"], h["momentum"]


class Adam(Optimizer):
    r"""Momentum and RMSProp together, both with their bias corrected.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, &
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \\
        \hat m_t &= m_t / (1 - \beta_1^t), & \hat v_t &= v_t / (1 - \beta_2^t), \\
        W_t &= W_{t-1} - \alpha \hat m_t / (\sqrt{\hat v_t + \epsilon_{root}} + \epsilon)

    ``amsgrad`` takes the largest :math:`v` so far for :math:`v_t` in the last two lines.

    Parameters
    ----------
    params, lr, weight_decay, maximize, **options
        As for `SGD`.
    betas : (float, float)
        β₁ and β₂.
    eps, eps_root : float
        Added to the corrected root, and inside it.
    amsgrad : bool
        Never let the scale grow again.

    References
    ----------
    Kingma and Ba, "Adam: a method for stochastic optimization", 2015.
    Reddi, Kale and Kumar, "On the convergence of Adam and beyond", 2018 (amsgrad).

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> params = {"W": np.ones((2, 2), np.float32), "b": np.zeros(2, np.float32)}
    >>> opt = fastgd.Adam(params, lr=0.1)
    >>> _ = opt.step({"W": np.ones((2, 2), np.float32), "b": None})
    >>> params["W"][0], int(opt.state["W"]["step"]), int(opt.state["b"]["step"])
    (array([0.9, 0.9], dtype=float32), 1, 0)
    """

    domains = {"betas": two_fractions, "amsgrad": flag}

    def __init__(
        self,
        params: object,
        lr: Scalar = 1e-3,
        betas: Pair = (0.9, 0.999),
        eps: Scalar = 1e-8,
        weight_decay: Scalar = 0.0,
        amsgrad: bool = False,
        *,
        eps_root: Scalar = 0.0,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def rule(h: Hyper) -> str:
        return "amsgrad" if h["amsgrad"] else "adam"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        beta1, beta2 = h["betas"]
        correction2 = 1.0 - beta2**t
        root = sqrt(correction2)
        # The corrections leave the loop: m̂/(√(v̂ + ε_root) + ε) =
        # √c₂/c₁ · m/(√(v + c₂ε_root) + √c₂ε), where c = 1 − βᵗ.
        return (
            h["lr"] * root / (1.0 - beta1**t),
            beta1,
            1.0 - beta1,
            beta2,
            1.0 - beta2,
            h["eps"] * root,
            h["eps_root"] * correction2,
        )


class AdamW(Adam):
    r"""Adam with decoupled weight decay: :math:`W \leftarrow (1 - \alpha\lambda) W` comes first.

    Parameters
    ----------
    params, lr, betas, eps, amsgrad, eps_root, maximize, **options
        As for `Adam`.
    weight_decay : float
        λ, which here does not pass through the gradient.

    References
    ----------
    Loshchilov and Hutter, "Decoupled weight decay regularization", 2019.
    """

    decoupled = True

    def __init__(
        self,
        params: object,
        lr: Scalar = 1e-3,
        betas: Pair = (0.9, 0.999),
        eps: Scalar = 1e-8,
        weight_decay: Scalar = 1e-2,
        amsgrad: bool = False,
        *,
        eps_root: Scalar = 0.0,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        Optimizer.__init__(self, params, locals())
