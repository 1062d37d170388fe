"""torch's schedulers, learning rates in tensors, and GradScaler."""

from __future__ import annotations

import pytest

import fastgd

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0")

from support.torch_pairs import NAMES, Twins
from support.torch_small import one

import fastgd.torch
from fastgd.torch import SGD

lr_scheduler = torch.optim.lr_scheduler


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
