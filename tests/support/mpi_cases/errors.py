"""Errors of single ranks, which all of them raise."""

from __future__ import annotations

import gc
import weakref

import numpy as np
from mpi_cases.common import (
    BF16,
    F32,
    RANK,
    RANKS,
    SHAPES,
    assert_same,
    draw,
    grads_of,
    make,
    raises,
    step_both,
)

import fastgd
from fastgd.mpi import Sharded


def bad_arguments(folder):
    """All ranks raise what one of them would, before anything has changed, and go on."""
    last = RANKS - 1
    who = f"rank {last} of {RANKS}: "

    def only(there, elsewhere):
        return there if last == RANK else elsewhere

    raises(TypeError, who + "opt_class: ", Sharded, only(dict, fastgd.SGD), np.ones(3))
    raises(TypeError, who + "params[0]: ", Sharded, fastgd.SGD, [only(np.arange(3), np.ones(3))])
    raises(ValueError, f"rank {last}: expected optimizer: Adam, as on rank 0, found optimizer: SGD",
           Sharded, only(fastgd.SGD, fastgd.Adam), np.ones(3))  # fmt: skip
    raises(ValueError, f"rank {last}: expected params[0]: float64 of shape (3,)",
           Sharded, fastgd.SGD, [np.ones(only(4, 3))])  # fmt: skip
    raises(ValueError, f"rank {last}: expected no params[1], as on rank 0, found params[1]: float64",
           Sharded, fastgd.SGD, [np.ones(3)] * 0 + [np.ones(3) for _ in range(only(2, 1))])  # fmt: skip
    raises(ValueError, "expected lr: 0.1, as on rank 0, found lr: 0.2",
           Sharded, fastgd.SGD, np.ones(3), lr=only(0.2, 0.1))  # fmt: skip
    raises(ValueError, f"rank 0 of {RANKS}: lr: ", Sharded, fastgd.SGD, np.ones(3), lr=-1.0)
    raises(ValueError, "copy_to: expected none",
           Sharded, fastgd.SGD, np.ones(3), copy_to=np.ones(3, F32))  # fmt: skip
    raises(ValueError, "clip_ratio: expected None", Sharded, fastgd.SGD, np.ones(3), clip_ratio=0.1)
    raises(ValueError, "centralize: expected False", Sharded, fastgd.SGD, np.ones(3),
           centralize=True)  # fmt: skip
    raises(ValueError, "clip_ratio: expected None",
           Sharded, fastgd.SGD, [{"params": np.ones(3), "clip_ratio": 0.1}])  # fmt: skip
    raises(ValueError, who + "timeout: ", Sharded, fastgd.SGD, np.ones(3), timeout=only(-1, 1))
    raises(TypeError, "nonsense", Sharded, fastgd.SGD, np.ones(3), nonsense=1)
    raises(TypeError, "comm: ", Sharded, fastgd.SGD, np.ones(3), comm=3)
    raises(ValueError, "bucket_bytes: ", Sharded, fastgd.SGD, np.ones(3), bucket_bytes=0)
    raises(ValueError, f"rank {last}: expected weight_decay: 0.1, as on rank 0, found none",
           Sharded, fastgd.AdamW, np.ones(3),
           **only({"betas": (0.5, 0.5)}, {"weight_decay": 0.1}))  # fmt: skip
    raises(ValueError, f"rank {last}: expected no eps, as on rank 0, found eps: 0.1",
           Sharded, fastgd.Adam, np.ones(3), **only({"eps": 0.1}, {}))  # fmt: skip
    # Too long to be compared by what is shown of it.
    kinds = {"exp_avg": "float16", "exp_avg_sq": only("bfloat16", "float16")}
    raises(ValueError, "'exp_avg_sq': 'float16'}, as on rank 0, found state_dtype",
           Sharded, fastgd.Adam, np.ones(3), state_dtype=kinds)  # fmt: skip
    w = np.zeros(3)
    alike = only({"lr": 1, "betas": [0.5, np.float64(0.75)]}, {"lr": 1.0, "betas": (0.5, 0.75)})
    Sharded(fastgd.Adam, w, **alike).step(np.ones(3))
    assert np.allclose(w, -1)
    # Refused by the optimizer, after which the parameters have to be each rank's own still.
    for kind, match, options in [
        (ValueError, "lr: ", {"lr": -1.0}),
        (TypeError, "learning_rate", {"learning_rate": 1}),
        (ValueError, "nonfinite", {"nonfinite": "skp"}),
        (ValueError, "state_dtype", {"state_dtype": {"exp_avg": "9bit"}}),
        (ValueError, who + "lr: ", {"lr": only(-1.0, 1.0)}),
        (ValueError, "expected lr: 0.1, as on rank 0, found lr: 0.2", {"lr": only(0.2, 0.1)}),
    ]:
        w = np.full(300, float(RANK))
        raises(kind, match, Sharded, fastgd.Adam, w, **options)
        assert (w == RANK).all(), options
    w = np.full(3, float(RANK)).astype(BF16)
    raises(ValueError, "params: is bfloat16", Sharded, fastgd.Adam, w)
    assert (w == RANK).all()

    params = make()
    opt = Sharded(fastgd.Adam, params, lr=0.1)
    raises(AttributeError, "betas: hyper-parameters but lr are set in groups",
           setattr, opt, "betas", (0.5, 0.5))  # fmt: skip
    raises(AttributeError, "use opt.swapped()", getattr, opt, "average")
    before = {key: p.copy(order="K") for key, p in params.items()}
    good = grads_of(0, RANK)

    def refused(kind, match, grads=good, **scale):
        raises(kind, match, opt.step, grads, **scale)
        assert_same(params, before)
        assert all(not entry["step"] for entry in opt.state.values())

    refused(ValueError, who + 'grads["W"]: expected shape', only({**good, "W": np.ones(3)}, good))
    refused(TypeError, who + 'grads["b"]: expected dtype', only({**good, "b": np.arange(97)}, good))
    refused(ValueError, who + 'grads["W"]: shares memory with params["W"]',
            only({**good, "W": params["W"]}, good))  # fmt: skip
    part = params["T"].reshape(-1, order="F")[5:102]
    refused(ValueError, who + 'grads["b"]: shares memory with params["T"]',
            only({**good, "b": part}, good))  # fmt: skip
    bound = {**good, "W": params["W"]}
    raises(ValueError, f'rank 0 of {RANKS}: grads["W"]: shares memory',
           Sharded, fastgd.Adam, params, grads=bound)  # fmt: skip
    refused(ValueError, who + "grads: expected the keys", only({"W": good["W"]}, good))
    refused(TypeError, who + "grad_scale", grad_scale=only("1", 1.0))
    refused(ValueError, f"rank {last}: expected grad_scale: 1.0, as on rank 0, found grad_scale: 2",
            grad_scale=only(2.0, 1.0))  # fmt: skip
    refused(ValueError, "grad_scale: expected a number to divide by", grad_scale=0.0)
    refused(TypeError, who + "step() needs gradients", only(None, good))
    opt.lr = only(0.2, 0.1)
    refused(ValueError, f"rank {last}: expected lr: 0.1, as on rank 0, found lr: 0.2")
    opt.lr = lambda step: only(-1.0, 0.1)
    refused(ValueError, who + "lr: expected a number of at least 0, found -1.0, from its schedule")
    opt.lr = lambda step: only(0.3, 0.1)
    refused(ValueError, f"rank {last}: expected lr: 0.1, as on rank 0, found lr: 0.3")
    opt.lr = 0.1
    opt.param_groups[0]["clip_ratio"] = only(0.1, None)
    refused(ValueError, who + "clip_ratio: expected None")
    opt.param_groups[0]["clip_ratio"] = None
    opt.param_groups[0]["amsgrad"] = True
    refused(TypeError, who + "grad_scale", grad_scale=only("1", 1.0))
    assert all("max_exp_avg_sq" not in entry for entry in opt.state.values())
    opt.param_groups[0]["amsgrad"] = False
    raises(ValueError, f"rank {last}: expected call: step, as on rank 0, found call: accumulate",
           only(opt.accumulate, opt.step), good)  # fmt: skip

    one = fastgd.Adam(whole := make(), lr=0.1)
    step_both(opt, one, 0)
    assert_same(params, whole)
    raises(TypeError, "belongs to a communicator", __import__("copy").deepcopy, opt)


def gradients_go(folder):
    """Nobody keeps a step's gradients, whether it was refused or not."""
    w = np.zeros(1000)
    opt = Sharded(fastgd.SGD, w, nonfinite="raise")
    for call, bad in ((opt.step, False), (opt.step, True), (opt.accumulate, False)):
        g = np.full(1000, np.nan if bad else 1.0)
        if bad:
            raises(FloatingPointError, "grads: expected finite gradients", call, g)
        else:
            call(g)
        kept = weakref.ref(g)
        del g
        gc.collect()
        assert kept() is None, (call.__name__, bad)
    opt = Sharded(fastgd.SGD, w := np.ones(3), lr=0.5)
    opt.accumulate(w)  # which writes no parameters
    opt.step()
    assert (w == 0.5).all()


def not_finite(folder):
    """Infinities and NaN of one rank are skipped or refused by all."""
    for kind, bad in (("skip", np.inf), ("raise", np.nan)):
        params = make()
        opt = Sharded(fastgd.Adam, params, nonfinite=kind)
        before = {key: p.copy(order="K") for key, p in params.items()}
        grads = {key: draw(key, 1, RANK) for key in SHAPES}
        if RANK == 1:
            grads["T"][3, 4] = bad
        if kind == "skip":
            record = opt.step(grads)
            assert record.skipped
            assert opt.skipped == 1
        else:
            raises(FloatingPointError, f'rank 1 of {RANKS}: grads["T"]: expected finite gradients, '
                   "found nan at (3, 4)", opt.step, grads)  # fmt: skip
        assert_same(params, before)
        grads["T"][3, 4] = 0
        assert opt.step(grads).step == 1
    w = np.zeros(2, F32)
    opt = Sharded(fastgd.SGD, w, nonfinite="raise")
    big = np.full(2, np.finfo(F32).max)
    raises(FloatingPointError, "found a sum over ranks that is not", opt.step, big)
    assert not w.any()
