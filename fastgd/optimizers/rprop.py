"""Rprop: each element's step grows while its gradient keeps its sign, and shrinks when it turns."""

from __future__ import annotations

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import bounds, nonnegative, shrink_and_grow
from fastgd.core.optimizer import Optimizer
from fastgd.kernels.spec.registry import Array, Scalar, Squares, at_least, at_most, rule


class Rprop(Optimizer):
    r"""Steps by the signs of gradients alone, of a length that each element finds for itself.

    .. math::
        \Delta_t &= \Delta_{t-1} \cdot \begin{cases}
        \eta^+ & g_t g_{t-1} > 0 \\ \eta^- & g_t g_{t-1} < 0 \\ 1 & \text{else} \end{cases}
        \text{ within } [\Delta_{min}, \Delta_{max}], \\
        g_t &\leftarrow 0 \text{ where } g_t g_{t-1} < 0, \qquad
        W_t = W_{t-1} - \Delta_t \operatorname{sign}(g_t)

    An element whose gradient has turned stays where it is for a step.  A product of gradients that
    underflows counts as 0, as in torch.

    Use it where each gradient is that of all data: it is fast and needs no learning rate; with
    mini-batches the signs turn by chance, and the steps die away.

    Parameters
    ----------
    params, maximize, **options
        As for `SGD`.
    lr : float
        Δ₀, the step size that each element starts from.  It counts at a parameter's first step
        alone, as in torch: later values, and those of a schedule, change nothing.
    etas : (float, float)
        η⁻ and η⁺, below and above 1; never a schedule.
    step_sizes : (float, float)
        Δ_min and Δ_max.
    weight_decay : float
        λ of an L2 penalty, which torch's class has not.

    References
    ----------
    Riedmiller and Braun, "A direct adaptive method for faster backpropagation learning: the RPROP
    algorithm", 1993.
    Igel and Hüsken, "Empirical evaluation of the improved Rprop learning algorithms", 2003 (this
    form, iRprop⁻).

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.zeros(1)
    >>> opt = fastgd.Rprop(W, lr=1.0)
    >>> for g in (3.0, 0.1, -5.0, -5.0):
    ...     _ = opt.step(np.array([g]))
    ...     print(W[0].round(6), opt.state[0]["step_size"][0].round(6))
    -1.0 1.0
    -2.2 1.2
    -2.2 0.6
    -1.6 0.6
    """

    year = 1993
    lr = hyper(nonnegative, 1e-2)
    etas = hyper(shrink_and_grow, (0.5, 1.2))
    step_sizes = hyper(bounds, (1e-6, 50.0))
    weight_decay = hyper(nonnegative, 0.0, keyword=True)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "rprop"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        shrink, grow = h["etas"]
        least, most = h["step_sizes"]
        return h["lr"], 1.0 if t == 1 else 0.0, shrink, grow, least, most


# ---------------------------------------------------------------------------------------- the rule


@rule(by_rows="sets its step sizes at the first step, for all rows at once")
def rprop(
    p: Array,
    g: Array,
    prev: Array,
    step_size: Squares,
    *,
    delta0: Scalar,
    first: Scalar,
    eta_minus: Scalar,
    eta_plus: Scalar,
    delta_min: Scalar,
    delta_max: Scalar,
) -> None:
    """Δ ← Δ·(η⁺, η⁻ or 1) by the sign of g·prev; p ← p − Δ sign(g) (Riedmiller and Braun, 1993).

    At the first step Δ is Δ₀.  Where the gradient has turned it counts as 0, now and as `prev`.
    """
    one, turn = p.dtype.type(1), g * prev
    delta = delta0 if first != 0 else step_size
    delta = delta * np.where(turn > 0, eta_plus, np.where(turn < 0, eta_minus, one))
    step_size[...] = at_most(at_least(delta, delta_min), delta_max)
    prev[...] = np.where(turn < 0, p.dtype.type(0), g)
    p[...] = p - step_size * np.sign(prev)
