"""What the finished site is held to: every link within it leads somewhere, nothing is fetched from
elsewhere when it is viewed, and images have words.  What is not so is a warning, hence an error.
"""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)
FETCHED = {"script": "src", "img": "src", "link": "href", "source": "srcset", "iframe": "src"}
# Links that say something about the page, without being followed to show it.
SAYING = {"canonical", "next", "prev", "index", "search", "author", "license"}


class Page(HTMLParser):
    """The anchors, links and images of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.fetched: set[str] = set()
        self.silent: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {found[key] or "" for key in ("id", "name") if key in found}
        if tag == "a" and found.get("href"):
            self.links.add(found["href"] or "")
        where = found.get(FETCHED.get(tag, ""))
        if where and not SAYING & set((found.get("rel") or "").split()):
            self.fetched.add(where)
        if tag == "img" and not (found.get("alt") or "").strip():
            self.silent.append(found.get("src") or "")


def check(app: Sphinx, exception: Exception | None) -> None:
    """Look at all pages."""
    if exception or app.builder.format != "html":
        return
    top = Path(app.outdir)
    # Not what an earlier build has left of documents that are gone.
    names = [*app.env.found_docs, "search", "genindex", "_modules/index"]
    files = [file for name in names if (file := top / f"{name}.html").exists()]
    pages = {file: Page(file.read_text(encoding="utf-8")) for file in files}
    for file, page in pages.items():
        name = file.relative_to(top)
        for image in page.silent:
            logger.warning("%s: an image without words: %s", name, image)
        for target in sorted(page.links | page.fetched):
            url = urlsplit(target)
            if url.scheme or url.netloc:
                if target in page.fetched and url.scheme != "data":
                    logger.warning("%s: fetched from elsewhere: %s", name, target)
                continue
            at = (file.parent / unquote(url.path)).resolve() if url.path else file
            if not at.exists():
                logger.warning("%s: leads nowhere: %s", name, target)
            elif at in pages and url.fragment and unquote(url.fragment) not in pages[at].anchors:
                logger.warning("%s: no such place on the page: %s", name, target)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
