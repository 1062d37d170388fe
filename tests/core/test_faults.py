"""Faults from outside: Ctrl-C, memory that runs out, memory that leaks."""

from __future__ import annotations

import contextlib
import gc
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support.helpers import SUPPORT, run_python, same_bits, unsanitized
from support.interrupted import advance, contents, make, position
from support.sampling import by_level

import fastgd
from fastgd.averages import EMA

# ------------------------------------------------------------------------------------- interrupts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("elements", "times", "wait"),
    [(100_000, 60, 0.005), (4_000_000, 8, 0.1)],
    ids=["short steps", "long steps"],
)
def test_ctrl_c_at_random_moments(elements, times, wait):
    """Each time all is as a whole number of calls leaves it, and the interrupt comes promptly."""
    rng = random.Random(0)
    command = [sys.executable, str(SUPPORT / "interrupted.py"), str(elements), "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        watchdog = threading.Timer(100, child.kill)
        watchdog.start()
        try:
            found, delays = Counter(), []
            # So often, and on until calls of either kind have been interrupted: moments are random.
            while len(delays) < times or (len(found) < 2 and len(delays) < 20 * times):
                assert child.stdout.readline() == "ready\n"
                time.sleep(rng.uniform(0, wait))
                sent = time.monotonic()
                child.send_signal(signal.SIGINT)
                caught, step, waiting, verdict = child.stdout.readline().split()
                found[verdict, waiting] += 1
                delays.append(float(caught) - sent)
        finally:
            watchdog.cancel()
            child.kill()
    assert {verdict for verdict, _ in found} == {"consistent"}
    assert int(step) > 3
    assert len(found) > 1, "not always at the same point"
    # On a busy machine single ones come late.
    assert np.median(delays) < 1


class Interrupted(list):
    """A list in which Ctrl-C comes at some moments, counted over all that is read from it."""

    def __init__(self, items, moments):
        super().__init__(items)
        self.clock, self.moments = 0, moments

    def __iter__(self):
        for item in super().__iter__():
            self.clock += 1
            if self.clock in self.moments:
                raise KeyboardInterrupt
            yield item


@pytest.mark.parametrize("first", range(1, 11))
@pytest.mark.parametrize("second", range(1, 7))
def test_ctrl_c_while_averages_are_swapped(first, second):
    """Also an impatient second one, amid putting the weights back: they are back, to the bit."""
    params = [np.full(4, float(k)) for k in range(3)]
    ema = EMA(params)
    ema.update()
    for p in params:
        p += 1
    own = [p.copy() for p in params]
    ema._params = Interrupted(params, {first, first + second})
    with contextlib.suppress(KeyboardInterrupt), ema.swapped():
        assert first > 6, "later than copies and averages"
    assert all(map(same_bits, params, own))
    ema._params = params
    with ema.swapped():
        assert not same_bits(params[2], own[2])
    assert all(map(same_bits, params, own))


# ----------------------------------------------------------------------------------------- memory


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_memory_that_runs_out_at_every_point_of_every_call():
    """Python's n-th allocation fails, or five from the n-th on, for every n: all or nothing.

    Not all from the n-th on: CPython 3.11 would try for ever to leave a ``with`` block.
    """
    testcapi = pytest.importorskip("_testcapi")
    opt, grads = make(300)
    twin, _ = make(300)

    def outcome(first, last):
        before, at = contents(opt), position(opt)
        try:
            testcapi.set_nomemory(first, last)
            try:
                advance(opt, grads)
            finally:
                testcapi.remove_mem_hooks()
        except (MemoryError, SystemError):  # the latter of ctypes, which doesn't look
            assert contents(opt) == before
            assert position(opt) == at
            return "refused"
        return "done"

    seen = Counter()
    for n in range(260):
        for last in (n + 1, n + 5):
            while (result := outcome(n, last)) == "refused" and not seen[n, last]:
                seen[n, last] += 1
            seen[result] += 1
        while position(twin) != position(opt):
            advance(twin, grads)
        assert contents(twin) == contents(opt)
    assert seen["refused"] > 50
    assert seen["done"] > 50


@pytest.mark.slow
def test_more_memory_than_there_is():
    """States that don't fit: MemoryError, and neither parameters nor the optimizer change."""
    done = run_python("""
import resource
import numpy as np, fastgd

p = np.ones(25_000_000)
g = np.ones_like(p)
opt = fastgd.SGD(p, lr=1.0)
opt.step(g)
with open("/proc/self/statm") as sizes:
    used = int(sizes.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000, resource.RLIM_INFINITY))
opt.param_groups[0]["momentum"] = 0.9
for call in (lambda: fastgd.Adam(p), lambda: opt.step(g), lambda: opt.accumulate(g)):
    try:
        call()
        raise SystemExit("expected MemoryError")
    except MemoryError:
        pass
assert (p == 0).all() and opt.state[0]["step"] == 1 and list(opt.state[0]) == ["step"]
opt.param_groups[0]["momentum"] = 0
opt.step(g)
assert (p == -1).all()
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
opt.param_groups[0]["momentum"] = 0.9
opt.step(g)
assert (p == -2).all()
""")
    assert done.returncode == 0, done.stderr


def resident():
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as sizes:
        return int(sizes.read().split()[1]) * 4096


def optimizers(times):
    """Optimizers of 40 tensors that step and go."""
    params = [np.ones(3, np.float32) for _ in range(40)]
    grads = [np.ones(3, np.float32) for _ in range(40)]
    for _ in range(times):
        opt = fastgd.SGD(params, momentum=0.5, clip_norm=1.0, grads=grads)
        opt.step()


def steps(times):
    """Steps of one, and what they return."""
    opt = fastgd.Adam(np.ones(3), clip_norm=1.0, average=0.9)
    g = np.ones(3)
    for _ in range(times):
        opt.accumulate(g)
        opt.step()
        fastgd.functional.global_norm(g)


@unsanitized
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this CPU's system has no /proc")
@pytest.mark.parametrize(
    ("run", "times"),
    [
        pytest.param(optimizers, by_level(1000, 3000, 10_000), marks=pytest.mark.more),
        (steps, 100_000),
    ],
)
def test_nothing_leaks(run, times):
    """Thousands of optimizers, and the records of 100,000 steps."""
    gc.collect()
    run(times // 20)
    before = resident()
    run(times)
    # A record or an allocation of 32 bytes each time would be 3 MB, and a plan has 300 at least.
    assert resident() - before < (1.5e6 if run is steps else 150 * times)
