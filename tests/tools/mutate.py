"""Changes the kernels and the engine in one place at a time, and shows that the tests go red.

    python tests/tools/mutate.py            # a sample of the mutants
    python tests/tools/mutate.py --all      # every one
    python tests/tools/mutate.py --resume   # goes on from what build/mutate.log has: new survivors only
    python tests/tools/mutate.py --list     # what they are

All mutants are compiled into one build in a scratch folder (see mutator.py) and judged by one pytest
session, which collects the tests once and forks for each mutant.  A mutant is given the tests that
run its function, those first that killed others of this function or file.  Only the baseline backend
is built, and at -O1: mutants are about what is computed, not how fast.

Survivors that can't be told from the original by any result are in mutants.txt, with the reason.
Exits with 1 if any other survives.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mutator import CYTHON_SWITCH, HEADER, PLACES, SWITCH, THREADS_SWITCH, Mutant, Mutator

ROOT = Path(__file__).resolve().parents[2]
EXPLAINED = Path(__file__).with_name("mutants.txt")
LOG = ROOT / "build" / "mutate.log"
SCRATCH = ROOT / "build" / "mutants"
KERNELS = "fastgd/kernels"
SOURCES = {".py", ".pyx", ".pxi", ".pxd", ".h", ".c", ".in"}
# What the build writes, all of it at once, is mutated and compiled, too.
WRITTEN = (f"{KERNELS}/loops/_rules.pxi", f"{KERNELS}/engine/_coefficients.pxi")
# Whatever says something of what is computed.
TESTS = (
    "kernels/test_rules", "optimizers/test_optimizers", "core/test_stages", "kernels/test_norms",
    "core/test_clip_ratio", "core/test_units", "kernels/test_engine", "core/test_storage",
    "kernels/test_codecs", "averages/test_averages", "core/test_state_dict", "core/test_bad_input",
    "kernels/test_fp_modes",
    "kernels/test_buffers", "checkpoint/test_packing", "kernels/test_random_words",
    "core/test_kinds_of_rules", "optimizers/test_lamb_lars_nadam", "optimizers/test_adam_like",
    "core/test_stateful", "kernels/test_out_of_cache", "kernels/test_formats",
    "core/test_rows", "optimizers/test_rowwise", "kernels/test_tuning", "optimizers/test_muon",
    "optimizers/test_adafactor", "optimizers/test_prodigy", "optimizers/test_dadaptation",
    "optimizers/test_ftrl", "optimizers/test_schedule_free", "optimizers/test_sign_rules",
    "optimizers/test_cautious", "core/test_rule_by_shape", "core/test_hyper_rows",
    "kernels/test_powers", "kernels/test_elementary", "core/test_catch_up", "core/test_catch_up_rows",
    "kernels/test_tuned_threads",
    "core/test_repeated_steps", "kernels/test_shares", "optimizers/test_soap",
    "kernels/test_gradients", "kernels/test_quota", "kernels/test_plans", "kernels/test_steps_alike",
    "core/test_memory_of_rows",
)  # fmt: skip
# Those that measure time, read machine code, need gigabytes, or threads that a fork has not; and the
# training that each rule's other tests make needless here.
NOT_THESE = (
    "not learns_the_digits and not 2_to and not optaxs and not in_torch and not c_level and not vectorised"
    " and not threads_do_the_work and not gil_is_released"
)


def rewritten() -> tuple[Mutator, dict[str, str]]:
    """All mutants, and the sources that hold them."""
    mutator = Mutator()
    return mutator, {file: mutator.rewrite(file, (ROOT / file).read_text()) for file in PLACES}


def build(mutator: Mutator, changed: dict[str, str]) -> None:
    """Copy the project, and build the engine and the baseline backend with all mutants in them.

    What was built from the same sources is taken as it is, with the tests of today.
    """
    stamp = SCRATCH / "stamp"
    if stamp.exists() and stamp.read_text() == digest():
        shutil.copytree(ROOT / "tests", SCRATCH / "tests", dirs_exist_ok=True)
        return
    shutil.rmtree(SCRATCH, ignore_errors=True)
    for name in ("fastgd", "src_c", "tests", "pyproject.toml", "setup.py", "README.md"):
        source = ROOT / name
        if source.is_dir():
            skip = shutil.ignore_patterns("*.so", "*.c" if name == "fastgd" else "", "__pycache__")
            shutil.copytree(source, SCRATCH / name, ignore=skip)
        else:
            shutil.copy(source, SCRATCH / name)
    for file, text in changed.items():
        (SCRATCH / file).write_text(text)
    n = len(mutator.functions)
    path = SCRATCH / HEADER
    path.write_text(path.read_text().replace("#include", f"{SWITCH % n}#include", 1))
    for name, mark in (("_engine", "\nfrom fastgd.kernels import"), ("_baseline", "\ninclude ")):
        path = SCRATCH / KERNELS / f"{name}.pyx"
        path.write_text(path.read_text().replace(mark, CYTHON_SWITCH % (n, n, n) + mark, 1))
    with (SCRATCH / KERNELS / "_engine.pyx").open("a") as file:
        file.write(THREADS_SWITCH)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_module, ("_engine", "_baseline", "_series", "_watch")))
    stamp.write_text(digest())


def digest() -> str:
    """Of all that the build is made of."""
    folders = [ROOT / "fastgd", ROOT / "src_c"]
    files = [f for folder in folders for f in folder.rglob("*.*") if f.suffix in SOURCES]
    text = "".join(f.read_text() for f in [*sorted(files), ROOT / "tests" / "tools" / "mutator.py"])
    return hashlib.sha256(text.encode()).hexdigest()


def compile_module(name: str) -> None:
    import numpy

    tree = ast.parse((ROOT / "setup.py").read_text())
    directives = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "DIRECTIVES"
    )
    flags = [f"-X{key}={value}" for key, value in directives.items() if key != "language_level"]
    # Cython 3.3 makes the same switch of `x == 1 and x == 2` as of `x == 1 or x == 2`.
    flags.append("-Xoptimize.use_switch=False")
    stem, run = f"{KERNELS}/{name}", {"cwd": SCRATCH, "check": True}
    subprocess.run([sys.executable, "-m", "cython", "-3", *flags, f"{stem}.pyx"], **run)
    command = [
        *sysconfig.get_config_var("CC").split(), "-shared", "-fPIC", "-w", "-O1", "-fwrapv",
        "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-Isrc_c",
        f"-I{numpy.get_include()}", f"-I{sysconfig.get_path('include')}",
        "-DNPY_NO_DEPRECATED_API=NPY_2_0_API_VERSION", f"{stem}.c",
        *(["src_c/cpu.c"] if name == "_engine" else []),
        "-o", stem + sysconfig.get_config_var("EXT_SUFFIX"),
    ]  # fmt: skip
    subprocess.run(command, **run)


def explained() -> dict[str, str]:
    """The mutants that no test can tell from the original, and why."""
    known, reason = {}, ""
    for line in EXPLAINED.read_text().splitlines():
        if line.startswith("# "):
            reason = line[2:]
        elif line.strip():
            known[line.strip()] = reason
    return known


class Log:
    """What is known of tests and mutants, on disk at once.

    A line says what sources it is about, then each tells what a test does without any mutant, or what
    became of a mutant.
    """

    def __init__(self, resume: bool) -> None:
        head = json.dumps(["sources", digest()])
        if not (resume and LOG.exists() and LOG.read_text().startswith(head)):
            LOG.parent.mkdir(exist_ok=True)
            LOG.write_text(head + "\n")
        self.read()

    def read(self) -> None:
        """Read what processes have written."""
        self.tests: dict[str, list[Any]] = {}
        self.verdicts: dict[str, str] = {}
        for kind, name, what in map(json.loads, LOG.read_text().splitlines()[1:]):
            if kind == "test":
                self.tests[name] = what
            else:
                # Who was killed once stays dead, whatever tests were chosen later.
                self.verdicts[name] = what or self.verdicts.get(name, "")

    @staticmethod
    def write(*line: object) -> None:
        with LOG.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def note(self, mutant: Mutant, verdict: str) -> None:
        self.write("mutant", f"{mutant.line}: {mutant}", verdict)

    def judged(self, mutant: Mutant) -> bool:
        return f"{mutant.line}: {mutant}" in self.verdicts

    def killer(self, mutant: Mutant) -> str:
        """The test that killed a mutant; empty if none did."""
        verdict = self.verdicts.get(f"{mutant.line}: {mutant}", "")
        return re.sub(r" (?:hangs|dies with \S+)$", "", verdict)


class Without:
    """Has modules of a name, and their parts, count as not installed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name.partition(".")[0] == self.name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def judge(mutator: Mutator, chosen: list[Mutant], jobs: int, seconds: float, log: Log) -> list[str]:
    """Let the tests judge the mutants; returns what survives."""
    # Before NumPy and the engine are loaded, by pytest only.
    os.environ.update(PYTHONDONTWRITEBYTECODE="1", PYTHONPATH=str(SCRATCH), OMP_NUM_THREADS="2",
                      OPENBLAS_NUM_THREADS="1", FASTGD_BACKEND="", FASTGD_FUZZ="0")  # fmt: skip
    os.chdir(SCRATCH)
    sys.path[:1] = [str(SCRATCH), str(SCRATCH / "tests" / "tools")]
    sys.meta_path.insert(0, Without("torch"))  # takes seconds, anew in each child
    import pytest
    from mutate_session import Session

    session = Session(mutator, chosen, jobs, seconds, log)
    failed = pytest.main(
        ["-q", "-s", "--no-header", "--no-summary", "-p", "no:cacheprovider",
            "-p", "no:faulthandler", "-k", NOT_THESE,
         *(f"tests/{name}.py" for name in TESTS)],
        plugins=[session],
    )  # fmt: skip
    if failed:
        sys.exit(1)
    return session.survivors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="every mutant, not a sample")
    parser.add_argument("--resume", action="store_true", help="all that the log has no killer of")
    parser.add_argument("--sample", type=int, default=120, help="how many of them")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--only", default="", help="those that match this expression")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    parser.add_argument("--seconds", type=float, default=float("inf"),
                        help="how many of tests, at most, for each of them")  # fmt: skip
    parser.add_argument("--list", action="store_true", help="say what they are, test nothing")
    given = parser.parse_args()

    for file in WRITTEN:
        if not (ROOT / file).exists():
            print(f"{file}: expected what the build writes, found no such file: make build")
            return 1
    mutator, changed = rewritten()
    mutants, known, log = mutator.mutants, explained(), Log(given.resume or given.list)
    print(f"{len(mutants)} mutants of {len(mutator.functions)} functions", flush=True)
    if stale := set(known) - set(map(str, mutants)):
        print("mutants.txt has what is no mutant (any more):", *sorted(stale), sep="\n  ")
        return 1
    unexplained = [m for m in mutants if str(m) not in known]
    chosen = [m for m in unexplained if re.search(given.only, str(m)) and not log.killer(m)]
    if not (given.all or given.only or given.resume):
        chosen = random.Random(given.seed).sample(chosen, min(given.sample, len(chosen)))
    chosen.sort(key=log.judged)  # who survived waits for those that weren't tried yet
    if given.list:
        print(*chosen, sep="\n")
        return 0
    build(mutator, changed)
    survivors = judge(mutator, chosen, given.jobs, given.seconds, log)
    print(f"\n{len(chosen)} mutants, {len(chosen) - len(survivors)} killed, "
          f"{len(survivors)} survive; {len(mutants) - len(unexplained)} more are explained, "
          f"{sum(map(bool, map(log.killer, unexplained)))} were killed before")  # fmt: skip
    print(*survivors, sep="\n")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
