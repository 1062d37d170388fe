"""Groups of parameters, and the options that code written for torch.optim gives."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import fastgd

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0")

from support.torch_pairs import Twins
from support.torch_small import assert_same, contents, one

import fastgd.torch
from fastgd.torch import SGD, Adam, AdamW


def test_groups():
    twins = Twins("AdamW", {"lr": 0.01})
    for opt, params in ((twins.opt, twins.ours), (twins.torch_opt, twins.theirs)):
        opt.__init__([
            {"params": params[:1], "lr": 0.1, "betas": (0.8, 0.9)},
            {"params": params[1:2], "weight_decay": 0.5, "name": "second"},
            {"params": iter(params[2:3])},
        ], lr=0.05)  # fmt: skip
    for _ in range(3):
        twins.step()
    for opt, params in ((twins.opt, twins.ours), (twins.torch_opt, twins.theirs)):
        opt.add_param_group({"params": params[3:], "lr": 0.2, "maximize": True})
    for _ in range(3):
        twins.step()
        twins.assert_close()
    assert [group["lr"] for group in twins.opt.param_groups] == [0.1, 0.05, 0.05, 0.2]
    assert twins.opt.param_groups[1]["name"] == "second"


def test_named_parameters():
    model = torch.nn.Linear(2, 1)
    opt = SGD(model.named_parameters(), lr=0.5)
    assert opt.param_groups[0]["param_names"] == ["weight", "bias"]
    model.weight.grad = torch.ones(1, 2).to_sparse()
    with pytest.raises(ValueError, match=r"grads\[0\]\[0\] \(weight\): expected a sparse tensor"):
        opt.step()


def test_lists_of_groups_may_be_changed_by_hand():
    p, q = one(grad=1.0), one(grad=1.0)
    opt = SGD([p], lr=0.5)
    opt.step()
    opt.param_groups[0]["params"].append(q)
    opt.step()
    assert (p.item(), q.item()) == (0, 0.5)
    del opt.param_groups[0]["params"][0]
    opt.step()
    assert (p.item(), q.item()) == (0, 0)
    opt.param_groups.clear()
    opt.step()
    assert q.item() == 0


def test_groups_without_parameters():
    p, q = one(grad=1.0), one(grad=1.0)
    opt = SGD([{"params": []}, {"params": [p]}, {"params": [], "lr": 2.0}], lr=0.5, momentum=0.5)
    opt.step()
    opt.param_groups[0]["params"].append(q)
    opt.step()
    assert (p.item(), q.item()) == (-0.25, 0.5)
    assert opt.state[p]["momentum_buffer"].item() == 1.5
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    opt.step()
    assert (p.item(), q.item()) == (-1.125, -0.25)


def test_groups_refused():
    opt = SGD([one()], lr=0.5)
    before = contents(opt)
    p = one()
    for group, error, message in (
        (
            {"params": [p], "lr": -1.0},
            ValueError,
            r"params\[1\]: lr: expected a number of at least",
        ),
        ({"params": [p], "nesterov": True}, ValueError, "nesterov: needs momentum"),
        ({"params": [p, p]}, ValueError, "expected each tensor once"),
        ({"params": opt.param_groups[0]["params"]}, ValueError, "more than one parameter group"),
        ({"params": [p * 2]}, ValueError, "non-leaf"),
        ({"params": {p}}, TypeError, "ordered"),
        ({"params": [np.ones(3)]}, TypeError, "Tensors"),
        (
            {"params": [p], "foreach": True},
            ValueError,
            "foreach: expected None or False, found True",
        ),
        ({"lr": 1.0}, KeyError, "params"),
        ([p], TypeError, "dict"),
    ):
        with pytest.raises(error, match=message):
            opt.add_param_group(group)
        assert_same(contents(opt), before)
        assert len(opt.param_groups) == 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Adam", {"foreach": True}, "foreach: expected None or False, found True"),
        ("Adam", {"capturable": True}, "capturable: expected False, found True"),
        ("SGD", {"differentiable": True}, "differentiable: expected False, found True"),
        ("AdamW", {"fused": False}, "fused: expected None or True, found False"),
        ("Adam", {"decoupled_weight_decay": True}, "decoupled_weight_decay: expected False"),
        ("Adam", {"lr": -1.0}, "lr: expected a number of at least 0, found -1"),
        ("Adam", {"betas": (0.9, 1.0)}, r"betas\[1\]: expected a number from 0 to below 1"),
        ("Adam", {"eps": float("nan")}, "eps: expected a finite number"),
        ("SGD", {"nesterov": True}, "nesterov: needs momentum"),
    ],
)
def test_options_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(fastgd.torch, name)([one()], **options)


def test_options_of_the_wrong_type():
    with pytest.raises(TypeError, match="lr: expected a number, found <function"):
        SGD([one()], lr=lambda step: 0.1)
    with pytest.raises(TypeError, match="lr: expected a number, found a tensor of 2"):
        SGD([one()], lr=torch.ones(2))
    with pytest.raises(TypeError, match="amsgrad: expected True or False"):
        Adam([one()], amsgrad=1)
    with pytest.raises(TypeError, match="iterable"):
        Adam(one())
    with pytest.raises(ValueError, match="empty"):
        Adam([])


def test_arguments_that_there_are_not():
    """The error has the class, and the words that would have done."""
    with pytest.raises(
        TypeError,
        match=r"^AdamW: got an unexpected keyword argument 'learning_rate'; its hyper-parameters "
        r"are lr, betas, .*weight_decay, .*clip_norm, .* its options .*fused, .*zero_grads, ",
    ):
        AdamW([one()], learning_rate=0.1)
    with pytest.raises(TypeError, match="^SGD: missing a required argument: 'params'; its hyper-"):
        SGD()


def test_what_torch_says_of_ways_to_compute_is_taken_where_it_is_true():
    opt = AdamW([one()], fused=True, foreach=False, capturable=False, differentiable=False)
    assert opt.param_groups[0]["fused"] is True
