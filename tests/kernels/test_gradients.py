"""What a plan remembers of gradients from step to step, and what it must look at again."""

import ml_dtypes
import numpy as np
import pytest
from support.helpers import same_bits

import fastgd
from fastgd import Rows
from fastgd.kernels import _engine

F16, F32, F64 = np.float16, np.float32, np.float64


def test_rows_are_found_anywhere_in_a_tree():
    rows = Rows([0], np.ones((1, 2)))
    for tree in (rows, [rows], [None, np.ones(2), rows], {"a": [rows]}, (1.0, {"a": (rows,)})):
        assert _engine.has_rows(tree)
    for tree in (None, np.ones(2), [np.ones(2)], [None, 1.0, [np.ones(2)]], {"a": ()}, [[], []]):
        assert not _engine.has_rows(tree)


def test_looking_for_rows_ends_in_trees_without_an_end():
    endless = []
    endless.append(endless)
    with pytest.raises(RecursionError):
        _engine.has_rows(endless)
    for _ in range(30_000):  # what was entered is left again
        assert not _engine.has_rows([None])


@pytest.mark.parametrize("kind", [list, tuple])
def test_gradients_that_come_and_go(kind):
    """A step like the last one is taken as that was, and only such a one."""
    params, taken, g = [np.ones(3), np.ones(3)], [0, 0], np.ones(3)
    opt = fastgd.SGD(params, lr=1.0)
    for given in [(1, 1), (1, 1), (0, 1), (1, 1), (0, 0), (1, 1), (1, 0), (0, 1), (1, 0), (1, 0)]:
        opt.step(kind(g if one else None for one in given))
        taken = [n + one for n, one in zip(taken, given, strict=True)]
        assert [opt.state[k]["step"] for k in range(2)] == taken
        assert [1 - p[0] for p in params] == taken


@pytest.mark.parametrize("kind", [list, tuple])
def test_gradients_of_other_dtypes_in_the_same_memory(kind):
    memory = np.zeros(6, F64)
    p, q = np.zeros((2, 6), F32)
    one, other = fastgd.Momentum([p], lr=0.1), fastgd.Momentum([q], lr=0.1)
    for k, dtype in enumerate((F32, F32, F64, F16, F64, F32)):
        g = memory.view(dtype)[:6]
        g[...] = np.arange(6) + k
        one.step(kind([g]))
        other.step([g.astype(F32)])
        assert same_bits(p, q)


def test_wider_gradients_in_the_same_memory_may_overlap_the_parameter():
    memory = np.zeros(12, F32)
    narrow, wide = memory[:6], memory.view(F64)
    opt = fastgd.SGD([memory[6:]], lr=0.1)
    opt.step([narrow])
    with pytest.raises(ValueError, match="shares memory"):
        opt.step([wide])


def test_bound_gradients_do_not_vouch_for_wider_ones_elsewhere():
    """Those that were found apart in another dtype, before the bound ones were taken."""
    memory = np.zeros(6, F32)
    p, bound = memory[3:], np.zeros(3, F32)
    opt = fastgd.SGD([p], lr=0.1, grads=[bound])
    opt.step([memory.view(F16)[2:5]])
    opt.step()
    with pytest.raises(ValueError, match="shares memory"):
        opt.step([memory[1:4]])


def test_gradients_to_be_zeroed_are_apart_from_each_other():
    memory = np.zeros(40, F32)
    opt = fastgd.SGD([np.zeros(10, F32), np.zeros(10, F32)], lr=0.1, zero_grads=True)
    with pytest.raises(ValueError, match="shares? memory|overlap"):
        opt.step([memory[:10], memory[5:15]])
    opt.step([memory[:10], memory[10:20]])
    with pytest.raises(ValueError, match="shares? memory|overlap"):
        opt.step([memory[:20].view(F64), memory[10:20]])


@pytest.mark.parametrize("before", [True, False])
def test_values_of_rows_to_be_zeroed_are_apart_from_other_gradients(before):
    """Also where they begin as a gradient did that was."""
    memory = np.zeros(40)
    opt = fastgd.SGD([np.zeros((2, 5)), np.zeros(10)], lr=0.1, zero_grads=True, rows="lazy")
    if before:
        opt.step([memory[:10].reshape(2, 5), memory[20:30]])
    with pytest.raises(ValueError, match="shares? memory|overlap"):
        opt.step([Rows([0, 1, 0, 1, 0], memory[:25].reshape(5, 5)), memory[20:30]])


@pytest.mark.parametrize("backend", fastgd.available_backends()[-2:])
def test_values_of_rows_are_zeroed(backend):
    fastgd.set_backend(backend)
    values = np.ones((2, 3))
    opt = fastgd.SGD([np.zeros((4, 3))], lr=0.1, zero_grads=True)
    opt.step([Rows([3, 1], values)])
    assert (values == 0).all()
    values[0] = np.nan
    opt = fastgd.SGD([np.zeros((4, 3))], lr=0.1, zero_grads=True, nonfinite="skip")
    assert opt.step([Rows([3, 1], values)]).skipped
    assert (values == 0).all()


def test_a_view_of_every_other_element_is_refused():
    """Also one with as few flags as may be: neither its own memory nor writeable."""
    g = np.arange(6.0)
    g.flags.writeable = False
    with pytest.raises(ValueError, match="expected contiguous memory"):
        fastgd.SGD([np.zeros(3)], lr=1.0).step([g[::2]])


def test_bound_gradients_are_what_they_were():
    g = np.ones((2, 3), F32, order="F")
    p = np.zeros((2, 3), F32, order="F")
    opt = fastgd.SGD([p], lr=1.0, grads=[g])
    opt.step()
    assert (p == -1).all()
    g.dtype = np.int32
    with pytest.raises(ValueError, match="another dtype, shape or memory"):
        opt.step()
    g = np.ones(3, ml_dtypes.bfloat16)
    p = np.zeros(3, F32)
    opt = fastgd.SGD([p], lr=1.0, grads=[g])
    g.dtype = np.uint16  # by which NumPy knows it as well
    opt.step()
    assert (p == -1).all()
