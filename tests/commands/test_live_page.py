"""The page of ``race --serve`` in a browser that clicks: collected in whole runs."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from urllib.parse import parse_qs, urlsplit

import pytest
from support.browser import chromium, emulate
from support.helpers import ROOT

pytest.importorskip("PIL.Image", reason="the extra `plot` is not installed")
from fastgd.commands import descents, live
from fastgd.surfaces import SURFACES

BEALE = SURFACES["beale"]
BEGIN = live.answers.begin(BEALE, 120, ["SGD", "Adam"], None)
VIEWS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]

browser = pytest.fixture(scope="module")(chromium)


@pytest.fixture(scope="module")
def address():
    with live.Server(0, BEGIN) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running.address
        running.shutdown()


@pytest.fixture
def page(browser, address):
    """The page, at its beginning, without movement."""
    emulate(browser, 1280, "light", motion=False)
    opened(browser, address)
    yield browser
    assert [m for m in browser.get_log("browser") if m["level"] == "SEVERE"] == []


def opened(browser, address):
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get(address)
    settled(browser)


def settled(browser):
    """Wait until what was asked for is drawn."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 30).until(
        lambda b: b.execute_script("return document.body.getAttribute('aria-busy')") == "false"
    )


def asked(browser):
    """What the page's address says was asked for."""
    return parse_qs(urlsplit(browser.current_url).fragment)


def rates(browser):
    pairs = (text.split(":") for text in asked(browser)["run"])
    return {name: float(rate) for name, rate in pairs}


def pressed(browser, selector, *keys):
    browser.find_element("css selector", selector).send_keys(*keys)
    settled(browser)


def point(browser, name):
    """Where the table says a run is, at the step that is shown."""
    row = browser.find_element("css selector", f'#runs tr[data-name="{name}"]')
    return [float(x) for x in row.get_dom_attribute("data-point").split(",")]


def drawn(browser, name, picture="#map"):
    """The points of a line, in pixels of a picture."""
    line = browser.find_element("css selector", f'{picture} [data-run="{name}"]')
    return [[float(x) for x in at.split(",")] for at in line.get_dom_attribute("points").split()]


def test_a_click_starts_real_steps_there(page):
    from selenium.webdriver import ActionChains

    target = page.find_element("css selector", "#map")
    ActionChains(page).move_to_element_with_offset(target, 60, -40).click().perform()
    settled(page)
    x, y = map(float, asked(page)["start"][0].split(","))
    assert x > 0.3
    assert y > 0.3
    found = rates(page)
    assert list(found) == ["SGD", "heavy ball", "Adam"]
    makers = descents.contestants(["SGD", "Adam"])
    for name, lr in found.items():
        path = descents.descend(makers[name], BEALE, (x, y), 120, lr=lr)
        assert point(page, name) == path[-1].tolist(), "to the bit"
        # And that is where the line ends, seen from where it starts.
        line = drawn(page, name)
        assert len(line) == 121
        frame = page.find_element("css selector", "#map .frame")
        pixels = float(frame.get_dom_attribute("width")) / 9.0
        assert line[-1][0] - line[0][0] == pytest.approx((path[-1][0] - x) * pixels, abs=0.05)
        assert line[0][1] - line[-1][1] == pytest.approx((path[-1][1] - y) * pixels, abs=0.5)
        assert len(drawn(page, name, "#losses")) == 121


def test_a_rate_by_the_keyboard_and_the_same_race_by_its_address(page):
    before = rates(page)
    pressed(page, '[aria-label="learning rate of Adam"]', "\ue012" * 4)  # ←
    after = rates(page)
    assert after["Adam"] == pytest.approx(before["Adam"] * 10**-0.1, rel=1e-3)
    assert after["SGD"] == before["SGD"]
    seen, link = point(page, "Adam"), page.current_url
    path = descents.descend(
        descents.contestants(["Adam"])["Adam"], BEALE, BEALE.start, 120, lr=after["Adam"]
    )
    assert seen == path[-1].tolist()
    opened(page, link)
    assert point(page, "Adam") == seen
    assert rates(page) == after


def test_the_start_by_the_keyboard(page):
    pressed(page, "#map", "\ue014", "\ue015")  # →, ↓
    assert asked(page)["start"] == ["1.09,1.41"]


def test_other_optimizers_and_surfaces(page):
    from selenium.webdriver.support.ui import Select

    page.find_element("css selector", "#catalogue summary").click()
    page.find_element("css selector", 'input[value="Lion"]').click()
    page.find_element("css selector", '[aria-label="Remove SGD"]').click()
    settled(page)
    assert list(rates(page)) == ["heavy ball", "Adam", "Lion"]
    Select(page.find_element("css selector", "#surface")).select_by_value("rosenbrock")
    settled(page)
    assert asked(page)["surface"] == ["rosenbrock"]
    best = descents.tuned(descents.contestants(["Lion"])["Lion"], SURFACES["rosenbrock"], 120)
    assert rates(page)["Lion"] == best.lr
    assert "Lion" in page.find_element("id", "news").get_property("textContent")


def test_steps_are_scrubbed_and_played(page):
    pressed(page, "#step", "\ue011", "\ue014" * 3)  # Home, →
    assert len(drawn(page, "Adam")) == 4
    pressed(page, "#play", " ")
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, 20).until(lambda b: len(drawn(b, "Adam")) > 20)
    pressed(page, "#play", " ")
    stopped = len(drawn(page, "Adam"))
    assert page.find_element("id", "play").text == "Play"
    assert stopped == len(drawn(page, "Adam"))


def test_what_diverges_and_what_is_wrong_are_said(browser, address):
    emulate(browser, 1280, "dark", motion=False)
    opened(browser, f"{address}#surface=rosenbrock&steps=40&run=SGD:5&run=Adam:0.05")
    row = browser.find_element("css selector", '#runs tr[data-name="SGD"]').text
    assert "diverged at step" in row
    assert "∞" in row
    problem = browser.find_element("id", "problem")
    assert not problem.is_displayed()
    assert browser.get_log("browser") == []
    for wrong, said in (
        ("steps=99999&run=SGD", "steps: expected an integer from 1 to 2000, found '99999'"),
        ("run=Adamm", "no optimizer is called 'Adamm'; did you mean Adam?"),
        ("surface=moon&run=SGD", "no surface is called 'moon'"),
        ("start=1&run=SGD", "start: expected 2 numbers with a comma between, found '1'"),
        ("noise=much&run=SGD", "noise: expected a number from 0 up to 10, found 'much'"),
        ("surface=moon", "no surface is called 'moon'"),
        ("steps=few", "steps: expected an integer from 1 to 2000, found 'few'"),
        ("hello", "expected NAME=VALUE"),
    ):
        opened(browser, f"{address}#{wrong}")
        problem = browser.find_element("id", "problem")
        assert said in problem.text
        assert problem.is_displayed()
        assert rates(browser).keys() == {"SGD", "heavy ball", "Adam"}, "the page's own race"


def test_a_link_without_optimizers_is_to_the_usual_ones(browser, address):
    opened(browser, f"{address}#surface=himmelblau&tolerance=0.2")
    assert asked(browser)["surface"] == ["himmelblau"]
    assert asked(browser)["tolerance"] == ["0.2"]
    assert "within 0.2 of a minimum" in browser.find_element("id", "meaning").text
    assert list(rates(browser)) == ["SGD", "heavy ball", "Adam"]


def test_what_never_arrives_and_what_the_lines_are(browser, address):
    opened(browser, f"{address}#steps=5&run=SGD:0.0001&run=Adam:0.1")
    cells = browser.find_elements("css selector", "#runs td:nth-child(4)")
    assert [cell.text for cell in cells] == ["not in 5 steps"] * 2
    names = browser.find_elements("css selector", "#legend li")
    assert [name.text for name in names] == ["SGD", "Adam"]


@pytest.mark.parametrize(("field", "stays"), [("start-y", "1.5"), ("steps", "120")])
def test_a_field_without_a_number_is_refused(page, field, stays):
    before = page.current_url
    pressed(page, f"#{field}", "\ue009a\ue000", "\ue003", "\ue006")  # all, deleted, Enter
    problem = page.find_element("id", "problem")
    assert problem.is_displayed()
    assert re.search(f"expected a number from .*; it stays {stays}", problem.text)
    assert page.find_element("id", field).get_property("value") == stays
    assert page.current_url == before


@pytest.mark.parametrize(("width", "theme"), VIEWS)
def test_it_fits_and_has_words_for_every_control(browser, address, width, theme):
    emulate(browser, width, theme, motion=False)
    opened(browser, address)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    # On what is wide enough for both pictures, they, the legend and the playback are in sight.
    where = "return document.querySelector('#transport').getBoundingClientRect().bottom"
    assert width < 760 or browser.execute_script(where) <= 850
    nameless = browser.execute_script(
        "return [...document.querySelectorAll('input, select, button, svg[tabindex]')].filter(e =>"
        "!(e.labels?.length || e.ariaLabel || e.getAttribute('aria-labelledby') || e.textContent.trim()))"
        ".map(e => e.outerHTML)"
    )
    assert nameless == []
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 25, 30)"}[theme]
    assert [m for m in browser.get_log("browser") if m["level"] == "SEVERE"] == []


def test_ctrl_c_ends_it():
    process = subprocess.Popen(
        [sys.executable, "-m", "fastgd", "race", "--serve", "--port", "0"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    line = process.stdout.readline()
    assert re.fullmatch(r"The race is at http://127\.0\.0\.1:\d+/  \(Ctrl-C ends it\)\n", line)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out.strip(), err) == (0, "Ended; nothing was written.", "")
