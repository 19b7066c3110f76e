"""The report in a real browser with the network cut, and the claims that stand in it."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import notebook

from delib import claims, pages, report
from delib.records import write_json

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome on PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def view(browser: Any) -> Iterator[Any]:
    """A page without a network; a request beyond the file system, or an error on the page, fails the test."""
    context = browser.new_context()
    context.set_offline(True)
    page = context.new_page()
    strays: list[str] = []
    page.on("request", lambda request: strays.append(request.url))
    page.on("pageerror", lambda error: strays.append(f"error: {error}"))
    page.on("console", lambda message: strays.append(f"{message.type}: {message.text}"))
    page.route(re.compile("^(https?|wss?|ftp):"), lambda route: route.abort())
    yield page
    context.close()
    assert [url for url in strays if not url.startswith(("file:", "data:"))] == []


def open_page(view: Any, compiled: Path, name: str) -> None:
    view.goto((compiled / "reports" / "smoke" / name).as_uri())


# --- In the browser ---------------------------------------------------------------------------------------------


def test_the_slider_moves_by_keyboard_and_changes_picture_words_and_label(view: Any, compiled: Path) -> None:
    open_page(view, compiled, "01_second.html")
    first = view.locator("section", has_text="First explorer")
    slider, picture = first.get_by_role("slider", name="Sparsity"), first.locator("img:visible")
    assert picture.get_attribute("alt") == "A bar at 0"
    source = picture.get_attribute("src")

    slider.focus()
    view.keyboard.press("ArrowRight")
    assert picture.get_attribute("alt") == "A bar at 50"
    assert picture.get_attribute("src") != source
    assert first.locator("figcaption:visible").inner_text() == "caption 50"
    assert first.locator("output").inner_text() == "50%"
    assert slider.get_attribute("aria-valuetext") == "50%"
    view.keyboard.press("End")
    assert picture.get_attribute("alt") == "A bar at 90"
    assert picture.evaluate("image => image.complete && image.naturalWidth > 0")

    second = view.locator("section", has_text="Second explorer").locator("img:visible")
    assert second.get_attribute("alt") == "A bar at 90"
    view.keyboard.press("Home")
    assert picture.get_attribute("alt") == "A bar at 0"
    assert second.get_attribute("alt") == "A bar at 90"


def test_every_picture_has_words_and_is_drawn(view: Any, compiled: Path) -> None:
    for name in ("index.html", "01_second.html"):
        open_page(view, compiled, name)
        images = view.locator("img").all()
        assert images
        for image in images:
            assert image.get_attribute("alt")
            assert image.evaluate("image => image.complete && image.naturalWidth > 0")


def test_code_is_visible_and_one_button_hides_and_shows_all_of_it(view: Any, compiled: Path) -> None:
    open_page(view, compiled, "00_first.html")
    code = view.locator("details.code pre")
    button = view.get_by_role("button", name="Show code")
    count = code.count()
    assert count == 5  # four cells and the values that the profile injected
    assert all(block.is_visible() for block in code.all())
    button.click()
    assert not any(block.is_visible() for block in code.all())
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    assert all(block.is_visible() for block in code.all())


def test_the_index_leads_to_every_notebook_and_from_one_to_the_next(view: Any, compiled: Path) -> None:
    open_page(view, compiled, "index.html")
    view.get_by_role("link", name="The first").click()
    assert view.get_by_role("heading", level=1).inner_text() == "The first"
    view.get_by_role("link", name="The second one →").click()
    assert view.get_by_role("heading", level=1).inner_text() == "The second one"
    view.get_by_role("link", name="← The first").click()
    view.get_by_role("link", name="the second", exact=True).click()
    assert view.url.endswith("01_second.html")
    view.get_by_role("link", name="Index").click()
    assert view.get_by_role("heading", level=1).inner_text() == "Directed Evolution"


def test_formulas_are_mathml(view: Any, compiled: Path) -> None:
    open_page(view, compiled, "00_first.html")
    assert view.locator("math[display=block] mfrac").count() == 1
    assert view.locator("math:not([display=block]) msub").count() == 1
    assert "$" not in view.locator(".prose").first.inner_text()


def test_claims_stand_with_what_was_measured(view: Any, compiled: Path) -> None:
    open_page(view, compiled, "index.html")
    rows = {row.locator("td").first.inner_text(): row.inner_text() for row in view.locator(".claims tr:has(td)").all()}
    assert re.search(r"≥ 85\.00%\s+90\.00%\s+✓ reached", rows["Accurate"])
    assert re.search(r"> 50\.00 points\s+10\.00 points\s+✗ not reached", rows["Far better than magnitude"])
    assert "not measured in this profile" in rows["Not looked at"]
    assert "1 reached" in view.locator(".tally").inner_text()


@pytest.mark.parametrize("width", [360, 1280, 1920])
@pytest.mark.parametrize("name", ["index.html", "00_first.html", "01_second.html"])
def test_no_page_scrolls_sideways(view: Any, compiled: Path, width: int, name: str) -> None:
    view.set_viewport_size({"width": width, "height": 800})
    open_page(view, compiled, name)
    assert view.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(view: Any, compiled: Path, scheme: str) -> None:
    """WCAG's contrast of at least 4.5, for every colour that text has on the page."""
    view.emulate_media(color_scheme=scheme)
    for name in ("index.html", "00_first.html"):
        open_page(view, compiled, name)
        worst = view.evaluate(CONTRAST)
        assert worst[0] >= 4.5, worst


CONTRAST = """() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (!colour.endsWith(", 0)")) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  let worst = [99, ""];
  for (const element of document.querySelectorAll("body *")) {
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
    if (!element.checkVisibility() || element.closest("script, style")) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(ground(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < worst[0]) worst = [contrast, element.outerHTML.slice(0, 120)];
  }
  return worst;
}"""


# --- Without one ------------------------------------------------------------------------------------------------


def executed(tmp_path: Path, *cells: dict[str, Any]) -> Path:
    """An executed notebook with these code cells' outputs."""
    content = json.loads(notebook([("markdown", "# T"), *[("code", "1")] * len(cells)]))
    for cell, output in zip(content["cells"][1:], cells, strict=True):
        cell["outputs"] = [output]
    path = tmp_path / "00_made.ipynb"
    path.write_text(json.dumps(content))
    return path


def output(**data: str) -> dict[str, Any]:
    return {"output_type": "display_data", "metadata": {}, "data": {k.replace("_", "/", 1): v for k, v in data.items()}}


def test_a_page_that_would_load_something_from_elsewhere_is_refused(tmp_path: Path) -> None:
    for loading in (
        '<img alt="x" src="https://example.org/x.png">',
        "<script src='//example.org/x.js'></script>",
        '<link rel="stylesheet" href="style.css">',
    ):
        with pytest.raises(ValueError, match=r"00_made\.ipynb loads .*; embed it"):
            pages.read_page(executed(tmp_path, output(text_html=loading)))
    page = pages.read_page(executed(tmp_path, output(text_html='<a href="https://example.org/">a link</a>')))
    assert "a link" in page.body


def test_a_widget_is_replaced_by_its_html_or_a_note(tmp_path: Path) -> None:
    widget = output(text_plain="IntSlider()", text_html="<b>instead</b>")
    widget["data"][pages.WIDGET] = {"model_id": "1"}
    bare = output(text_plain="IntSlider()")
    bare["data"][pages.WIDGET] = {"model_id": "1"}
    body = pages.read_page(executed(tmp_path, widget, bare)).body
    assert body.count("<b>instead</b>") == 1
    assert body.count("interactive widget stands here") == 1
    assert "IntSlider" not in body


def test_text_is_shown_as_on_a_terminal_and_cannot_become_markup(tmp_path: Path) -> None:
    text = "10%\r100%\n\x1b[31mred\x1b[0m <script>alert(1)</script>\n"
    stream = {"output_type": "stream", "name": "stdout", "text": text}
    body = pages.read_page(executed(tmp_path, stream)).body
    assert "10%\r" not in body
    assert "100%" in body
    assert "ansi-red-fg" in body
    assert "<script>" not in body


@pytest.mark.parametrize("latex", [r"\frac", r"a_", r"\nosuch{x}", r"\begin{aligned}a&=b\end{aligned}"])
def test_an_unreadable_formula_is_shown_as_its_source(latex: str) -> None:
    assert pages.mathml(latex, "inline") == f'<code class="latex">{html.escape(latex)}</code>'


def test_a_report_without_executed_notebooks_says_how_to_make_one(project: Path) -> None:
    with pytest.raises(ValueError, match="delib report --profile smoke"):
        report.compile_report("smoke")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (3599.6, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_durations_read_as_they_are_said(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('text = "t"\nsource = "me"', "source must be one of"),
        ('text = "t"\nsource = "paper"\nmetric = "a:b.c"', "exactly one of at_least, above, at_most"),
        ('text = "t"\nsource = "paper"\nmetric = "a:b.c"\nat_least = 1\nat_most = 2', "exactly one of"),
        ('text = "t"\nsource = "paper"\nmertic = "a:b.c"', "unknown key 'mertic'"),
        ('text = "t"\nsource = "paper"\nunit = "furlongs"', "unit one of"),
    ],
)
def test_a_malformed_claim_is_named(project: Path, entry: str, message: str) -> None:
    claims.claims_path().write_text(f"[[claim]]\n{entry}\n")
    with pytest.raises(ValueError, match=message):
        claims.read_claims("smoke")


def test_publishing_the_reference_takes_pages_and_records_and_renews_the_readme(
    compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    shutil.copytree(compiled, home)
    monkeypatch.setenv("DELIB_HOME", str(home))
    write_json(home / "reports" / "reference" / "records" / "99_gone.json", {"metrics": {}})
    report.publish_reference("smoke")
    taken = {
        str(path.relative_to(home / "reports" / "reference")) for path in (home / "reports/reference").rglob("*.*")
    }
    assert taken == {
        "index.html",
        "00_first.html",
        "01_second.html",
        "records/00_first.json",
        "records/01_second.json",
    }
    readme = (home / "README.md").read_text()
    assert "| Accurate |  | ≥ 85.00% | 90.00% | ✓ reached |" in readme
    assert "✗ **not reached**" in readme
    assert readme.startswith("# Title\n")
    assert readme.endswith("The end.\n")
    assert claims.with_table(readme, claims.read_claims("reference")) == readme
