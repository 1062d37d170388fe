"""Bad input gets an error that names what was wrong, and changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from support.snapshots import assert_unchanged, snapshot

import fastgd
from fastgd.optimizers import OPTIMIZERS

F32 = np.float32


def misaligned(n, dtype=F32):
    raw = np.zeros(n * np.dtype(dtype).itemsize + 1, np.uint8)
    return raw[1:].view(dtype)


def read_only(shape):
    a = np.zeros(shape, F32)
    a.flags.writeable = False
    return a


# What is wrong: (array for a parameter of shape (4, 6), error, what the message says).
WRONG_ARRAYS = {
    "dtype": (lambda: np.zeros((4, 6), np.int64), TypeError, "expected dtype float32.*found int64"),
    "long double": (
        lambda: np.zeros((4, 6), np.longdouble),
        TypeError,
        "expected dtype.*found (float|long)",
    ),
    "complex": (lambda: np.zeros((4, 6), np.complex64), TypeError, "found complex64"),
    "objects": (lambda: np.zeros((4, 6), object), TypeError, "found object"),
    "strided": (lambda: np.zeros((4, 12), F32)[:, ::2], ValueError, "contiguous.*strides"),
    "broadcast": (lambda: np.broadcast_to(F32(0), (4, 6)), ValueError, "contiguous|writeable"),
    "byte order": (lambda: np.zeros((4, 6), ">f4"), TypeError, "native byte order, found >f4"),
    "misaligned": (lambda: misaligned(24).reshape(4, 6), ValueError, "aligned to 4 bytes"),
    "list": (lambda: {"deep": 0.5}, TypeError, "expected an array.*builtins.float"),
    "string": (lambda: "abc", TypeError, "expected an array.*builtins.str"),
    "none": (lambda: None, TypeError, "expected an array.*NoneType"),
    "scalar": (lambda: F32(1), TypeError, "expected an array, found the scalar numpy.float32"),
    "masked": (lambda: np.ma.zeros((4, 6), F32), TypeError, "masked array"),
    "bytes": (lambda: b"12345678", TypeError, "expected dtype"),
}


@pytest.mark.parametrize("what", [*WRONG_ARRAYS, "read-only"])
def test_parameters(what):
    make, error, message = WRONG_ARRAYS.get(
        what, (lambda: read_only((4, 6)), ValueError, "writeable array, found a read-only one")
    )
    fine = np.ones(3, F32)
    with pytest.raises(error, match=message) as caught:
        fastgd.Adam({"fine": fine, "layer": {"W": make()}})
    assert str(caught.value).startswith('params["layer.W')
    with pytest.raises(error, match=message) as caught:
        fastgd.Adam([fine, make()] if what != "list" else [fine, 0.5])
    assert str(caught.value).startswith("params[1]: ")


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize(
    "what",
    [
        *WRONG_ARRAYS,
        "shape",
        "transposed",
        "extra dimension",
        "dimension behind",
        "fewer dimensions",
    ],
)
def test_gradients(what, bound):
    wrong = {
        "shape": (lambda: np.zeros((4, 7), F32), ValueError, r"shape \(4, 6\).*found \(4, 7\)"),
        "transposed": (lambda: np.zeros((6, 4), F32).T, ValueError, "C order.*ascontiguousarray"),
        "extra dimension": (lambda: np.zeros((1, 4, 6), F32), ValueError, "shape"),
        "dimension behind": (lambda: np.zeros((4, 6, 1), F32), ValueError, "shape"),
        "fewer dimensions": (lambda: np.zeros(4, F32), ValueError, "shape"),
        "list": (lambda: [[0.0] * 6] * 4, TypeError, "expected an array"),
    }
    make, error, message = wrong.get(what) or WRONG_ARRAYS[what]
    params = {"fine": np.ones(3, F32), "W": np.ones((4, 6), F32)}
    grads = {"fine": np.ones(3, F32), "W": make()}
    if what == "none":
        return  # that is no gradient, not a wrong one
    opt = fastgd.Adam(params)
    opt.step({"fine": np.ones(3, F32), "W": None})
    before = snapshot(opt)
    with pytest.raises(error, match=message) as caught:
        if bound:
            fastgd.Adam(params, grads=grads)
        else:
            opt.step(grads)
    assert str(caught.value).startswith('grads["W"]: ')
    assert_unchanged(opt, before)


def test_a_gradient_in_another_layout_than_its_parameter():
    """Where layouts differ, walking both as flat memory would mix up elements."""
    p = np.asfortranarray(np.zeros((3, 4)))
    opt = fastgd.SGD(p)
    with pytest.raises(ValueError, match="F order.*asfortranarray"):
        opt.step(np.zeros((3, 4)))


@pytest.mark.parametrize(
    ("grads", "error", "message"),
    [
        (
            {"a": 0},
            ValueError,
            r"^grads: expected the keys of params, found missing \['b'\]; give None",
        ),
        ({"a": 0, "b": [0, 0], "c": 0}, ValueError, r"unknown \['c'\]"),
        ({"a": 0, "B": [0, 0]}, ValueError, r"missing \['b'\] and unknown \['B'\]"),
        (
            {"a": 0, "b": [0]},
            ValueError,
            r'^grads\["b"\]: expected 2 entries as in params, found 1',
        ),
        (
            {"a": 0, "b": 0},
            TypeError,
            r'^grads\["b"\]: expected a list or tuple of 2.*found ndarray',
        ),
        ([0, 0], TypeError, r"^grads: expected a dict as in params, found list"),
        (0, TypeError, r"^grads: expected a dict as in params, found ndarray"),
        ({"a": [0], "b": [0, 0]}, TypeError, r'^grads\["a"\]: expected an array'),
        ({"a": 0, "b": None}, TypeError, r'^grads\["b"\]: expected a list'),
        ({"a": 0, "b": {0: 0, 1: 0}}, TypeError, r'^grads\["b"\]: expected a list.*found dict'),
    ],
)
def test_grads_in_another_structure(grads, error, message):
    def fill(tree):
        if isinstance(tree, dict):
            return {k: fill(v) for k, v in tree.items()}
        if isinstance(tree, list):
            return [fill(v) for v in tree]
        return None if tree is None else np.zeros(2)

    opt = fastgd.Adam({"a": np.ones(2), "b": [np.ones(2), np.ones(2)]})
    before = snapshot(opt)
    with pytest.raises(error, match=message):
        opt.step(fill(grads))
    assert_unchanged(opt, before)


def test_no_gradients_at_all():
    with pytest.raises(TypeError, match="needs gradients, as no gradients were bound"):
        fastgd.Adam(np.zeros(2)).step()


@pytest.mark.parametrize("params", [[], {}, (), iter([]), [{"params": []}], {"a": {}, "b": []}])
def test_no_parameters(params):
    with pytest.raises(ValueError, match=r"params.*: expected at least one parameter, found none"):
        fastgd.SGD(params)


def test_names_that_two_parameters_share():
    with pytest.raises(ValueError, match="two parameters are named 'a.b'"):
        fastgd.SGD({"a.b": np.zeros(1), "a": {"b": np.zeros(1)}})


def test_sets_have_no_order():
    with pytest.raises(TypeError, match="no order"):
        fastgd.SGD({"a": {1.0, 2.0}})


# --------------------------------------------------------------------------------------- overlap


def test_the_same_parameter_twice():
    a = np.zeros(4)
    with pytest.raises(ValueError, match=r"params\[1\]: is the same memory as params\[0\]"):
        fastgd.SGD([a, a])
    with pytest.raises(ValueError, match=r'params\["1.W"\]: is the same memory as params\["0.W"\]'):
        fastgd.SGD([{"params": {"W": a}}, {"params": {"W": a}}])


def test_overlapping_parameters():
    a = np.zeros(10)
    with pytest.raises(ValueError, match=r'params\["y"\]: overlaps params\["x"\]'):
        fastgd.SGD({"x": a[:6], "y": a[5:]})
    with pytest.raises(ValueError, match="overlaps"):
        fastgd.SGD({"x": a, "y": a[3:5]})
    fastgd.SGD({"x": a[:5], "y": a[5:]})  # neighbours are fine
    fastgd.SGD({"x": a, "y": a[3:3]})  # so is nothing at all


@pytest.mark.parametrize("bound", [False, True])
def test_gradient_that_overlaps_what_is_written(bound):
    base = np.zeros(40)
    params = [base[0:8], base[10:18], base[30:38]]
    fine = np.zeros(8)

    def step(grads):
        if bound:
            fastgd.Adam(params, grads=grads)
        else:
            opt.step(grads)

    opt = fastgd.Adam(params)
    before = snapshot(opt)
    for wrong, meets in (
        (params[0], "params[0]"),  # itself
        (params[1], "params[1]"),  # another one
        (base[1:9], "params[0]"),
        (base[5:13], "params[0]"),
        (base[9:17], "params[1]"),
        (base[17:25], "params[1]"),
        (base[23:31], "params[2]"),
        (base[32:40], "params[2]"),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            step([wrong, fine, fine])
        assert str(caught.value).startswith(f"grads[0]: shares memory with {meets}, ")
    if not bound:
        with pytest.raises(ValueError, match=r'shares memory with state\[1\]\["exp_avg"\]'):
            step([fine, opt.state[1]["exp_avg"], fine])
    assert_unchanged(opt, before)
    step([base[18:26], base[22:30], fine])  # beside them is fine


# ------------------------------------------------------------------------------- after the plan


def test_parameter_made_read_only_later():
    p, q = np.zeros(3), np.zeros(3)
    opt = fastgd.SGD([q, p], lr=1.0)
    p.flags.writeable = False
    with pytest.raises(ValueError, match=r"params\[1\]: was made read-only"):
        opt.step([np.ones(3), np.ones(3)])
    assert not q.any()
    p.flags.writeable = True
    opt.step([np.ones(3), np.ones(3)])
    assert p[0] == -1


def test_parameter_given_other_memory_later():
    p = np.zeros(3)
    opt = fastgd.SGD([p], lr=1.0)
    p.resize(30000, refcheck=False)
    with pytest.raises(
        ValueError,
        match=r"params\[0\]: was made read-only, or given another dtype, shape or memory",
    ):
        opt.step([np.ones(3)])


@pytest.mark.parametrize("size", [2, 4, 1 << 20])
def test_parameter_resized_later(size):
    p = np.zeros(3)
    opt = fastgd.SGD([p], lr=1.0)
    p.resize(size, refcheck=False)
    with pytest.raises(ValueError, match="given another"):
        opt.step([np.ones(size)])


@pytest.mark.parametrize("size", [2, 1 << 22])
def test_bound_gradient_resized_later(size):
    g = np.ones(1 << 20)
    opt = fastgd.SGD([np.zeros(1 << 20)], grads=[g])
    opt.step()
    g.resize(size, refcheck=False)
    with pytest.raises(ValueError, match=r"grads\[0\]: was given another.*after it was bound"):
        opt.step()


def test_a_gradient_is_checked_wherever_it_moves():
    """A gradient array that was fine once says nothing of the next one."""
    p = np.zeros(4)
    opt = fastgd.SGD([p], lr=1.0)
    opt.step([np.ones(4)])
    with pytest.raises(ValueError, match="shares memory"):
        opt.step([p])


def test_a_list_that_changes_while_it_is_read():
    class Shortens:
        def __dlpack__(self, **_):
            del grads[1:]
            return np.ones(2).__dlpack__()

        def __dlpack_device__(self):
            return (1, 0)

    grads = [Shortens(), np.ones(2), np.ones(2)]
    opt = fastgd.SGD([np.zeros(2) for _ in range(3)])
    with pytest.raises(IndexError):
        opt.step(grads)
    assert not any(p.any() for p in opt.param_groups[0]["params"])


def test_a_step_within_a_step():
    class Steps:
        def __dlpack__(self, **_):
            opt.step([np.ones(2)])

        def __dlpack_device__(self):
            return (1, 0)

    p = np.zeros(2)
    opt = fastgd.SGD([p])
    with pytest.raises((RuntimeError, TypeError), match="called from within a step"):
        opt.step([Steps()])
    assert not p.any()
    opt.step([np.ones(2)])


def test_a_negative_step_count():
    opt = fastgd.Adam({"W": np.zeros(2)})
    opt.state["W"]["step"][...] = -5
    with pytest.raises(
        ValueError, match=r'state\["W"\]\["step"\]: expected a number from 0 to below'
    ):
        opt.step({"W": np.ones(2)})


# ------------------------------------------------------------------------------ hyper-parameters


def test_out_of_float32s_range():
    """What float64 can hold and float32 can't must not become inf, or quietly 0."""
    for options, scale, words in (
        ({"lr": 1e300}, 1.0, r'^lr: .* float32 can hold, in which params\["W"\] .*, found 1e\+300'),
        ({"lr": lambda step: 1e300}, 1.0, r'^params\["W"\]: .*out of float32\'s range'),
        ({}, 1e-40, r'^params\["W"\]: .*out of float32\'s range'),
        ({}, 1e50, r'^params\["W"\]: .*out of float32\'s range'),
        ({"weight_decay": 1e39}, 1, "^weight_decay: expected 0 or a number that float32 can hold"),
    ):
        p = np.ones(2, F32)
        with pytest.raises(ValueError, match=words):
            fastgd.SGD({"W": p}, **options).step({"W": np.ones(2, F32)}, grad_scale=scale)
        assert p.tolist() == [1, 1]
        fastgd.SGD(np.ones(2), **options).step(np.ones(2), grad_scale=scale)  # float64 can


def test_numbers_that_are_none():
    p = np.zeros(1)
    for bad in (np.array([0.1]), np.array([1.0, 2.0]), np.True_, 10**400, object(), p):
        if getattr(bad, "size", 0) == 1 and bad is not np.True_:
            continue  # NumPy turns one element into a number, with a warning
        with pytest.raises((TypeError, ValueError), match="^lr: expected a"):
            fastgd.SGD(p, lr=bad)
    for bad in ({0.9, 0.999}, "ab", 0.9, {0.9: 1, 0.99: 2}, np.array(0.9)):
        with pytest.raises(TypeError, match="^betas: expected two numbers"):
            fastgd.Adam(p, betas=bad)
        with pytest.raises(TypeError, match="^betas: expected three numbers"):
            fastgd.AdEMAMix(p, betas=bad)
    with pytest.raises(TypeError, match=r"^backend: expected a str, found \[\]"):
        fastgd.set_backend([])


HYPER = [
    (name, key)
    for name in fastgd.optimizers.GENERAL
    for key in OPTIMIZERS[name](np.zeros(1)).defaults
]


@pytest.mark.parametrize(("name", "key"), HYPER)
@pytest.mark.parametrize("value", [-0.1, np.nan, np.inf, "1e-3", None, [], 1j])
def test_hyper_parameters(name, key, value):
    if key in ("dampening", "beta2_decay") and value == -0.1:
        value = "-0.1"  # what may be negative
    if key.startswith("clip") and value is None:
        value = -1 if key == "clip_exp" else 0  # None is no limit
    p = np.zeros(2)
    if value == OPTIMIZERS[name](p).defaults[key]:
        value = -1  # None or infinity, where it is the default
    bad = (value, 0.9) if key == "betas" else value
    opt = OPTIMIZERS[name](p)
    before = snapshot(opt)
    with pytest.raises((TypeError, ValueError), match=rf"^{key}"):
        OPTIMIZERS[name](p, **{key: bad})
    with pytest.raises((TypeError, ValueError), match=rf"^params\[0\]: {key}"):
        OPTIMIZERS[name]([{"params": p, key: bad}])
    with pytest.raises((TypeError, ValueError), match=rf"^{key}"):
        opt.param_groups[0][key] = bad
    with pytest.raises((TypeError, ValueError), match=rf"^{key}"):
        opt.param_groups[0].update({"lr": 0.7, key: bad})
    assert_unchanged(opt, before)


@pytest.mark.parametrize("beta", [1.0, 1.5])
def test_averages_need_weights_below_one(beta):
    p = np.zeros(1)
    for call in (
        lambda: fastgd.Adam(p, betas=(0.9, beta)),
        lambda: fastgd.Momentum(p, beta=beta),
        lambda: fastgd.RMSprop(p, alpha=beta),
    ):
        with pytest.raises(ValueError, match="from 0 to below 1"):
            call()
    with pytest.raises(ValueError, match="expected two numbers, found 3"):
        fastgd.Adam(p, betas=(0.9, 0.9, 0.9))


def test_nesterov_needs_momentum_without_dampening():
    p = np.zeros(1)
    for options in ({}, {"momentum": 0.9, "dampening": 0.1}):
        with pytest.raises(ValueError, match="nesterov: needs momentum above 0 and dampening of 0"):
            fastgd.SGD(p, nesterov=True, **options)
    opt = fastgd.SGD(p, momentum=0.9, nesterov=True)
    with pytest.raises(ValueError, match="nesterov"):
        opt.param_groups[0]["momentum"] = 0
    assert opt.param_groups[0]["momentum"] == 0.9


def test_a_typo_in_a_name():
    p = np.zeros(1)
    opt = fastgd.SGD(p)
    with pytest.raises(TypeError, match="learning_rate"):
        fastgd.SGD(p, learning_rate=0.1)
    with pytest.raises(
        KeyError, match=r"params\[0\]: learning_rate: no such.*there are lr, momentum"
    ):
        fastgd.SGD([{"params": p, "learning_rate": 0.1}])
    with pytest.raises(KeyError, match="no such hyper-parameter"):
        opt.param_groups[0]["learning_rate"] = 0.1


def test_groups_keep_all_entries():
    opt = fastgd.SGD(np.zeros(1))
    group = opt.param_groups[0]
    with pytest.raises(TypeError):
        group["params"][0] = np.zeros(1)
    with pytest.raises(TypeError):
        opt.param_groups[0] = {"lr": -1}
    with pytest.raises(TypeError):
        opt.state[0] = {}
    with pytest.raises(TypeError):
        opt.state[0]["step"] = 3
    with pytest.raises(TypeError, match="params: is fixed"):
        group["params"] = []
    for call in (
        group.clear,
        group.popitem,
        lambda: group.pop("lr"),
        lambda: group.__delitem__("lr"),
    ):
        with pytest.raises(TypeError, match="always has all its entries"):
            call()
    group |= {"lr": 0.5}
    assert group["lr"] == group.setdefault("lr", 3) == 0.5


def test_numbers_of_other_kinds_are_numbers():
    from decimal import Decimal
    from fractions import Fraction

    p = np.zeros(1)
    for lr in (1, np.float32(0.5), np.int64(1), Fraction(1, 2), Decimal("0.5"), np.array(0.5)):
        assert fastgd.SGD(p, lr=lr, nesterov=np.False_).lr == float(lr)
    with pytest.raises(TypeError, match="lr: expected a number, found True"):
        fastgd.SGD(p, lr=True)


@pytest.mark.parametrize("scale", [0.0, np.nan, np.inf, "8", 1e-320])
def test_grad_scale(scale):
    p = np.zeros(1)
    with pytest.raises((TypeError, ValueError), match="grad_scale: expected"):
        fastgd.SGD(p).step(np.ones(1), grad_scale=scale)
    assert p[0] == 0


def test_a_start_out_of_float32s_range():
    """It must not become infinite, neither in the constructor nor from a state dict."""
    with pytest.raises(ValueError, match=r"^sum: can't start from 1e\+300 in float32"):
        fastgd.Adagrad({"W": np.zeros(2, F32)}, initial_accumulator_value=1e300)
    fastgd.Adagrad({"W": np.zeros(2)}, initial_accumulator_value=1e300)
    opt = fastgd.Adagrad({"W": np.zeros(2, F32)})
    state = opt.state_dict()
    state["state"].clear()
    state["param_groups"][0]["initial_accumulator_value"] = 1e300
    before = snapshot(opt)
    with pytest.raises(ValueError, match="can't start from"):
        opt.load_state_dict(state)
    assert_unchanged(opt, before)
    group = opt.param_groups[0]
    with pytest.raises(ValueError, match="can't start from"):
        group["initial_accumulator_value"] = 1e300
    assert group["initial_accumulator_value"] == 0


def test_a_refused_step_follows_no_new_rule():
    """States of the rule that is to be come with the step that uses them."""
    opt = fastgd.SGD([np.ones(2)])
    opt.step([np.ones(2)])
    opt.param_groups[0]["momentum"] = 0.9
    before = snapshot(opt)
    for grads in ([np.ones(3)], None, [None, None]):
        with pytest.raises((TypeError, ValueError)):
            opt.step(grads)
        assert_unchanged(opt, before)
        assert opt.state[0].keys() == {"step"}
        assert opt.state[0]["step"] == 1
    opt.step([np.ones(2)])
    assert opt.state[0]["momentum_buffer"].all()


def test_values_that_cannot_be_written_out():
    class Silent:
        def __repr__(self):
            raise LookupError

    for value in (10**5000, Silent()):
        with pytest.raises((TypeError, ValueError), match="^lr: expected a"):
            fastgd.SGD(np.zeros(1), lr=value)
        with pytest.raises(
            TypeError, match="^maximize: expected True or False, found (somet|<Sil|<int)"
        ):
            fastgd.SGD(np.zeros(1), maximize=value)
    adam, four = fastgd.functional.adam, [np.ones(1) for _ in range(4)]
    for step in (2**53, 10**400, 10**5000):
        with pytest.raises(ValueError, match="^step: expected a number from 1 to 2"):
            adam(*four, step=step)
    assert four == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "grad",
    [
        np.broadcast_to(np.float32(1), (3,)),
        np.ones((3, 2), np.float32),
        np.float32(1).reshape(()),
        np.ones(3, np.int32),
        np.ones(3, ">f4"),
    ],
    ids=["neither contiguous nor writeable", "more axes", "no axes", "integers", "other bytes"],
)
def test_what_looks_much_like_a_gradient_is_refused(grad):
    p = np.zeros(3, np.float32)
    with pytest.raises((TypeError, ValueError), match="^grads: expected"):
        fastgd.SGD(p, lr=1.0).step(grad)
    assert not p.any()


def test_hyper_parameters_that_are_no_attributes_are_not_made_ones():
    opt = fastgd.AdamW(np.ones(3))
    for name in ("betas", "weight_decay", "clip_norm", "eps"):
        with pytest.raises(AttributeError, match=rf"{name}: .* opt.param_groups\[0\]\['{name}'\]"):
            setattr(opt, name, 0.5)
    opt.lr = 0.5
    assert opt.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: fastgd.Adam(p, learning_rate=0.1), "did you mean lr[?]$"),
        (lambda p: fastgd.Adam(p, beta1=0.9), "did you mean betas[?]$"),
        (lambda p: fastgd.Momentum(p, momentum=0.9), "did you mean beta[?]$"),
        (lambda p: fastgd.SGD(p, weigth_decay=0.9), "did you mean weight_decay[?]$"),
        (lambda p: fastgd.SGD(p, max_grad_norm=1), "did you mean clip_norm[?]$"),
        (lambda p: fastgd.SGD([{"params": p, "learning_rate": 1}]), "did you mean lr[?]"),
        (lambda p: fastgd.functional.sgd(p, p.copy(), step=1, learning_rate=1), "did you mean lr"),
        (
            lambda p: fastgd.SGD(3.0),
            r"found builtins.float; np.array\(\[…\], np.float32\) makes one",
        ),
    ],
)
def test_what_was_probably_meant(call, words):
    with pytest.raises((TypeError, KeyError), match=words):
        call(np.ones(3))
    with pytest.raises(TypeError, match="seed$"):  # nothing is near
        fastgd.SGD(np.ones(3), zzz=1)
