"""Schedules: their values, where they may stand, what they cost, and that a checkpoint resumes."""

from __future__ import annotations

import dataclasses
import pickle
from math import cos, pi, sqrt

import numpy as np
import pytest
from support.helpers import same_bits
from support.optimizer_cases import CASES, leaves, made
from support.snapshots import assert_unchanged, snapshot

import fastgd
from fastgd import schedules
from fastgd.core.domains import SCHEDULABLE, flag
from fastgd.optimizers import OPTIMIZERS
from fastgd.schedules import (
    Constant,
    Cosine,
    CosineRestarts,
    Exponential,
    Interpolated,
    InverseSqrt,
    Linear,
    MultiStep,
    OneCycle,
    Piecewise,
    Polynomial,
    Product,
    Sequential,
    Step,
    Warmup,
)

# Values by hand: schedule, {step: value}.
VALUES = [
    (Constant(0.3), {0: 0.3, 10**6: 0.3}),
    (Step(0.8, 3, 0.5), {0: 0.8, 2: 0.8, 3: 0.4, 5: 0.4, 6: 0.2}),
    (MultiStep(0.8, [2, 5], 0.5), {1: 0.8, 2: 0.4, 4: 0.4, 5: 0.2, 99: 0.2}),
    (Exponential(0.5, 0.9), {0: 0.5, 1: 0.45, 3: 0.5 * 0.729}),
    (Polynomial(1.0, 4, 2.0), {0: 1, 1: 0.5625, 2: 0.25, 4: 0, 9: 0}),
    (Polynomial(1.0, 4, end=0.5), {0: 1, 2: 0.75, 4: 0.5, 9: 0.5}),
    (Linear(0.1, 0.5, 4), {0: 0.1, 1: 0.2, 3: 0.4, 4: 0.5, 50: 0.5}),
    (Warmup(4, 0.4), {0: 0, 1: 0.1, 4: 0.4, 5: 0.4}),
    (Warmup(2, Step(0.4, 1, 0.5), start=0.2), {0: 0.2, 1: 0.3, 2: 0.4, 3: 0.2, 4: 0.1}),
    (Cosine(1.0, 4, 0.2), {0: 1, 1: 0.2 + 0.4 * (1 + sqrt(0.5)), 2: 0.6, 4: 0.2, 5: 0.2, 8: 0.2}),
    (CosineRestarts(1.0, 2, 2), {0: 1, 1: 0.5, 2: 1, 4: 0.5, 6: 1, 10: 0.5, 13: (1 + cos(pi * 7 / 8)) / 2, 14: 1}),
    (CosineRestarts(1.0, 4), {0: 1, 2: 0.5, 4: 1, 4 * 10**9 + 4: 1, 4 * 10**9 + 6: 0.5}),
    (InverseSqrt(0.4, 4), {0: 0.1, 1: 0.2, 3: 0.4, 15: 0.2, 35: 0.4 / 3}),
    (InverseSqrt(1.0, 1), {0: 1, 3: 0.5, 99: 0.1}),
    (Piecewise([2, 4], [1, 2, 3]), {0: 1, 1: 1, 2: 2, 3: 2, 4: 3, 9: 3}),
    (Interpolated([2, 4, 8], [1, 3, 2]), {0: 1, 2: 1, 3: 2, 4: 3, 5: 2.75, 8: 2, 9: 2}),
    (Sequential([0.5, Linear(0, 1, 2), lambda step: -step], [2, 5]), {0: 0.5, 1: 0.5, 2: 0, 3: 0.5, 4: 1, 5: 0, 7: -2}),
    (Product([0.5, Step(1, 1, 0.5), lambda step: step]), {0: 0, 1: 0.25, 2: 0.25, 3: 0.1875}),
    (OneCycle(1.0, 11, 5 / 11, "linear", 2.0, 5.0), {0: 0.5, 2: 0.75, 4: 1, 7: 0.55, 10: 0.1, 99: 0.1}),
    (OneCycle(1.0, 13, 4 / 13, "linear", 2.0, 5.0, True), {0: 0.5, 3: 1, 6: 0.5, 9: 0.3, 12: 0.1, 99: 0.1}),
    (OneCycle(1.0, 11, 5 / 11, "cos", 2.0, 5.0), {0: 0.5, 1: 0.75 - sqrt(0.5) / 4, 2: 0.75, 4: 1, 7: 0.55, 10: 0.1}),
    (OneCycle(1.0, 10, 0.1), {0: 1.0, 9: 1 / 25 / 1e4}),  # where torch divides by zero
    (OneCycle(1.0, 1), {0: 1 / 25 / 1e4}),
]  # fmt: skip
IDS = [f"{type(s).__name__}-{k}" for k, (s, _) in enumerate(VALUES)]


@pytest.mark.parametrize(("schedule", "values"), VALUES, ids=IDS)
def test_values(schedule, values):
    assert [schedule(t) for t in values] == pytest.approx(list(values.values()), abs=1e-15)
    assert schedule(np.int64(3)) == schedule(3)


@pytest.mark.parametrize("schedule", [s for s, _ in VALUES], ids=IDS)
def test_equal_to_copies_only(schedule):
    again = dataclasses.replace(schedule)
    assert again == schedule
    assert hash(again) == hash(schedule)
    if "lambda" not in repr(schedule):
        assert pickle.loads(pickle.dumps(schedule)) == schedule
        assert eval(repr(schedule), vars(schedules).copy()) == schedule
    field = dataclasses.fields(schedule)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(schedule, field, 0.7)
    assert schedule != Constant(0.7)


def test_every_schedule_is_tested():
    tested = {type(s).__name__ for s, _ in VALUES} | {"Schedule"}
    assert tested == set(schedules.__all__)


def test_ends_are_exact():
    for a, b in np.random.default_rng(0).lognormal(size=(100, 2)):
        assert Linear(a, b, 7)(0) == a
        assert Linear(a, b, 7)(7) == b
        assert Interpolated([0, 3], [a, b])(3) == b
        assert [Cosine(a, 7, b)(t) for t in (0, 7)] == [a, b]


WRONG = [
    (lambda: Constant("x"), TypeError, "^initial: expected a number, found 'x'"),
    (lambda: Constant(np.nan), ValueError, "^initial: expected a finite number"),
    (lambda: Step(1, 0), ValueError, "^step_size: expected an integer of at least 1, found 0"),
    (lambda: Step(1, 2.5), TypeError, "^step_size: expected an integer, found 2.5"),
    (lambda: Step(1, True), TypeError, "^step_size: expected an integer, found True"),
    (lambda: MultiStep(1, 3), TypeError, "^milestones: expected a list or tuple, found 3"),
    (lambda: MultiStep(1, "12"), TypeError, "^milestones: expected a list or tuple, found '12'"),
    (lambda: MultiStep(1, [2, 2]), ValueError, r"^milestones: expected steps in rising order, found \[2, 2\]"),
    (lambda: MultiStep(1, [1, -1]), ValueError, r"^milestones\[1\]: expected an integer of at least 0"),
    (lambda: Exponential(1, None), TypeError, "^gamma: expected a number"),
    (lambda: Polynomial(1, 5, 0), ValueError, "^power: expected a number above 0, found 0"),
    (lambda: Linear(1, np.inf, 3), ValueError, "^end: expected a finite number"),
    (lambda: Warmup(3, "x"), TypeError, "^then: expected a number, found 'x'"),
    (lambda: Cosine(1, 0), ValueError, "^T_max: expected"),
    (lambda: CosineRestarts(1, 2, 0), ValueError, "^T_mult: expected"),
    (lambda: InverseSqrt(1, 0), ValueError, "^total_iters: expected"),
    (lambda: Piecewise([1], [1]), ValueError, "^values: expected 2 to fit the milestones, found 1"),
    (lambda: Interpolated([1], [1, 2]), ValueError, "^values: expected 1 to fit the milestones, found 2"),
    (lambda: Interpolated([], []), ValueError, "^milestones: expected at least one"),
    (lambda: Sequential([1], [1]), ValueError, "^schedules: expected 2 to fit the milestones"),
    (lambda: Sequential([1, "x"], [1]), TypeError, r"^schedules\[1\]: expected a number"),
    (lambda: Product([]), ValueError, "^factors: expected at least one"),
    (lambda: OneCycle(1, 9, pct_start=1.1), ValueError, "^pct_start: expected at most 1.0, found 1.1"),
    (lambda: OneCycle(1, 9, 0.6, three_phase=True), ValueError, "^pct_start: expected at most 0.5"),
    (lambda: OneCycle(1, 9, anneal_strategy="sin"), ValueError, "^anneal_strategy: expected one of cos, linear"),
    (lambda: OneCycle(1, 9, div_factor=0), ValueError, "^div_factor: expected a number above 0"),
    (lambda: OneCycle(1, 9, three_phase=1), TypeError, "^three_phase: expected True or False"),
    (lambda: Constant(1)(-1), ValueError, "^step: expected an integer of at least 0, found -1"),
    (lambda: Constant(1)(0.5), TypeError, "^step: expected an integer, found 0.5"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), WRONG)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


# ------------------------------------------------------------------------------- in an optimizer

NUMERIC = [
    (name, key)
    for name in fastgd.optimizers.GENERAL
    for key in OPTIMIZERS[name](np.zeros(1)).defaults
    if OPTIMIZERS[name].domains[key] in SCHEDULABLE
]


def test_all_numbers_may_be_schedules():
    """What is left: flags, start values, lengths, what rules adapt by, what averages follow from."""
    left = {
        key
        for name in fastgd.optimizers.GENERAL
        for key in OPTIMIZERS[name](np.zeros(1)).defaults
        if (name, key) not in NUMERIC and OPTIMIZERS[name].domains[key] is not flag
    }
    adapted = {"d0", "d_coef", "eps", "growth_rate", "etas"}
    averaged = {"momentum", "betas"}  # of schedule-free optimizers
    lengths = {"warmup_steps", "beta3_warmup", "alpha_warmup"}
    assert left == {"initial_accumulator_value", *lengths, *adapted, *averaged}


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(("name", "key"), NUMERIC)
def test_each_is_used_at_its_step(name, key, later):
    """A schedule does to the bit what setting the number before each step does."""
    default = OPTIMIZERS[name](np.zeros(1)).defaults[key]
    rest = (0.99,) * (len(default) - 1) if isinstance(default, tuple) else ()
    values = [0.3, 0.2, 0.4, 0.1, 0.25]
    if key in ("beta2_decay", "d"):  # at most 0, at least 1
        values = [-v if key == "beta2_decay" else 1 + v for v in values]
    calls = []

    def schedule(step):
        calls.append(step)
        return (values[step], *rest) if rest else values[step]

    base = {"momentum": 0.5} if key == "dampening" else {}
    a, p, draw = made(name, base if later else {**base, key: schedule})
    if later:
        a.param_groups[0][key] = schedule
    b, q, _ = made(name, {**base, key: (0.5, *rest) if rest else values[0]})
    for value in values:
        b.param_groups[0][key] = (value, *rest) if rest else value
        grads = draw()
        a.step(grads)
        b.step(grads)
    each = len(a.stepper.owners)  # is asked: those of a group whose tensors follow the same rule
    assert calls == [step for step in range(5) for _ in range(each)]
    assert all(same_bits(x, y) for x, y in zip(leaves(p), leaves(q), strict=True))
    assert a.param_groups[0][key] is schedule


@pytest.mark.parametrize(("name", "options"), CASES)
def test_constants_do_what_numbers_do(name, options):
    """With every hyper-parameter a schedule at once, for every rule."""
    a, p, draw = made(name, options)
    domains = OPTIMIZERS[name].domains
    b, q, _ = made(name, options)
    a.param_groups[0].update(clip_norm=1.5, clip_value=0.5, clip_ratio=0.2)
    b.param_groups[0].update(clip_norm=1.5, clip_value=0.5, clip_ratio=0.2)
    for key, value in a.param_groups[0].hyper().items():
        # A momentum of 0 picks another rule, which rounds elsewhere; a dampening contradicts nesterov.
        special = (key == "momentum" and value == 0) or (
            key == "dampening" and options.get("nesterov")
        )
        if domains[key] in SCHEDULABLE and not special and value is not None:
            b.param_groups[0][key] = (
                tuple(v if v is None else Constant(v) for v in value)
                if isinstance(value, tuple)
                else Constant(value)
            )
    for _ in range(4):
        grads = draw()
        a.step(grads)
        b.step(grads)
    for x, y in zip(leaves(p), leaves(q), strict=True):
        assert same_bits(x, y)


def test_one_of_two_betas():
    a, b = np.ones(3), np.ones(3)
    one = fastgd.Adam(a, betas=(0.9, lambda step: 0.99 - 0.1 * step))
    two = fastgd.Adam(b)
    for step in range(3):
        two.param_groups[0]["betas"] = (0.9, 0.99 - 0.1 * step)
        g = np.arange(1.0, 4.0) * (step + 1)
        one.step(g)
        two.step(g)
    assert same_bits(a, b)
    with pytest.raises(ValueError, match=r"^betas\[0\]: expected a number from 0 to below 1"):
        fastgd.Adam(a, betas=(1.5, Constant(0.9)))
    with pytest.raises(ValueError, match="^betas: expected two numbers, found 3"):
        fastgd.Adam(a, betas=(0.9, 0.9, Constant(0.9)))


def test_groups_have_their_own():
    a, b = np.zeros(1), np.zeros(1)
    opt = fastgd.SGD([{"params": [a]}, {"params": [b], "lr": 0.5}], lr=Piecewise([1], [1.0, 0.25]))
    for _ in range(2):
        opt.step([[np.ones(1)], [np.ones(1)]])
    assert (a[0], b[0]) == (-1.25, -1.0)
    c = np.zeros(1)
    opt.add_param_group({"params": [c], "lr": Exponential(1.0, 0.5)})
    for _ in range(2):
        opt.step([[None], [None], [np.ones(1)]])
    assert (a[0], b[0], c[0]) == (-1.25, -1.0, -1.5)


def test_each_parameters_own_count_decides():
    a, b = np.zeros(1), np.zeros(1)
    opt = fastgd.SGD([a, b], lr=Exponential(1.0, 0.5))
    opt.step([np.ones(1), None])
    opt.step([np.ones(1), np.ones(1)])
    assert (a[0], b[0]) == (-1.5, -1.0)
    assert opt.lr == 0.25


def test_lr_reads_as_the_next_steps_number():
    opt = fastgd.Adam([np.zeros(1)], lr=Linear(0.1, 0.3, 2))
    seen = [opt.lr]
    for _ in range(3):
        opt.step([np.ones(1)])
        seen.append(opt.lr)
    assert seen == pytest.approx([0.1, 0.2, 0.3, 0.3])
    opt.lr = Constant(0.5)
    assert opt.lr == 0.5
    assert opt.param_groups[0]["lr"] == Constant(0.5)
    opt.lr = 0.25
    assert opt.param_groups[0]["lr"] == 0.25
    assert "lr=Constant(initial=0.5)" in repr(fastgd.SGD(np.zeros(1), lr=Constant(0.5)))


def test_setting_lr_is_refused_in_all_groups_or_none():
    opt = fastgd.SGD([{"params": [np.zeros(1)]}, {"params": [np.zeros(1)]}])
    with pytest.raises(TypeError, match="lr: expected a number"):
        opt.lr = "x"
    assert opt.lr == 1e-3


def test_a_momentum_that_is_0_at_times_keeps_its_velocity():
    mu = [0.0, 0.5, 0.0, 0.5, 0.9]
    w, V, expected = np.zeros(1), 0.0, 0.0
    opt = fastgd.SGD(w, lr=0.5, momentum=lambda step: mu[step])
    for t, g in enumerate([1.0, 2.0, -1.0, 3.0, 1.0]):
        V = mu[t] * V + g
        expected -= 0.5 * V
        opt.step(np.array([g]))
        assert w[0] == expected
        assert opt.state[0]["momentum_buffer"][0] == V


def test_a_heavy_ball_of_rmsprop_may_be_scheduled():
    mu = [0.0, 0.5, 0.0]
    w, V, nu, expected = np.zeros(1), 0.0, 0.0, 0.0
    opt = fastgd.RMSprop(w, lr=0.5, alpha=0.5, eps=0.0, momentum=lambda step: mu[step])
    for t, g in enumerate([1.0, 2.0, -1.0]):
        nu = 0.5 * nu + 0.5 * g * g
        V = mu[t] * V + g / sqrt(nu)
        expected -= 0.5 * V
        opt.step(np.array([g]))
        assert w[0] == pytest.approx(expected, rel=1e-14)


def test_momentum_scheduled_later_does_not_rewind_schedules():
    w = np.zeros(1)
    opt = fastgd.SGD(w, lr=Exponential(1.0, 0.5))
    opt.step(np.ones(1))
    opt.param_groups[0]["momentum"] = 0.5
    opt.step(np.ones(1))
    assert int(opt.state[0]["step"]) == 2
    assert w[0] == -1.5


def test_nesterov_may_pass_through_zero_but_not_with_dampening():
    w = np.zeros(1)
    opt = fastgd.SGD(w, lr=1.0, momentum=Linear(0.0, 0.5, 1), nesterov=True)
    opt.step(np.ones(1))
    assert w[0] == -1
    opt.step(np.ones(1))  # V = 0.5·1 + 1, W −= g + 0.5 V
    assert w[0] == -2.75
    with pytest.raises(ValueError, match="^nesterov: needs momentum above 0 and dampening of 0"):
        fastgd.SGD(w, momentum=0.9, nesterov=True, dampening=Constant(0.1))


# ---------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("lr", -1.0, ValueError, "lr: expected a number of at least 0, found -1.0, from its schedule at step 1$"),
        ("lr", None, TypeError, "lr: expected a number, found None, from its schedule at step 1$"),
        ("lr", Constant(1), TypeError, "lr: expected a number, found Constant"),
        ("eps", np.nan, ValueError, "eps: expected a finite number, found nan, from its schedule"),
        ("betas", (0.9, 1.0), ValueError, r"betas\[1\]: expected a number from 0 to below 1, found 1.0, from"),
        ("betas", 0.9, TypeError, "betas: expected two numbers, found 0.9, from its schedule at step 1"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_changes_nothing(key, value, error, message):
    fine = (0.9, 0.99) if key == "betas" else 0.1
    p, q = np.ones(3), np.ones(3)
    opt = fastgd.Adam(
        [{"params": [p]}, {"params": [q], key: lambda step: value if step == 1 else fine}]
    )
    grads = [[np.ones(3)], [np.ones(3)]]
    opt.step(grads)
    before = snapshot(opt)
    with pytest.raises(error, match=r"^params\[1\]: " + message):
        opt.step(grads)
    assert_unchanged(opt, before)
    opt.param_groups[1][key] = fine
    opt.step(grads)
    assert int(opt.state["1.0"]["step"]) == 2


def test_what_a_schedule_raises_itself_says_which():
    table = [0.1]
    opt = fastgd.SGD(np.zeros(1), lr=lambda step: table[step])
    opt.step(np.ones(1))
    with pytest.raises(IndexError) as caught:
        opt.step(np.ones(1))
    assert caught.value.__notes__ == ["lr: raised by its schedule at step 1"]
    assert int(opt.state[0]["step"]) == 1
    opt.state_dict()  # at the end of a table, a checkpoint is still to be had


def test_what_is_no_number_has_no_schedule():
    p = np.zeros(1)
    for name, key in (("SGD", "nesterov"), ("Adam", "amsgrad"), ("Adam", "maximize")):
        with pytest.raises(TypeError, match=f"^{key}: expected True or False, found"):
            OPTIMIZERS[name](p, **{key: lambda step: True})
    with pytest.raises(TypeError, match="^initial_accumulator_value: expected a number, found"):
        fastgd.Adagrad(p, initial_accumulator_value=Constant(0.1))
    with pytest.raises(TypeError, match="^lr: expected a number"):
        fastgd.functional.sgd(p, np.ones(1), step=1, lr=Constant(0.1))
    with pytest.raises(TypeError, match="^lr: expected a number"):
        fastgd.SGD(p, lr=[Constant(0.1)])


def test_a_step_within_a_schedule():
    opt = fastgd.SGD(np.zeros(1), lr=lambda step: opt.step(np.ones(1)))
    with pytest.raises(RuntimeError, match="called from within a step"):
        opt.step(np.ones(1))


def test_without_schedules_none_is_asked_for(monkeypatch):
    opt = fastgd.Adam(np.zeros(1), lr=Constant(0.1))
    opt.lr = 0.1
    monkeypatch.setattr(type(opt.param_groups[0]), "value", None)
    opt.step(np.ones(1))
    opt.lr = Constant(0.1)
    with pytest.raises(TypeError, match="not callable"):
        opt.step(np.ones(1))


# ------------------------------------------------------------------------------------ checkpoints


def scheduled(name, **options):
    lr = Warmup(3, Cosine(0.1, 9))
    return made(name, {"lr": lr, "weight_decay": Linear(0.0, 0.1, 6), **options})


@pytest.mark.parametrize("name", fastgd.optimizers.GENERAL)
def test_a_checkpoint_resumes_exactly(name):
    opt, params, draw = scheduled(name)
    for _ in range(5):
        opt.step(draw())
    saved = opt.state_dict()
    assert saved["param_groups"][0]["lr"] == Warmup(3, Cosine(0.1, 9))(4)
    assert saved["param_groups"][0]["weight_decay"] == Linear(0.0, 0.1, 6)(4)
    other, twins, _ = scheduled(name)
    for p, q in zip(leaves(params), leaves(twins), strict=True):
        q[...] = p
    other.load_state_dict(saved)
    assert other.param_groups[0]["lr"] == Warmup(3, Cosine(0.1, 9))
    pickled = pickle.loads(pickle.dumps(other))
    assert pickled.lr == other.lr == opt.lr
    for _ in range(6):
        grads = draw()
        for each in (opt, other, pickled):
            each.step(grads)
    third = pickled.param_groups[0]["params"]
    for p, q, r in zip(leaves(params), leaves(twins), third, strict=True):
        assert same_bits(p, q)
        assert same_bits(p, r)


def test_an_optimizer_without_schedules_loads_the_last_numbers():
    opt = fastgd.Adam(np.zeros(2), lr=Exponential(1.0, 0.5), betas=(Constant(0.5), 0.9))
    assert opt.state_dict()["param_groups"][0]["lr"] == 1.0
    for _ in range(3):
        opt.step(np.ones(2))
    other = fastgd.Adam(np.zeros(2))
    other.load_state_dict(opt.state_dict())
    assert other.lr == 0.25
    assert other.param_groups[0]["betas"] == (0.5, 0.9)


def test_a_checkpoint_without_schedules_loads_into_one_with():
    opt = fastgd.SGD(np.zeros(2), lr=0.7, weight_decay=0.1)
    for _ in range(3):
        opt.step(np.ones(2))
    other = fastgd.SGD(np.zeros(2), lr=Exponential(1.0, 0.5))
    other.load_state_dict(opt.state_dict())
    assert other.lr == 0.125
    assert other.param_groups[0]["weight_decay"] == 0.1
