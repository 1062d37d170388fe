"""The optimizers as their users see them: formulas, structures, groups, gradients, hyper-parameters."""

from __future__ import annotations

import copy
import inspect
import pickle
from math import sqrt
from types import MappingProxyType

import numpy as np
import pytest
from support.helpers import COMPILED, same_bits
from support.optimizer_cases import CASES, OPTIONS, leaves, made
from support.sampling import sampled

import fastgd
from fastgd.core.variants import rules_of
from fastgd.kernels.reference import RULES
from fastgd.optimizers import GENERAL, OPTIMIZERS


@sampled({"name, options": CASES, "backend": COMPILED})
def test_every_option_equals_the_numpy_backend(name, options, backend):
    results = []
    for use in (backend, "numpy"):
        fastgd.set_backend(use)
        opt, params, draw = made(name, options)
        for t in range(4):
            opt.step(draw(), grad_scale=4.0 if t == 2 else 1.0)
        results.append([*leaves(params), *(a for s in opt.state.values() for a in s.values())])
    for a, b in zip(*results, strict=True):
        assert same_bits(a, b) if a.dtype.kind == "f" else a == b


def test_the_options_reach_every_rule():
    reached = set()
    for name, sets in OPTIONS.items():
        for options in sets:
            opt = OPTIMIZERS[name]([np.zeros(1), np.zeros((2, 3))], **options)
            reached |= set(opt.stepper.rules)
    special = [OPTIMIZERS[name] for name in OPTIMIZERS.keys() - GENERAL.keys()]
    others = {rule for cls in special for rule in rules_of(cls)} | {"ema", "weighted_sum"}
    others |= {rule for rule in RULES if rule.startswith("missed_")}
    assert reached == set(RULES) - (others - reached)  # these are no optimizer's


# ------------------------------------------------------------------- the formulas of the papers


def trajectory(opt, params, gradients):
    path = []
    for g in gradients:
        opt.step(np.array([g]))
        path.append(float(params[0]))
    return path


GRADIENTS = [1.0, -0.5, 2.0, 0.25, 0.0, -3.0]


@pytest.mark.parametrize("bias_correction", [False, True])
def test_momentum_is_the_exponentially_weighted_average(bias_correction):
    params = np.zeros(1)
    opt = fastgd.Momentum(params, lr=0.1, bias_correction=bias_correction)
    V, w, expected = 0.0, 0.0, []
    for t, g in enumerate(GRADIENTS, 1):
        V = 0.9 * V + (1 - 0.9) * g
        w -= 0.1 * (V / (1 - 0.9**t) if bias_correction else V)
        expected.append(w)
    assert trajectory(opt, params, GRADIENTS) == pytest.approx(expected, rel=1e-14)


def test_momentum_is_not_sgd_with_dampening():
    """torch's first step sets V = g; the weighted average starts from V = 0."""
    a, b = np.zeros(1), np.zeros(1)
    fastgd.Momentum(a, lr=1.0, beta=0.9).step(np.ones(1))
    fastgd.SGD(b, lr=1.0, momentum=0.9, dampening=0.9).step(np.ones(1))
    assert a[0] == pytest.approx(-0.1)
    assert b[0] == -1.0


def test_bias_correction_makes_a_constant_series_exact():
    params = np.zeros(1)
    opt = fastgd.Momentum(params, lr=1.0, beta=0.98, bias_correction=True)
    assert trajectory(opt, params, [1.0] * 20) == pytest.approx([-t for t in range(1, 21)])


def test_adagrad_of_the_paper():
    params, epsilon = np.zeros(1), 0.1
    opt = fastgd.Adagrad(params, lr=0.5, eps=0.0, eps_root=epsilon)
    nu, w, expected = 0.0, 0.0, []
    for g in GRADIENTS:
        nu += g * g
        w -= 0.5 / sqrt(nu + epsilon) * g
        expected.append(w)
    assert trajectory(opt, params, GRADIENTS) == pytest.approx(expected, rel=1e-14)


def test_adagrad_learning_rate_decays():
    params = np.zeros(1)
    opt = fastgd.Adagrad(params, lr=1.0, lr_decay=1.0, eps=0.0)
    path = trajectory(opt, params, [1.0, 1.0, 1.0])
    assert path == pytest.approx(np.cumsum([-1, -1 / 2 / sqrt(2), -1 / 3 / sqrt(3)]))


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize(("eps", "eps_root"), [(1e-3, 0.0), (0.0, 1e-3), (1e-3, 1e-3)])
def test_adam_of_the_paper(eps, eps_root, amsgrad):
    params = np.zeros(1)
    opt = fastgd.Adam(params, lr=0.1, betas=(0.8, 0.9), eps=eps, eps_root=eps_root, amsgrad=amsgrad)
    m = v = largest = w = 0.0
    expected = []
    for t, g in enumerate(GRADIENTS, 1):
        m = 0.8 * m + 0.2 * g
        v = 0.9 * v + 0.1 * g * g
        largest = max(largest, v) if amsgrad else v
        w -= 0.1 * (m / (1 - 0.8**t)) / (sqrt(largest / (1 - 0.9**t) + eps_root) + eps)
        expected.append(w)
    assert trajectory(opt, params, GRADIENTS) == pytest.approx(expected, rel=1e-12)


def test_centered_rmsprop_survives_a_constant_gradient():
    """Rounding may make the variance negative; its root must not become NaN."""
    params = np.zeros(1000, np.float32)
    opt = fastgd.RMSprop(params, lr=1e-3, centered=True, alpha=0.5)
    g = np.linspace(0.1, 3, 1000, dtype=np.float32)
    for _ in range(200):
        opt.step(g)
    assert np.isfinite(params).all()


# ------------------------------------------------------------------------------------ structures


# From two arrays to a structure that holds them; gradients may take list for tuple, any key order.
FORMS = {
    "list": (lambda a, b: [a, b], lambda a, b: (a, b)),
    "tuple": (lambda a, b: (a, b), lambda a, b: [a, b]),
    "values": (lambda a, b: {"a": a, "b": b}.values(), lambda a, b: [a, b]),
    "iterator": (lambda a, b: iter([a, b]), lambda a, b: [a, b]),
    "dict": (lambda a, b: {"a": a, "b": b}, lambda a, b: {"b": b, "a": a}),
    "nested": (lambda a, b: {"x": {"a": a}, "y": [b]}, lambda a, b: {"x": {"a": a}, "y": (b,)}),
    "mapping": (lambda a, b: MappingProxyType({"a": a, "b": b}),) * 2,
    "groups": (lambda a, b: [{"params": a}, {"params": [b]}], lambda a, b: [a, [b]]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_structures_give_the_same_results(form, dtype):
    def start():
        return np.arange(6, dtype=dtype).reshape(2, 3), np.ones(4, dtype)

    g, h = np.full((2, 3), 0.5, dtype), np.full(4, -1, dtype)
    one, other = start()
    fastgd.Adam(one).step(g)
    fastgd.Adam(other).step(h)
    a, b = start()
    hold, hand = FORMS[form]
    fastgd.Adam(hold(a, b)).step(hand(g, h))
    assert same_bits(a, one)
    assert same_bits(b, other)
    assert not np.array_equal(a, start()[0])


def test_names_of_states():
    a, b, c = (np.zeros(2) for _ in range(3))
    assert list(fastgd.SGD(a).state) == [0]
    assert list(fastgd.SGD([a, b]).state) == [0, 1]
    assert list(fastgd.SGD({"W": a, "deep": {"V": b, "l": [c]}}).state) == [
        "W",
        "deep.V",
        "deep.l.0",
    ]
    groups = fastgd.SGD([{"params": [a, b]}, {"params": {"W": c}}])
    assert list(groups.state) == ["0.0", "0.1", "1.W"]


def test_fortran_order_is_kept(rng):
    p = np.asfortranarray(rng.standard_normal((5, 7)))
    q, g = np.ascontiguousarray(p), rng.standard_normal((5, 7))
    opt = fastgd.Adam(p)
    opt.step(np.asfortranarray(g))
    fastgd.Adam(q).step(g)
    assert opt.state[0]["exp_avg"].flags.f_contiguous
    assert np.array_equal(p, q)


def test_other_buffers_are_updated_in_place():
    from array import array

    p = array("d", [1.0, 2.0])
    fastgd.SGD(p, lr=1.0).step(array("d", [0.5, 0.5]))
    assert list(p) == [0.5, 1.5]
    q = bytearray(np.ones(2, np.float32).tobytes())
    fastgd.SGD(memoryview(q).cast("f"), lr=1.0).step(np.ones(2, np.float32))
    assert not any(q)


def test_memory_mapped_parameters(tmp_path):
    p = np.memmap(tmp_path / "p", np.float32, "w+", shape=10)
    fastgd.SGD(p, lr=1.0).step(np.ones(10, np.float32))
    p.flush()
    assert np.array_equal(np.fromfile(tmp_path / "p", np.float32), np.full(10, -1, np.float32))


def test_zero_size_and_zero_dimensional_arrays():
    params = [np.zeros((0, 4), np.float32), np.array(1.0, np.float32)]
    opt = fastgd.Adam(params, lr=0.5)
    opt.step([np.zeros((0, 4), np.float32), np.float32(1.0)])
    opt.step([None, np.array(1.0, np.float32)])
    assert params[1] == pytest.approx(0.0, abs=1e-6)
    assert [int(s["step"]) for s in opt.state.values()] == [1, 2]


# ------------------------------------------------------------------------------------- gradients


def test_none_leaves_parameter_states_and_count_alone():
    a, b = np.zeros(3), np.zeros(3)
    opt = fastgd.Adam({"a": a, "b": b}, lr=0.1)
    g = np.ones(3)
    opt.step({"a": g, "b": None})
    opt.step({"a": None, "b": None})
    opt.step({"a": None, "b": g})
    assert (int(opt.state["a"]["step"]), int(opt.state["b"]["step"])) == (1, 1)
    # The bias correction of b is that of its own first step.
    assert np.array_equal(a, b)
    assert same_bits(opt.state["a"]["exp_avg"], opt.state["b"]["exp_avg"])


def test_many_step_counts_in_one_group(rng):
    """Parameters that have stepped differently often each get their own bias correction."""
    together = [np.zeros(4) for _ in range(20)]
    alone = [np.zeros(4) for _ in range(20)]
    opt = fastgd.Adam(together)
    each = [fastgd.Adam(p) for p in alone]
    for _ in range(15):
        grads = [rng.standard_normal(4) if rng.random() < 0.5 else None for _ in range(20)]
        opt.step(grads)
        for one, g in zip(each, grads, strict=True):
            if g is not None:
                one.step(g)
    assert all(np.array_equal(p, q) for p, q in zip(together, alone, strict=True))


def test_bound_gradients():
    p, q, g = np.zeros(5), np.zeros(5), np.ones(5)
    bound, fresh = fastgd.Adam([p], grads=[g]), fastgd.Adam([q])
    for k in range(4):
        g[...] = k + 1
        bound.step()
        fresh.step([g])
    bound.step([np.full(5, 7.0)])  # other gradients, this once
    fresh.step([np.full(5, 7.0)])
    bound.step()
    fresh.step([g])
    assert np.array_equal(p, q)


def test_what_is_bound_is_the_arrays():
    """Whatever happens later to the dict that held them, even if the rule changes meanwhile."""
    p, g = np.zeros(2), np.ones(2)
    grads = {"W": g}
    opt = fastgd.SGD({"W": p}, lr=1.0, grads=grads)
    grads["W"] = np.full(2, 100.0)
    opt.step()
    opt.param_groups[0]["momentum"] = 0.5
    opt.step()
    opt.load_state_dict(opt.state_dict())
    g *= 2
    opt.step()
    assert p.tolist() == [-1 - 1 - 2.5] * 2


def test_bound_gradients_may_be_none():
    p, q = np.zeros(2), np.zeros(2)
    opt = fastgd.SGD([p, q], lr=1.0, grads=[None, np.ones(2)])
    opt.step()
    assert (p.tolist(), q.tolist()) == ([0, 0], [-1, -1])


def test_gradients_may_share_memory_among_themselves():
    p, q, g = np.zeros(2), np.zeros(2), np.ones(2)
    fastgd.SGD([p, q], lr=1.0).step([g, g])
    assert (p.tolist(), q.tolist()) == ([-1, -1], [-1, -1])


def test_gradients_are_not_kept():
    import weakref

    g = np.ones(3)
    dead = weakref.ref(g)
    opt = fastgd.Adam(np.zeros(3))
    opt.step(g)
    del g
    assert dead() is None


def test_grad_scale_divides():
    p, q = np.zeros(3), np.zeros(3)
    fastgd.SGD(p, lr=1.0).step(np.full(3, 6.0), grad_scale=8.0)
    fastgd.SGD(q, lr=1.0).step(np.full(3, 0.75))
    assert np.array_equal(p, q)


# ---------------------------------------------------------------------- groups, hyper-parameters


def test_groups_have_settings_of_their_own():
    a, b, c = (np.full(2, 1.0) for _ in range(3))
    opt = fastgd.SGD(
        [
            {"params": [a], "lr": 0.5},
            {"params": b, "momentum": 0.9},
            {"params": c, "maximize": True},
        ],
        lr=0.1,
        weight_decay=1.0,
    )
    opt.step([[np.ones(2)], np.ones(2), np.ones(2)])
    assert a == pytest.approx(1 - 0.5 * 2)
    assert b == pytest.approx(1 - 0.1 * 2)
    assert c == pytest.approx(1 - 0.1 * (-1 + 1))
    assert [list(s) for s in opt.state.values()] == [
        ["step"],
        ["step", "momentum_buffer"],
        ["step"],
    ]
    with pytest.raises(ValueError, match="differs between groups"):
        _ = opt.lr
    opt.lr = 0.25
    assert [g["lr"] for g in opt.param_groups] == [0.25] * 3
    assert opt.lr == 0.25


def test_learning_rate_may_change_between_steps():
    p = np.zeros(1)
    opt = fastgd.SGD(p, lr=1.0)
    opt.step(np.ones(1))
    opt.param_groups[0]["lr"] = 0.5
    opt.step(np.ones(1))
    opt.param_groups[0].update(lr=0.25, maximize=True)
    opt.step(np.ones(1))
    assert p[0] == -1.0 - 0.5 + 0.25


def test_a_change_that_picks_another_rule_keeps_states():
    p = np.zeros(2)
    opt = fastgd.Adam(p)
    opt.step(np.ones(2))
    opt.param_groups[0]["amsgrad"] = True
    opt.step(np.ones(2))
    assert int(opt.state[0]["step"]) == 2
    assert same_bits(opt.state[0]["max_exp_avg_sq"], opt.state[0]["exp_avg_sq"])


def test_add_param_group():
    a, b, c = (np.zeros(2) for _ in range(3))
    opt = fastgd.SGD({"W": a}, lr=1.0, momentum=0.5)
    opt.step({"W": np.ones(2)})
    opt.add_param_group({"params": [b], "lr": 0.5})
    opt.add_param_group({"params": {"V": c}})
    opt.step([{"W": np.ones(2)}, [np.ones(2)], {"V": None}])
    assert a[0] == -2.5
    assert b[0] == -0.5
    assert list(opt.state) == ["W", "1.0", "2.V"]
    assert [int(s["step"]) for s in opt.state.values()] == [2, 1, 0]
    with pytest.raises(TypeError, match=r'grads\[0\]\["W"\]|grads\["0.W"\]'):
        opt.step([{"W": 1.0}, [np.ones(2)], {"V": None}])


def test_add_param_group_with_bound_gradients():
    a, b, g = np.zeros(2), np.zeros(2), np.ones(2)
    opt = fastgd.SGD([a], lr=1.0, grads=[g])
    with pytest.raises(TypeError, match="grads: expected for all groups or for none"):
        opt.add_param_group({"params": b})
    opt.add_param_group({"params": b}, grads=g)
    opt.step()
    assert (a[0], b[0]) == (-1, -1)


def test_add_param_group_refused_changes_nothing():
    a = np.zeros(2)
    opt = fastgd.SGD([a], lr=1.0)
    for bad in ({"params": [a]}, {"params": [np.zeros(2)], "lr": -1}, {}, 3):
        with pytest.raises((TypeError, ValueError)):
            opt.add_param_group(bad)
    opt.step([np.ones(2)])
    assert len(opt.param_groups) == 1
    assert a[0] == -1


def test_defaults():
    """Those that are not torch's, which test_torch_parity.py compares."""
    h = fastgd.Momentum(np.zeros(1)).param_groups[0]
    assert {k: h[k] for k in h if not k.startswith("param")} == {
        "lr": 1e-2,
        "beta": 0.9,
        "weight_decay": 0.0,
        "bias_correction": False,
        "maximize": False,
        "clip_norm": None,
        "clip_value": None,
        "clip_ratio": None,
    }


def test_repr_says_what_it_is():
    assert repr(fastgd.SGD([np.zeros(3), np.zeros((2, 2))], lr=0.5)).startswith(
        "SGD(2 parameters, 7 elements, lr=0.5, momentum=0.0"
    )


def test_states_have_the_dtype_of_their_parameter():
    for name in OPTIMIZERS:
        for dtype in (np.float32, np.float64):
            opt = OPTIMIZERS[name](np.zeros((1, 2), dtype))
            (rule,) = opt.stepper.rules
            assert all(opt.state[0][key].dtype == dtype for key in RULES[rule].states)
            assert all(opt.state[0][key].dtype == np.float64 for key in RULES[rule].numbers)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_deepcopy_and_pickle(name, options):
    opt, _, draw = made(name, options)
    opt.step(draw())
    g = draw()
    copies = [copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))]
    opt.step(g)
    for other in copies:
        other.step(g)
        assert all(
            same_bits(p, q)
            for p, q in zip(
                other.param_groups[0]["params"], opt.param_groups[0]["params"], strict=True
            )
        )


@pytest.mark.parametrize("way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_know_of_rules_to_come_and_to_come_back(way):
    """A rule picked since the last step needs states; those of one that may return are kept."""
    opt = fastgd.Adam(np.zeros(2))
    opt.step(np.ones(2))
    opt.param_groups[0]["amsgrad"] = True
    assert list(way(opt).state[0]) == list(opt.state[0])
    opt = fastgd.SGD(np.zeros(2), lr=1.0, momentum=0.5)
    opt.step(np.ones(2))
    opt.param_groups[0]["momentum"] = 0.0
    opt.step(np.ones(2))
    twin = way(opt)
    for one in (opt, twin):
        one.param_groups[0]["momentum"] = 0.5
        one.step(np.ones(2))
        assert one.param_groups[0]["params"][0].tolist() == [-3.5, -3.5]


# ------------------------------------------------------------------------------------ functional


@pytest.mark.parametrize(("name", "options"), CASES)
def test_functional_equals_the_object(name, options):
    update = getattr(fastgd.functional, name.lower())
    rng = np.random.default_rng(1)
    p = rng.standard_normal(37)
    q = p.copy()
    opt = OPTIMIZERS[name](p, **options)
    states = [s.copy() for key, s in opt.state[0].items() if key != "step"]
    for t in range(1, 4):
        g = rng.standard_normal(37)
        opt.step(g)
        update(q, g, *states, step=t, **options)
    assert same_bits(p, q)


def test_functional_signatures_are_those_of_the_classes():
    for name in fastgd.optimizers.__all__:
        update = getattr(fastgd.functional, name.lower())
        expected = inspect.signature(OPTIMIZERS[name]).parameters
        given = inspect.signature(update).parameters
        assert list(given)[:4] == ["p", "g", "states", "step"]
        for key in list(given)[4:]:
            assert given[key].default == expected[key].default
        assert set(expected) - set(given) == {"params", "options"}
    assert not hasattr(fastgd.functional, "adamm")


def test_functional_takes_numbers_as_arrays():
    p, g, m, v = np.ones((4, 3))
    for wrong, error, message in (
        (1.0, TypeError, "^mu_product: expected"),
        (np.float64(1.0), (TypeError, ValueError), "^mu_product: expected"),
        (np.ones((), np.float32), TypeError, "^mu_product: expected one float64, found float32"),
        (
            np.ones(1),
            TypeError,
            r"^mu_product: expected one float64, found float64 of shape \(1,\)",
        ),
    ):
        with pytest.raises(error, match=message):
            fastgd.functional.nadam(p, g, m, v, wrong, step=1)
    with pytest.raises(TypeError, match=r"'exp_avg_sq', 'mu_product'\), found 2"):
        fastgd.functional.nadam(p, g, m, v, step=1)
    assert p.tolist() == m.tolist() == [1, 1, 1]


def test_functional_refuses():
    p, g, m, v = (np.zeros(3) for _ in range(4))
    adam = fastgd.functional.adam
    with pytest.raises(
        TypeError, match=r"expected the states \('exp_avg', 'exp_avg_sq'\), found 1"
    ):
        adam(p, g, m, step=1)
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'step'"):
        adam(p, g, m, v)
    with pytest.raises(TypeError, match="^g: expected an array"):
        adam(p, None, m, v, step=1)
    with pytest.raises(TypeError, match="unknown 'learning_rate'"):
        adam(p, g, m, v, step=1, learning_rate=1)
    with pytest.raises(ValueError, match="step: expected"):
        adam(p, g, m, v, step=0)
    with pytest.raises(ValueError, match="lr: expected a number of at least 0"):
        adam(p, g, m, v, step=1, lr=-1)
    with pytest.raises(ValueError, match="exp_avg_sq: expected shape"):
        adam(p, g, m, np.zeros(4), step=1)
    with pytest.raises(ValueError, match="is the same memory as"):
        adam(p, g, m, m, step=1)


def test_states_lie_as_their_parameter_in_cache_lines():
    """Only so does a chunk that starts on a line start on one in every array."""
    raw = np.zeros(5000, np.float32)
    for offset in range(17):
        p = raw[offset : offset + 4000]
        opt = fastgd.Adam(p)
        copies = [opt, copy.deepcopy(opt)]
        for one in copies:
            (own,) = one.param_groups[0]["params"]
            for key in ("exp_avg", "exp_avg_sq"):
                assert (one.state[0][key].ctypes.data - own.ctypes.data) % 64 == 0
        # In fewer bits chunks are of whole tiles, wherever the parameter is.
        (state,) = fastgd.Adam(p, state_dtype="bfloat16").state.values()
        assert state["exp_avg"].ctypes.data % 64 == state["exp_avg_sq"].ctypes.data % 64 == 0
