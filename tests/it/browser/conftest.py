import json
import os
import shutil
from types import SimpleNamespace

import pytest
from playwright.sync_api import sync_playwright

from window import Window


@pytest.fixture(scope="session")
def stage():
    with open(os.environ["LARDER_STAGE"], encoding="utf-8") as file:
        return json.load(file, object_hook=lambda object: SimpleNamespace(**object))


@pytest.fixture(scope="session")
def a(stage):
    """Returns the first tenant."""
    return stage.tenants[0]


@pytest.fixture(scope="session")
def b(stage):
    """Returns the second tenant."""
    return stage.tenants[1]


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as driver:
        # The sandbox of Chromium refuses root, and the daemon of the test needs root. All pages are our own.
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, stage):
    """Opens windows that are checked and closed at the end of the test."""
    windows = []

    def open(**options):
        windows.append(Window(browser, stage, **options))
        return windows[-1]

    yield open
    for window in windows:
        window.close()
