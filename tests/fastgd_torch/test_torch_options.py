"""fastgd's options in fastgd.torch: the same as on arrays, and kept by all that torch does."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
from support.sampling import optimizers, sampled

import fastgd

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0")

import fastgd.torch
from fastgd.torch import EMA, SGD, AdamW, step_in_backward

SHAPES = [(5, 3), (300,), (), (0, 3), (5000,)]
NAMES = optimizers()


def pair(name, groups=1, dtype=torch.float32, **options):
    """An optimizer of tensors, and one of arrays with the same values."""
    make = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s, generator=make).to(dtype)) for s in SHAPES]
    arrays = [p.detach().clone().numpy() for p in params]
    cut = [slice(0, 2), slice(2, None)] if groups == 2 else [slice(None)]
    limits = options.pop("limits", [{}] * len(cut))
    made = getattr(fastgd.torch, name)(
        [{"params": params[c], **one} for c, one in zip(cut, limits, strict=True)], **options
    )
    bare = getattr(fastgd, name)(
        [{"params": arrays[c], **one} for c, one in zip(cut, limits, strict=True)], **options
    )
    return made, params, bare, arrays


def draw(params, t, scale=1.0, bad=None):
    """Gradients of a step, the same ones as tensors and as arrays."""
    make = torch.Generator().manual_seed(t + 1)
    for i, p in enumerate(params):
        g = torch.randn(p.shape, generator=make).to(p.dtype) * scale
        if i == bad:
            g.view(-1)[2] = float("nan")
        p.grad = g
    return [p.grad.clone().numpy() for p in params]


def nested(grads, opt):
    at = iter(grads)
    return [[next(at) for _ in group["params"]] for group in opt.param_groups]


def assert_same(params, arrays):
    for p, a in zip(params, arrays, strict=True):
        assert np.array_equal(p.detach().numpy(), a), (p, a)


CASES = {
    "norm of all": {"clip_norm": 0.5},
    "norm of groups": {"clip_by": "group", "limits": [{"clip_norm": 0.5}, {"clip_norm": 2.0}]},
    "norm of tensors": {"clip_norm": 0.5, "clip_by": "tensor"},
    "value": {"clip_value": 0.1},
    "ratio": {"clip_ratio": 0.1},
    "ratio of a group": {"limits": [{"clip_ratio": 0.1}, {}], "clip_norm": 2.0},
    "units": {"clip_ratio": 0.1, "centralize": True, "layout": "in_out"},
    "average": {"average": 0.9},
    "zeroed": {"zero_grads": True},
    "all": {"clip_norm": 1.0, "clip_value": 0.2, "clip_ratio": 0.2, "average": 0.9,
            "zero_grads": True},
    "8 bits": {"state_dtype": "8bit", "seed": 3},
    "bfloat16": {"state_dtype": "bfloat16", "seed": 4, "average": 0.5},
}  # fmt: skip


@sampled({"case": CASES, "name": NAMES})
def test_options_do_as_on_arrays(case, name):
    opt, params, bare, arrays = pair(name, 2 if "group" in case else 1, lr=0.01, **CASES[case])
    for t in range(6):
        grads = draw(params, t, scale=3.0)
        record = bare.step(nested(grads, bare))
        opt.step()
        assert_same(params, arrays)
        for key in ("step", "skipped", "grad_norm", "clip_factor"):
            assert getattr(opt.record, key) == getattr(record, key), key
        zeroed = CASES[case].get("zero_grads", False)
        assert all(p.grad.count_nonzero() == 0 for p in params) == zeroed
    if bare.average is not None:
        assert_same(opt.average.averages.values(), bare.average.averages.values())
        assert opt.average.step == bare.average.step == 6


def test_clipping_changes_with_the_group():
    p = torch.nn.Parameter(torch.zeros(1))
    p.grad = torch.full((1,), 4.0)
    opt = SGD([p], lr=1.0, clip_norm=2.0)
    opt.step()
    assert p.item() == -2
    opt.param_groups[0]["clip_norm"] = None
    opt.param_groups[0]["clip_value"] = 0.5
    opt.step()
    assert p.item() == -2.5
    opt.param_groups[0]["clip_value"] = -1.0
    with pytest.raises(ValueError, match="clip_value: expected"):
        opt.step()


def test_units_are_rows_in_any_memory_format():
    make = torch.Generator().manual_seed(0)
    p, q = (torch.randn(4, 3, 5, 5, generator=make.manual_seed(0)) for _ in range(2))
    p = torch.nn.Parameter(p.to(memory_format=torch.channels_last))
    q = torch.nn.Parameter(q)
    p.grad = torch.randn(4, 3, 5, 5, generator=make).to(memory_format=torch.channels_last)
    q.grad = p.grad.contiguous()
    before = q.detach().clone()
    SGD([p], lr=1.0, clip_ratio=0.1).step()
    SGD([q], lr=1.0, clip_ratio=0.1).step()
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    for k in range(4):
        factor = 0.1 * before[k].norm() / q.grad[k].norm()
        assert factor < 0.2
        torch.testing.assert_close(q[k], before[k] - q.grad[k] * factor, rtol=1e-5, atol=1e-6)


def in_the_middle(requires_grad=True):
    """A parameter whose outputs are neither the first nor the last axis in memory."""
    return torch.nn.Parameter(torch.zeros(3, 2, 2).transpose(0, 1), requires_grad)


def test_units_that_are_neither_contiguous_nor_interleaved_are_refused():
    p, q = in_the_middle(), torch.nn.Parameter(torch.zeros(3, 2))
    match = (
        r"clip_ratio: expected None, or an axis of outputs that is the first or the last in "
        r"memory, found {} and strides \(2, 4, 1\) for shape \(2, 3, 2\) and layout out_in"
    )
    with pytest.raises(ValueError, match=r"^params\[0\]\[1\]: " + match.format("0.1")):
        SGD([q, p], clip_ratio=0.1)
    with pytest.raises(
        ValueError, match=r"^params\[0\]\[0\]: centralize: expected False, or an axis"
    ):
        SGD([p], centralize=True)
    SGD([p], centralize=True, clip_ratio=0.1, layout="in_out")
    opt = SGD([{"params": [("V", q)], "clip_ratio": 0.25}, {"params": [("W", p)]}], lr=1.0)
    q.grad, p.grad = torch.ones_like(q), torch.ones_like(p)
    opt.step()
    q.grad = None
    opt.param_groups[1]["clip_ratio"] = 0.5
    before = p.detach().clone(), copy.deepcopy(opt.state_dict())
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^params\[1\]\[0\] \(W\): " + match.format("0.5")):
            opt.step()
    assert torch.equal(p, before[0])
    assert str(opt.state_dict()) == str(before[1])
    opt.param_groups[1]["clip_ratio"] = None
    opt.step()
    assert (p == -2).all()
    # Frozen, it may be anything.
    r = in_the_middle(requires_grad=False)
    opt = SGD([q, r], lr=1.0, clip_ratio=0.25)
    q.grad = torch.ones(3, 2)
    opt.step()
    r.grad = torch.ones_like(r)
    with pytest.raises(ValueError, match=r"^params\[0\]\[1\]: " + match.format("0.25")):
        opt.step()


def test_a_ratio_that_comes_later_is_of_rows():
    p = torch.nn.Parameter(torch.tensor([[4.0, 0.0], [1.0, 0.0]]))
    opt = SGD([p], lr=1.0)
    p.grad = torch.tensor([[0.0, 8.0], [0.0, 8.0]])
    opt.step()
    p.data = torch.tensor([[4.0, 0.0], [1.0, 0.0]])
    opt.param_groups[0]["clip_ratio"] = 0.5
    opt.step()
    assert p.tolist() == [[4.0, -2.0], [1.0, -0.5]]
    opt.param_groups[0]["clip_ratio"] = 0.25
    p.data = torch.tensor([[4.0, 0.0], [1.0, 0.0]])
    opt.step()
    assert p.tolist() == [[4.0, -1.0], [1.0, -0.25]]


def test_units_are_clipped_in_backward():
    models = [torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    options = {"clip_ratio": 0.05, "centralize": True}
    opts = [SGD(model.parameters(), lr=1.0, **options) for model in models]
    x = torch.ones(8, 3)
    with step_in_backward(models[0], opts[0]):
        models[0](x).square().sum().backward()
    models[1](x).square().sum().backward()
    opts[1].step()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(p, q)


def test_nonfinite_gradients():
    for how in ("skip", "raise"):
        opt, params, bare, arrays = pair("AdamW", lr=0.1, nonfinite=how, average=0.9)
        bad = draw(params, 0, bad=1)
        if how == "raise":
            with pytest.raises(FloatingPointError, match=r"grads\[0\]\[1\]: expected finite"):
                opt.step()
            assert opt.record is None
        else:
            opt.step()
            bare.step(nested(bad, bare))
            assert opt.record.skipped
            assert opt.skipped == bare.skipped == 1
        assert not opt.state
        assert_same(params, arrays)
        grads = draw(params, 1)
        opt.step()
        bare.step(nested(grads, bare))
        assert_same(params, arrays)
        assert opt.average.step == 1
    draw(params, 2, bad=1)
    before = copy.deepcopy(opt.state_dict())
    with pytest.raises(FloatingPointError):
        opt.step()
    assert str(opt.state_dict()) == str(before)


def test_state_dicts_without_what_is_beside_keep_the_count_of_averages():
    """What gathers state dicts from several processes hands on states and groups alone."""
    p, q = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    options = {"lr": 1.0, "average": 0.5}
    opt, other = SGD([p], **options), SGD([q], **options)
    p.grad = q.grad = torch.ones(3)
    for _ in range(3):
        opt.step()
    saved = opt.state_dict()
    del saved["fastgd"]
    with torch.no_grad():
        q.copy_(p)
    other.load_state_dict(saved)
    assert other.average.step == 3
    assert other.state[q].keys() == opt.state[p].keys()
    for one in (opt, other):
        one.step()
        assert one.average.step == 4
    assert torch.equal(opt.average.averages[p], other.average.averages[q])
    saved["state"][0]["average_step"] = -1.0
    with pytest.raises(
        ValueError, match=r'state\[0\]\[0\]\["average_step"\]: expected a number from 0'
    ):
        other.load_state_dict(saved)


def test_a_skipped_step_lets_go_of_gradients_and_zeroes_them():
    p = torch.nn.Parameter(torch.ones(3))
    opt = SGD([p], lr=1.0, nonfinite="skip", zero_grads=True)
    p.grad = torch.full((3,), float("inf"))
    opt.step()
    assert p.grad.tolist() == [0, 0, 0]
    assert p.tolist() == [1, 1, 1]


def test_gradients_zeroed_are_changed_for_autograd():
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3, requires_grad=True)
    loss = (p.grad * p.grad).sum()
    with torch.no_grad():
        SGD([p], zero_grads=True).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ------------------------------------------------------------------------------------ average


def test_averages_stand_in_for_the_weights():
    opt, params, *_ = pair("Adam", lr=0.1, average=0.9)
    with pytest.raises(ValueError, match="swapped: expected at least one update"):
        opt.average.swapped().__enter__()
    for t in range(3):
        draw(params, t)
        opt.step()
    before = [p.detach().clone() for p in params]
    with opt.average.swapped():
        assert all(map(torch.equal, params, opt.average.averages.values()))
        assert not torch.equal(params[0], before[0])
        for call in (
            opt.step,
            opt.state_dict,
            lambda: opt.load_state_dict({}),
            lambda: copy.deepcopy(opt),
            lambda: opt.average.swapped().__enter__(),
        ):
            with pytest.raises(RuntimeError, match="the averages are swapped in for the weights"):
                call()
    assert all(map(torch.equal, params, before))


def test_averages_follow_their_parameters():
    p = torch.nn.Parameter(torch.zeros(2, 3, 2, 2))
    q = torch.nn.Parameter(torch.zeros(2, 3, 2, 2))
    ours, theirs = SGD([p], lr=1.0, average=0.5), SGD([q], lr=1.0, average=0.5)
    for t in range(6):
        if t == 2:
            p.data = p.data.to(memory_format=torch.channels_last)
        if t == 4:
            p.data = p.data.double()
        g = torch.randn(p.shape)
        p.grad, q.grad = torch.empty_like(p).copy_(g), g
        ours.step()
        theirs.step()
        assert ours.average.averages[p].dtype == p.dtype
    torch.testing.assert_close(
        ours.average.averages[p].float(), theirs.average.averages[q], rtol=1e-6, atol=1e-6
    )
    assert ours.average.step == 6


def test_an_average_starts_later():
    p, q = (torch.nn.Parameter(torch.full((1,), 4.0)) for _ in range(2))
    opt = SGD([p], lr=1.0, average=EMA(0.5, bias_correction=False))
    p.grad = torch.ones(1)
    opt.step()
    assert opt.average.averages[p].item() == 3.5
    opt.add_param_group({"params": [q]})
    q.grad = torch.full((1,), 2.0)
    opt.step()
    assert opt.average.averages[q].item() == 3  # of 4 and 2
    assert opt.average.averages[p].item() == 2.75


def test_averages_written_to_count():
    p = torch.nn.Parameter(torch.zeros(1))
    p.grad = torch.zeros(1)
    opt = SGD([p], average=EMA(0.5, False))
    opt.step()
    opt.state[p]["average"].fill_(8.0)
    opt.step()
    assert opt.state[p]["average"].item() == 4
    opt.state[p]["average"] = torch.full((1,), 16.0)
    opt.step()
    assert opt.state[p]["average"].item() == 8


def test_averages_refused():
    p = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match="average: expected a number from 0 to below 1"):
        SGD([p], average=1.0)
    with pytest.raises(TypeError, match=r"average: expected fastgd\.torch\.EMA"):
        SGD([p], average=fastgd.averages.EMA([np.zeros(1)]))
    average = EMA(0.5)
    with pytest.raises(ValueError, match="swapped: expected an EMA that an optimizer was given"):
        average.swapped().__enter__()
    SGD([p], average=average)
    with pytest.raises(ValueError, match="average: the EMA is bound to another optimizer"):
        SGD([p], average=average)
    with pytest.raises(ValueError, match="warmup"):
        EMA(0.5, warmup=True)


# ------------------------------------------------------------------------- copies and files

ALL = {
    "clip_norm": 0.5,
    "clip_by": "tensor",
    "nonfinite": "skip",
    "state_dtype": "8bit",
    "min_8bit_size": 100,
    "seed": 7,
    "zero_grads": True,
}


@pytest.mark.parametrize("via", ["deepcopy", "pickle", "state_dict", "save"])
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_options_survive(name, via):
    options = {**ALL, "average": EMA(0.8, False, True)}
    options |= {"momentum": 0.9} if name == "SGD" else {}
    params = [torch.nn.Parameter(torch.randn(s)) for s in SHAPES]
    opt = getattr(fastgd.torch, name)(params, lr=0.1, **options)
    for t in range(3):
        draw(params, t, bad=1 if t == 1 else None)
        opt.step()
    if via == "deepcopy":
        other = copy.deepcopy(opt)
    elif via == "pickle":
        other = pickle.loads(pickle.dumps(opt))
    else:
        saved = opt.state_dict()
        if via == "save":
            file = io.BytesIO()
            torch.save(saved, file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
        copies = [p.detach().clone().requires_grad_() for p in params]
        other = type(opt)(copies, **{**options, "seed": 0, "average": EMA(0.8, False, True)})
        other.load_state_dict(saved)
    copies = other.param_groups[0]["params"]
    for t in range(3, 7):
        draw(params, t, bad=1 if t == 4 else None)
        draw(copies, t, bad=1 if t == 4 else None)
        opt.step()
        other.step()
        assert all(p.grad.count_nonzero() == 0 for p in copies)
    assert all(map(torch.equal, params, copies))
    assert other.skipped == opt.skipped == 2
    assert other.average.step == opt.average.step == 5
    assert all(map(torch.equal, opt.average.averages.values(), other.average.averages.values()))


def test_state_dicts_with_options_go_to_torch():
    opt, params, *_ = pair("AdamW", lr=0.1, average=0.9, clip_norm=1.0, nonfinite="skip")
    draw(params, 0)
    opt.step()
    theirs = torch.optim.AdamW(params, lr=0.1)
    theirs.load_state_dict(copy.deepcopy(opt.state_dict()))
    draw(params, 1)
    theirs.step()
    steps = opt.average.step
    kept = {p: a.clone() for p, a in opt.average.averages.items()}
    back = theirs.state_dict()
    for entry in back["state"].values():
        entry.pop("average")
    opt.load_state_dict(back)  # torch knows no averages: these stay
    assert opt.average.step == steps
    assert all(torch.equal(opt.average.averages[p], a) for p, a in kept.items())


@pytest.mark.parametrize("before", [{}, {"processes": None}])
def test_pickles_with_and_without_processes_are_taken(before):
    """Some versions wrote down that there were none."""
    opt, params, *_ = pair("AdamW", clip_norm=0.5)
    draw(params, 0)
    opt.step()
    state = copy.deepcopy(opt.__getstate__())
    state["fastgd"] |= before
    again = AdamW.__new__(AdamW)
    again.__setstate__(state)
    copies = again.param_groups[0]["params"]
    draw(params, 1)
    draw(copies, 1)
    opt.step()
    again.step()
    assert not again.is_split
    assert all(map(torch.equal, copies, params))


def test_a_plain_state_dict_has_no_word_of_fastgd():
    opt, params, *_ = pair("AdamW")
    draw(params, 0)
    opt.step()
    assert "fastgd" not in opt.state_dict()


@pytest.mark.parametrize(
    "options", [{"average": 0.9}, {"state_dtype": "8bit"}, {"state_dtype": "bfloat16"}]
)
def test_state_dicts_of_arrays(options):
    opt, params, bare, arrays = pair("Adam", lr=0.1, seed=5, **options)
    for t in range(2):
        bare.step(nested(draw(params, t), bare))
    with torch.no_grad():
        for p, a in zip(params, arrays, strict=True):
            p.copy_(torch.from_numpy(a))
    opt.load_state_dict(bare.state_dict())
    for t in range(2, 4):
        grads = draw(params, t)
        bare.step(nested(grads, bare))
        opt.step()
    assert_same(params, arrays)
    if bare.average is not None:
        assert_same(opt.average.averages.values(), bare.average.averages.values())
    else:
        bare.load_state_dict(opt.state_dict())


def test_state_dicts_refused():
    opt, params, *_ = pair("Adam", state_dtype="8bit")
    draw(params, 0)
    opt.step()
    good = copy.deepcopy(opt.state_dict())

    def changed(change):
        state = copy.deepcopy(good)
        change(state)
        return state

    for change, error, message in (
        (lambda s: s["state"][4].pop("exp_avg_exponent"), ValueError, "which the codes of exp_avg"),
        (
            lambda s: s["state"][4].update(exp_avg_exponent=torch.zeros(3, dtype=torch.uint8)),
            ValueError,
            r"expected shape \(20,\), found \(3,\)",
        ),
        (
            lambda s: s["state"][4].update(exp_avg_exponent=torch.zeros(20)),
            TypeError,
            "expected dtype torch.uint8",
        ),
        (lambda s: s["state"][0].update(average=torch.zeros(5, 3)), ValueError, "expected none"),
        (lambda s: s.update(fastgd=3), TypeError, "expected a dict, found int"),
        (lambda s: s.update(fastgd={"more": 3}), ValueError, "has unknown"),
        (lambda s: s.update(fastgd={"seed": -3}), ValueError, "seed"),
        (lambda s: s.update(fastgd={"average": 3}), TypeError, "average"),
    ):
        with pytest.raises(error, match=message):
            opt.load_state_dict(changed(change))
        assert str(opt.state_dict()) == str(good)
    opt.load_state_dict(good)


# ---------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"copy_to": []}, TypeError, "copy_to: is for fastgd's optimizers of arrays"),
        ({"grads": []}, TypeError, "grads: is for fastgd's optimizers of arrays"),
        ({"clip_norm": 0.0}, ValueError, "clip_norm: expected a number above 0"),
        ({"clip_norm": lambda t: 1.0}, TypeError, "clip_norm: expected a number"),
        ({"clip_by": "layer"}, ValueError, "clip_by: expected one of all, group, tensor"),
        ({"nonfinite": "ignore"}, ValueError, "nonfinite: expected one of"),
        ({"zero_grads": 1}, TypeError, "zero_grads: expected True or False"),
        ({"state_dtype": "4bit"}, ValueError, "state_dtype: expected one of"),
        ({"seed": -1}, ValueError, "seed: expected"),
        ({"master": "half"}, ValueError, "master: expected True, False"),
        ({"master": True, "rounding": "nearest"}, ValueError, "rounding excludes a master"),
        ({"min_8bit_size": 0.5}, TypeError, "min_8bit_size: expected an integer"),
    ],
)
def test_options_refused(options, error, message):
    with pytest.raises(error, match=message):
        AdamW([torch.nn.Parameter(torch.zeros(1))], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"average": 0.9}, "average: step_in_backward excludes an average"),
        ({"nonfinite": "skip"}, "nonfinite: step_in_backward excludes"),
        ({"clip_norm": 1.0}, 'clip_norm: step_in_backward excludes all but clip_by="tensor"'),
    ],
)
def test_steps_in_backward_refuse_what_needs_all_gradients(options, message):
    model = torch.nn.Linear(2, 1)
    with pytest.raises(ValueError, match=message):
        step_in_backward(model, AdamW(model.parameters(), **options))


def test_steps_in_backward_round_as_others():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
    twin = copy.deepcopy(model)
    options = {"lr": 0.1, "state_dtype": "8bit", "min_8bit_size": 1, "seed": 3}
    options |= {"clip_norm": 0.1, "clip_by": "tensor"}
    ours, theirs = AdamW(model.parameters(), **options), AdamW(twin.parameters(), **options)
    x = torch.randn(8, 40)
    with step_in_backward(model, ours):
        for _ in range(4):
            model(x).square().mean().backward()
            twin(x).square().mean().backward()
            theirs.step()
            theirs.zero_grad()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(ours.state[p]["exp_avg"], theirs.state[q]["exp_avg"])


@pytest.mark.parametrize("name", ["Adagrad", "AdamW", "Adafactor", "LARS"])
@pytest.mark.parametrize("options", [{}, {"state_dtype": "8bit", "min_8bit_size": 1}])
def test_tensors_have_a_dtype_and_a_device_of_their_own(name, options):
    """Whatever torch makes by default: 257 is no bfloat16, and nothing has memory on "meta"."""

    def trained(state=None):
        p = torch.nn.Parameter(torch.ones((5, 4), dtype=torch.float32, device="cpu"))
        opt = getattr(fastgd.torch, name)([p], average=0.9, **options)
        if state is not None:
            opt.load_state_dict(state)
        for _ in range(257):
            p.grad = torch.ones_like(p)
            opt.step()
        return opt, copy.deepcopy(opt.state_dict())

    _, usual = trained()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            opt, state = trained()
            assert opt.average.step == 257
            state.pop("fastgd")  # the torch part alone
            opt.load_state_dict(state)
            assert opt.average.step == 257
            _, again = trained(state)
    finally:
        torch.set_default_dtype(before)
    for found in (state, again):
        for key, tensor in found["state"][0].items():
            right = usual["state"][0][key]
            assert (tensor.dtype, tensor.device) == (right.dtype, right.device), key
            assert found is again or torch.equal(tensor, right)
