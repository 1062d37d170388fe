"""The norm of a tree: right to the last bits, the same ones everywhere, without overflow."""

from __future__ import annotations

import numpy as np
import pytest
from support.helpers import COMPILED, SIZES, draw

import fastgd
from fastgd.functional import global_norm

F32, F64 = np.float32, np.float64


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
def test_norm_of_every_size(backend, dtype):
    fastgd.set_backend(backend)
    for n in [*SIZES, 32767, 32768, 32769, 100_001]:
        (x,) = draw(n, [n], dtype)
        expected = np.sqrt(np.sum(x.astype(np.longdouble) ** 2))
        assert global_norm(x) == pytest.approx(float(expected), rel=1e-14), n


@pytest.mark.parametrize("backend", COMPILED)
def test_norms_have_the_same_bits(backend):
    tree = {"a": draw(0, SIZES), "b": draw(1, [70_000], F64)[0], "c": [None, np.float32([[2, 3]])]}
    fastgd.set_backend("numpy")
    expected = global_norm(tree)
    fastgd.set_backend(backend)
    for threads in (1, 2, 3, 4, 8):
        fastgd.set_num_threads(threads)
        assert global_norm(tree) == expected


def test_children_of_tuples_are_added_and_named_in_order():
    a, b = np.full(2, 3.0), np.full(2, 4.0)
    assert global_norm((a, [b])) == global_norm([a, b]) == np.sqrt(50)
    with pytest.raises(TypeError, match=r"^grads\[2\]"):
        global_norm((a, b, np.arange(3), a))


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
def test_norms_of_16_bits_and_of_whole_blocks(backend):
    """Few elements are summed up at once; and a block that is full has none after it."""
    fastgd.set_backend(backend)
    assert global_norm(np.full(9, 2, np.float16)) == 6
    assert global_norm([np.full(32768, 2, F32), np.zeros(0), np.full(32, 64.0)]) == 512


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
def test_norms_of_steps_are_those_of_blocks(backend):
    """Beside 2^54 a sum is rounded to fours: ones are lost in the first block, and not after it."""
    fastgd.set_backend(backend)
    for n, rule in ((100_000, fastgd.SGD), (40_000, fastgd.SGD), (40_000, fastgd.RowWiseAdagrad)):
        for more in ([], [np.ones(10)]):
            g = [np.ones((1, n)), *more]
            g[0][0, 0] = 2.0**27
            opt = rule([np.zeros_like(a) for a in g], clip_norm=1.0)
            assert opt.step(g).grad_norm == global_norm(g)


@pytest.mark.parametrize("backend", [*COMPILED[-1:], "numpy"])
def test_norms_of_groups_are_of_all_their_gradients(backend):
    """Of arrays and of rows, each group's for itself."""
    fastgd.set_backend(backend)
    params = [np.zeros(40_000), np.zeros((5, 4)), np.zeros(3), np.zeros(3)]
    groups = [{"params": params[:2]}, {"params": params[2:]}]
    opt = fastgd.SGD(groups, lr=1.0, clip_norm=1.0, clip_by="group")
    rows = fastgd.Rows([1, 3], np.full((2, 4), 100.0))
    opt.step([[np.ones(40_000), rows], [np.ones(3), np.full(3, 0.01)]])
    for some in (params[:2], params[2:]):
        assert np.linalg.norm(np.concatenate(some, None)) == pytest.approx(1.0)


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
def test_norms_neither_overflow_nor_underflow(backend):
    fastgd.set_backend(backend)
    for value in (1e-45, 1e-38, 1e-20, 1e20, 3e38):
        x = np.full(10_000, value, F32)
        assert global_norm(x) == pytest.approx(100 * float(F32(value)), rel=1e-12)
    for value in (1e-140, 1e150, 1e160, 1e300, 1.7e306):
        assert global_norm(np.full(10_000, value)) == pytest.approx(100 * value, rel=1e-12)
    # Of part of an array, in several blocks of which the last is not full.
    assert global_norm(np.full(70_000, 1e160)[:40_000]) == pytest.approx(2e162, rel=1e-12)
    mixed = [np.full(4, 1e200), np.full(9, F32(1e30)), np.full(4, 3e200)]
    assert global_norm(mixed) == pytest.approx(np.sqrt(4 + 36) * 1e200, rel=1e-12)
    # Each tensor's squares stay finite, their sum doesn't.
    assert global_norm([np.full(1, 1.2e154)] * 4) == pytest.approx(2.4e154, rel=1e-12)
    # Squares that are summed scaled, beside others that are not and count as well.
    both = [np.full(2, 2.0**450), np.full(3, 2.0**449)]
    assert global_norm(both) == pytest.approx(np.sqrt(11) * 2.0**449, rel=1e-15)
    assert global_norm(np.full(3, np.inf)) == np.inf
    assert np.isnan(global_norm([np.ones(3), np.array([1.0, np.nan])]))
    assert np.isnan(global_norm([np.full(4, 1e200), np.array([1e300, np.nan])]))


def test_norm_takes_any_layout_and_refuses_what_is_no_float():
    x = np.arange(24.0).reshape(4, 6)
    for view in (x.T, x[::2], x[:, ::-1], x[0, 0], x.astype(">f8")):
        assert global_norm([view]) == pytest.approx(float(np.sqrt((view**2).sum())), rel=1e-14)
    assert global_norm([]) == global_norm(None) == global_norm(np.zeros(0)) == 0
    with pytest.raises(
        TypeError,
        match=r'grads\["W"\]: expected dtype float32, float64, bfloat16 or float16, found i',
    ):
        global_norm({"W": np.arange(3)})
    with pytest.raises(
        TypeError, match=r"grads\[1\]\[0\]: expected an array, found builtins.float"
    ):
        global_norm([np.ones(1), [1.0]])
    endless = []
    endless.append(endless)
    with pytest.raises(ValueError, match="^grads: nested without end"):
        global_norm(endless)
