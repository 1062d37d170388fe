"""Schedules against torch.optim.lr_scheduler, value by value."""

from __future__ import annotations

import warnings

import pytest

from fastgd.schedules import (
    Constant,
    Cosine,
    CosineRestarts,
    Exponential,
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

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0")
lr_scheduler = torch.optim.lr_scheduler

BASE = 0.3


def values(make, steps, key="lr"):
    """What torch's optimizer uses in each step."""
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=BASE, momentum=0.9)
    scheduler = make(opt)
    found = []
    for _ in range(steps):
        found.append(float(opt.param_groups[0][key]))
        opt.step()
        with warnings.catch_warnings():
            # torch's SequentialLR calls a deprecated form of its own.
            warnings.filterwarnings("ignore", message="The epoch parameter")
            scheduler.step()
    return found


# Ours, torch's by an optimizer, and for how many steps.
TWINS = {
    "constant": (Constant(BASE), lambda o: lr_scheduler.LambdaLR(o, lambda t: 1.0), 5),
    "step": (Step(BASE, 7, 0.4), lambda o: lr_scheduler.StepLR(o, 7, 0.4), 40),
    "multi-step": (MultiStep(BASE, [3, 4, 20], 0.4), lambda o: lr_scheduler.MultiStepLR(o, [3, 4, 20], 0.4), 40),
    "exponential": (Exponential(BASE, 0.93), lambda o: lr_scheduler.ExponentialLR(o, 0.93), 60),
    "polynomial": (Polynomial(BASE, 30, 1.7), lambda o: lr_scheduler.PolynomialLR(o, 30, 1.7), 40),
    "linear": (Linear(0.2 * BASE, 0.8 * BASE, 30), lambda o: lr_scheduler.LinearLR(o, 0.2, 0.8, 30), 40),
    "warm-up": (Warmup(30, BASE, start=0.25 * BASE), lambda o: lr_scheduler.LinearLR(o, 0.25, 1.0, 30), 40),
    "two values": (Piecewise([9], [BASE / 3, BASE]), lambda o: lr_scheduler.ConstantLR(o, 1 / 3, 9), 20),
    "cosine": (Cosine(BASE, 50, 0.01), lambda o: lr_scheduler.CosineAnnealingLR(o, 50, 0.01), 51),
    "restarts": (CosineRestarts(BASE, 10, eta_min=0.01), lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 10, eta_min=0.01), 60),
    "longer restarts": (CosineRestarts(BASE, 3, 3, 0.02), lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 3, 0.02), 130),
    "inverse root": (InverseSqrt(BASE, 9), lambda o: lr_scheduler.LambdaLR(o, lambda t: min((t + 1) / 9, (9 / (t + 1)) ** 0.5)), 60),
    "one cycle": (OneCycle(0.7, 60), lambda o: lr_scheduler.OneCycleLR(o, 0.7, 60), 60),
    "one cycle, short": (OneCycle(0.7, 2), lambda o: lr_scheduler.OneCycleLR(o, 0.7, 2), 2),
    "one cycle, lines": (
        OneCycle(0.7, 61, 0.45, "linear", 10.0, 100.0),
        lambda o: lr_scheduler.OneCycleLR(o, 0.7, 61, pct_start=0.45, anneal_strategy="linear", div_factor=10.0, final_div_factor=100.0),
        61,
    ),
    "one cycle, three phases": (OneCycle(0.7, 61, 0.33, three_phase=True), lambda o: lr_scheduler.OneCycleLR(o, 0.7, 61, pct_start=0.33, three_phase=True), 61),
    "sequential": (
        Sequential([Linear(0.1 * BASE, BASE, 5), Cosine(BASE, 20), BASE / 2], [8, 28]),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 5), lr_scheduler.CosineAnnealingLR(o, 20), lr_scheduler.ConstantLR(o, 0.5, 99)], [8, 28]
        ),
        40,
    ),
    "chained": (
        Product([BASE, Linear(0.1, 1.0, 5), Exponential(1.0, 0.9)]),
        lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.LinearLR(o, 0.1, 1.0, 5), lr_scheduler.ExponentialLR(o, 0.9)]),
        40,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TWINS)
def test_values_are_torchs(name):
    schedule, make, steps = TWINS[name]
    expected = values(make, steps)
    assert [schedule(t) for t in range(steps)] == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("three_phase", [False, True])
def test_one_cycles_momentum(three_phase):
    def make(opt):
        return lr_scheduler.OneCycleLR(opt, 0.7, 50, three_phase=three_phase)

    ours = OneCycle(0.85, 50, div_factor=0.85 / 0.95, final_div_factor=1.0, three_phase=three_phase)
    expected = values(make, 50, "momentum")
    assert [ours(t) for t in range(50)] == pytest.approx(expected, rel=1e-12)
