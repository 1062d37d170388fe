"""Lookahead against its formula, whatever it wraps, and where it must not lose anything."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from support.helpers import COMPILED, same_bits

import fastgd
from fastgd import Lookahead

SHAPES = {"W": (40, 30), "b": (7,), "c": ()}
BFLOAT16 = np.dtype(np.uint16)


def drawn(seed, dtype=np.float64):
    """Arrays by name; those of uint16 are the bits of bfloat16."""
    rng = np.random.default_rng(seed)
    values = {key: rng.standard_normal(shape) for key, shape in SHAPES.items()}
    if dtype == BFLOAT16:
        values = {k: np.asarray(v, np.float32).view(np.uint32) >> 16 for k, v in values.items()}
    return {key: np.asarray(value, dtype) for key, value in values.items()}


def step(opt, t, dtype=np.float64, missing=()):
    return opt.step({k: None if k in missing else g for k, g in drawn(t, dtype).items()})


def bits(opt):
    """All that an optimizer has, in bits."""
    arrays = [p for group in opt.param_groups for p in group["params"]]
    arrays += [a for entry in opt.state.values() for a in entry.values()]
    return [a.tobytes() for a in [*arrays, *getattr(opt, "slow", {}).values()]]


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.0, 1.0])
@pytest.mark.parametrize("make", [fastgd.Adam, fastgd.LAMB, fastgd.SGD])
def test_the_formula(make, alpha):
    """Compared with an optimizer whose parameters are pulled by hand, with gaps in gradients."""
    params, theirs = drawn(0), drawn(0)
    opt = Lookahead(make(params, lr=0.05), k=3, alpha=alpha)
    other = make(theirs, lr=0.05)
    slow = {key: p.copy() for key, p in theirs.items()}
    for t in range(1, 11):
        missing = ("b",) if t == 4 else ()
        step(opt, t, missing=missing)
        step(other, t, missing=missing)
        if t % 3 == 0:
            for key, p in theirs.items():
                slow[key] = slow[key] + alpha * (p - slow[key])
                p[...] = slow[key]
        for key, p in theirs.items():
            np.testing.assert_allclose(params[key], p, rtol=1e-12, atol=1e-14)
            np.testing.assert_allclose(opt.slow[key], slow[key], rtol=1e-12, atol=1e-14)


KEPT = {
    "float32": (np.float32, {}),
    "8 bits": (np.float32, {"state_dtype": "8bit", "min_8bit_size": 0}),
    "master": (BFLOAT16, {"master": True}),
    "split": (BFLOAT16, {"master": "split"}),
    "stochastic": (BFLOAT16, {"rounding": "stochastic"}),
    "float16": (np.float16, {"master": True}),
}


@pytest.mark.parametrize("kept", KEPT)
def test_the_same_bits_on_all_backends_and_threads(kept):
    dtype, options = KEPT[kept]
    found = []
    for backend in [*fastgd.available_backends()]:
        for threads in (1, 2):
            fastgd.set_backend(backend)
            fastgd.set_num_threads(threads)
            opt = Lookahead(fastgd.Adam(drawn(0, dtype), lr=0.05, seed=3, **options), k=2)
            for t in range(1, 6):
                step(opt, t, dtype)
            found.append(bits(opt))
    assert all(other == found[0] for other in found)


@pytest.mark.parametrize("kept", ["float32", "master", "split", "stochastic", "float16"])
def test_what_is_updated_is_exactly_the_slow_weights(kept):
    """A pull leaves master, parameter, copy and slow weights consistent to the bit."""
    dtype, options = KEPT[kept]
    params = drawn(0, dtype)
    start = {key: p.copy() for key, p in params.items()}
    served = {key: np.empty(p.shape, np.float32) for key, p in params.items()}
    if options.get("master") is not True:
        options = {**options, "copy_to": served}
    opt = Lookahead(fastgd.SGD(params, lr=0.05, **options), k=2, alpha=0.25)
    step(opt, 1, dtype)
    step(opt, 2, dtype)
    assert not same_bits(params["W"], start["W"])
    for key, p in params.items():
        entry, slow = opt.state[key], opt.slow[key]
        if kept == "split":
            stepped = opt.storage.parameter(p, entry).load(np.float32).reshape(p.shape)
        else:
            stepped = entry.get("master", p)
        assert same_bits(stepped, slow)
        if "master" in entry and dtype == np.float16:
            assert same_bits(p, slow.astype(np.float16))
        if "copy_to" in options:
            values = opt.storage.parameter(p, entry).load(np.float32)
            assert same_bits(served[key].reshape(-1), values)


def test_small_steps_add_up_where_16_bits_are_rounded_stochastically():
    ones = np.full(4000, 0x3F80, np.uint16)
    opt = Lookahead(fastgd.SGD(ones, lr=1e-4, rounding="stochastic"), k=2)
    g = np.full(4000, 0x3F80, np.uint16)
    for _ in range(100):
        opt.step(g)
    mean = (ones.astype(np.uint32) << 16).view(np.float32).mean()
    assert mean == pytest.approx(1 - 100 * 1e-4 / 2, abs=1e-3)


def test_steps_that_are_skipped_dont_count():
    params = drawn(0)
    opt = Lookahead(fastgd.SGD(params, lr=0.1, nonfinite="skip"), k=2, alpha=0.5)
    step(opt, 1)
    before = {key: p.copy() for key, p in params.items()}
    bad = {**drawn(2), "b": np.full(7, np.nan)}
    assert opt.step(bad).skipped
    assert all(same_bits(p, before[key]) for key, p in params.items())
    step(opt, 3)
    assert all(same_bits(p, opt.slow[key]) for key, p in params.items())


def test_what_stands_still_stays_to_the_bit():
    """Frozen groups, and parameters that never get a gradient, whatever α."""
    x, y, z = (np.random.default_rng(k).standard_normal(1000).astype(np.float32) for k in range(3))
    y0, z0 = y.copy(), z.copy()
    opt = Lookahead(
        fastgd.Adam([{"params": [x, y]}, {"params": z, "lr": 0.0}], lr=0.1), k=1, alpha=0.3
    )
    for _ in range(5):
        opt.step([[np.ones_like(x), None], np.ones_like(z)])
    assert same_bits(y, y0)
    assert same_bits(z, z0)


@pytest.mark.parametrize("at", ["after the step", "after the pull"])
def test_an_interrupted_step_is_made_up_for(monkeypatch, at):
    """Ctrl-C between what is uninterruptible: the step, the pull, the copy of what was pulled."""
    from fastgd.wrappers import lookahead

    runs = []
    for interrupted in (False, True):
        params = drawn(0)
        opt = Lookahead(fastgd.Adam(params, lr=0.1), k=2)
        step(opt, 1)
        with monkeypatch.context() as patched:
            if interrupted and at == "after the pull":
                calls = iter([KeyboardInterrupt])

                def interrupt(pair, take=lookahead._take, calls=calls):
                    for error in calls:
                        raise error
                    take(pair)

                patched.setattr(lookahead, "_take", interrupt)
            elif interrupted:
                plain = opt.optimizer.step

                def then_interrupt(*args, plain=plain, **kwargs):
                    plain(*args, **kwargs)
                    raise KeyboardInterrupt

                patched.setattr(opt.optimizer, "step", then_interrupt)
            if interrupted:
                with pytest.raises(KeyboardInterrupt):
                    step(opt, 2)
            else:
                step(opt, 2)
        runs.append(bits(opt))
        for t in range(3, 6):
            step(opt, t)
        runs.append(bits(opt))
    assert runs[:2] == runs[2:]


WAYS = {
    "deepcopy": lambda opt, folder: copy.deepcopy(opt),
    "pickle": lambda opt, folder: pickle.loads(pickle.dumps(opt)),
    "state_dict": lambda opt, folder: renewed(opt, None),
    "checkpoint": lambda opt, folder: renewed(opt, folder / "run"),
}


def renewed(opt, file):
    params = drawn(99)
    new = Lookahead(fastgd.Adam(params), k=opt.k)
    step(new, 98)
    if file is None:
        new.load_state_dict(opt.state_dict())
        for p, q in zip(params.values(), opt.param_groups[0]["params"], strict=True):
            p[...] = q
    else:
        fastgd.save(file, opt)
        fastgd.load(file, new)
    return new


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("steps", [4, 5])
def test_goes_on_as_if_nothing_had_been(way, steps, tmp_path):
    opt = Lookahead(fastgd.Adam(drawn(0), lr=0.05), k=3)
    for t in range(steps):
        step(opt, t)
    twin = WAYS[way](opt, tmp_path)
    for one in (opt, twin):
        one.add_param_group({"params": [np.ones(3)], "lr": 0.5})
        for t in range(5):
            one.step([drawn(t), [np.full(3, 0.1 * t)]])
    assert bits(opt) == bits(twin)


def test_a_shallow_copy_has_states_of_its_own():
    opt = Lookahead(fastgd.Adam(drawn(0)), k=2)
    step(opt, 1)
    other = copy.copy(opt)
    before = bits(opt)[3:]
    step(other, 2)
    assert bits(opt)[3:] == before
    assert other.optimizer is not opt.optimizer


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: saved.pop("lookahead"),
        lambda saved: saved["lookahead"].pop("slow"),
        lambda saved: saved["lookahead"].update(step=-1),
        lambda saved: saved["lookahead"]["slow"].pop("b"),
        lambda saved: saved["lookahead"]["slow"].update(b=np.zeros(8)),
        lambda saved: saved["lookahead"]["slow"].update(b=np.zeros(7, np.float32)),
        lambda saved: saved["state"][0].update(step=-1),
    ],
)
def test_a_state_dict_that_doesnt_fit_changes_nothing(damage):
    opt = Lookahead(fastgd.Adam(drawn(0)), k=3)
    step(opt, 1)
    saved = opt.state_dict()
    damage(saved)
    step(opt, 2)
    before = bits(opt)
    with pytest.raises((TypeError, ValueError)):
        opt.load_state_dict(saved)
    assert bits(opt) == before


def test_a_checkpoint_is_of_what_is_wrapped(tmp_path):
    opt = Lookahead(fastgd.Adam(drawn(0)))
    fastgd.save(tmp_path / "run", opt)
    with pytest.raises(fastgd.CheckpointError, match=r"expected Adam, found Lookahead\(Adam\)"):
        fastgd.load(tmp_path / "run", fastgd.Adam(drawn(0)))


def test_wrong_arguments():
    adam = fastgd.Adam(drawn(0))
    for arguments, error in [
        ((drawn(0),), TypeError),
        ((adam, 0), ValueError),
        ((adam, 1.5), TypeError),
        ((adam, 5, 1.5), ValueError),
        ((adam, 5, np.nan), ValueError),
        ((Lookahead(adam),), ValueError),
        ((fastgd.Adam(drawn(0), average=0.9),), ValueError),
        ((fastgd.SGDScheduleFree(drawn(0)),), ValueError),
    ]:
        with pytest.raises(error):
            Lookahead(*arguments)
    opt = Lookahead(adam)
    with pytest.raises(AttributeError):
        opt.betas = (0.5, 0.6)
    with pytest.raises(AttributeError):
        opt.alpha = 0.1
    opt.lr = 0.25
    assert adam.lr == 0.25
    assert isinstance(opt, fastgd.Optimizer)


@pytest.mark.parametrize("backend", COMPILED)
def test_accumulated_gradients_schedules_and_separate_averages(backend):
    """What an optimizer can do, it can do wrapped: one step here, whose pull is halfway."""
    fastgd.set_backend(backend)
    w = np.zeros(4)
    opt = Lookahead(fastgd.SGD(w, lr=lambda t: 1.0 / (1 + t)), k=1)
    ema = fastgd.averages.EMA(w, decay=0.5)
    for g in (1.0, 3.0):
        opt.accumulate(np.full(4, g))
    opt.step()
    ema.update()
    assert w.tolist() == [-1.0] * 4
    assert ema.averages[0].tolist() == [-1.0] * 4


@pytest.mark.parametrize("name", ["FTRL", "MADGRAD", "ASGD", "SGDScheduleFree"])
def test_what_would_not_notice_that_it_is_pulled_is_refused(name):
    with pytest.raises(ValueError, match="^optimizer: expected one"):
        fastgd.Lookahead(getattr(fastgd, name)(np.ones(3)))
