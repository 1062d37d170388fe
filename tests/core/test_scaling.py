"""What is paid once for each tensor or group grows with their number, and no faster."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
from time import process_time

import numpy as np
import pytest
from support.helpers import unsanitized

import fastgd
from fastgd.averages import EMA

FEW, MANY = 500, 4000


def arrays(n):
    return [np.ones(4, np.float32) for _ in range(n)]


def named(n):
    return {f"layer{k}.weight": a for k, a in enumerate(arrays(n))}


def stepped(params, n):
    opt = fastgd.Adam(params)
    opt.step(named(n) if isinstance(params, dict) else arrays(n))
    return opt


def make(n, folder):
    params = arrays(n)
    return lambda: fastgd.Adam(params)


def make_groups(n, folder):
    params = [{"params": a} for a in arrays(n // 4)]
    return lambda: fastgd.SGD(params, lr=0.1)


def make_average(n, folder):
    params = arrays(n)
    return lambda: EMA(params)


def make_all(n, folder):
    params, grads, copies = arrays(n), arrays(n), arrays(n)
    return lambda: fastgd.Adam(params, grads=grads, copy_to=copies, average=0.9, zero_grads=True)


def accumulate(n, folder):
    opt, grads = fastgd.Adam(arrays(n)), arrays(n)
    return lambda: copy.copy(opt).accumulate(grads)


def state_dict(n, folder):
    return stepped(arrays(n), n).state_dict


def load_state_dict(n, folder):
    opt = stepped(named(n), n)
    state = opt.state_dict()
    return lambda: opt.load_state_dict(state)


def add_a_group(n, folder):
    opt, group = stepped(named(n), n), {"params": {"more": np.ones(4, np.float32)}}
    return lambda: copy.copy(opt).add_param_group(group)


def pickled(n, folder):
    opt = stepped(arrays(n), n)
    return lambda: pickle.loads(pickle.dumps(opt))


def save(n, folder):
    pytest.importorskip("safetensors")
    opt = stepped(named(n), n)
    return lambda: fastgd.save(folder / f"{n}", opt)


def load(n, folder):
    pytest.importorskip("safetensors")
    opt = stepped(named(n), n)
    fastgd.save(folder / f"{n}", opt)
    return lambda: fastgd.load(folder / f"{n}", opt)


def torch_step(n, folder):
    torch = pytest.importorskip("torch")
    pytest.importorskip("fastgd.torch")
    params = [torch.ones(4, requires_grad=True) for _ in range(n)]
    for p in params:
        p.grad = torch.ones(4)
    return lambda: fastgd.torch.Adam(params).step()


def torch_groups(n, folder):
    torch = pytest.importorskip("torch")
    pytest.importorskip("fastgd.torch")
    params = [torch.ones(4, requires_grad=True) for _ in range(n // 4)]
    for p in params:
        p.grad = torch.ones(4)
    opt = fastgd.torch.Adam([{"params": [p]} for p in params])
    return lambda: copy.deepcopy(opt).step()


CALLS = [
    make, make_groups, make_average, make_all, accumulate, state_dict, load_state_dict, add_a_group,
    pickled, save, load,
    pytest.param(torch_step, marks=pytest.mark.torch),
    pytest.param(torch_groups, marks=pytest.mark.torch),
]  # fmt: skip


def counted(call):
    """How many functions, of Python and in C, a call runs."""
    count = 0

    def note(frame, event, arg):
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("prepared", CALLS)
def test_calls_grow_with_tensors(prepared, tmp_path):
    """Eight times as many of them for eight times as many tensors; quadratic would be 64 times."""
    few, many = prepared(FEW, tmp_path), prepared(MANY, tmp_path)
    few(), many()
    assert counted(many) < 9 * counted(few)


@pytest.mark.slow
@unsanitized
@pytest.mark.parametrize("prepared", CALLS)
def test_time_grows_with_tensors(prepared, tmp_path):
    """Also within functions in C, as of lists that are searched; with much room for noise."""
    calls = [prepared(n, tmp_path) for n in (1_000, 8_000)]
    least = []
    gc.collect()
    gc.disable()
    try:
        for call in calls:
            times = []
            for _ in range(3):
                start = process_time()
                call()
                times.append(process_time() - start)
            least.append(min(times))
    finally:
        gc.enable()
    assert least[1] < 32 * least[0]


def test_groups_that_are_added_do_not_remember_a_refused_one():
    """The names that are taken are those of parameters that are there."""
    opt = fastgd.SGD([{"params": {"a": np.ones(2)}}], lr=0.1)
    with pytest.raises(ValueError, match="lr"):
        opt.add_param_group({"params": {"b": np.ones(2)}, "lr": -1.0})
    opt.add_param_group({"params": {"b": np.ones(2)}})
    assert list(opt.state) == ["0.a", "1.b"]


def test_states_are_the_same_arrays_after_a_load():
    """Which users may hold, and so are the step counts."""
    opt = stepped(arrays(3), 3)
    held = {name: dict(entry) for name, entry in opt.state.items()}
    saved = opt.state_dict()
    opt.step(arrays(3))
    opt.load_state_dict(saved)
    assert all(opt.state[n][key] is a for n in held for key, a in held[n].items())
    assert [int(entry["step"]) for entry in held.values()] == [1, 1, 1]
