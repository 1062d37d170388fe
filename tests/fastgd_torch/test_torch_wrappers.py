"""Lookahead and SAM around optimizers of fastgd.torch: the bits of those around arrays."""

from __future__ import annotations

import copy
import io
import warnings

import numpy as np
import pytest

import fastgd

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0")

import fastgd.torch
from fastgd.torch import SAM, Lookahead

SHAPES = [(40, 30), (7,), (3,), ()]
STORAGES = {
    "float32": ("float32", {}),
    "float64": ("float64", {"clip_norm": 1.0}),
    "8-bit": ("float32", {"state_dtype": "8bit", "min_8bit_size": 0}),
    "master": ("bfloat16", {"master": True}),
    "split": ("bfloat16", {"master": "split"}),
    "stochastic": ("bfloat16", {"rounding": "stochastic", "seed": 3}),
}


def arrays_of(tensors):
    """The memory of tensors, as fastgd takes arrays."""
    return [
        t.detach().view(torch.uint16).numpy() if t.dtype == torch.bfloat16 else t.detach().numpy()
        for t in tensors
    ]


class Pair:
    """The same parameters as tensors and as arrays, with the gradients of Σ(w⁴ + w)."""

    def __init__(self, dtype="float32"):
        rng = np.random.default_rng(0)
        made = [torch.tensor(rng.standard_normal(s)).to(getattr(torch, dtype)) for s in SHAPES]
        self.tensors = [torch.nn.Parameter(t.clone()) for t in made]
        self.twins = made
        self.arrays = arrays_of(made)

    def groups(self, values):
        return [{"params": values[:2]}, {"params": values[2:], "lr": 0.05}]

    def gradients(self, tensors):
        """None for the second, as of a part that a loss doesn't reach."""
        return [None if k == 1 else 4 * t.detach() ** 3 + 1 for k, t in enumerate(tensors)]

    def backward(self):
        for p, g in zip(self.tensors, self.gradients(self.tensors), strict=True):
            p.grad = g
        return float(self.tensors[0].detach().double().sum())

    def grads(self):
        found = [g if g is None else arrays_of([g])[0] for g in self.gradients(self.twins)]
        return [found[:2], found[2:]]

    def assert_same(self):
        for p, a in zip(arrays_of(self.tensors), self.arrays, strict=True):
            assert p.tobytes() == a.tobytes()


# ------------------------------------------------------------------------------------------- bits


@pytest.mark.parametrize("name", ["AdamW", "LAMB"])
@pytest.mark.parametrize("storage", STORAGES)
def test_lookahead_has_the_bits_of_that_around_arrays(storage, name):
    dtype, options = STORAGES[storage]
    pair = Pair(dtype)
    inner = getattr(fastgd.torch, name)(pair.groups(pair.tensors), lr=0.1, **options)
    twin = getattr(fastgd, name)(pair.groups(pair.arrays), lr=0.1, **options)
    opt, other = Lookahead(inner, k=2, alpha=0.25), fastgd.Lookahead(twin, k=2, alpha=0.25)
    for _ in range(5):
        pair.backward()
        opt.step()
        other.step(pair.grads())
        pair.assert_same()
    slow = arrays_of([opt.slow[p] for p in pair.tensors])
    for ours, theirs in zip(slow, other.slow.values(), strict=True):
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("storage", STORAGES)
def test_sam_has_the_bits_of_that_around_arrays(storage, adaptive):
    dtype, options = STORAGES[storage]
    pair = Pair(dtype)
    inner = fastgd.torch.Adam(pair.groups(pair.tensors), lr=0.1, maximize=adaptive, **options)
    twin = fastgd.Adam(pair.groups(pair.arrays), lr=0.1, maximize=adaptive, **options)
    sam, other = SAM(inner, 0.3, adaptive), fastgd.SAM(twin, 0.3, adaptive)
    for _ in range(3):
        first = float(pair.tensors[0].detach().double().sum())
        assert sam.step(pair.backward) == first
        other.step(lambda: (0.0, pair.grads()))
        pair.assert_same()


def test_sam_in_two_steps_is_that_by_closure():
    pairs = Pair(), Pair()
    sams = [SAM(fastgd.torch.SGD(pair.tensors, lr=0.1), rho=0.5) for pair in pairs]
    sams[0].step(pairs[0].backward)
    pairs[1].backward()
    sams[1].first_step(zero_grad=True)
    assert pairs[1].tensors[0].grad is None
    pairs[1].backward()
    sams[1].second_step(zero_grad=True)
    assert pairs[1].tensors[0].grad is None
    for p, q in zip(pairs[0].tensors, pairs[1].tensors, strict=True):
        assert torch.equal(p, q)


def test_sam_around_lookahead_and_other_layouts():
    """A tensor whose rows are not contiguous; the slow weights are laid out like it."""
    p = torch.nn.Parameter(torch.arange(6.0, dtype=torch.float64).reshape(2, 3).t())
    start = p.detach().clone()
    sam = SAM(Lookahead(fastgd.torch.SGD([p], lr=0.1), k=1), rho=0.0)

    def closure():
        p.grad = torch.empty_like(p).copy_(start)

    sam.step(closure)
    assert torch.allclose(p, start * 0.95, rtol=1e-15)


# ------------------------------------------------------------------ as torch uses its optimizers


@pytest.mark.parametrize("wrap", [Lookahead, SAM])
def test_schedulers_and_hooks_see_the_optimizer(wrap):
    pair, seen = Pair(), []
    opt = wrap(fastgd.torch.SGD(pair.groups(pair.tensors), lr=0.5))
    assert isinstance(opt, torch.optim.Optimizer)
    opt.register_step_post_hook(lambda *_: seen.append(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule = torch.optim.lr_scheduler.StepLR(opt, 1, gamma=0.5)
        opt.step(pair.backward)
        schedule.step()
    assert [group["lr"] for group in opt.optimizer.param_groups] == [0.25, 0.025]
    assert len(seen) == 1
    opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.125})
    assert opt.param_groups[2]["lr"] == 0.125
    opt.zero_grad()
    assert all(p.grad is None for p in pair.tensors)
    assert type(opt).__name__ in repr(opt)


def test_lookahead_with_a_scaler_counts_no_step_that_is_skipped():
    p = torch.nn.Parameter(torch.ones(2))
    opt = Lookahead(fastgd.torch.SGD([p], lr=0.25), k=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for value in (1.0, torch.inf, 1.0):
        opt.zero_grad()
        scaler.scale((p * value).sum()).backward()
        scaler.step(opt)
        scaler.update()
    assert p.tolist() == [0.75, 0.75]  # halfway from 1 to 0.5
    assert scaler.get_scale() == 2.0


@pytest.mark.parametrize("bad", [None, 0, 1])
def test_sam_with_a_scaler(bad):
    """In the first or the second gradient infinity skips the step, and all is restored."""
    p = torch.nn.Parameter(torch.ones(2))
    sam = SAM(fastgd.torch.SGD([p], lr=0.25), rho=2**-0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for k in range(2):
        value = torch.inf if k == bad else 1.0
        scaler.scale((p.square() * value).sum() / 2).backward()
        if k == 0:
            sam.first_step(zero_grad=True)
    scaler.step(sam)
    scaler.update()
    expected = [1.0, 1.0] if bad is not None else [0.625, 0.625]  # the second gradient is 1.5
    np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-6)
    assert scaler.get_scale() == (2.0 if bad is not None else 4.0)
    scaler.scale(p.sum()).backward()
    with pytest.raises(RuntimeError, match=r"expected first_step\(\) and then GradScaler's step"):
        scaler.step(sam, lambda: None)


@pytest.mark.parametrize("storage", ["float32", "master"])
def test_state_dicts_and_copies_go_on_amid_the_steps_of_a_pull(storage):
    dtype, options = STORAGES[storage]
    pair = Pair(dtype)
    opt = Lookahead(fastgd.torch.AdamW(pair.groups(pair.tensors), lr=0.1, **options), k=3)
    for _ in range(2):
        pair.backward()
        opt.step()
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    others = [torch.nn.Parameter(p.detach().clone()) for p in pair.tensors]
    loaded = Lookahead(fastgd.torch.AdamW(pair.groups(others), lr=0.5, **options), k=3)
    loaded.load_state_dict(torch.load(file))
    copied_opt, copied = copy.deepcopy((opt, pair.tensors))
    for _ in range(2):
        pair.backward()
        for own in (others, copied):
            for p, q in zip(own, pair.tensors, strict=True):
                p.grad = None if q.grad is None else q.grad.clone()
        for one in (opt, loaded, copied_opt):
            one.step()
    for own in (others, copied):
        assert all(map(torch.equal, own, pair.tensors))
    written = opt.state_dict()
    before = [p.detach().clone() for p in pair.tensors]
    slow = written["lookahead"]["slow"]
    for saved, error in [
        ({}, ValueError),
        ({"step": 1, "slow": {0: slow[0]}}, ValueError),
        ({"step": -1, "slow": slow}, ValueError),
        ({"step": 1, "slow": {**slow, 0: torch.ones(2)}}, ValueError),
        ({"step": 1, "slow": {**slow, 0: None}}, TypeError),
    ]:
        with pytest.raises(error, match="lookahead"):
            opt.load_state_dict({**written, "lookahead": saved})
    with pytest.raises(ValueError, match="lookahead"):
        opt.load_state_dict(opt.optimizer.state_dict())
    assert all(map(torch.equal, before, pair.tensors))


def test_slow_weights_follow_a_model_that_moves_and_parameters_that_thaw():
    model = torch.nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    opt = Lookahead(fastgd.torch.SGD(model.parameters(), lr=1.0), k=1, alpha=0.5)
    start = [p.detach().double() for p in model.parameters()]
    model.double()
    model.bias.requires_grad_(True)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    opt.step()
    assert [opt.slow[p].dtype for p in model.parameters()] == [torch.float64] * 2
    for p, before in zip(model.parameters(), start, strict=True):
        assert torch.allclose(p, before - 0.5)
        assert torch.equal(p, opt.slow[p])


# ------------------------------------------------------------------------------------ what may fail


def test_an_exception_between_the_halves_leaves_the_parameters_as_they_were():
    pair = Pair()
    opt = fastgd.torch.Adam(pair.tensors)
    sam = SAM(opt, rho=0.5)
    before = [p.detach().clone() for p in pair.tensors]
    calls = []

    def closure():
        if calls:
            assert not torch.equal(before[0], pair.tensors[0])
            raise KeyboardInterrupt
        calls.append(pair.backward())

    with pytest.raises(KeyboardInterrupt):
        sam.step(closure)
    assert all(map(torch.equal, before, pair.tensors))
    assert not opt.state
    calls.clear()
    pair.backward()
    sam.first_step()
    pair.tensors[0].grad = torch.ones(30, 40).t()
    with pytest.raises((TypeError, ValueError), match="grads"):
        sam.second_step()
    assert all(map(torch.equal, before, pair.tensors))
    with pytest.raises((TypeError, ValueError), match="grads"):
        sam.first_step()
    assert all(map(torch.equal, before, pair.tensors))
    sam.step(pair.backward)


def test_while_perturbed_nothing_is_stepped_saved_or_copied():
    pair = Pair()
    opt = fastgd.torch.Adam(pair.tensors)
    sam = SAM(opt)
    written = opt.state_dict()
    pair.backward()
    sam.first_step()
    for call in (
        opt.step,
        sam.first_step,
        lambda: sam.step(pair.backward),
        opt.state_dict,
        sam.state_dict,
        lambda: sam.load_state_dict(written),
        lambda: copy.deepcopy(sam),
        lambda: Lookahead(opt),
    ):
        with pytest.raises(RuntimeError, match="perturbed"):
            call()
    sam.restore()
    for call, error in ((sam.second_step, RuntimeError), (sam.step, TypeError)):
        with pytest.raises(error, match="first_step"):
            call()


def test_gradients_that_are_not_finite_follow_the_option():
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.tensor([1.0, torch.nan])
    with pytest.raises(FloatingPointError, match="finite norm"):
        SAM(fastgd.torch.SGD([p], nonfinite="raise")).first_step()
    opt = fastgd.torch.SGD([p], nonfinite="skip")
    sam = SAM(opt)
    sam.first_step()
    assert p.tolist() == [1.0, 1.0]
    sam.second_step()
    assert opt.skipped == 1
    look = Lookahead(fastgd.torch.SGD([p], lr=1.0, nonfinite="skip"), k=1, alpha=0.0)
    look.step()
    assert look.state_dict()["lookahead"]["step"] == 0


def test_wrong_arguments():
    p = torch.nn.Parameter(torch.ones(2))
    opt = fastgd.torch.SGD([p])
    for call, error, words in [
        (lambda: SAM(torch.optim.SGD([p])), TypeError, "optimizer: expected an optimizer of fastg"),
        (lambda: SAM(opt, -1.0), ValueError, "rho"),
        (lambda: SAM(opt, adaptive=1), TypeError, "adaptive"),
        (lambda: Lookahead(Lookahead(opt)), TypeError, "optimizer: expected an optimizer of fastg"),
        (lambda: Lookahead(opt, 0), ValueError, "k: "),
        (lambda: Lookahead(opt, alpha=1.5), ValueError, "alpha: expected a number from 0 to 1"),
        (lambda: Lookahead(fastgd.torch.SGD([p], average=0.9)), ValueError, "without average"),
        (lambda: Lookahead(fastgd.torch.FTRL([p])), ValueError, "found FTRL"),
    ]:
        with pytest.raises(error, match=words):
            call()


def test_sparse_gradients():
    """Lookahead pulls whole tables after them; SAM refuses them, and says so."""
    embedding = torch.nn.Embedding(9, 2, sparse=True)
    start = embedding.weight.detach().clone()
    opt = Lookahead(fastgd.torch.SGD(embedding.parameters(), lr=0.1), k=1, alpha=0.5)
    for _ in range(2):
        opt.zero_grad()
        embedding(torch.tensor([1])).sum().backward()
        opt.step()
    start[1] -= 0.1
    torch.testing.assert_close(embedding.weight.detach(), start)
    opt.state_dict()
    sam = SAM(fastgd.torch.SGD(embedding.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="SAM perturbs and restores whole parameters, found Rows"):
        sam.first_step()
    torch.testing.assert_close(embedding.weight.detach(), start)


def test_sparse_values_that_autograd_has_not_laid_out_are_not_zeroed_in_silence():
    embedding = torch.nn.Embedding(9, 3, sparse=True)
    opt = fastgd.torch.SGD(embedding.parameters(), lr=0.1, zero_grads=True)
    before = embedding.weight.detach().clone()
    values = torch.randn(3, 2).t()
    embedding.weight.grad = torch.sparse_coo_tensor(
        [[1, 2]], values, (9, 3), check_invariants=False
    )
    assert not embedding.weight.grad._values().is_contiguous()
    with pytest.raises(ValueError, match="a copy of others"):
        opt.step()
    torch.testing.assert_close(embedding.weight.detach(), before)
