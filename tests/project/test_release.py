"""What `make release` finds before it builds anything."""

from __future__ import annotations

import shutil
import sys

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
    before = release.promised(tmp_path)
    abi.write_text("".join(line for line in lines if not line.startswith("fastgd_sgd_f32(")))
    (after,) = release.promised(tmp_path)
    assert "fastgd_sgd_f32" in after
    assert not any("fastgd_sgd_f32" in line for line in before)


def test_documents_of_this_checkout_agree(release):
    """But for the date of the release, which comes last."""
    left = [line for line in release.problems(ROOT) if not line.startswith("CHANGELOG.md")]
    assert left == []
