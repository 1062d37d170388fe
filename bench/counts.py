"""Instructions that steps in cache take, counted: the same beside any other work.

    python bench/counts.py                      of the code at hand
    python bench/counts.py --against COMMIT     and of another commit, built in a worktree
    python bench/counts.py --accept             note them in counts.json, which a test reads

Valgrind counts; it takes its headers (Debian's package `valgrind` has both), a C compiler, and for
the step of torch's tensors torch.  `--only bound torch` counts some.  A step of tensors so small is
mostly what is done once a call and once a tensor, so that a count says what a time says, without
its noise; but for what waits for memory, or for the divider.  Counts follow from Python, the
compiler and the backend, which `counts.json` is keyed by; valgrind knows no AVX-512, so that the
backend is x86_64_v3 where a processor has that.

With `--against`, exit status 1 tells that some count has grown by more than the tolerance.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from itertools import repeat
from pathlib import Path
from shutil import which
from typing import Any

HERE = Path(__file__).resolve()
ROOT = HERE.parents[1]
TABLE = HERE.with_name("counts.json")

# By what part counts of the same code differ at most, between builds on machines of the same key.
TOLERANCE = 0.03

# Calls before the counting, in the first count and in the second; their difference counts.
WARM, FEW, MANY = 30, 10, 60

# What the counting process calls: until `begin` it runs at several times the speed.
MARKS = """
#include <valgrind/callgrind.h>
void begin(void) { CALLGRIND_START_INSTRUMENTATION; }
void mark(void) { CALLGRIND_DUMP_STATS; }
void end(void) { CALLGRIND_STOP_INSTRUMENTATION; }
"""


def arrays(count: int, size: int, seed: int = 0) -> list[Any]:
    """Normal numbers in float32."""
    import numpy as np

    rng = np.random.default_rng(seed)
    return [rng.standard_normal(size, dtype=np.float32) for _ in range(count)]


def bound() -> Callable[[], object]:
    """Adam with bound gradients."""
    import fastgd

    return fastgd.Adam(arrays(300, 64), grads=arrays(300, 64, 1)).step


def unbound() -> Callable[[], object]:
    """Adam with a list of gradients."""
    import fastgd

    opt, grads = fastgd.Adam(arrays(300, 64)), arrays(300, 64, 1)
    return lambda: opt.step(grads)


def one() -> Callable[[], object]:
    """Adam with one small tensor."""
    import fastgd

    (p,), (g,) = arrays(1, 64), arrays(1, 64, 1)
    opt = fastgd.Adam(p)
    return lambda: opt.step(g)


def clipped() -> Callable[[], object]:
    """Adam with the norm of all clipped."""
    import fastgd

    opt, grads = fastgd.Adam(arrays(300, 64), clip_norm=1.0), arrays(300, 64, 1)
    return lambda: opt.step(grads)


def norm() -> Callable[[], object]:
    """The norm alone."""
    from fastgd.functional import global_norm

    grads = arrays(300, 64, 1)
    return lambda: global_norm(grads)


def accumulate() -> Callable[[], object]:
    """Gradients added to others."""
    import fastgd

    opt, grads = fastgd.Adam(arrays(300, 64)), arrays(300, 64, 1)
    return lambda: opt.accumulate(grads)


def rows() -> Callable[[], object]:
    """Adagrad with rows of a table."""
    import numpy as np

    import fastgd

    (values,) = arrays(1, 256 * 64)
    indices = np.random.default_rng(0).integers(0, 1000, 256)
    given = fastgd.Rows(indices, values.reshape(256, 64))
    opt = fastgd.Adagrad(np.zeros((1000, 64), np.float32))
    return lambda: opt.step(given)


def pairs() -> Callable[[], object]:
    """Adam with all in 16 bits, which don't start on a cache line, as NumPy's arrays don't."""
    import numpy as np

    import fastgd

    raw = np.full((2, 8192 + 64), 0x3F80, np.uint16)  # 1 in bfloat16
    start = (16 - raw.ctypes.data % 64) % 64 // 2
    p, g = raw[:, start : start + 8192]
    return fastgd.Adam(p, grads=g, rounding="stochastic", state_dtype="bfloat16").step


def in_8_bits() -> Callable[[], object]:
    """Adam with states in 8 bits."""
    import fastgd

    return fastgd.Adam(arrays(1, 8192), grads=arrays(1, 8192, 1), state_dtype="8bit").step


def torch() -> Callable[[], object]:
    """Adam with torch's tensors."""
    from torch import from_numpy
    from torch.nn import Parameter

    import fastgd.torch

    params = [Parameter(from_numpy(a)) for a in arrays(300, 64)]
    for p, g in zip(params, arrays(300, 64, 1), strict=True):
        p.grad = from_numpy(g)
    return fastgd.torch.Adam(params).step


SCENARIOS: dict[str, Callable[[], Callable[[], object]]] = {
    "300 x 64, bound": bound,
    "300 x 64, a list": unbound,
    "300 x 64, clipped": clipped,
    "1 x 64": one,
    "norm of 300 x 64": norm,
    "accumulate 300 x 64": accumulate,
    "256 rows of 64": rows,
    "8192 in 16 bits": pairs,
    "8192, states in 8 bits": in_8_bits,
    "300 x 64, torch": torch,
}

# What they are called on the command line.
CALLED = {make.__name__: name for name, make in SCENARIOS.items()}

# Apart from the others, as torch's import takes longer than all of these.
WITH_TORCH = ("300 x 64, torch",)


def missing() -> str:
    """What there is not that counting needs; empty if nothing is missing."""
    for command, package in (("valgrind", "valgrind"), (compiler()[0], "gcc")):
        if which(command) is None:
            return f"there is no {command}, which Debian's package {package} has"
    with tempfile.TemporaryDirectory() as folder:
        try:
            marks_in(Path(folder))
        except subprocess.CalledProcessError:
            return "there is no valgrind/callgrind.h, which Debian's package valgrind has"
    return ""


def compiler() -> list[str]:
    """The C compiler."""
    return os.environ.get("CC", "cc").split()


def marks_in(folder: Path) -> Path:
    """The library of `MARKS`, compiled."""
    source, library = folder / "marks.c", folder / "marks.so"
    source.write_text(MARKS)
    command = [*compiler(), "-shared", "-fPIC", "-o", library, source]
    subprocess.run(command, check=True, capture_output=True)
    return library


def counted(tree: Path = ROOT, names: Iterable[str] = tuple(SCENARIOS)) -> dict[str, Any]:
    """Instructions of a call of each scenario, with the `fastgd` of a tree, and its key.

    Where a scenario can't be run, what it raised stands in the place of its count.
    """
    chosen = [*names]
    parts = [[n for n in chosen if (n in WITH_TORCH) is apart] for apart in (False, True)]
    with tempfile.TemporaryDirectory() as folder:
        marks = marks_in(Path(folder))
        running = [
            start(tree, Path(folder) / str(k), marks, part) for k, part in enumerate(parts) if part
        ]
        found = [read(*process) for process in running]
    counts = {name: one for part in found for name, one in part["counts"].items()}
    return {"key": found[0]["key"], "counts": {name: counts[name] for name in chosen}}


def start(tree: Path, folder: Path, marks: Path, names: list[str]) -> Any:
    """A process that counts, with the folder that it writes to."""
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONHASHSEED": "0"}
    environment |= {"OMP_NUM_THREADS": "1", "FASTGD_NUM_THREADS": "1"}
    tool = ["valgrind", "-q", "--tool=callgrind", "--instr-atstart=no"]
    command = [*tool, f"--callgrind-out-file={folder}/out", sys.executable, str(HERE)]
    only = [SCENARIOS[name].__name__ for name in names]
    process = subprocess.Popen(
        [*command, "--count-in", str(folder), "--marks", str(marks), "--only", *only],
        env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    return process, folder


def read(process: subprocess.Popen[str], folder: Path) -> dict[str, Any]:
    """What a process has counted."""
    _, errors = process.communicate()
    result = folder / "result.json"
    if process.returncode or not result.exists():
        raise RuntimeError(f"counting failed:\n{errors}")
    found = json.loads(result.read_text())
    for name, part in found["counts"].items():
        if isinstance(part, int):  # of the first of three marks
            few, many = (total_of(folder / f"out.{part + k}") for k in (1, 2))
            found["counts"][name] = round((many - few) / (MANY - FEW))
    return found


def total_of(file: Path) -> int:
    """The instructions in a file of callgrind's."""
    found = re.search(r"^(?:totals|summary): (\d+)", file.read_text(), re.MULTILINE)
    assert found is not None, file
    return int(found[1])


def count_in(folder: Path, library: Path, names: Iterable[str]) -> None:
    """Run scenarios between marks; this process is valgrind's."""
    import fastgd

    marks = ctypes.CDLL(str(library))
    fastgd.set_backend(backend())
    gc.disable()  # which would come at another time in each build
    counts: dict[str, int | str] = {}
    part = 1
    for name in names:
        try:
            call = SCENARIOS[name]()
            run(call, WARM)
        except Exception as error:
            counts[name] = f"{type(error).__name__}: {error}"
            continue
        marks.begin()
        run(call, FEW)
        marks.mark()
        run(call, FEW)
        marks.mark()
        run(call, MANY)
        marks.mark()
        marks.end()
        counts[name] = part
        part += 3
    result = {"key": key(), "counts": counts}
    (folder / "result.json").write_text(json.dumps(result))


def run(call: Callable[[], object], times: int) -> None:
    """Call so many times."""
    for _ in repeat(None, times):
        call()


def key() -> str:
    """What counts depend on besides fastgd's code: Python, compiler, machine and backend."""
    import fastgd

    python = ".".join(platform.python_version_tuple()[:2])
    compiled = built_by(Path(fastgd.kernels.__file__).parent)
    of = [f"{platform.python_implementation()} {python}", compiled, platform.machine()]
    return ", ".join([*of, backend()])


def backend() -> str:
    """The best backend that valgrind knows the instructions of."""
    import fastgd

    return next(name for name in fastgd.available_backends() if name != "x86_64_v4")


def built_by(kernels: Path) -> str:
    """The compiler that built the engine, as it has noted itself there."""
    from importlib.machinery import EXTENSION_SUFFIXES

    engine = next(file for s in EXTENSION_SUFFIXES if (file := kernels / f"_engine{s}").exists())
    found = re.search(rb"(GCC): \([^)]*\) (\d+)|(clang) version (\d+)", engine.read_bytes())
    if found is None:
        return "an unknown compiler"
    return b" ".join(filter(None, found.groups())).decode()


def compared(counts: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """Each count that has grown by more than the tolerance, or is none any more, in words."""
    grown = []
    for name, known in before.items():
        count = counts.get(name, 0)
        if isinstance(known, int) and not isinstance(count, int):
            grown.append(f"{name}: {count}")
        elif isinstance(known, int) and count > known * (1 + TOLERANCE):
            more = f"{count / known - 1:+.1%} of {known:,}"
            grown.append(f"{name}: {count:,} instructions, {more}")
    return grown


def is_commit(name: str) -> bool:
    """Whether git knows a commit by that name."""
    ask = ["git", "-C", str(ROOT), "rev-parse", "--quiet", "--verify", "--end-of-options"]
    return subprocess.run([*ask, f"{name}^{{commit}}"], capture_output=True).returncode == 0


def counted_at(commit: str, names: Iterable[str]) -> dict[str, Any]:
    """The same of a commit, built in a worktree that is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", tree, commit], check=True)
        try:
            build = [sys.executable, "setup.py", "build_ext", "--inplace"]
            only = {"FASTGD_BACKENDS": "baseline,x86_64_v3", "PYTHONPATH": str(tree)}
            done = subprocess.run(
                build, cwd=tree, env={**os.environ, **only}, capture_output=True, text=True
            )
            if done.returncode:
                raise RuntimeError(f"{commit} can't be built:\n{done.stderr[-3000:]}")
            return counted(tree, names)
        finally:
            subprocess.run([*git, "remove", "--force", tree], check=False)


def table(counts: Mapping[str, Any], before: Mapping[str, Any] | None, commit: str) -> str:
    """The counts as a table in Markdown."""
    lines = ["| a call | instructions |" + (f" {commit} | ratio |" if before else "")]
    lines.append("|---|--:|" + ("--:|--:|" if before else ""))
    for name, count in counts.items():
        cells = [name, shown(count)]
        if before:
            known = before.get(name)
            both = isinstance(count, int) and isinstance(known, int)
            cells += [shown(known), f"{count / known:.3f}" if both else "–"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def shown(count: Any) -> str:
    """A count, or what was raised in its place."""
    return f"{count:,}" if isinstance(count, int) else str(count)


def note(found: Mapping[str, Any]) -> None:
    """Note counts in the table, in the place of those of the same key."""
    known = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    own = known.setdefault(found["key"], {})
    own |= {name: count for name, count in found["counts"].items() if isinstance(count, int)}
    TABLE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def main() -> int:
    """Count, and print or note what was counted."""
    width = max(map(len, CALLED))
    calls = [f"  {call:{width}}  {name}" for call, name in CALLED.items()]
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog="\n".join(["calls:", *calls]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", nargs="+", metavar="CALL", choices=CALLED, default=[*CALLED],
        help="count these calls, of those below; else all",
    )  # fmt: skip
    parser.add_argument("--against", metavar="COMMIT", help="count at a commit, too")
    parser.add_argument(
        "--accept", action="store_true",
        help="write the counts to bench/counts.json, over those noted there of the same Python, "
        "compiler and backend",
    )  # fmt: skip
    parser.add_argument("--count-in", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--marks", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    names = [CALLED[call] for call in given.only]
    if given.count_in is not None:
        count_in(given.count_in, given.marks, names)
        return 0
    if given.against is not None and not is_commit(given.against):
        parser.error(f"--against: no such commit: {given.against}")
    if lacking := missing():
        parser.error(lacking)
    found = counted(ROOT, names)
    before = None if given.against is None else counted_at(given.against, names)["counts"]
    print(f"{found['key']}\n\n{table(found['counts'], before, given.against)}")
    if given.accept:
        note(found)
    grown = [] if before is None else compared(found["counts"], before)
    for line in grown:
        print(f"\nmore than {given.against} by over {TOLERANCE:.0%}: {line}")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
