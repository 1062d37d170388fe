"""What processes of torch.distributed do together, each held to what one process does alone.

`test_torch_distributed.py` runs this file once for each process.  The models' gradients are small
whole numbers over powers of two, whatever the parameters are: sums over processes are exact then,
and every comparison is of bits.
"""

from __future__ import annotations

import copy
import datetime
import json
import math
import os
import pickle
import sys
import traceback
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import fastgd.torch
from fastgd.kernels.reference import RULES
from fastgd.torch import LAMB, LARS, SGD, Adagrad, AdamW, NAdam, Prodigy, _sharing, step_in_backward

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit, by what comes along
    from torch.distributed.optim import ZeroRedundancyOptimizer

# Not to be cut evenly by any number of processes, and one that leaves most with nothing.
SHAPES = [(5, 3), (7,), (1,), (301, 2), (2,)]
ROWS = 8
SCENARIOS = {}


def scenario(*worlds):
    """Run a function in as many processes as given, or in any number."""

    def add(function):
        SCENARIOS[function.__name__] = function, worlds or (2, 4)
        return function

    return add


class Part(nn.Module):
    """A parameter, whose gradient is whole numbers times the mean of the input."""

    def __init__(self, shape, dtype):
        super().__init__()
        n = math.prod(shape)
        self.register_buffer("factor", (torch.arange(n) % 7 - 3.0).reshape(shape))
        self.weight = nn.Parameter((torch.arange(n) / 8).reshape(shape).to(dtype))

    def forward(self, x):
        return (self.weight.float() * self.factor).sum() * x.mean()


class Model(nn.Module):
    """Some of these."""

    def __init__(self, dtype=torch.float32, shapes=SHAPES):
        super().__init__()
        self.parts = nn.ModuleList(Part(shape, dtype) for shape in shapes)

    def forward(self, x):
        return sum(part(x) for part in self.parts)


def batch(t):
    """The t-th batch, of all processes together."""
    return torch.arange(ROWS, dtype=torch.float32) + t


def mine(t):
    """The part of it that is this process's."""
    return batch(t).chunk(dist.get_world_size())[dist.get_rank()]


def train(model, opt, steps, data=mine, first=0):
    """Take steps, and return what the optimizer said of each."""
    records = []
    for t in range(first, first + steps):
        opt.zero_grad()
        model(data(t)).backward()
        opt.step()
        records.append(str(getattr(opt, "optim", opt).record))
    return records


def alone(cls, steps=4, groups=False, **options):
    """What one process makes of all batches."""
    model = Model()
    opt = cls(grouped(model) if groups else model.parameters(), **options)
    return model, opt, train(model, opt, steps, batch)


def grouped(model):
    """Groups, of which one has a single parameter."""
    first, *rest = model.parameters()
    return [{"params": [first]}, {"params": rest, "lr": 0.25, "clip_norm": 3.0}]


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_same(model, other):
    """The same bits in all parameters, on all processes."""
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(whole(p), q), (whole(p) - q).abs().max()


def assert_same_states(opt, other, params, others):
    for p, q in zip(params, others, strict=True):
        assert opt.state[p].keys() == other.state[q].keys()
        for key, value in other.state[q].items():
            assert torch.equal(whole(opt.state[p][key]), value), key


# ----------------------------------------------------------------------------------- replicas

OPTIONS = [
    (AdamW, {"lr": 0.1, "weight_decay": 0.125}),
    (SGD, {"lr": 0.5, "momentum": 0.5, "clip_norm": 2.0}),
    (AdamW, {"lr": 0.1, "clip_norm": 1.5, "clip_by": "tensor", "nonfinite": "raise"}),
    (AdamW, {"lr": 0.1, "average": 0.5, "clip_norm": 2.0, "clip_by": "group"}),
    (NAdam, {"lr": 0.1}),
    (fastgd.torch.RMSprop, {"lr": 0.1, "nonfinite": "skip", "zero_grads": True}),
]
# Rules that add up over a parameter: to the bit where that is in one process.
SUMMED = [
    (LAMB, {"lr": 0.1, "trust_clip": True}),
    (LARS, {"lr": 0.5, "momentum": 0.5, "trust_coefficient": 0.1, "clip_norm": 2.0}),
    (Prodigy, {"d0": 1e-2}),
]


@scenario()
def ddp():
    for i, (cls, options) in enumerate(OPTIONS + SUMMED):
        model = Model()
        opt = cls(model.parameters(), **options)
        records = train(DistributedDataParallel(model, gradient_as_bucket_view=i % 2 == 0), opt, 4)
        other, theirs, expected = alone(cls, **options)
        assert_same(model, other)
        assert_same_states(opt, theirs, model.parameters(), other.parameters())
        assert records == expected


@scenario(2)
def ddp_of_a_network():
    """Sums over processes are rounded, and so the results are close."""

    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 1)).double()

    x = torch.randn(ROWS, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    models = [network(), network()]
    for model, data in zip(models, (x.chunk(2)[dist.get_rank()], x), strict=True):
        run = DistributedDataParallel(model) if data is not x else model
        opt = AdamW(model.parameters(), lr=0.01, clip_norm=0.1)
        for _ in range(20):
            opt.zero_grad()
            run(data).square().mean().backward()
            opt.step()
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


@scenario(2)
def ddp_of_a_sparse_embedding():
    """Rows of all processes are gathered in their order, and divided by how many these are."""
    words = torch.arange(24).reshape(2, 12) % 7

    def network():
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Linear(4, 2, bias=False))
        for p in layers.parameters():
            p.data.mul_(8).round_().div_(8)
        return layers

    ours, other = network(), network()
    run = DistributedDataParallel(ours)
    options = {"lr": 0.5, "clip_norm": 0.25}
    opt, theirs = (Adagrad(m.parameters(), **options) for m in (ours, other))
    for t in range(3):
        opt.zero_grad()
        run((words[dist.get_rank()] + t) % 9).sum().backward()
        assert ours[0].weight.grad.is_sparse
        opt.step()
        theirs.zero_grad()
        (other((words + t) % 9).sum() / 2).backward()
        theirs.step()
    for p, q in zip(ours.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@scenario(2)
def in_backward():
    for options in ({}, {"momentum": 0.5}):
        model = Model()
        for part in model.parts:
            fully_shard(part)
        fully_shard(model)
        opt = SGD(model.parameters(), lr=0.5, **options)
        with step_in_backward(model, opt):
            for t in range(3):
                model(mine(t)).backward()
                assert all(p.grad is None for p in model.parameters())
        assert_same(model, alone(SGD, 3, lr=0.5, **options)[0])
    opt.param_groups[0]["clip_norm"] = 1.0
    opt.options.given["clip_by"] = "tensor"
    with pytest.raises(
        ValueError, match=r"params\[0\]: step_in_backward excludes clip_norm of DTensors"
    ):
        step_in_backward(model, opt)
    with pytest.raises(
        ValueError, match=r"params\[0\]: step_in_backward excludes LARS of DTensors"
    ):
        step_in_backward(model, LARS(model.parameters()))
    with pytest.raises(ValueError, match="opt: step_in_backward excludes Prodigy"):
        step_in_backward(model, Prodigy(model.parameters()))

    model = Model()
    opt = SGD(model.parameters())
    with pytest.raises(ValueError, match="model: step_in_backward excludes DistributedDataP"):
        step_in_backward(DistributedDataParallel(model), opt)
    with pytest.raises(ValueError, match="Prodigy: excludes ZeroRedundancyOptimizer"):
        ZeroRedundancyOptimizer(model.parameters(), Prodigy, lr=1.0)
    opt = ZeroRedundancyOptimizer(model.parameters(), SGD, lr=0.5).optim
    with pytest.raises(ValueError, match="opt: step_in_backward excludes ZeroRedundancyO"):
        step_in_backward(model, opt)


# --------------------------------------------------------------------------- split parameters


@scenario()
def zero():
    for i, (cls, options) in enumerate(OPTIONS + SUMMED):
        if cls is Prodigy:
            continue  # which is refused
        options = {key: value for key, value in options.items() if key != "zero_grads"}
        for groups in (False, True):
            model = Model()
            opt = ZeroRedundancyOptimizer(
                grouped(model) if groups else model.parameters(),
                cls,
                parameters_as_bucket_view=i % 2 == groups,
                **options,
            )
            records = train(DistributedDataParallel(model), opt, 4)
            other, _, expected = alone(cls, groups=groups, **options)
            assert_same(model, other)
            # All know the norm, also those without a parameter to clip.
            assert norms(records) == norms(expected)


def norms(records):
    return [record.partition("grad_norm=")[2].partition(",")[0] for record in records]


@scenario()
def zero_with_more_processes_than_parameters():
    model, other = Model(shapes=[(3,)]), Model(shapes=[(3,)])
    options = {"lr": 0.5, "clip_norm": 0.5, "nonfinite": "skip"}
    opt = ZeroRedundancyOptimizer(model.parameters(), SGD, **options)
    theirs = SGD(other.parameters(), **options)
    train(DistributedDataParallel(model), opt, 3)
    train(other, theirs, 3, batch)
    assert_same(model, other)


@scenario()
def zero_skips_together():
    for nonfinite in ("skip", "raise"):
        for bad in range(len(SHAPES)):
            model = Model()
            options = {"lr": 0.1, "nonfinite": nonfinite}
            opt = ZeroRedundancyOptimizer(model.parameters(), AdamW, **options)
            train(DistributedDataParallel(model), opt, 2)
            before = copy.deepcopy(model.state_dict())
            list(model.parameters())[bad].grad.view(-1)[0] = float("inf")
            if nonfinite == "skip":
                opt.step()
                assert (opt.optim.skipped, opt.optim.record.skipped) == (1, True)
            else:
                with pytest.raises(FloatingPointError, match="grads"):
                    opt.step()
            assert all(torch.equal(model.state_dict()[key], p) for key, p in before.items())


@scenario(2)
def zero_is_consolidated_and_loaded():
    options = {"lr": 0.1, "average": 0.5, "clip_norm": 2.0}
    model = Model()
    ddp = DistributedDataParallel(model)
    opt = ZeroRedundancyOptimizer(grouped(model), AdamW, **options)
    train(ddp, opt, 3)
    opt.consolidate_state_dict(to=0)
    saved = [opt.state_dict() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(saved, 0)
    weights = copy.deepcopy(model.state_dict())

    # Into the same again, which goes on as if nothing had been.
    again = Model()
    again.load_state_dict(weights)
    other = ZeroRedundancyOptimizer(grouped(again), AdamW, **options)
    other.load_state_dict(copy.deepcopy(saved[0]))
    train(DistributedDataParallel(again), other, 3, first=3)
    expected, theirs, _ = alone(AdamW, 6, groups=True, **options)
    assert_same(again, expected)
    assert other.optim.average.step == 6
    averages = other.optim.average.averages
    for p, q in zip(again.parameters(), expected.parameters(), strict=True):
        assert p not in averages or torch.equal(averages[p], theirs.average.averages[q])
    assert 0 < len(averages) < len(theirs.average.averages)

    # Each process has some of the averages: the model would be of both.
    before = copy.deepcopy(again.state_dict())
    with (
        pytest.raises(RuntimeError, match=r"swapped: expected the averages of all .* consolidate"),
        other.optim.average.swapped(),
    ):
        pass
    assert all(torch.equal(p, before[key]) for key, p in again.state_dict().items())

    # Into that of one process.
    single = Model()
    single.load_state_dict(weights)
    own = AdamW(grouped(single), **options)
    own.load_state_dict(copy.deepcopy(saved[0]))
    assert own.average.step == 3
    train(single, own, 3, batch, first=3)
    assert_same(single, expected)
    assert_same_averages(own, theirs, single, expected)

    # Into torch's own, where sums are rounded otherwise.
    torchs = Model()
    torchs.load_state_dict(weights)
    rival = torch.optim.AdamW(grouped(torchs))
    rival.load_state_dict(copy.deepcopy(saved[0]))
    assert rival.state[torchs.parts[0].weight]["step"].item() == 3


def assert_same_averages(opt, other, model, expected):
    with opt.average.swapped(), other.average.swapped():
        assert_same(model, expected)


@scenario(2)
def stochastic_rounding_depends_on_what_a_process_has():
    """Parts of the parameters are another draw: not the bits of one process, but next to them."""
    shapes, options = [(300, 2)] * 4, {"lr": 0.1, "rounding": "stochastic"}

    def trained(make, shard=False):
        model = Model(torch.bfloat16, shapes)
        if shard:
            fully_shard(model)
        opt = make(model.parameters())
        for p in model.parameters():
            grad = torch.ones(300, 2, dtype=torch.bfloat16)
            p.grad = distribute_tensor(grad, p.device_mesh, p.placements) if shard else grad
        opt.step()
        return [whole(p.detach()) for p in model.parameters()]

    expected = trained(lambda params: AdamW(params, **options))
    zero = trained(lambda params: ZeroRedundancyOptimizer(params, AdamW, **options))
    shards = trained(lambda params: AdamW(params, **options), shard=True)
    for found in (zero, shards):
        assert not all(map(torch.equal, found, expected))
        for p, q in zip(found, expected, strict=True):
            assert (p - q).abs().max() <= 0.5  # a unit in the last place of up to 75, of 8 bits


@scenario(2)
def zero_refuses_to_zero_gradients():
    """A process would zero those of its own parameters alone."""
    model = Model()
    with pytest.raises(ValueError, match="zero_grads: ZeroRedundancyOptimizer excludes"):
        ZeroRedundancyOptimizer(model.parameters(), AdamW, zero_grads=True)
    ZeroRedundancyOptimizer(model.parameters(), AdamW, zero_grads=False)


class Zero(ZeroRedundancyOptimizer):
    """One that makes another optimizer beside, before and after its own, and at a step."""

    def __init__(self, *args, **kwargs):
        self.beside = [self.one()]
        super().__init__(*args, **kwargs)
        self.beside.append(self.one())

    def one(self):
        return SGD([nn.Parameter(torch.ones(3))], lr=0.5, clip_norm=1.0, zero_grads=True)

    def step(self, *args, **kwargs):
        self.beside.append(self.one())
        return super().step(*args, **kwargs)


class Subclass(AdamW):
    """An optimizer with a constructor of its own in between."""

    def __init__(self, params, **options):
        super().__init__(params, **options)


@scenario(2)
def zero_splits_its_own_optimizer_alone():
    model = Model()
    opt = Zero(model.parameters(), Subclass, lr=0.1, clip_norm=2.0)
    train(DistributedDataParallel(model), opt, 3)
    assert opt.optim.is_split
    assert [one.is_split for one in opt.beside] == [False] * 5
    assert_same(model, alone(AdamW, 3, lr=0.1, clip_norm=2.0)[0])
    if dist.get_rank() == 0:  # who waits for nobody
        opt.beside[0].param_groups[0]["params"][0].grad = torch.ones(3)
        opt.beside[0].step()


@scenario(2)
def zero_refuses_copies():
    """They would know nothing of the processes."""
    opt = ZeroRedundancyOptimizer(Model().parameters(), AdamW, clip_norm=1.0).optim
    for make in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="copy: expected .* found the AdamW of a ZeroRedund"):
            make(opt)


@scenario(2)
def zero_refuses_to_overlap():
    """torch has no functional form of optimizers that aren't its own, and says so."""
    with pytest.raises(ValueError, match="no supported functional optimizer equivalent"):
        ZeroRedundancyOptimizer(Model().parameters(), AdamW, overlap_with_ddp=True)


# ------------------------------------------------------------------------------------- shards


def sharded(dtype=torch.float32, **how):
    model = Model(dtype)
    fully_shard(model.parts[3], **how)
    fully_shard(model, **how)
    return model


WAYS = [
    {},
    {"offload_policy": CPUOffloadPolicy(pin_memory=False)},
    {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)},
    {"reshard_after_forward": False},
]


@scenario()
def fsdp():
    for cls, options in OPTIONS:
        for how in WAYS if options is OPTIONS[-2][1] else WAYS[:1]:
            model = sharded(**how)
            opt = cls(model.parameters(), **options)
            records = train(model, opt, 4)
            other, theirs, expected = alone(cls, **options)
            assert_same(model, other)
            assert_same_states(opt, theirs, model.parameters(), other.parameters())
            assert records == expected
            if opt.average is not None:
                assert_same_averages(opt, theirs, model, other)


def assert_next(model, other):
    """What sums over shards change, in their last bits."""
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(whole(p.detach()), q.detach(), rtol=1e-6, atol=1e-7)


@scenario()
def fsdp_of_rules_that_add_up():
    for cls, options in SUMMED:
        model = sharded()
        opt = cls(model.parameters(), **options)
        opt.step()  # all without gradients
        train(model, opt, 1)
        one = alone(cls, 1, **options)[0]
        if cls is LARS:  # whose sums are exact here
            assert_same(model, one)
        train(model, opt, 3, first=1)
        assert_next(model, alone(cls, 4, **options)[0])
        # One that has a gradient waits for others, who have none.
        opt.zero_grad()
        for p in model.parameters():
            if dist.get_rank() == 0:
                p.grad = torch.zeros_like(p)
        opt.step()


@scenario(2)
def sums_that_fail():
    """States have been changed and parameters not, when another process is gone amid a step."""
    model = sharded()
    opt = LAMB(model.parameters(), lr=0.1)
    train(model, opt, 1)
    saved = copy.deepcopy(opt.state_dict())
    before = [whole(p.detach()).clone() for p in model.parameters()]
    added, _sharing.added = _sharing.added, gone
    with pytest.raises(RuntimeError, match=r"parameters not: go back to a checkpoint: .* gone"):
        train(model, opt, 1, first=1)
    _sharing.added = added
    assert all(map(torch.equal, map(whole, model.parameters()), before))
    averages = [entry["exp_avg"] for entry in opt.state.values()]
    kept = [entry["exp_avg"] for entry in saved["state"].values()]
    assert not any(map(torch.equal, map(whole, averages), map(whole, kept)))
    for lr in (0.1, 0.2):
        opt.param_groups[0]["lr"] = lr
        with pytest.raises(RuntimeError, match="the last one failed between its two sweeps"):
            opt.step()
    opt.load_state_dict(saved)
    train(model, opt, 2, first=1)
    assert_next(model, alone(LAMB, 3, lr=0.1)[0])


def gone(sums, group):
    raise RuntimeError("a process is gone")


@scenario(2)
def rules_of_wholes_are_refused_of_shards():
    """Also of those whose shard is all there is, or nothing."""
    model = sharded()
    opt = fastgd.torch.Adam(model.parameters())
    train(model, opt, 1)
    opt.param_groups[0]["amsgrad"] = True
    before = [whole(p.detach()).clone() for p in model.parameters()]
    row = RULES["amsgrad"]
    RULES["amsgrad"] = row._replace(shards=False)
    try:
        match = r"^params\[0\]\[0\].*: expected a whole parameter, as rule amsgrad does not step sh"
        for p in model.parameters():
            with pytest.raises(ValueError, match=match):
                fastgd.torch.Adam([p], amsgrad=True)
        with pytest.raises(ValueError, match=match):
            opt.step()
        assert all(map(torch.equal, map(whole, model.parameters()), before))
        fastgd.torch.Adam(Model().parameters(), amsgrad=True)
    finally:
        RULES["amsgrad"] = row


@scenario(4)
def fsdp_on_a_mesh_of_two_axes():
    """Replicas of shards, whose norm counts each shard once; and shards along two axes."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards"))
    for cls, options in OPTIONS:
        model = sharded(mesh=mesh)
        opt = cls(model.parameters(), **options)
        other, _, expected = alone(cls, **options)
        assert train(model, opt, 4) == expected
        assert_same(model, other)

        params, others = [], []
        for n in (8, 5):
            w = torch.arange(n * 3.0).reshape(n, 3)
            others.append(nn.Parameter(w.clone()))
            params.append(nn.Parameter(distribute_tensor(w, mesh, [Shard(0), Shard(1)])))
        plain = nn.Parameter(torch.ones(3))
        pair = [(params + [plain]), (others + [nn.Parameter(torch.ones(3))])]
        opts = [cls(ps, **options) for ps in pair]
        for t in range(3):
            for p, q in zip(*pair, strict=True):
                q.grad = torch.arange(q.numel()).reshape(q.shape) % 5 - float(t)
                p.grad = q.grad.clone()
                if isinstance(p, DTensor):
                    p.grad = distribute_tensor(q.grad.clone(), mesh, p.placements)
            for opt in opts:
                opt.step()
            assert str(opts[0].record) == str(opts[1].record)
        for p, q in zip(*pair, strict=True):
            assert torch.equal(whole(p), q)


@scenario()
def fsdp_skips_together():
    for nonfinite in ("skip", "raise"):
        for bad in range(dist.get_world_size()):
            model = sharded()
            opt = AdamW(model.parameters(), lr=0.1, nonfinite=nonfinite)
            train(model, opt, 2)
            before = [whole(p).clone() for p in model.parameters()]
            if dist.get_rank() == bad:
                model.parts[3].weight.grad.to_local()[0] = float("nan")
            if nonfinite == "skip":
                opt.step()
                assert (opt.skipped, opt.record.skipped) == (1, True)
            else:
                here = dist.get_rank() == bad
                where = r"grads\[0\]\[3\]: .* found nan" if here else "another process"
                with pytest.raises(FloatingPointError, match=where):
                    opt.step()
            assert all(map(torch.equal, before, map(whole, model.parameters())))


@scenario(2)
def fsdp_in_16_bits():
    """A master of shards is a shard; codecs with blocks of 256 elements are refused."""
    model = sharded(torch.bfloat16)
    opt = AdamW(model.parameters(), lr=0.1, master=True, clip_norm=2.0)
    train(model, opt, 3)
    other = Model(torch.bfloat16)
    theirs = AdamW(other.parameters(), lr=0.1, master=True, clip_norm=2.0)
    for t in range(3):
        theirs.zero_grad()
        other(batch(t)).backward()
        theirs.step()
    assert_same(model, other)
    assert_same_states(opt, theirs, model.parameters(), other.parameters())
    with pytest.raises(ValueError, match="expected states of 16 bits or more for a DTensor"):
        AdamW(sharded().parameters(), state_dtype="8bit", min_8bit_size=1)


@scenario(2)
def processes_without_gradients_take_part():
    """Whoever has none still hands on its part of the norm, which is nothing."""
    model = sharded()
    opt = SGD(model.parameters(), lr=0.5, clip_norm=1.0)
    opt.step()
    train(model, opt, 1)
    opt.zero_grad()
    opt.step()
    assert_same(model, alone(SGD, 1, lr=0.5, clip_norm=1.0)[0])


@scenario(2)
def flat_parameters_are_refused_where_norms_are_wanted():
    """FullyShardedDataParallel's say neither who has the rest of them, nor what they are."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    for original in (False, True):
        model = FullyShardedDataParallel(
            nn.Linear(4, 4), device_id=torch.device("cpu"), use_orig_params=original
        )
        opt = SGD(model.parameters(), lr=0.5, clip_norm=1.0)
        model(torch.ones(2, 4)).sum().backward()
        for wants in (opt, LAMB(model.parameters())):
            with pytest.raises(
                ValueError, match=r"params\[0\]\[0\]: expected parameters of fully_shard"
            ):
                wants.step()
        opt.param_groups[0]["clip_norm"] = None
        opt.step()
        opt.param_groups[0]["clip_ratio"] = 0.1
        with pytest.raises(
            ValueError, match=r"params\[0\]\[0\].*: clip_ratio: expected None for sh"
        ):
            opt.step()


@scenario(2)
def norms_of_units_are_refused_of_shards():
    model = sharded()
    with pytest.raises(
        ValueError, match=r"^params\[0\]\[0\]: clip_ratio: expected None for shards"
    ):
        SGD(model.parameters(), lr=0.5, clip_ratio=0.1)
    with pytest.raises(
        ValueError, match=r"^params\[0\]\[0\]: centralize: expected False for shards"
    ):
        SGD(model.parameters(), lr=0.5, centralize=True)
    opt = SGD(model.parameters(), lr=0.5)
    train(model, opt, 1)
    opt.param_groups[0]["clip_ratio"] = 0.1
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(
        ValueError, match=r"^params\[0\]\[0\]: clip_ratio: expected None for shards"
    ):
        opt.step()
    assert all(
        torch.equal(whole(p), whole(q)) for p, q in zip(model.parameters(), before, strict=True)
    )


@scenario()
def norms_of_units_where_parameters_are_whole():
    """By DistributedDataParallel, and split among processes one by one."""
    for options in (
        {"clip_ratio": 0.25},
        {"clip_ratio": 0.25, "clip_norm": 2.0, "centralize": True},
    ):
        other, *_ = alone(SGD, 3, lr=0.5, **options)
        for split in (False, True):
            model = DistributedDataParallel(Model())
            if split:
                opt = ZeroRedundancyOptimizer(model.parameters(), SGD, lr=0.5, **options)
            else:
                opt = SGD(model.parameters(), lr=0.5, **options)
            train(model, opt, 3)
            assert_same(model.module, other)


# -------------------------------------------------------------------------------- checkpoints

SAVED = {"lr": 0.1, "average": 0.5, "clip_norm": 2.0}


@scenario(4)
def saved_by_four():
    model = sharded()
    opt = AdamW(grouped(model), **SAVED)
    train(model, opt, 3)
    state = {"opt": get_optimizer_state_dict(model, opt), "model": model.state_dict()}
    dcp.save(state, checkpoint_id=os.environ["FASTGD_SHARED"])


@scenario(4)
def numbers_saved_by_four():
    model = sharded()
    opt = NAdam(model.parameters(), lr=0.1)
    train(model, opt, 3)
    state = {"opt": get_optimizer_state_dict(model, opt), "model": model.state_dict()}
    dcp.save(state, checkpoint_id=os.environ["FASTGD_SHARED"] + "-numbers")


@scenario(2)
def numbers_loaded_by_two():
    """A number that is kept of each parameter is none of its shards'."""
    model = sharded()
    opt = NAdam(model.parameters(), lr=0.1)
    state = {"opt": get_optimizer_state_dict(model, opt), "model": model.state_dict()}
    dcp.load(state, checkpoint_id=os.environ["FASTGD_SHARED"] + "-numbers")
    set_optimizer_state_dict(model, opt, state["opt"])
    model.load_state_dict(state["model"])
    train(model, opt, 3, first=3)
    other, theirs, _ = alone(NAdam, 6, lr=0.1)
    assert_same(model, other)
    assert_same_states(opt, theirs, model.parameters(), other.parameters())


@scenario(2)
def loaded_by_two():
    model = sharded()
    opt = AdamW(grouped(model), **SAVED)
    state = {"opt": get_optimizer_state_dict(model, opt), "model": model.state_dict()}
    dcp.load(state, checkpoint_id=os.environ["FASTGD_SHARED"])
    set_optimizer_state_dict(model, opt, state["opt"])
    model.load_state_dict(state["model"])
    assert opt.average.step == 3
    train(model, opt, 3, first=3)
    other, theirs, _ = alone(AdamW, 6, groups=True, **SAVED)
    assert_same(model, other)
    assert_same_states(opt, theirs, model.parameters(), other.parameters())
    assert_same_averages(opt, theirs, model, other)
    assert opt.average.step == 6

    # All of it in one process, and out of it again.
    full = get_optimizer_state_dict(model, opt, options=StateDictOptions(full_state_dict=True))
    single = Model()
    own = AdamW(grouped(single), **SAVED)
    single.load_state_dict({key: whole(p) for key, p in model.state_dict().items()})
    set_optimizer_state_dict(single, own, full)
    train(single, own, 2, batch, first=6)
    other, *_ = alone(AdamW, 8, groups=True, **SAVED)
    assert_same(single, other)


def main(rank, world, folder):
    """Run all scenarios of this number of processes, and write down what each raised."""
    torch.set_num_threads(1)
    results, file = {}, Path(folder, f"{world}-{rank}.json")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store-{world}",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=20),
    )
    for name, (function, worlds) in SCENARIOS.items():
        if world in worlds:
            try:
                function()
                results[name] = ""
                dist.barrier()
            except BaseException:
                results[name] = traceback.format_exc()
                break  # the others are somewhere else, and so is the process group
            finally:
                file.write_text(json.dumps(results))
    else:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
