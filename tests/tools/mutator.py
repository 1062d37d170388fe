"""Sources in which every place holds its variants, and a number says which of them counts.

What `mutate.py` compiles: each expression becomes a choice between itself and what it may be changed
to, so that nothing is compiled again from mutant to mutant.  Each function also notes that it ran,
which tells the tests that could find a mutant from those that can't.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

# In every file that is changed: the functions to leave alone, as nothing they do shows in a result.
LEFT_ALONE = [
    "__dealloc__",
    "__repr__",
    "prefetch_array",
    "prefetch_next",
    "prefetch_tile",
    "release",
]
KERNELS = "fastgd/kernels"
PLACES = {
    file.relative_to(ROOT).as_posix(): " ".join(LEFT_ALONE)
    for pattern in ("fastgd/optimizers/*.pxi", f"{KERNELS}/loops/[!_]*.pxi",
                    f"{KERNELS}/engine/**/*.pxi", f"{KERNELS}/_engine.pyx", "src_c/fastgd_codecs.h")
    for file in sorted(ROOT.glob(pattern))
}  # fmt: skip
# Where the switch stands, included by all that is compiled.
HEADER = "src_c/fastgd_codecs.h"
SWITCH = """
static int fastgd_mutant;              /* the one that counts */
static unsigned char fastgd_ran[%d];   /* whether each function ran */
"""
CYTHON_SWITCH = """
import os as _os
cdef extern from "fastgd_codecs.h" nogil:
    int MUTANT "fastgd_mutant"
    unsigned char RAN "fastgd_ran"[%d]
    int fastgd_min(int, int)   # what fastgd_max may become
MUTANT = int(_os.environ.get("FASTGD_MUTANT", "0"))


def _mutate(int number):
    global MUTANT
    MUTANT = number


def _ran():
    return [k for k in range(%d) if RAN[k]]


def _forget():
    for k in range(%d):
        RAN[k] = 0

"""
# No thread was started before the fork, so that the child may start some.
THREADS_SWITCH = """

def _thread_again():
    global _forked
    _forked = False
"""

# Operators stand between blanks, casts and pointers don't.
SWAPS = [
    (r" \+ ", " - "), (r" - ", " + "), (r" \* ", " + "), (r" / ", " * "), (r" // ", " + "),
    (r" % ", " + "), (r" < ", " <= "), (r" <= ", " < "), (r" > ", " >= "), (r" >= ", " > "),
    (r" == ", " != "), (r" != ", " == "), (r" & ", " | "), (r" \| ", " & "), (r" \^ ", " | "),
    (r" << ", " >> "), (r" >> ", " << "), (r" and ", " or "), (r" or ", " and "),
    (r"\bnot ", ""), (r"min\(", "max("), (r"(?<!unsigned_)max\(", "min("),
    (r" \+= ", " -= "), (r" -= ", " += "), (r" \|= ", " = "), (r" &= ", " = "),
    (r"(?<=[ (])-(?=[a-z_])", ""), (r"~", ""),
]  # fmt: skip
NUMBER = re.compile(r"(?<![\w.])(\d+)(\.0)?(?![\w.])")
HEX = re.compile(r"\b0x([0-9a-f]+)(?=u?\b)(?!p)")


class Mutant(NamedTuple):
    """A changed line of a function."""

    number: int
    file: str
    line: int
    function: str
    before: str
    after: str
    nth: int  # of those that read alike in a function

    def __str__(self) -> str:
        """The line, with {what stood there → what stands there now}."""
        a, b = self.before, self.after
        name = f"{os.path.basename(self.file)}: {self.function}"
        name += f" ({self.nth})" * (self.nth > 1)
        if b == "pass":
            return f"{name}: {{{a} → }}"
        start = len(os.path.commonprefix([a, b]))  # noqa: RUF071 - of lines
        end = len(os.path.commonprefix([a[start:][::-1], b[start:][::-1]]))  # noqa: RUF071
        old, new = a[start : len(a) - end], b[start : len(b) - end]
        line = f"{a[:start]}{{{old} → {new}}}{a[len(a) - end :]}"
        return f"{name}: {line}"


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


def parts_of(text: str) -> list[str]:
    """What stands between commas that are in no brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def variants(text: str) -> list[str]:
    """What an expression, condition or statement may be changed to, each in one place."""
    strings = [range(*m.span()) for m in re.finditer(r'"[^"]*"', text)]
    found = []

    def change(m: re.Match[str], other: str) -> None:
        if not any(m.start() in span for span in strings):
            found.append(text[: m.start()] + other + text[m.end() :])

    for pattern, other in SWAPS:
        for m in re.finditer(pattern, text):
            change(m, other)
    for m in NUMBER.finditer(text):
        # An index stays inside, where all that stands there has a meaning.
        index = text[m.start() - 1 : m.start()] == "[" and text[m.end() : m.end() + 1] == "]"
        change(m, str(int(m[1]) + (-1 if index and m[1] != "0" else 1)) + (m[2] or ""))
    for m in HEX.finditer(text):
        change(m, hex(int(m[1], 16) - 1))
    return found


class Mutator:
    """Rewrites sources so that they hold all their mutants."""

    def __init__(self) -> None:
        self.mutants: list[Mutant] = []
        self.functions: list[tuple[str, str]] = []
        self.seen: Counter[tuple[str, ...]] = Counter()

    def rewrite(self, file: str, source: str) -> str:
        """The source with its mutants."""
        return (self.rewrite_c if file.endswith(".h") else self.rewrite_cython)(file, source)

    def add(self, where: tuple[str, int, str], before: str, after: str) -> int:
        number = len(self.mutants) + 1
        alike = (where[0], where[2], before, after)
        self.seen[alike] += 1
        self.mutants.append(Mutant(number, *where, before, after, self.seen[alike]))
        return number

    def number_of(self, file: str, function: str) -> int:
        """What a function goes by in `fastgd_ran`."""
        if (file, function) not in self.functions:
            self.functions.append((file, function))
        return self.functions.index((file, function))

    def choose(
        self,
        original: str,
        where: tuple[str, int, str],
        name: str,
        form: Callable[[int, str, str], str] = "(({1}) if MUTANT == {0} else ({2}))".format,
    ) -> str:
        """An expression that is the original or one of its variants, and what it is called."""
        choice = original
        for after in variants(original):
            number = self.add(where, f"{name} = {original}", f"{name} = {after}")
            choice = form(number, after, choice)
        return choice

    # ------------------------------------------------------------------------------------- Cython

    def rewrite_cython(self, file: str, source: str) -> str:
        out: list[str] = []
        function, but = "", PLACES[file].split()
        for line, indent, text in logical_lines(source):
            if m := re.match(r"(?:cdef|def|cpdef)\b(?! class)[^=]*?\b(\w+)\(.*:$", text):
                function = m[1]
                out += [indent + text,
                        f"{indent}    RAN[{self.number_of(file, function)}] = 1"]  # fmt: skip
                continue
            if text and not indent:
                function = ""
            inside = function and indent and function not in but
            if inside and not text.endswith('""'):
                out += self.statement(indent, text, (file, line, function))
            else:
                out.append(indent + text)
        return "\n".join(out) + "\n"

    def condition(self, text: str, where: tuple[str, int, str]) -> str:
        """A condition that is the original or one of its variants.

        By `and` and `or` all the way: conditional expressions of these, in which numbers and truth
        values are mixed, are miscompiled by Cython 3.3.
        """
        first = len(self.mutants) + 1
        parts = [f"MUTANT == {self.add(where, text, after)} and ({after})"
                 for after in variants(text)]  # fmt: skip
        last = len(self.mutants)
        return " or ".join([*parts, f"not {first} <= MUTANT <= {last} and ({text})"])

    def statement(self, indent: str, text: str, where: tuple[str, int, str]) -> list[str]:
        keep = [indent + text]
        if re.match(
            r"(raise|assert|import|from|try|except|else|finally|with|pass|global|@|cdef (?!.* = ))",
            text,
        ):
            return keep
        if re.search(
            r" is |\bNULL\b.*\bNULL\b|isinstance|prange|prefetch\w*\(|\.table\[|^name, |f\"", text
        ):
            return keep
        if m := re.match(r"(if|elif|while) (.*):$", text):
            if m[2].startswith("floating is") or m[2].startswith("real is"):
                return keep
            return [f"{indent}{m[1]} {self.condition(m[2], where)}:"]
        if m := re.match(r"for (\w+) in range\((.*)\):$", text):
            parts = parts_of(m[2])
            start, stop, *by = parts if len(parts) > 1 else ["0", *parts]
            by = "".join(f", {step}" for step in by)
            later = self.add(where, text, f"for {m[1]} in range({start} + 1, {stop}{by}):")
            shorter = self.add(where, text, f"for {m[1]} in range({start}, {stop} - 1{by}):")
            return [f"{indent}for {m[1]} in range({start} + 1 if MUTANT == {later} else {start}, "
                    f"{stop} - 1 if MUTANT == {shorter} else {stop}{by}):"]  # fmt: skip
        if text.startswith("for "):
            return keep
        if re.search(r"\] \w+ = \[", text):  # C has no conditional expressions of arrays
            return keep
        if m := re.match(r"(cdef .*?) = (.*)$", text):
            # Several in one line: `cdef double a = c[0], b = c[1]`.
            values = []
            parts = parts_of(m[2])
            for part in parts:
                name, _, value = part.rpartition(" = ")
                known = re.fullmatch(r"\w+", part) and len(parts) > 1
                name = name or m[1].split()[-1].lstrip("*")
                lead = part[: len(part) - len(value)]
                values.append(part if known else lead + self.choose(value, where, name))
            return [f"{indent}{m[1]} = {', '.join(values)}"]
        changed = variants(text)
        if not re.match(r"return\b", text):
            changed.append("pass")
        lines = []
        for k, after in enumerate(changed):
            number = self.add(where, text, after)
            lines += [
                f"{indent}{'elif' if k else 'if'} MUTANT == {number}:",
                f"{indent}    {after}",
            ]
        return [*lines, f"{indent}else:", f"{indent}    {text}"] if changed else keep

    # ------------------------------------------------------------------------------------------ C

    def rewrite_c(self, file: str, source: str) -> str:
        """The same of inline functions of declarations, with values, and returns."""
        blank = re.sub(
            r"/\*(?:.|\n)*?\*/", lambda m: re.sub(r"[^\n]", " ", m[0]), source
        )  # comments
        out, at = [], 0
        for m in re.finditer(
            r"^static inline [^{}]*?\b(\w+)\([^{}]*\)\s*\{([^{}]*)\}", blank, re.M
        ):
            function, start = m[1], m.start(2)
            out += [blank[at:start], f" fastgd_ran[{self.number_of(file, function)}] = 1;"]
            at = m.end(2)
            for text in re.findall(r"[^;]*;|[^;]+$", m[2]):
                line = blank[: start + len(text) - len(text.lstrip())].count("\n") + 1
                start += len(text)
                out.append(self.c_statement(text, (file, line, function)))
        return "".join([*out, blank[at:]])

    def c_statement(self, text: str, where: tuple[str, int, str]) -> str:
        def choose(name: str, value: str) -> str:
            value = re.sub(r"\s+", " ", value.strip())
            return self.choose(value, where, name, "(fastgd_mutant == {0} ? ({1}) : ({2}))".format)

        if m := re.fullmatch(r"(\s*(?:if \([^;]*\)\s*)?return )([^;]*);", text):
            return f"{m[1]}{choose('return', m[2])};"
        if m := re.fullmatch(r"(\s*(?:const )?\w+ )(\w+ = [^;]*);", text):
            parts = re.split(r", (?=\w+ = )", m[2])
            values = [part.partition(" = ") for part in parts]
            return m[1] + ", ".join(f"{n} = {choose(n, v)}" for n, _, v in values) + ";"
        if m := re.fullmatch(r"(\s*(\w+) = )([^;]*);", text):
            return f"{m[1]}{choose(m[2], m[3])};"
        return text
