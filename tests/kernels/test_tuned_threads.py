"""One thread or all: what evidence from whole steps leads to, and that no result depends on it."""

from __future__ import annotations

import numpy as np
import pytest
from support.helpers import same_bits

import fastgd
from fastgd.kernels import _engine
from fastgd.kernels.tuning import MODES

needs_clock = pytest.mark.skipif(not _engine.clock_name(), reason="this CPU has no clock here")
needs_threads = pytest.mark.skipif(not _engine.has_openmp(), reason="this CPU has one thread here")


@pytest.fixture(autouse=True)
def nothing_known():
    """Begin with nothing known and two threads; leave the clock real."""
    _engine.forget_tuning()
    fastgd.set_tuning("on")
    fastgd.set_num_threads(2)
    yield
    _engine.pretend_steps(0, 0)
    _engine.forget_tuning()


# ------------------------------------------------------------------------------------ the chooser


class Program:
    """Steps that take so long on one thread and on all, with gaps between them.

    A step after one of the other kind takes longer, as the arrays are in other cores' caches; and
    one in fifty is interrupted.
    """

    def __init__(self, seed=0, noise=0.05, gap=0.0, *, together=True, large=False):
        self.chooser = _engine.ThreadsChooser(together, large)
        self.rng, self.noise, self.gap = np.random.default_rng(seed), noise, gap
        self.last, self.steps, self.took, self.alone = together, 0, 0.0, 0  # steps on one thread

    def run(self, alone, together, steps, drift=0.0, waits=0.0):
        """Take so many steps, of which a part of those on all threads waits for one of them."""
        factors = np.exp(self.noise * self.rng.standard_normal(steps))
        factors[self.rng.random(steps) < 0.02] *= 50.0 if self.noise else 1.0
        for k in range(steps):
            takes = self.chooser.begin()
            took = (together if takes else alone) * factors[k] * (1 + drift * k)
            took *= 3.0 if takes != self.last else 1.0
            took += 1000.0 if takes and self.rng.random() < waits else 0.0
            self.chooser.end(took, self.gap)
            self.last = takes
            self.took += took
            self.alone += not takes
        self.steps += steps
        return self

    def decide(self, alone, together, drift=0.0):
        """Take steps until there is a verdict; returns how many."""
        before = self.steps
        while self.chooser.trying:
            self.run(alone, together, 1, drift * (self.steps - before))
            assert self.steps - before <= 4 * 64
        return self.steps - before


@pytest.mark.parametrize("present", [False, True])
@pytest.mark.parametrize("better", [False, True])
@pytest.mark.parametrize(("gain", "noise", "drift"), [(1.9, 0.2, 0), (1.2, 0.05, 0), (1.1, 0, 0.1)])
def test_the_faster_one_is_chosen(present, better, gain, noise, drift):
    costs = (gain, 1.0) if better else (1.0, gain)
    for seed in range(20):
        program = Program(seed, noise, together=present)
        program.decide(*costs, drift)
        assert program.chooser.together == better


@pytest.mark.parametrize("present", [False, True])
def test_what_is_clear_does_not_take_long_and_ties_keep_what_there_was(present):
    assert Program(noise=0, together=present).decide(1.0, 100.0) == 8 * 4
    for seed in range(20):
        program = Program(seed, 0.1, together=present)
        program.decide(1.0, 1.005)
        assert program.chooser.together == present


@pytest.mark.parametrize("costs", [(1.0, 2.2), (1.9, 1.0), (1.0, 10.0)])
def test_it_costs_less_than_a_hundredth(costs):
    program = Program(noise=0)
    program.decide(*costs)
    # From one verdict on to long after the next.
    program.took, program.steps = 0.0, 0
    program.run(*costs, 60_000)
    assert program.chooser.looks > 1
    assert program.took < 1.01 * min(costs) * program.steps


def decided():
    """A choice for all threads, whose steps take half as long; after 24 ticks."""
    chooser = _engine.ThreadsChooser()
    takes = []
    for _ in range(32):
        takes.append(chooser.begin())
        chooser.end(0.5 if takes[-1] else 1.0)
    assert takes == ([True] * 2 + [False] * 4 + [True] * 2) * 4, "each goes first in turn"
    assert chooser.together
    assert not chooser.trying
    return chooser


def take(chooser, took, gap=0.0):
    chooser.begin()
    chooser.end(took, gap)
    return chooser.trying


def test_it_rests_for_so_many_times_what_the_trial_took():
    chooser = decided()
    assert not any(take(chooser, 1.0) for _ in range(128 * 24 - 1))
    assert take(chooser, 1.0)


def test_it_rests_until_the_clock_says_so():
    chooser = decided()
    assert not take(chooser, 1.0, gap=10_000 * 24 - 2)
    assert not take(chooser, 1.0), "this is when, to the tick"
    assert take(chooser, 0.5)


@pytest.mark.parametrize(("took", "waits"), [(1.9995, False), (2.0, False), (2.0005, True)])
def test_steps_that_take_more_than_twice_as_long_as_alone_were_waiting(took, waits):
    chooser = decided()
    while chooser.together and not chooser.trying:
        take(chooser, took)
    assert chooser.together != waits
    assert chooser.trying != waits
    if waits:  # for as long as makes up for it, by the clock as well
        assert not take(chooser, 1.0, gap=1e6)
        assert not take(chooser, 1.0)


def test_large_steps_wait_for_so_many_times_the_fastest_of_them():
    chooser = _engine.ThreadsChooser(large=True)
    assert not any(take(chooser, 1.0) for _ in range(2 * 2048))
    assert take(chooser, 1.0)


@pytest.mark.parametrize("alone", [0.5, 1.9])
def test_large_steps_wait_until_a_look_costs_less_than_that(alone):
    program = Program(noise=0, large=True).run(alone, 1.0, 4096)
    assert program.alone == 0
    program.run(alone, 1.0, 64)
    assert program.chooser.looks == 1
    assert program.chooser.together == (alone > 1)
    assert program.took < 1.01 * program.steps


def test_no_choice_is_for_ever():
    """Another program takes a core, and gives it back."""
    program = Program(noise=0.02, gap=50_000.0)
    program.run(20.0, 11.0, 1000)
    assert program.chooser.together
    # Steps that suddenly take long use up the rest soon.
    program.run(20.0, 500.0, 400)
    assert not program.chooser.together
    program.run(20.0, 11.0, 30_000)
    assert program.chooser.together


def test_steps_that_wait_now_and_then_count_by_their_mean():
    for seed in range(5):
        program = Program(seed, noise=0.02).run(20.0, 11.0, 20_000, waits=0.1)
        assert not program.chooser.together
        before = program.alone
        program.run(20.0, 11.0, 5_000, waits=0.1)
        assert program.alone - before == 5_000


def test_where_steps_are_rare_it_looks_again_by_the_clock():
    program = Program(noise=0, gap=100_000.0)
    program.decide(20.0, 5000.0)
    assert not program.chooser.together
    looks = program.chooser.looks
    # It may take a ten-thousandth of the time: here that is after some 12,000 steps.
    program.run(20.0, 11.0, 11_000)
    assert program.chooser.looks == looks
    program.run(20.0, 11.0, 2_000)
    assert program.chooser.together


# ---------------------------------------------------------------------------------------- in steps


def make(name="Adam", sizes=(2048,) * 8, **options):
    rng = np.random.default_rng(0)
    params, grads = ([rng.standard_normal(n).astype(np.float32) for n in sizes] for _ in range(2))
    return getattr(fastgd, name)(params, lr=0.01, **options), grads


@needs_clock
@needs_threads
@pytest.mark.parametrize(
    ("sizes", "options"), [((2048,) * 8, {}), ((60_000,), {"clip_norm": 1.0, "weight_decay": 0.1})]
)
def test_steps_take_what_was_faster(sizes, options):
    for alone, together in ((1.0, 1.25), (1.25, 1.0)):
        _engine.forget_tuning()
        _engine.pretend_steps(alone, together)
        opt, grads = make(sizes=sizes, **options)
        for k in range(32):
            opt.step(grads)
            (steps,) = fastgd.threads_record()
            assert steps.trying == (k < 31)
        assert steps.together == (together < alone)
        assert (steps.looks, steps.pairs, steps.most) == (1, 8, 2)
        assert steps.gain == pytest.approx(alone / together)
        assert (steps.rule, steps.backend) == ("adam", fastgd.get_backend())
        assert steps.norms == ("clip_norm" in options)
        assert steps.elements[0] <= sum(sizes) < steps.elements[1]
    assert fastgd.tuning_record() == [], "arrays that stay in cache are not prefetched"


@needs_clock
@needs_threads
def test_it_says_what_was_chosen_and_why(capsys):
    _engine.pretend_steps(1.0, 1.25)
    opt, grads = make()
    opt.step(grads)
    fastgd.show_config()
    line = capsys.readouterr().out.splitlines()[-1].strip()
    assert line == "adam, float32, 16,384 to 32,768 elements: one thread, trying others"
    for _ in range(31):
        opt.step(grads)
    fastgd.show_config()
    line = capsys.readouterr().out.splitlines()[-1].strip()
    assert line.endswith("elements: one thread (one takes 0.80 of the time, 8 pairs)")
    (kind,) = fastgd.threads_record()
    assert str(kind._replace(gain=0.6)).endswith("(one takes 0.60 or less of the time, 8 pairs)")
    assert str(kind._replace(looks=0)).endswith("elements: one thread (not decided yet)")
    fastgd.set_tuning("off")
    fastgd.show_config()
    assert "\ntuning     off; what follows was found before" in capsys.readouterr().out


@needs_clock
@needs_threads
def test_steps_are_timed_from_their_beginning_to_their_end():
    """Of few gradients, so that none wakes threads, and some have something long to do besides."""
    opt, (first, *others) = make("SGD", (4096,) * 8)
    grads, long = [first, *[None] * len(others)], (np.ones(2**20),)
    for k in range(4 * 64):
        reset = () if k % 8 in (2, 3, 4, 5) else long
        opt.stepper.plan.step(grads, opt.stepper.configure, 1.0, reset=reset)
        (steps,) = fastgd.threads_record()
        if steps.looks:
            break
    assert not steps.together


@needs_clock
@needs_threads
def test_steps_that_wait_for_a_thread_take_one():
    """By what an element of them takes on the mean, as does what there is said of it."""
    _engine.pretend_steps(2e6, 1e6)
    opt, (first, *others) = make()
    grads = [first, *[None] * len(others)]
    for _ in range(32):
        opt.step(grads)
    _engine.pretend_steps(2e6, 2e9)
    for _ in range(128 * 48 // 2000 + 1):
        assert fastgd.threads_record()[0].together
        opt.step(grads)
    (steps,) = fastgd.threads_record()
    assert not steps.together
    assert not steps.trying
    assert steps.gain == pytest.approx(2 / 2000)


@needs_clock
@needs_threads
def test_steps_count_by_their_elements():
    """Those on the threads that are slower are done to few of the tensors; others to none."""
    _engine.pretend_steps(1.0, 1.25)
    opt, grads = make(sizes=(2048,) * 8 + (0,))
    for k in range(32):
        opt.step([*grads[:3], *[None] * 6] if k % 8 in (2, 3, 4, 5) else grads)
        opt.step([*[None] * 8, grads[8]])
    (steps,) = fastgd.threads_record()
    assert steps.looks == 1
    assert not steps.together
    assert steps.gain == pytest.approx(0.8)


@needs_clock
@needs_threads
def test_a_kind_is_told_by_norms_and_threads_and_not_by_other_stages():
    params = [np.zeros(2048, np.uint16) for _ in range(8)]
    opt = fastgd.SGD(params, rounding="stochastic", maximize=True)
    for most, said in ((2, 2), (20, 15)):
        _engine.forget_tuning()
        fastgd.set_num_threads(most)
        for _ in range(2):
            opt.step([np.ones(2048, np.float32)] * 8)
        (steps,) = fastgd.threads_record()
        assert (steps.most, steps.norms) == (said, False)


@needs_clock
@needs_threads
def test_a_kind_is_named_by_the_first_tensor_that_has_a_gradient():
    grads = [np.ones(4096, dtype) for dtype in (np.float64, np.float32, np.float64)]
    opt = fastgd.SGD([np.zeros_like(g) for g in grads])
    opt.step([None] * 3)
    assert fastgd.threads_record() == []
    for given, params in ((grads, "float64"), ([None, *grads[1:]], "float32")):
        _engine.forget_tuning()
        opt.step(given)
        assert [steps.params for steps in fastgd.threads_record()] == [params]


@needs_clock
@needs_threads
def test_how_many_elements_there_are_says_what_steps_begin_with():
    """All threads from 32,768 on; and what is tried at once, unless they are large."""
    for name, sizes, together, trying in (
        ("SGD", (4096,) * 7 + (4095,), False, True),
        ("SGD", (4096,) * 8, True, True),
        ("SGD", (65_536,) * 4, True, True),
        ("SGD", (65_536,) * 4 + (1,), True, False),
        ("Adam", (60_000,) * 4, True, False),  # which don't stay in cache
    ):
        _engine.forget_tuning()
        opt, grads = make(name, sizes)
        opt.step(grads)
        (steps,) = fastgd.threads_record()
        assert (steps.together, steps.trying) == (together, trying), sizes


@needs_clock
@needs_threads
def test_a_step_that_raises_is_no_evidence():
    _engine.pretend_steps(1.25, 1.0)
    opt, grads = make()
    for _ in range(32):
        with pytest.raises(ValueError, match="grads"):
            opt.step([*grads[:-1], np.ones(3, np.float32)])
        opt.step(grads)
    (steps,) = fastgd.threads_record()
    assert steps.together
    assert steps.pairs == 8


def test_nothing_is_tried_where_there_is_no_choice():
    def steps(*, threads=2, mode="on", backend=None, **made):
        fastgd.set_num_threads(threads)
        fastgd.set_tuning(mode)
        opt, grads = make(**made)
        if backend:
            fastgd.set_backend(backend)
        opt.step(grads)
        return fastgd.threads_record()

    assert steps(threads=1) == []
    assert steps(sizes=(64,) * 300) == [], "small steps pay nothing"
    assert steps(sizes=(30_000,)) == [], "one chunk is one thread's work"
    for mode in MODES:
        assert mode == "on" or steps(mode=mode) == []
    assert steps(backend="numpy") == []


@needs_clock
@needs_threads
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("AdamW", {"clip_norm": 1.0, "average": 0.9}),
        ("LAMB", {}),
        ("Adagrad", {"clip_ratio": 0.01}),
        ("Adafactor", {}),
        ("Adam", {"state_dtype": "8bit", "min_8bit_size": 0}),
        ("SGD", {"momentum": 0.9, "state_dtype": "bfloat16"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("sizes", [(2048,) * 7 + (1500,), (50_000, 33), (90_000, 1000)])
def test_no_bit_depends_on_it(name, options, sizes):
    def trained(mode):
        fastgd.set_tuning(mode)
        opt, grads = make(name, sizes, **options)
        for _ in range(9):  # both by turns
            opt.step(grads)
        return [
            *opt.param_groups[0]["params"],
            *(a for key in range(len(sizes)) for a in opt.state[key].values()),
        ]

    fastgd.set_num_threads(1)
    expected = trained("off")
    fastgd.set_num_threads(2)
    assert all(map(same_bits, trained("on"), expected))
    assert fastgd.threads_record()[0].trying
    assert all(map(same_bits, trained("off"), expected))
