"""Accessibility, small screens, and screenshots."""

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe

from window import expect, is_not_wider_than_its_window

SIZES = [(360, 740), (1280, 800), (1920, 1080)]


def pages(window, stage, tenant):
    """Opens each page, and yields its name."""
    window.open("/ui/sign-in")
    yield "sign-in"
    window.sign_in(tenant)
    yield "list"
    for name, path in [
        ("cache", f"/ui/caches/{stage.available}"),
        ("failed", f"/ui/caches/{stage.failed}"),
        ("delete", f"/ui/caches/{stage.available}/delete"),
        ("capacity", "/ui/capacity"),
    ]:
        window.open(path)
        yield name
    page = window.open("/ui/create")
    page.get_by_label("Images", exact=True).fill("nginx:1.27\npython:3.13")
    page.get_by_text("It fits.").wait_for()
    yield "create"


def serious(page):
    """Returns the findings of axe that keep someone from using the page."""
    found = Axe().run(page).response["violations"]
    return [
        (each["id"], [(node["target"], node["failureSummary"]) for node in each["nodes"]])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_has_no_serious_finding(visit, stage, a, scheme):
    # axe is a script that the policy of the pages forbids.
    window = visit(color_scheme=scheme, bypass_csp=True)
    for name in pages(window, stage, a):
        assert serious(window.page) == [], name
    page = window.open(Path(stage.report).as_uri())
    expect(page.locator("svg.waterfall")).to_be_visible()
    assert serious(page) == []


@pytest.mark.parametrize("width, height", SIZES)
def test_pages_fit_into_a_window(visit, stage, a, width, height):
    window = visit(viewport={"width": width, "height": height})
    for name in pages(window, stage, a):
        is_not_wider_than_its_window(window.page)
        window.shoot(f"{name}-{width}x{height}")
