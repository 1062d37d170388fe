"""Subnormal numbers, and the floating-point mode of the process and of its threads."""

from __future__ import annotations

import platform
import sys
import time

import numpy as np
import pytest
from support.helpers import COMPILED, Tensors, coefficients_of, run_python, unsanitized
from support.sampling import rules, sampled

import fastgd
from fastgd.kernels.reference import Stages

F32, F64 = np.float32, np.float64
TINY = {F32: 1e-42, F64: 1e-312}  # subnormal, as are 0.9 and 0.001 times it

# ------------------------------------------------------------------------------------- subnormals


@sampled({"backend": COMPILED, "rule": rules(slow=True), "dtype": [F32, F64]})
def test_subnormals_are_numbers_like_all_others(backend, rule, dtype):
    """States that decay through them, gradients and parameters there: the reference's bits."""
    for value, grad in ((TINY[dtype], 0), (TINY[dtype], TINY[dtype]), (1e-36, 0)):
        tensors = Tensors.random(rule, dtype, [1000, 9000])
        for array in (*tensors.params, *(s for states in tensors.states for s in states)):
            array *= dtype(value)
        for g in tensors.grads:
            g *= dtype(grad)
        expected = tensors.copy().step("numpy", steps=30)
        tensors.step(backend, threads=2, steps=30).assert_same(expected)


def seconds(arrays, call, rounds=30):
    """The least time of a call on arrays that are brought back to what they were each time."""
    kept = [a.copy() for a in arrays]
    best = np.inf
    for _ in range(rounds):
        for a, own in zip(arrays, kept, strict=True):
            a[...] = own
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def processor_cost(dtype):
    """How much longer this processor takes to multiply and divide subnormals, without us."""
    x, out = np.full(8192, 0.5, dtype), np.empty(8192, dtype)
    tiny, half = np.full(8192, TINY[dtype], dtype), dtype(0.9)

    def work(a):
        for _ in range(10):
            np.multiply(a, half, out=out)
            np.divide(a, half, out=out)

    return seconds([], lambda: work(tiny)) / seconds([], lambda: work(x))


@pytest.mark.slow
@unsanitized
@sampled({"backend": COMPILED, "rule": rules(slow=True), "dtype": [F32, F64]})
def test_speed_does_not_collapse_in_subnormals(backend, rule, dtype):
    """Where the processor itself handles them at speed, so do steps: measured 0.9 to 2.3."""
    if processor_cost(dtype) > 5:
        pytest.skip("this CPU traps on subnormals, whoever computes with them")
    fastgd.set_backend(backend)
    fastgd.set_num_threads(1)
    row = (rule, coefficients_of(rule), Stages())

    def step_time(state, grad):
        tensors = Tensors.random(rule, dtype, [8192])
        arrays = [*tensors.params, *tensors.states[0]]
        for a in tensors.states[0]:
            a[...] = state
        tensors.grads[0][...] = grad

        def steps():
            for _ in range(10):
                tensors.plan.step(tensors.grads, lambda *_: row, 1.0)

        return seconds(arrays, steps)

    normal = step_time(0.5, 0.25)
    for grad in (0.0, TINY[dtype]):
        assert step_time(TINY[dtype], grad) < 6 * normal


@pytest.mark.slow
def test_thousands_of_steps_without_a_gradient():
    """Momentum decays into subnormals, where rounding keeps it from 0, and the bits still agree."""
    found = {}
    for backend in fastgd.available_backends():
        fastgd.set_backend(backend)
        p = np.ones(3000, F32)
        opt = fastgd.Adam(p, betas=(0.9, 0.99))
        opt.step(np.linspace(-1, 1, 3000, dtype=F32))
        zero = np.zeros(3000, F32)
        for _ in range(3000):
            opt.step(zero)
        found[backend] = (
            p.tobytes(),
            *(opt.state[0][k].tobytes() for k in ("exp_avg", "exp_avg_sq")),
        )
        m = opt.state[0]["exp_avg"]
        assert 0 < np.abs(m[0]) < np.finfo(F32).tiny
    assert len(set(found.values())) == 1


# ------------------------------------------------------------------------------------------ the mode

# MXCSR without its sticky flags: rounding, masks, flush to zero.  glibc keeps it at byte 28.
MODE = """
import ctypes, ctypes.util, struct, threading
libm = ctypes.CDLL(ctypes.util.find_library("m"))
def environment():
    env = ctypes.create_string_buffer(64)
    assert libm.fegetenv(env) == 0
    return env
def mode():
    return struct.unpack_from("I", environment(), 28)[0] & 0xffc0
def set_mode(bits):
    env = environment()
    struct.pack_into("I", env, 28, bits)
    assert libm.fesetenv(env) == 0
before = mode()
assert before == 0x1f80
import numpy as np, fastgd
assert mode() == before, "after the import"
def use():
    fastgd.set_num_threads(2)
    p, q = np.ones(100_000, np.float32), np.ones(100_000)
    opt = fastgd.AdamW([p, q], clip_norm=1.0, average=0.9)
    opt.step([np.ones_like(p), np.ones_like(q)])
    opt.step([np.full_like(p, 1e-42), np.full_like(q, 1e-312)])
    fastgd.functional.global_norm([p, q])
    fastgd.averages.ewma(q, beta=0.9)
"""

needs_glibc_on_x86 = pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.platform != "linux",
    reason="this CPU's system has another floating-point environment",
)


@pytest.mark.slow
@needs_glibc_on_x86
def test_the_mode_is_left_as_found():
    """After the import and after steps, in the thread that calls and in another of Python's."""
    done = run_python(
        MODE
        + """
for backend in fastgd.available_backends():
    fastgd.set_backend(backend)
    use()
    assert mode() == before, backend
    seen = []
    thread = threading.Thread(target=lambda: seen.append((mode(), use(), mode())))
    thread.start()
    thread.join()
    assert seen == [(before, None, before)], backend
"""
    )
    assert done.returncode == 0, done.stderr


@needs_glibc_on_x86
@pytest.mark.parametrize("bits", [0x8000, 0x0040, 0x6000], ids=["FTZ", "DAZ", "towards zero"])
def test_a_mode_that_the_caller_set_stays(bits):
    done = run_python(
        MODE
        + f"""
set_mode(before | {bits})
use()
assert mode() == before | {bits}
"""
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("threads", [1, 2, 4, 8])
def test_no_thread_flushes_subnormals(threads, dtype):
    """In each OpenMP thread's share: tiny − 3·tiny is −2·tiny, and not 0."""
    fastgd.set_num_threads(threads)
    p = np.full(300_000, TINY[dtype], dtype)
    fastgd.SGD(p, lr=1.0).step(p * 3)
    assert (p == -2 * dtype(TINY[dtype])).all()
