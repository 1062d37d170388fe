"""SAM and ASAM against their formulas; whatever happens, parameters come back."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from support.helpers import same_bits

import fastgd
from fastgd import SAM

SHAPES = {"W": (40, 30), "b": (7,), "c": ()}


def drawn(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return {k: np.asarray(rng.standard_normal(shape), dtype) for k, shape in SHAPES.items()}


def cubic(params):
    """The gradients of Σ(w⁴ + w), which differ from place to place."""
    loss = sum(float((w**4 + w).sum()) for w in params.values())
    return loss, {key: 4 * w**3 + 1 for key, w in params.items()}


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
def test_the_formula(adaptive, maximize):
    params, theirs = drawn(0), drawn(0)
    sam = SAM(fastgd.Adam(params, lr=0.01, maximize=maximize), rho=0.3, adaptive=adaptive)
    other = fastgd.Adam(theirs, lr=0.01, maximize=maximize)
    for _ in range(30):
        loss, record = sam.step(lambda: cubic(params))
        expected, g = cubic(theirs)
        scaled = {k: theirs[k] * g[k] if adaptive else g[k] for k in g}
        norm = np.sqrt(sum((s * s).sum() for s in scaled.values()))
        sign = -1 if maximize else 1
        moved = {
            k: w + sign * 0.3 * (w * w * g[k] if adaptive else g[k]) / (norm + 1e-12)
            for k, w in theirs.items()
        }
        other.step(cubic(moved)[1])
        assert loss == pytest.approx(expected, rel=1e-12)
        assert not record.skipped
        for key, w in theirs.items():
            np.testing.assert_allclose(params[key], w, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_same_bits_on_all_backends_and_threads(adaptive):
    found = []
    for backend in fastgd.available_backends():
        for threads in (1, 2):
            fastgd.set_backend(backend)
            fastgd.set_num_threads(threads)
            params = {"W": np.linspace(-1, 1, 70_000, dtype=np.float32), **drawn(0, np.float32)}
            sam = SAM(fastgd.SGD(params, lr=0.01), adaptive=adaptive)
            for _ in range(2):
                sam.step(lambda params=params: cubic(params))
            found.append([p.tobytes() for p in params.values()])
    assert all(other == found[0] for other in found)


def bfloat16(values):
    return (np.float32(values).view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize(
    "options", [{"master": True}, {"master": "split"}, {"rounding": "stochastic"}]
)
def test_bfloat16_is_perturbed_on_average_and_comes_back(options):
    """Perturbations below what bfloat16 can tell apart; masters stay as they are."""
    p = bfloat16(np.ones(20_000))
    opt = fastgd.Adam(p, lr=1e-3, **options)
    opt.step(bfloat16(np.random.default_rng(0).standard_normal(20_000)))
    kept = [a.copy() for a in (p, *opt.state[0].values())]
    with SAM(opt, rho=0.05).perturbed(bfloat16(np.ones(20_000))):
        inside = (p.astype(np.uint32) << 16).view(np.float32)
        before = (kept[0].astype(np.uint32) << 16).view(np.float32)
        assert not same_bits(p, kept[0])
        assert (inside - before).mean() == pytest.approx(0.05 / np.sqrt(20_000), rel=0.2)
    assert all(same_bits(a, b) for a, b in zip((p, *opt.state[0].values()), kept, strict=True))


def test_copies_are_perturbed_too():
    w, served = np.ones(3), np.zeros(3, np.float32)
    sam = SAM(fastgd.SGD(w, copy_to=served), rho=2.0)
    with sam.perturbed(np.array([0.0, 1.0, 0.0])):
        assert w.round(9).tolist() == [1.0, 3.0, 1.0]
        assert served.tolist() == [1.0, 3.0, 1.0]
    assert w.tolist() == served.tolist() == [1.0] * 3


@pytest.mark.parametrize("adaptive", [False, True])
def test_an_exception_between_the_halves_leaves_everything_as_it_was(adaptive):
    params = drawn(0)
    before = {key: p.copy() for key, p in params.items()}
    opt = fastgd.Adam(params)
    sam = SAM(opt, adaptive=adaptive)
    calls = iter([cubic(params)])

    def closure():
        for found in calls:
            return found
        assert not same_bits(params["W"], before["W"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sam.step(closure)
    assert all(same_bits(p, before[key]) for key, p in params.items())
    assert int(opt.state["W"]["step"]) == 0
    sam.step(lambda: cubic(params))
    assert int(opt.state["W"]["step"]) == 1


def test_restoring_goes_on_after_an_interrupt(monkeypatch):
    w = np.ones(3)
    sam = SAM(fastgd.SGD(w), rho=1.0)
    plain, interrupts = sam._restore, iter([KeyboardInterrupt, KeyboardInterrupt])

    def interrupted(*args):
        for error in interrupts:
            raise error
        plain(*args)

    monkeypatch.setattr(sam, "_restore", interrupted)
    with pytest.raises(KeyboardInterrupt), sam.perturbed(np.ones(3)):
        assert w[0] > 1
    assert w.tolist() == [1.0] * 3
    sam.optimizer.step(np.ones(3))


def test_within_the_block_nothing_is_stepped_saved_or_copied(tmp_path):
    w = np.ones(3)
    opt = fastgd.Adam(w)
    sam = SAM(opt)
    fastgd.save(tmp_path / "run", opt)
    with sam.perturbed(np.ones(3)):
        moved = w.copy()
        for call in (
            lambda: opt.step(np.ones(3)),
            lambda: fastgd.save(tmp_path / "other", opt),
            lambda: fastgd.load(tmp_path / "run", opt),
            lambda: copy.copy(opt),
            lambda: pickle.dumps(sam),
            lambda: opt.add_param_group({"params": np.ones(2)}),
            lambda: fastgd.Lookahead(opt),
            lambda: sam.perturbed(np.ones(3)).__enter__(),
        ):
            with pytest.raises(RuntimeError, match="perturbed"):
                call()
        assert same_bits(w, moved)
    assert w.tolist() == [1.0] * 3
    opt.step(np.ones(3))


def test_missing_gradients_and_frozen_groups():
    """What has no gradient stays and has no part in the norm; a learning rate of 0 doesn't."""
    x, y, z = np.ones(1), np.ones(1), np.ones(1)
    opt = fastgd.SGD([{"params": [x, y]}, {"params": [z], "lr": 0.0}], lr=0.1)
    with SAM(opt, rho=5.0).perturbed([[np.array([3.0]), None], [np.array([4.0])]]):
        np.testing.assert_allclose([*x, *y, *z], [4.0, 1.0, 5.0], rtol=1e-11)
    with SAM(opt).perturbed([[None, None], [None]]):
        assert [*x, *y, *z] == [1.0] * 3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("adaptive", [False, True])
def test_gradients_that_are_not_finite(bad, adaptive):
    w = np.ones(4)
    g = np.array([1.0, bad, 1.0, 1.0])
    with SAM(fastgd.SGD(w), adaptive=adaptive).perturbed(g):
        assert np.isnan(w).tolist() == (
            [True] * 4 if np.isnan(bad) else [False, True] + 2 * [False]
        )
    assert w.tolist() == [1.0] * 4
    opt = fastgd.SGD(w, nonfinite="raise")
    with pytest.raises(FloatingPointError), SAM(opt, adaptive=adaptive).perturbed(g):
        pytest.fail("entered")
    opt = fastgd.SGD(w, lr=1.0, nonfinite="skip")
    _, record = SAM(opt, adaptive=adaptive).step(lambda: (0.0, g))
    assert record.skipped
    assert opt.skipped == 1
    assert w.tolist() == [1.0] * 4


@pytest.mark.parametrize("adaptive", [False, True])
def test_gradients_that_dont_fit_change_nothing(adaptive):
    params = drawn(0)
    before = {key: p.copy() for key, p in params.items()}
    sam = SAM(fastgd.SGD(params), adaptive=adaptive)
    for grads, error in [
        (None, TypeError),
        ({**drawn(1), "b": np.zeros(8)}, ValueError),
        ({"W": drawn(1)["W"]}, (TypeError, ValueError)),
        ({**drawn(1), "b": "seven"}, TypeError),
    ]:
        with pytest.raises(error), sam.perturbed(grads):
            pytest.fail("entered")
        assert all(same_bits(p, before[key]) for key, p in params.items())
        sam.optimizer.stepper.refuse_elsewhere("step")


@pytest.mark.parametrize("adaptive", [False, True])
def test_zeroed_gradients_are_zeroed_between_the_halves(adaptive):
    """So that a loop that adds to the same buffers has each gradient by itself."""
    w, g = np.ones(3), np.zeros(3)
    sam = SAM(fastgd.SGD(w, lr=0.5, grads=g, zero_grads=True), rho=0.0, adaptive=adaptive)

    def closure():
        g[...] += 2 * w
        return float(w @ w), None

    sam.step(closure)
    assert w.tolist() == g.tolist() == [0.0] * 3


def test_it_wraps_lookahead():
    w = np.array([1.0])
    sam = SAM(fastgd.Lookahead(fastgd.SGD(w, lr=0.1), k=1), rho=0.0)
    sam.step(lambda: (0.0, np.ones(1)))
    assert w.tolist() == [0.95]


def test_wrong_arguments():
    opt = fastgd.SGD(np.ones(2))
    for arguments, error in [
        ((np.ones(2),), TypeError),
        ((opt, -1.0), ValueError),
        ((opt, "a"), TypeError),
        ((opt, 0.1, 1), TypeError),
    ]:
        with pytest.raises(error):
            SAM(*arguments)
