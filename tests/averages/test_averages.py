"""Exponentially weighted averages of series and of weights."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from support.helpers import same_bits

import fastgd
from fastgd.averages import EMA, Ewma, beta_of, ewma, window
from fastgd.kernels import reference

SHAPES = [((50,), 0), ((3, 40), 1), ((40, 3), 0), ((17, 30), -1), ((2, 20, 5), 1), ((9, 1), 0),
          ((1, 9), 1), ((0, 5), 1), ((5, 0), 1), ((8, 11), 1), ((16, 7), 1), ((9, 600), 1)]  # fmt: skip


def straight(x, beta, correct, axis):
    """The definition, in float64."""
    x = np.moveaxis(np.asarray(x, np.float64), axis, 0)
    out, v = np.empty_like(x), np.zeros(x.shape[1:])
    for t in range(len(x)):
        v = beta * v + (1 - beta) * x[t]
        out[t] = v / (1 - beta ** (t + 1)) if correct else v
    return np.moveaxis(out, 0, axis)


@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.98, 0.9999])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_the_definition(rng, shape, axis, beta, correct):
    x = rng.standard_normal(shape)
    averages, state = ewma(x, beta, correct, axis)
    np.testing.assert_allclose(averages, straight(x, beta, correct, axis), rtol=1e-10, atol=1e-13)
    assert state.value.shape == tuple(np.delete(shape, axis))
    single, _ = ewma(x.astype(np.float32), beta, correct, axis)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, averages, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_equals_the_reference_to_the_bit(rng, shape, axis, correct, dtype):
    x = rng.standard_normal(shape).astype(dtype)
    fast, state = ewma(x, 0.93, correct, axis)
    fastgd.set_backend("numpy")
    slow, expected = ewma(x, 0.93, correct, axis)
    assert same_bits(fast, slow)
    assert same_bits(state.value, expected.value)
    assert state.weight == expected.weight


def test_special_values_go_as_in_numpy():
    x = np.array([1.0, np.inf, 2.0, -np.inf, np.nan, 1.0, -0.0, 5e-324])
    blocks = np.stack([np.roll(x, k) for k in range(9)])
    fast, _ = ewma(blocks, 0.5)
    out = np.empty((9, 8, 1))
    reference.ewma(blocks[:, :, None], out, np.zeros((9, 1)), 0.0, 0.5, True)
    assert same_bits(fast, out[:, :, 0])


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.98, 0.999])
def test_equals_pandas_in_both_modes(rng, beta):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    x = rng.random((5000, 3)) + 0.5  # no zero crossings, where a relative error means little
    frame = pandas.DataFrame(x)
    adjusted = frame.ewm(alpha=1 - beta, adjust=True).mean().to_numpy()
    np.testing.assert_allclose(ewma(x, beta, axis=0)[0], adjusted, rtol=1e-12)
    plain = frame.ewm(alpha=1 - beta, adjust=False).mean().to_numpy()
    ours, _ = ewma(x, beta, bias_correction=False, axis=0, initial=x[0])
    np.testing.assert_allclose(ours, plain, rtol=1e-12)


@pytest.mark.parametrize("correct", [False, True])
def test_resumes_to_the_bit(rng, correct):
    x = rng.standard_normal((100, 4))
    whole, end = ewma(x, 0.95, correct, axis=0)
    first, state = ewma(x[:37], 0.95, correct, axis=0)
    second, last = ewma(x[37:], 0.95, correct, axis=0, state=state)
    assert same_bits(np.concatenate([first, second]), whole)
    assert same_bits(last.value, end.value)
    again, _ = ewma(x[37:], 0.95, correct, axis=0, state=state)
    assert same_bits(again, second), "the state is not used up"


def test_bias_correction_makes_a_constant_series_exact():
    np.testing.assert_allclose(ewma(np.full(100, 3.0), 0.98)[0], 3.0, rtol=1e-14)
    assert ewma(np.ones(1000), 0.98)[0].tolist() == [1.0] * 1000
    assert ewma(np.full(3, 3.0), 0.98, bias_correction=False)[0][0] == pytest.approx(0.06)


def test_layouts_and_out(rng):
    x = rng.standard_normal((6, 8, 10))
    expected, _ = ewma(x, 0.9, axis=1)
    for view in (np.asfortranarray(x), np.ascontiguousarray(x[::-1])[::-1], x.tolist()):
        assert same_bits(ewma(view, 0.9, axis=1)[0], expected)
    for out in (np.empty_like(x), np.empty(x.shape, order="F"), np.empty((6, 8, 20))[..., ::2]):
        result, _ = ewma(x, 0.9, axis=1, out=out)
        assert result is out
        assert same_bits(out, expected)
    inplace = x.copy()
    ewma(inplace, 0.9, axis=1, out=inplace)
    assert same_bits(inplace, expected)
    shared = np.zeros(110)
    shared[:100] = rng.standard_normal(100)
    wanted, _ = ewma(shared[:100].copy(), 0.9)
    ewma(shared[:100], 0.9, out=shared[10:])
    assert same_bits(shared[10:], wanted)
    assert ewma([1, 2, 3], 0.5)[0].dtype == np.float64


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"beta": 1.0}, ValueError, "^beta: expected a number from 0 to below 1"),
        ({"beta": np.nan}, ValueError, "^beta"),
        ({"x": np.zeros(3, complex)}, TypeError, "^x: expected dtype float32 or float64"),
        ({"x": 3.0}, ValueError, "^x: expected at least one dimension"),
        ({"axis": 2}, ValueError, "axis 2 is out of bounds"),
        ({"out": np.zeros(4)}, ValueError, r"^out: expected shape \(3,\) as x"),
        ({"out": np.zeros(3, np.float32)}, TypeError, "^out: expected dtype float64"),
        ({"out": [0, 0, 0]}, TypeError, "^out: expected an array, found list"),
        ({"out": np.broadcast_to(0.0, 3)}, ValueError, "^out: expected a writeable"),
        ({"state": 3}, TypeError, "^state: expected an Ewma"),
        ({"state": Ewma(np.zeros(2), 0.0)}, ValueError, r"^state: expected series of shape \(\)"),
        ({"state": Ewma(np.zeros(()), 0.0), "initial": 0}, ValueError, "^initial excludes state"),
        ({"initial": 1.0}, ValueError, "^initial excludes bias_correction"),
        ({"initial": [1, 2], "bias_correction": False}, ValueError, "^initial: expected shape"),
        ({"bias_correction": 1}, TypeError, "^bias_correction: expected True or False"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        ewma(**{"x": np.zeros(3), "beta": 0.9, **arguments})


def test_windows():
    assert window(0.9) == pytest.approx(10)
    for beta in (0.0, 0.5, 0.98):
        assert beta_of(window(beta)) == pytest.approx(beta)
    with pytest.raises(ValueError, match="window: expected a number of at least 1"):
        beta_of(0.5)
    with pytest.raises(ValueError, match="beta"):
        window(1.0)


# --------------------------------------------------------------------------------- of weights


def model(dtype=np.float64):
    rng = np.random.default_rng(1)
    return {"W": rng.standard_normal((30, 20)).astype(dtype), "l": [np.ones(5, dtype)]}


def walk(params, ema, steps, seed=2):
    rng = np.random.default_rng(seed)
    path = []
    for _ in range(steps):
        params["W"] += rng.standard_normal((30, 20)).astype(params["W"].dtype)
        path.append(params["W"].copy())
        ema.update()
    return np.array(path)


def test_bias_corrected_is_the_average_so_far():
    params = model()
    ema = EMA(params, decay=0.9)
    path = walk(params, ema, 12)
    expected, _ = ewma(path, 0.9, axis=0)
    np.testing.assert_allclose(ema.averages["W"], expected[-1], rtol=1e-12)
    assert ema.averages["l.0"].tolist() == pytest.approx([1] * 5)
    assert ema.step == 12


def test_from_the_first_weights():
    params = model()
    start = params["W"].copy()
    ema = EMA(params, decay=0.9, bias_correction=False)
    path = walk(params, ema, 12)
    expected, _ = ewma(path, 0.9, bias_correction=False, axis=0, initial=start)
    np.testing.assert_allclose(ema.averages["W"], expected[-1], rtol=1e-12)


def test_warmup():
    params = model()
    start = params["W"].copy()
    ema = EMA(params, decay=0.5, bias_correction=False, warmup=True)
    path = walk(params, ema, 6)
    for t, w in enumerate(path, 1):
        beta = min(0.5, (1 + t) / (10 + t))
        start = beta * start + (1 - beta) * w
    np.testing.assert_allclose(ema.averages["W"], start, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_the_numpy_backend(dtype):
    results = []
    for backend in (*fastgd.available_backends(), "numpy"):
        fastgd.set_backend(backend)
        params = model(dtype)
        ema = EMA(params, decay=0.97)
        walk(params, ema, 5)
        results.append(ema.averages["W"])
    assert all(same_bits(r, results[-1]) for r in results)


def test_swapped_restores_even_on_an_exception():
    params = model()
    ema = EMA(params, decay=0.9)
    with pytest.raises(ValueError, match="at least one update"), ema.swapped():
        pass
    walk(params, ema, 3)
    before, average = params["W"].copy(), ema.averages["W"].copy()
    with pytest.raises(ZeroDivisionError), ema.swapped():
        assert same_bits(params["W"], average)
        with pytest.raises(RuntimeError, match="are swapped in for the weights"):
            ema.update()
        with pytest.raises(RuntimeError, match="are swapped in for the weights"), ema.swapped():
            pass
        params["W"][...] = 7
        1 / 0  # noqa: B018
    assert same_bits(params["W"], before)
    assert same_bits(ema.averages["W"], average)
    ema.update()


def test_state_dicts_copies_and_pickles():
    params = model()
    ema = EMA(params, decay=0.9)
    walk(params, ema, 3)
    state = ema.state_dict()
    others = [EMA(model(), decay=0.9), copy.deepcopy(ema), pickle.loads(pickle.dumps(ema))]
    others[0].load_state_dict(state)
    walk(params, ema, 1, seed=5)
    assert state["step"] == 3
    for other in others:
        own = other._params[0]
        own[...] = params["W"]
        other.update()
        assert same_bits(other.averages["W"], ema.averages["W"])
    for bad, error in (
        (None, ValueError),
        ({"step": -1, "averages": state["averages"]}, ValueError),
        ({"step": 1.5, "averages": state["averages"]}, ValueError),
        ({"step": 1, "averages": {"W": np.zeros(2)}}, ValueError),
        ({"step": 1, "averages": {**state["averages"], "W": np.zeros(2)}}, ValueError),
        ({"step": 1, "averages": {**state["averages"], "W": 3}}, TypeError),
    ):
        kept = ema.state_dict()
        with pytest.raises(error, match="expected"):
            ema.load_state_dict(bad)
        assert ema.step == kept["step"]
        assert same_bits(ema.averages["W"], kept["averages"]["W"])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"params": []}, ValueError, "params: expected at least one"),
        ({"params": [np.zeros(2, int)]}, TypeError, r"params\[0\]: expected dtype"),
        ({"decay": 1.0}, ValueError, "decay: expected"),
        ({"warmup": True}, ValueError, "warmup excludes bias_correction"),
        ({"bias_correction": None}, TypeError, "bias_correction: expected True or False"),
    ],
)
def test_bad_input_of_ema(arguments, error, message):
    with pytest.raises(error, match=message):
        EMA(**{"params": [np.zeros(2)], **arguments})


def test_weights_that_moved_are_refused():
    p = np.zeros(3)
    ema = EMA([p])
    p.resize(5, refcheck=False)
    with pytest.raises(ValueError, match="given another dtype, shape or memory"):
        ema.update()
