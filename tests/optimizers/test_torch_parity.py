"""torch.optim, in float64: the same trajectories, and state dicts that go both ways."""

from __future__ import annotations

import numpy as np
import pytest
from support.helpers import same_bits

import fastgd
from fastgd.optimizers import OPTIMIZERS

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0")
from support.torch_pairs import CASES, OPTIONS, exact_numbers

SHAPES = [(5, 3), (300,), ()]


class Pair:
    """The same parameters under fastgd and under torch, fed the same gradients."""

    def __init__(self, name, options, seed=0):
        self.name, self.rng = name, np.random.default_rng(seed)
        self.ours = [np.asarray(self.rng.standard_normal(shape)) for shape in SHAPES]
        self.theirs = [torch.nn.Parameter(torch.tensor(p)) for p in self.ours]
        self.opt = OPTIMIZERS[name](self.ours, **options)
        self.torch_opt = getattr(torch.optim, name)(self.theirs, **options, foreach=False)

    def step(self, ours=True, theirs=True):
        grads = [np.asarray(self.rng.standard_normal(shape) + 0.1) for shape in SHAPES]
        for p, g in zip(self.theirs, grads, strict=True):
            p.grad = torch.tensor(g)
        if ours:
            self.opt.step(grads)
        if theirs:
            with exact_numbers(self.name):
                self.torch_opt.step()

    def assert_close(self, rel=1e-12):
        for p, q in zip(self.ours, self.theirs, strict=True):
            np.testing.assert_allclose(p, q.detach().numpy(), rtol=rel, atol=1e-14)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_trajectories(name, options):
    pair = Pair(name, options)
    for _ in range(100):
        pair.step()
        pair.assert_close()


@pytest.mark.parametrize(("name", "options"), CASES)
def test_state_dict_from_torch(name, options):
    old, new = Pair(name, options), Pair(name, options)
    for _ in range(5):
        old.step(ours=False)
    for p, q in zip(new.ours, old.theirs, strict=True):
        p[...] = q.detach().numpy()
    new.opt.load_state_dict(old.torch_opt.state_dict())
    new.theirs, new.torch_opt = old.theirs, old.torch_opt
    for _ in range(5):
        new.step()
        new.assert_close()


@pytest.mark.parametrize("before", [0, 5])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_state_dict_to_torch(name, options, before):
    old, new = Pair(name, options), Pair(name, options)
    for _ in range(before):
        old.step(theirs=False)
    state = old.opt.state_dict()
    for entry in state["state"].values():
        for key in entry:
            entry[key] = torch.tensor(entry[key], dtype=torch.float64)
            if key == "step":
                entry[key] = entry[key].float()
    for group in state["param_groups"]:
        group.pop("param_names")
        group.update(new.torch_opt.state_dict()["param_groups"][0] | group)
    with torch.no_grad():
        for p, q in zip(old.ours, new.theirs, strict=True):
            q.copy_(torch.tensor(p))
    new.torch_opt.load_state_dict(state)
    new.ours, new.opt = old.ours, old.opt
    for _ in range(5):
        new.step()
        new.assert_close()


def test_momentum_switched_on_later_starts_like_torchs():
    pair = Pair("SGD", {"lr": 0.1, "dampening": 0.5})
    pair.step()
    for group in (*pair.opt.param_groups, *pair.torch_opt.param_groups):
        group["momentum"] = 0.9
    for _ in range(3):
        pair.step()
        pair.assert_close()


def test_named_parameters_of_torch_load_into_a_list():
    model = torch.nn.Linear(3, 2)
    theirs = torch.optim.SGD(model.named_parameters(), momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    theirs.step()
    for params in ([np.zeros((2, 3), "f4"), np.zeros(2, "f4")],) * 2:
        for given in (params, [{"params": params}]):
            ours = OPTIMIZERS["SGD"](given)
            ours.load_state_dict(theirs.state_dict())
            buffers = [s["momentum_buffer"] for s in ours.state.values()]
            assert np.array_equal(buffers[0], np.ones((2, 3)))


@pytest.mark.parametrize("name", OPTIONS)
def test_defaults_are_torchs(name):
    ours = OPTIMIZERS[name]([np.zeros(1)]).param_groups[0]
    theirs = getattr(torch.optim, name)([torch.zeros(1)]).param_groups[0]
    for key in set(ours) & set(theirs) - {"params"}:
        assert ours[key] == theirs[key], key


def test_decoupled_decay_is_not_loaded_into_adam():
    theirs = torch.optim.Adam([torch.zeros(1)], decoupled_weight_decay=True).state_dict()
    with pytest.raises(ValueError, match="expected decoupled_weight_decay to be False, found True"):
        OPTIMIZERS["Adam"]([np.zeros(1)]).load_state_dict(theirs)


def test_tensors_are_updated_in_place():
    p = torch.nn.Parameter(torch.ones(3))
    opt = OPTIMIZERS["SGD"]([p], lr=0.5)
    (p * p).sum().backward()
    opt.step([p.grad])
    assert p.tolist() == [0, 0, 0]


def test_tensors_that_cannot_be():
    strided = torch.zeros(4, 6).t()[::2]
    for bad, error, message in (
        (torch.zeros(3, device="meta"), TypeError, "in CPU memory, found torch.Tensor"),
        (torch.zeros(3, dtype=torch.int32), TypeError, "dtype"),
        (torch.zeros(3, dtype=torch.bfloat16), ValueError, "is bfloat16, which small updates"),
        (strided, ValueError, "contiguous"),
    ):
        with pytest.raises(error, match=message):
            OPTIMIZERS["SGD"]([bad])


def test_bfloat16_tensors_in_place():
    p = torch.ones(5000, dtype=torch.bfloat16)
    g = torch.full((5000,), 0.5, dtype=torch.bfloat16)
    opt = fastgd.SGD(p, lr=1.0, master="split")
    opt.step(g)
    assert (p == 0.5).all()
    assert (g == 0.5).all()


def test_a_checkpoint_of_tensors(tmp_path):
    model, twin = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    model.register_buffer("count", torch.tensor([5]))
    twin.register_buffer("count", torch.tensor([0]))
    opt = fastgd.Adam(dict(model.named_parameters()))
    opt.step({name: np.ones(p.shape, np.float32) for name, p in model.named_parameters()})
    fastgd.save(tmp_path / "run", opt, params=model.state_dict())
    other = fastgd.Adam(dict(twin.named_parameters()))
    fastgd.load(tmp_path / "run", other, params=twin.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(twin.state_dict()[name], tensor)
    assert same_bits(other.state["weight"]["exp_avg"], opt.state["weight"]["exp_avg"])
