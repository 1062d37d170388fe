"""``python -m fastgd gallery``: rendered once, and its page opened in a real browser."""

from __future__ import annotations

import contextlib
import errno
import html
import io
import os
import re
import stat

import numpy as np
import pytest
from support.browser import chromium, emulate
from support.helpers import run_python
from support.workers import made_once

from fastgd.__main__ import main

plot = pytest.importorskip("fastgd.plot", reason="the extra `plot` is not installed")
from fastgd.commands import output
from fastgd.commands.figures import PICTURES
from fastgd.commands.page import PIXELS_PER_INCH

NAMES = ["curves", "noise", "averages", "depth", "valley", "rates", "saddle", "digits",
         "families"]  # fmt: skip
WIDTHS = (390, 1280)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """The folder of a gallery, and what the command printed."""

    def render(folder):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            assert main(["gallery", "--output", str(folder / "new" / "folder")]) == 0
        return printed.getvalue()

    folder, printed = made_once(tmp_path_factory, "gallery", render)
    return folder / "new" / "folder", printed


browser = pytest.fixture(scope="module")(chromium)


@pytest.fixture(scope="module", params=[(w, t) for w in WIDTHS for t in ("light", "dark")], ids=str)
def page(request, browser, gallery):
    """The page at a width and in a theme: the browser, and both."""
    width, theme = request.param
    browser.get_log("browser")
    emulate(browser, width, theme)
    browser.get((gallery[0] / "index.html").as_uri())
    return browser, width, theme


def png_size(data):
    return tuple(int.from_bytes(data[k : k + 4]) for k in (16, 20))


def test_what_is_written(gallery):
    folder, printed = gallery
    files = [f"{k:02d}-{name}.png" for k, name in enumerate(NAMES, 1)]
    assert sorted(path.name for path in folder.iterdir()) == [*files, "index.html"]
    for name in files:
        data = (folder / name).read_bytes()
        assert data.startswith(b"\x89PNG")
        width, height = png_size(data)
        assert width >= 1400
        assert height >= 500
    assert f"The gallery is in {folder / 'index.html'}" in printed
    assert printed.count("\n") == 1, "no bar where there is no terminal"


def test_the_page_holds_all_it_needs(gallery):
    text = (gallery[0] / "index.html").read_text()
    assert len(text) < 6_000_000
    assert not re.findall(r'(?:src|srcset|href)="(?!data:|#)[^"]*', text)
    assert "<script" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert [p.name for p in PICTURES] == NAMES == re.findall(r'<section id="(\w+)">', text)
    for picture in PICTURES:
        assert text.count(f'href="#{picture.name}"') == 2
    # No number went missing.
    assert not re.search(
        r"\b(nan|inf|None)\b", re.sub(r"<pre.*?</pre>|data:[^\"]*", "", text, flags=re.S)
    )


def test_the_code_is_what_ran(gallery):
    text = (gallery[0] / "index.html").read_text()
    blocks = re.findall(r"<pre[^>]*><code>(.*?)</code></pre>", text, flags=re.S)
    for picture, block in zip(PICTURES, blocks, strict=True):
        code = html.unescape(re.sub(r"<[^>]+>", "", block))
        assert code.strip() == picture.source.strip()
        assert "def run(" in code


def test_images_load(page):
    browser, _, _ = page
    images = browser.execute_script(
        "return [...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth, "
        "i.clientHeight / i.clientWidth, i.naturalHeight / i.naturalWidth, i.alt, "
        "i.closest('figure').clientWidth])"
    )
    assert len(images) == len(NAMES)
    for complete, natural, shown, ratio, natural_ratio, alt, room in images:
        assert complete
        assert shown <= room
        assert natural >= 1.8 * shown > 0, "sharp on a screen of two pixels a point"
        assert ratio == pytest.approx(natural_ratio, rel=0.01)
        assert len(alt) > 100
        assert re.search(r"\d", alt), "alternative texts say what was measured"


def test_texts_in_pictures_can_be_read(page):
    browser, width, _ = page
    shown = browser.execute_script("return [...document.images].map(i => i.clientWidth)")
    for picture, pixels in zip(PICTURES, shown, strict=True):
        inches = 4.4 * (1 if width < 700 else picture.columns)
        assert pixels <= round(inches * PIXELS_PER_INCH) + 1
        # The smallest texts have 9.5 points of 1/72 inch.
        assert pixels / inches * 9.5 / 72 > 10


def test_the_layout_holds(page):
    browser, width, _ = page
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    outer, inner, scroll = browser.execute_script(
        "const e = document.documentElement; return [innerWidth, e.clientWidth, e.scrollWidth]"
    )
    assert outer == width
    assert inner == scroll, "less what a scroll bar takes, nothing is wider than the page"
    beyond = browser.execute_script(
        "return [...document.querySelectorAll('main *, header *, footer *')].filter(e => "
        "!e.closest('pre > *') && e.getBoundingClientRect().right > document.documentElement.clientWidth).map(e => e.tagName)"
    )
    assert beyond == []
    scrolling = browser.execute_script(
        "return [...document.querySelectorAll('pre')].map(e => [e.scrollWidth, e.clientWidth, "
        "getComputedStyle(e).overflowX])"
    )
    assert all(style == "auto" for _, _, style in scrolling)
    if width == 390:
        assert all(whole > seen for whole, seen, _ in scrolling), "code scrolls, and isn't cut"


def test_links_of_the_contents_lead_somewhere(page):
    browser, _, _ = page
    missing = browser.execute_script(
        "return [...document.querySelectorAll('a')].filter("
        "a => !document.getElementById(a.getAttribute('href').slice(1))).length"
    )
    assert missing == 0


def test_colours(page):
    """Every text has contrast, and the pictures are those of the theme."""
    browser, _, theme = page
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    paper, colours = browser.execute_script(
        "const of = e => getComputedStyle(e).color;"
        "return [getComputedStyle(document.body).backgroundColor, [...new Set("
        "[...document.querySelectorAll('body, h1, h2, p, a, figcaption, summary, code, pre span')]"
        ".filter(e => e.textContent.trim()).map(of))]]"
    )
    expected = plot.THEMES[theme]
    assert rgb(paper) == rgb(expected.paper)
    assert len(colours) > 5, "the code is coloured"
    assert rgb(expected.ink) in [rgb(c) for c in colours]
    for colour in colours:
        assert contrast(rgb(colour), rgb(paper)) >= 4.5, colour
    corners = browser.execute_script(
        "const c = document.createElement('canvas').getContext('2d', {willReadFrequently: true});"
        "return [...document.images].map(i => (c.drawImage(i, 0, 0), "
        "[...c.getImageData(1, 1, 1, 1).data].slice(0, 3)))"
    )
    assert all(tuple(corner) == rgb(expected.paper) for corner in corners)


def test_nothing_is_logged_as_an_error(page):
    browser, _, _ = page
    # Reading it empties the log, to which all tests of this page may have added.
    assert browser.get_log("browser") == []
    fetched = browser.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
        ".filter(name => !name.startsWith('data:'))"
    )
    assert fetched == []


def test_the_browser_does_log_errors(browser, tmp_path):
    (tmp_path / "broken.html").write_text("<img src='missing.png'><script>fail()</script>")
    browser.get((tmp_path / "broken.html").as_uri())
    levels = {entry["level"] for entry in browser.get_log("browser")}
    assert levels == {"SEVERE"}


def rgb(colour):
    """The three numbers of #rrggbb or rgb(r, g, b)."""
    if colour.startswith("#"):
        return tuple(int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return tuple(int(number) for number in re.findall(r"\d+", colour)[:3])


def contrast(a, b):
    """The contrast ratio of two colours, by the Web Content Accessibility Guidelines."""

    def luminance(colour):
        c = np.array(colour) / 255
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return linear @ (0.2126, 0.7152, 0.0722)

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


# ------------------------------------------------------------------------ what goes wrong


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("here first")
    for wrong in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SystemExit) as caught:
            main(["gallery", "--output", str(wrong)])
        assert caught.value.code == 2
        assert f"cannot make the folder '{wrong}'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["gallery", "--output", "/proc"])  # which not even root can write to
    assert "cannot write to the folder '/proc'" in capsys.readouterr().err


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    output.write(path, b"old")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask

    def fail(*args):
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        output.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_without_the_extra():
    for command in ("gallery", "race"):
        code = (
            "import sys; sys.modules['PIL'] = None; sys.modules['matplotlib'] = None\n"
            f"from fastgd.__main__ import main; sys.exit(main(['{command}']))"
        )
        done = run_python(code)
        assert done.returncode == 1
        assert f"`{command}` needs " in done.stderr
        assert "pip install 'fastgd[plot]'" in done.stderr
