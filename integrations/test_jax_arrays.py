"""JAX on the CPU: its arrays are gradients without a copy, and never parameters."""

from __future__ import annotations

import numpy as np
import pytest

import fastgd

jax = pytest.importorskip("jax", reason="jax is not installed")


def test_gradients_of_jax_are_read_where_they_are():
    target = jax.numpy.arange(5.0)
    gradient = jax.jit(jax.grad(lambda w: 0.5 * ((w - target) ** 2).sum()))
    w = np.zeros(5, np.float32)
    opt = fastgd.Adam(w, lr=0.1)
    for _ in range(300):
        grad = gradient(w.copy())
        before = np.array(grad)
        opt.step(grad)
        assert np.array_equal(grad, before)
    assert np.abs(w - np.arange(5)).max() < 1e-3


def test_parameters_of_jax_are_refused():
    x = jax.numpy.zeros(3)
    for wrong in (x, [x], {"w": x}):
        with pytest.raises(ValueError, match="expected a writeable array, found an immutable one"):
            fastgd.SGD(wrong)
    with pytest.raises(ValueError, match="immutable one of JAX; np.array"):
        fastgd.SGD(np.zeros(3, np.float32), copy_to=x)
    assert not np.any(x)
    p = np.array(x)
    fastgd.SGD(p, lr=1.0).step(jax.numpy.ones(3))
    assert p.tolist() == [-1, -1, -1]


def test_a_step_can_not_be_traced():
    p = np.zeros(3, np.float32)
    opt = fastgd.SGD(p)
    with pytest.raises(TypeError, match=r"^grads: expected an array in CPU memory, found jax\."):
        jax.jit(opt.step)(jax.numpy.ones(3))
    assert not p.any()
