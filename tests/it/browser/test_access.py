"""The pages for another tenant, without a mouse, and without a script."""

from window import expect, row

# Elements that the keyboard must reach on each page, in this order.
REACHED = {
    "/ui/": ["Skip to the content", "Caches", "Capacity", "Create", "Sign out", "q", "status", "filter", "by-name", "storefront"],
    "/ui/create": ["Skip to the content", "Create", "name", "images", "size", "days", "Cluster and pull secrets", "Create", "do-plan"],
    "/ui/capacity": ["Skip to the content", "frees", "storefront"],
    "/ui/caches/": ["Skip to the content", "Caches", "do-refresh", "do-delete", "timeline", "images", "layers", "events"],
}

# The element with the focus, and the width of its outline.
FOCUS = """() => {
  const at = document.activeElement, style = getComputedStyle(at);
  const width = style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth);
  return { id: at.id, text: at.innerText?.trim() ?? "", tag: at.tagName, width };
}"""


# Elements that lose the focus when the script replaces the main part, because they have no ID.
LOSERS = """() => {
  const all = document.querySelectorAll("main[data-live] :is(a, button, input, select, textarea, summary, [tabindex])");
  return [...all].filter((e) => !e.id && e.type !== "hidden").map((e) => e.outerHTML);
}"""


def test_caches_of_another_tenant_are_not_visible(visit, stage, a, b):
    window = visit(expected=[404])
    page = window.sign_in(a)
    expect(row(page, "storefront")).to_be_visible()
    expect(page.get_by_text("notebooks")).to_have_count(0)
    for path in [stage.foreign, f"{stage.foreign}?tenant={b.name}", f"{stage.foreign}/delete"]:
        assert page.goto(f"/ui/caches/{path}").status == 404
        expect(page.get_by_role("alert")).to_be_visible()
        expect(page.get_by_text("notebooks")).to_have_count(0)
    other = visit().sign_in(b)
    expect(row(other, "notebooks")).to_be_visible()
    expect(other.get_by_text("storefront")).to_have_count(0)


def test_the_keyboard_reaches_everything_and_its_focus_is_visible(visit, stage, a):
    window = visit()
    page = window.sign_in(a)
    for path, wanted in REACHED.items():
        page.goto(path + (stage.available if path.endswith("caches/") else ""))
        assert page.evaluate(LOSERS) == []
        reached, left = [], list(wanted)
        for _ in range(60):
            page.keyboard.press("Tab")
            focus = page.evaluate(FOCUS)
            if focus["tag"] == "BODY":
                break
            assert focus["width"] >= 2, f"{path}: the focus of {focus} is not visible"
            reached.append(focus["id"] or focus["text"])
            if left and left[0] in (focus["id"], focus["text"]):
                left.pop(0)
        assert left == [], f"{path}: {left} not in {reached}"
    page.goto("/ui/")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_the_pages_work_without_a_script(visit, stage, a):
    window = visit(java_script_enabled=False)
    page = window.sign_in(a)
    expect(row(page, "storefront")).to_contain_text("Available")
    row(page, "storefront").get_by_role("link").click()
    expect(page.locator("svg.waterfall")).to_be_visible()
    page.get_by_role("link", name="Create").click()
    page.get_by_label("Images", exact=True).fill("nginx:1.27")
    page.get_by_role("button", name="Show the plan").click()
    expect(page.get_by_text("It fits.")).to_be_visible()
    expect(page.get_by_label("Images", exact=True)).to_have_value("nginx:1.27")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in", exact=True)).to_be_visible()
