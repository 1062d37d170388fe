"""Initial weights: the distributions they claim, drawn in their own dtype, in any array."""

from __future__ import annotations

import inspect
import math
import re

import numpy as np
import pytest

from fastgd import init
from fastgd.init import draws

F32, F64 = np.float32, np.float64
DENSE, CONV = (80, 500), (3, 3, 40, 60)  # in, out; kernel, in, out

# Every function of the module that fills weights, with what it needs beside a shape.
FILLERS = {
    "scaled": {"a": 1.5},
    "lecun": {},
    "xavier": {},
    "kaiming": {},
    "truncated_normal": {},
    "orthogonal": {},
    "constant": {"value": 2.5},
}
RANDOM = [name for name in FILLERS if name != "constant"]
DISTRIBUTIONS = ("normal", "uniform", "truncated_normal")

# The rule's instances: their factor, and what n is.
INSTANCES = {"lecun": (1.0, "fan_in"), "xavier": (1.0, "fan_avg"), "kaiming": (2**0.5, "fan_in")}


def fill(name, shape=None, dtype=None, **options):
    return getattr(init, name)(shape, dtype, **{**FILLERS[name], **options})


def cdf(distribution, x):
    """The distribution function of the values, of standard deviation 1."""
    phi = np.vectorize(lambda t: (1 + math.erf(t / math.sqrt(2))) / 2)
    if distribution == "normal":
        return phi(x)
    if distribution == "uniform":
        return np.clip((x / math.sqrt(3) + 1) / 2, 0, 1)
    low, high = phi(-2.0), phi(2.0)
    return np.clip((phi(0.87962566 * x) - low) / (high - low), 0, 1)


def kolmogorov_smirnov(values, distribution):
    """Whether values have that distribution: one sample in a thousand that does is refused."""
    x = np.sort(values.ravel().astype(F64))
    steps = np.arange(len(x) + 1) / len(x)
    f = cdf(distribution, x)
    distance = max(np.max(steps[1:] - f), np.max(f - steps[:-1]))
    return distance < 1.95 / math.sqrt(len(x))


# -------------------------------------------------------------------------------- distributions


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg"])
@pytest.mark.parametrize("shape", [DENSE, CONV])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_scaled(distribution, shape, mode, dtype):
    fan_in, fan_out = (80, 500) if shape == DENSE else (9 * 40, 9 * 60)
    n = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
    std = 1.7 / math.sqrt(n)
    w = init.scaled(shape, dtype, a=1.7, mode=mode, distribution=distribution, seed=1)
    assert (w.shape, w.dtype) == (shape, dtype)
    z = w.astype(F64).ravel() / std
    assert abs(z.mean()) < 4 / math.sqrt(z.size)
    assert z.var() == pytest.approx(1, abs=4 * math.sqrt(2 / z.size))
    assert kolmogorov_smirnov(z, distribution)
    others = set(DISTRIBUTIONS) - {distribution}
    assert not any(kolmogorov_smirnov(z, other) for other in others), "the test can tell"
    bound = {"normal": 6, "uniform": math.sqrt(3), "truncated_normal": 2 / 0.87962566}[distribution]
    assert 0.99 * min(bound, 3.5) < np.abs(z).max() <= bound * (1 + 1e-6)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("name", INSTANCES)
def test_instances_are_the_rule(name, distribution):
    a, mode = INSTANCES[name]
    shape = (60, 40, 3, 3)
    options = {"distribution": distribution, "layout": "out_in", "seed": 3}
    expected = init.scaled(shape, a=a, mode=mode, **options)
    assert np.array_equal(fill(name, shape, **options), expected)
    expected = init.scaled(shape, a=5 / 3, mode="fan_out", **options)
    assert np.array_equal(fill(name, shape, gain="tanh", mode="fan_out", **options), expected)
    assert (init.glorot, init.he) == (init.xavier, init.kaiming)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("bounds", [(-2, 2), (-0.5, 3), (0.5, 1.0), (1, np.float32(4)), (-9, 9)])
def test_truncated_normal(bounds, dtype):
    mean, std = 3.0, 0.5
    w = init.truncated_normal(40_000, dtype, mean=mean, std=std, bounds=bounds, seed=0)
    assert w.dtype == dtype
    low, high = map(float, bounds)
    z = (w.astype(F64) - mean) / std
    assert low - 1e-6 <= z.min() <= z.max() <= high + 1e-6
    phi = [math.exp(-(t**2) / 2) / math.sqrt(2 * math.pi) for t in (low, high)]
    mass = cdf("normal", high) - cdf("normal", low)
    shift = (phi[0] - phi[1]) / mass
    var = 1 + (low * phi[0] - high * phi[1]) / mass - shift**2
    assert z.mean() == pytest.approx(shift, abs=4 * math.sqrt(var / z.size))
    assert z.var() == pytest.approx(var, rel=0.03)
    x = np.sort(z)
    f = np.clip((cdf("normal", x) - cdf("normal", low)) / mass, 0, 1)
    assert np.abs(np.arange(len(x)) / len(x) - f).max() < 1.95 / math.sqrt(len(x))


def test_what_truncation_at_two_narrows_to():
    density = math.exp(-2.0) / math.sqrt(2 * math.pi)
    variance = 1 - 4 * density / math.erf(math.sqrt(2))
    assert pytest.approx(math.sqrt(variance), rel=1e-15) == draws.NARROWED


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(
    ("layout", "shape", "matrix"),
    [
        ("in_out", (30, 20), (30, 20)),
        ("in_out", (20, 30), (20, 30)),
        ("in_out", (3, 3, 4, 30), (36, 30)),
        ("out_in", (30, 4, 3, 3), (30, 36)),
        ("out_in", (50, 4, 3, 3), (50, 36)),
        ("in_out", (1, 7), (1, 7)),
    ],
)
def test_orthogonal(layout, shape, matrix, dtype):
    w = init.orthogonal(shape, dtype, gain=3.0, layout=layout, seed=0)
    assert (w.shape, w.dtype) == (shape, dtype)
    m = w.reshape(matrix).astype(F64) / 3
    product = m.T @ m if matrix[0] >= matrix[1] else m @ m.T
    assert np.abs(product - np.eye(min(matrix))).max() < (1e-5 if dtype == F32 else 1e-13)


def test_orthogonal_is_uniform():
    rng = np.random.default_rng(0)
    angles = np.empty(4000)
    signs = np.empty(4000)
    for k in range(4000):
        q = init.orthogonal((2, 2), F64, seed=rng)
        angles[k] = math.atan2(q[1, 0], q[0, 0]) / math.pi  # from -1 to 1
        signs[k] = np.linalg.det(q)
    assert kolmogorov_smirnov(angles * math.sqrt(3), "uniform")
    assert abs(signs.mean()) < 4 / math.sqrt(4000)
    assert init.orthogonal((0, 5), seed=0).shape == (0, 5)
    assert init.orthogonal((5, 0), seed=0).shape == (5, 0)


def test_constant():
    w = init.constant((2, 3), value=-1.5)
    assert w.dtype == F32
    assert (w == -1.5).all()
    assert init.constant((), F64, value=2).shape == ()
    assert init.constant(4, value=0).tolist() == [0, 0, 0, 0]


@pytest.mark.slow
def test_signals_keep_their_size_through_relu_layers(rng):
    x = rng.standard_normal((64, 256))
    for _ in range(30):
        x = np.maximum(x @ init.kaiming((256, 256), F64, seed=rng), 0)
    assert 0.1 < np.sqrt(np.mean(x**2)) < 10


# ------------------------------------------------------------------------- seeds, dtypes, arrays


@pytest.mark.slow
@pytest.mark.parametrize("name", RANDOM)
def test_seeds(name):
    a, b = (fill(name, DENSE, seed=seed) for seed in (5, np.random.default_rng(5)))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, fill(name, DENSE, seed=6))
    assert not np.array_equal(fill(name, DENSE), fill(name, DENSE))
    rng = np.random.default_rng(5)
    assert not np.array_equal(fill(name, DENSE, seed=rng), fill(name, DENSE, seed=rng))


def test_float32_is_drawn_as_float32():
    std = F32(1.5 / math.sqrt(80))
    drawn = np.random.default_rng(0).standard_normal(DENSE, F32) * std
    assert np.array_equal(init.scaled(DENSE, a=1.5, seed=0), drawn)
    wide = init.scaled(DENSE, F64, a=1.5, seed=0)
    assert not np.allclose(drawn, wide), "which takes other numbers from the generator"


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("name", FILLERS)
def test_out(name, dtype, order):
    seed = {"seed": 2} if name in RANDOM else {}
    out = np.full((30, 20), np.nan, dtype, order=order)
    assert fill(name, out=out, **seed) is out
    assert np.array_equal(out, fill(name, (30, 20), dtype, **seed)), "the same in any memory order"


@pytest.mark.parametrize("name", FILLERS)
def test_all_functions_are_tested_and_take_the_same_arguments(name):
    public = set(init.__all__) - {"fans", "calculate_gain", "glorot", "he"}
    assert public == set(FILLERS)
    arguments = list(inspect.signature(getattr(init, name)).parameters)
    assert arguments[:2] == ["shape", "dtype"]
    assert arguments[-1] == "out"
    assert "seed" in arguments or name == "constant"
    assert fill(name, (4, 3)).dtype == F32


# --------------------------------------------------------------------------------- fans and gains


def test_fans():
    assert init.fans((5, 7)) == (5, 7)
    assert init.fans((5, 7), "out_in") == (7, 5)
    assert init.fans((2, 3, 5, 7)) == (30, 42)
    assert init.fans((7, 5, 2, 3), "out_in") == (30, 42)
    assert init.fans([np.int64(4), 0]) == (4, 0)


def test_gains():
    gain = init.calculate_gain
    assert gain("linear") == gain("conv2d") == gain("sigmoid") == 1
    assert gain("tanh") == 5 / 3
    assert gain("relu") == gain("leaky_relu", 0) == math.sqrt(2)
    assert gain("selu") == 0.75
    assert gain("leaky_relu") == gain("leaky_relu", 0.01) == math.sqrt(2 / 1.0001)


# ------------------------------------------------------------------------------------- bad input


def frozen():
    a = np.zeros((3, 4), F32)
    a.flags.writeable = False
    return a


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, TypeError, "shape: expected a shape, or an array as out, found neither"),
        ({"shape": (2, 3), "out": np.zeros((2, 3))}, TypeError, "out excludes shape and dtype"),
        ({"dtype": F64, "out": np.zeros((2, 3))}, TypeError, "out excludes shape and dtype"),
        ({"shape": (2, 3.0)}, TypeError, "shape[1]: expected an integer, found 3.0"),
        ({"shape": (-2, 3)}, ValueError, "shape[0]: expected an integer of at least 0, found -2"),
        ({"shape": "23"}, TypeError, "shape: expected an integer, found '23'"),
        ({"shape": (2, 3), "dtype": int}, TypeError, "dtype: expected float32 or float64, found"),
        ({"shape": (2, 3), "dtype": "f2"}, TypeError, "dtype: expected float32 or float64, found"),
        ({"shape": (2, 3), "dtype": ">f4"}, TypeError, "dtype: expected float32 or float64, found"),
        (
            {"shape": (2, 3), "dtype": "soft"},
            TypeError,
            "dtype: expected float32 or float64, found",
        ),
        ({"out": [1.0, 2.0]}, TypeError, "out: expected an array, found builtins.list"),
        ({"out": np.zeros((3, 4), int)}, TypeError, "out: expected dtype float32 or float64"),
        ({"out": np.zeros((3, 8))[:, ::2]}, ValueError, "out: expected contiguous memory"),
        ({"out": frozen()}, ValueError, "out: expected a writeable array, found a read-only one"),
    ],
)
@pytest.mark.parametrize("name", FILLERS)
def test_bad_arrays(name, arguments, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        fill(name, **arguments)


SCALED = ["scaled", "lecun", "xavier", "kaiming"]
GAIN = ["lecun", "xavier", "kaiming", "orthogonal"]


@pytest.mark.parametrize(
    ("names", "options", "error", "message"),
    [
        (RANDOM, {"seed": -1}, ValueError, "seed: expected an integer of at least 0, found -1"),
        (RANDOM, {"seed": "x"}, TypeError, "seed: expected an integer, a numpy.random.Generator"),
        (SCALED, {"mode": "fan"}, ValueError, "mode: expected one of fan_in, fan_out, fan_avg"),
        (SCALED, {"mode": 1}, TypeError, "mode: expected a str, found 1"),
        (SCALED, {"distribution": "gauss"}, ValueError, "distribution: expected one of normal"),
        (
            [*SCALED, "orthogonal"],
            {"layout": "HWIO"},
            ValueError,
            "layout: expected one of in_out, out_in, found 'HWIO'",
        ),
        (["scaled"], {"a": -1}, ValueError, "a: expected a number of at least 0, found -1"),
        (["scaled"], {"a": "softplus"}, ValueError, "a: expected one of linear"),
        (GAIN, {"gain": -0.5}, ValueError, "gain: expected a number of at least 0, found -0.5"),
        (GAIN, {"gain": None}, TypeError, "gain: expected a number, found None"),
        (GAIN, {"gain": "softplus"}, ValueError, "gain: expected one of linear, sigmoid"),
        (["constant"], {"value": "1"}, TypeError, "value: expected a number, found '1'"),
        (["constant"], {"value": math.nan}, ValueError, "value: expected a finite number"),
        (["truncated_normal"], {"std": -1}, ValueError, "std: expected a number of at least 0"),
        (["truncated_normal"], {"mean": "0"}, TypeError, "mean: expected a number, found '0'"),
        (["truncated_normal"], {"bounds": 2}, TypeError, "bounds: expected two numbers, found 2"),
        (["truncated_normal"], {"bounds": (1, 2, 3)}, TypeError, "bounds: expected two numbers"),
        (["truncated_normal"], {"bounds": (0, "x")}, TypeError, "bounds[1]: expected a number"),
        (["truncated_normal"], {"bounds": (2, -2)}, ValueError, "bounds: expected the lower one"),
        (["truncated_normal"], {"bounds": (5, 9)}, ValueError, "bounds: expected 1% or more"),
    ],
)
def test_bad_options_change_nothing(names, options, error, message):
    for name in names:
        out = np.full((4, 3), 7.0)
        rng = np.random.default_rng(0)
        given = options if "seed" in options or name == "constant" else {**options, "seed": rng}
        with pytest.raises(error, match=f"^{re.escape(message)}"):
            fill(name, out=out, **given)
        assert (out == 7).all()
        assert rng.random() == np.random.default_rng(0).random()


@pytest.mark.parametrize("name", [*SCALED, "orthogonal"])
@pytest.mark.parametrize("shape", [5, (), (5,)])
def test_weights_have_inputs_and_outputs(name, shape):
    with pytest.raises(ValueError, match="^shape: expected inputs and outputs, at least 2-D"):
        fill(name, shape)


def test_no_fan():
    with pytest.raises(ValueError, match="^shape: expected a fan_in of at least 1, found 0 in"):
        init.lecun((0, 4))
    assert init.lecun((4, 0)).shape == (4, 0)


def test_bad_gains():
    with pytest.raises(ValueError, match="^nonlinearity: expected one of linear, .*'swish'"):
        init.calculate_gain("swish")
    with pytest.raises(TypeError, match="^nonlinearity: expected a str, found 2"):
        init.calculate_gain(2)
    with pytest.raises(TypeError, match="^param: expected None for relu, found 0.1"):
        init.calculate_gain("relu", 0.1)
    with pytest.raises(TypeError, match="^param: expected a number, found 'x'"):
        init.calculate_gain("leaky_relu", "x")


def test_groups_and_given_fans():
    assert init.fans((4, 1, 3, 3), "out_in", groups=4) == (9, 9)
    assert init.fans((3, 3, 2, 8), groups=2) == (18, 36)
    for maker in (init.scaled, init.lecun, init.xavier, init.kaiming):
        given = {"a": 1.0} if maker is init.scaled else {}
        whole = maker((8, 2, 3, 3), mode="fan_out", layout="out_in", seed=0, **given)
        in_groups = maker((8, 2, 3, 3), mode="fan_out", layout="out_in", groups=4, seed=0, **given)
        np.testing.assert_allclose(in_groups, 2 * whole, rtol=1e-6)
        told = maker((8, 2, 3, 3), mode="fan_out", fans=(18, 18), seed=0, **given)
        assert np.array_equal(told, in_groups)
        assert maker((5,), fans=(4, 9), seed=0, **given).shape == (5,)  # of any shape
    for bad, error, words in (
        ({"groups": 3}, ValueError, "^groups: expected a divisor of the 4 outputs, found 3"),
        ({"groups": 0}, ValueError, "^groups: "),
        ({"groups": 1.5}, TypeError, "^groups: "),
        ({"fans": 3}, TypeError, "^fans: expected two numbers"),
        ({"fans": (3, -1)}, ValueError, r"^fans\[1\]: "),
        ({"fans": (0, 1)}, ValueError, "fan_in of at least 1, found 0"),
    ):
        with pytest.raises(error, match=words):
            init.lecun((4, 1, 3, 3), layout="out_in", **bad)
