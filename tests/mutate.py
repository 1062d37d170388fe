"""Changes the kernels and the engine in one place at a time, and shows that the tests go red.

    python tests/mutate.py            # a sample of the mutants
    python tests/mutate.py --all      # every one
    python tests/mutate.py --list     # what they are

All mutants are compiled into one build in a scratch folder: every place holds its variants, and
FASTGD_MUTANT says which of them counts, so that nothing is compiled again from mutant to mutant.
Only the baseline backend is built, and at -O1: mutants are about what is computed, not how fast.

Survivors that can't be told from the original by any result are in mutants.txt, with the reason.
Exits with 1 if any other survives.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy

ROOT = Path(__file__).resolve().parent.parent
EXPLAINED = Path(__file__).with_name("mutants.txt")
KERNELS = "fastgd/kernels"

# What to change, and in which functions; None for all.
ENGINE = (  # noqa: SIM905 - to be read
    "plan_tensor cut_chunks add_chunks read_gradient check_overlap step_alone hold_gradients "
    "check_unmoved check_zeroable configure measure refuse_nonfinite mark_stages count_up "
    "zero_gradients sweep max_of is_unmoved fits read_setting add norm is_plain"
).split()
PLACES = {
    "_rules.pxi": None, "_stages.pxi": None, "_norms.pxi": None, "_sweep.pxi": None,
    "_engine.pyx": ENGINE,
}  # fmt: skip
# The tests of each file, those that go red most often first.
TESTS = {
    "_rules.pxi": ["test_kernels.py", "test_optimizers.py"],
    "_stages.pxi": ["test_sweep.py", "test_kernels.py", "test_storage.py"],
    "_norms.pxi": ["test_sweep.py", "test_storage.py"],
    "_sweep.pxi": ["test_sweep.py", "test_kernels.py", "test_engine.py", "test_storage.py"],
    "_engine.pyx": [
        "test_sweep.py", "test_bad_input.py", "test_optimizers.py", "test_engine.py",
        "test_kernels.py", "test_averages.py", "test_state_dict.py", "test_machine.py",
    ],
}  # fmt: skip
# Those that say nothing of what is computed, or need gigabytes.
NOT_THESE = "not 2_to and not vectorised and not threads_do_the_work and not gil_is_released"
TIMEOUT = 240  # seconds; whoever takes longer hangs

# Operators stand between blanks, casts and pointers don't.
SWAPS = [
    (r" \+ ", " - "), (r" - ", " + "), (r" \* ", " + "), (r" / ", " * "), (r" // ", " + "),
    (r" % ", " + "), (r" < ", " <= "), (r" <= ", " < "), (r" > ", " >= "), (r" >= ", " > "),
    (r" == ", " != "), (r" != ", " == "), (r" & ", " | "), (r" \| ", " & "), (r" and ", " or "),
    (r" or ", " and "), (r"\bnot ", ""), (r"\bmin\(", "max("), (r"\bmax\(", "min("),
    (r" \+= ", " -= "), (r" -= ", " += "), (r" \|= ", " = "), (r" &= ", " = "),
    (r"(?<=[ (])-(?=[a-z_])", ""), (r"~", ""),
]  # fmt: skip
NUMBER = re.compile(r"(?<![\w.])(\d+)(\.0)?(?![\w.])")


class Mutant(NamedTuple):
    """A changed line of a function."""

    number: int
    file: str
    line: int
    function: str
    before: str
    after: str

    def __str__(self) -> str:
        """The line, with {what stood there → what stands there now}."""
        a, b = self.before, self.after
        start = len(os.path.commonprefix([a, b]))  # noqa: RUF071 - of lines
        end = len(os.path.commonprefix([a[start:][::-1], b[start:][::-1]]))  # noqa: RUF071
        old, new = a[start : len(a) - end], b[start : len(b) - end]
        line = f"{a[:start]}{{{old} → {new}}}{a[len(a) - end :]}"
        return f"{self.file}: {self.function}: {line}"


# ---------------------------------------------------------------------------------- source to lines


def logical_lines(source: str) -> Iterator[tuple[int, str, str]]:
    """(line number, indentation, text) of each statement on one line, without comments."""
    source = re.sub(r'"""(?:.|\n)*?"""', lambda m: '""' + "\n" * m[0].count("\n"), source)
    held, first, indent = "", 0, ""
    for number, raw in enumerate(source.split("\n"), 1):
        text = re.sub(r"\s+#.*$|^#.*$", "", raw).rstrip()
        if not held:
            first, indent = number, text[: len(text) - len(text.lstrip())]
        held = f"{held} {text.strip()}".strip()
        bare = re.sub(r'"[^"]*"', '""', held)
        if sum(map(bare.count, "([{")) > sum(map(bare.count, ")]}")):
            continue
        yield first, indent, held
        held = ""


def variants(text: str) -> list[str]:
    """What an expression, condition or statement may be changed to, each in one place."""
    strings = [range(*m.span()) for m in re.finditer(r'"[^"]*"', text)]

    def in_string(at: int) -> bool:
        return any(at in span for span in strings)

    found = []
    for pattern, other in SWAPS:
        for m in re.finditer(pattern, text):
            if not in_string(m.start()):
                found.append(text[: m.start()] + other + text[m.end() :])
    for m in NUMBER.finditer(text):
        if not in_string(m.start()):
            number = str(int(m[1]) + 1) + (m[2] or "")
            found.append(text[: m.start()] + number + text[m.end() :])
    return found


class Mutator:
    """Rewrites sources so that they hold all their mutants."""

    def __init__(self) -> None:
        self.mutants: list[Mutant] = []

    def choose(self, original: str, changed: list[str], where: tuple[str, int, str]) -> str:
        """An expression that is the original or one of its variants."""
        for after in changed:
            original = f"({after} if MUTANT == {self.add(where, original, after)} else {original})"
        return original

    def add(self, where: tuple[str, int, str], before: str, after: str) -> int:
        number = len(self.mutants) + 1
        # Nested choices show what was there before any.
        while m := re.match(r"\((?:.*) if MUTANT == \d+ else (.*)\)$", before):
            before = m[1]
        self.mutants.append(Mutant(number, *where, before, after))
        return number

    def rewrite(self, file: str, source: str) -> str:
        """The source with its mutants."""
        out: list[str] = []
        function, wanted = "", PLACES[file]
        for line, indent, text in logical_lines(source):
            if m := re.match(r"(?:cdef|def|cpdef)\b[^=]*?\b(\w+)\(.*:$", text):
                function = m[1]
            elif not indent:
                function = ""
            inside = function and indent and (wanted is None or function in wanted)
            if inside and not text.endswith('""'):
                out += self.statement(indent, text, (file, line, function))
            else:
                out.append(indent + text)
        return "\n".join(out) + "\n"

    def statement(self, indent: str, text: str, where: tuple[str, int, str]) -> list[str]:
        keep = [indent + text]
        if re.match(
            r"(raise|import|from|try|else|finally|with|pass|global|@|cdef (?!.* = ))", text
        ):
            return keep
        if re.search(r" is |\bNULL\b.*\bNULL\b|isinstance|prange|^name, |f\"", text):
            return keep
        if m := re.match(r"(if|elif|while) (.*):$", text):
            return [f"{indent}{m[1]} {self.choose(m[2], variants(m[2]), where)}:"]
        if m := re.match(r"for (\w+) in range\((?:(.*), )?(.*)\):$", text):
            start, stop = m[2] or "0", m[3]
            start = self.choose(start, [f"{start} + 1"], where)
            stop = self.choose(stop, [f"{stop} - 1"], where)
            return [f"{indent}for {m[1]} in range({start}, {stop}):"]
        if text.startswith("for "):
            return keep
        if m := re.match(r"(cdef .*?) = (.*)$", text):
            # Several in one line: `cdef double a = c[0], b = c[1]`.
            parts = re.split(r", (?=\w+(?: = |,|$))", m[2])
            values = []
            for part in parts:
                name, mark, value = part.rpartition(" = ")
                known = re.fullmatch(r"\w+", part) and len(parts) > 1
                values.append(
                    part if known else name + mark + self.choose(value, variants(value), where)
                )
            return [f"{indent}{m[1]} = {', '.join(values)}"]
        changed = variants(text)
        if re.fullmatch(r"[\w.]+\(.*\)", text):
            changed.append("pass")
        lines = []
        for k, after in enumerate(changed):
            number = self.add(where, text, after)
            lines += [
                f"{indent}{'elif' if k else 'if'} MUTANT == {number}:",
                f"{indent}    {after}",
            ]
        return [*lines, f"{indent}else:", f"{indent}    {text}"] if changed else keep


# ------------------------------------------------------------------------------------- one build


def build(scratch: Path) -> list[Mutant]:
    """Copy the project, and build the engine and the baseline backend with all mutants in them."""
    for name in ("fastgd", "src_c", "tests", "pyproject.toml", "setup.py", "README.md"):
        source = ROOT / name
        if source.is_dir():
            skip = shutil.ignore_patterns("*.so", "*.c" if name == "fastgd" else "", "__pycache__")
            shutil.copytree(source, scratch / name, ignore=skip)
        else:
            shutil.copy(source, scratch / name)
    folder, mutator = scratch / KERNELS, Mutator()
    for file in PLACES:
        path = folder / file
        path.write_text(mutator.rewrite(file, path.read_text()))
    switch = 'import os as _os\ncdef int MUTANT = int(_os.environ.get("FASTGD_MUTANT", "0"))\n'
    for name, mark in (("_engine", "from fastgd.kernels import"), ("_baseline", "include ")):
        path = folder / f"{name}.pyx"
        path.write_text(path.read_text().replace(mark, f"{switch}\n{mark}", 1))
    with ThreadPoolExecutor(2) as pool:
        list(
            pool.map(
                lambda name: compile_module(scratch, name), ("_engine", "_baseline", "_series")
            )
        )
    return mutator.mutants


def compile_module(scratch: Path, name: str) -> None:
    setup = ast.parse((scratch / "setup.py").read_text())
    directives = next(
        ast.literal_eval(node.value)
        for node in setup.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "DIRECTIVES"
    )
    flags = [f"-X{key}={value}" for key, value in directives.items() if key != "language_level"]
    stem = f"{KERNELS}/{name}"
    run = {"cwd": scratch, "check": True}
    subprocess.run([sys.executable, "-m", "cython", "-3", *flags, f"{stem}.pyx"], **run)
    cpu = ["src_c/cpu.c"] if name == "_engine" else []
    subprocess.run(
        [
            *sysconfig.get_config_var("CC").split(), "-shared", "-fPIC", "-w", "-O1", "-fwrapv",
            "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-Isrc_c",
            f"-I{numpy.get_include()}", f"-I{sysconfig.get_path('include')}",
            "-DNPY_NO_DEPRECATED_API=NPY_2_0_API_VERSION", f"{stem}.c", *cpu,
            "-o", stem + sysconfig.get_config_var("EXT_SUFFIX"),
        ],
        **run,
    )  # fmt: skip


# ------------------------------------------------------------------------------------ the verdicts


def red(scratch: Path, mutant: Mutant | None, files: list[str]) -> str:
    """How the tests fail with a mutant; empty if they don't."""
    number = 0 if mutant is None else mutant.number
    env = {
        **os.environ, "FASTGD_MUTANT": str(number), "PYTHONPATH": str(scratch),
        "FASTGD_BACKEND": "", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "2",
    }  # fmt: skip
    for file in files:
        which = NOT_THESE
        if mutant is not None and file == "test_kernels.py" and mutant.file == "_rules.pxi":
            which += f" and {mutant.function}" * (mutant.function in rules())
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider",
                   "--no-header", "-k", which, f"tests/{file}"]  # fmt: skip
        try:
            done = subprocess.run(
                command, cwd=scratch, env=env, capture_output=True, text=True, timeout=TIMEOUT,
                preexec_fn=limit_memory,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"{file}: hangs"
        if done.returncode not in (0, 5):
            failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
            how = failed[1] if failed else f"dies with {done.returncode}"
            return f"{file}: {how.partition('::')[2] or how}"
    return ""


def limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))


def rules() -> list[str]:
    from fastgd.kernels.reference import RULES

    return list(RULES)


def explained() -> dict[str, str]:
    """The mutants that no test can tell from the original, and why."""
    known, reason = {}, ""
    for line in EXPLAINED.read_text().splitlines():
        if line.startswith("# "):
            reason = line[2:]
        elif line.strip():
            known[line.strip()] = reason
    return known


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="every mutant, not a sample")
    parser.add_argument("--sample", type=int, default=120, help="how many of them")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--only", default="", help="those that match this expression")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    parser.add_argument("--list", action="store_true", help="say what they are, test nothing")
    given = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        mutants = build(scratch)
        print(f"{len(mutants)} mutants", flush=True)
        known = explained()
        if stale := set(known) - set(map(str, mutants)):
            print("mutants.txt has what is no mutant (any more):", *sorted(stale), sep="\n  ")
            return 1
        chosen = [m for m in mutants if re.search(given.only, str(m)) and str(m) not in known]
        if not given.all and not given.only:
            chosen = random.Random(given.seed).sample(chosen, min(given.sample, len(chosen)))
        if given.list:
            print(*chosen, sep="\n")
            return 0
        everything = sorted({file for files in TESTS.values() for file in files})
        if failure := red(scratch, None, everything):
            print(f"the tests fail without any mutant: {failure}")
            return 1
        return judge(scratch, chosen, given.jobs, len(known))


def judge(scratch: Path, chosen: list[Mutant], jobs: int, explained: int) -> int:
    start, survivors = time.monotonic(), []
    with ThreadPoolExecutor(jobs) as pool:
        verdicts = pool.map(lambda m: red(scratch, m, TESTS[m.file]), chosen)
        for mutant, verdict in zip(chosen, verdicts, strict=True):
            print(f"{'killed  ' if verdict else 'SURVIVED'} {mutant}", flush=True)
            print(
                f"         by {verdict}" if verdict else f"         line {mutant.line}", flush=True
            )
            if not verdict:
                survivors.append(mutant)
    print(f"\n{len(chosen)} mutants, {len(chosen) - len(survivors)} killed, {len(survivors)} survive "
          f"({explained} more are explained), {time.monotonic() - start:.0f} s")  # fmt: skip
    print(*survivors, sep="\n")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
