"""The site that `make docs` has built, in a browser: both themes, a phone's width, the search.

Collected where there is one, in whole runs.
"""

from __future__ import annotations

import pytest
from support.browser import chromium, emulate
from support.helpers import ROOT

SITE = ROOT / "build" / "site"
FILES = [file for file in sorted(SITE.rglob("*.html")) if file.parent.name != "_static"]
PAGES = [file.relative_to(SITE).as_posix() for file in FILES]
VIEWS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]


browser = pytest.fixture(scope="module")(chromium)


def look(browser, page, width, theme):
    emulate(browser, width, theme)
    browser.get((SITE / page).as_uri())


@pytest.mark.parametrize(("width", "theme"), VIEWS)
def test_pages_fit_and_say_nothing_to_the_console(browser, width, theme):
    assert len(PAGES) > 50
    for page in PAGES:
        look(browser, page, width, theme)
        found = browser.execute_script("return document.documentElement.dataset.theme")
        assert found == theme, page
        shown = browser.execute_script("return document.documentElement.scrollWidth")
        assert shown <= width, f"{page} is {shown} wide"
        assert [m for m in browser.get_log("browser") if m["level"] == "SEVERE"] == [], page


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_of_each_picture_the_one_for_the_theme_is_shown(browser, theme):
    look(browser, "explained/momentum.html", 1280, theme)
    shown = browser.execute_script(
        "return [...document.querySelectorAll('figure.drawn img')]"
        ".filter(i => getComputedStyle(i).display != 'none').map(i => i.className)"
    )
    assert shown
    assert all(f"only-{theme}" in classes for classes in shown)


def test_code_and_captions_are_read_with_ease(browser):
    """As the page's own text is: a contrast of at least 4.5."""
    for theme in ("light", "dark"):
        look(browser, "explained/momentum.html", 1280, theme)
        colours = browser.execute_script(
            "const c = e => getComputedStyle(e);"
            "return [...document.querySelectorAll('figcaption, pre, pre span, p')].map(e => {"
            "let b = e; while (b && c(b).backgroundColor == 'rgba(0, 0, 0, 0)') b = b.parentElement;"
            "return [c(e).color, b ? c(b).backgroundColor : 'rgb(255, 255, 255)', e.textContent]})"
        )
        for ink, paper, text in colours:
            light, dark = sorted(map(luminance, (ink, paper)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) > 4.5, (theme, ink, paper, text[:60])


def luminance(colour):
    """The relative luminance of 'rgb(…)', as WCAG has it."""
    values = [int(float(v)) / 255 for v in colour.partition("(")[2].rstrip(")").split(",")[:3]]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_it_is_searched_offline(browser):
    from selenium.webdriver.support.ui import WebDriverWait

    look(browser, "search.html", 1280, "light")
    browser.get(f"{(SITE / 'search.html').as_uri()}?q=Prodigy")
    count = "return document.querySelectorAll('#search-results li a').length"
    WebDriverWait(browser, 20).until(lambda b: b.execute_script(count) >= 3)
