"""fastgd.torch with parameters of 16 bits, and states in fewer bits than the compute dtype."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
from support.sampling import optimizers

import fastgd

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0")

import fastgd.torch
from fastgd.torch import SGD, Adagrad, AdamW

SIZES = [1, 15, 16, 17, 31, 32, 33, 255, 256, 257, 5000]
HALVES = [torch.bfloat16, torch.float16]
NAMES = optimizers()


def parameters(dtype, seed=0):
    make = torch.Generator().manual_seed(seed)
    values = [torch.randn(n, generator=make) for n in SIZES]
    values.append(torch.randn(4, 3, 2, 2, generator=make).to(memory_format=torch.channels_last))
    return [torch.nn.Parameter(v.to(dtype)) for v in values]


def draw(params, t, dtype=None):
    make = torch.Generator().manual_seed(t + 1)
    for p in params:
        g = (torch.randn(p.shape, generator=make) + 0.1).to(dtype or p.dtype)
        p.grad = torch.empty_like(p, dtype=g.dtype).copy_(g)


def bits(t):
    return t.detach().contiguous().view(torch.int16 if t.element_size() == 2 else torch.int32)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", NAMES)
def test_with_a_master_training_is_that_of_float32(name, dtype):
    params = parameters(dtype)
    twins = [torch.nn.Parameter(p.detach().float()) for p in params]
    opt = getattr(fastgd.torch, name)(params, lr=0.01, master=True)
    twin = getattr(fastgd.torch, name)(twins, lr=0.01)
    for t in range(8):
        draw(params, t)
        for p, q in zip(params, twins, strict=True):
            q.grad = p.grad.float()
        opt.step()
        twin.step()
        for p, q in zip(params, twins, strict=True):
            assert p.dtype == dtype
            assert torch.equal(opt.state[p]["master"], q)
            assert torch.equal(p, q.to(dtype))
    for p, q in zip(params, twins, strict=True):
        for key, value in twin.state[q].items():
            assert torch.equal(opt.state[p][key], value), key


@pytest.mark.parametrize("name", NAMES)
def test_a_split_master_is_the_same(name):
    options = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    params, twins = parameters(torch.bfloat16), parameters(torch.bfloat16)
    opt = getattr(fastgd.torch, name)(params, lr=0.01, master="split", **options)
    twin = getattr(fastgd.torch, name)(twins, lr=0.01, master=True, **options)
    for t in range(6):
        draw(params, t)
        draw(twins, t)
        opt.step()
        twin.step()
    for p, q in zip(params, twins, strict=True):
        low = opt.state[p]["master_low"]
        assert low.dtype == torch.int16
        assert low.shape == p.shape
        whole = (p.detach().view(torch.int16).int() << 16) + low.int()
        assert torch.equal(whole.view(torch.float32), twin.state[q]["master"])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_rounded_as_on_arrays(rounding, name, dtype):
    params = parameters(dtype)[:-1]
    view = torch.uint16 if dtype == torch.bfloat16 else torch.float16
    arrays = [p.detach().clone().view(view).numpy() for p in params]
    options = {"lr": 0.01, "rounding": rounding, "seed": 11}
    opt = getattr(fastgd.torch, name)(params, **options)
    bare = getattr(fastgd, name)([{"params": arrays}], **options)
    memory = [p.data_ptr() for p in params]
    for t in range(5):
        draw(params, t)
        opt.step()
        bare.step([[p.grad.view(view).numpy() for p in params]])
        for p, a in zip(params, arrays, strict=True):
            assert np.array_equal(p.detach().view(view).numpy().view(np.int16), a.view(np.int16))
    assert memory == [p.data_ptr() for p in params]


def test_rounding_by_chance_keeps_small_updates():
    params = [torch.nn.Parameter(torch.ones(20000, dtype=torch.bfloat16)) for _ in range(2)]
    for p, rounding in zip(params, ("nearest", "stochastic"), strict=True):
        opt = SGD([p], lr=1e-3, rounding=rounding)
        for _ in range(20):
            p.grad = torch.ones_like(p)
            opt.step()
    assert params[0].eq(1).all()
    assert abs(params[1].detach().double().mean().item() - 0.98) < 1e-3


def test_mixed_dtypes():
    model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.LayerNorm(30))
    model[0].to(torch.bfloat16)
    model.append(torch.nn.Linear(30, 4).double()).append(torch.nn.Linear(4, 3).half())
    opt = AdamW(model.parameters(), lr=0.01, master=True, clip_norm=1.0, average=0.5)
    for t in range(3):
        draw(list(model.parameters()), t)
        opt.step()
    for p in model.parameters():
        entry = opt.state[p]
        wide = torch.float64 if p.dtype == torch.float64 else torch.float32
        assert ("master" in entry) == (p.element_size() == 2)
        assert {entry[key].dtype for key in ("exp_avg", "exp_avg_sq", "average")} == {wide}
    before = [p.detach().clone() for p in model.parameters()]
    with opt.average.swapped():
        for p in model.parameters():
            assert torch.equal(p, opt.state[p]["average"].to(p.dtype))
    assert all(map(torch.equal, model.parameters(), before))


def test_gradients_of_other_dtypes():
    p, q = (torch.nn.Parameter(torch.ones(300)) for _ in range(2))
    q.grad_dtype = None
    ours, theirs = SGD([q], lr=0.5), SGD([p], lr=0.5)
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float16):
        q.grad = torch.randn(300).to(dtype)
        p.grad = q.grad.float()
        ours.step()
        theirs.step()
        assert torch.equal(p, q)
    q.grad = torch.ones(300, dtype=torch.int32)
    with pytest.raises(TypeError, match=r"grads\[0\]\[0\]: expected dtype .*found torch.int32"):
        ours.step()
    assert torch.equal(p, q)


# ------------------------------------------------------------------------------------ states


def test_states_of_8_bits_are_visible():
    params = parameters(torch.float32)
    opt = AdamW(params, state_dtype="8bit", min_8bit_size=256)
    draw(params, 0)
    opt.step()
    for p in params:
        entry = opt.state[p]
        if p.numel() < 256:
            assert entry["exp_avg"].dtype == torch.float32
            assert "exp_avg_exponent" not in entry
            continue
        for key in ("exp_avg", "exp_avg_sq"):
            assert entry[key].dtype == entry[f"{key}_exponent"].dtype == torch.uint8
            assert entry[key].shape == p.shape
            assert entry[f"{key}_exponent"].shape == (-(-p.numel() // 256),)
    opt.state[params[-2]]["exp_avg"].zero_()
    twin = copy.deepcopy(opt)
    draw(params, 1)
    draw(twin.param_groups[0]["params"], 1)
    opt.step()
    twin.step()
    assert all(map(torch.equal, params, twin.param_groups[0]["params"]))


def test_states_of_16_bits_are_visible():
    params = parameters(torch.float32)
    opt = AdamW(params, state_dtype={"exp_avg": "bfloat16", "exp_avg_sq": "float16"})
    draw(params, 0)
    opt.step()
    for p in params:
        assert opt.state[p]["exp_avg"].dtype == torch.bfloat16
        assert opt.state[p]["exp_avg_sq"].dtype == torch.float16
        assert opt.state[p]["exp_avg"].stride() == p.stride()
    held = opt.state[params[0]]["exp_avg"]
    draw(params, 1)
    opt.step()
    assert opt.state[params[0]]["exp_avg"] is held


def test_accumulators_start_where_they_should():
    p = torch.nn.Parameter(torch.zeros(5000, dtype=torch.bfloat16))
    opt = Adagrad([p], initial_accumulator_value=0.1, master=True, state_dtype="8bit")
    assert opt.state[p]["sum"].dtype == torch.float32
    p.grad = torch.zeros_like(p)
    opt.step()
    assert opt.state[p]["sum"].dtype == torch.uint8
    opt.state[p] = {"sum": torch.full_like(p, 4.0)}
    p.grad.fill_(1e-3)
    opt.step()
    sums = copy.deepcopy(opt.state_dict())
    wide = torch.nn.Parameter(torch.zeros(5000, dtype=torch.bfloat16))
    other = Adagrad([wide], master=True)
    other.load_state_dict(sums)
    wide.grad = torch.zeros_like(wide)
    other.step()
    assert torch.allclose(other.state[wide]["sum"], torch.tensor(4.0), rtol=0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"master": True},
        {"master": "split"},
        {"rounding": "stochastic"},
        {"master": True, "state_dtype": "8bit", "min_8bit_size": 1},
        {"master": "split", "state_dtype": "bfloat16", "average": 0.9},
    ],
)
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_saved_and_loaded(name, options):
    options = {"lr": 0.1, "seed": 5, **options} | ({"momentum": 0.9} if name == "SGD" else {})
    params = parameters(torch.bfloat16)
    opt = getattr(fastgd.torch, name)(params, **options)
    for t in range(3):
        draw(params, t)
        opt.step()
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = getattr(fastgd.torch, name)(copies, **{**options, "seed": 0})
    other.load_state_dict(torch.load(file, weights_only=True))
    for p, q in zip(params, copies, strict=True):
        assert opt.state[p].keys() == other.state[q].keys()
        for key, value in opt.state[p].items():
            assert value.dtype == other.state[q][key].dtype
            assert torch.equal(value, other.state[q][key])
    for t in range(3, 6):
        draw(params, t)
        draw(copies, t)
        opt.step()
        other.step()
    for p, q in zip(params, copies, strict=True):
        assert torch.equal(bits(p), bits(q))


def test_states_are_loaded_into_other_storage():
    params = parameters(torch.float32)
    opt = AdamW(params, lr=0.01)
    for t in range(3):
        draw(params, t)
        opt.step()
    wide = copy.deepcopy(opt.state_dict())
    narrow = AdamW([torch.nn.Parameter(p.detach().clone()) for p in params], state_dtype="8bit",
                   min_8bit_size=1)  # fmt: skip
    narrow.load_state_dict(wide)
    for p in narrow.param_groups[0]["params"]:
        p.grad = None
    params2 = narrow.param_groups[0]["params"]
    draw(params2, 3)
    narrow.step()
    back = AdamW([torch.nn.Parameter(p.detach().clone()) for p in params])
    back.load_state_dict(copy.deepcopy(narrow.state_dict()))
    draw(params, 3)
    opt.step()
    draw(back.param_groups[0]["params"], 4)
    for p, q in zip(params, back.param_groups[0]["params"], strict=True):
        assert q.shape == p.shape
    back.param_groups[0].update(betas=(1 - 1e-9, 1 - 1e-9))
    back.step()
    for p, q in zip(params, back.param_groups[0]["params"], strict=True):
        a, b = opt.state[p]["exp_avg"], back.state[q]["exp_avg"]
        assert b.dtype == torch.float32
        # Three bits of a fraction each, rounded twice, the second time of a smaller sum.
        assert (a - b).abs().max() <= a.abs().max() / 2


def test_codes_follow_another_layout():
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(8, 16, 4, 4))
    opt = AdamW([p], state_dtype="8bit", min_8bit_size=1, lr=0.0)
    p.grad = torch.randn(p.shape) * torch.logspace(-3, 3, 8)[:, None, None, None]
    opt.step()
    wide = AdamW([p], lr=0.0)
    wide.load_state_dict(opt.state_dict())
    opt.param_groups[0]["betas"] = (1 - 1e-9, 1 - 1e-9)
    wide.param_groups[0]["betas"] = (1 - 1e-9, 1 - 1e-9)
    wide.step()
    before = wide.state[p]["exp_avg"].clone()
    p.data = p.data.to(memory_format=torch.channels_last)
    p.grad = torch.zeros_like(p)
    opt.step()
    assert opt.state[p]["exp_avg"].stride() == p.stride()
    wide.load_state_dict(opt.state_dict())
    wide.step()
    close = (wide.state[p]["exp_avg"] - before).abs() / before.abs().amax((1, 2, 3), keepdim=True)
    # The tiles of the new layout hold other elements, whose largest sets what the smallest keep.
    assert close[-1].max() < 0.1


# ------------------------------------------------------------------------------------ masters


def test_what_is_written_to_parameters_gets_into_their_masters():
    p = torch.nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    opt = SGD([p], lr=2.0**-10, master=True)
    for _ in range(2):
        p.grad = torch.ones_like(p)
        opt.step()
    with torch.no_grad():
        p[1] = 4.0
    opt.step()
    assert opt.state[p]["master"].tolist() == [-3 / 1024, 4 - 1 / 1024, -3 / 1024, -3 / 1024]
    model_state = p.detach().clone()
    p.data = model_state + 1  # bound again
    opt.step()
    assert opt.state[p]["master"][1].item() == 5 - 1 / 1024


def test_masters_come_and_go_with_the_dtype():
    layer = torch.nn.Linear(3, 2)
    opt = AdamW(layer.parameters(), master=True)
    for dtype in (torch.float32, torch.bfloat16, torch.float32, torch.float16):
        layer.to(dtype)
        draw(list(layer.parameters()), 0)
        opt.step()
        assert ("master" in opt.state[layer.weight]) == (dtype != torch.float32)
        assert layer.weight.dtype == dtype
    layer.to(torch.float16)
    split = AdamW(layer.to(torch.bfloat16).parameters(), master="split")
    layer.to(torch.float16)
    draw(list(layer.parameters()), 0)
    with pytest.raises(ValueError, match=r"params\[0\]\[0\]: expected bfloat16 for master="):
        split.step()


def test_a_choice_is_asked_for():
    p = torch.nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    opt = AdamW([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match=r"params\[1\]\[0\]: is bfloat16, .*choose master=True"):
        opt.add_param_group({"params": [p]})
    assert len(opt.param_groups) == 1
    with pytest.raises(ValueError, match=r"params\[0\]\[0\]: expected bfloat16 for master="):
        AdamW([torch.nn.Parameter(torch.zeros(1, dtype=torch.float16))], master="split")


@pytest.mark.parametrize("options", [{"master": True}, {"rounding": "stochastic"}])
def test_a_refused_step_has_changed_nothing(options):
    params = parameters(torch.bfloat16)
    opt = AdamW(params, lr=0.1, state_dtype="8bit", min_8bit_size=1, **options)
    for t in range(2):
        draw(params, t)
        opt.step()
    before = [p.detach().clone() for p in params], copy.deepcopy(opt.state_dict())
    draw(params, 2)
    params[3].grad = params[3].grad.to_sparse()
    with pytest.raises(
        ValueError, match=r"grads\[0\]\[3\]: expected a sparse tensor of whole rows"
    ):
        opt.step()
    assert str(([p.detach() for p in params], opt.state_dict())) == str(before)


def test_autocast_and_grad_scaler():
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 1).half()
    opt = AdamW(model.parameters(), lr=0.05, master=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    x = torch.randn(64, 8).half()
    losses = []
    for _ in range(30):
        opt.zero_grad()
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
