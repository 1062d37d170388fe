"""What `make release` finds before it builds anything."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from datetime import date

import pytest
from support.helpers import ROOT


@pytest.fixture
def release(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / ".ci")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    import release

    return release


@pytest.fixture
def top(tmp_path):
    """The documents of a release that is ready."""
    for name in ("fastgd/_version.py", "CHANGELOG.md", "CITATION.cff"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "fastgd/_version.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3 (2026-01-31)\n\n- All.\n")
    (tmp_path / "CITATION.cff").write_text("version: 1.2.3\n")
    return tmp_path


def test_a_release_that_is_ready(release, top):
    assert release.problems(top) == []


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("fastgd/_version.py", "1.2.3", "1.2.3.dev0"),
        ("CHANGELOG.md", "(2026-01-31)", "(unreleased)"),
        ("CHANGELOG.md", "1.2.3", "1.2.2"),
        ("CITATION.cff", "1.2.3", "1.2.2"),
    ],
)
def test_what_is_forgotten_is_named(release, top, file, old, new):
    at = top / file
    at.write_text(at.read_text().replace(old, new))
    assert any(line.startswith(f"{file}: expected") for line in release.problems(top))


def test_functions_that_callers_were_not_promised(release, tmp_path):
    for name in ("fastgd/include/fastgd.h", "tests/abi_1.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        shutil.copy(ROOT / name, tmp_path / name)
    abi = tmp_path / "tests/abi_1.txt"
    lines = abi.read_text().splitlines(keepends=True)
    release.promise(tmp_path)
    assert release.promised(tmp_path) == []
    whole = abi.read_text()
    assert whole.startswith("".join(lines)), "what is there stays"
    abi.write_text(whole.replace(lines[0], ""))
    (after,) = release.promised(tmp_path)
    assert "lacks fastgd_sgd_f32; to add them: python .ci/release.py --promise" in after
    assert release.promise(tmp_path) == 1
    assert release.promised(tmp_path) == []


def test_functions_that_are_no_longer_as_they_were_promised(release, tmp_path):
    for name in ("fastgd/include/fastgd.h", "tests/abi_1.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        shutil.copy(ROOT / name, tmp_path / name)
    release.promise(tmp_path)
    header = tmp_path / "fastgd/include/fastgd.h"
    text = header.read_text()
    header.write_text(
        text.replace("(*fastgd_sgd_f32_t)(float *p,", "(*fastgd_sgd_f32_t)(double *p,")
    )
    broken, lacking = release.promised(tmp_path)
    assert "no longer so: fastgd_sgd_f32; raise FASTGD_ABI_VERSION" in broken
    assert "lacks fastgd_sgd_f32" in lacking


def test_how_to_cut_the_changelog_is_said(release, top):
    at = top / "CHANGELOG.md"
    whole = at.read_text()
    at.write_text(whole.replace("(2026-01-31)", "(unreleased)"))
    (line,) = release.problems(top)
    command = re.search(r"sed -i '(.*)' CHANGELOG.md", line)[1]
    subprocess.run(["sed", "-i", command, at], check=True)
    assert release.problems(top) == []
    assert at.read_text() == whole.replace("2026-01-31", str(date.today()))


def test_documents_of_this_checkout_agree(release):
    """But for the date of the release, which comes last."""
    left = [line for line in release.problems(ROOT) if not line.startswith("CHANGELOG.md")]
    assert left == []
