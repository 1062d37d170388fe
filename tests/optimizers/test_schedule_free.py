"""The schedule-free optimizers: the paper's three sequences, evaluation weights, checkpoints."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from support.formulas import few
from support.helpers import COMPILED, same_bits

import fastgd

CLASSES = [fastgd.SGDScheduleFree, fastgd.AdamWScheduleFree, fastgd.RAdamScheduleFree]
SETTINGS = {
    "SGDScheduleFree": [
        {"lr": 0.5},
        {"lr": 0.3, "momentum": 0.7, "weight_decay": 0.1, "warmup_steps": 30.0},
        {"lr": 0.3, "r": 1.5, "weight_lr_power": 1.0, "warmup_steps": 300.0, "maximize": True},
    ],
    "AdamWScheduleFree": [
        {"lr": 0.05},
        {"lr": 0.05, "betas": (0.7, 0.9), "weight_decay": 0.1, "warmup_steps": 30.0},
        {"lr": 0.05, "r": 1.5, "weight_lr_power": 0.0, "eps": 0.1},
    ],
    "RAdamScheduleFree": [
        {"lr": 0.05, "weight_decay": 0.1},
        {"lr": 0.05, "silent_sgd_phase": False},
        {"lr": 0.05, "betas": (0.7, 0.5), "r": 1.0},  # never adapted
    ],
}
CASES = [(name, options) for name, sets in SETTINGS.items() for options in sets]


class Paper:
    """Section 2 of the paper, with x, y and z apart, and each parameter's own count of steps."""

    def __init__(self, name, params, **options):
        cls = getattr(fastgd, name)
        self.h = {key: h.default for key, h in cls.hypers.items()} | options
        self.name = name
        self.beta = self.h["momentum"] if name[0] == "S" else self.h["betas"][0]
        self.x, self.y, self.z = ([p.copy() for p in params] for _ in range(3))
        self.v = [0.0 * p for p in params]
        self.t, self.total, self.largest = ([0.0] * len(params) for _ in range(3))

    def rectified(self, t):
        """The learning rate's factor, and whether the step is Adam's."""
        if self.name[0] != "R":
            warmup = self.h["warmup_steps"]
            return (t / warmup if t < warmup else 1.0), True
        beta2 = self.h["betas"][1]
        limit = 2 / (1 - beta2) - 1
        rho = limit - 2 * t * beta2**t / (1 - beta2**t)
        if rho <= 4:
            return float(not self.h["silent_sgd_phase"]), False
        return ((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho)) ** 0.5, True

    def step(self, grads):
        h = self.h
        for i, g in enumerate(grads):
            if g is None:
                continue
            g = -g if h["maximize"] else g
            self.t[i] += 1
            t, d = self.t[i], g
            factor, adaptive = self.rectified(t)
            if self.name[0] != "S":
                beta2 = h["betas"][1]
                self.v[i] = beta2 * self.v[i] + (1 - beta2) * g * g
                if adaptive:
                    d = g / (np.sqrt(self.v[i] / (1 - beta2**t)) + h["eps"])
            d = d + h["weight_decay"] * self.y[i]
            lr = h["lr"] * factor
            self.largest[i] = max(self.largest[i], lr)
            w = t ** h["r"] * self.largest[i] ** h["weight_lr_power"]
            self.total[i] += w
            c = w / self.total[i] if self.total[i] else 0.0
            self.z[i] = self.z[i] - lr * d
            self.x[i] = (1 - c) * self.x[i] + c * self.z[i]
            self.y[i] = self.beta * self.x[i] + (1 - self.beta) * self.z[i]


def close(found, expected):
    for p, q in zip(found, expected, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_of_the_paper(name, options):
    """Also where parameters have no gradient in some steps."""
    params = few(0)
    opt, paper = getattr(fastgd, name)(params, **options), Paper(name, params, **options)
    for t in range(1, 101):
        grads = [g if (t + k) % 5 else None for k, g in enumerate(few(t))]
        opt.step(grads)
        paper.step(grads)
        close(params, paper.y)
    close(opt.average.averages.values(), paper.x)
    close([entry["z"] for entry in opt.state.values()], paper.z)


# --------------------------------------------------------------------------- evaluation weights


def trained(cls, params, steps=7, **options):
    opt = cls(params, **options)
    for t in range(1, steps + 1):
        opt.step(few(t)[: len(params)])
    return opt


@pytest.mark.parametrize("backend", [COMPILED[0], "numpy"])
@pytest.mark.parametrize("cls", CLASSES)
def test_swapped(cls, backend, tmp_path):
    """Averages are there in the block alone, whatever is raised in it; steps are refused."""
    fastgd.set_backend(backend)
    params = few(0)
    params.append(np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    opt = cls(params)
    for t in range(1, 8):
        opt.step([*few(t), None])
    before, averages = [p.copy() for p in params], opt.average.averages
    assert opt.average.step == 7
    with pytest.raises(KeyError), opt.average.swapped():
        assert all(map(same_bits, params, averages.values()))
        assert all(map(same_bits, params, opt.average.averages.values()))
        assert not any(map(np.array_equal, params[:-1], before))
        assert same_bits(params[-1], before[-1])  # it has no average yet
        for refused in (
            lambda: opt.step([*few(1), None]),
            lambda: opt.average.swapped().__enter__(),
            lambda: fastgd.save(tmp_path / "run", opt),
            lambda: copy.deepcopy(opt),
            lambda: opt.add_param_group({"params": np.ones(2)}),
        ):
            with pytest.raises(RuntimeError, match="averages are swapped in"):
                refused()
        raise KeyError
    assert all(map(same_bits, params, before))
    opt.step([*few(1), None])


def test_an_average_that_was_asked_for_takes_its_place():
    w = np.ones(3)
    opt = fastgd.SGDScheduleFree(w, lr=0.1, average=0.5)
    opt.step(np.ones(3))
    assert isinstance(opt.average, fastgd.averages.EMA)
    assert fastgd.SGD(w).average is None


def test_of_16_bits():
    """x follows from the master, and the parameter shows it rounded."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for master in (True, "split"):
        p = np.linspace(-1, 1, 500).astype(ml_dtypes.bfloat16)
        exact = p.astype(np.float32)
        g = np.linspace(1, 2, 500).astype(np.float32)
        opts = [
            fastgd.SGDScheduleFree(x, lr=0.1, **o)
            for x, o in ((p, {"master": master}), (exact, {}))
        ]
        for _ in range(5):
            for opt in opts:
                opt.step(g)
        before = p.copy()
        with opts[0].average.swapped(), opts[1].average.swapped():
            assert np.array_equal(p, exact.astype(ml_dtypes.bfloat16))
        assert np.array_equal(p, before)
        assert opts[0].state[0]["z"].dtype == np.float32


WAYS = {
    "state_dict": lambda opt, new, folder: new.load_state_dict(opt.state_dict()),
    "file": lambda opt, new, folder: (
        fastgd.save(folder / "a", opt),
        fastgd.load(folder / "a", new),
    ),
    "pickle": lambda opt, new, folder: pickle.loads(pickle.dumps(opt)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cls", CLASSES)
def test_goes_on_as_if_nothing_had_been(cls, way, tmp_path):
    opt = trained(cls, few(0), warmup_steps=10.0) if cls is not CLASSES[2] else trained(cls, few(0))
    new = cls([p.copy() for p in opt.param_groups[0]["params"]])
    made = WAYS[way](opt, new, tmp_path)
    new = made if way == "pickle" else new
    for t in range(8, 12):
        for one in (opt, new):
            one.step(few(t))
    for a, b in zip(opt.stepper.params().values(), new.stepper.params().values(), strict=True):
        assert same_bits(a, b)
    for a, b in zip(opt.average.averages.values(), new.average.averages.values(), strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("cls", CLASSES)
def test_no_rate_no_step(cls):
    """Weights of 0 are not divided by; a rate that comes later starts the average."""
    w = np.ones(3)
    opt = cls(w, lr=lambda t: 0.0 if t < 6 else 0.1)
    for _ in range(6):
        opt.step(np.ones(3))
        assert w.tolist() == [1.0] * 3
    opt.step(np.ones(3))
    assert same_bits(opt.average.averages[0], opt.state[0]["z"])  # the first that counts


def test_momentum_is_no_schedule_and_not_0():
    for key, value in (("momentum", 0.0), ("momentum", 1.0)):
        with pytest.raises(ValueError, match="above 0 and below 1"):
            fastgd.SGDScheduleFree(np.ones(1), **{key: value})
    with pytest.raises(ValueError, match=r"betas\[0\]: expected a number above 0"):
        fastgd.AdamWScheduleFree(np.ones(1), betas=(0.0, 0.9))
    with pytest.raises(TypeError, match="momentum"):
        fastgd.SGDScheduleFree(np.ones(1), momentum=lambda t: 0.9)


@pytest.mark.parametrize("cls", CLASSES)
def test_nan_goes_where_it_comes_from(cls):
    params = [np.ones(4), np.ones(4)]
    opt = cls(params, lr=0.1)
    for _ in range(6):
        opt.step([np.array([1.0, np.nan, 1.0, 1.0]), np.ones(4)])
    assert np.isnan(params[0]).tolist() == [False, True, False, False]
    assert np.isfinite(params[1]).all()


# ----------------------------------------------------------------------------------------- torch


@pytest.mark.parametrize("name", SETTINGS)
def test_eval_and_train_of_torch(name):
    """Parameters become x and again y; a state dict says which they are, and loads in that mode."""
    torch = pytest.importorskip("torch")
    import fastgd.torch

    cls, arrays = getattr(fastgd.torch, name), few(0)
    tensors = [torch.nn.Parameter(torch.tensor(p)) for p in arrays]
    opt, twin = cls(tensors, lr=0.1), getattr(fastgd, name)(arrays, lr=0.1)

    def step():
        for t in range(1, 8):
            for p, g in zip(tensors, few(t), strict=True):
                p.grad = torch.tensor(g)
            opt.step()
            twin.step(few(t))

    def shown():
        return [p.detach().numpy().copy() for p in tensors]

    opt.train()  # as they are from the start
    step()
    trained = shown()
    assert all(map(same_bits, trained, arrays))
    with opt.average.swapped():
        evaluated = shown()
        with pytest.raises(RuntimeError, match="averages are swapped in"):
            opt.state_dict()
    assert all(map(same_bits, shown(), trained))
    with twin.average.swapped():
        assert all(map(same_bits, evaluated, arrays))

    opt.eval()
    opt.eval()
    assert all(map(same_bits, shown(), evaluated))
    with pytest.raises(RuntimeError, match=r"step: expected train\(\) after eval\(\)"):
        opt.step()
    assert all(map(same_bits, shown(), evaluated))
    with opt.average.swapped():
        assert all(map(same_bits, shown(), evaluated))

    others = [torch.nn.Parameter(torch.tensor(p)) for p in evaluated]
    loaded = cls(others)
    loaded.load_state_dict(copy.deepcopy(opt.state_dict()))
    for one in (opt, loaded, copy.deepcopy(opt)):
        one.train()
    for p, q in zip(tensors, others, strict=True):
        assert torch.equal(p, q)
    for p, q in zip(shown(), trained, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-13, atol=1e-15)


def test_eval_of_torchs_16_bits_goes_there_and_back():
    torch = pytest.importorskip("torch")
    import fastgd.torch

    for options in ({"master": True}, {"master": "split"}):
        w = torch.nn.Parameter(torch.linspace(-1, 1, 50).bfloat16())
        opt = fastgd.torch.SGDScheduleFree([w], lr=0.1, **options)
        for _ in range(3):
            w.grad = torch.ones_like(w)
            opt.step()
        before = w.detach().clone()
        opt.eval()
        assert not torch.equal(w, before)
        opt.train()
        opt.step()
        opt.eval()
        opt.train()
        assert torch.isfinite(w).all()
        assert (w < before).all()


def test_averages_of_a_parameter_that_was_resized_are_refused():
    p, q = np.zeros(3), np.zeros(2)
    opt = fastgd.SGDScheduleFree([q, p], lr=0.1)
    opt.step([np.ones(2), np.ones(3)])
    p.resize(5, refcheck=False)
    with pytest.raises(ValueError, match=r"params\[1\]: was given another shape"):
        _ = opt.average.averages
