"""Steps that find tensors as the step before left them, and what may have changed in between."""

from __future__ import annotations

import numpy as np
import pytest
from support.helpers import coefficients_of, numbers_of, same_bits

import fastgd
from fastgd.kernels import _engine
from fastgd.kernels.reference import RULES, Stages
from fastgd.kernels.spec.lines import Axis

F32 = np.float32
BACKENDS = ("numpy", fastgd.available_backends()[0])
AGAIN = [Stages()] * 2


def trained(backend, course, n=3, owners=None, **options):
    """Parameters after steps of Adam; what is between these is `course`, of calls and stages."""
    fastgd.set_backend(backend)
    rng = np.random.default_rng(0)
    params, grads = ([rng.standard_normal(5).astype(F32) for _ in range(n)] for _ in range(2))
    states = [(np.zeros(5, F32), np.zeros(5, F32)) for _ in range(n)]
    steps, labels = np.zeros(n, np.int64), [f"[{k}]" for k in range(n)]
    owners = owners or [0] * n
    plan = _engine.Plan([None] * n, params, labels, owners, states, ["adam"] * n, steps, **options)
    for stages in course:
        if callable(stages):
            stages(steps, grads)
        else:
            by_owner = stages if type(stages) is list else [stages] * n

            def configure(owner, t, _, by_owner=by_owner):
                return "adam", coefficients_of("adam", t), by_owner[owner]

            plan.step(grads, configure, 1.0)
    return [*params, *states[0], *states[-1], steps]


def set_last(steps, grads):
    steps[-1] += 1


def set_back(steps, grads):
    steps[...] = 0


def drop_last(steps, grads):
    grads[-1] = None


def spoil(steps, grads):
    grads[0][0] = np.nan


def repair(steps, grads):
    grads[0][0] = 1


@pytest.mark.parametrize(
    "course",
    [
        [*AGAIN, set_last, *AGAIN],
        [*AGAIN, set_back, *AGAIN],
        [Stages(2.0), Stages(2.0), Stages(4.0), Stages(), Stages(0.5)],
        [*AGAIN, Stages(weight_decay=0.1), *AGAIN],
        [*AGAIN, Stages(decoupled=0.9), Stages(decoupled=0.9), Stages(clip_value=0.1), *AGAIN],
        [Stages(clip_ratio=0.1)] * 2 + [Stages(clip_ratio=0.01)] * 2,
        [Stages(clip_norm=0.1)] * 2 + [Stages(clip_norm=0.2), *AGAIN],
    ],
)
def test_what_changed_between_steps_is_seen(course):
    units = [Axis(5, 1)] * 3
    assert all(map(same_bits, *(trained(backend, course, units=units) for backend in BACKENDS)))


def test_a_group_is_not_taken_for_another_one_that_made_a_step_before():
    """Where the last tensor has no gradient any more, and the first one's group becomes as its was."""
    decay = Stages(weight_decay=0.1)
    course = [[Stages(), decay], drop_last, [Stages()] * 2, [Stages()] * 2, [decay] * 2]
    found = [trained(backend, course, n=2, owners=[0, 1]) for backend in BACKENDS]
    assert all(map(same_bits, *found))


def test_a_skipped_step_is_not_counted_by_the_step_after_it():
    course = [*AGAIN, spoil, Stages(), repair, *AGAIN]
    found = []
    for backend in BACKENDS:
        skipped = np.zeros(1, np.int64)
        found.append(trained(backend, course, nonfinite="skip", skipped=skipped))
        assert skipped == 1
    assert all(map(same_bits, *found))


def test_what_float32_does_not_hold_is_refused_also_in_a_step_like_the_last():
    p, grads, rates = np.ones(3, F32), np.ones(3, F32), [0.1, 0.1, 1e300]
    opt = fastgd.Adam(p, lr=lambda step: rates[step])
    for _ in range(2):
        opt.step(grads)
    with pytest.raises(ValueError, match="out of float32's range"):
        opt.step(grads)


def test_steps_are_numbered_up_to_2_to_the_53():
    p, steps = np.ones(3, F32), np.array([2**53 - 1])
    plan = _engine.Plan(None, [p], [""], [0], [()], ["sgd"], steps)
    row = "sgd", (1.0,), Stages()
    plan.step(p.copy(), lambda *_: row, 1.0)
    with pytest.raises(ValueError, match=r"expected a number from 0 to below 2\^53"):
        plan.step(p.copy(), lambda *_: row, 1.0)
    assert not p.any()


def test_a_norm_may_be_clipped_to_zero():
    p = np.ones(3, F32)
    plan = _engine.Plan(None, [p], [""], [0], [()], ["sgd"], np.zeros(1, np.int64))
    plan.step(p.copy(), lambda *_: ("sgd", (1.0,), Stages(clip_norm=0.0)), 1.0)
    assert (p == 1).all()


@pytest.mark.parametrize("dtype", [F32, np.float64])
@pytest.mark.parametrize("make", [fastgd.Adam, fastgd.Prodigy])
def test_by_the_least_eps_nothing_over_nothing_is_nothing(make, dtype):
    found, eps = [], float(np.finfo(dtype).smallest_subnormal)
    for backend in BACKENDS:
        fastgd.set_backend(backend)
        p = np.ones(5, dtype)
        opt = make(p, lr=1.0, eps=eps)
        for _ in range(2):
            opt.step(np.array([0, 1, 0, 2, 0], dtype))
        assert np.isfinite(p).all()
        found.append(p)
    assert same_bits(*found)


@pytest.mark.parametrize(
    ("rule", "key"), [("asgd", "lr"), ("lars", "lr"), ("cautious_lion", "alpha"), ("adam", "alpha")]
)
def test_all_that_a_rule_takes_has_to_be_in_float32s_range(rule, key):
    p, states = np.ones(3, F32), tuple(np.ones(3, F32) for _ in RULES[rule].states)
    plan = _engine.Plan(
        None, [p], [""], [0], [states], [rule], np.zeros(1, np.int64), numbers=[numbers_of(rule)]
    )
    given = dict(zip(RULES[rule].coefficients, coefficients_of(rule), strict=True))
    row = rule, tuple((given | {key: 1e39}).values()), Stages()
    with pytest.raises(ValueError, match=f"make {rule}'s {key} 1e.39, out of float32's range"):
        plan.step(np.ones(3, F32), lambda *_: row, 1.0)


def test_numbers_that_all_have_alike_follow_whichever_has_a_gradient():
    n = 3
    params = [np.ones(4) for _ in range(n)]
    opt = fastgd.Prodigy(params)
    for i in (0, 1, 2, 2, 0):
        opt.step([np.full(4, k + 1.0) if k == i else None for k in range(n)])
        numbers = [float(entry["d_numerator"]) for entry in opt.state.values()]
        assert numbers[0] == numbers[1] == numbers[2]
    assert numbers[0]


@pytest.mark.parametrize("make", [fastgd.Prodigy, fastgd.DAdaptAdam])
def test_sums_over_all_tensors_are_those_of_one_tensor_of_all(make):
    rng = np.random.default_rng(0)
    p, g = rng.standard_normal(9), rng.standard_normal(9)
    parts = [p[:4].copy(), p[4:].copy()]
    whole, apart = make(p, lr=1.0), make(parts, lr=1.0)
    for _ in range(6):
        whole.step(g)
        apart.step([g[:4], g[4:]])
    assert np.concatenate(parts) == pytest.approx(p, rel=1e-12, abs=1e-15)
    assert float(whole.state[0]["d"]) != 1e-6
