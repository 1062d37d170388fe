"""Exponentially weighted averages of series and of weights."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from support.helpers import same_bits

import fastgd
from fastgd.averages import EMA, Ewma, beta_of, beta_of_half_life, ewma, window
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
@pytest.mark.parametrize("shape", [(400_000,), (9, 50_000), (50_000, 2)])
def test_a_level_stays_where_it_is(rng, shape, correct):
    axis = int(np.argmax(shape))
    x = (1.5 + 0.1 * rng.standard_normal(shape)).astype(np.float32)
    start = None if correct else np.take(x, 0, axis)
    found, _ = ewma(x, 0.9999, correct, axis, initial=start)
    exact, _ = ewma(x.astype(np.float64), 0.9999, correct, axis, initial=start)
    assert np.abs(found - exact).max() < 1e-6
    level, _ = ewma(np.full(shape, 1.5, np.float32), 0.99999, axis=axis)
    assert np.all(level == 1.5)


# pandas takes α = 0.5 for a sign of irregular times where adjust is False and places count.
OBSERVED = [1.0, np.nan, 5.0, np.nan, np.nan, 2.0, 2.0, np.nan]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("ignore_na", [False, True])
@pytest.mark.parametrize("adjust", [False, True])
def test_what_is_missing_is_left_out_as_in_pandas(rng, adjust, ignore_na, timed, dtype):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    x = rng.standard_normal((8, 60)) + 3
    x[rng.random(x.shape) < 0.4] = np.nan
    x[0, :8], x[1, :5], x[2] = OBSERVED, np.nan, np.nan
    x = x.astype(dtype)
    frame = pandas.DataFrame(x.T.astype(np.float64))
    ours = {"bias_correction": adjust, "initial": None if adjust else np.nan}
    days = np.cumsum(rng.integers(1, 9, 60))
    if timed:
        if ignore_na:
            with pytest.raises(ValueError, match="^times excludes ignore_na"):
                ewma(x, 0.9, ignore_na=True, times=days)
            return
        given = {"halflife": "3 days", "times": pandas.to_datetime(days, unit="D")}
        beta, ours = beta_of_half_life(3), {**ours, "times": days}
    else:
        given, beta, ours = {"alpha": 0.3}, 0.7, {**ours, "ignore_na": ignore_na}
    right = frame.ewm(adjust=adjust, ignore_na=ignore_na, **given).mean().to_numpy().T
    rtol = 1e-12 if dtype == np.float64 else 1e-6
    for shaped, axis in ((x, 1), (np.ascontiguousarray(x.T), 0)):
        found, _ = ewma(shaped, beta, axis=axis, **ours)
        np.testing.assert_allclose(found if axis else found.T, right, rtol=rtol)
    found, _ = ewma(x, beta, **ours)
    fastgd.set_backend("numpy")
    assert same_bits(ewma(x, beta, **ours)[0], found)
    first = {key: value[:23] if key == "times" else value for key, value in ours.items()}
    then = {key: value[23:] if key == "times" else value for key, value in ours.items()}
    then.pop("initial")
    one, state = ewma(x[:, :23], beta, **first)
    two, _ = ewma(x[:, 23:], beta, **then, state=state)
    assert same_bits(np.concatenate([one, two], 1), found)


def test_the_four_ways_to_leave_out_one_value():
    x, found = [1.0, np.nan, 5.0], []
    for start in (np.nan, None):
        for ignore_na in (False, True):
            averages, _ = ewma(x, 0.5, start is None, initial=start, ignore_na=ignore_na)
            found.append(averages[-1])
    np.testing.assert_allclose(found, [11 / 3, 3, 4.2, 11 / 3], rtol=1e-15)
    assert np.isnan(ewma(x, 0.5)[0][1:]).all()


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
        ({"ignore_na": 1}, TypeError, "^ignore_na: expected True or False"),
        ({"times": [1, 2]}, ValueError, r"^times: expected shape \(3,\) as the series"),
        ({"times": [1, 3, 2]}, ValueError, "^times: expected numbers that don't decrease"),
        ({"times": [1, np.nan, 2]}, ValueError, "^times: expected numbers that don't decrease"),
        ({"times": "noon"}, TypeError, "^times: expected an array of numbers, found 'noon'"),
        ({"state": Ewma(np.zeros(()), 0.0), "ignore_na": True}, ValueError, "^state: expected one"),
        ({"state": Ewma(np.zeros(()), np.ones(()))}, ValueError, "^state: expected one of a call"),
        (
            {"state": Ewma(np.zeros(()), np.ones(())), "times": [1, 2, 3]},
            ValueError,
            "^state: expected one of a call with times",
        ),
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


@pytest.mark.parametrize("decay", [0.97, 0.5, 0.3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_the_numpy_backend(dtype, decay):
    results = []
    for backend in (*fastgd.available_backends(), "numpy"):
        fastgd.set_backend(backend)
        params = model(dtype)
        ema = EMA(params, decay=decay)
        walk(params, ema, 5)
        results.append(ema.averages["W"])
    assert all(same_bits(r, results[-1]) for r in results)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_half_and_half_rounds_as_in_numpy(dtype, rng):
    """With β = ½ either of the two forms may be meant, whose roundings differ."""
    before, after = (10 ** rng.uniform(-8, 8, (2, 300))).astype(dtype)
    half = dtype(0.5)
    form, other = after + half * (before - after), before + half * (after - before)
    assert not same_bits(form, other)
    for backend in (*fastgd.available_backends(), "numpy"):
        fastgd.set_backend(backend)
        params = [before.copy()]
        ema = EMA(params, decay=0.5, bias_correction=False)
        params[0][:] = after
        ema.update()
        assert same_bits(ema.averages[0], form)


@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("decay", [0.9999, 0.99999])
def test_a_level_of_weights_stays_where_it_is(decay, correct):
    p = np.full(300, 1.5, np.float32)
    ema = EMA(p, decay, bias_correction=correct)
    moving = fastgd.SGD(p, average=EMA(p, decay, bias_correction=correct), lr=1.0)
    still = np.zeros_like(p)
    for k in range(40_000):
        p[...] = 1.6 if k % 2 else 1.4
        moving.step(still)
        ema.update()
    for average in (ema, moving.average):
        (values,) = average.averages.values()
        # The last weight moved it by half of that.
        assert np.abs(values - 1.5).max() < 0.1 * (1 - decay) / 2 + 2e-6
    follows = EMA(p, 0.0, bias_correction=False)
    p[...] = np.linspace(-1e8, 1, 300)
    follows.update()
    assert np.array_equal(*follows.averages.values(), p)  # the weights themselves


@pytest.mark.parametrize("beta", [0.99, 0.999])
def test_states_keep_torchs_bits_and_level(beta):
    """What is averaged within rules is torch's to the bit, and level but for how β is rounded."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    p, g = np.ones(20, np.float32), np.linspace(0.5, 2, 20, dtype=np.float32)
    theirs = torch.nn.Parameter(torch.ones(20))
    theirs.grad = torch.from_numpy(g.copy())
    ours, other = fastgd.RMSprop(p, alpha=beta), torch.optim.RMSprop([theirs], alpha=beta)
    for _ in range(int(20 / (1 - beta))):
        ours.step(g)
        other.step()
    state = next(iter(ours.state.values()))["square_avg"]
    assert same_bits(state, other.state[theirs]["square_avg"].numpy())
    assert np.abs(state / g**2 - 1).max() < {0.99: 1.5e-5, 0.999: 1.5e-4}[beta]


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
