"""fastgd.torch on real models: a network on digits, a transformer block, convolutions, DTensors."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0")

from torch import nn

import fastgd.torch
from fastgd.torch import SGD, AdamW, step_in_backward


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small only wait for torch's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def digits():
    data = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    x, y = data.load_digits(return_X_y=True)
    return torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


class Block(nn.Module):
    """An embedding, whose gradient is dense, attention and normalisation, with tied weights."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.layer(self.embed(tokens)))


def convolutions():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    return model.to(memory_format=torch.channels_last)


def losses_of(model, opt, batches, scheduler=None):
    losses = []
    for x, y in batches:
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(x).flatten(0, -2), y.flatten())
        loss.backward()
        opt.step()
        if scheduler:
            scheduler.step()
        losses.append(loss.item())
    return losses


def test_digits():
    x, y = digits()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    batches = [(x[k], y[k]) for _ in range(10) for k in order.split(100)]
    curves = []
    for module in (fastgd.torch, torch.optim):
        model = mlp()
        opt = module.AdamW(model.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(opt, 0.02, len(batches))
        curves.append(losses_of(model, opt, batches, schedule))
        assert (model(x).argmax(1) == y).float().mean() > 0.97
    torch.testing.assert_close(*map(torch.tensor, curves), rtol=0.01, atol=1e-3)


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "RMSprop", "Adam", "AdamW"])
def test_a_transformer_block(name):
    make = torch.Generator().manual_seed(0)
    batches = [(t, t.roll(1, 1)) for t in torch.randint(11, (8, 4, 6), generator=make)]
    curves = []
    torch.manual_seed(0)
    first = Block().double()
    for module in (fastgd.torch, torch.optim):
        model = copy.deepcopy(first)
        decayed = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others}]
        opt = getattr(module, name)(groups, lr=0.01)
        curves.append(losses_of(model, opt, batches))
    torch.testing.assert_close(*map(torch.tensor, curves), rtol=1e-10, atol=0)


def test_convolutions_in_channels_last():
    make = torch.Generator().manual_seed(0)
    x = torch.randn(16, 3, 8, 8, generator=make).to(memory_format=torch.channels_last)
    batches = [(x, (x.mean((1, 2, 3)) > 0).long())] * 10
    curves = []
    for module in (fastgd.torch, torch.optim):
        model = convolutions()
        assert not model[0].weight.is_contiguous()
        opt = module.AdamW(model.parameters(), lr=0.01)
        curves.append(losses_of(model, opt, batches))
        state = opt.state[model[0].weight]["exp_avg"]
        assert state.stride() == model[0].weight.stride()
    torch.testing.assert_close(*map(torch.tensor, curves), rtol=1e-4, atol=1e-5)


# -------------------------------------------------------------------------- steps in backward


@pytest.mark.parametrize("name", ["SGD", "Momentum", "Adagrad", "RMSprop", "Adam", "AdamW"])
def test_steps_in_backward_are_the_same(name):
    x, y = digits()
    twins, seen = [], []
    for hot in (True, False):
        model = mlp()
        opt = getattr(fastgd.torch, name)(
            [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.003}],
            lr=0.01,
            weight_decay=0.01,
        )
        schedule = torch.optim.lr_scheduler.StepLR(opt, 5, 0.5)
        if hot:
            handle = step_in_backward(model, opt)
        for k in range(12):
            batch = slice(100 * k, 100 * k + 100)
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            seen.append([p.grad is None for p in model.parameters()])
            if not hot:
                opt.step()
                opt.zero_grad()
            schedule.step()
        twins.append((model, opt, schedule))
    assert all(map(all, seen[:12]))
    assert not any(map(any, seen[12:]))
    for a, b in zip(twins[0][0].parameters(), twins[1][0].parameters(), strict=True):
        assert torch.equal(a, b)
    states = [sorted(opt.state_dict()["state"].items()) for _, opt, _ in twins]
    assert str(states[0]) == str(states[1])
    # And back to steps of their own, from the same states.
    handle.remove()
    handle.remove()
    for model, opt, _ in twins:
        nn.functional.cross_entropy(model(x), y).backward()
        assert all(p.grad is not None for p in model.parameters())
        opt.step()
    for a, b in zip(twins[0][0].parameters(), twins[1][0].parameters(), strict=True):
        assert torch.equal(a, b)


def test_gradients_are_freed_one_by_one():
    model = nn.Sequential(*[nn.Linear(50, 50) for _ in range(20)])
    opt = SGD(model.parameters(), lr=0.01)
    most = []

    def count(p):
        most.append(sum(q.grad is not None for q in model.parameters()))

    # After ours, as hooks run in the order in which they came.
    with step_in_backward(model, opt):
        hooks = [p.register_post_accumulate_grad_hook(count) for p in model.parameters()]
        model(torch.ones(1, 50)).sum().backward()
    assert most == [0] * 40
    for hook in hooks:
        hook.remove()


def test_a_step_of_its_own_finds_nothing_left():
    model = nn.Linear(2, 1)
    extra = nn.Parameter(torch.zeros(1))
    opt = AdamW([*model.parameters(), extra], lr=0.1)
    with step_in_backward(model, opt):
        for _ in range(3):
            (model(torch.ones(1, 2)) + extra).sum().backward()
            assert model.weight.grad is None
            before = model.weight.detach().clone()
            opt.step()  # of what the model doesn't have, as ever
            opt.zero_grad()
            assert torch.equal(model.weight, before)
        assert opt.state[model.weight]["step"].item() == opt.state[extra]["step"].item() == 3


def test_groups_may_change_while_stepping_in_backward():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    opt = SGD(model.parameters(), lr=1.0)
    with step_in_backward(model, opt):
        model(torch.ones(1, 1)).sum().backward()
        opt.param_groups.insert(0, {**opt.param_groups[0], "params": []})
        opt.param_groups[1]["lr"] = 0.5
        model(torch.ones(1, 1)).sum().backward()
        assert model.weight.item() == -1.5
        opt.param_groups.clear()
        with pytest.raises(ValueError, match="opt: no longer has a parameter"):
            model(torch.ones(1, 1)).sum().backward()


def test_states_may_change_while_stepping_in_backward():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    opt = SGD(model.parameters(), lr=1.0, momentum=0.5)
    with step_in_backward(model, opt):
        model(torch.ones(1, 1)).sum().backward()  # V = 1
        opt.load_state_dict(opt.state_dict())
        opt.state[model.weight]["momentum_buffer"].fill_(8.0)
        model(torch.ones(1, 1)).sum().backward()  # V = 5
        opt.state.clear()
        model(torch.ones(1, 1)).sum().backward()  # V = 1
    assert model.weight.item() == -7


def test_bad_gradients_in_backward():
    layer = nn.Embedding(5, 3, sparse=True)
    loss = layer(torch.tensor([1])).sum()
    step_in_backward(layer, SGD(layer.parameters(), momentum=0.9))
    with pytest.raises(ValueError, match=r"grads\[0\]\[0\]: rule .*rows=\"lazy\""):
        loss.backward()


def test_what_can_not_be_stepped_in_backward():
    model = nn.Linear(2, 1)
    with pytest.raises(TypeError, match=r"opt: expected an optimizer of fastgd\.torch, found SGD"):
        step_in_backward(model, torch.optim.SGD(model.parameters()))
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, found list"):
        step_in_backward([1], SGD(model.parameters()))
    with pytest.raises(ValueError, match="model: expected parameters that opt has"):
        step_in_backward(nn.Linear(2, 1), SGD(model.parameters()))


# ------------------------------------------------------------------------------------ DTensor


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    """A mesh of one process."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    file = tmp_path_factory.mktemp("mesh") / "store"
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def sharded(mesh, placement, shape=(4, 3)):
    from torch.distributed.tensor import distribute_tensor

    whole = torch.arange(12.0, dtype=torch.float64).reshape(shape)
    return nn.Parameter(distribute_tensor(whole, mesh, [placement]))


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adagrad"])
def test_dtensors(mesh, name):
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    options = {"lr": 0.1} | ({"momentum": 0.9} if name == "SGD" else {})
    for placement in (Shard(0), Shard(1), Replicate()):
        p = sharded(mesh, placement)
        q = nn.Parameter(p.full_tensor().detach().clone())
        ours = getattr(fastgd.torch, name)([p], **options)
        theirs = getattr(torch.optim, name)([q], **options)
        for t in range(4):
            q.grad = torch.full_like(q, 1.0 + t)
            p.grad = distribute_tensor(q.grad.clone(), mesh, [placement])
            ours.step()
            theirs.step()
        torch.testing.assert_close(p.full_tensor(), q, rtol=1e-12, atol=0)
        for key, value in theirs.state[q].items():
            state = ours.state[p][key]
            if key != "step":
                assert isinstance(state, DTensor)
                assert state.placements == p.placements
                state = state.full_tensor()
            torch.testing.assert_close(state, value, rtol=1e-12, atol=0)
        # A state dict of DTensors goes on in another optimizer.
        other = getattr(fastgd.torch, name)([p], **options)
        other.load_state_dict(copy.deepcopy(ours.state_dict()))
        q.grad = torch.ones_like(q)
        p.grad = distribute_tensor(q.grad.clone(), mesh, [placement])
        other.step()
        theirs.step()
        torch.testing.assert_close(p.full_tensor(), q, rtol=1e-12, atol=0)


def test_dtensors_refused(mesh):
    from torch.distributed.tensor import DTensor, Partial, Shard

    p = sharded(mesh, Shard(0))
    opt = SGD([p])
    p.grad = DTensor.from_local(torch.ones(4, 3, dtype=torch.float64), mesh, [Partial()])
    with pytest.raises(ValueError, match=r"grads\[0\]\[0\]: expected placements"):
        opt.step()
