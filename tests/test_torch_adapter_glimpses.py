"""What the bytes of torch's tensors tell, and that steps are the same when they are not believed."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0")

from fastgd.kernels import _tensors
from fastgd.torch import AdamW, _glimpses


def shared(t):
    t.detach().share_memory_()


@pytest.fixture(params=["glimpses", "asking"])
def way(request):
    """Steps with what was learned of tensors, and without."""
    if request.param == "asking":
        _tensors.forget()
    else:
        assert _glimpses.learn()
    yield request.param
    _glimpses.learn()


@pytest.mark.parametrize("change", {**_glimpses.CHANGES, "shared": shared}.values(),
                         ids=[*_glimpses.CHANGES, "shared"])  # fmt: skip
def test_changes_are_told(change):
    assert _glimpses.learn()
    assert _glimpses.tells(change)


@pytest.mark.parametrize("rest", _glimpses.REST.values(), ids=list(_glimpses.REST))
def test_what_is_no_change_is_not(rest):
    assert not _glimpses.tells(rest)


def test_forgotten_and_learned_again():
    tensor = torch.zeros(3)
    _tensors.forget()
    assert not _tensors.Probe(tensor).unchanged()
    assert _glimpses.learn()
    assert _tensors.Probe(tensor).unchanged()


def test_not_learned_from_what_is_odd(monkeypatch):
    for name, change in (("nothing", "CHANGES"), ("other memory", "REST")):
        other = _glimpses.REST if change == "CHANGES" else _glimpses.CHANGES
        with monkeypatch.context() as patch:
            patch.setitem(getattr(_glimpses, change), "odd", other[name])
            assert not _glimpses.learn()
            assert not _tensors.Probe(torch.zeros(3)).unchanged()
    t = torch.zeros(3)
    assert not _tensors.learn(t, 12345, 12345, 12345, 12345)
    assert not _tensors.learn(t, t._cdata, 12345, 12345, 12345)
    assert _glimpses.learn()


def moves():
    """Ways to move a parameter or a state, with the values it has."""

    def data(t):
        t.data = t.data.clone()

    def in_storage(t):
        room = torch.zeros(2 * t.numel() + 3)
        t.data = room[3 : 3 + t.numel()].view(t.shape).copy_(t.data)

    def further(t):
        old = t.data.clone()
        t.data = torch.zeros(4 * t.numel())[: t.numel()].view(t.shape)
        t.data = t.data.as_strided(t.shape, t.stride(), t.numel()).copy_(old)

    def grown(t):
        t.untyped_storage().resize_(4 * 100_000)

    def swap(t):
        grad, required = t.grad, t.requires_grad
        t.grad = None
        new = t.detach().clone()
        new = torch.nn.Parameter(new) if isinstance(t, torch.nn.Parameter) else new
        new.requires_grad_(required)
        torch.utils.swap_tensors(t, new)
        t.grad = grad

    return {"data": data, "in storage": in_storage, "further": further, "grown": grown,
            "shared": shared, "swap": swap}  # fmt: skip


@pytest.mark.parametrize("what", ["p", "exp_avg", "exp_avg_sq", "step"])
@pytest.mark.parametrize("move", moves().values(), ids=list(moves()))
def test_moved_between_steps(way, move, what):
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(5, 7))
    q = torch.nn.Parameter(p.detach().clone())
    ours, twin = AdamW([p], lr=0.1), AdamW([q], lr=0.1)
    for t in range(6):
        p.grad = torch.randn(5, 7)
        q.grad = p.grad.clone()
        ours.step()
        twin.step()
        assert torch.equal(p, q)
        for key, value in twin.state[q].items():
            assert torch.equal(ours.state[p][key], value)
        if t > 1 and not (what != "p" and move.__name__ == "grown"):
            move(p if what == "p" else ours.state[p][what])
