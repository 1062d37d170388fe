"""The code on the pages of docs/ runs; what doesn't is marked, and says why."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.helpers import ROOT
from support.sampling import HOW_MUCH

DOCS = ROOT / "docs"
# What makes a page's blocks: python is shown, the others are run by the build as well.
BLOCK = re.compile(
    r"^(?P<fence>`{3,})(?P<kind>python|\{(?:run|check|picture)\})[^\n]*\n"
    r"(?:(?::\w+:[^\n]*\n)+\n?)?(?P<code>.*?)^(?P=fence)$",
    re.M | re.S,
)
# Libraries that not every run of the tests has.
LIBRARIES = ("torch", "optax", "keras")
# What takes seconds: the imports of others; runs that the build of the site does as well.
SLOW = ("explained/", *(f"coming/{name}" for name in ("optax", "keras", "scikit-learn", "thinc")))


def pages():
    """The pages with code, by their names; the slow ones in whole runs alone."""
    for file in sorted(DOCS.rglob("*.md")):
        name = file.relative_to(DOCS).as_posix().removesuffix(".md")
        slow = name.startswith(SLOW)
        if (HOW_MUCH == "whole" or not slow) and BLOCK.search(file.read_text()):
            yield pytest.param(file, id=name, marks=[pytest.mark.more] if slow else [])


@pytest.mark.parametrize("file", list(pages()))
def test_code_runs(file, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    text = file.read_text()
    for library in LIBRARIES:
        wanted = re.search(rf"^\s*import .*\b{library}\b", text, re.M)
        if wanted and find_spec(library) is None:  # no import: keras is told of its backend first
            pytest.skip(f"{library} is not installed")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": file.stem}
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start("code"))
        exec(compile("\n" * line + block["code"], str(file), "exec"), names)


def test_a_chart_and_a_table_for_each_machine(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    import readme_table

    (file, *_) = sorted(readme_table.RESULTS.glob("*.json"))
    known = json.loads(file.read_text())
    for k in range(3):
        for row in known["rows"]:
            row["seconds"] |= {"NumPy": row["seconds"]["NumPy"] * 10}
        result = json.dumps(known | {"machine": f"machine {k}"})
        (tmp_path / f"{k}.json").write_text(result)
    monkeypatch.setattr(readme_table, "RESULTS", tmp_path)
    names: dict[str, object] = {}
    (block,) = BLOCK.finditer((DOCS / "performance" / "index.md").read_text())
    exec(block["code"], names)
    axes = [one.axes[0] for one in names["figure"]]
    assert [one.get_title() for one in axes] == [f"machine {k}" for k in range(3)]
    assert len({one.get_ylim() for one in axes}) == 1
    assert axes[2].lines[0].get_label() == "fastgd, gradients in new memory"


def test_what_does_not_run_says_why():
    for file in DOCS.rglob("*.md"):
        for block in re.finditer(r"(?P<before>.*)\n```\{code-block\} python", file.read_text()):
            assert block["before"].startswith("% not run: "), file


def test_pictures_have_words():
    """Images without any would be silent to those who don't see them."""
    for file in [ROOT / "README.md", *DOCS.rglob("*.md"), *(ROOT / "bench").glob("*.md")]:
        text = file.read_text()
        assert not re.findall(r"!\[\s*\]\(", text), file
        for words in re.findall(r"^```\{picture\}(.*)$", text, re.M):
            assert len(words.split()) > 5, f"{file}: {words}"


def links(file: Path):
    """The links of a document to files, without those within code."""
    text = re.sub(r"^(`{3,}).*?^\1$", "", file.read_text(), flags=re.M | re.S)
    text = re.sub(r"`[^`\n]*`", "", text)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            yield target.partition("#")[0]


def test_links_lead_somewhere():
    written = DOCS / "reference" / "optimizers"  # by the build of the site, one for each optimizer
    documents = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "bench").glob("*.md")]
    seen = 0
    for file in documents:
        for target in links(file):
            at = (DOCS / target[1:]) if target.startswith("/") else file.parent / target
            seen += 1
            assert at.exists() or at.resolve().parent == written, f"{file}: {target}"
    assert seen > 50
