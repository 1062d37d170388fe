"""The engine: threads, the GIL, forks, very large arrays, the floating-point mode, plans' checks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import nullcontext

import numpy as np
import pytest
from support.helpers import Tensors, run_python

import fastgd
from fastgd.kernels import _engine
from fastgd.kernels.reference import RULES, Stages
from fastgd.kernels.spec.coded_array import CodedArray

needs_openmp = pytest.mark.skipif(not _engine.has_openmp(), reason="built without OpenMP")


# --------------------------------------------------------------------------------------- threads


@needs_openmp
def test_thread_count_follows_the_environment():
    code = "import fastgd; print(fastgd.get_num_threads())"
    assert run_python(code, OMP_NUM_THREADS="3").stdout == "3\n"
    assert run_python(code, OMP_NUM_THREADS="1").stdout == "1\n"


@needs_openmp
@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this CPU's system has no affinity"
)
def test_thread_count_follows_the_affinity_mask():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import fastgd; print(fastgd.get_num_threads())"
    )
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout == "1\n"


@needs_openmp
def test_thread_count_follows_threadpoolctl():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    fastgd.set_num_threads(None)
    with threadpoolctl.threadpool_limits(1):
        assert fastgd.get_num_threads() == 1
    with threadpoolctl.threadpool_limits(2):
        assert fastgd.get_num_threads() == 2


@needs_openmp
def test_set_num_threads():
    fastgd.set_num_threads(5)
    assert fastgd.get_num_threads() == 5
    for n, error in (
        (0, ValueError), (-1, ValueError), (10**6, ValueError), (True, TypeError), (1.5, TypeError),
    ):  # fmt: skip
        with pytest.raises(error, match="n: expected"):
            fastgd.set_num_threads(n)
    assert fastgd.get_num_threads() == 5
    fastgd.set_num_threads(None)
    assert fastgd.get_num_threads() >= 1


@needs_openmp
def test_threads_do_the_work():
    """Under two threads, a large step costs the calling thread much less than all of the time."""
    n = 1 << 22
    opt = fastgd.Adam(np.zeros(n, np.float32), grads=np.ones(n, np.float32))

    def own_share(threads):
        fastgd.set_num_threads(threads)
        opt.step()
        whole, own = time.process_time(), time.thread_time()
        for _ in range(10):
            opt.step()
        return (time.thread_time() - own) / (time.process_time() - whole)

    time.sleep(0.2)  # threads that a test before has left idle, BLAS's too, spin for a while
    assert own_share(1) > 0.95
    # Less than half, but on a busy machine, where it takes over pieces of the other thread's.
    assert min(own_share(2) for _ in range(3)) < 0.9


def test_the_gil_is_released():
    n = 1 << 24
    opt = fastgd.Adam(np.zeros(n, np.float32), grads=np.ones(n, np.float32))
    fastgd.set_num_threads(1)
    opt.step()
    ticks, inside, stop = [], [], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    ticker = threading.Thread(target=tick)
    ticker.start()
    for _ in range(10):
        start = time.perf_counter()
        opt.step()
        inside.append((start, time.perf_counter()))
    stop.set()
    ticker.join()
    during = [t for t in ticks if any(a + 0.001 < t < b - 0.001 for a, b in inside)]
    assert len(during) >= 3, "another thread ran in the middle of steps"


def test_threads_take_turns_on_one_optimizer():
    """Steps, changes of rule, state dicts: each whole, whoever calls, and none is lost."""
    n = 1 << 20
    p = np.zeros(n, np.float32)
    opt = fastgd.Adam(p, grads=np.ones(n, np.float32))
    fastgd.set_num_threads(1)
    torn = []

    def steps(k):
        for t in range(10):
            opt.param_groups[0]["amsgrad"] = bool((t + k) % 2)
            opt.step()
            entry = opt.state_dict()["state"][0]
            torn.append(len(np.unique(entry["exp_avg"])) > 1)

    workers = [threading.Thread(target=steps, args=(k,)) for k in range(3)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert len(torn) == 30
    assert not any(torn)
    assert int(opt.state[0]["step"]) == 30
    assert len(np.unique(p)) == 1


def test_gradients_live_as_long_as_the_step():
    """The engine holds the arrays of gradients that nobody else holds."""

    class Temporary:
        def __init__(self, value):
            self.value = value

        def __dlpack__(self, **_):
            return np.full(100_000, self.value).__dlpack__()

        def __dlpack_device__(self):
            return (1, 0)

    params = [np.zeros(100_000) for _ in range(8)]
    fastgd.SGD(params, lr=1.0).step([Temporary(float(k)) for k in range(8)])
    assert [(p[0], p[-1]) for p in params] == [(-k, -k) for k in range(8)]


def test_different_optimizers_step_in_parallel():
    tensors = [Tensors.random("adam", np.float32, [70_000, 5], seed=k) for k in range(4)]
    expected = [t.copy().step(fastgd.get_backend(), 2, steps=20) for t in tensors]

    def work(t):
        t.step(fastgd.get_backend(), 2, steps=20)

    workers = [threading.Thread(target=work, args=(t,)) for t in tensors]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    for t, e in zip(tensors, expected, strict=True):
        t.assert_same(e)


# ------------------------------------------------------------------------------- forks, the mode


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this CPU's system has no fork")
def test_a_forked_child_steps_serially():
    code = """
import os, sys, numpy as np, fastgd
n = 1 << 20
opt = fastgd.SGD(np.zeros(n, np.float32), lr=1.0, grads=np.ones(n, np.float32))
fastgd.set_num_threads(2)
opt.step()
pid = os.fork()
if pid == 0:
    opt.step()
    ok = fastgd.get_num_threads() == 1 and (opt.param_groups[0]["params"][0] == -2).all()
    os._exit(0 if ok else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert run_python(code).returncode == 0


def test_the_floating_point_mode_stays_as_it_was():
    """Subnormals stay subnormals: nothing is linked that flushes them to zero."""
    code = """
import numpy as np
def subnormal(): return float(np.float32(1e-38) * np.float32(0.1))
before = subnormal()
import fastgd
p = np.zeros(100000, np.float32)
fastgd.Adam(p).step(np.ones_like(p))
assert before == subnormal() != 0
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_import_needs_numpy_alone():
    code = """
import sys, numpy
before = set(sys.modules)
import fastgd
fastgd.functional.adam
added = {name.partition(".")[0] for name in set(sys.modules) - before}
own = {"fastgd", "numpy", "cython_runtime"}  # and Cython's `_cython_...`
added = {name for name in added if not name.startswith("_cython_")}
print(sorted(added - set(sys.stdlib_module_names) - own))
"""
    done = run_python(code)
    assert done.stdout == "[]\n", done.stdout + done.stderr


# ----------------------------------------------------------------------------------- large arrays


def available_gib():
    with open("/proc/meminfo") as lines:
        return (
            next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**20
        )


@pytest.mark.slow
@pytest.mark.skipif(
    not os.path.exists("/proc/meminfo") or available_gib() < 14, reason="too little memory"
)
def test_more_than_2_to_the_31_elements():
    """8.6 GB of parameters; the gradient's pages are untouched zeros but for a few."""
    n = 2**31 + 1000
    p, g = np.zeros(n, np.float32), np.zeros(n, np.float32)
    places = [0, 2**31 - 1, 2**31, n - 1]
    g[places] = [1, 2, 3, 4]
    opt = fastgd.SGD(p, lr=1.0)
    for grad_scale, total in ((1.0, 1), (0.5, 3)):
        opt.step(g, grad_scale=grad_scale)
        assert p[places].tolist() == [-k * total for k in (1, 2, 3, 4)]
        assert not p[1 : 2**20].any()
        assert not p[2**31 + 1 : -1].any()


# ------------------------------------------------------------------------------- what a plan checks


def plan_of(p, states, **options):
    """A plan over one parameter of a rule with as many states."""
    rule = ("sgd", "momentum", "adam", "amsgrad")[len(states)]
    return _engine.Plan(
        None, [p], [""], [0], [tuple(states)], [rule], np.zeros(1, np.int64), **options
    )


def test_a_plan_refuses_states_that_do_not_fit():
    p = np.zeros(300, np.float32)
    scales = np.zeros(2, np.uint8)
    wrong = [
        (np.zeros(299, np.float32), ValueError, r"expected shape \(300,\)"),
        (CodedArray(np.zeros(300, np.uint16), scales, "e5m2"), TypeError, "expected dtype uint8"),
        (
            CodedArray(np.zeros(300, np.uint8), scales[:1], "e5m2"),
            ValueError,
            "expected a uint8 scale array of 2",
        ),
    ]
    for state, error, message in wrong:
        with pytest.raises(error, match=rf'^state\[0\]\["momentum_buffer"\]: {message}'):
            plan_of(p, [state])


def test_a_plan_refuses_averages_that_do_not_fit():
    p, steps = np.zeros(3, np.float32), np.zeros(1, np.int64)
    for average, error, message in (
        (np.zeros(3), TypeError, "average: expected dtype float32"),
        (np.zeros(2, np.float32), ValueError, r"average: expected shape \(3,\)"),
        (p, ValueError, "is the same memory as"),
    ):
        with pytest.raises(error, match=message):
            plan_of(p, [], averages=[average], average_steps=steps)


def test_a_plan_refuses_scales_that_two_states_share():
    p, scales = np.zeros(300, np.float32), np.zeros(3, np.uint8)
    codes = np.zeros((2, 300), np.uint8)
    with pytest.raises(
        ValueError, match=r'^state\[0\]\["exp_avg_sq"\]: overlaps state\[0\]\["exp_avg"\]'
    ):
        plan_of(
            p, [CodedArray(codes[0], scales[:2], "e5m2"), CodedArray(codes[1], scales[1:], "e5m2")]
        )


def test_a_plan_has_room_for_six_states(monkeypatch):
    p = np.zeros(3, np.float32)
    for n in (6, 7):
        rule = RULES["sgd"]._replace(states=tuple(f"s{k}" for k in range(n)))
        monkeypatch.setitem(RULES, "sgd", rule)
        refused = pytest.raises(ValueError, match="at most 6 states") if n > 6 else nullcontext()
        with refused:
            states = [tuple(np.zeros(3, np.float32) for _ in range(n))]
            _engine.Plan(None, [p], [""], [0], states, ["sgd"], np.zeros(1, np.int64))


@pytest.mark.parametrize(("field", "most"), [("coefficients", 20), ("numbers", 4), ("sums", 4)])
def test_rules_have_so_much_at_most(monkeypatch, field, most):
    for n in (most, most + 1):
        rule = RULES["sgd"]._replace(**{field: tuple(f"x{k}" for k in range(n))})
        monkeypatch.setitem(RULES, "sgd", rule)
        refused = pytest.raises(RuntimeError, match="rule sgd: expected at most 6 states, 20")
        with refused if n > most else nullcontext():
            numbers = [tuple(np.zeros(()) for _ in rule.numbers)]
            plan_of(np.zeros(3), [], numbers=numbers)


def test_a_plan_configures_only_what_has_a_gradient():
    params = [np.zeros(3), np.zeros(3)]
    plan = _engine.Plan(
        [None, None], params, ["[0]", "[1]"], [0, 1], [(), ()], ["sgd"] * 2, np.array([0, -7])
    )
    asked = []

    def configure(group, t, unscale):
        asked.append((group, t))
        return "sgd", (1.0,), Stages()

    plan.step([np.ones(3), None], configure, 1.0)
    assert asked == [(0, 1)]
    assert (params[0] == -1).all()


def test_a_plan_refuses_what_does_not_go_with_the_rule():
    p = np.zeros(3)
    with pytest.raises(RuntimeError, match="rule sgd takes 1 coefficients, not 2"):
        plan_of(p, []).step(np.ones(3), lambda *_: ("sgd", (1.0, 2.0), Stages()), 1.0)
    assert not p.any()


def test_nothing_was_stepped_where_nothing_had_a_gradient():
    opt = fastgd.SGD({"w": np.zeros(3)}, lr=1.0)
    assert opt.step({"w": None}).step == 0
