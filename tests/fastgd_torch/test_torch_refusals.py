"""What fastgd.torch refuses, and that it changes nothing then."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0")

from support.torch_small import assert_same, contents, one

from fastgd.torch import SGD, Adam

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
