"""FTRL: online learning whose L1 penalty makes weights that are exactly zero."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import nonnegative, start
from fastgd.core.optimizer import Optimizer
from fastgd.kernels.spec.registry import Array, FullWidth, Scalar, at_least, at_most, rule


class FTRL(Optimizer):
    r"""Follow the regularized leader (FTRL-proximal): AdaGrad with weights that are exactly zero.

    .. math::
        n_t &= n_{t-1} + g_t^2, \qquad
        z_t = z_{t-1} + \alpha g_t - (\sqrt{n_t} - \sqrt{n_{t-1}}) W_{t-1}, \\
        W_t &= -\frac{z_t - \min(\max(z_t, -\alpha \lambda_1), \alpha \lambda_1)}
        {\sqrt{n_t} + \beta + \alpha \lambda_2}

    W is 0 wherever :math:`|z_t| \le \alpha \lambda_1`.  Use it for linear models of many features
    that come as a stream, most of whose weights should be zero: click prediction, say.

    Parameters
    ----------
    params, lr, maximize, **options
        As for `SGD`.
    beta : float
        β: what bounds the first steps; 1 is usual where n starts from 0.
    l1, l2 : float
        λ₁ and λ₂, the penalties :math:`\lambda_1 \|W\|_1 + \frac12 \lambda_2 \|W\|^2` of all steps
        together.
    weight_decay : float
        As for `SGD`: added to the gradient in each step, and so to n.
    initial_accumulator_value : float
        What n starts from.

    Notes
    -----
    z is the paper's times α.  With a constant α it is the paper's algorithm, with a power of -½
    of n.  A schedule may change α: without penalties W then follows AdaGrad's steps, and stays
    where it is while α is 0.  The penalties count by the α of the moment, as λ₁ and λ₂ do if they
    are changed: where α falls, weights that were 0 come back.

    Gradients by rows (`fastgd.Rows`) take ``rows="lazy"``, although rows without a gradient stand
    still while α does: their weights follow from it.  They need weights that start from 0.

    At the first step of a parameter z is set so that W goes on from where it is, where the paper
    starts from 0.  From then on W follows from z and n: what is written to it later acts for one
    step at most.  z and n keep the parameter's full width whatever ``state_dtype`` says, unless it
    names ``"linear"`` or ``"accumulator"``.

    Keras and TensorFlow write the penalty as l2 ‖W‖²: their l2 is half of λ₂ here.  They too start
    n from 0.1, and β from 0.

    References
    ----------
    McMahan et al., "Ad click prediction: a view from the trenches", 2013.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> W = np.zeros(3)
    >>> opt = fastgd.FTRL(W, lr=0.1, l1=1.0)
    >>> for _ in range(3):
    ...     _ = opt.step(np.array([1.0, 0.1, 0.0]))
    >>> W.round(3)
    array([-0.126,  0.   ,  0.   ])
    """

    year = 2013
    remade = True
    lr = hyper(nonnegative, 1e-3)
    beta = hyper(nonnegative, 0.0)
    l1 = hyper(nonnegative, 0.0)
    l2 = hyper(nonnegative, 0.0)
    weight_decay = hyper(nonnegative, 0.0)
    initial_accumulator_value = hyper(start, 0.1)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "ftrl"

    @staticmethod
    def initial(h: Hyper) -> Mapping[str, float]:
        return {"accumulator": h["initial_accumulator_value"]}

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        return (
            h["lr"],
            h["lr"] * h["l1"],
            h["beta"] + h["lr"] * h["l2"],
            1.0 if t == 1 else 0.0,
        )


# ---------------------------------------------------------------------------------------- the rule


@rule(catch_up="makes weights anew of its states, by the learning rate of the moment")
def ftrl(
    p: Array,
    g: Array,
    linear: FullWidth,
    accumulator: FullWidth,
    *,
    alpha: Scalar,
    tau: Scalar,
    rho: Scalar,
    first: Scalar,
) -> None:
    """n' = n + g²; z ← z + αg − (√n' − √n)p; p ← (clip(z, ±τ) − z) / (√n' + ρ) (McMahan, 2013).

    τ = αλ₁, ρ = β + αλ₂.  At the first step z is what makes p of itself.  Where 0 would be divided
    by 0 there has been no gradient yet, and p stays.
    """
    z, n = linear, accumulator
    root = np.sqrt(n)
    start = -(p * (root + rho) + tau * np.sign(p)) if first != 0 else z
    n[...] = n + g * g
    grown = np.sqrt(n)
    z[...] = start + (alpha * g - (grown - root) * p)
    scale = grown + rho
    found = (at_least(at_most(z, tau), -tau) - z) / scale
    p[...] = np.where(scale == 0, p, found)
