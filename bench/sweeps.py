"""Every rule against the stream of the bytes that its sweeps must move, interleaved in one run.

    python bench/sweeps.py                     all of them, at 32e6 with all threads
    python bench/sweeps.py Prodigy "Lion cautious" --size 1e6

What a sweep reads and writes follows from its declaration: a state that it writes is read, too.
The stream is a loop for each sweep over as many arrays, with as little arithmetic as touches
everything.  A figure is a median of rounds in which both took turns; what rows and columns have of
their own counts nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from contestants import CASES
from stream import aligned_ones

import fastgd
from fastgd.commands.work import Work
from fastgd.kernels.reference import RULES

CAUTIOUS = ("AdamW", "Lion", "LaProp", "LAMB")
OPTIONS = {name: (case.optimizer, case.options) for name, case in CASES.items()}
OPTIONS |= {f"{name} cautious": (name, {"cautious": True}) for name in CAUTIOUS}

LOOP = """
double sweep_{k}(float *const *arrays, long n, int threads) {{
    {arrays}
    double total = 0;
    _Pragma("omp parallel for simd num_threads(threads) schedule(static) reduction(+ : total)")
    for (long i = 0; i < n; i++) {{ const float x = {read}; {write} }}
    return total;
}}
"""


def moved(rule):
    """For each sweep of a rule, the arrays that are read alone, and those that are written, too."""
    found = []
    lines = [rule.lines] if rule.columns is not None else []
    for sweep in (*lines, rule.before):
        if sweep is not None:
            own = [state for state in sweep.states if state not in rule.line_states]
            reads = ["p"] * (sweep.parameter and sweep is rule.before) + ["g"] * sweep.gradient
            found.append((reads + [s for s in own if s not in sweep.written], [*sweep.written]))
    last, own = rule.after, [s for s in rule.after.states if s not in rule.line_states]
    reads = ["g"] * last.gradient + [s for s in own if s not in last.written]
    return [*found, (reads, ["p", *last.written])]


class Sweeps:
    """Loops that move what the sweeps of a rule do."""

    def __init__(self, sweeps, n, threads):
        names = sorted({name for sweep in sweeps for part in sweep for name in part})
        self.arrays = [aligned_ones(n) for _ in names]
        pointers = [a.ctypes.data_as(ctypes.POINTER(ctypes.c_float)) for a in self.arrays]
        table = (ctypes.POINTER(ctypes.c_float) * len(names))(*pointers)
        source = ""
        for k, (reads, writes) in enumerate(sweeps):
            arrays = " ".join(
                f"float *restrict {name} = arrays[{names.index(name)}];" for name in reads + writes
            )
            read = " + ".join(f"{name}[i]" for name in reads) or "1"
            write = " ".join(f"{name}[i] += x;" for name in writes) or "total += x;"
            source += LOOP.format(k=k, arrays=arrays, read=read, write=write)
        with tempfile.TemporaryDirectory() as folder:
            code, library = Path(folder) / "sweeps.c", Path(folder) / "sweeps.so"
            code.write_text(source)
            flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
            subprocess.run(["cc", *flags, str(code), "-o", str(library)], check=True)
            loaded = ctypes.CDLL(str(library))
        self.loops = [getattr(loaded, f"sweep_{k}") for k in range(len(sweeps))]
        self.given = table, ctypes.c_long(n), ctypes.c_int(threads)

    def __call__(self):
        for loop in self.loops:
            loop(*self.given)


def measure(name, n, rounds):
    """Bytes an element, the median seconds of a step and of its stream."""
    optimizer, options = OPTIONS[name]
    rng = np.random.default_rng(0)
    shape = (n // 4000, 4000)
    p, g = np.resize(rng.standard_normal((2, 1_000_000), np.float32), (2, *shape))
    opt = getattr(fastgd, optimizer)(p, **options)
    (rule,) = opt.stepper.rules
    sweeps = moved(RULES[rule])
    stream = Sweeps(sweeps, math.prod(shape), fastgd.get_num_threads())
    times = {opt.step: [], stream: []}
    for _ in range(6):
        opt.step(g)
    for _ in range(rounds):
        for run, seconds in times.items():
            arguments = () if run is stream else (g,)
            start = time.perf_counter()
            run(*arguments)
            seconds.append(time.perf_counter() - start)
    own, limit = map(median, times.values())
    return 4 * sum(len(reads) + 2 * len(writes) for reads, writes in sweeps), own, limit


def main(work):
    """Print a line for each rule."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=[*OPTIONS], help="optimizers, with options")
    parser.add_argument("--size", type=float, default=32e6)
    parser.add_argument("--rounds", type=int, default=11)
    given = parser.parse_args()
    if unknown := set(given.names) - OPTIONS.keys():
        parser.error(f"expected some of {', '.join(OPTIONS)}; found {', '.join(sorted(unknown))}")
    print(f"{fastgd.get_backend()}, {fastgd.get_num_threads()} threads")
    work.expect(len(given.names))
    for name in given.names:
        count, own, limit = measure(name, int(given.size), given.rounds)
        ratio = f"{own / limit:.3f} of stream"
        print(f"{name:<26}{count:>3} bytes {own * 1e3:8.2f} ms  {ratio}", flush=True)
        work.advance(name)


if __name__ == "__main__":
    with Work("sweeps") as work:
        main(work)
