"""What fuzzing found that arguments did, and the fuzzer's inputs without its guidance.

See tools/fuzz_arguments.py: each row here got an error that said nothing of the argument, or one of a
kind that nobody expects, or left something changed.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
from support.fuzz_inputs import deep, endless
from support.sampling import by_level
from support.snapshots import assert_unchanged, snapshot
from tools import fuzz_arguments

import fastgd
from fastgd.averages import EMA, ewma
from fastgd.functional import adam, global_norm, sgd
from fastgd.schedules import Exponential, OneCycle, Piecewise, Sequential

STRUCTURED = np.zeros(2, "i4,f4")
LONG = "x" * 5000
DIGITS = 10**5000  # more than Python writes out
W = np.ones(2)

NESTED = (
    r"(params|copy_to|grads): (nested without end .*|expected an end to its nesting, found none)$"
)
CASES = {
    "an endless list": (lambda: fastgd.SGD(endless(list)), ValueError, NESTED),
    "an endless dict": (lambda: fastgd.SGD(endless(dict)), ValueError, NESTED),
    "endless copies": (lambda: fastgd.SGD([W], copy_to=endless(list)), ValueError, NESTED),
    "an endless average": (lambda: EMA(endless(list)), ValueError, NESTED),
    "an endless norm": (lambda: global_norm(endless(list)), ValueError, NESTED),
    "a deep norm": (lambda: global_norm(deep(5000)), ValueError, NESTED),
    "endless gradients": (lambda: fastgd.SGD([W]).accumulate(endless(list)), ValueError, "grads: nested without end"),
    "endless rows": (lambda: fastgd.Rows(endless(list), np.ones((1, 2))), TypeError, r"indices: expected one axis of integers \("),
    "ragged rows": (lambda: fastgd.Rows([[0], [1, 2]], np.ones((2, 2))), TypeError, r"indices: expected one axis of integers \("),
    "step of a function": (lambda: sgd(W, W.copy(), step=1.0), TypeError, "step: expected an integer, found 1.0"),
    "step 0": (lambda: adam(W, W.copy(), W, W, step=0), ValueError, "step: expected a number from 1 to .* found 0"),
    "step 2^53": (lambda: sgd(W, W.copy(), step=2**53), ValueError, "step: expected a number from 1 to"),
    "structured scale": (lambda: fastgd.SGD([W]).step([W], grad_scale=STRUCTURED), TypeError, "grad_scale: expected a number"),
    "state_dtype": (lambda: fastgd.SGD([W], state_dtype=np.zeros(2)), TypeError, "state_dtype: expected a str"),
    "long state_dtype": (lambda: fastgd.SGD([W], state_dtype=LONG), ValueError, "state_dtype: expected one of .{,99}$"),
    "endless state_dtype": (lambda: fastgd.SGD([W], state_dtype=endless(list)), TypeError, "state_dtype: expected a str"),
    "rounding": (lambda: fastgd.SGD([W], rounding=STRUCTURED), TypeError, "rounding: expected a str"),
    "master": (lambda: fastgd.SGD([W], master=np.zeros(2)), ValueError, 'master: expected True, False or "split"'),
    "long master": (lambda: fastgd.SGD([W], master=LONG), ValueError, "master: .{,99}$"),
    "backend": (lambda: fastgd.set_backend(STRUCTURED), TypeError, "backend: expected a str, found array"),
    "long backend": (lambda: fastgd.set_backend(LONG), ValueError, "backend 'xxx.{,150}$"),
    "threads": (lambda: fastgd.set_num_threads(DIGITS), ValueError, "n: expected a number of threads .*found something"),
    "axis": (lambda: ewma(W, 0.9, axis=0.5), TypeError, "axis: expected an index, found 0.5"),
    "large axis": (lambda: ewma(W, 0.9, axis=2**64), TypeError, "axis: expected an index, found"),
    "odd series": (lambda: ewma([[1.0], [1.0, 2.0]], 0.9), TypeError, "x: expected an array of numbers"),
    "odd start": (lambda: ewma(W, 0.9, False, initial=object()), ValueError, "initial: expected shape .* of object"),
    "shape": (lambda: fastgd.init.lecun((1,) * 70), ValueError, "shape: expected one that an array can have"),
    "large shape": (lambda: fastgd.init.lecun((2**40, 2**40)), ValueError, "shape: expected one that an array can have"),
    "long gain": (lambda: fastgd.init.kaiming((2, 2), gain=LONG), ValueError, "gain: expected one of .{,250}$"),
    "seed": (lambda: fastgd.init.lecun((2, 2), seed=-DIGITS), ValueError, "seed: expected an integer .*found something"),
    "seed of batches": (lambda: fastgd.data.batches([W], seed=-DIGITS), ValueError, "seed: expected an integer"),
    "milestones": (lambda: Piecewise([-DIGITS], [1, 2]), ValueError, r"milestones\[0\]: expected an integer"),
    "schedules": (lambda: Sequential(np.array(0.5), []), TypeError, "schedules: expected a list or tuple"),
    "anneal_strategy": (lambda: OneCycle(1, 9, anneal_strategy=[]), TypeError, "anneal_strategy: expected a str"),
    "no end of growth": (lambda: Exponential(0.1, 3.0)(10**6), ValueError, "step: expected one with a finite value"),
    "a late step": (lambda: Exponential(0.1, 0.5)(10**400), ValueError, "step: expected one with a finite value"),
}  # fmt: skip


@pytest.mark.parametrize("what", CASES)
def test_arguments(what):
    call, error, message = CASES[what]
    with pytest.raises(error, match=f"^{message}") as caught:
        call()
    assert type(caught.value) is error
    assert W.tolist() == [1, 1]


TAMPERED = {
    "no numbers": (lambda g, s: g.update(params=[{}, []]), ValueError, "state_dict: expected params with numbers of their own"),
    "a view as number": (lambda g, s: g.update(params=[memoryview(bytearray(2)), 1]), ValueError, "state_dict: expected params with numbers"),
    "an array of names": (lambda g, s: g.update(param_names=np.zeros(3)), TypeError, r'state_dict\["param_groups"\]\[0\]: expected a list of'),
    "odd names": (lambda g, s: g.update(param_names=[{}, "b"]), ValueError, r"state_dict: expected parameters \['a', 'b'\]"),
    "mixed names": (lambda g, s: g.update(param_names=["b", None]), ValueError, r"state_dict: expected parameters \['a', 'b'\]"),
    "more names": (lambda g, s: g.update(param_names=["a", "b", "b"]), ValueError, r"state_dict: expected parameters \['a', 'b'\]"),
    "decoupled": (lambda g, s: g.update(decoupled_weight_decay=np.zeros(2)), TypeError, r'state_dict\["param_groups"\]\[0\]: decoupled'),
    "strangers": (lambda g, s: s.update({LONG: {}}), ValueError, "state_dict: has states of parameters in no group: .{,99}$"),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERED)
def test_state_dicts(what):
    tamper, error, message = TAMPERED[what]
    opt = fastgd.Adam({"a": W.copy(), "b": W.copy()})
    opt.step({"a": W, "b": W})
    before, saved = snapshot(opt), opt.state_dict()
    tamper(saved["param_groups"][0], saved["state"])
    with pytest.raises(error, match=f"^{message}"):
        opt.load_state_dict(saved)
    assert_unchanged(opt, before)


@pytest.mark.parametrize("step", [2**53, 2**63 - 1, -(2**63)])
def test_step_counts_out_of_range(step):
    """The largest of which overflowed, and had powers to the minus 2⁶³ worked out."""
    opt = fastgd.Adam([W.copy()])
    opt.state[0]["step"][...] = step
    before = snapshot(opt)
    with pytest.raises(
        ValueError, match=r'^state\[0\]\["step"\]: expected a number from 0 to below'
    ):
        opt.step([W])
    assert_unchanged(opt, before)
    opt.state[0]["step"][...] = 2**53 - 1
    assert opt.step([W]).step == 2**53


@pytest.mark.parametrize("call", ["state_dict", "save"])
def test_what_fails_follows_no_new_rule(call, tmp_path):
    """As a schedule raises, when states of another rule have been asked for."""

    def refuse(step):
        raise LookupError("no rate")

    opt = fastgd.RMSprop([W.copy()])
    opt.step([W])
    opt.param_groups[0].update(centered=True, lr=refuse)
    before = snapshot(opt)
    with pytest.raises(LookupError, match="no rate"):
        opt.state_dict() if call == "state_dict" else fastgd.save(tmp_path / "x", opt)
    assert_unchanged(opt, before)
    assert "grad_avg" not in opt.state[0]


def test_files_of_too_many_digits(tmp_path):
    with pytest.raises(ValueError, match=r'^metadata\["n"\]: expected a number in fewer digits'):
        fastgd.save(tmp_path / "x", params=[W], metadata={"n": DIGITS})
    with pytest.raises(
        TypeError, match=r'^metadata\["n"\]: expected numbers, .* found set somethi'
    ):
        fastgd.save(tmp_path / "x", params=[W], metadata={"n": {DIGITS}})
    with pytest.raises(
        TypeError, match=r"^params\[1\]: expected a dict with 'params', found someth"
    ):
        fastgd.save(tmp_path / "x", params=[{"params": W}, DIGITS])
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------- and chance


@pytest.mark.more
def test_at_random(tmp_path):
    """The fuzzer's inputs without its guidance."""
    rng, fuzzer = random.Random(0), fuzz_arguments.Fuzzer(tmp_path)
    examples = by_level(300, 3000, 15_000)
    for _ in range(examples):
        fuzzer(rng.randbytes(rng.randrange(4, 200)))
    # Else all arguments would be odd, or none.
    assert fuzzer.returned > examples / 3
    assert fuzzer.raised > examples / 3
