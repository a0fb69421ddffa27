"""A browser for the tests of pages, and what every page must satisfy in it."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service


@contextmanager
def headless_chromium() -> Iterator[webdriver.Chrome]:
    """Chromium without a window; where it is missing the test is skipped, or fails if HTA_REQUIRE_CHROMIUM is set."""
    programs = [shutil.which("chromium"), shutil.which("chromedriver")]
    if None in programs:
        missing = "chromium and chromedriver are not installed"
        pytest.fail(missing) if os.environ.get("HTA_REQUIRE_CHROMIUM") else pytest.skip(missing)
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    arguments = ["--headless=new", "--disable-dev-shm-usage"] + ["--no-sandbox"] * (os.geteuid() == 0)
    for argument in arguments:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(programs[1]))
    try:
        yield driver
    finally:
        driver.quit()


def resize_window(driver, width, height):
    """Set the size of the page, px; a narrow one is that of a phone."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def open_page(driver, path, width=1280, height=900):
    """Open a page from disk at a size, px; what was logged before does not count."""
    resize_window(driver, width, height)
    for kind in ("browser", "performance"):
        driver.get_log(kind)
    driver.get(path.as_uri())


def requested(driver):
    """Addresses requested since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def assert_quiet_and_from_disk(driver, path):
    """Since it was opened the page has logged no error, and requested nothing but files and its own data."""
    assert driver.get_log("browser") == []
    requests = requested(driver)
    assert path.as_uri() in requests
    assert {urlsplit(url).scheme for url in requests} <= {"file", "data"}


def boxes(driver, selector):
    """(left, right, top, bottom) of elements, px."""
    script = (
        "return [...document.querySelectorAll(arguments[0])].map(e => e.getBoundingClientRect())"
        ".map(b => [b.left, b.right, b.top, b.bottom])"
    )
    return driver.execute_script(script, selector)
