"""What the gallery says of descents, measured by the very runs that its pictures are drawn from."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

plot = pytest.importorskip("fastgd.plot", reason="the extra `plot` is not installed")
from matplotlib.figure import Figure

import fastgd
from fastgd.commands.descents import adaptive, contestants
from fastgd.commands.figures import averaging, curves, depth, families, noise, rates, saddle, valley
from fastgd.optimizers import GENERAL


@pytest.fixture(autouse=True)
def one_blas_thread():
    """More would wait for each other on matrices this small."""
    with threadpool_limits(1, user_api="blas"):
        yield


def test_the_start_decides_where_a_descent_ends():
    result = curves.run()
    assert [path[-1, 0] for path in result.convex.paths] == pytest.approx([0] * 4, abs=1e-3)
    lowest, other = (known.point[0] for known in result.wells.surface.minima)
    ends = [path[-1, 0] for path in result.wells.paths]
    assert ends == pytest.approx([lowest, lowest, other, other], abs=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_smaller_batches_tremble_more(seed):
    batch, mini, single = noise.run(seed).descents.values()
    assert batch.vertical < mini.vertical < single.vertical
    assert batch.noise == pytest.approx(0, abs=1e-12)
    # Means of 32 independent samples have a √32 times smaller deviation.
    assert single.noise / mini.noise == pytest.approx(32**0.5, rel=0.3)
    assert [len(descent.path) for descent in (batch, mini, single)] == [151] * 3
    assert [d.seen[1] for d in (batch, mini, single)] == [569, 32, 1]
    assert max(d.losses[-20:].mean() for d in (batch, mini, single)) < 0.4 < batch.losses[0]


def test_bias_correction_is_exact_on_a_constant_series():
    result = averaging.run(np.full(50, 2.5))
    for beta in averaging.BETAS:
        assert result.corrected[beta] == pytest.approx(np.full(50, 2.5), rel=1e-14)
        assert result.biased[beta][0] == pytest.approx(2.5 * (1 - beta))
        assert (np.diff(result.biased[beta]) > 0).all()


def test_averages_of_a_training():
    result = averaging.run()
    assert len(result.series) == 1797 // 8
    half, ninety, most = (np.diff(result.corrected[beta]).std() for beta in averaging.BETAS)
    assert np.diff(result.series).std() > half > ninety > most, "the larger β, the smoother"
    assert all(series[0] == pytest.approx(result.series[0]) for series in result.corrected.values())


@pytest.mark.parametrize("seed", range(3))
def test_scaled_weights_keep_gradients_alive(seed):
    small, scaled, large = depth.run(seed, epochs=0).values()
    assert len(scaled.gradients) == depth.LAYERS == 30
    assert scaled.decades < 1
    assert small.decades > 6
    assert large.decades > 6
    assert small.gradients[0] < 1e-12 < small.gradients[-1]
    assert large.gradients[0] > 1e6 > large.gradients[-1]
    # The gradients of weights are even over layers, whatever their size.
    assert all(start.weights.max() < 10 * start.weights.min() for start in (small, scaled, large))


def test_only_scaled_weights_train():
    small, scaled, large = depth.run().values()
    assert scaled.losses[-20:].mean() < 1
    assert small.losses[-20:].mean() == pytest.approx(np.log(10), abs=0.01)
    assert (small.lost, scaled.lost) == (None, None)
    assert large.lost is not None
    assert large.lost < 10


def test_momentum_damps_the_oscillation():
    result = valley.run()
    assert valley.ratio(result.plain) > 3 * valley.ratio(result.momentum)
    assert valley.ratio(np.array([[0, 0], [1, 2], [2, 0]])) == 2
    # Along the valley it is as far, or farther.
    assert abs(result.momentum[-1, 0]) < abs(result.plain[-1, 0])


def test_effective_rates():
    result = rates.run()
    medians = {name: np.median(series, axis=1) for name, series in result.rates.items()}
    assert (np.diff(result.rates["AdaGrad"], axis=0) <= 0).all()
    assert medians["Adam"][-1] > 5 * medians["Adam"][0]
    assert medians["RMSProp"][0] == pytest.approx(10 * medians["Adam"][0])
    assert medians["RMSProp"][-1] == pytest.approx(medians["Adam"][-1], rel=0.05)
    # A first step of Adam's goes by α g/√ν = ±α.
    assert medians["Adam"][0] == pytest.approx(medians["AdaGrad"][0])


def test_adaptive_optimizers_leave_the_saddle():
    runs = saddle.escapes()
    assert list(runs) == list(contestants())
    assert len({tuple(escape.path[0]) for escape in runs.values()}) == 1
    assert runs["SGD"].left is None
    assert abs(runs["SGD"].path[-1, 1]) < 1e-3
    kinds = {name for name, escape in runs.items() if escape.adaptive}
    assert {"Adagrad", "RMSprop", "Adam", "AdamW"} <= kinds
    assert not kinds & {"SGD", "heavy ball", "Momentum"}
    for name in kinds:
        assert runs[name].left is not None, f"{name} stayed at the saddle"
        assert abs(runs[name].path[-1, 1]) > 0.9, f"{name} did not get to the minimum"


@pytest.mark.parametrize("name", contestants(GENERAL))
def test_what_is_adaptive_does_not_see_the_scale_of_a_gradient(name):
    make = contestants(GENERAL)[name]
    steps = []
    for scale in (1.0, 100.0):
        w = np.zeros(1)
        opt = make(w, lr=0.1)
        path = []
        for g in (1.0, 0.5, -0.25) * 4:
            opt.step(np.array([g * scale]))
            path.append(w[0])
        steps.append(path[-1] - path[6])  # some take plain momentum's steps at first
    ratio = steps[1] / steps[0]
    if name in ("MADGRAD", "NovoGrad"):  # by a cube root, and for whole tensors
        assert ratio < 10
    else:
        assert (ratio < 2) if adaptive(make) else (ratio == pytest.approx(100))


def test_families_are_measured():
    result = families.run(40)
    assert list(result) == list(contestants(GENERAL))
    assert families.kinds(result)[:2] == ["the rate given", "each weight's gradients"]
    assert result["LAMB"].family == result["LARS"].family == "norms of tensors"
    # The heavy ball and Momentum go the same way, at learning rates ten times apart.
    ball, momentum = result["heavy ball"], result["Momentum"]
    assert ball.valley == pytest.approx(momentum.valley)
    assert ball.saddle == momentum.saddle
    for key in ("valley", "saddle", "noise"):
        values = [getattr(result[name], key) for name in families.order(result, key)]
        assert values == sorted(values)
        assert 0 < values[0] < np.inf
    names = families.order(result, "saddle")
    with plot.style():
        axes = Figure().subplots()
        families.draw_saddle(axes, result)
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    assert sum(text.get_text() == "never" for text in axes.texts) == sum(
        one.saddle == np.inf for one in result.values()
    )
    assert names[0] in families.caption(result)


def test_noise_is_what_is_left_of_the_loss():
    """At a rate of 0 that of the start; by all samples at a good one next to nothing."""
    surface = families.logistic_regression()
    start = surface.value(np.array(surface.start)) - surface.minimum.value
    still = families.excess(
        lambda w, lr: fastgd.SGD(w, lr=0.0), surface, 8, lambda t, w: surface.gradient(w)
    )
    assert still == pytest.approx(start)
    moved = families.excess(fastgd.SGD, surface, 200, lambda t, w: surface.gradient(w))
    assert moved < 0.02 * start
