"""Tuning by the running program: what evidence leads to, and that no result depends on it."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from support.helpers import run_python, same_bits

import fastgd
from fastgd.kernels import _engine
from fastgd.kernels.reference import RULES
from fastgd.kernels.tuning import MODES

N = 200_000  # of float32, with two states: above 2 MiB, and seven chunks
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this CPU's system has no fork")
needs_clock = pytest.mark.skipif(not _engine.clock_name(), reason="this CPU has no clock here")


@pytest.fixture(autouse=True)
def nothing_known():
    """Begin with nothing known, and threads not in question; leave the clock real."""
    _engine.forget_tuning()
    _engine.pretend_steps(1, 1)
    fastgd.set_tuning("on")
    yield
    _engine.pretend(0, 0)
    _engine.pretend_steps(0, 0)
    _engine.forget_tuning()


# ------------------------------------------------------------------------------------ the chooser


def decide(chooser, rng, costs, noise, drift=0.0):
    """Runs by two policies until there is a verdict; returns how many pairs the last one took."""
    for k in range(2 * 2 * 300):
        if not chooser.trying:
            break
        policy = chooser.rival if (k + 1) // 2 % 2 == 0 else chooser.policy
        rate = costs[policy] * (1 + drift * k) * np.exp(noise * rng.standard_normal())
        if rng.random() < 0.02:  # an interrupt, or another process, in the middle of it
            rate *= rng.uniform(2, 200)
        chooser.run(policy, rate)
    assert not chooser.trying
    return chooser.pairs


@pytest.mark.parametrize("present", [0, 1])
@pytest.mark.parametrize("better", [0, 1])
@pytest.mark.parametrize(("gain", "noise", "drift"), [(1.5, 0.3, 0), (1.1, 0.05, 0), (1.1, 0, 0.1)])
def test_the_faster_one_is_chosen(present, better, gain, noise, drift):
    costs = (gain, 1.0) if better else (1.0, gain)
    pairs = []
    for seed in range(20):
        chooser = _engine.Chooser(present)
        pairs.append(decide(chooser, np.random.default_rng(seed), costs, noise, drift))
        assert chooser.policy == better
    assert 64 <= min(pairs) < 100, "what is clear doesn't take long"


@pytest.mark.parametrize("present", [0, 1, 2])
@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_fastest_of_three_is_chosen(present, best):
    costs = [1.0 + 0.1 * (policy != best) for policy in range(3)]
    for seed in range(5):
        chooser = _engine.Chooser(present, policies=7)
        decide(chooser, np.random.default_rng(seed), costs, 0.05)
        assert chooser.policy == best


def test_a_run_of_neither_is_refused():
    chooser = _engine.Chooser(1, policies=7)
    assert (chooser.policy, chooser.rival) == (1, 0)
    with pytest.raises(ValueError, match="policy: 2 has no turn"):
        chooser.run(2, 1.0)


@pytest.mark.parametrize("present", [0, 1])
@pytest.mark.parametrize("off", [0.995, 1.0, 1.005])
def test_ties_keep_what_there_was(present, off):
    for seed in range(20):
        chooser = _engine.Chooser(present)
        assert decide(chooser, np.random.default_rng(seed), (off, 1.0), 0.1) <= 257
        assert chooser.policy == present


def test_it_looks_again_and_finds_that_things_have_changed():
    rng, chooser = np.random.default_rng(0), _engine.Chooser()
    chooser.count(10_000_000)
    decide(chooser, rng, (1.0, 1.3), 0.1)
    assert chooser.policy == 0
    for _ in range(127):
        chooser.count(10_000_000)
        assert not chooser.trying
    chooser.count(10_000_000)
    assert chooser.trying
    assert chooser.pairs == 0
    decide(chooser, rng, (1.3, 1.0), 0.1)
    assert chooser.policy == 1


def test_one_run_is_no_verdict_and_trying_ends_without_pairs():
    chooser = _engine.Chooser()
    for _ in range(300):
        assert not chooser.run(0, 1.0)
    assert chooser.trying
    for _ in range(3):
        chooser.count(100_000_000)
    assert not chooser.trying
    assert chooser.policy == 1


def test_each_run_is_in_one_pair_at_most():
    chooser = _engine.Chooser(1)
    assert [chooser.run(policy, 1.0) for policy in (0, 1, 1, 0, 1)] == [False, True] * 2 + [False]
    assert chooser.pairs == 2
    chooser.count(300_000_000)
    assert not chooser.trying
    chooser.run(0, 1.0)
    assert chooser.pairs == 2, "what comes after a trial says nothing"
    chooser.count(128 * 300_000_000)
    assert chooser.trying
    assert not chooser.run(0, 1.0), "what waited in the last trial waits no more"


# ---------------------------------------------------------------------------------------- in steps


def make(n=N, **options):
    rng = np.random.default_rng(0)
    p = [rng.standard_normal(n).astype(np.float32)]
    return fastgd.Adam(p, lr=0.01, **options), [rng.standard_normal(n).astype(np.float32)]


def decided(opt, grads, off, on, *fine):
    """Steps that seem to take so long for an element, until nothing is being tried."""
    _engine.pretend(off, on, *fine)
    steps = 1
    opt.step(grads)
    while any(kind.trying for kind in fastgd.tuning_record()):
        opt.step(grads)
        steps += 1
        assert steps < 200
    return steps


@needs_clock
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "options", [{}, {"weight_decay": 0.1, "clip_norm": 1.0}, {"state_dtype": "bfloat16"}], ids=str
)
def test_steps_take_what_was_faster(options, threads):
    fastgd.set_num_threads(threads)
    for off, on in ((1.0, 1.2), (1.2, 1.0)):
        _engine.forget_tuning()
        opt, grads = make(2 * N, **options)
        assert decided(opt, grads, off, on) < 40
        (kind,) = fastgd.tuning_record()
        assert kind.prefetch == (128 if on < off else 0)
        assert kind.gain == pytest.approx(off / on)
        assert (kind.rule, kind.backend, kind.looks) == ("adam", fastgd.get_backend(), 1)
        assert kind.threads == (threads > 1)
        assert ("L2 decay" in kind.stages) == ("weight_decay" in options)
        assert set(kind.states) == {options.get("state_dtype", "float32")}
        assert kind.bytes[0] <= sum(a.nbytes for a in opt.state[0].values()) + 8 * N


@needs_clock
@pytest.mark.parametrize(("fine", "portion"), [(0.9, 64), (1.1, 128)])
def test_steps_take_the_portions_that_were_faster(fine, portion):
    opt, grads = make(2 * N)
    decided(opt, grads, 1.2, 1.0, fine)
    (kind,) = fastgd.tuning_record()
    assert (kind.prefetch, kind.looks) == (portion, 1)
    assert (kind.gain, kind.finer) == pytest.approx((1.2, 1.0 / fine))
    assert ("prefetch by 64" in str(kind)) == (portion == 64)


@needs_clock
def test_kinds_of_one_step_have_policies_of_their_own():
    rng = np.random.default_rng(0)

    def draw():
        return [rng.standard_normal(N).astype(np.float32) for _ in range(2)]

    params, grads = draw(), draw()
    groups = [{"params": params[0]}, {"params": params[1], "weight_decay": 0.1}]
    opt = fastgd.AdamW(groups, weight_decay=0.0, lr=0.01)
    decided(opt, [grads[0], None], 1.0, 1.2)
    decided(opt, [None, grads[1]], 1.2, 1.0)
    first, second = fastgd.tuning_record()
    assert not first.prefetch
    assert second.prefetch
    before = [p.copy() for p in params]
    states = [{k: a.copy() for k, a in opt.state[i].items()} for i in range(2)]
    opt.step(grads)
    after = [p.copy() for p in params]
    for i in range(2):
        params[i][...] = before[i]
        for key, a in states[i].items():
            opt.state[i][key][...] = a
    fastgd.set_tuning("prefetch")
    opt.step(grads)
    assert all(map(same_bits, params, after))


@needs_clock
@pytest.mark.parametrize(
    ("n", "options"),
    [(3 << 18, {}), (1 << 20, {}), ((4**12 - 1) // 5, {"momentum": 0.9, "state_dtype": "8bit"})],
)
def test_sizes_are_told_apart_at_powers_of_four(n, options):
    """At 3 and 4 MiB, and a byte below 16 MiB."""
    p = np.zeros(n, np.float32)
    fastgd.SGD(p, **options).step(p.copy())
    (kind,) = fastgd.tuning_record()
    assert kind.bytes[0] <= n * (5 if options else 4) < kind.bytes[1]


@needs_clock
def test_ways_to_store_are_told_one_by_one():
    p = np.zeros(2 * N, np.float32)
    fastgd.Adam(p, state_dtype={"exp_avg": "bfloat16"}).step(np.zeros(2 * N, np.float16))
    (kind,) = fastgd.tuning_record()
    assert (kind.params, kind.grads) == ("float32", "float16")
    assert kind.states == ("bfloat16", "float32")


@needs_clock
def test_a_rule_that_was_replaced_keeps_its_name(monkeypatch):
    p = np.zeros(8 * N, np.float32)
    for k in range(2):
        rule = RULES["sgd"]._replace(by_rows=f"no {k}")
        monkeypatch.setitem(RULES, "sgd", rule)
        fastgd.SGD(p).step(p.copy())
    assert {kind.rule for kind in fastgd.tuning_record()} == {"sgd"}


def test_small_steps_pay_nothing():
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(64).astype(np.float32) for _ in range(300)]
    opt = fastgd.Adam(params)
    opt.step([p.copy() for p in params])
    assert fastgd.tuning_record() == []


@pytest.mark.parametrize("mode", [m for m in MODES if m != "on"])
def test_nothing_is_tried_when_it_is_pinned(mode):
    fastgd.set_tuning(mode)
    opt, grads = make()
    opt.step(grads)
    assert fastgd.get_tuning() == mode
    assert fastgd.tuning_record() == []


@needs_clock
def test_threads_share_what_is_known():
    fastgd.set_num_threads(1)
    optimizers = [make() for _ in range(3)]

    def train(opt, grads):
        for _ in range(30):
            opt.step(grads)

    threads = [threading.Thread(target=train, args=pair) for pair in optimizers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (kind,) = fastgd.tuning_record()
    assert kind.pairs or kind.trying
    a, b, c = (opt.param_groups[0]["params"][0] for opt, _ in optimizers)
    assert same_bits(a, b)
    assert same_bits(a, c)


@needs_clock
@needs_fork
def test_a_forked_child_knows_what_was_found():
    code = """
import os, numpy as np, fastgd
from fastgd.kernels import _engine
p = np.ones(200_000, np.float32)
opt = fastgd.Adam(p)
_engine.pretend(1.0, 1.2)
for _ in range(80):
    opt.step(np.ones_like(p))
assert not fastgd.tuning_record()[0].trying
child = os.fork()
if child == 0:
    opt.step(np.ones_like(p))
    os._exit(fastgd.tuning_record()[0].prefetch)
assert os.waitpid(child, 0)[1] == 0
"""
    done = run_python(code, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr


# ----------------------------------------------------------------------------------- what is shown


@needs_clock
def test_it_says_what_was_chosen_and_why(capsys):
    fastgd.set_num_threads(1)
    fastgd.show_config()
    assert (
        capsys.readouterr().out.splitlines()[-1] == f"tuning     on, by the {_engine.clock_name()}"
    )
    opt, grads = make()
    opt.step(grads)
    fastgd.show_config()
    line = capsys.readouterr().out.splitlines()[-1].strip()
    assert line == "adam, float32, 1 to 4 MiB: prefetch, trying others"
    _engine.forget_tuning()
    decided(opt, grads, 1.0, 1.25)
    fastgd.show_config()
    line = capsys.readouterr().out.splitlines()[-1].strip()
    assert line == "adam, float32, 1 to 4 MiB: no prefetch (without it 0.80 of the time, 66 pairs)"
    fastgd.set_tuning("off")
    fastgd.show_config()
    said = capsys.readouterr().out
    assert "\ntuning     off; what follows was found before, and is not used now\n" in said


def test_unknown_modes_are_refused():
    modes = "on, off, prefetch, no-prefetch, fine-prefetch"
    with pytest.raises(ValueError, match=f"mode: expected one of {modes}"):
        fastgd.set_tuning("sometimes")
    with pytest.raises(TypeError, match="mode: expected a str, found 1"):
        fastgd.set_tuning(1)
    assert fastgd.get_tuning() == "on"


def test_the_environment_names_the_mode():
    done = run_python("import fastgd; print(fastgd.get_tuning())", FASTGD_TUNE="no-prefetch")
    assert done.stdout == "no-prefetch\n"
    done = run_python("import fastgd", FASTGD_TUNE="faster")
    assert "environment variable FASTGD_TUNE: mode: expected one of on, off" in done.stderr
