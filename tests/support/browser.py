"""Debian's Chromium, without a window or the network, for tests that look at pages."""

from __future__ import annotations

import shutil

import pytest


def chromium(tmp_path_factory):
    """Start it, and end it afterwards; a module makes its fixture `browser` of this."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("chromium and chromium-driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
        "disable-background-networking", "disable-component-update", "disable-dev-shm-usage",
        "host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    running = webdriver.Chrome(options=options, service=Service(driver))
    yield running
    running.quit()


def emulate(browser, width, theme, *, motion=True):
    """Show pages at a width, in a theme, to a reader who likes or doesn't like movement."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 850, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    features = {
        "prefers-color-scheme": theme,
        "prefers-reduced-motion": "no-preference" if motion else "reduce",
    }
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": name, "value": value} for name, value in features.items()]},
    )
