"""Threads that share an optimizer, and processes that get one by a fork or by pickle."""

from __future__ import annotations

import copy
import multiprocessing
import os
import threading

import numpy as np
import pytest
from support.helpers import run_python, same_bits

import fastgd
from fastgd.core.ema import EMA
from fastgd.core.fork_locks import Lost

N = 40_000  # enough for two threads inside a step
SLOWER = 10 if "FASTGD_SANITIZE" in os.environ else 1
needs_fork = pytest.mark.skipif(
    not hasattr(os, "register_at_fork"), reason="this CPU's system has no fork"
)


def arrays_of(opt):
    """Everything that a step changes."""
    found = [p for group in opt.param_groups for p in group["params"]]
    found += [array for entry in opt.state.values() for array in entry.values()]
    if opt.average is not None:
        found += [*opt.average.averages.values(), opt.average.steps]
    return found


def assert_alike(opt, other):
    for a, b in zip(arrays_of(opt), arrays_of(other), strict=True):
        assert same_bits(a, b) if a.dtype.kind == "f" else np.array_equal(a, b)


def make(threads=2, **options):
    fastgd.set_num_threads(threads)
    rng = np.random.default_rng(0)
    params = {"W": rng.standard_normal(N).astype(np.float32), "b": rng.standard_normal(5)}
    grads = {"W": rng.standard_normal(N).astype(np.float32), "b": rng.standard_normal(5)}
    return fastgd.AdamW(params, average=0.99, clip_norm=1.0, **options), grads


# --------------------------------------------------------------------------------------- threads


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 5])
def test_no_step_of_any_thread_is_lost(workers):
    """Thousands of steps, each on two threads itself: to the bit what one thread would have done."""
    opt, grads = make()
    serial, _ = make()
    each = 3000 // SLOWER // workers

    def work():
        for _ in range(each):
            opt.step(grads)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(each * workers):
        serial.step(grads)
    assert int(opt.state["W"]["step"]) == each * workers
    assert_alike(opt, serial)


def test_threads_that_accumulate_and_step():
    """Each sum is taken by one step, whole; none twice, none half."""
    p = np.zeros(N, np.float32)
    opt = fastgd.SGD(p, lr=1.0)
    opt.accumulate(np.zeros(N, np.float32))
    added = []

    def accumulate():
        for _ in range(500 // SLOWER):
            opt.accumulate(np.ones(N, np.float32), weight=1.0)
            added.append(1)

    def step():
        while workers[0].is_alive():
            if opt.stepper.accumulated.weight[0]:
                opt.step()

    workers = [threading.Thread(target=accumulate), threading.Thread(target=step)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    assert len(added) == 500 // SLOWER
    # A step takes the mean of ones, so all elements are the number of steps, less at most the zeros.
    assert len(np.unique(p)) == 1
    steps, waiting = int(opt.state[0]["step"]), opt.stepper.accumulated.weight[0]
    assert -steps <= p[0] <= -(steps - 1)
    assert steps + waiting <= len(added) + 1
    assert (
        opt.stepper.accumulated.sums[0]
        == (0 if not waiting else opt.stepper.accumulated.sums[0][0])
    ).all()


def test_each_thread_has_an_optimizer_while_backends_come_and_go():
    """What they share is the backend, which a step keeps to its end, and what tuning knows."""
    optimizers = [make(threads=1)[0] for _ in range(4)]
    serial, grads = make(threads=1)

    def work(opt):
        for _ in range(50):
            opt.step(grads)

    threads = [threading.Thread(target=work, args=(opt,)) for opt in optimizers]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for backend in fastgd.available_backends():
            fastgd.set_backend(backend)
    for thread in threads:
        thread.join()
    work(serial)
    for opt in optimizers:
        assert_alike(opt, serial)


# --------------------------------------------------------------------------------------- processes


def two_steps(opt, grads):
    """What the other process does; sent back as its own arrays."""
    fastgd.set_num_threads(2)
    opt.step(grads)
    opt.step(grads)
    return opt, fastgd.get_num_threads()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_multiprocessing(method):
    """An optimizer goes to another process by pickle, steps there, and comes back."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this CPU's system has no {method}")
    opt, grads = make()
    opt.step(grads)  # on two threads, which a forked child hasn't
    here = copy.deepcopy(opt)
    pool = multiprocessing.get_context(method).Pool(1)
    try:
        there, threads = pool.apply_async(two_steps, (opt, grads)).get(timeout=100)
    finally:
        pool.terminate()
        pool.join()
    assert threads == (1 if method == "fork" else 2)
    two_steps(here, grads)
    assert int(there.state["W"]["step"]) == 3
    assert int(opt.state["W"]["step"]) == 1
    assert_alike(there, here)
    there.step(grads)  # and goes on


FORKS = """
import os, sys, threading, time
import numpy as np, fastgd

def exit_code(child):
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(child())
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

fastgd.set_num_threads(2)
n = 1 << 20
"""


@pytest.mark.slow
@needs_fork
def test_fork_amid_a_step_of_another_thread():
    """The child finds whole arrays and a free lock, every time; so does the parent afterwards."""
    done = run_python(
        FORKS
        + """
opt = fastgd.Adam(np.zeros(n, np.float32), grads=np.ones(n, np.float32), average=0.9)
opt.step()
stop = threading.Event()
def steps():
    while not stop.is_set():
        opt.step()
worker = threading.Thread(target=steps)
worker.start()

def child():
    arrays = [opt.param_groups[0]["params"][0], *opt.average.averages.values()]
    arrays += [opt.state[0][key] for key in ("exp_avg", "exp_avg_sq")]
    if any(len(np.unique(a)) > 1 for a in arrays):
        return 1
    count = int(opt.state[0]["step"])
    if count != opt.average.step:
        return 2
    opt.step()
    return 0 if int(opt.state[0]["step"]) == count + 1 and len(np.unique(arrays[0])) == 1 else 3

codes = []
for k in range(KS):
    time.sleep(0.0007 * (k % 7))
    codes.append(exit_code(child))
stop.set()
worker.join()
opt.step()
assert codes == [0] * KS, codes
""".replace("KS", str(40 // SLOWER))
    )
    assert done.returncode == 0, done.stderr


@needs_fork
def test_fork_that_cannot_wait_leaves_a_child_that_refuses():
    """A thread that has averages swapped in holds its optimizer as long as it likes."""
    done = run_python(
        FORKS
        + """
p = np.zeros(4)
opt = fastgd.SGD(p, lr=1.0, grads=np.ones(4), average=0.5)
other = fastgd.SGD(np.zeros(4), lr=1.0, grads=np.ones(4))
opt.step()
inside, leave = threading.Event(), threading.Event()
def evaluate():
    with opt.average.swapped():
        inside.set()
        leave.wait()
worker = threading.Thread(target=evaluate)
worker.start()
inside.wait()

def child():
    other.step()
    for call in (opt.step, opt.state_dict, opt.average.state_dict, lambda: opt.accumulate(p)):
        try:
            call()
            return 1
        except RuntimeError as error:
            if "another thread was in the middle of a call" not in str(error):
                raise
    return exit_code(lambda: 0)  # and a child of the child is none the worse

start = time.monotonic()
assert exit_code(child) == 0
assert time.monotonic() - start < 5
leave.set()
worker.join()
opt.step()
assert p[0] == -2
"""
    )
    assert done.returncode == 0, done.stderr


@needs_fork
def test_fork_by_the_thread_that_holds_the_optimizer():
    """Within `swapped`, and within a step, whose gradient forks as it is read."""
    done = run_python(
        FORKS
        + """
p = np.zeros(4)
opt = fastgd.SGD(p, lr=1.0, average=0.5)
opt.step(np.ones(4))
opt.step(np.ones(4))
with opt.average.swapped():
    assert exit_code(lambda: 0 if p[0] != -2 else 1) == 0
assert p[0] == -2

class Forks:
    def __dlpack__(self, **_):
        self.pid = os.fork()
        return np.ones(4).__dlpack__()
    def __dlpack_device__(self):
        return (1, 0)

g = Forks()
opt.step(g)
opt.step(np.ones(4))
if g.pid == 0:
    os._exit(0 if p[0] == -4 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(g.pid, 0)[1]) == 0
assert p[0] == -4
"""
    )
    assert done.returncode == 0, done.stderr


def test_a_lost_lock_names_its_owner():
    message = r"^EMA: another thread .* make a new one in the child"
    with pytest.raises(RuntimeError, match=message), Lost(EMA.__name__):
        pass
