"""``make release``: whether everything is as a release wants it; publishes nothing.

First what takes no time: version, changelog, citation, the promises to compiled callers, a clean
checkout.  If that is well, documentation, sdist and wheel are built and checked.  What is left is
said at the end.
"""

from __future__ import annotations

import re
import subprocess
import sys
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
        wrong.append(f"CHANGELOG.md: expected '## {now} (YYYY-MM-DD)' first, found '## {newest}'")
    cited = found(r"^version: (.+)$", top / "CITATION.cff")
    if cited != now:
        wrong.append(f"CITATION.cff: expected version {now}, found {cited}")
    return wrong


def promised(top: Path) -> list[str]:
    """Functions of the built header that compiled callers were not promised yet."""
    header = top / "fastgd" / "include" / "fastgd.h"
    if not header.exists():
        return ["fastgd/include/fastgd.h: not there: make build"]
    abi = found(r"^#define FASTGD_ABI_VERSION (\d+)$", header)
    lines = (top / "tests" / f"abi_{abi}.txt").read_text(encoding="utf-8")
    known = set(re.findall(r"^(fastgd_\w+)\(", lines, re.M))
    there = set(re.findall(r"^FASTGD_FUNCTION \w+ (fastgd_\w+);$", header.read_text("utf-8"), re.M))
    missing = sorted(there - known)
    return [f"tests/abi_{abi}.txt: lacks {', '.join(missing)}"] if missing else []


def unclean(top: Path) -> list[str]:
    """What git says that a tag would not have."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=top, check=True, capture_output=True, text=True
        ).stdout.strip()

    wrong = []
    if changes := git("status", "--porcelain"):
        wrong.append(f"the checkout has changes that are not committed:\n{changes}")
    if git("tag", "--list", f"v{version(top)}"):
        wrong.append(f"the tag v{version(top)} is taken: raise the version")
    return wrong


def main() -> int:
    """Check all; returns the exit status."""
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
