"""Fuzzes what callers may give: all of it works, or raises what is documented and changes nothing.

``make fuzz-arguments`` runs it for ten minutes under atheris, guided by the coverage of fastgd's own
Python; ``python tests/tools/fuzz_arguments.py FOLDER -max_total_time=60`` keeps the inputs that found new
paths in FOLDER, and takes libFuzzer's options.  test_fuzzed_arguments.py runs it unguided, and has what
was found.

An input is a string of bytes, each of which draws from a few choices: what to call, what with, and
where something else stands in the place of what belongs there (`fuzz_inputs`).
"""

from __future__ import annotations

import copy
import math
import pickle
import random
import re
import sys
import tempfile
import warnings
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
from support.fuzz_inputs import Draws, Theirs

if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["fastgd"]):
        import fastgd
        import fastgd.averages
        import fastgd.checkpoint
        import fastgd.data
        import fastgd.init
        import fastgd.schedules
else:
    import fastgd

from fastgd.core.domains import flag
from fastgd.kernels.reference import RULES

OPTIMIZERS = tuple(fastgd.optimizers.OPTIMIZERS)
HYPERS = dict.fromkeys(
    key for kind in fastgd.optimizers.OPTIMIZERS.values() for key in kind.domains
)
OPTIONS = ("clip_by", "nonfinite", "zero_grads", "rows", "state_dtype", "master", "rounding", "min_8bit_size",
           "seed", "average", "clip_norm", "clip_value", "clip_ratio", "centralize",
           "layout")  # fmt: skip
FINE = {
    "clip_by": ("all", "group", "tensor"), "nonfinite": ("propagate", "skip", "raise"),
    "zero_grads": (True,), "state_dtype": ("bfloat16", "8bit", {"exp_avg": "float16"}),
    "master": (True, "split"), "rounding": ("stochastic", "nearest"), "min_8bit_size": (0, 3),
    "seed": (7,), "average": (0.9, 0.0), "betas": ((0.9, 0.99),), "nesterov": (True,),
    "amsgrad": (True,), "centered": (True,), "maximize": (True,), "bias_correction": (True,),
    "initial_accumulator_value": (0.5,), "centralize": (True,), "layout": ("in_out",),
    "rows": ("lazy", "catch_up"), "precondition_frequency": (1, 2), "max_precond_dim": (2, 300),
}  # fmt: skip
FINE |= {
    key: (not h.default,)
    for kind in fastgd.optimizers.OPTIMIZERS.values()
    for key, h in kind.hypers.items()
    if h.domain is flag and key not in FINE
}
# States of one number.
NUMBERS = tuple(dict.fromkeys(key for row in RULES.values() for key in row.numbers))
STATES = {key for row in RULES.values() for key in row.states}

# What may be raised, beside what odd arguments raise themselves.  No subclasses: these are others'
# errors, say NumPy's, or Python's that its stack is full.
ALLOWED = (TypeError, ValueError, KeyError, RuntimeError, FloatingPointError, BufferError)
ALLOWED += (np.exceptions.AxisError, fastgd.CheckpointError, FileNotFoundError, IsADirectoryError)

# What errors are about.  Python itself says which function was called with too few arguments.
NAMES = {"params", "grads", "state", "state_dict", "copy_to", "metadata", "path", "opt", "step", "grad_scale",
         "grad_scale times weight", "weight", "averages", "average", "swapped", "update", "backend", "n", "p", "g",
         "sum", "out", "x", "axis", "initial", "beta", "window", "arrays", "shape", "dtype", "layout", "seed",
         "accumulate() needs gradients", "step() needs gradients", "catch_up", "indices", "values", "add_param_group", "a parameter group always",
         *OPTIMIZERS, *map(str.lower, OPTIMIZERS), *OPTIONS, *HYPERS, *NUMBERS, *STATES}  # fmt: skip
PYTHONS = re.compile(r"[\w.<>]+\(\) (got|missing|takes)|.* object is not|.* argument")


def about(error):
    """Whether the message of an error says what argument it is about."""
    text = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
    if type(error) is fastgd.CheckpointError:
        return ": " in text
    known = sorted(NAMES | set(FINE) | set(PARAMETERS), key=len, reverse=True)
    if type(error) is KeyError and ": no such hyper-parameter; there are lr, " in text:
        return True
    return any(text.startswith(name) for name in known) or bool(PYTHONS.match(text))


def parameters_of(call):
    code = getattr(call, "__init__", call)
    code = getattr(code, "__code__", None) or getattr(call, "__code__", None)
    return set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]) if code else set()


SCHEDULES = [getattr(fastgd.schedules, name) for name in fastgd.schedules.__all__ if name != "Schedule"]  # fmt: skip
INITS = [getattr(fastgd.init, name) for name in ("scaled", "lecun", "xavier", "kaiming", "truncated_normal", "orthogonal", "constant", "fans", "calculate_gain")]  # fmt: skip
PARAMETERS = set().union(*(parameters_of(call) for call in [
    *SCHEDULES, *INITS, fastgd.averages.ewma, fastgd.averages.EMA, fastgd.data.Batches,
    *(getattr(fastgd, name) for name in OPTIMIZERS),
])) - {"self"}  # fmt: skip


class Failure(AssertionError):  # noqa: N818
    """What the fuzzer is looking for."""


class Fuzzer:
    """Calls with what bytes draw, and a look at what they left."""

    def __init__(self, folder):
        self.file = Path(folder) / "checkpoint"
        self.raised = self.returned = 0

    def __call__(self, data):
        self.draws = Draws(data)
        self.opt = None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call = self.draws.one_of([self.optimizer] * 5 + [self.functions, self.others])
            call()

    def look(self):
        """All that there is: the arrays that were drawn, and what the optimizer holds."""
        seen = [[a.tobytes() for a in self.draws.arrays]]
        if (opt := self.opt) is not None:
            seen += [
                [
                    [v if type(v) in (int, float, bool) else id(v) for v in g.hyper().values()],
                    len(g["params"]),
                ]
                for g in opt.param_groups
            ]
            seen += [[name, k, a.tobytes()] for name, s in opt.state.items() for k, a in s.items()]
            seen.append([opt.skipped, repr(opt.storage)])
            seen += [a.tobytes() for a in opt.stepper.copies or ()]
            if opt.average is not None:
                seen.append(opt.average.step)
                seen += [[name, a.tobytes()] for name, a in opt.average.averages.items()]
            if opt.stepper.accumulated is not None and opt.stepper.accumulated.weight[0]:
                seen += [
                    [a.tobytes() for a in opt.stepper.accumulated.sums],
                    opt.stepper.accumulated.counts.tolist(),
                ]
        return seen  # fmt: skip

    def attempt(self, what, *args, **kwargs):
        """Call something; returns whether that went well, and its value."""
        before = self.look()
        try:
            value = what(*args, **kwargs)
        except Theirs:
            self.raised += 1
        except Exception as error:
            self.raised += 1
            if type(error) not in ALLOWED:
                raise Failure(f"{what}: {type(error).__name__}") from error
            if not about(error):
                raise Failure(f"{what}: a message that names no argument") from error
            # Representations of what was given are cut short.
            if len(str(error)) > 3000:
                raise Failure(f"{what}: a message of {len(str(error))} characters") from error
        else:
            self.returned += 1
            return True, value
        if self.look() != before:
            raise Failure(f"{what}: raised, and has changed something")
        return False, None

    # ----------------------------------------------------------------------------- the calls

    def hypers(self, cls, most=3):
        """Hyper-parameters, options, and what is neither."""
        draws, given = self.draws, {}
        for _ in range(draws.below(most + 1)):
            key = draws.one_of([*cls.domains, *OPTIONS, draws.one_of(["lrr", "", "params ", 3])])
            given[key] = draws.one_of(FINE.get(key, (0.5, 0.0, 1e-3, None)))
            given[key] = draws.perhaps_odd(given[key])
        return given

    def optimizer(self):
        draws = self.draws
        cls = getattr(fastgd, draws.one_of(OPTIMIZERS))
        tree = draws.tree()
        given = {k: v for k, v in self.hypers(cls).items() if isinstance(k, str)}
        if draws.flip(3):
            given["rows"] = draws.one_of(FINE["rows"])
        if "max_precond_dim" in cls.domains:
            given.setdefault("max_precond_dim", 300)  # as bases of longer axes take seconds
        if draws.flip(4):
            tree = [{"params": tree, **{k: v for k, v in self.hypers(cls).items() if k in cls.domains}},
                    {"params": draws.tree(), **self.hypers(cls, 1)}]  # fmt: skip
        if draws.flip(4):
            given["grads"] = draws.like(tree)
        if draws.flip(4):
            given["copy_to"] = draws.like(tree, np.float32)
        if draws.flip(8):
            given["average"] = self.ema(tree)
        fine, opt = self.attempt(cls, tree, **given)
        if not fine:
            return
        self.opt, self.tree, self.saved = opt, tree, []
        calls = [self.step, self.step, self.accumulate, self.catch_up, self.add, self.load, self.set, self.set_lr, self.save,
                 self.file_and_back, self.copied, self.minimize, self.swapped, self.write]  # fmt: skip
        for _ in range(draws.below(7)):
            draws.one_of(calls)()

    def grads(self):
        return self.draws.like(self.tree, form=self.opt.stepper.structure, rows=self.rows)

    def rows(self, table):
        """A gradient of a table by rows, or none where its arguments are refused."""
        draws = self.draws
        indices = draws.one_of([[0], [1, 0, 1], [], [1], [0, 0], [7], [-1]])
        values = draws.array((len(indices), *table.shape[1:]), draws.one_of(["f4", "f8", "f2"]))
        indices, values = draws.perhaps_odd(indices, 12), draws.perhaps_odd(values, 12)
        return self.attempt(fastgd.Rows, indices, values)[1]

    def catch_up(self):
        self.attempt(self.opt.catch_up)

    def ema(self, tree):
        d = self.draws
        call = fastgd.averages.EMA
        return self.attempt(
            call, tree, d.perhaps_odd(0.9), d.perhaps_odd(False), d.perhaps_odd(True)
        )[1]

    def step(self):
        scale = self.draws.perhaps_odd(self.draws.one_of([1.0, 2.0, 1e-30, 1e40]))
        if self.draws.flip(3):
            self.attempt(self.opt.step, grad_scale=scale)
        else:
            self.attempt(self.opt.step, self.grads(), grad_scale=scale)

    def accumulate(self):
        self.attempt(self.opt.accumulate, self.grads(), self.draws.perhaps_odd(1.0))

    def add(self):
        cls, draws = type(self.opt), self.draws
        given = {k: v for k, v in self.hypers(cls, 2).items() if draws.flip(4) or k in cls.domains}
        tree = draws.tree()
        group = draws.perhaps_odd({"params": tree, **given})
        more = {}
        if (self.opt.stepper.plan.bound is not None) != draws.flip(8):
            more["grads"] = draws.like(tree)
        if (self.opt.stepper.copies is not None) != draws.flip(8):
            more["copy_to"] = draws.like(tree, np.float32)
        self.attempt(self.opt.add_param_group, group, **more)

    def set(self):
        group = self.draws.one_of(self.opt.param_groups)
        for key, value in self.hypers(type(self.opt)).items():
            self.attempt(group.__setitem__, key, value)
        if self.draws.flip(4):
            self.attempt(group.update, self.hypers(type(self.opt)))

    def set_lr(self):
        self.attempt(setattr, self.opt, "lr", self.draws.perhaps_odd(0.1))
        self.attempt(lambda: self.opt.lr)

    def save(self):
        fine, saved = self.attempt(self.opt.state_dict)
        if fine:
            self.saved.append(saved)

    def load(self):
        self.save()
        if not self.saved:
            return
        saved = copy.deepcopy(self.draws.one_of(self.saved))
        for _ in range(self.draws.below(4)):
            self.draws.tamper(saved)
        self.attempt(self.opt.load_state_dict, self.draws.perhaps_odd(saved, 16))

    def file_and_back(self):
        draws = self.draws
        opt, path = draws.perhaps_odd(self.opt, 16), draws.perhaps_odd(self.file, 16)
        if isinstance(path, (str, bytes)) or path is draws.text:
            path = self.file
        more = {"metadata": {"a": draws.perhaps_odd(1, 2)}} if draws.flip(2) else {}
        if draws.flip(4):
            more["params"] = draws.tree()
        self.file.unlink(missing_ok=True)
        if self.attempt(fastgd.save, path, opt, **more)[0] and path is self.file:
            more.pop("metadata", None)
            self.attempt(fastgd.load, path, opt, **more)

    def copied(self):
        way = self.draws.one_of([copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
        # A schedule may be of the kind that can't be copied.
        with suppress(TypeError, AttributeError, pickle.PicklingError, Theirs, RuntimeError):
            way(self.opt)

    def minimize(self):
        d = self.draws
        loss = d.perhaps_odd(1.0)
        result = d.perhaps_odd((loss, self.grads()), 8)
        function = d.perhaps_odd(lambda: result, 8)
        try:
            self.opt.minimize(function, d.one_of([0, 1, 2]))
        except (*ALLOWED, Theirs, OverflowError, AttributeError):
            pass  # the caller's own function

    def swapped(self):
        if self.opt.average is not None:

            def inside():
                with self.opt.average.swapped():
                    self.attempt(self.opt.step, self.grads())

            self.attempt(inside)

    def write(self):
        """Into states, as one may."""
        entry = self.opt.state[self.draws.one_of([*self.opt.state])]
        key = self.draws.one_of([*entry])
        values = (
            [1, 0, -1, math.nan, 2.0**53, -(2**63)]
            if key != "step"
            else [1, 0, -1, 2**53, 2**63 - 1, -(2**63)]
        )
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            entry[key][...] = np.array(self.draws.one_of(values)).astype(entry[key].dtype)

    def functions(self):
        """Of fastgd.functional."""
        draws = self.draws
        name = draws.one_of([*OPTIMIZERS, "global_norm"])
        if name == "global_norm":
            self.attempt(fastgd.functional.global_norm, draws.tree())
            return
        shape, dtype = draws.one_of([(3,), (), (0,), (2, 3)]), draws.one_of(["f4", "f8"])
        arrays = [
            draws.perhaps_odd(draws.array(shape, dtype), 12) for _ in range(2 + draws.below(4))
        ]
        if NUMBERS and draws.flip(4):
            arrays.append(draws.perhaps_odd(draws.array((), "f8"), 12))
        given = {k: v for k, v in self.hypers(getattr(fastgd, name)).items() if isinstance(k, str)}
        if not draws.flip(16):
            given["step"] = draws.perhaps_odd(1)
        self.attempt(getattr(fastgd.functional, name.lower()), *arrays, **given)

    def others(self):
        """Schedules, averages, batches, initial weights and settings."""
        draws = self.draws
        kind = draws.below(6)
        if kind == 0:
            call = draws.one_of(SCHEDULES)
            count = len([k for k in parameters_of(call) if k != "self"])
            usual = [0.1, 3, 1, (1, 2), (0.1, 0.2, 0.3), lambda step: 0.1]
            arguments = [draws.perhaps_odd(draws.one_of(usual), 4) for _ in range(min(count, 4))]
            fine, schedule = self.attempt(call, *arguments)
            for _ in range(3 if fine else 0):
                self.attempt(schedule, draws.perhaps_odd(draws.one_of([0, 1, 2, 7, 10**6])))
        elif kind == 1:
            ema = self.ema(draws.tree())
            for _ in range(draws.below(4) if ema else 0):
                saved = ema.state_dict()
                draws.tamper(saved)
                self.attempt(
                    draws.one_of([ema.update, lambda saved=saved: ema.load_state_dict(saved)])
                )
        elif kind == 2:
            given = {
                "axis": -1,
                "out": None,
                "state": None,
                "initial": None,
                "bias_correction": True,
            }
            given = {k: draws.perhaps_odd(v) for k, v in given.items() if draws.flip(2)}
            x = draws.perhaps_odd(draws.array((3, 2), "f8"), 4)
            self.attempt(fastgd.averages.ewma, x, draws.perhaps_odd(0.9), **given)
        elif kind == 3:
            self.batches()
        elif kind == 4:
            given = {"mode": "fan_in", "distribution": "uniform", "layout": "in_out", "seed": 0, "out": None,
                     "gain": 1.0, "value": 0.5, "a": 1.0, "std": 1.0, "bounds": (-1.0, 1.0)}  # fmt: skip
            call = draws.one_of(INITS)
            given = {
                k: draws.perhaps_odd(v, 4)
                for k, v in given.items()
                if k in parameters_of(call) and draws.flip(2)
            }
            shape = draws.perhaps_odd(draws.one_of([(3, 2), (2, 2, 2), (0, 3), (3,), ()]), 4)
            self.attempt(call, shape, **given)
        else:
            call = draws.one_of(
                [
                    fastgd.set_backend,
                    fastgd.set_num_threads,
                    fastgd.averages.window,
                    fastgd.averages.beta_of,
                ]
            )
            self.attempt(call, draws.odd())
            fastgd.set_backend(fastgd.available_backends()[0])
            fastgd.set_num_threads(1)

    def batches(self):
        draws = self.draws
        arrays = draws.perhaps_odd([draws.array((4, 2), "f4"), draws.array((4,), "f8")], 4)
        given = {"batch_size": 2, "shuffle": False, "seed": 1, "drop_last": True, "copy": True}
        given = {k: draws.perhaps_odd(v, 4) for k, v in given.items() if draws.flip(2)}
        self.attempt(lambda: list(islice(fastgd.data.Batches(arrays, **given), 3)))


def main():
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as tmp:
        folder = next((a for a in sys.argv[1:] if not a.startswith("-")), None)
        corpus = Path(folder or Path(tmp) / "corpus")
        corpus.mkdir(parents=True, exist_ok=True)
        # Which spares libFuzzer to find out that longer inputs reach further.
        rng = random.Random(0)
        for k in range(500):
            (corpus / f"seed{k}").write_bytes(rng.randbytes(200))
        fastgd.set_num_threads(1)
        fuzzer = Fuzzer(tmp)
        options = [a for a in sys.argv[1:] if a.startswith("-")]
        atheris.Setup([sys.argv[0], str(corpus), "-max_len=400", *options], fuzzer)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
