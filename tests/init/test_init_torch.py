"""torch.nn.init: the same standard deviations, fans and gains; torch's tensors filled in place."""

from __future__ import annotations

import numpy as np
import pytest

from fastgd import init
from fastgd.data import batches

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0")

SHAPES = [(300, 500), (500, 300), (120, 60, 3, 3), (90, 50, 5)]

# Ours with options, and torch's with the same meaning.
CASES = [
    pytest.param(ours, options, theirs, torch_options, id=f"{theirs}-{torch_options}")
    for kind in ("normal", "uniform")
    for ours, options, theirs, torch_options in [
        ("xavier", {"distribution": kind}, f"xavier_{kind}_", {}),
        ("xavier", {"distribution": kind, "gain": "tanh"}, f"xavier_{kind}_", {"gain": 5 / 3}),
        ("kaiming", {"distribution": kind}, f"kaiming_{kind}_", {}),
        (
            "kaiming",
            {"distribution": kind, "mode": "fan_out", "gain": init.calculate_gain("leaky_relu", 2)},
            f"kaiming_{kind}_",
            {"a": 2, "mode": "fan_out"},
        ),
        ("lecun", {"distribution": kind}, f"kaiming_{kind}_", {"nonlinearity": "linear"}),
    ]
]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("ours", "options", "theirs", "torch_options"), CASES)
def test_standard_deviations(ours, options, theirs, torch_options, shape):
    expected = getattr(torch.nn.init, theirs)(torch.empty(shape), **torch_options).numpy()
    w = getattr(init, ours)(shape, layout="out_in", seed=0, **options)
    tolerance = 5 / np.sqrt(w.size)  # of the difference of two, each within 1/√(2 size) or less
    assert w.std() == pytest.approx(expected.std(), rel=tolerance)
    if "uniform" in theirs:
        assert np.abs(w).max() == pytest.approx(np.abs(expected).max(), rel=1e-3)
    # Dense weights of the other layout are the transpose.
    if len(shape) == 2:
        w = getattr(init, ours)(shape[::-1], seed=0, **options)
        assert w.std() == pytest.approx(expected.std(), rel=tolerance)


@pytest.mark.parametrize("bounds", [(-2, 2), (-0.5, 1.5)])
def test_truncated_normal(bounds):
    a, b = (3 + 0.5 * z for z in bounds)
    expected = torch.nn.init.trunc_normal_(torch.empty(200_000), 3, 0.5, a, b).numpy()
    w = init.truncated_normal(200_000, mean=3, std=0.5, bounds=bounds, seed=0)
    assert w.std() == pytest.approx(expected.std(), rel=0.01)
    assert w.mean() == pytest.approx(expected.mean(), abs=0.01)


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (8, 2, 3)])
def test_orthogonal(shape):
    expected = torch.nn.init.orthogonal_(torch.empty(shape, dtype=torch.float64), gain=2).numpy()
    w = init.orthogonal(shape, np.float64, gain=2, layout="out_in", seed=0)
    for m in (w, expected):
        rows = m.reshape(shape[0], -1)
        product = rows @ rows.T if len(rows) <= len(rows.T) else rows.T @ rows
        assert np.allclose(product, 4 * np.eye(len(product)))


@pytest.mark.parametrize("shape", SHAPES)
def test_fans(shape):
    theirs = torch.nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))
    assert init.fans(shape, "out_in") == theirs


@pytest.mark.parametrize(
    "name",
    ["linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
     "conv_transpose3d", "sigmoid", "tanh", "relu", "leaky_relu", "selu"],
)  # fmt: skip
def test_gains(name):
    assert init.calculate_gain(name) == torch.nn.init.calculate_gain(name)


def test_gain_of_a_slope():
    theirs = torch.nn.init.calculate_gain("leaky_relu", 0.3)
    assert init.calculate_gain("leaky_relu", 0.3) == theirs


def test_tensors_are_filled_in_place():
    layer = torch.nn.Linear(30, 20)
    w = init.kaiming(out=layer.weight, layout="out_in", seed=0)
    assert np.array_equal(layer.weight.detach().numpy(), w)
    assert np.array_equal(w, init.kaiming((20, 30), layout="out_in", seed=0))


def test_batches_of_tensors():
    x = torch.arange(20.0).reshape(10, 2)
    y = torch.arange(10)
    for xb, yb in batches((x, y), 4, seed=0):
        assert isinstance(xb, np.ndarray)
        assert np.array_equal(xb, x.numpy()[yb])
