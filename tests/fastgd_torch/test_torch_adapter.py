"""fastgd.torch beside torch's own optimizers: trajectories, state dicts, and all that torch offers."""

from __future__ import annotations

import copy
import inspect

import numpy as np
import pytest

import fastgd

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0")

from support.torch_pairs import CASES, DECAY, NAMES, Twins, numbers_of

import fastgd.torch
from fastgd.optimizers import OPTIMIZERS


@pytest.mark.parametrize(("name", "options"), CASES)
def test_trajectories(name, options):
    twins = Twins(name, options)
    for t in range(100):
        twins.step(skip={0} if t % 3 == 2 else ())
        twins.assert_close()


@pytest.mark.parametrize("name", NAMES)
def test_trajectories_in_float32(name):
    decay = {"weight_decay": 0.01} if DECAY[name] else {}
    twins = Twins(name, {"lr": 0.01, **decay}, torch.float32)
    for _ in range(20):
        twins.step()
    twins.assert_close(rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("before", [0, 5])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_state_dicts_go_both_ways(name, options, before):
    twins = Twins(name, options)
    for _ in range(before):
        twins.step(skip={1})
    ours = copy.deepcopy(twins.opt.state_dict())
    twins.opt.load_state_dict(twins.torch_opt.state_dict())
    twins.torch_opt.load_state_dict(ours)
    for _ in range(5):
        twins.step()
        twins.assert_close()


@pytest.mark.parametrize(("name", "options"), CASES)
def test_state_dicts_look_alike(name, options):
    twins = Twins(name, options)
    twins.step(skip={1})
    ours, theirs = twins.opt.state_dict(), twins.torch_opt.state_dict()
    assert ours["state"].keys() == theirs["state"].keys()
    for i, entry in theirs["state"].items():
        assert ours["state"][i].keys() == entry.keys()
        in_float64 = {"step", *numbers_of(name)} if numbers_of(name) else ()
        for key, value in entry.items():
            torch.testing.assert_close(
                ours["state"][i][key],
                value,
                check_stride=key not in ("row_var", "col_var"),  # whose axes lie as the parameter's
                check_dtype=key not in in_float64,
            )
    for a, b in zip(ours["param_groups"], theirs["param_groups"], strict=True):
        further = {key for key, h in OPTIMIZERS[name].hypers.items() if h.keyword}
        beside = {*further, "clip_norm", "clip_value", "clip_ratio", "decoupled_weight_decay"}
        assert a.keys() - b.keys() <= beside
        assert not b.keys() - a.keys()
        assert {key: a[key] for key in b} == b


@pytest.mark.parametrize("name", NAMES)
def test_called_as_torchs(name):
    ours = inspect.signature(getattr(fastgd.torch, name)).parameters
    theirs = inspect.signature(getattr(torch.optim, name)).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    for key, parameter in theirs.items():
        assert (ours[key].kind, ours[key].default) == (parameter.kind, parameter.default), key
    assert all(p.kind is p.KEYWORD_ONLY for p in list(ours.values())[len(theirs) :])


def test_every_optimizer_is_there():
    for name in fastgd.optimizers.__all__:
        cls = getattr(fastgd.torch, name)
        assert issubclass(cls, torch.optim.Optimizer)
        assert cls.__module__ == "fastgd.torch"
        assert cls.__name__ == name in fastgd.torch.__all__
        p = torch.nn.Parameter(torch.ones(1, 3))
        opt = cls([p], lr=0.1)
        p.grad = torch.ones(1, 3)
        opt.step()
        q = np.ones((1, 3), np.float32)
        getattr(fastgd, name)(q, lr=0.1).step(np.ones((1, 3), np.float32))
        assert p.tolist() == q.tolist()


def test_momentum_is_fastgds():
    p = torch.nn.Parameter(torch.ones(1))
    opt = fastgd.torch.Momentum([p], lr=1.0, beta=0.5)
    p.grad = torch.ones(1)
    opt.step()
    assert p.item() == 0.5
    assert opt.state[p]["step"].item() == 1


def test_options_of_fastgd():
    p = torch.nn.Parameter(torch.ones(1))
    p.grad = torch.full((1,), 3.0)
    fastgd.torch.Adagrad([p], lr=1.0, eps=0.0, eps_root=16.0).step()
    assert p.item() == pytest.approx(1 - 3 / 5)
    with pytest.raises(TypeError, match="eps_rot"):
        fastgd.torch.Adagrad([p], eps_rot=1.0)
    with pytest.raises(TypeError, match="params"):
        fastgd.torch.Adagrad()


def test_a_backend_set_within_a_step_counts_from_the_next_on(monkeypatch):
    """By another thread or a signal's handler, after the step has worked out its coefficients."""
    p = torch.nn.Parameter(torch.ones(3))
    opt = fastgd.torch.AdamW([p], lr=0.1, clip_norm=1.0)
    for _ in range(2):
        p.grad = torch.ones(3)
        opt.step()
    stepper, own = opt._binding.stepper, fastgd.get_backend()
    monkeypatch.setattr(stepper, "combine", lambda sums: fastgd.set_backend("numpy"))
    try:
        p.grad = torch.ones(3)
        opt.step()
        assert fastgd.get_backend() == "numpy"
    finally:
        fastgd.set_backend(own)
    assert opt.state[p]["step"] == 3


@pytest.mark.parametrize("backend", ["numpy", *fastgd.available_backends()[:1]])
def test_gradients_that_come_and_go(backend):
    """A step like the last one is taken as that was, and only such a one."""
    fastgd.set_backend(backend)
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    opt, taken = fastgd.torch.Adam(params, lr=1.0), [0, 0]
    grads = [torch.ones(3), torch.ones(3)]
    for given in [(1, 1), (1, 1), (0, 1), (1, 1), (0, 0), (1, 1), (1, 0), (0, 1), (0, 1), (1, 0)]:
        for p, g, one in zip(params, grads, given, strict=True):
            p.grad = g if one else None
        opt.step()
        taken = [n + one for n, one in zip(taken, given, strict=True)]
        assert [1 - p[0].item() for p in params] == pytest.approx(taken, abs=1e-4)
        assert [int(opt.state[p]["step"]) if p in opt.state else 0 for p in params] == taken
