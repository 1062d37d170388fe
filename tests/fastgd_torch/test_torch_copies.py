"""Copies of torch's optimizers, and what they are saved in."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest

import fastgd

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0")

from support.torch_pairs import NAMES, Twins
from support.torch_small import assert_same, contents, one

import fastgd.torch
from fastgd.torch import SGD, Adam, RMSprop


@pytest.mark.parametrize("via", ["deepcopy", "pickle", "save", "state_dict"])
@pytest.mark.parametrize("name", NAMES)
def test_copies_go_on_alike(name, via):
    options = {"lr": 0.01, "momentum": 0.9} if name in ("SGD", "RMSprop") else {"lr": 0.01}
    twins = Twins(name, options)
    for _ in range(3):
        twins.step()
    if via == "deepcopy":
        opt = copy.deepcopy(twins.opt)
    elif via == "pickle":
        opt = pickle.loads(pickle.dumps(twins.opt))
    else:
        saved = twins.opt.state_dict()
        if via == "save":
            file = io.BytesIO()
            torch.save(saved, file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
        opt = type(twins.opt)([p.detach().clone().requires_grad_() for p in twins.ours], lr=1.0)
        opt.load_state_dict(saved)
    copies = opt.param_groups[0]["params"]
    for _ in range(3):
        twins.step()
        for p, q in zip(copies, twins.ours, strict=True):
            p.grad = q.grad
        opt.step()
    assert all(map(torch.equal, copies, twins.ours))
    twins.assert_close()


def test_a_loaded_state_dict_is_a_copy():
    p, q = one(grad=1.0), one(grad=1.0)
    a, b = SGD([p], momentum=0.5), SGD([q], momentum=0.5)
    a.step()
    b.load_state_dict(a.state_dict())
    b.step()
    assert a.state[p]["momentum_buffer"].item() == 1
    assert b.state[q]["momentum_buffer"].item() == 1.5


def test_state_dicts_of_fastgd_itself():
    p, w = one(grad=1.0), np.ones(1)
    for name in NAMES:
        ours, theirs = getattr(fastgd, name)([w], lr=0.1), getattr(fastgd.torch, name)([p])
        ours.step([np.ones(1)])
        with torch.no_grad():
            p.copy_(torch.from_numpy(w))
        theirs.load_state_dict(ours.state_dict())
        ours.step([np.ones(1)])
        theirs.step()
        assert p.item() == w[0]
        ours.load_state_dict(theirs.state_dict())


def test_state_dicts_refused():
    p = one(grad=1.0)
    opt = Adam([p])
    opt.step()
    before = contents(opt)
    good = copy.deepcopy(opt.state_dict())

    def changed(change):
        state = copy.deepcopy(good)
        change(state)
        return state

    for change, error, message in (
        (lambda s: s["state"][0].pop("exp_avg"), ValueError, r"state\[0\]\[0\]: has no \['exp_avg'\]"),
        (lambda s: s["state"][0].update(exp_avg=torch.ones(2)), ValueError, "expected shape"),
        (lambda s: s["param_groups"][0].update(lr=-1.0), ValueError, "lr: expected"),
        (lambda s: s["param_groups"][0].update(betas=(0.9,)), ValueError, "betas: expected two"),
        (lambda s: s["param_groups"].pop(), ValueError, "number of parameter groups"),
        (lambda s: s["param_groups"][0]["params"].append(1), ValueError, "size of optimizer's group"),
        (lambda s: s["state"][0].update(step=-1.0), ValueError, r'"step"\]: expected a number from 0'),
        (
            lambda s: s["param_groups"][0].update(decoupled_weight_decay=True),
            ValueError,
            "decoupled_weight_decay: expected False, found True",
        ),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            opt.load_state_dict(changed(change))
        assert_same(contents(opt), before)
    with pytest.raises(ValueError, match="square_avg"):
        RMSprop([p]).load_state_dict(good)
    opt.load_state_dict(good)


def test_a_state_dict_of_torchs_fused_kernels():
    p, q = one(grad=1.0), one(grad=1.0)
    theirs, ours = torch.optim.Adam([p], fused=True), Adam([q])
    theirs.step()
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["fused"] is True
    ours.step()
    assert ours.state[q]["step"].item() == 2


def test_an_option_switched_on_later():
    twins = Twins("SGD", {"lr": 0.1, "dampening": 0.5})
    twins.step()
    for opt in (twins.opt, twins.torch_opt):
        opt.param_groups[0]["momentum"] = 0.9
    for _ in range(3):
        twins.step(skip={0})
        twins.step()
        twins.assert_close()
    p = one(grad=1.0)
    opt = Adam([p])
    opt.step()
    opt.param_groups[0]["amsgrad"] = True
    opt.step()
    assert opt.state[p]["max_exp_avg_sq"].item() > 0
