"""Coefficients from C: the same bits as from the classes, and only where these are as declared."""

from __future__ import annotations

import contextlib
import functools
import math
import pickle

import numpy as np
import pytest
from support.helpers import COMPILED, same_bits
from support.optimizer_cases import OPTIONS

import fastgd
from fastgd.core.contract import Contract, hyper
from fastgd.core.domains import OTHER, SCHEDULABLE, at_least_one, fraction, share, two_shares
from fastgd.core.variants import rules_of
from fastgd.kernels._engine import logarithm, raised
from fastgd.optimizers import GENERAL, OPTIMIZERS

STAGES = ("decoupled_weight_decay", "maximize", "clip_value", "clip_norm", "clip_ratio")
STEPS = (1, 2, 3, 10, 999, 10**6, 2**53 - 1)
AROUND = [
    {},
    {"maximize": True, "clip_value": 0.5},
    {"weight_decay": 0.125, "clip_norm": 2.0, "clip_ratio": 0.25},
]


def drawn(value, rng):
    """Another value of the kind, as a rule finds it at some step."""
    if isinstance(value, tuple):
        return tuple(drawn(v, rng) for v in value)
    if not isinstance(value, float) or not value:
        return value
    new = float(1 - rng.random() ** 3)
    return -new if value < 0 else new + (value >= 1)


def fitting(domain, value, rng):
    """Such a value that the domain takes; of numbers up to 1, which it may exceed, their half."""
    new = drawn(value, rng)
    if domain in (share, two_shares):
        return tuple(v / 2 for v in new) if isinstance(new, tuple) else new / 2
    return new


def made_by(opt, t, unscale=1.0, k=0):
    """What C makes for a group's t-th step, and what the class says."""
    group = opt.param_groups[k]
    h = group.at(t - 1)
    rule, now = opt.stepper.rules[0], {**group, **h}
    by = getattr(opt, f"{rule}_coefficients", opt.coefficients)
    said = tuple(by(now, t)), opt.settings(rule, now, t, unscale)[2]
    return opt.stepper.plan.hyper_rows.made(k, rule, t, unscale), said


@pytest.mark.parametrize("name", GENERAL)
def test_c_makes_the_bits_that_the_class_says(name):
    """Over every set of options, steps, and values between."""
    rng = np.random.default_rng(0)
    cls = OPTIMIZERS[name]
    for options in OPTIONS[name]:
        for around in AROUND:
            for k in range(20):
                own = {key: h.default for key, h in cls.hypers.items()} | options | around
                own = (
                    {key: fitting(cls.domains[key], v, rng) for key, v in own.items()} if k else own
                )
                opt = cls(np.zeros(3), **own)
                for t in STEPS:
                    (c, stages), said = made_by(opt, t, float(1 - rng.random()))
                    assert (c, stages) == said, (own, t)


def ends(cls):
    """The hyper-parameters of a class that may be 0 or None, one at a time; flags either way."""
    for key, h in cls.hypers.items():
        if key in STAGES:
            continue
        for end in (0.0, None, False, True):
            many = range(len(h.default)) if isinstance(h.default, tuple) else ()
            for given in [(*h.default[:k], end, *h.default[k + 1 :]) for k in many] or [end]:
                with contextlib.suppress(TypeError, ValueError):
                    yield {key: cls.domains[key](given, key)}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_c_makes_the_bits_at_the_ends_of_domains(name):
    """What 0 or None makes another formula of, by itself or with a flag."""
    cls, p = OPTIMIZERS[name], np.zeros((2, 3))
    flags = [{}, *(own for own in ends(cls) if isinstance(*own.values(), bool))]
    for own in ends(cls):
        for flag in flags:
            try:
                opt = cls(p, **flag | own)
            except ValueError:  # of two that don't go together
                continue
            for t in (1, 2):
                made, said = made_by(opt, t)
                assert made == said, (flag | own, t)


E, TEN = math.e, 345.0 / logarithm(10)
AVERAGES = {
    "SGDScheduleFree": {},
    "AdamWScheduleFree": {},
    "RAdamScheduleFree": {"silent_sgd_phase": False},
}
# At the numbers by which coefficients are told apart, and beside them.
THRESHOLDS = [
    # ρ is 5: AdaBelief adapts, RAdam doesn't.
    ("AdaBelief", {"rectify": True, "betas": (0.9, 0.8397685748659791)}, 6),
    ("RAdam", {"betas": (0.9, 0.8397685748659791)}, 6),
    ("RAdamScheduleFree", {"betas": (0.9, 0.7733030257306823)}, 5),  # and is 4
    *[("AdEMAMix", {"betas": betas, "beta3_warmup": 9.0}, 2)
      for high in (0.9999999, 0.99999995) for betas in ((high, 0.5, 0.75), (0.5, 0.75, high))],
    *[("StableAdamW", {"eps": eps}, 1) for eps in (0.0, 7e-20, 2e-19)],
    *[(name, {"always_adapt": False, "weight_decay": decay}, 2) for name in ("LAMB", "LARS")
      for decay in (0.0, 1.0)],
    *[("SOAP", {"shampoo_beta": beta}, 2) for beta in (0.0, -1.0)],
    # Powers of e345 and more.
    *[(name, own | {"lr": lr, "weight_lr_power": power}, 2) for name, own in AVERAGES.items()
      for lr, power in ((E, 345.0), (E, 345.5), (2.0, 500.0), (1e10, 20.0), (3.0, 2.0))],
    *[(name, own | {"r": r}, 10) for name, own in AVERAGES.items()
      for r in (TEN, TEN + 0.2, 300.0)],
]  # fmt: skip


@pytest.mark.parametrize(("name", "own", "t"), THRESHOLDS)
def test_c_makes_the_bits_at_thresholds(name, own, t):
    made, said = made_by(OPTIMIZERS[name](np.zeros((2, 3)), **own), t)
    assert made == said


def test_thresholds_are_met():
    """The numbers above are what they are said to be, to the last bit."""
    assert (logarithm(E), TEN * logarithm(10)) == (1.0, 345.0)
    for name, own, t, rho in [(*THRESHOLDS[0], 5.0), (*THRESHOLDS[1], 5.0), (*THRESHOLDS[2], 4.0)]:
        beta = own["betas"][1]
        power = raised(beta, t)
        assert 2.0 / (1.0 - beta) - 1.0 - 2.0 * t * power / (1.0 - power) == rho, name


@pytest.mark.parametrize("name", GENERAL)
def test_scheduled_values_are_those_of_the_step(name):
    cls = OPTIMIZERS[name]
    schedules = {
        key: (lambda step, v=OTHER[h.domain]: tuple(x / (1 + step) for x in v))
        if isinstance(h.default, tuple)
        else (
            lambda step, v=OTHER[h.domain], one=h.domain is at_least_one: (
                v + step if one else v / (1 + step)
            )
        )
        for key, h in cls.hypers.items()
        if h.domain in OTHER and h.domain in SCHEDULABLE
    }
    opt = cls(np.zeros(3), **schedules, clip_norm=lambda step: 1.0 + step)
    for t in (1, 5, 2):
        (c, stages), said = made_by(opt, t)
        assert (c, stages) == said


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_the_same_by_either(name, backend):
    fastgd.set_backend(backend)
    ours = OPTIMIZERS[name]
    theirs = type(name, (ours,), {"coefficients": staticmethod(lambda *h: ours.coefficients(*h))})
    for changes, shape in rules_of(ours).values():
        results = []
        for cls in (ours, theirs):
            rng = np.random.default_rng(0)
            params = [rng.standard_normal(shape or 40).astype(np.float32) for _ in range(6)]
            key = "weight_decay" if "weight_decay" in ours.hypers else "eps"
            groups = [{"params": p, key: i / 8} for i, p in enumerate(params)]
            if not ours.shared:
                groups[2]["lr"] = lambda step: 0.1 / (1 + step)
            opt = cls(groups, lr=0.05, clip_norm=1.0, **changes)
            assert (opt.stepper.plan.hyper_rows is None) == (cls is theirs)
            for t in range(5):
                grads = [rng.standard_normal(shape or 40).astype(np.float32) for _ in params]
                grads[t] = None
                opt.step(grads, grad_scale=2.0)
                for group in opt.param_groups if ours.shared else opt.param_groups[t : t + 1]:
                    group["lr"] = 0.01 * (1 + t)
            results.append(params)
        for p, q in zip(*results, strict=True):
            assert same_bits(p, q)


# ------------------------------------------------------------------------- what is asked of Python


def test_a_class_that_says_something_else_is_asked(monkeypatch):
    class Coefficients(fastgd.SGD):
        @staticmethod
        def coefficients(h, t):
            return (2 * h["lr"],)

    class Stages(fastgd.SGD):
        @classmethod
        def stages(cls, h, unscale):
            return (2.0 * unscale, *super().stages(h, unscale)[1:])

    class Settings(fastgd.SGD):
        @classmethod
        def settings(cls, rule, h, t, unscale):
            return super().settings(rule, h, t, 2 * unscale)

    class Mixed(Coefficients, fastgd.SGD):
        pass

    class Mixin:
        @staticmethod
        def coefficients(h, t):
            return (2 * h["lr"],)

    class Beside(Mixin, fastgd.SGD):
        pass

    def step(cls):
        p = np.zeros(2)
        opt = cls(p, lr=0.25)
        opt.step(np.ones(2))
        return p[0], opt.stepper.plan.hyper_rows is None

    class Longer(fastgd.SGD):
        @staticmethod
        def rule(h, shape):
            return "adam"

    with pytest.raises(RuntimeError, match="rule adam takes 7 coefficients, not 4"):
        step(Longer)
    for cls in (Coefficients, Stages, Settings, Mixed, Beside):
        assert step(cls) == (-0.5, True), cls
    assert step(type("Sub", (fastgd.SGD,), {})) == (-0.25, False)
    # Also where somebody wraps the function of ours, which then has its name.
    own = fastgd.SGD.coefficients
    monkeypatch.setattr(
        fastgd.SGD,
        "coefficients",
        staticmethod(functools.wraps(own)(lambda h, t: tuple(2 * c for c in own(h, t)))),
    )
    assert step(fastgd.SGD) == (-0.5, True)
    assert Contract.translated is None


def test_values_that_no_row_holds_are_left_to_python():
    """A domain of somebody's own may give any type, whose arithmetic is its own."""

    def single(value, name):
        return np.float32(value)

    class Single(fastgd.Momentum):
        beta = hyper(single, 0.9)

    class Extra(fastgd.Momentum):
        other = hyper(fraction, 0.5)

    p, q = np.zeros(2, np.float32), np.zeros(2, np.float32)
    opt = Single([{"params": p}, {"params": q}])
    assert opt.stepper.plan.hyper_rows.made(0, "momentum", 1, 1.0) is None
    opt.step([np.ones(2, np.float32)] * 2)
    expected = Single.settings("momentum", opt.param_groups[0], 1, 1.0)[1]
    assert p[0] == -np.float32(expected[0]) * np.float32(expected[2])
    extra = Extra(p, other=lambda step: 0.25)
    assert extra.stepper.plan.hyper_rows.made(0, "momentum", 1, 1.0) is not None
    with pytest.raises(ValueError, match="other: expected a number from 0 to below 1, found 2"):
        Extra(p, other=lambda step: 2).step(np.ones(2, np.float32))


def test_numbers_that_are_not_finite_are_left_to_python():
    """As Python may raise where C goes on."""
    p = np.ones(2)
    opt = fastgd.Adam(p, lr=1e308, betas=(1 - 2**-53, 0.5))
    assert opt.stepper.plan.hyper_rows.made(0, "adam", 1, 1.0) is None
    opt.step(np.zeros(2))
    assert np.isnan(p).all()  # ∞ times 0, as without C
    q = np.ones(2, np.float32)
    with pytest.raises(ValueError, match="make adam's alpha inf, out of float32's range"):
        fastgd.Adam(q, lr=lambda step: 1e308, betas=(1 - 2**-53, 0.5)).step(np.ones(2, np.float32))


# --------------------------------------------------------------------------------- what is current


def test_changes_count_from_the_next_step():
    p = np.zeros(1)
    opt = fastgd.SGD([{"params": p}], lr=0.5)
    found = []

    def step():
        before = p[0]
        opt.step([np.ones(1)])
        found.append(before - p[0])

    step()
    opt.lr = 0.25
    step()
    opt.lr = lambda step: 2.0**-step
    step()
    opt.param_groups[0].update(lr=2.0, maximize=True)
    step()
    assert found == [0.5, 0.25, 0.25, -2.0]
    opt.load_state_dict({"state": {}, "param_groups": [{"params": [0], "lr": 1.0}]})
    step()
    opt.add_param_group({"params": np.zeros(1), "lr": 3.0})
    opt.param_groups[1]["maximize"] = True
    opt.step([None, np.ones(1)])
    assert found[-1] == -1.0
    assert opt.param_groups[1]["params"][0] == [3.0]
    other = pickle.loads(pickle.dumps(opt))
    other.step([np.ones(1), None])
    assert other.param_groups[0]["params"][0] == p + 1.0


def test_a_schedule_that_is_replaced_within_the_step():
    """By another thread, say: then the number counts, and not what a row had before."""
    p, q = np.zeros(1), np.zeros(1)

    def replacing(step):
        opt.param_groups[1]["lr"] = 0.5
        return 0.25

    opt = fastgd.SGD([{"params": p, "lr": replacing}, {"params": q, "lr": lambda step: 1.0}])
    opt.step([np.ones(1), np.ones(1)])
    assert (p[0], q[0]) == (-0.25, -0.5)


def test_a_step_that_is_refused_leaves_no_rows_of_a_rule_to_come():
    p = np.zeros(1)
    opt = fastgd.SGD(p, lr=0.5)
    opt.step(np.ones(1))
    opt.param_groups[0].update(momentum=0.5, lr=0.25)
    with pytest.raises(ValueError, match="shape"):
        opt.step(np.ones(2))
    opt.param_groups[0].update(momentum=0.0, lr=1.0)
    opt.step(np.ones(1))
    assert p == [-1.5]


def test_every_class_is_translated():
    for name, cls in OPTIMIZERS.items():
        assert cls.in_c() is not None, f"{name}: the build says why"


def test_step_counts_that_differ_have_coefficients_of_their_own():
    params = [np.zeros(1) for _ in range(4)]
    opt = fastgd.Adam([{"params": params[:3]}, {"params": params[3:]}], lr=0.1)
    alone = [fastgd.Adam(np.zeros(1), lr=0.1) for _ in params]
    for t in range(6):
        grads = [np.ones(1) if t % (i + 1) == 0 else None for i in range(4)]
        opt.step([grads[:3], grads[3:]])
        for one, g in zip(alone, grads, strict=True):
            if g is not None:
                one.step(g)
    for p, one in zip(params, alone, strict=True):
        assert p == one.param_groups[0]["params"][0]


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
def test_a_schedule_that_changes_another_group_takes_effect_in_its_step(backend):
    fastgd.set_backend(backend)
    a, b = np.ones(1), np.ones(1)

    def schedule(step):
        opt.param_groups[1]["lr"] = 10.0
        return 0.5

    groups = [{"params": a, "lr": schedule}, {"params": b, "lr": 1.0}]
    opt = fastgd.SGD(groups)
    opt.step([np.ones(1), np.ones(1)])
    assert (a[0], b[0]) == (0.5, -9.0)
