"""All optimizers against all peers and the machine, interleaved in one run.

    python bench/compare.py                         everything (some ten minutes)
    python bench/compare.py --optimizer Adam --shape 300x64 --threads 1
    python bench/compare.py --json figures.json --chart figures.png --markdown RESULTS.md
    python bench/compare.py --record                adds to this machine's file in bench/results/

For each optimizer, shape and thread count: first all contestants take three steps from the same
start and must agree; then they are timed in turn, round after round, so that what slows the machine
slows them all; the figures are medians over the rounds.  `stream` is the plain sweep over as many
arrays, with as many bytes, as the rule has: what the machine allows out of cache.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
from contestants import CASES, Case, contestants
from stream import Stream

import fastgd
from fastgd.commands import output
from fastgd.commands.work import Work

SHAPES: dict[str, list[tuple[int, ...]]] = {
    "4 tensors, 7.5k": [(64, 100), (100,), (100, 10), (10,)],
    "300x64": [(64,)] * 300,
    "1e5": [(100_000,)],
    "1e6": [(1_000_000,)],
    "32e6": [(32_000_000,)],
}
ALL_THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
COLOURS = {"fastgd": "#0072B2", "stream": "#777777"}
# Unless asked otherwise: small steps use one thread anyway, and the largest wants them all.
THREADS = {"4 tensors, 7.5k": {1}, "300x64": {1}, "32e6": {ALL_THREADS}}


def draw(shapes):
    """Parameters and gradients; large ones repeat a drawn million.

    No gradient is near 0, where libraries differ by where they add eps.
    """
    rng = np.random.default_rng(0)

    def one(shape):
        n = math.prod(shape)
        return np.resize(rng.standard_normal(min(n, 1_000_000), np.float32), shape)

    grads = [one(s) for s in shapes]
    return [one(s) for s in shapes], [g + np.copysign(np.float32(0.1), g) for g in grads]


def check_equal(results, case):
    """Check that every contestant has fastgd's parameters, within float32 rounding.

    But for optax where it has another convention.
    """
    for name, params in results.items():
        if name == "optax" and case.other is not None:
            continue
        for p, q in zip(params, results["fastgd"], strict=True):
            off = float(np.max(np.abs(p - q)))
            if not off <= 3e-6:
                sys.exit(f"{name} is off by {off}: nothing is timed before results agree")


def batch(step, seconds):
    """How many steps fill so many seconds."""
    k = 1
    while True:
        start = time.perf_counter()
        for _ in range(k):
            step()
        took = time.perf_counter() - start
        if took >= seconds or k >= 4096:
            return k
        k = min(4096, max(2 * k, int(k * seconds / max(took, 1e-7)) + 1))


def measure(case: Case, shape: str, threads: int, rounds: int, stream: Stream, only=()):
    """Median seconds of a step for each contestant, and of the stream."""
    fastgd.set_num_threads(threads)
    params, grads = draw(SHAPES[shape])
    steps, results = {}, {}
    for name, enter in contestants(case, threads, only).items():
        steps[name], read = enter([p.copy() for p in params], grads)
        for _ in range(3):
            steps[name]()
        results[name] = [p.copy() for p in read()]
    check_equal(results, case)
    del results
    steps["stream"] = stream.over(sum(p.size for p in params), case.states, threads)
    counts = {name: batch(step, 0.002) for name, step in steps.items()}
    times = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            time.sleep(0.002)  # lets the threads of the one before fall asleep
            step()
            start = time.perf_counter()
            for _ in range(counts[name]):
                step()
            times[name].append((time.perf_counter() - start) / counts[name])
    del steps
    gc.collect()
    return {name: median(t) for name, t in times.items()}


def show(seconds):
    """A time in the unit that suits it."""
    return f"{seconds * 1e6:.1f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"


def line_of(name, shape, threads, times):
    """One line of the report: fastgd's time, then the others' as a multiple of it."""
    own = times["fastgd"]
    others = "  ".join(
        f"{who} {t / own:.2f}" for who, t in times.items() if who not in {"fastgd", "stream"}
    )
    return (
        f"{name:<26}{shape:>16} {threads}T {show(own):>9}   "
        f"{own / times['stream']:5.2f} of stream   {others}"
    )


def markdown(rows, machine):
    """All figures as a table."""
    who = dict.fromkeys(name for row in rows for name in row["seconds"])
    others = [name for name in who if name not in {"fastgd", "stream"}]
    lines = [
        "# Measured",
        "",
        "By `python bench/compare.py --markdown bench/RESULTS.md`, with the extra `peers`, on",
        f"{machine}, backend {fastgd.get_backend()}; float32; medians of rounds in which all took",
        "turns.",
        "",
        "*of stream*: fastgd's time over that of a plain sweep that moves the same bytes; it says",
        "something out of cache, at 32e6. Everybody else: their time over fastgd's, so more than 1",
        "is slower than fastgd. *fastgd*: gradients in the same arrays at each step; *fresh*: in",
        "other memory than at the step before; *bound*: `grads=` given once, then `step()`.",
        "",
        f"| optimizer | shape | threads | fastgd | of stream | {' | '.join(others)} |",
        "|---|---|--:|--:|--:|" + "--:|" * len(others),
    ]
    for row in rows:
        times = row["seconds"]
        own = times["fastgd"]
        cells = [f"{times[name] / own:.2f}" if name in times else "" for name in others]
        lines.append(
            f"| {row['optimizer']} | {row['shape']} | {row['threads']} | {show(own)} "
            f"| {own / times['stream']:.2f} | {' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


def record(rows, folder, described, work):
    """Add rows to this machine's file in a folder, in the place of those they repeat."""
    processor, compiler = processor_name(), compiler_name()
    words = re.sub(r"\((R|TM)\)|processor|cpu|family|model|@.*", " ", processor, flags=re.I)
    parts = [words, f"{ALL_THREADS} cores", compiler.partition(".")[0]]
    name = re.sub(r"[^a-z0-9]+", "_", " ".join(parts).lower()).strip("_")
    file = folder / f"{name}.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    of = {key(row): row for row in known.get("rows", [])}
    for row in rows:
        times = {who: float(f"{t:.4g}") for who, t in row["seconds"].items()}
        of[key(row)] = row | {"seconds": times}
    result = {
        "machine": described or known.get("machine") or f"{ALL_THREADS} cores of {processor}",
        "processor": processor,
        "compiler": compiler,
        "backend": fastgd.get_backend(),
        "rows": list(of.values()),
    }
    print("Added to", work.write(file, json.dumps(result, indent=1, ensure_ascii=False) + "\n"))


def key(row):
    """What a row is about."""
    return row["optimizer"], row["shape"], row["threads"]


def processor_name():
    """The processor's name, with family and model where the system tells."""
    found = {}
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name.strip(), value.strip())
    name = found.get("model name") or platform.processor() or platform.machine()
    if "cpu family" not in found:
        return name
    return f"{name}, family {found['cpu family']}, model {found['model']}"


def compiler_name():
    """The compiler of the stream: that of fastgd, where it was built here."""
    command = os.environ.get("CC", "cc").split()
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    first = done.stdout.splitlines()[0]
    version = re.search(r"\d+\.\d+(\.\d+)?", first)
    return f"{'clang' if 'clang' in first else 'gcc'} {version[0] if version else ''}".strip()


def chart(rows):
    """A PNG of the others' time over fastgd's, a panel for each shape, for Adam or what was run."""
    from matplotlib.figure import Figure

    optimizer = "Adam" if any(r["optimizer"] == "Adam" for r in rows) else rows[0]["optimizer"]
    chosen = {}
    for row in rows:  # the larger thread count wins
        if row["optimizer"] == optimizer:
            chosen[row["shape"]] = row
    sizes = [len(row["seconds"]) for row in chosen.values()]
    figure = Figure(figsize=(8, 1 + 0.21 * sum(sizes) + 0.4 * len(sizes)), layout="constrained")
    grid = {"height_ratios": sizes}
    panels = np.atleast_1d(figure.subplots(len(chosen), 1, sharex=True, gridspec_kw=grid))
    for axes, (shape, row) in zip(panels, chosen.items(), strict=True):
        own = row["seconds"]["fastgd"]
        times = sorted((t / own, name) for name, t in row["seconds"].items())
        for k, (ratio, name) in enumerate(times):
            colour = COLOURS.get(name.split()[0], "#D55E00")
            axes.plot([1, ratio], [k, k], color=colour, linewidth=2, alpha=0.5)
            axes.plot(ratio, k, "o", color=colour, markersize=6)
            axes.annotate(
                f"{ratio:.2g}" if ratio < 10 else f"{ratio:.0f}",
                (max(ratio, 1), k),
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axes.set_yticks(range(len(times)), [name for _, name in times], fontsize=8)
        axes.set_ylim(len(times) - 0.4, -0.6)
        axes.axvline(1, color="#0072B2", linewidth=1)
        threads = "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"
        axes.set_title(f"{shape}, {threads}: fastgd {show(own)}", loc="left", fontsize=9)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(left=False, labelsize=8)
    panels[-1].set_xscale("log")
    panels[-1].xaxis.set_major_formatter(lambda x, _: f"{x:g}×")
    panels[-1].set_xlabel("time over fastgd's: to the right is slower")
    figure.suptitle(f"One {optimizer} step, float32", x=0.01, ha="left")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150)
    return picture.getvalue()


def main(work):
    """Run what was asked for and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--optimizer", action="append", choices=CASES, help="repeatable")
    parser.add_argument("--shape", action="append", choices=SHAPES, help="repeatable")
    parser.add_argument("--threads", type=int, action="append", help="repeatable")
    parser.add_argument("--only", action="append", default=[], help="whom to compare; repeatable")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds; medians are reported")
    parser.add_argument("--json", type=output.file(".json"), help="write all figures there")
    parser.add_argument("--markdown", type=output.file(".md"), help="and as a table there")
    parser.add_argument("--chart", type=output.file(".png"), help="draw bars there (PNG)")
    results = Path(__file__).parent / "results"
    parser.add_argument("--record", type=Path, nargs="?", const=results, help="add them there")
    parser.add_argument("--machine", help="what to call this machine there")
    arguments = parser.parse_args()
    stream = Stream()
    machine = f"{platform.machine()} {processor_name()}, {ALL_THREADS} cores"
    print(f"fastgd {fastgd.__version__} ({fastgd.get_backend()}) on {machine}")
    print("fastgd's time, over the stream's; then each one's time over fastgd's")
    rows, only = [], arguments.only
    turns = [
        (name, shape, threads)
        for name in arguments.optimizer or CASES
        for shape in arguments.shape or SHAPES
        for threads in arguments.threads or sorted(THREADS.get(shape, {1, ALL_THREADS}))
        if not only or contestants(CASES[name], threads, only).keys() - {"fastgd"}
    ]
    work.expect(len(turns))
    for name, shape, threads in turns:
        times = measure(CASES[name], shape, threads, arguments.rounds, stream, only)
        rows.append({"optimizer": name, "shape": shape, "threads": threads, "seconds": times})
        print(line_of(name, shape, threads, times), flush=True)
        work.advance(f"{name}, {shape}, {threads}T")
    work.show()
    if arguments.json:
        found = json.dumps({"machine": machine, "rows": rows}, indent=1)
        print("Figures are in", work.write(arguments.json, found))
    if arguments.markdown:
        print("The table is in", work.write(arguments.markdown, markdown(rows, machine)))
    if arguments.chart:
        print("The chart is in", work.write(arguments.chart, chart(rows)))
    if arguments.record:
        record(rows, arguments.record, arguments.machine, work)


if __name__ == "__main__":
    with Work("compare") as work:
        main(work)
