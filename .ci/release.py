"""``make release``: whether everything is as a release wants it; publishes nothing.

First what takes no time: version, changelog, citation, the promises to compiled callers, a clean
checkout; each problem is said with what mends it.  If that is well, documentation, sdist and wheel
are built and checked.  What is left is said at the end.

``python .ci/release.py --promise`` adds the functions that are new since the last release to the
promises, `tests/abi_1.txt`; lines that are there it leaves alone.
"""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import date
from pathlib import Path

TOP = Path(__file__).parents[1]


def found(pattern: str, file: Path) -> str:
    """The first group of a pattern in a file, or an empty string."""
    match = re.search(pattern, file.read_text(encoding="utf-8"), re.M)
    return match[1] if match else ""


def version(top: Path) -> str:
    return found(r'^__version__ = "(.+)"$', top / "fastgd" / "_version.py")


def problems(top: Path) -> list[str]:
    """What documents say that a release can't be made with."""
    wrong, now = [], version(top)
    if not re.fullmatch(r"\d+\.\d+\.\d+", now):
        wrong.append(f"fastgd/_version.py: expected a version such as 1.2.3, found {now!r}")
    newest = found(r"^## (.+)$", top / "CHANGELOG.md")
    if not re.fullmatch(rf"{re.escape(now)} \(\d{{4}}-\d\d-\d\d\)", newest):
        wanted = f"{now} ({date.today()})"
        wrong.append(
            f"CHANGELOG.md: expected '## {now} (YYYY-MM-DD)' first, found '## {newest}'; "
            f"to cut it,\n    sed -i 's/^## {newest}$/## {wanted}/' CHANGELOG.md && "
            f"git commit -m 'Release {now}' -a"
        )
    cited = found(r"^version: (.+)$", top / "CITATION.cff")
    if cited != now:
        wrong.append(f"CITATION.cff: expected version {now}, found {cited}")
    return wrong


def header_of(top: Path) -> Path:
    return top / "fastgd" / "include" / "fastgd.h"


def promises(top: Path) -> Path:
    """The file of the functions that compiled callers may rely on, a prototype a line."""
    return top / "tests" / f"abi_{found(r'^#define FASTGD_ABI_VERSION (.+)$', header_of(top))}.txt"


def prototypes(top: Path) -> dict[str, str]:
    """The functions of the built header by their names, as lines of the promises."""
    text = header_of(top).read_text(encoding="utf-8")
    drawn = re.findall(r"^typedef void \(\*(fastgd_\w+)_t\)\(([^)]*)\);", text, re.M)
    return {name: f"{name}({' '.join(arguments.split())})" for name, arguments in drawn}


def promised(top: Path) -> list[str]:
    """Where the built header and what compiled callers were promised differ."""
    if not header_of(top).exists():
        return ["fastgd/include/fastgd.h: not there: make build"]
    file, there = promises(top), prototypes(top)
    known = file.read_text(encoding="utf-8").splitlines()
    name = file.relative_to(top).as_posix()
    wrong = []
    if broken := [line for line in known if line not in there.values()]:
        wrong.append(
            f"{name}: no longer so: {', '.join(line.partition('(')[0] for line in broken)}; "
            "raise FASTGD_ABI_VERSION, if these were ever released"
        )
    if missing := sorted(set(there.values()) - set(known)):
        few = ", ".join(line.partition("(")[0] for line in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        wrong.append(f"{name}: lacks {few}{more}; to add them: python .ci/release.py --promise")
    return wrong


def promise(top: Path) -> int:
    """Add the functions that are new to the promises, in the header's order; returns how many."""
    file = promises(top)
    text = file.read_text(encoding="utf-8")
    new = [line for line in prototypes(top).values() if line not in text.splitlines()]
    file.write_text(text + "".join(f"{line}\n" for line in new), encoding="utf-8")
    return len(new)


def unclean(top: Path) -> list[str]:
    """What git says that a tag would not have."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=top, check=True, capture_output=True, text=True
        ).stdout.rstrip()

    wrong = []
    if changes := git("status", "--porcelain"):
        wrong.append(f"the checkout has changes that are not committed:\n{changes}")
    if git("tag", "--list", f"v{version(top)}"):
        wrong.append(f"the tag v{version(top)} is taken: raise the version")
    return wrong


def main() -> int:
    """Check all; returns the exit status."""
    if sys.argv[1:] == ["--promise"]:
        print(f"{promises(TOP).relative_to(TOP)}: {promise(TOP)} functions added")
        return 0
    wrong = [*problems(TOP), *promised(TOP), *unclean(TOP)]
    for line in wrong:
        print(line)
    if wrong:
        return 1
    for command in (
        "make lint docs wheels",
        f"{sys.executable} -m build --sdist",
        f"{sys.executable} -m twine check --strict dist/*",
    ):
        print("==", command, flush=True)
        if subprocess.run(command, shell=True, cwd=TOP, check=False).returncode:
            print(f"{command} failed: nothing is released")
            return 1
    now = version(TOP)
    print(f"""
All is well with {now}, and nothing is published.  If .ci/run is green for this commit:
    git tag -s v{now} -m "fastgd {now}" && git push origin v{now}
The workflow `wheels` then builds for all platforms, and publishes once a maintainer approves.""")
    return 0


if __name__ == "__main__":
    sys.exit(main())
