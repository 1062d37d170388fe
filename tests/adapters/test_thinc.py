"""fastgd.thinc: thinc's own semantics, its registry, and real models."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import tomllib

import numpy as np
import pytest

pytest.importorskip("thinc.optimizers")

import thinc.optimizers as theirs
from support.helpers import ROOT, same_bits
from thinc import api
from thinc.config import Config, registry

import fastgd.thinc as ours

KEY = (3, "W")

# They round β to float32 before they take it from 1, which leaves 1 − 0.999 with five digits.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}

ARGUMENTS = [
    {},
    {"grad_clip": 0.0},
    {"grad_clip": 0.05},
    {"L2": 0.3},
    {"L2": 0.3, "L2_is_weight_decay": False, "grad_clip": 0.0},
    {"L2": 0.3, "L2_is_weight_decay": False, "grad_clip": 0.05},
    {"use_averages": False},
    {"learn_rate": [0.1, 0.05, 0.025], "L2": [0.0, 0.5, 0.5], "grad_clip": [0.0, 0.02]},
]
ADAMS = [
    {"beta1": 0.5, "beta2": 0.7, "eps": 0.1},
    {"beta1": [0.9, 0.5, 0.2], "beta2": [0.99, 0.9]},
    {"beta1": 0.9, "beta2": 0.0},  # which they take for SGD
    {"beta1": [0.9, 0.9, 0.0, 0.0, 0.9], "beta2": [0.9, 0.9, 0.0, 0.0, 0.9]},  # and back again
]
RADAMS = [*ADAMS[:2], {"beta1": 0.0, "beta2": 0.5}]
CASES = [
    *(("Adam", a) for a in ARGUMENTS + ADAMS),
    *(("RAdam", a) for a in ARGUMENTS + RADAMS),
    *(("SGD", a) for a in ARGUMENTS),
]


def pair(kind, arguments, **more):
    arguments = {"learn_rate": 0.1, **arguments, **more}
    return getattr(theirs, kind)(**arguments), getattr(ours, kind)(**arguments)


def tensors(shape=(7, 5), dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape).astype(dtype), rng.standard_normal(shape).astype(dtype)


def call(optimizer, w, seed, key=KEY, **kwargs):
    w, g = optimizer(key, w, tensors(w.shape, w.dtype, seed)[1], **kwargs)
    optimizer.step_schedules()
    return w, g


@pytest.mark.parametrize(("kind", "arguments"), CASES)
def test_steps_are_theirs(kind, arguments):
    a, b = pair(kind, arguments)
    w, v = tensors()[0], tensors()[0]
    for seed in range(1, 8):
        # Their RAdam forgets it.
        scale = {"lr_scale": 0.5} if seed % 3 == 0 and kind != "RAdam" else {}
        w, g = call(a, w, seed, **scale)
        given = v
        v, h = call(b, v, seed, **scale)
        assert v is given
        assert np.allclose(w, v, **CLOSE)
        assert not h.any()
        assert not g.any()
    assert a.nr_update == b.nr_update
    assert getattr(a, "step", 7) == getattr(b, "step", 7) == 7
    assert set(a.mom1) == set(b.mom1)
    for m, n in ((a.mom1, b.mom1), (a.mom2, b.mom2), (a.averages, b.averages)):
        for key in m or ():
            assert m[key].shape == n[key].shape
            assert np.allclose(m[key], n[key], **CLOSE)
    assert (b.averages is None) == (a.averages is None)


def test_radams_rate_is_scaled():
    """Which theirs isn't, but for its weight decay."""
    for steps in (1, 8):  # as momentum, and rectified
        moved = []
        for scale in (1.0, 0.5):
            optimizer = ours.RAdam(0.1, grad_clip=0.0)
            w = tensors()[0]
            for seed in range(1, steps):
                call(optimizer, w, seed)
            before = w.copy()
            call(optimizer, w, steps, lr_scale=scale)
            moved.append(w - before)
        assert np.allclose(moved[0], 2 * moved[1], rtol=1e-4, atol=1e-6)


def test_clipping_and_penalty_are_felt():
    plain = call(pair("SGD", {"grad_clip": 0.0})[1], tensors()[0], 1)[0]
    for arguments in ARGUMENTS[2:6]:
        other = call(pair("SGD", arguments)[1], tensors()[0], 1)[0]
        assert not np.allclose(plain, other, atol=1e-3)


def test_each_key_has_its_own_states_and_steps():
    a, b = pair("Adam", {})
    w, v = tensors()[0], tensors()[0]
    x, y = tensors(4, seed=9)[0], tensors(4, seed=9)[0]
    for seed in range(1, 5):
        call(a, w, seed)
        call(b, v, seed)
        if seed % 2:
            call(a, x, seed, (3, "b"))
            call(b, y, seed, (3, "b"))
    assert np.allclose(w, v, **CLOSE)
    assert np.allclose(x, y, **CLOSE)
    assert b.nr_update == {KEY: 4, (3, "b"): 2}


@pytest.mark.parametrize("which", ["mom1", "mom2", "averages"])
def test_arrays_put_in_the_place_of_others_are_used(which):
    a, b = pair("Adam", {})
    w, v = tensors()[0], tensors()[0]
    for seed in range(1, 6):
        w, v = call(a, w, seed)[0], call(b, v, seed)[0]
        assert np.allclose(w, v, **CLOSE)
        assert np.allclose(a.averages[KEY], b.averages[KEY], **CLOSE)
        for o in (a, b):
            if seed == 3:
                del getattr(o, which)[KEY]
            else:
                getattr(o, which)[KEY] = getattr(o, which)[KEY] * 3


def test_weights_put_in_the_place_of_others_are_used():
    a, b = pair("Adam", {})
    w, v = tensors()[0], tensors()[0]
    left = []
    for seed in range(1, 4):
        w, v = call(a, w, seed)[0], call(b, v, seed)[0]
        assert np.allclose(w, v, **CLOSE)
        left.append((v, v.copy()))
        w, v = w * 2, v * 2
    for before, then in left:
        assert same_bits(before, then)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_and_pickles_go_on(copied):
    optimizer = ours.Adam(0.1)
    v = call(optimizer, tensors()[0], 1)[0]
    other, w = copied(copied(optimizer)), v.copy()
    call(optimizer, v, 2)
    call(other, w, 2)
    assert same_bits(v, w)
    assert same_bits(other.averages[KEY], optimizer.averages[KEY])
    assert other.nr_update == {KEY: 2}


def test_memory_of_other_kinds():
    for make in (lambda w: w.T, lambda w: w[:, ::2], np.asfortranarray):
        a, b = pair("Adam", {})
        w, v = make(tensors()[0]), make(tensors()[0])
        g, h = make(tensors()[1]), make(tensors()[1])
        w, _ = a(KEY, w, g)
        v, z = b(KEY, v, h)
        assert np.allclose(w, v, **CLOSE)
        assert z is h
        assert not h.any()
        assert b(KEY, v, make(tensors()[1]).copy())[0] is v
    w64 = tensors(dtype=np.float64)[0]
    assert call(ours.Adam(0.1), w64, 1)[0] is w64
    empty = np.empty((0, 3), np.float32)
    optimizer = ours.Adam(0.1)
    assert optimizer(KEY, empty, empty)[0] is empty
    assert optimizer.nr_update == {}


class Elsewhere:
    shape, ndim = (7, 5), 2


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda w, g: (w, g[:3]), ValueError, r"^grads\[\(3, 'W'\)\]: expected shape \(7, 5\)"),
        (lambda w, g: (w, g.astype(int)), TypeError, "^grads.*: expected dtype"),
        (lambda w, g: (w, w), ValueError, "^grads.*: shares memory with params"),
        (lambda w, g: (Elsewhere(), g), TypeError, "^weights: expected a NumPy array, found test_thinc.Else"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_before_anything_is_changed(change, error, words):
    optimizer = ours.Adam(0.1)
    w, g = tensors()
    with pytest.raises(error, match=words):
        optimizer(KEY, *change(w, g))
    assert same_bits(w, tensors()[0])
    assert same_bits(g, tensors()[1])
    assert (optimizer.mom1, optimizer.mom2, optimizer.averages, optimizer.nr_update) == (
        {},
        {},
        {},
        {},
    )
    g.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        optimizer(KEY, w, g)
    assert same_bits(w, tensors()[0])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"learn_rate": float("nan")}, ValueError, "^learn_rate, beta1, .* found \\(nan"),
        ({"grad_clip": -1.0}, ValueError, "a grad_clip of at least 0"),
        ({"beta1": 0.0}, NotImplementedError, "^beta2: expected 0 where beta1 is 0"),
        ({"L2": float("inf")}, ValueError, "expected finite numbers"),
    ],
)
def test_schedules_out_of_range_are_refused(arguments, error, words):
    optimizer = ours.Adam(**{"learn_rate": 0.1, **arguments})
    w, g = tensors()
    with pytest.raises(error, match=words):
        optimizer(KEY, w, g)
    assert same_bits(w, tensors()[0])
    assert optimizer.nr_update == {}


CONFIG = """
[optimizer]
@optimizers = "fastgd.Adam.v1"
L2 = 0.01
grad_clip = 0.5

[optimizer.learn_rate]
@schedules = "warmup_linear.v1"
initial_rate = 0.1
warmup_steps = 2
total_steps = 10

[other]
@optimizers = "fastgd.SGD.v1"
learn_rate = 0.2
"""


def test_a_config_names_them():
    made = registry.resolve(Config().from_str(CONFIG))
    assert isinstance(made["optimizer"], ours.Optimizer)
    assert isinstance(made["other"], theirs.Optimizer)  # which spaCy insists on
    named = registry.resolve(Config().from_str(CONFIG.replace("fastgd.", "")))
    for which in ("optimizer", "other"):
        w, v = tensors()[0], tensors()[0]
        for seed in range(1, 5):
            call(named[which], w, seed)
            call(made[which], v, seed)
        assert np.allclose(w, v, **CLOSE)


def test_thinc_finds_them_by_entry_points_alone(tmp_path):
    project = ROOT / "pyproject.toml"
    points = tomllib.loads(project.read_text())["project"]["entry-points"]["thinc_optimizers"]
    assert set(points) == {f"fastgd.{name}.v1" for name in ours.__all__ if name != "Optimizer"}
    # As an installation would write it, so that one that is out of date doesn't matter.
    info = tmp_path / "fastgd-9999.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fastgd\nVersion: 9999\n")
    lines = [f"{name} = {place}" for name, place in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[thinc_optimizers]", *lines]))
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
sys.path.append({str(project.parent)!r})
import thinc.api  # all of thinc's own names
from thinc.config import Config, registry
assert "fastgd" not in sys.modules
made = registry.resolve(Config().from_str({CONFIG!r}))
print(type(made["optimizer"]).__module__, type(made["other"]).__module__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout == "fastgd.thinc fastgd.thinc\n", done.stderr


def trained(optimizer):
    """A small network's accuracy on what it learned, and with averaged weights."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 4)).astype(np.float32)
    y = np.eye(2, dtype=np.float32)[(x[:, 0] * x[:, 1] > 0).astype(int)]
    api.fix_random_seed(0)
    model = api.chain(api.Relu(32), api.Softmax())
    model.initialize(x, y)
    for _ in range(40):
        for k in range(0, 300, 50):
            out, backprop = model.begin_update(x[k : k + 50])
            backprop(out - y[k : k + 50])
            model.finish_update(optimizer)
            optimizer.step_schedules()

    def accuracy():
        return float((model.predict(x).argmax(1) == y.argmax(1)).mean())

    with model.use_params(optimizer.averages):
        averaged = accuracy()
    return accuracy(), averaged, model


@pytest.mark.parametrize("kind", ["Adam", "RAdam", "SGD"])
def test_a_model_trains_to_the_same_accuracy(kind):
    arguments = {"learn_rate": 0.02 if kind == "SGD" else 0.01, "L2": 1e-3}
    a, b = pair(kind, {}, **arguments)
    (accuracy, averaged, model), (ours_, our_average, our_model) = trained(a), trained(b)
    assert accuracy > 0.9
    assert averaged > 0.9
    assert ours_ == pytest.approx(accuracy, abs=0.01)
    assert our_average == pytest.approx(averaged, abs=0.01)
    for node, other in zip(model.walk(), our_model.walk(), strict=True):
        for name in node.param_names:
            assert np.allclose(node.get_param(name), other.get_param(name), atol=0.02)
