"""State dicts: what they hold, that they come back to the bit, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from support.helpers import same_bits
from support.optimizer_cases import CASES, leaves, made
from support.snapshots import assert_unchanged, snapshot

import fastgd


@pytest.mark.parametrize(("name", "options"), CASES)
def test_round_trip_continues_to_the_bit(name, options):
    opt, params, draw = made(name, options)
    for _ in range(3):
        opt.step(draw())
    other, twins, _ = made(name, {"lr": 0.5})
    for p, q in zip(leaves(params), leaves(twins), strict=True):
        q[...] = p
    other.load_state_dict(opt.state_dict())
    for _ in range(3):
        grads = draw()
        opt.step(grads)
        other.step(grads)
    assert all(same_bits(p, q) for p, q in zip(leaves(params), leaves(twins), strict=True))
    for key in opt.defaults:
        assert opt.param_groups[0][key] == other.param_groups[0][key]


def test_it_is_a_copy():
    p = np.zeros(3)
    opt = fastgd.Adam(p)
    opt.step(np.ones(3))
    state = opt.state_dict()
    opt.step(np.ones(3))
    assert state["state"][0]["step"] == 1
    assert not np.array_equal(state["state"][0]["exp_avg"], opt.state[0]["exp_avg"])
    opt.load_state_dict(state)
    opt.step(np.ones(3))
    assert state["state"][0]["step"] == 1
    assert same_bits(state["state"][0]["exp_avg"], np.full(3, 1 - 0.9))


def test_layout_is_torchs():
    opt = fastgd.Adam([{"params": [np.zeros(2)]}, {"params": {"W": np.zeros(3)}, "lr": 0.5}])
    opt.step([[np.ones(2)], {"W": None}])
    state = opt.state_dict()
    assert list(state) == ["state", "param_groups", "fastgd"]
    assert list(state["state"]) == [0]
    assert list(state["state"][0]) == ["step", "exp_avg", "exp_avg_sq"]
    assert [g["params"] for g in state["param_groups"]] == [[0], [1]]
    assert [g["param_names"] for g in state["param_groups"]] == [[0], ["W"]]
    assert [g["lr"] for g in state["param_groups"]] == [1e-3, 0.5]


def test_what_was_written_into_states_is_kept():
    opt = fastgd.Adam([np.zeros(2), np.zeros(2)])
    opt.state[1]["exp_avg"][...] = 3
    state = opt.state_dict()
    assert list(state["state"]) == [1]
    assert state["state"][1]["exp_avg"].tolist() == [3, 3]


def test_an_unstepped_accumulator_is_kept():
    state = fastgd.Adagrad(np.zeros(2), initial_accumulator_value=0.5).state_dict()
    assert state["state"][0]["sum"].tolist() == [0.5, 0.5]


def test_a_rule_picked_since_the_last_step():
    opt = fastgd.Adam(np.zeros(2))
    opt.step(np.ones(2))
    opt.param_groups[0]["amsgrad"] = True
    state = opt.state_dict()
    assert list(state["state"][0]) == ["step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
    other = fastgd.Adam(np.zeros(2))
    other.load_state_dict(state)
    assert other.param_groups[0]["amsgrad"]


def test_live_states_may_be_swapped():
    opt = fastgd.SGD([np.zeros(2), np.zeros(2)], momentum=0.9)
    opt.step([np.full(2, 1.0), np.full(2, 2.0)])
    swapped = {0: dict(opt.state[1]), 1: dict(opt.state[0])}
    opt.load_state_dict({**opt.state_dict(), "state": swapped})
    assert [opt.state[k]["momentum_buffer"][0] for k in (0, 1)] == [2, 1]


def test_decay_of_one_kind_is_not_loaded_as_the_other():
    state = fastgd.AdamW(np.zeros(2)).state_dict()
    with pytest.raises(ValueError, match="expected decoupled_weight_decay to be False, found True"):
        fastgd.Adam(np.zeros(2)).load_state_dict(state)


def test_an_added_group_loads_as_one_of_several():
    a = fastgd.SGD({"W": np.zeros(2)}, momentum=0.5)
    a.add_param_group({"params": {"W": np.zeros(3)}})
    a.step([{"W": np.ones(2)}, {"W": np.ones(3)}])
    b = fastgd.SGD([{"params": {"W": np.zeros(2)}}, {"params": {"W": np.zeros(3)}}])
    b.load_state_dict(a.state_dict())
    assert b.state["1.W"]["momentum_buffer"].tolist() == [1, 1, 1]


def test_refused_with_bound_gradients_nothing_changes():
    p, g = np.zeros(2), np.ones(2)
    opt = fastgd.SGD([p], lr=0.5, grads=[g])
    state = opt.state_dict()
    state["param_groups"][0]["lr"] = 0.1
    g.resize(5, refcheck=False)
    with pytest.raises(ValueError, match="grads"):
        opt.load_state_dict(state)
    assert opt.lr == 0.5


def test_named_parameters_are_matched_by_name():
    a, b = np.zeros(2), np.zeros(2)
    opt = fastgd.SGD({"a": a, "b": b}, momentum=0.9)
    opt.step({"a": np.full(2, 1.0), "b": np.full(2, 2.0)})
    other = fastgd.SGD({"b": np.zeros(2), "a": np.zeros(2)})
    other.load_state_dict(opt.state_dict())
    assert other.state["a"]["momentum_buffer"].tolist() == [1, 1]
    assert other.state["b"]["momentum_buffer"].tolist() == [2, 2]
    in_order = fastgd.SGD([np.zeros(2), np.zeros(2)])
    in_order.load_state_dict(opt.state_dict())
    assert in_order.state[1]["momentum_buffer"].tolist() == [2, 2]


def test_a_parameter_without_an_entry_starts_afresh():
    opt = fastgd.Adagrad(np.zeros(2), initial_accumulator_value=0.5)
    fresh = opt.state_dict()
    opt.step(np.ones(2))
    opt.load_state_dict({**fresh, "state": {}})
    assert opt.state[0]["sum"].tolist() == [0.5, 0.5]
    assert int(opt.state[0]["step"]) == 0


def test_step_counts_of_any_type():
    for step in (3, 3.0, np.float32(3), np.int64(3), np.array(3.0)):
        opt = fastgd.SGD(np.zeros(1))
        state = opt.state_dict()
        state["state"] = {0: {"step": step}}
        opt.load_state_dict(state)
        assert int(opt.state[0]["step"]) == 3


def broken(change):
    """The state dict of a stepped optimizer over arrays of 2 and (2, 3), changed."""
    opt = fastgd.Adam({"a": np.zeros(2), "b": np.zeros((2, 3))})
    opt.step({"a": np.ones(2), "b": np.ones((2, 3))})
    state = opt.state_dict()
    change(state["state"], state["param_groups"])
    return state


BROKEN = {
    "groups": (lambda s, g: g.append(g[0]), ValueError, "expected 1 groups, found 2"),
    "count": (lambda s, g: g[0].update(params=[0]), ValueError, r"\[0\]: expected 2 parameters, found 1"),
    "names": (lambda s, g: g[0].update(param_names=["a", "c"]), ValueError, r"expected parameters \['a', 'b'\]"),
    "stray": (lambda s, g: s.update({7: {}}), ValueError, r"parameters in no group: \[7\]"),
    "shape": (lambda s, g: s[1].update(exp_avg=np.zeros(6)), ValueError, r'state\["b"\]\["exp_avg"\]: expected shape \(2, 3\)'),
    "dtype": (lambda s, g: s[0].update(exp_avg=np.zeros(2, np.int32)), TypeError, "expected dtype float64"),
    "kind": (lambda s, g: s[0].update(exp_avg="x"), TypeError, 'state\\["a"\\]\\["exp_avg"\\]: expected an array'),
    "missing": (lambda s, g: s[1].pop("exp_avg_sq"), ValueError, r'state\["b"\]: has no \[\'exp_avg_sq\'\]'),
    "other": (lambda s, g: s[1].update(sum=np.zeros((2, 3))), ValueError, "has .'sum'., which this"),
    "step": (lambda s, g: s[1].update(step=1.5), ValueError, r'state\["b"\]: step: expected an integer'),
    "negative": (lambda s, g: s[1].update(step=-1), ValueError, "step: expected an integer"),
    "huge": (lambda s, g: s[1].update(step=1e30), ValueError, "step: expected an integer"),
    "nan": (lambda s, g: s[1].update(step=np.nan), ValueError, "step: expected a finite number"),
    "lr": (lambda s, g: g[0].update(lr=-1), ValueError, "lr: expected a number of at least 0"),
    "typo": (lambda s, g: g[0].update(learning_rate=1), KeyError, "learning_rate: no such hyper"),
    "entry": (lambda s, g: s.update({1: None}), TypeError, r'state\["b"\]: expected a dict'),
    "group": (lambda s, g: g.__setitem__(0, 3), TypeError, r'\["param_groups"\]\[0\]: expected a dict'),
    "numbers": (lambda s, g: g[0].update(params=[0, 0]), ValueError, "numbers of their own"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_what_does_not_fit_is_refused(what):
    change, error, message = BROKEN[what]
    opt = fastgd.Adam({"a": np.zeros(2), "b": np.zeros((2, 3))}, lr=0.5)
    opt.step({"a": np.full(2, 3.0), "b": np.full((2, 3), 2.0)})
    before = snapshot(opt)
    with pytest.raises(error, match=message):
        opt.load_state_dict(broken(change))
    assert_unchanged(opt, before)


@pytest.mark.parametrize(
    "nonsense",
    [
        None,
        3,
        [],
        {},
        {"state": {}},
        {"state": None, "param_groups": []},
        {"state": [], "param_groups": 3},
    ],
)
def test_nonsense_is_refused(nonsense):
    with pytest.raises((TypeError, ValueError), match="^state_dict: expected a"):
        fastgd.SGD(np.zeros(1)).load_state_dict(nonsense)


def test_another_optimizers_states_are_refused():
    opt = fastgd.RMSprop(np.zeros(2))
    opt.step(np.ones(2))
    with pytest.raises((ValueError, KeyError)):
        fastgd.Adam(np.zeros(2)).load_state_dict(opt.state_dict())


def test_looking_does_not_follow_a_changed_rule(tmp_path):
    """Momentum that was switched on counts from the next step, whoever asked for states before."""
    p = np.ones(3, np.float32)
    opt = fastgd.SGD(p, lr=0.1)
    opt.step(np.ones(3, np.float32))
    opt.param_groups[0]["momentum"] = 0.9
    saved = opt.state_dict()
    fastgd.save(tmp_path / "opt.safetensors", opt)
    assert opt.state[0] == {"step": 1}
    assert saved["state"] == {}
    opt.step(np.ones(3, np.float32))
    assert opt.state[0]["momentum_buffer"].tolist() == [1, 1, 1]
