"""Windows of the browser. A test fails if a page logs an error, or requests anything from another origin."""

import re
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import expect

expect.set_options(timeout=15_000)

# Chromium logs each response with an error status.
STATUS = re.compile(r"Failed to load resource: the server responded with a status of (\d+)")


class Window:
    """A window with its own cookies, and one page. `problems` are the complaints of the browser."""

    def __init__(self, browser, stage, expected=(), **options):
        self.stage = stage
        self.expected = set(expected)
        self.problems = []
        self.context = browser.new_context(base_url=stage.endpoint, **options)
        self.context.set_default_timeout(15_000)
        self.context.on("request", self._request)
        self.context.on("console", self._console)
        self.context.on("weberror", lambda error: self.problems.append(f"exception: {error.error}"))
        self.page = self.context.new_page()

    def _request(self, request):
        address = urlsplit(request.url)
        if address.scheme != "file" and address.netloc != urlsplit(self.stage.endpoint).netloc:
            self.problems.append(f"request to another origin: {request.url}")

    def _console(self, message):
        status = STATUS.match(message.text)
        if not (status and int(status[1]) in self.expected):
            self.problems.append(f"{message.type}: {message.text}")

    def open(self, path):
        self.page.goto(path)
        return self.page

    def sign_in(self, tenant):
        self.open("/ui/sign-in")
        form = self.page.locator("form", has_text="With a token")
        form.get_by_label("Token").fill(tenant.token)
        form.get_by_role("button").click()
        self.page.wait_for_url("**/ui/")
        return self.page

    def shoot(self, name, page=None):
        """Takes a screenshot."""
        (page or self.page).screenshot(path=Path(self.stage.screenshots) / f"{name}.png")

    def close(self):
        self.context.close()
        assert not self.problems, self.problems


def row(page, name):
    """Returns the row of a cache in the list."""
    return page.get_by_role("row").filter(has=page.get_by_role("link", name=name, exact=True))


def is_not_wider_than_its_window(page):
    width, room = page.evaluate("[document.scrollingElement.scrollWidth, document.scrollingElement.clientWidth]")
    assert width <= room, f"{page.url}: {width} pixels in a window of {room}"


__all__ = ["Window", "expect", "is_not_wider_than_its_window", "row"]
