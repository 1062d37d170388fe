"""What users of other libraries reported there, tried here: each with its source and the outcome.

"sound" was so when it was tried; "mended" was not.  Kinds are told apart by what they need: arrays
alone, torch, SciPy, scikit-learn or pandas.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import NamedTuple

import numpy as np
import pytest

import fastgd
from fastgd.averages import EMA, ewma
from fastgd.schedules import Cosine, CosineRestarts, Linear, OneCycle, Polynomial


class Report(NamedTuple):
    """A public report: where it is, what was tried, what came of it."""

    source: str
    tried: str
    outcome: str
    check: object


REPORTS: list[Report] = []


def report(source, outcome, *needs):
    """Enter a function, whose docstring says what was tried; its arguments are modules."""

    def enter(check):
        REPORTS.append(Report(source, inspect.getdoc(check), outcome, (check, needs)))
        return check

    return enter


def parameter(torch, *shape):
    p = torch.nn.Parameter(torch.ones(shape or (3,)))
    p.grad = torch.ones_like(p)
    return p


# ------------------------------------------------------------------------- steps and their counts


@report("pytorch/pytorch#74424", "sound", "torch", "fastgd.torch")
def _(torch, ours):
    """A step count loaded in any form, number or tensor of any dtype, goes on from there."""
    p = parameter(torch)
    opt = ours.Adam([p])
    for _ in range(300):
        opt.step()
    state = opt.state_dict()
    forms = [300, 300.0, *(torch.tensor(300, dtype=t) for t in (torch.int64, torch.float64))]
    for step in forms:
        state["state"][0]["step"] = step
        again = ours.Adam([q := parameter(torch)])
        again.load_state_dict(state)
        again.step()
        assert float(again.state[q]["step"]) == 301


@report("pytorch/pytorch#110940", "sound", "torch", "fastgd.torch")
def _(torch, ours):
    """Adam steps under a default dtype of float64, as it does without."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        opt = ours.Adam([p := parameter(torch)])
        opt.step()
    finally:
        torch.set_default_dtype(before)
    assert p.dtype == torch.float64
    assert opt.state[p]["step"].dtype == torch.float32


@report("pytorch/pytorch#2647", "sound", "torch", "fastgd.torch")
def _(torch, ours):
    """The state dict of an optimizer that has taken no step is loaded."""
    opt = ours.Adam([p := parameter(torch)])
    opt.load_state_dict(ours.Adam([parameter(torch)]).state_dict())
    opt.step()
    assert float(opt.state[p]["step"]) == 1


@report("pytorch/pytorch#50366", "sound", "torch", "fastgd.torch")
def _(torch, ours):
    """A closure that returns None, and leaves no gradients, leaves parameters."""
    p = torch.nn.Parameter(torch.ones(3))
    assert ours.SGD([p]).step(lambda: None) is None
    assert torch.equal(p.detach(), torch.ones(3))


# ------------------------------------------------------------------------------------------ groups


@report("allenai/allennlp#4981", "mended")
def _():
    """A group without parameters, as regular expressions leave one over, is a group."""
    p = np.ones(3)
    opt = fastgd.Adam([{"params": []}, {"params": [p], "lr": 0.5}, {"params": {}}], lr=0.1)
    opt.step([[], [np.ones(3)], {}])
    assert np.allclose(p, 0.5)
    again = fastgd.Adam([{"params": []}, {"params": [p]}, {"params": {}}])
    again.load_state_dict(opt.state_dict())
    assert [group["lr"] for group in again.param_groups] == [0.1, 0.5, 0.1]
    again.add_param_group({"params": []})
    again.step([[], [np.ones(3)], {}, []])


@report("HorizonRobotics/alf#1797", "sound", "torch", "fastgd.torch")
def _(torch, ours):
    """The same in torch, at first and added."""
    opt = ours.SGD([{"params": []}, {"params": [p := parameter(torch)]}], lr=0.5)
    opt.add_param_group({"params": []})
    opt.step()
    assert torch.equal(p.detach(), torch.full((3,), 0.5))


@report("pytorch/pytorch#50402", "sound")
def _():
    """A model without any parameter is refused, by name."""
    for params in ([], {}, [{"params": []}]):
        with pytest.raises(ValueError, match="^params: expected at least one parameter"):
            fastgd.SGD(params)


@report("YanaiEliyahu/AdasOptimizer#2", "sound", "torch", "fastgd.torch")
def _(torch, ours):
    """Parameters from a generator that can be read once."""
    assert len(ours.SGD(filter(None.__ne__, [parameter(torch)])).param_groups[0]["params"]) == 1
    assert len(fastgd.SGD(a for a in [np.ones(2), np.ones(3)]).param_groups[0]["params"]) == 2


# ---------------------------------------------------------------- what other tools look for in groups


@report("pytorch/pytorch#73910", "sound", "torch", "fastgd.torch")
def _(torch, ours):
    """CyclicLR cycles the first beta of Adam, and momentum where there is one."""
    for kind, more in ((ours.Adam, {}), (ours.NAdam, {}), (ours.SGD, {"momentum": 0.9})):
        opt = kind([parameter(torch)], lr=0.1, **more)
        schedule = torch.optim.lr_scheduler.CyclicLR(opt, 0.1, 0.2, max_momentum=0.8)
        opt.step()
        schedule.step()
        group = opt.param_groups[0]
        assert group.get("momentum", group.get("betas", (0,))[0]) == pytest.approx(0.8, rel=1e-3)


@report("warner-benjamin/optimi#14", "sound", "torch", "fastgd.torch")
def _(torch, ours):
    """OneCycleLR cycles the first beta of AdamW."""
    opt = ours.AdamW([parameter(torch)], lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, 0.2, total_steps=10)
    for _ in range(3):
        opt.step()
        schedule.step()
    assert opt.param_groups[0]["betas"][0] < 0.9


@report("akamaster/pytorch_resnet_cifar10#14", "sound", "torch", "fastgd.torch")
def _(torch, ours):
    """A scheduler that resumes finds the initial_lr that groups were given."""
    opt = ours.SGD([{"params": [parameter(torch)], "initial_lr": 0.1}], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 10, last_epoch=3)
    opt.step()
    schedule.step()
    assert 0 < opt.param_groups[0]["lr"] < 0.1


@report("pytorch/pytorch#60265", "sound", "torch", "fastgd.torch")
def _(torch, ours):
    """A cosine schedule saved with the optimizer goes on where it was."""

    def made(state=None):
        opt = ours.Adam([parameter(torch)], lr=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 20)
        if state is not None:
            opt.load_state_dict(state[0])
            schedule.load_state_dict(state[1])
        return opt, schedule

    def rates(opt, schedule, steps):
        for _ in range(steps):
            opt.step()
            schedule.step()
            yield opt.param_groups[0]["lr"]

    whole = list(rates(*made(), 15))
    first = made()
    found = list(rates(*first, 6))
    found += rates(*made(copy.deepcopy([a.state_dict() for a in first])), 9)
    assert found == whole


@report("Nerogar/OneTrainer#1604", "sound")
def _():
    """Past their end schedules stay there, and none goes up again or below 0."""
    for schedule in (Cosine(1.0, 5), Polynomial(1.0, 5), Linear(1.0, 0.0, 5), OneCycle(1.0, 5)):
        assert {schedule(t) for t in (5, 6, 7, 100)} == {schedule(5)}
        assert schedule(5) < 1e-5
    assert CosineRestarts(1.0, 5)(5) == 1.0


# ------------------------------------------------------------------- scaled gradients, and no numbers


@report("pytorch/pytorch#67590", "sound", "torch", "fastgd.torch")
def _(torch, ours):
    """A gradient scaler skips steps at infinite gradients, and scales back by itself."""
    opt = ours.Adam([p := parameter(torch)])
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    p.grad = torch.full((3,), float("inf"))
    scaler.scale(torch.tensor(1.0))
    scaler.step(opt)
    scaler.update()
    assert scaler.get_scale() == 2.0
    assert torch.equal(p.detach(), torch.ones(3))
    assert not opt.state[p]


@report("pytorch/pytorch#26512", "sound", "torch", "fastgd.torch")
def _(torch, ours):
    """Unscaled by hand and clipped, gradients aren't unscaled twice."""
    opt = ours.SGD([p := torch.nn.Parameter(torch.ones(4))], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(p.sum()).backward()
    scaler.unscale_(opt)
    torch.nn.utils.clip_grad_norm_([p], 1.0)
    scaler.step(opt)
    assert torch.allclose(p.detach(), torch.full((4,), 0.5), atol=1e-5)


@report("pytorch/pytorch#46849", "sound")
def _():
    """Clipping says when a norm isn't finite, if it is asked to, and changes nothing."""
    p, bad = np.ones(3), np.array([1.0, np.inf, 1.0])
    with pytest.raises(FloatingPointError, match="grads"):
        fastgd.Adam(p, clip_norm=1.0, nonfinite="raise").step(bad)
    record = fastgd.Adam(p, clip_norm=1.0, nonfinite="skip").step(bad)
    assert record.skipped
    assert np.all(p == 1)


@report("tensorflow/tensorflow#22048", "sound")
def _():
    """Gradients of norm 0 are clipped to 0, not to NaN, by norm and by ratio."""
    for options in (
        {"clip_norm": 1.0},
        {"clip_ratio": 0.01},
        {"clip_by": "tensor", "clip_norm": 1},
    ):
        p = np.zeros((2, 3), np.float32)
        fastgd.SGD(p, **options).step(np.zeros_like(p))
        assert np.all(p == 0)


@report("keras-team/keras#14075", "sound")
def _():
    """Squares that overflow don't make a norm infinite and its factor 0."""
    p = np.zeros(3, np.float32)
    fastgd.SGD(p, lr=1.0, clip_norm=1.0).step(np.full(3, 1e30, np.float32))
    assert np.allclose(p, -(3**-0.5))


@report("pytorch/pytorch#31367", "sound")
def _():
    """A negative bound is refused, and doesn't turn gradients round."""
    for key in ("clip_norm", "clip_value", "clip_ratio"):
        with pytest.raises(ValueError, match=f"^{key}: expected a number above 0"):
            fastgd.SGD(np.ones(3), **{key: -1.0})


@report("OpenNMT/OpenNMT-py#1140", "mended")
def _():
    """A bound that a schedule takes to 0 leaves nothing of the gradients; a fixed one is refused."""
    for key in ("clip_norm", "clip_value", "clip_ratio"):
        for dtype in (np.float32, np.float64):
            bound = Linear(1.0, 0.0, 2)
            for backend in fastgd.available_backends():
                fastgd.set_backend(backend)
                p = np.ones((2, 3), dtype)
                opt = fastgd.SGD(p, lr=0.1, momentum=0.5, **{key: bound})
                opt.step(np.ones_like(p))
                opt.step(np.ones_like(p))
                before = p.copy()
                opt.step(np.ones_like(p))
                (state,) = opt.state.values()
                assert np.allclose(before - p, 0.1 * state["momentum_buffer"]), key
        with pytest.raises(ValueError, match=f"^{key}: expected a number above 0, found 0"):
            fastgd.SGD(p, **{key: 0})


# ------------------------------------------------------------------------------------ micro-batches


@report("google-deepmind/optax#1567", "sound")
def _():
    """Accumulated micro-batches step as the whole batch does."""
    rng = np.random.default_rng(0)
    parts = rng.standard_normal((4, 10))
    p, q = np.ones(10), np.ones(10)
    whole, pieces = fastgd.AdamW(p, lr=0.1), fastgd.AdamW(q, lr=0.1)
    for _ in range(5):
        whole.step(parts.mean(0))
        for part in parts:
            pieces.accumulate(part)
        pieces.step()
    np.testing.assert_allclose(q, p, rtol=1e-12)


@report("google-deepmind/optax#828", "mended")
def _():
    """A micro-batch of weight 0, all padding, whose mean is NaN, is left out."""
    p = np.ones(2)
    opt = fastgd.SGD(p, lr=1.0)
    opt.accumulate(np.array([1.0, 3.0]), weight=4)
    opt.accumulate(np.full(2, np.nan), weight=0)
    opt.step()
    assert p.tolist() == [0, -2]
    opt.accumulate(np.ones(2), weight=0.0)
    with pytest.raises(TypeError, match="needs gradients"):  # nothing weighs anything
        opt.step()


@report("espnet/espnet#3283", "sound")
def _():
    """What is skipped for a NaN in one micro-batch is the whole sum, which then starts anew."""
    p = np.ones(2)
    opt = fastgd.SGD(p, lr=1.0, nonfinite="skip")
    opt.accumulate(np.array([np.nan, 1.0]))
    opt.accumulate(np.ones(2))
    assert opt.step().skipped
    opt.accumulate(np.ones(2))
    opt.step()
    assert p.tolist() == [0, 0]


# ---------------------------------------------------------------------------------------- averages


@report("pytorch/vision#4544", "sound")
def _():
    """An average counts its updates, and is that of as many weights."""
    p = np.zeros(2)
    ema = EMA(p, 0.5)
    for k in range(4):
        p[...] = k
        ema.update()
    assert ema.step == 4
    (average,) = ema.averages.values()
    assert np.allclose(average, ewma(np.arange(4.0), 0.5)[0][-1])


@report("pytorch/pytorch#84053", "sound", "torch", "fastgd.torch")
def _(torch, ours):
    """With averages swapped in, buffers are the model's as they are, not those of the start."""
    model = torch.nn.BatchNorm1d(2)
    opt = ours.SGD(model.parameters(), lr=0.1, average=0.9)
    for _ in range(3):
        opt.zero_grad()
        model(torch.arange(8.0).reshape(4, 2)).square().sum().backward()
        opt.step()
    running = model.running_mean.clone()
    with opt.average.swapped():
        assert torch.equal(model.running_mean, running)
        assert model.num_batches_tracked == 3


# ------------------------------------------------------------------------------------- checkpoints


@report("Comfy-Org/ComfyUI#3923", "sound", "torch", "fastgd.torch")
def _(torch, ours):
    """Weights and states in channels-last memory are stepped, saved and loaded."""
    shape = torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last)
    p = torch.nn.Parameter(shape)
    p.grad = torch.ones_like(p)
    opt = ours.Adam([p])
    opt.step()
    again = ours.Adam([q := torch.nn.Parameter(shape.clone())])
    q.grad = torch.ones_like(q)
    again.load_state_dict(copy.deepcopy(opt.state_dict()))
    again.step()
    opt.step()
    assert torch.equal(opt.state[p]["exp_avg"], again.state[q]["exp_avg"])
    assert opt.state[p]["exp_avg"].is_contiguous(memory_format=torch.channels_last)


@report("safetensors/safetensors#202", "sound")
def _():
    """Weights that share memory are refused when the optimizer is made, with both names."""
    w = np.ones((2, 2))
    with pytest.raises(ValueError, match=r'params\["b"\]: is the same memory as params\["a"\]'):
        fastgd.SGD({"a": w, "b": w})


# ------------------------------------------------------------------------- SciPy and scikit-learn


@report("scipy/scipy#12869", "mended", "scipy.optimize", "fastgd.scipy")
def _(optimize, ours):
    """A variable that equal bounds fix stays, and the others converge, without a gradient."""
    found = optimize.minimize(
        optimize.rosen, (2, 2, 2), method=ours.adam, bounds=[(0, 10), (0, 10), (2, 2)],
        options={"lr": 0.02, "maxiter": 5000, "gtol": 1e-4},
    )  # fmt: skip
    right = optimize.minimize(
        optimize.rosen, (2, 2, 2), method="L-BFGS-B", bounds=[(0, 10), (0, 10), (2, 2)]
    )
    assert found.x[2] == 2
    assert np.isfinite(found.jac).all()
    np.testing.assert_allclose(found.x, right.x, atol=2e-3)


@report("scikit-learn/scikit-learn#6994", "sound", "fastgd.sklearn")
def _(ours):
    """partial_fit knows a class that its first samples don't have."""
    model = ours.MLPClassifier((4,), random_state=0)
    model.partial_fit([[1], [2], [3]], ["a", "b", "c"], classes=["a", "b", "c", "d"])
    model.partial_fit([[4]], ["d"])
    assert model.predict_proba([[4]]).shape == (1, 4)


@report("scikit-learn/scikit-learn#6091", "sound", "sklearn.neural_network", "fastgd.sklearn")
def _(theirs, ours):
    """Calls of partial_fit go on as those of scikit-learn do, states and all."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 3)), rng.integers(0, 2, 40)
    models = [kind((5,), random_state=1) for kind in (theirs.MLPClassifier, ours.MLPClassifier)]
    for model in models:
        for _ in range(5):
            model.partial_fit(x, y, classes=[0, 1])
    np.testing.assert_allclose(models[1].coefs_[0], models[0].coefs_[0], rtol=1e-10)


@report("scikit-learn/scikit-learn#7976", "sound", "fastgd.sklearn")
def _(ours):
    """A model is fitted again, to other data of another width."""
    model = ours.MLPRegressor(hidden_layer_sizes=(4,), max_iter=5, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for width in (2, 5):
            model.fit(np.ones((20, width)), np.arange(20.0))
    assert model.coefs_[0].shape == (5, 4)


# ------------------------------------------------------------------------------------------ series


@report("pandas-dev/pandas#31178", "mended")
def _():
    """What is missing is left out by places, at a β of 0.5 as at those around it."""
    for beta in (0.5, 0.5 + 1e-9):
        found, _ = ewma([1, np.nan, 5], beta, False, initial=np.nan, ignore_na=False)
        assert found[-1] == pytest.approx(11 / 3)


@report("pandas-dev/pandas#54604", "mended")
def _():
    """With times, a missing value changes nothing: it is as if its time were not there."""
    x, times = np.array([1.0, np.nan, 4.0, 2.0]), np.array([0.0, 1.0, 2.0, 5.0])
    kept = np.isfinite(x)
    for given in ({}, {"bias_correction": False, "initial": np.nan}):
        whole, _ = ewma(x, 0.5, times=times, **given)
        found, _ = ewma(x[kept], 0.5, times=times[kept], **given)
        assert np.array_equal(whole[kept], found)


@pytest.mark.parametrize("one", REPORTS, ids=lambda one: one.source)
def test_reports(one):
    check, needs = one.check
    modules = [pytest.importorskip(name, reason=f"{name} is not installed") for name in needs]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torch")
        check(*modules)
