"""What code written for torch.optim does with an optimizer, done with fastgd.torch's."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest
from support.helpers import run_python, unsanitized

import fastgd

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0")

from support.torch_pairs import Twins
from support.torch_small import assert_same, contents, one

import fastgd.torch
from fastgd.torch import SGD, Adam, _binding
from fastgd.torch._handles import handles


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


def test_views_of_negative_values_are_refused():
    """Their memory holds the opposite: such a step would go the other way."""
    x = torch.nn.Parameter(torch.ones(1))
    opt = SGD([x], lr=1.0)
    (torch.complex(torch.zeros(1), x).conj() * (1 + 2j)).imag.sum().backward()
    assert x.grad.is_neg()  # autograd's own
    with pytest.raises(TypeError, match=r"grads\[0\]\[0\]: expected .* resolve_neg\(\)"):
        opt.step()
    assert x.item() == 1
    x.grad = x.grad.resolve_neg()
    opt.step()
    assert x.item() == 2
    p = torch.nn.Parameter(torch._neg_view(torch.ones(2, 2)))
    p.grad = torch.ones(2, 2)
    with pytest.raises(TypeError, match=r"params\[0\]\[0\]: expected .* resolve_neg\(\)"):
        SGD([p], lr=1.0).step()


def test_elements_without_memory_are_refused():
    p, q = torch.nn.Parameter(torch.ones(2, 2)), one(grad=1.0)
    opt = Adam([p, q], lr=1.0)
    p.grad = torch.ones(2, 2)
    opt.step()
    before = contents(opt)
    p.grad = torch._efficientzerotensor((2, 2))
    with pytest.raises(TypeError, match=r"grads\[0\]\[0\]: expected a tensor with a storage"):
        opt.step()
    p.grad = torch.ones(2, 2)
    p.grad.untyped_storage().resize_(0)
    with pytest.raises(TypeError, match=r"grads\[0\]\[0\]: expected a tensor with a storage"):
        opt.step()
    assert_same(contents(opt), before)
    p.grad = torch.ones(2, 2)
    p.untyped_storage().resize_(0)
    with pytest.raises(TypeError, match=r"params\[0\]\[0\]: expected a tensor with a storage"):
        opt.step()
    assert q.item() == before[1][1].item()


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
