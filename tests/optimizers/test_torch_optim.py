"""The traps of torch's Adadelta, Adamax, RAdam, Rprop, ASGD; test_torch_parity.py has their paths."""

from __future__ import annotations

import numpy as np
import pytest
from support.helpers import COMPILED, same_bits

import fastgd

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0")

NAMES = ["Adadelta", "Adamax", "RAdam", "Rprop", "ASGD"]


def stepped(name, options, grads, dtype=np.float64, change=None):
    """Parameters and states under fastgd and under torch, after the same gradients of one tensor."""
    p = np.linspace(-1, 1, np.size(grads[0])).astype(dtype)
    q = torch.nn.Parameter(torch.tensor(p))
    ours = getattr(fastgd, name)(p, **options)
    theirs = getattr(torch.optim, name)([q], **options, foreach=False)
    for t, g in enumerate(grads):
        if change and t == change[0]:
            ours.param_groups[0].update(change[1])
            theirs.param_groups[0].update(change[1])
        ours.step(np.array(g, dtype))
        q.grad = torch.tensor(np.array(g, dtype))
        theirs.step()
    states = {key: value.numpy() for key, value in theirs.state[q].items()}
    return p, ours.state[0], q.detach().numpy(), states


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
@pytest.mark.parametrize("name", NAMES)
def test_nan_goes_where_torchs_goes(name, backend):
    """To its own element, and for good where a state has it; in torch Rprop alone hides it."""
    fastgd.set_backend(backend)
    grads = np.array([[0.1, -0.2, 0.3]] * 4)
    grads[1, 1] = np.nan
    p, states, q, theirs = stepped(name, {}, grads)
    assert np.isnan(p).tolist() == [False, True, False]
    if name == "Rprop":
        assert not np.isnan(q).any()
        assert np.isfinite(states["step_size"]).all()
        assert np.isfinite(states["prev"]).all()  # it was so for a step
        return
    assert np.isnan(q).tolist() == [False, True, False]
    for key in states.keys() - {"step"}:
        assert np.isnan(states[key]).tolist() == np.isnan(theirs[key]).tolist(), key


@pytest.mark.parametrize("name", NAMES)
def test_each_parameter_counts_its_own_steps(name):
    """One that joins late is stepped as if its first gradient were the first of all."""
    rng = np.random.default_rng(0)
    early, late, alone = (np.ones(5) for _ in range(3))
    opt = getattr(fastgd, name)([early, late], lr=0.1)
    other = getattr(fastgd, name)(alone, lr=0.1)
    for t in range(12):
        g = rng.standard_normal(5)
        opt.step([g, g if t >= 4 else None])
        if t >= 4:
            other.step(g)
    assert same_bits(late, alone)
    assert not same_bits(late, early)


# ------------------------------------------------------------------------------ Adadelta, Adamax


def test_adadelta_reads_the_steps_before_it_adds_its_own():
    p = np.zeros(1)
    opt = fastgd.Adadelta(p, rho=0.75, eps=0.5)
    opt.step(np.array([2.0]))
    delta = np.sqrt(0.5) / np.sqrt(0.25 * 4 + 0.5) * 2
    assert p[0] == pytest.approx(-delta, rel=1e-15)
    assert opt.state[0]["acc_delta"][0] == pytest.approx(0.25 * delta**2, rel=1e-15)


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
def test_adamaxs_maximum(backend):
    """ε is added to the gradient, not to the maximum; one that decays gives way to a larger one."""
    fastgd.set_backend(backend)
    p = np.zeros(2, np.float32)
    opt = fastgd.Adamax(p, betas=(0.0, 0.5), eps=0.25)
    for g, expected in (([4, 0], [4.25, 0.25]), ([1, 0], [2.125, 0.25]), ([1, 1], [1.25, 1.25])):
        opt.step(np.array(g, np.float32))
        assert opt.state[0]["exp_inf"].tolist() == expected


# ----------------------------------------------------------------------------------------- RAdam


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
def test_radam_needs_no_second_moment_at_first(backend):
    """Squares that overflow don't matter until the sixth step, by the default β₂."""
    fastgd.set_backend(backend)
    p, _, q, _ = stepped("RAdam", {"lr": 1.0}, [[1e20, -1e20, 1.0]] * 5, np.float32)
    assert np.isfinite(p).all()
    np.testing.assert_allclose(p, q, rtol=1e-6)
    opt = fastgd.RAdam(np.zeros(1))
    adapts = [opt.coefficients(opt.defaults, t)[-1] for t in range(1, 9)]
    assert adapts == [0, 0, 0, 0, 0, 1, 1, 1]


def test_radam_never_adapts_by_a_short_average():
    """Where ρ∞ is 5 or less the formula's roots are of negative numbers."""
    opt = fastgd.RAdam(np.zeros(1), lr=0.5, betas=(0.0, 2 / 3))
    assert {opt.coefficients(opt.defaults, t)[-1] for t in (*range(1, 50), 10**6)} == {0.0}
    assert opt.coefficients(opt.defaults, 10**6)[0] == 0.5


# ----------------------------------------------------------------------------------------- Rprop


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rprop_has_torchs_bits(dtype, backend):
    """All it does is multiply and compare; gradients of 0 and products that underflow among them."""
    fastgd.set_backend(backend)
    rng = np.random.default_rng(1)
    grads = rng.choice([0.0, 1e-30, -1e-30, 1.0, -2.0, 3.0], (60, 300))
    options = {"lr": 0.3, "etas": (0.4, 1.5), "step_sizes": (0.1, 0.35)}
    p, states, q, theirs = stepped("Rprop", options, grads, dtype, (30, {"lr": 7.0}))
    assert same_bits(p, q)
    assert same_bits(states["step_size"], theirs["step_size"])
    assert np.array_equal(states["prev"], theirs["prev"])
    assert {0.1, 0.35} <= set(np.float64(states["step_size"]).round(6).tolist())


def test_rprops_products_may_underflow():
    sizes = []
    for dtype in (np.float32, np.float64):
        opt = fastgd.Rprop(np.zeros(1, dtype), lr=1.0)
        opt.step(np.full(1, 1e-30, dtype))
        opt.step(np.full(1, 1e-30, dtype))
        sizes.append(float(opt.state[0]["step_size"][0]))
    assert sizes == [1.0, 1.2]  # in float32 it is no agreement


def test_rprops_first_step_is_within_the_bounds():
    for lr, expected in ((0.0, 0.125), (100.0, 0.5), (0.25, 0.25)):
        p = np.zeros(1)
        fastgd.Rprop(p, lr=lr, step_sizes=(0.125, 0.5)).step(np.ones(1))
        assert p[0] == -expected


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"etas": (0.5, 1.0)}, ValueError, "^etas: expected numbers as 0 < a < 1 < b, found"),
        ({"etas": (0.0, 1.2)}, ValueError, "^etas: expected numbers as 0 < a < 1 < b, found"),
        ({"etas": 0.5}, TypeError, "^etas: expected two numbers"),
        ({"step_sizes": (1.0, 0.5)}, ValueError, "^step_sizes: expected numbers as a <= b, found"),
        ({"step_sizes": (-1.0, 0.5)}, ValueError, r"^step_sizes\[0\]: expected a number of at"),
        ({"etas": lambda t: (0.5, 1.2)}, TypeError, "^etas: expected two numbers"),
    ],
)
def test_rprop_refuses(wrong, error, message):
    with pytest.raises(error, match=message):
        fastgd.Rprop(np.zeros(1), **wrong)


# ------------------------------------------------------------------------------------------ ASGD


def test_asgds_rates_act_a_step_late():
    """A learning rate that is changed before the fifth step is that of the sixth, as in torch."""
    grads = np.random.default_rng(2).standard_normal((12, 6))
    options = {"lr": 0.1, "lambd": 0.5, "alpha": 0.75, "t0": 3.0}
    p, states, q, theirs = stepped("ASGD", options, grads, change=(4, {"lr": 0.01}))
    np.testing.assert_allclose(p, q, rtol=1e-6)
    np.testing.assert_allclose(states["ax"], theirs["ax"], rtol=1e-6)
    for key in ("eta", "mu"):  # which torch rounds to float32
        assert states[key].shape == ()
        assert float(states[key]) == pytest.approx(float(theirs[key]), rel=1e-7)
    before, *_ = stepped("ASGD", options, grads[:5], change=(4, {"lr": 0.01}))
    unchanged, *_ = stepped("ASGD", options, grads[:5])
    assert same_bits(before, unchanged)


def test_asgd_starts_from_the_rate_of_its_first_step():
    """Whatever it was when the optimizer was made; a schedule's, too."""
    p, q = np.zeros(1), np.zeros(1)
    opt = fastgd.ASGD(p, lr=5.0)
    opt.lr = 0.5
    opt.step(np.ones(1))
    fastgd.ASGD(q, lr=lambda t: 0.5 / (1 + t)).step(np.ones(1))
    assert p[0] == q[0] == -0.5
    assert opt.state[0]["ax"][0] == -0.5
    assert "mu" not in fastgd.ASGD(np.zeros(1)).state_dict()["state"]


def test_asgds_average_is_that_of_the_points():
    """From step t₀ + 2 on, as μ is the one that was worked out a step before."""
    p = np.zeros(1)
    opt = fastgd.ASGD(p, lr=0.5, lambd=0.0, alpha=0.0, t0=4.0)
    points = []
    for g in (1.0, -2.0, 0.5, 4.0, -1.0, 2.0, -3.0, 0.25):
        opt.step(np.array([g]))
        points.append(p[0])
    assert opt.state[0]["ax"][0] == pytest.approx(np.mean(points[5:]), rel=1e-14)


# ------------------------------------------------------------------------------- Adam(nesterov)


def test_nesterov_takes_the_state_dict_of_torchs_adam():
    q = torch.ones(3, requires_grad=True)
    theirs = torch.optim.Adam([q], lr=0.1)
    q.grad = torch.tensor([1.0, -2.0, 3.0])
    theirs.step()
    opt = fastgd.Adam([np.ones(3, np.float32)], nesterov=True)
    opt.load_state_dict(theirs.state_dict())
    assert (opt.param_groups[0]["nesterov"], opt.lr) == (True, 0.1)
    assert same_bits(opt.state[0]["exp_avg"], theirs.state[q]["exp_avg"].numpy())
    assert opt.stepper.rules == ["adam_nesterov"]
    with pytest.raises(ValueError, match="^nesterov: excludes amsgrad"):
        opt.param_groups[0]["amsgrad"] = True
