"""Prodigy, whose step size all parameters share: against its paper's formula, and how it is kept."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
from support.helpers import COMPILED, same_bits

import fastgd
from fastgd.functional import prodigy

SHAPES = [(7, 5), (300,), (), (0, 3), (1000,)]
SHARED = ("d", "d_max", "d_numerator")
LETTERS = {"betas": (0.5, 0.99), "beta3": 0.9, "d_coef": 2.0, "d0": 1e-4, "eps": 1e-6}
OPTIONS = [
    {},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "decouple": False},
    {"use_bias_correction": True},
    {"safeguard_warmup": True, "lr": 0.5, "use_bias_correction": True},
    {"growth_rate": 1.1},
    LETTERS,
]


class Formula:
    """The paper's algorithm 4 as the authors' prodigyopt 1.1.2 has it, in its order of operations.

    Only the count of steps that the bias correction takes is each parameter's own.
    """

    def __init__(self, params, lr=1.0, betas=(0.9, 0.999), beta3=None, eps=1e-8, weight_decay=0.0,
                 decouple=True, use_bias_correction=False, safeguard_warmup=False, d0=1e-6,
                 d_coef=1.0, growth_rate=math.inf):  # fmt: skip
        self.params, self.lrs = params, [lr] * len(params)
        self.h = dict(locals())
        self.b3 = math.sqrt(betas[1]) if beta3 is None else beta3
        self.d = self.d_max = d0
        self.N = 0.0
        self.state = [{} for _ in params]

    def step(self, grads):
        h, (b1, b2) = self.h, self.h["betas"]
        decay, d, moved = h["weight_decay"], self.d, 0.0
        dlrs, added = [], 0.0
        for p, g, lr, s in zip(self.params, grads, self.lrs, self.state, strict=True):
            if g is None:
                continue
            if decay and not h["decouple"]:
                g = g + decay * p
            if not s:
                s |= {"t": 0, "p0": p.copy(), "m": 0 * p, "v": 0 * p, "s": 0 * p}
            s["t"] += 1
            bias = 1.0
            if h["use_bias_correction"]:
                bias = (1 - b2 ** s["t"]) ** 0.5 / (1 - b1 ** s["t"])
            dlrs.append(d * lr * bias)
            if lr == 0:
                continue
            added += d / h["d0"] * dlrs[-1] * np.sum(g * (s["p0"] - p))
            s["m"] = b1 * s["m"] + d * (1 - b1) * g
            s["v"] = b2 * s["v"] + d * d * (1 - b2) * g * g
            s["s"] = self.b3 * s["s"] + d / h["d0"] * (d if h["safeguard_warmup"] else dlrs[-1]) * g
            moved += np.sum(np.abs(s["s"]))
        if moved == 0:
            return
        self.N = self.b3 * self.N + added
        d_hat = h["d_coef"] * self.N / moved
        if d == h["d0"]:
            d = max(d, d_hat)
        self.d_max = max(self.d_max, d_hat)
        self.d = min(self.d_max, d * h["growth_rate"])
        for p, g, s in zip(self.params, grads, self.state, strict=True):
            if g is None:
                continue
            dlr = dlrs.pop(0)
            if decay and h["decouple"]:
                p -= decay * dlr * p
            p -= dlr * s["m"] / (np.sqrt(s["v"]) + self.d * h["eps"])


class Descent:
    """Parameters, and noisy gradients of a bowl of which they are at the side."""

    def __init__(self, seed=0, dtype=np.float64, shapes=SHAPES):
        self.rng = np.random.default_rng(seed)
        self.params = [np.asarray(self.rng.standard_normal(s), dtype) for s in shapes]
        self.bowl = [0.1 + self.rng.standard_normal(p.shape) ** 2 for p in self.params]

    def grads(self):
        return [
            np.asarray(a * p + 0.1 * self.rng.standard_normal(p.shape), p.dtype)
            for a, p in zip(self.bowl, self.params, strict=True)
        ]


def shared(opt):
    """The numbers that all parameters share, checked to be the same for all."""
    entries = list(opt.state.values())
    for key in SHARED:
        assert all(same_bits(entry[key], entries[0][key]) for entry in entries), key
    return tuple(float(entries[0][key]) for key in SHARED)


def assert_close(formula, opt, params, rtol=1e-10):
    for p, q in zip(params, formula.params, strict=True):
        np.testing.assert_allclose(p, q, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(shared(opt), (formula.d, formula.d_max, formula.N), rtol=rtol)


# ------------------------------------------------------------------------------------- the formula


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("sparse", [False, True])
def test_formula(options, sparse):
    """Also where some parameters have no gradient in some steps, and a first step later than others."""
    run = Descent()
    formula = Formula([p.copy() for p in run.params], **options)
    opt = fastgd.Prodigy(run.params, **options)
    for k in range(130):
        grads = run.grads()
        if sparse and k % 3 == 0:
            grads[1] = grads[0 if k % 2 else 4] = None
        formula.step(grads)
        opt.step(grads)
        assert_close(formula, opt, run.params)
    assert formula.d > 10 * formula.h["d0"]  # it has found something
    for name, s in zip(opt.state, formula.state, strict=True):
        assert same_bits(opt.state[name]["p0"], s["p0"])


@pytest.mark.parametrize("options", [o for o in OPTIONS if "use_bias_correction" not in o])
def test_prodigyopt(options, capsys):
    """The authors' package, where it is installed."""
    torch = pytest.importorskip("torch")
    reason = "prodigyopt is not installed"
    theirs = pytest.importorskip("prodigyopt", reason=reason).Prodigy
    run = Descent(1)
    params = [torch.nn.Parameter(torch.tensor(p)) for p in run.params]
    other, opt = theirs(params, **options), fastgd.Prodigy(run.params, **options)
    for k in range(130):
        grads = run.grads()
        grads[1] = None if k % 3 == 0 else grads[1]
        for p, g in zip(params, grads, strict=True):
            p.grad = None if g is None else torch.tensor(g)
        other.step()
        opt.step(grads)
    group = other.param_groups[0]
    np.testing.assert_allclose(shared(opt), [group[key] for key in SHARED], rtol=1e-10)
    for p, q in zip(run.params, params, strict=True):
        np.testing.assert_allclose(p, q.detach().numpy(), rtol=1e-10, atol=1e-10)


def test_groups_of_their_own_and_groups_that_join_late():
    run = Descent()
    formula = Formula([p.copy() for p in run.params[:3]])
    opt = fastgd.Prodigy([{"params": run.params[:2]}, {"params": run.params[2]}])
    grads = run.grads
    for _ in range(40):
        a, b, c, *_ = grads()
        formula.step([a, b, c])
        opt.step([[a, b], c])
    opt.add_param_group({"params": run.params[4]})
    shared(opt)  # it starts with the others' estimate
    formula.params.append(run.params[4].copy())
    formula.lrs.append(1.0)
    formula.state.append({})
    for _ in range(90):
        a, b, c, _, e = grads()
        formula.step([a, b, c, e])
        opt.step([[a, b], c, e])
    assert_close(formula, opt, [*run.params[:3], run.params[4]])


@pytest.mark.parametrize("options", [{}, {"safeguard_warmup": True, "weight_decay": 0.1}])
def test_frozen_groups_stand_still(options):
    """From the first step on, or after a while; and go on from where they stood."""
    run = Descent()
    formula = Formula([p.copy() for p in run.params], **options)
    opt = fastgd.Prodigy([{"params": p} for p in run.params], **options)
    for k in range(120):
        for i, (start, end) in {0: (0, 40), 1: (30, 60), 4: (80, 200)}.items():
            if k in (start, end):
                lr = 0.0 if k == start else 1.0
                opt.param_groups[i]["lr"] = formula.lrs[i] = lr
        before = [p.copy() for p in run.params]
        grads = run.grads()
        # prodigyopt lets what was frozen later drift along its old m.
        frozen = [lr == 0 for lr in formula.lrs]
        kept = [p.copy() for p in formula.params]
        formula.step(grads)
        for p, q, still in zip(formula.params, kept, frozen, strict=True):
            if still:
                p[...] = q
        opt.step(grads)
        for p, q, still in zip(run.params, before, frozen, strict=True):
            assert not still or same_bits(p, q)
    assert_close(formula, opt, run.params)


def test_all_groups_frozen():
    run = Descent()
    opt = fastgd.Prodigy(run.params, weight_decay=0.1)
    for _ in range(5):
        opt.step(run.grads())
    opt.lr = 0.0
    before, numbers = [p.copy() for p in run.params], shared(opt)
    opt.step(run.grads())
    assert all(map(same_bits, run.params, before))
    assert shared(opt) == numbers


# -------------------------------------------------------------------------------------- edge cases


def test_no_gradient_at_all_is_no_step():
    """Not even weight decay, as long as all gradients were 0."""
    run = Descent()
    opt = fastgd.Prodigy(run.params, weight_decay=0.1, growth_rate=1.5)
    before = [p.copy() for p in run.params]
    for _ in range(3):
        opt.step([np.zeros_like(p) for p in run.params])
        assert all(map(np.array_equal, run.params, before))
        assert shared(opt) == (1e-6, 1e-6, 0.0)
    opt.step([None] * len(run.params))
    assert shared(opt) == (1e-6, 1e-6, 0.0)


@pytest.mark.parametrize("backend", ["numpy", "baseline"])
def test_a_nan_spreads(backend):
    fastgd.set_backend(backend)
    run = Descent(shapes=[(3,), (300,)])
    opt = fastgd.Prodigy(run.params)
    opt.step(run.grads())
    grads = run.grads()
    grads[0][1] = np.nan
    opt.step(grads)
    assert all(np.isnan(x) for x in shared(opt))
    assert all(np.isnan(p).any() for p in run.params)


def test_skipped_steps_leave_the_shared_numbers():
    run = Descent()
    opt = fastgd.Prodigy(run.params, nonfinite="skip")
    for _ in range(5):
        opt.step(run.grads())
    numbers, grads = shared(opt), run.grads()
    grads[0][0] = np.inf
    assert opt.step(grads).skipped
    assert shared(opt) == numbers


def test_start_is_taken_at_the_first_step():
    p = np.ones(3)
    opt = fastgd.Prodigy(p)
    p += 1
    opt.step(np.ones(3))
    assert opt.state[0]["p0"].tolist() == [2.0] * 3


# ------------------------------------------------------------------------------ bits and their keep


def run_steps(backend, threads, dtype, options, seed=0, steps=7):
    fastgd.set_backend(backend)
    fastgd.set_num_threads(threads)
    run = Descent(seed, dtype, [*SHAPES, (40000,)])  # more than a block
    rng = np.random.default_rng(seed)
    opt = fastgd.Prodigy(run.params, **options)
    for k in range(steps):
        grads = [np.asarray(rng.standard_normal(p.shape), dtype) for p in run.params]
        grads[1] = None if k % 3 == 1 else grads[1]
        opt.step(grads)
    arrays = [a for entry in opt.state.values() for a in entry.values()]
    return [*run.params, *arrays], opt


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "options",
    [{}, {"weight_decay": 0.1, "decouple": False, "clip_norm": 1.0, "maximize": True}, LETTERS],
)
def test_bits_are_those_of_the_reference(backend, dtype, options):
    expected, opt = run_steps("numpy", 1, dtype, options)
    for threads in (1, 2):
        found, other = run_steps(backend, threads, dtype, options)
        assert all(map(same_bits, found, expected))
        assert shared(other) == shared(opt)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
@pytest.mark.parametrize("average", [None, 0.9])
def test_fewer_bits(backend, state_dtype, average):
    options = {"state_dtype": state_dtype, "min_8bit_size": 1, "average": average, "seed": 3}
    expected, _ = run_steps("numpy", 1, np.float32, options)
    found, opt = run_steps(backend, 2, np.float32, options)
    assert all(map(same_bits, found, expected))
    # The start is kept as it is: its difference from the parameter is what counts.
    assert all(entry["p0"].dtype == np.float32 for entry in opt.state.values())
    named = fastgd.Prodigy(np.ones(3, np.float32), state_dtype={"p0": "float16"})
    assert named.state[0]["p0"].dtype == np.float16


def test_masters():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for master in (True, "split"):
        fastgd.set_backend("baseline")
        rng = np.random.default_rng(0)
        p = rng.standard_normal(500).astype(ml_dtypes.bfloat16)
        exact = p.astype(np.float32)
        opts = fastgd.Prodigy(p, master=master, d0=1e-3), fastgd.Prodigy(exact, d0=1e-3)
        start = exact.copy()
        for _ in range(5):
            g = rng.standard_normal(500).astype(np.float32)
            for opt in opts:
                opt.step(g)
        assert shared(opts[0]) == shared(opts[1])
        assert same_bits(opts[0].state[0]["p0"], start)


@pytest.mark.parametrize("way", ["state_dict", "pickle", "copy", "file"])
def test_going_on(way, tmp_path):
    run = Descent()
    opt = fastgd.Prodigy([{"params": run.params[:2]}, {"params": run.params[2:]}])
    for _ in range(20):
        grads = run.grads()
        opt.step([grads[:2], [*grads[2:-1], None]])
    values = [p.copy() for p in run.params]
    if way == "pickle":
        other = pickle.loads(pickle.dumps(opt))
    elif way == "copy":
        other = copy.deepcopy(opt)
    else:
        other = fastgd.Prodigy([{"params": values[:2]}, {"params": values[2:]}])
        if way == "file":
            fastgd.save(tmp_path / "c.fastgd", opt)
            fastgd.load(tmp_path / "c.fastgd", other)
        else:
            other.load_state_dict(opt.state_dict())
    assert shared(other) == shared(opt)
    params = [p for group in other.param_groups for p in group["params"]]
    for _ in range(20):
        grads = run.grads()
        opt.step([grads[:2], grads[2:]])
        other.step([grads[:2], grads[2:]])
        assert shared(other) == shared(opt)
    assert all(map(same_bits, params, run.params))


def test_a_state_dict_with_several_estimates_is_refused():
    run = Descent()
    opt = fastgd.Prodigy(run.params)
    opt.step(run.grads())
    saved = opt.state_dict()
    saved["state"][1]["d"] = np.array(0.5)
    with pytest.raises(ValueError, match='^state_dict: expected "d" to be the same for all'):
        opt.load_state_dict(saved)
    numbers = shared(opt)
    del saved["state"][1], saved["state"][4]  # without any states: they get the others' numbers
    opt.load_state_dict(saved)
    assert shared(opt) == numbers


def test_accumulated_gradients():
    run, other = Descent(), Descent()
    opt, whole = fastgd.Prodigy(run.params), fastgd.Prodigy(other.params)
    for _ in range(5):
        grads = run.grads()
        opt.accumulate(grads)
        opt.accumulate(grads)
        opt.step()
        whole.step(grads)
    assert shared(opt) == shared(whole)
    assert all(map(same_bits, run.params, other.params))


# ---------------------------------------------------------------------------- what has to be alike


@pytest.mark.parametrize(
    ("key", "value"),
    {
        "lr": 0.5,
        "betas": (0.5, 0.9),
        "beta3": 0.5,
        "use_bias_correction": True,
        "safeguard_warmup": True,
        "d0": 1e-3,
        "d_coef": 2.0,
        "growth_rate": 1.5,
    }.items(),
)
def test_groups_that_differ_are_refused(key, value):
    run = Descent()
    opt = fastgd.Prodigy([{"params": p} for p in run.params])
    opt.step(run.grads())
    for group in opt.param_groups[:-1]:
        group[key] = value
    saved, params = pickle.dumps(opt.state_dict()), [p.copy() for p in run.params]
    for _ in range(2):
        with pytest.raises(ValueError, match=f"^{key}: expected the same in all groups"):
            opt.step(run.grads())
    assert pickle.dumps(opt.state_dict()) == saved
    assert all(map(same_bits, run.params, params))
    opt.param_groups[-1][key] = value
    opt.step(run.grads())


def test_what_may_differ():
    run = Descent()
    own = [
        {"weight_decay": 0.1},
        {"eps": 1e-4},
        {"maximize": True},
        {"lr": 0.0},
        {"clip_norm": 1.0},
    ]
    opt = fastgd.Prodigy([{"params": p, **g} for p, g in zip(run.params, own, strict=True)])
    opt.step(run.grads())


def test_a_schedule_that_all_groups_have():
    """Also where parameters are at different steps of it."""
    run = Descent()
    opt = fastgd.Prodigy(run.params, lr=fastgd.schedules.Cosine(0.1, 30))
    for k in range(30):
        grads = run.grads()
        grads[1] = None if k % 2 else grads[1]
        opt.step(grads)
    shared(opt)


# -------------------------------------------------------------------------------------- other ways


def test_function():
    run = Descent(shapes=[(300,)])
    (p,) = run.params
    other, states = p.copy(), [np.zeros(300) for _ in range(4)]
    numbers = [np.array(1e-6), np.array(1e-6), np.array(0.0)]
    opt = fastgd.Prodigy(p, weight_decay=0.1)
    for t in range(1, 11):
        (g,) = run.grads()
        opt.step(g)
        prodigy(other, g, *states, *numbers, step=t, weight_decay=0.1)
        assert same_bits(p, other)
    assert [float(x) for x in numbers] == list(shared(opt))


def test_torch():
    torch = pytest.importorskip("torch")
    import fastgd.torch

    run = Descent(dtype=np.float32)
    params = [torch.nn.Parameter(torch.tensor(p)) for p in run.params]
    opt = fastgd.torch.Prodigy([{"params": params[:2]}, {"params": params[2:]}])
    ours = fastgd.Prodigy([{"params": run.params[:2]}, {"params": run.params[2:]}])
    for k in range(12):
        grads = run.grads()
        if k < 4:
            grads[0] = grads[3] = None  # these join late
        if k == 8:
            again = fastgd.torch.Prodigy([{"params": params[:2]}, {"params": params[2:]}])
            again.load_state_dict(copy.deepcopy(opt.state_dict()))
            opt = again
        for p, g in zip(params, grads, strict=True):
            p.grad = None if g is None else torch.tensor(g)
        opt.step()
        ours.step([grads[:2], grads[2:]])
        for p, q in zip(params, run.params, strict=True):
            assert same_bits(p.detach().numpy(), q)
        found = {float(opt.state[p]["d"]) for p in params if opt.state[p]}
        assert found == {shared(ours)[0]}
    opt.param_groups[0]["d_coef"] = 2.0
    with pytest.raises(ValueError, match="^d_coef: expected the same in all groups"):
        opt.step()


def test_torch_step_in_backward_is_refused():
    torch = pytest.importorskip("torch")
    import fastgd.torch

    model = torch.nn.Linear(2, 2)
    opt = fastgd.torch.Prodigy(model.parameters())
    with pytest.raises(ValueError, match="^opt: step_in_backward excludes Prodigy"):
        fastgd.torch.step_in_backward(model, opt)


@pytest.mark.parametrize("load", [False, True], ids=["made", "loaded"])
def test_groups_whose_d0_differ_start_from_the_first(load):
    groups = [{"params": np.ones(2), "d0": 1e-3}, {"params": np.ones(2), "d0": 1e-5}]
    opt = fastgd.Prodigy(groups)
    if load:
        fastgd.Prodigy(groups).load_state_dict(opt.state_dict())
        opt.load_state_dict({**opt.state_dict(), "state": {}})
    assert [float(entry["d"]) for entry in opt.state.values()] == [1e-3, 1e-3]
    with pytest.raises(ValueError, match="d0: expected the same in all groups"):
        opt.step([np.ones(2), np.ones(2)])
