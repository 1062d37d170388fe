"""What code written for torch.optim does with an optimizer, done with fastgd.torch's."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from support.helpers import run_python, unsanitized

import fastgd

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0")

from support.torch_pairs import NAMES, Twins

import fastgd.torch
from fastgd.torch import SGD, Adam, AdamW, RMSprop, _binding
from fastgd.torch._handles import handles

lr_scheduler = torch.optim.lr_scheduler


def one(value=1.0, grad=None, **options):
    """A parameter of one element."""
    p = torch.nn.Parameter(torch.tensor([value], dtype=torch.float64, **options))
    p.grad = None if grad is None else torch.full_like(p, grad)
    return p


def contents(opt):
    """All that a refused call must leave alone."""
    return copy.deepcopy(
        (opt.state_dict(), [p.detach() for g in opt.param_groups for p in g["params"]])
    )


def assert_same(a, b):
    assert str(a) == str(b)


# ------------------------------------------------------------------------------------ groups


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


# ------------------------------------------------------------------------------------- steps


def test_closures():
    p = one(3.0)
    opt = SGD([p], lr=0.25)

    def closure():
        opt.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert opt.step(closure).item() == 9
    assert p.item() == 1.5
    assert opt.step() is None


def test_hooks():
    p, said = one(grad=1.0), []
    opt = SGD([p], lr=0.5)
    handles = [
        opt.register_step_pre_hook(lambda o, args, kwargs: said.append(("pre", p.item()))),
        opt.register_step_post_hook(lambda o, args, kwargs: said.append(("post", p.item()))),
    ]
    opt.step()
    assert said == [("pre", 1.0), ("post", 0.5)]
    for handle in handles:
        handle.remove()
    opt.step()
    assert len(said) == 2
    handle = opt.register_step_pre_hook(lambda o, args, kwargs: ((o, lambda: 7), {}))
    assert opt.step() == 7
    handle.remove()


def test_hooks_of_all_optimizers():
    from torch.optim.optimizer import register_optimizer_step_post_hook

    said = []
    handle = register_optimizer_step_post_hook(lambda o, args, kwargs: said.append(type(o)))
    try:
        SGD([one(grad=1.0)]).step()
    finally:
        handle.remove()
    assert said == [SGD]


def test_hooks_of_state_dicts():
    opt, said = SGD([one(grad=1.0)], momentum=0.9), []
    opt.step()
    opt.register_state_dict_pre_hook(lambda o: said.append("pre"))
    opt.register_state_dict_post_hook(lambda o, d: {**d, "more": 1})
    opt.register_load_state_dict_pre_hook(lambda o, d: said.append(d.pop("more")))
    opt.register_load_state_dict_post_hook(lambda o: said.append("loaded"))
    opt.load_state_dict(opt.state_dict())
    assert said == ["pre", 1, "loaded"]


def test_profilers_see_the_step():
    opt = SGD([one(grad=1.0)])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        opt.step()
    assert any("Optimizer.step#SGD.step" in event.key for event in profile.key_averages())


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none):
    p = one(grad=1.0)
    opt = SGD([p], lr=0.5, momentum=0.5)
    opt.step()
    opt.zero_grad(set_to_none=set_to_none)
    assert p.grad is None if set_to_none else p.grad.item() == 0
    opt.step()
    # A gradient of 0 lets the ball roll on; none leaves all alone.
    assert p.item() == (0.5 if set_to_none else 0.25)


def test_parameters_without_gradients_are_left_alone_and_have_no_state():
    p, q = one(grad=1.0), one()
    frozen = torch.nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    opt = Adam([p, q, frozen])
    opt.step()
    assert list(opt.state) == [p]
    assert list(opt.state_dict()["state"]) == [0]
    q.grad = torch.ones_like(q)
    opt.step()
    assert [int(opt.state[x]["step"]) for x in (p, q)] == [2, 1]
    p.grad = None
    opt.step()
    assert [int(opt.state[x]["step"]) for x in (p, q)] == [2, 2]


def test_a_step_without_gradients_does_nothing():
    opt = Adam([one()])
    opt.step()
    assert not opt.state


def test_accumulators_are_there_from_the_start():
    p = one()
    opt = fastgd.torch.Adagrad([p], initial_accumulator_value=0.5)
    assert opt.state[p]["sum"].item() == 0.5
    assert opt.state[p]["step"].item() == 0


def test_states_are_the_memory_that_steps_write():
    p = one(grad=1.0)
    opt = SGD([p], lr=1.0, momentum=0.5)
    opt.step()
    buffer = opt.state[p]["momentum_buffer"]
    opt.step()
    assert opt.state[p]["momentum_buffer"] is buffer
    assert buffer.item() == 1.5
    buffer.fill_(10.0)
    opt.step()
    assert buffer.item() == 6


@pytest.mark.parametrize("name", ["Adam", "RMSprop", "Adagrad"])
def test_step_counts_may_be_changed(name):
    twins = Twins(name, {"lr": 0.1})
    twins.step()
    for opt, p in ((twins.opt, twins.ours[0]), (twins.torch_opt, twins.theirs[0])):
        opt.state[p]["step"].fill_(10.0)
    twins.step()
    twins.assert_close()
    assert twins.opt.state[twins.ours[0]]["step"].item() == 11
    before = contents(twins.opt)
    twins.opt.state[twins.ours[0]]["step"].fill_(-3.0)
    with pytest.raises(ValueError, match="step.*expected a number from 0 to below"):
        twins.opt.step()
    twins.opt.state[twins.ours[0]]["step"].fill_(11.0)
    assert_same(contents(twins.opt), before)


def test_states_replaced_deleted_or_moved_are_noticed():
    p = one(0.0, grad=1.0)
    opt = SGD([p], lr=1.0, momentum=0.5)
    opt.step()  # V = 1
    opt.state[p]["momentum_buffer"] = torch.tensor([8.0], dtype=torch.float64)
    opt.step()  # V = 5
    assert (p.item(), opt.state[p]["momentum_buffer"].item()) == (-6, 5)
    opt.state[p]["momentum_buffer"].data = torch.tensor([2.0], dtype=torch.float64)
    opt.step()  # V = 2
    assert (p.item(), opt.state[p]["momentum_buffer"].item()) == (-8, 2)
    opt.state[p] = {"momentum_buffer": torch.tensor([4.0])}  # float32: the state follows
    opt.step()  # V = 3
    assert p.item() == -11
    assert opt.state[p]["momentum_buffer"].dtype == torch.float64
    opt.state[p]["momentum_buffer"].share_memory_()
    opt.step()  # V = 2.5
    assert p.item() == -13.5
    assert opt.state[p]["momentum_buffer"].is_shared()
    opt.state.clear()
    opt.step()  # V = 1, undampened
    assert p.item() == -14.5
    opt.state[p]["momentum_buffer"] = torch.ones(2)
    with pytest.raises(ValueError, match=r'state\[0\]\[0\]\["momentum_buffer"\]: expected shape'):
        opt.step()


def test_states_in_another_order_and_beside_others_are_watched():
    p = one(0.0, grad=1.0)
    opt = Adam([p], lr=1.0)
    opt.step()
    entry = opt.state[p]
    entry["step"] = entry.pop("step")
    entry["mine"] = "of somebody else"
    binding = opt._binding
    opt.step()
    assert opt._binding is binding  # nothing that matters was changed
    entry["exp_avg"] = torch.zeros_like(p)
    opt.step()
    assert entry["exp_avg"].item() == pytest.approx(0.1)
    assert (entry["step"].item(), entry["mine"]) == (3, "of somebody else")


def test_parameters_may_be_swapped():
    p, q = one(0.0, grad=1.0), one(5.0)
    opt = SGD([p], lr=1.0, momentum=0.5)
    opt.step()
    torch.utils.swap_tensors(p, q)  # as model.to() does, if asked
    p.grad = torch.ones_like(p)
    opt.step()
    assert (p.item(), q.item()) == (3.5, -1)


@unsanitized
def test_states_are_let_go_with_their_optimizer():
    """Handles hold tensors that Python knows nothing of."""

    def used():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    p = torch.nn.Parameter(torch.zeros(1 << 20))
    p.grad = torch.ones_like(p)
    gc.freeze()  # what is there already would be gone through each time
    try:
        for k in range(40):
            if k == 5:
                before = used()
            opt = Adam([p])
            opt.step()
            opt.step()
            del opt
            gc.collect()
    finally:
        gc.unfreeze()
    assert used() - before < 64 << 20  # of 280


def test_hyper_parameters_changed_in_place():
    p, q = one(0.0, grad=1.0), one(0.0, grad=1.0)
    for opt in (Adam([p], lr=0.1), torch.optim.Adam([q], lr=0.1)):
        betas = opt.param_groups[0]["betas"] = [0.5, 0.5]
        opt.step()
        betas[0] = 0.25
        opt.step()
    assert p.item() == pytest.approx(q.item(), abs=1e-12)


def test_gradients_replaced_each_step():
    p = one(0.0)
    opt = SGD([p], lr=1.0)
    for t in range(50):
        p.grad = torch.full_like(p, float(t))
        opt.step()
        opt.zero_grad()
    assert p.item() == -sum(range(50))


def test_memory_replaced_each_step():
    twins = Twins("AdamW", {"lr": 0.01})
    for t in range(6):
        twins.step()
        for p in (*twins.ours, *twins.theirs):
            p.data = p.data.clone() if t % 2 else p.data.contiguous()
        twins.assert_close()


def test_transposed_under_the_same_address():
    """Memory of the same address read in another order is noticed, and the states follow."""
    p = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
    q = torch.nn.Parameter(p.detach().clone())
    ours, theirs = SGD([p], lr=1.0, momentum=0.5), torch.optim.SGD([q], lr=1.0, momentum=0.5)
    for _ in range(2):
        for x in (p, q):
            x.grad = torch.empty_like(x).copy_(torch.arange(4.0).reshape(2, 2))
        ours.step()
        theirs.step()
        p.data, q.data = p.data.t(), q.data.t()
        p.grad = q.grad = None
    assert torch.equal(p, q)


@pytest.mark.parametrize("told", [True, False])
def test_whatever_becomes_of_a_tensor_object_is_noticed(told, monkeypatch):
    """By its own handle, and where that isn't known."""
    assert handles()[-1]
    if not told:
        monkeypatch.setattr(_binding, "handles", lambda: (*handles()[:-1], 0))
    p = torch.nn.Parameter(torch.zeros(2, 2))
    kept = p.grad = torch.ones(2, 2)
    opt = SGD([p], lr=1.0, momentum=0.5)
    opt.step()  # V = 1
    first = opt._binding
    p.grad.data = torch.full((2, 2), 2.0)  # the same object in other memory
    opt.step()  # V = 2.5
    p.grad.set_(torch.full((2, 2), 3.0))
    opt.step()  # V = 4.25
    assert p.grad is kept
    assert opt._binding is first
    assert torch.equal(p, torch.full((2, 2), -7.75))
    p.data = p.data.clone()
    opt.step()  # V = 5.125
    assert opt._binding is not first
    assert torch.equal(p, torch.full((2, 2), -12.875))
    p.grad.data = torch.arange(4.0).reshape(2, 2).t()
    with pytest.raises(ValueError, match=r"grads\[0\]\[0\]: expected"):
        opt.step()
    p.grad = torch.eye(2).to_sparse()
    with pytest.raises((TypeError, ValueError), match=r"grads\[0\]\[0\]|rows"):
        opt.step()
    assert torch.equal(p, torch.full((2, 2), -12.875))


def test_moved_to_another_dtype():
    model = torch.nn.Linear(3, 2)
    opt = Adam(model.parameters(), lr=0.1)
    for dtype in (torch.float32, torch.float64, torch.float32):
        model.to(dtype)
        opt.zero_grad()
        model(torch.ones(1, 3, dtype=dtype)).sum().backward()
        opt.step()
        assert opt.state[model.weight]["exp_avg"].dtype == dtype
    assert opt.state[model.weight]["step"].item() == 3
    model.to(torch.bfloat16)
    opt.zero_grad()
    model(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
    with pytest.raises(ValueError, match=r"params\[0\]\[0\]: is bfloat16.*choose master=True"):
        opt.step()


def test_backward_through_what_a_step_changed_is_refused_as_ever():
    p = one(2.0)
    opt = SGD([p], lr=0.5)
    loss = (p * p).sum()
    loss.backward(retain_graph=True)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_step_counts_past_what_float32_counts():
    p = one(grad=1.0)
    opt = Adam([p])
    opt.step()
    opt.state[p]["step"].fill_(2.0**24)
    for _ in range(3):
        opt.step()
    assert opt.state[p]["step"].item() == 2**24 + 4  # float32's nearest to 2²⁴ + 3


# ---------------------------------------------------------------------------------- refusals


BAD_GRADIENTS = [
    (
        torch.zeros(3, 4).to_sparse(),
        ValueError,
        "whole rows, .* sparse_dim 1, .*found sparse_dim 2",
    ),
    (torch.zeros(3, 4).to_sparse(1), ValueError, r"rule adam .*rows=\"lazy\""),
    (torch.zeros(3, 8)[:, ::2], ValueError, r"expected strides \(4, 1\) as its .*, found \(8, 2\)"),
    (torch.zeros(4, 3).t(), ValueError, r"found \(1, 3\) for shape \(3, 4\)"),
    (torch.zeros(1, 1).expand(3, 4), ValueError, "expected strides"),
]


@pytest.mark.parametrize(("grad", "error", "message"), BAD_GRADIENTS)
def test_gradients_refused(grad, error, message):
    p, q = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.zeros(3, 4))
    opt = Adam([p, q])
    p.grad, q.grad = torch.ones(2), torch.ones(3, 4)
    for _ in range(2):  # not bound yet, and bound
        q.grad = grad
        before = contents(opt)
        with pytest.raises(error, match=r"grads\[0\]\[1\]: .*" + message):
            opt.step()
        assert_same(contents(opt), before)
        q.grad = torch.ones(3, 4)
        opt.step()


def test_gradients_that_share_memory_are_refused():
    p = torch.nn.Parameter(torch.ones(3))
    opt = SGD([p], lr=0.5)
    p.grad = p.detach()
    with pytest.raises(ValueError, match=r"grads\[0\]\[0\]: shares memory"):
        opt.step()
    assert p.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("tensor", "error", "message"),
    [
        (torch.zeros(3, device="meta"), TypeError, "in CPU memory, found device meta"),
        (torch.zeros(3, dtype=torch.bfloat16), ValueError, "is bfloat16, .* choose master=True"),
        (torch.zeros(3, dtype=torch.float16), ValueError, "is float16, .* choose master=True"),
        (torch.zeros(3, dtype=torch.complex64), TypeError, "found torch.complex64"),
        (torch.zeros(3).to_sparse(), TypeError, "found layout torch.sparse_coo"),
        (torch.zeros(3, 8)[:, ::2], ValueError, "dense tensor without overlap"),
        (torch.zeros(1).expand(3), ValueError, "dense tensor without overlap"),
    ],
)
def test_parameters_refused(tensor, error, message):
    with pytest.raises(error, match=r"params\[0\]\[1\]: .*" + message):
        SGD([one(), tensor.requires_grad_()])


def test_tensors_of_inference_are_refused():
    with torch.inference_mode():
        p = torch.zeros(3)
    p.grad = torch.ones(3)
    with pytest.raises(ValueError, match=r"params\[0\]\[0\]: .*inference"):
        SGD([p]).step()


def test_hyper_parameters_are_checked_at_the_step():
    p = one(grad=1.0)
    opt = SGD([p, one(grad=1.0)], lr=0.5)
    opt.step()
    before = contents(opt)
    for value, error in ((-1.0, ValueError), ("much", TypeError), (None, TypeError)):
        opt.param_groups[0]["lr"] = value
        with pytest.raises(error, match=r"lr: expected"):
            opt.step()
        opt.param_groups[0]["lr"] = 0.5
        assert_same(contents(opt), before)
    opt.step()
    assert p.item() == 0


def test_a_first_step_that_is_refused_leaves_no_state():
    p, q = one(0.0, grad=1.0), one()
    opt = SGD([p, q], lr=1.0, momentum=0.9, dampening=0.5)
    q.grad = q.detach()
    for _ in range(2):
        with pytest.raises(ValueError, match="shares memory"):
            opt.step()
        assert not opt.state
    q.grad = None
    opt.step()
    assert p.item() == -1  # V = g, undampened: this was the first


# ------------------------------------------------------------------------------ lr and amp

SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5], 0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.5, total_iters=4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 8),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.1, 3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, 12),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}


def test_all_schedulers_of_torch_are_listed():
    assert set(lr_scheduler.__all__) - set(SCHEDULERS) == {"LRScheduler"}


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(("name", "options"), [("SGD", {"momentum": 0.9}), ("AdamW", {})])
def test_schedulers(name, options, scheduler, tensor_lr):
    def lr():
        return torch.tensor(0.05, dtype=torch.float64) if tensor_lr else 0.05

    twins = Twins(name, options)
    twins.opt = getattr(fastgd.torch, name)(twins.ours, lr=lr(), **options)
    # torch's multi-tensor way takes no lr in a tensor.
    twins.torch_opt = getattr(torch.optim, name)(twins.theirs, lr=lr(), foreach=False, **options)
    pair = [SCHEDULERS[scheduler](opt) for opt in (twins.opt, twins.torch_opt)]
    for _ in range(10):
        twins.step()
        for s in pair:
            s.step(*[1.0] * (scheduler == "ReduceLROnPlateau"))
        twins.assert_close()
    rates = [float(opt.param_groups[0]["lr"]) for opt in (twins.opt, twins.torch_opt)]
    assert rates[0] == rates[1]


def test_a_tensor_lr_may_be_changed_in_place():
    p, lr = one(0.0, grad=1.0), torch.tensor(0.5)
    opt = SGD([p], lr=lr)
    opt.step()
    lr.fill_(2.0)
    opt.step()
    assert p.item() == -2.5
    lr.fill_(-2.0)
    with pytest.raises(ValueError, match="lr: expected a number of at least 0"):
        opt.step()


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_grad_scaler(name, unscale):
    twins = Twins(name, {"lr": 0.01}, torch.float32)
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0) for _ in range(2)]
    for t in range(6):
        twins.draw()
        for scaler, opt, params in zip(
            scalers, (twins.opt, twins.torch_opt), (twins.ours, twins.theirs), strict=True
        ):
            scaler.scale(torch.zeros(()))
            for p in params:
                p.grad *= scaler.get_scale()
            if t == 3:
                params[1].grad[7] = float("inf")
            if unscale:
                scaler.unscale_(opt)
                torch.nn.utils.clip_grad_norm_(params, 1.0)
            before = [p.detach().clone() for p in params]
            scaler.step(opt)
            scaler.update()
            assert (t == 3) == all(map(torch.equal, before, params))
        twins.assert_close(rtol=1e-5, atol=1e-6)
    assert scalers[0].get_scale() == scalers[1].get_scale() == 512
    if "step" in twins.opt.state[twins.ours[0]]:
        assert twins.opt.state[twins.ours[0]]["step"].item() == 5


# -------------------------------------------------------------------------- copies and files


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


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.stderr.splitlines()[-1] if done.returncode else ""


def test_import_needs_no_torch():
    """`import fastgd` stays light."""
    assert not run("import sys, fastgd; assert 'torch' not in sys.modules")


def test_a_torch_that_is_too_old():
    code = "import torch; torch.Tensor.__dlpack_c_exchange_api__ = None; import fastgd.torch"
    assert run(code).startswith("ImportError: torch: expected a version with DLPack's C exchange")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this CPU's system has no fork")
def test_fork_amid_a_step_of_another_thread():
    """The child finds whole tensors and a free lock."""
    done = run_python("""
import os, threading, time
import torch, fastgd.torch

p = torch.zeros(1 << 20, requires_grad=True)
p.grad = torch.ones_like(p)
opt = fastgd.torch.Adam([p])
opt.step()
stop = threading.Event()
def steps():
    while not stop.is_set():
        opt.step()
worker = threading.Thread(target=steps)
worker.start()
values = p.detach().numpy()
for k in range(10):
    time.sleep(0.0007 * k)
    pid = os.fork()
    if pid == 0:
        whole = values.min() == values.max()
        opt.step()
        os._exit(0 if whole and values.min() == values.max() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
stop.set()
worker.join()
""")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("key", "value"), [("lr", -1.0), ("clip_norm", 0.0), ("betas", (0.9, 2.0))]
)
def test_what_is_refused_once_is_refused_until_mended(key, value):
    """Steps after a refused one don't go on with what was before."""
    p = one(grad=1.0)
    opt = Adam([p], lr=0.1)
    opt.step()
    before = opt.param_groups[0][key]
    opt.param_groups[0][key] = value
    kept = p.item()
    for _ in range(2):
        with pytest.raises(ValueError, match=key):
            opt.step()
        assert p.item() == kept
    opt.param_groups[0][key] = before
    opt.step()
    assert p.item() < kept


def test_norms_that_could_not_be_shared_are_asked_for_again(monkeypatch):
    """A step whose processes can't be found out about is no step without them the next time."""
    p = one(grad=3.0)
    opt = SGD([p], lr=0.1)
    opt.step()
    kept = p.item()

    def refuse(*_):
        raise RuntimeError("no processes")

    opt.param_groups[0]["clip_norm"] = 1.0
    with monkeypatch.context() as patched:
        patched.setattr("fastgd.torch._binding.Sharing", refuse)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="no processes"):
                opt.step()
            assert p.item() == kept
    opt.step()
    assert p.item() == pytest.approx(kept - 0.1)
