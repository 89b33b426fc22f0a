"""One image cache, from its order to its deletion."""

import re
import time

from window import expect, row


def test_a_cache_from_its_order_to_its_deletion(visit, stage, a):
    window = visit(expected=[401], viewport={"width": 1280, "height": 800})
    page = window.open("/ui/")
    expect(page).to_have_url(re.compile("/ui/sign-in$"))
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Sign in").first.click()
    expect(page.get_by_role("alert")).to_contain_text("is not valid")
    window.sign_in(a)
    order(page, stage)
    watch(window, page, stage)
    waterfall(window, page, stage)
    delete(page)


def order(page, stage):
    """Fills the form, whose plan appears while one types."""
    page.get_by_role("navigation").get_by_role("link", name="Create").click()
    page.get_by_label("Name", exact=True).fill("checkout")
    page.get_by_label("Images", exact=True).press_sequentially(stage.slow)
    plan = page.get_by_role("region", name="Plan", exact=True)
    expect(plan).to_contain_text("It fits.")
    expect(plan.get_by_role("row")).to_have_count(2)
    expect(plan).to_contain_text("Already here")
    page.get_by_role("button", name="Create").click()
    page.wait_for_url("**/ui/caches/*")


def watch(window, page, stage):
    """Watches the progress in the list and on the page of the cache, neither of which is loaded again."""
    caches = window.context.new_page()
    caches.goto("/ui/")
    for each in [page, caches]:
        each.evaluate("document.body.dataset.loaded = 'once'")
    page.locator("#do-delete").focus()
    seen, deadline, is_shot = [], time.monotonic() + 60, False
    while "Available" not in row(caches, "checkout").inner_text():
        assert time.monotonic() < deadline, seen
        percent = caches.evaluate("document.querySelector('main progress')?.value ?? null")
        if percent is not None and percent not in seen:
            seen.append(percent)
        if percent and percent > 40 and not is_shot:
            window.shoot("list-building", caches)
            is_shot = True
        time.sleep(0.05)
    assert len(seen) > 2 and seen == sorted(seen), seen
    expect(page.get_by_role("heading", name="checkout")).to_contain_text("Available")
    for each in [page, caches]:
        assert each.evaluate("document.body.dataset.loaded") == "once"
    assert page.evaluate("document.activeElement.id") == "do-delete", "an update moves the focus"
    expect(page.get_by_role("status")).to_have_text("checkout is Available")
    caches.close()


def waterfall(window, page, stage):
    """The picture has a row for each layer, the stages, and the critical path."""
    picture = page.locator("svg.waterfall")
    expect(picture).to_be_visible()
    assert picture.locator("text").filter(has_text=re.compile("^[0-9a-f]{12}")).count() == stage.layers
    for part in ["w-resolve", "w-network", "w-unpack", "w-wait", "w-commit", "w-seal", "w-critical"]:
        assert picture.locator(f".{part}").count() > 0, part
    assert "from" in picture.locator(".w-network title").first.text_content()
    expect(page.get_by_role("region", name="Layers").get_by_role("row")).to_have_count(stage.layers + 1)
    page.evaluate("document.activeElement.blur()")
    page.set_viewport_size({"width": 1280, "height": 840})
    window.shoot("cache-built")


def delete(page):
    page.get_by_role("link", name="Delete…").click()
    expect(page.get_by_role("heading")).to_have_text("Delete checkout?")
    page.get_by_role("button", name="Delete").click()
    page.wait_for_url("**/ui/")
    expect(row(page, "checkout")).to_have_count(0, timeout=30_000)


def test_a_failed_build_has_its_reason(visit, stage, a):
    page = visit().sign_in(a)
    expect(row(page, "reports")).to_contain_text("Failed")
    expect(row(page, "reports")).to_contain_text("shop/reports")
    row(page, "reports").get_by_role("link", name="reports").click()
    expect(page.locator(".problem")).to_contain_text("registry.example.com/shop/reports:9")
    expect(page.get_by_role("region", name="Events")).to_contain_text("Failed")
