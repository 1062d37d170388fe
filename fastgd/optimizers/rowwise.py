"""Rules with one number for each row of a table: row-wise AdaGrad and row-wise Adam."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import nonnegative, start, two_fractions
from fastgd.core.optimizer import Optimizer
from fastgd.kernels._engine import raised
from fastgd.kernels.spec.registry import Array, PerRow, Scalar, rule


class RowWiseAdagrad(Optimizer):
    r"""AdaGrad with one number a row of a table for state: the sum of its mean squares.

    .. math::
        \nu_{t,i} = \nu_{t-1,i} + \frac{1}{n} \sum_{j=1}^{n} g_{t,ij}^2, \qquad
        W_{t,ij} = W_{t-1,ij} - \frac{\alpha_t}{\sqrt{\nu_{t,i}} + \epsilon} \, g_{t,ij}, \qquad
        \alpha_t = \frac{\alpha}{1 + (t - 1) \, \text{lr\_decay}}

    where i counts the entries along the first axis and j the n elements of each.  Gradients by rows
    (`fastgd.Rows`) are exact, without weight decay: a row without a gradient stands still.  Vectors
    and numbers, which have no rows, are stepped as by `Adagrad`.

    Parameters
    ----------
    params, lr, weight_decay, maximize, **options
        As for `SGD`.  Arrays of two or more axes in C order.  ``state_dtype`` is for the states of
        vectors: numbers of rows are kept in the type that is computed with.
    lr_decay : float
        The decay of the learning rate with the step count.
    initial_accumulator_value : float
        The initial value of ν; never a schedule.
    eps : float
        Added to the root.

    Notes
    -----
    These are the semantics of torchrec's ``RowWiseAdagrad`` and of FBGEMM's
    ``EXACT_ROWWISE_ADAGRAD``: the mean over a row, and not the sum; L2 decay, which is part of what
    is squared.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> table = np.zeros((4, 2))
    >>> opt = fastgd.RowWiseAdagrad(table, lr=1.0)
    >>> _ = opt.step(fastgd.Rows([2], np.array([[3.0, 4.0]])))
    >>> table[2].round(3), opt.state[0]["sum"].ravel()
    (array([-0.849, -1.131]), array([ 0. ,  0. , 12.5,  0. ]))
    """

    year = 2019
    sparse = True
    lr = hyper(nonnegative, 1e-2)
    lr_decay = hyper(nonnegative, 0.0)
    weight_decay = hyper(nonnegative, 0.0)
    initial_accumulator_value = hyper(start, 0.0)
    eps = hyper(nonnegative, 1e-10)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "rowwise_adagrad" if len(shape) > 1 else "adagrad"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        return h["lr"] / (1.0 + (t - 1) * h["lr_decay"]), h["eps"], 0.0

    @staticmethod
    def initial(h: Hyper) -> Mapping[str, float]:
        return {"sum": h["initial_accumulator_value"]}


class RowWiseAdam(Optimizer):
    r"""Adam with one number a row of a table for its second moment.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, &
        v_{t,i} &= \beta_2 v_{t-1,i} + \frac{1 - \beta_2}{n} \sum_{j=1}^{n} g_{t,ij}^2, \\
        \hat m_t &= m_t / (1 - \beta_1^t), & \hat v_t &= v_t / (1 - \beta_2^t), \\
        W_{t,ij} &= (1 - \alpha \lambda) W_{t-1,ij}
            - \alpha \hat m_{t,ij} / (\sqrt{\hat v_{t,i}} + \epsilon)

    where i counts the entries along the first axis and j the n elements of each.  Rows without a
    gradient wait for their next one, if gradients come by rows (`fastgd.Rows`); t counts the
    parameter's steps, not those of each row.  Vectors and numbers, which have no rows, are stepped
    as by `AdamW`.

    Parameters
    ----------
    params, lr, maximize, **options
        As for `SGD`.  Arrays of two or more axes in C order.
    betas : (float, float)
        β₁ and β₂.
    eps : float
        Added to the corrected root.
    weight_decay : float
        λ, decoupled.  With gradients by rows it needs ``rows="lazy"``.

    Notes
    -----
    This is FBGEMM's ``PARTIAL_ROWWISE_ADAM``, which that has for GPUs alone.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> table = np.zeros((4, 2))
    >>> opt = fastgd.RowWiseAdam(table, lr=0.1)
    >>> _ = opt.step(fastgd.Rows([2], np.array([[1.0, -1.0]])))
    >>> table[2].round(6), opt.state[0]["exp_avg_sq"].shape
    (array([-0.1,  0.1]), (4, 1))
    """

    year = 2019
    decoupled = True
    sparse = True
    lr = hyper(nonnegative, 1e-3)
    betas = hyper(two_fractions, (0.9, 0.999))
    eps = hyper(nonnegative, 1e-8)
    weight_decay = hyper(nonnegative, 0.0)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        return "rowwise_adam" if len(shape) > 1 else "adam"

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        beta1, beta2 = h["betas"]
        root = sqrt(1.0 - raised(beta2, t))
        return (
            h["lr"] * root / (1.0 - raised(beta1, t)),
            beta1,
            1.0 - beta1,
            beta2,
            1.0 - beta2,
            h["eps"] * root,
            0.0,
        )


# --------------------------------------------------------------------------------------- the rules


def rowwise_adagrad_numbers(p: Array, g: Array) -> None:
    """ν ← ν + ḡ, ḡ the mean of g² over a row."""
    p[...] = p + g


def rowwise_adam_numbers(p: Array, g: Array, *, beta2: Scalar, gamma2: Scalar) -> None:
    """v ← β₂v + γ₂ḡ."""
    p[...] = beta2 * p + gamma2 * g


def inverse_root(p: Array, *, eps: Scalar) -> None:
    """r = 1 / (√ν + ε)."""
    p[...] = 1 / (np.sqrt(p) + eps)


@rule(
    lines=rowwise_adagrad_numbers,
    rows=inverse_root,
    by_rows="exact",
    catch_up="linear without L2 decay",
)
def rowwise_adagrad(p: Array, g: Array, sum: PerRow, *, alpha: Scalar) -> None:
    """p ← p − αgr, r = 1 / (√ν + ε), ν ← ν + mean(g²) over each row."""
    r = sum
    p[...] = p - alpha * (g * r)


@rule(lines=rowwise_adam_numbers, rows=inverse_root)
def rowwise_adam(
    p: Array,
    g: Array,
    exp_avg: Array,
    exp_avg_sq: PerRow,
    *,
    alpha: Scalar,
    beta1: Scalar,
    gamma1: Scalar,
) -> None:
    """m ← β₁m + γ₁g; p ← p − αmr, r = 1 / (√v + ε), v ← β₂v + γ₂mean(g²) over each row."""
    m, r = exp_avg, exp_avg_sq
    m[...] = beta1 * m + gamma1 * g
    p[...] = p - alpha * (m * r)
