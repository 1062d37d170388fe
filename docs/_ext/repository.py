"""Links from pages into the repository, and documents of it that are pages of the site.

On GitHub and in a checkout ``../bench/stream.py`` is a file; on the site it is the file's address
on GitHub, but for the documents in PAGES, which are pages here.  A page that consists of
``{include}`` of one of these shows that document.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path, PurePosixPath
from posixpath import relpath

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

SOURCE = "https://github.com/fastgd/fastgd/blob/main/"
TOP = Path(__file__).parents[2]
sys.path.insert(0, str(TOP / "bench"))
import readme_table

# Documents outside of docs/, by the page that shows them.
PAGES = {
    "bench/RESULTS.md": "performance/results",
    "bench/SWEEP.md": "performance/sweep",
    "bench/TORCH.md": "performance/torch",
    "bench/PEERS.md": "performance/peers",
    "bench/LOW_BITS.md": "performance/low_bits",
    "CHANGELOG.md": "changelog",
    "CONTRIBUTING.md": "contributing",
}
INCLUDE = re.compile(r"^```\{include\} (\S+)\n```$", re.M)
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")


def resolve(folder: str, path: str) -> str:
    """A relative path as one from the top of the repository."""
    parts: list[str] = []
    for part in PurePosixPath(folder, path).parts:
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)


def linked(text: str, folder: str, docname: str) -> str:
    """A document's text, with links as the site needs them on a page."""

    def link(match: re.Match[str]) -> str:
        path, anchor = match[1], match[2] or ""
        at = resolve(folder, path)
        if not (TOP / at).exists():
            return f"{path}{anchor}"  # which Sphinx then warns of
        page = PAGES.get(at)
        if page is None and at.startswith("docs/"):
            page = at.removeprefix("docs/")
            return relpath(page, str(PurePosixPath(docname).parent)) + anchor
        if page is None:
            return f"{SOURCE}{at}{anchor}"
        return f"{relpath(page, str(PurePosixPath(docname).parent))}.md{anchor}"

    return LINK.sub(link, text)


def on_read(app: Sphinx, docname: str, content: list[str]) -> None:
    page = f"docs/{docname}.md"
    if not (TOP / page).exists():
        return  # one that was written by the build

    def include(match: re.Match[str]) -> str:
        at = resolve(str(PurePosixPath(page).parent), match[1])
        app.env.note_dependency(str(TOP / at))
        return linked((TOP / at).read_text(), str(PurePosixPath(at).parent), docname)

    content[0] = linked(content[0], str(PurePosixPath(page).parent), docname)
    content[0] = INCLUDE.sub(include, content[0])


def on_find_source(app: Sphinx, module: str) -> tuple[str, dict[str, object]] | None:
    """The source to show of a module that is compiled: its stubs."""
    stubs = TOP / f"{module.replace('.', '/')}.pyi"
    return (stubs.read_text(), {}) if stubs.exists() else None


class Measured(SphinxDirective):
    """The README's table, for each machine."""

    def run(self) -> list[nodes.Node]:
        every = readme_table.machines().values()
        text = "\n".join(f"{one['machine']}:\n\n{readme_table.table(one)}" for one in every)
        return [nodes.container("", *self.parse_text_to_nodes(text), classes=["wide"])]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", on_read)
    app.connect("viewcode-find-source", on_find_source)
    app.add_directive("measured", Measured)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
