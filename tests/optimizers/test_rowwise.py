"""RowWiseAdagrad and RowWiseAdam: the formulas of FBGEMM, written out; rows and whole arrays."""

from itertools import product

import ml_dtypes
import numpy as np
import pytest
from support.helpers import COMPILED, same_bits

import fastgd
from fastgd import Rows
from fastgd.core.storage import Piece
from fastgd.kernels.spec.lines import axes_of
from fastgd.kernels.spec.registry import RULES
from fastgd.optimizers import GENERAL


def draws(shape, k=6, steps=100):
    rng = np.random.default_rng(0)
    for _ in range(steps):
        yield rng.integers(0, shape[0], k), rng.standard_normal((k, *shape[1:]))


def merged(indices, values, shape):
    """The rows that have a gradient, and that of the whole table."""
    whole = np.zeros(shape)
    np.add.at(whole, indices, values)
    return np.unique(indices), whole


@pytest.mark.parametrize("decay", [0.0, 0.03])
def test_rowwise_adagrad_is_fbgemms(decay):
    """EXACT_ROWWISE_ADAGRAD with L2 decay, which is part of what is squared."""
    p = np.random.default_rng(1).standard_normal((12, 5))
    W, s = p.copy(), np.zeros(12)
    opt = fastgd.RowWiseAdagrad(p, lr=0.1, weight_decay=decay, eps=1e-8, rows="lazy")
    for indices, values in draws(p.shape):
        rows, whole = merged(indices, values, p.shape)
        for r in rows:
            g = whole[r] + decay * W[r]
            s[r] += g @ g / 5
            W[r] -= 0.1 / (np.sqrt(s[r]) + 1e-8) * g
        opt.step(Rows(indices, values))
    np.testing.assert_allclose(p, W, rtol=1e-12)
    np.testing.assert_allclose(opt.state[0]["sum"][:, 0], s, rtol=1e-12)


def test_rowwise_adam_is_fbgemms():
    """PARTIAL_ROWWISE_ADAM, which decays as W ← W − α(m̂/(√v̂ + ε) + λW)."""
    p = np.random.default_rng(1).standard_normal((12, 5))
    W, m, v = p.copy(), np.zeros_like(p), np.zeros(12)
    opt = fastgd.RowWiseAdam(p, lr=0.02, weight_decay=0.1, rows="lazy")
    for t, (indices, values) in enumerate(draws(p.shape), 1):
        rows, whole = merged(indices, values, p.shape)
        for r in rows:
            g = whole[r]
            m[r] = 0.9 * m[r] + 0.1 * g
            v[r] = 0.999 * v[r] + 0.001 * (g @ g / 5)
            step = m[r] / (1 - 0.9**t) / (np.sqrt(v[r] / (1 - 0.999**t)) + 1e-8)
            W[r] -= 0.02 * (step + 0.1 * W[r])
        opt.step(Rows(indices, values))
    np.testing.assert_allclose(p, W, rtol=1e-11)


SHAPES = [(), (5,), (3, 4), (40, 1), (1, 40), (700, 70), (2, 40000), (4, 3, 5), (0, 3), (3, 0)]


@pytest.mark.parametrize("cls", [fastgd.RowWiseAdagrad, fastgd.RowWiseAdam])
def test_dense_gradients_of_any_shape(cls):
    """The bits of the specification, of all rows at once."""

    def run(backend, threads, dtype, options):
        fastgd.set_backend(backend)
        fastgd.set_num_threads(threads)
        rng = np.random.default_rng(0)
        params = [rng.standard_normal(shape).astype(dtype)[...] for shape in SHAPES]
        opt = cls(params, **{"weight_decay": 0.1, **options})
        given = np.float32 if "weight_decay" not in options else dtype  # by the rule alone
        for _ in range(2):
            opt.step([rng.standard_normal(p.shape).astype(given)[...] for p in params])
        averages = opt.average.averages.values() if opt.average else ()
        return [*params, *(a for entry in opt.state.values() for a in entry.values()), *averages]

    for dtype, options in (
        (np.float32, {}),
        (np.float32, {"clip_ratio": 0.1, "average": 0.9}),
        (np.float32, {"clip_norm": 1.0}),
        (np.float64, {}),
        (np.float32, {"weight_decay": 0.0}),
        (np.float64, {"weight_decay": 0.0}),
        (np.float64, {"average": 0.9}),
        (ml_dtypes.bfloat16, {"clip_norm": 1.0, "rounding": "stochastic"}),
    ):
        expected = run("numpy", 1, dtype, options)
        for threads, backend in enumerate(fastgd.available_backends()[:-1], 1):
            for a, b in zip(run(backend, threads, dtype, options), expected, strict=True):
                assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("shape", [(7, 5), (5, 3, 4), (2, 700)])
def test_units_of_dense_gradients(backend, shape):
    """Norms and means by rows and by columns, before the mean square of each row is taken."""
    for cls, layout, ratio in product(
        (fastgd.RowWiseAdagrad, fastgd.RowWiseAdam), ("out_in", "in_out"), (None, 0.01)
    ):
        found = []
        for use in ("numpy", backend):
            fastgd.set_backend(use)
            rng = np.random.default_rng(0)
            p = rng.standard_normal(shape)
            opt = cls(p, lr=0.1, layout=layout, centralize=True, clip_ratio=ratio)
            for _ in range(2):
                opt.step(rng.standard_normal(shape))
            found.append([p, *opt.state[0].values()])
        assert all(map(same_bits, *found))


def test_states_of_rows():
    opt = fastgd.RowWiseAdagrad(
        [np.ones((4, 3, 2), np.float32), np.ones(3)], initial_accumulator_value=0.5
    )
    assert opt.state[0]["sum"].shape == (4, 1, 1)
    assert opt.state[0]["sum"].dtype == np.float32
    assert (opt.state[0]["sum"] == 0.5).all()
    assert opt.state[1]["sum"].shape == (3,)
    assert not RULES["rowwise_adagrad"].shards
    assert not {"SparseAdam", "RowWiseAdagrad", "RowWiseAdam"} & GENERAL.keys()
    for cls in (fastgd.RowWiseAdagrad, fastgd.RowWiseAdam):
        with pytest.raises(ValueError, match=r"params: expected an array in C order, as rule row"):
            cls(np.asfortranarray(np.ones((3, 4))))
        flat, axes = np.ones(12), axes_of((3, 4), (8, 24), 8)
        piece = Piece(flat, 0, 12, order="F", shape=(3, 4), axes=axes)
        with pytest.raises(ValueError, match=r"params\[0\]: expected an array in C order"):
            cls([piece])


def test_rows_of_more_than_half_a_chunk():
    p = np.zeros((64, 16_400), np.float32)
    fastgd.RowWiseAdagrad(p, lr=1.0).step(np.ones_like(p))
    assert (p == -1).all()


@pytest.mark.parametrize("backend", ["numpy", *COMPILED])
def test_a_row_without_a_gradient_stands_still(backend):
    """Also where ε is 0, and a step would divide 0 by 0."""
    fastgd.set_backend(backend)
    for cls in (fastgd.RowWiseAdagrad, fastgd.RowWiseAdam):
        p = np.ones((3, 2), np.float32)
        cls(p, lr=100.0, eps=0.0).step(np.array([[0, 0], [1, 1], [0, 0]], np.float32))
        assert (p[[0, 2]] == 1).all()
        assert np.isfinite(p[1]).all()
    p = np.ones((2, 33000))
    opt = fastgd.RowWiseAdagrad(p, clip_value=1.0)
    opt.step(np.zeros_like(p))
    assert (opt.state[0]["sum"] == 0).all()
