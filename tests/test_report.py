"""The report in a real browser, from the file system, with the network cut."""

from __future__ import annotations

import io
import json
import re
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from made import executed, png, printed, shown, stamp
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from PIL import Image

from delib.files import write_json
from delib.suite.explorer import Explorer, Frame
from delib.suite.report import compile_report, duration, publish_reference

WIDGET = "application/vnd.jupyter.widget-view+json"


CLAIMS = """
[[claim]]
source = "project"
text = "Good"
on = "toy"
metric = "01_toy:toy.accuracy"
at_least = 0.9
[[claim]]
source = "project"
text = "Perfect"
metric = "01_toy:toy.accuracy"
at_least = 0.99
[[claim]]
source = "paper"
text = "Later"
"""


def figure_of(*shades: int) -> Any:
    """A cell with an explorer over planes of these shades, the first at 0%."""
    frames = [Frame(f"{s}%", png(s), f"A plane of shade {s}") for s in (0, *shades)]
    return shown({"text/html": Explorer(frames, "Shades")._repr_html_()})


@pytest.fixture
def report(project: Any) -> Path:
    """A report of two notebooks that hold everything a notebook may show."""
    frames = [Frame(f"{s}%", png(s), f"A plane of shade {s}") for s in (0, 90)]
    image = f'<img alt="A small plane" width="20" src="data:image/png;base64,{b64encode(png()).decode()}">'
    executed(
        project,
        "00_first",
        new_markdown_cell(
            "## One step\n\nInline $\\tau^2$ and\n\n$$L = \\sum_i \\frac{a_i}{b}$$\n\nSee [toy](01_toy.ipynb)."
        ),
        shown({"text/html": image, "text/plain": "[figure]"}),
        shown(
            {"text/html": "<table><thead><tr><th></th><th>wide</th></tr></thead><tr><th>a</th><td>1</td></tr></table>"}
        ),
        new_markdown_cell("## Another step"),
        shown(
            {"text/html": Explorer(frames, "Shades")._repr_html_(), WIDGET: {"model_id": "x"}, "text/plain": "VBox()"}
        ),
        new_code_cell("print(1 < 2)", outputs=[printed("one\n"), printed("two\n"), printed("careful", "stderr")]),
        title="First & `foremost`",
    )
    executed(
        project,
        "01_toy",
        new_code_cell(
            'run.add("toy", accuracy=0.97)  # toy.accuracy', outputs=[new_output("execute_result", {"text/plain": "2"})]
        ),
    )
    (project.root / "reports" / "claims.toml").write_text(CLAIMS)
    return compile_report("quick")


def test_the_index_opens_offline_and_holds_the_claims_against_the_records(browser: Any, report: Path) -> None:
    visit = browser.open(report)
    rows = visit.page.locator(".claims tbody tr:not(.group)").all_inner_texts()
    cells = [re.split(r"\t|\n", row.strip()) for row in rows]
    verdicts = {row[0]: row[-1].strip() for row in cells}
    assert verdicts == {
        "Later": "– not measured in this profile",
        "Good": "✓ reached",
        "Perfect": "✗ not reached",
    }
    assert "97.00%" in next(row for row in rows if row.startswith("Perfect")), "the measured number stands there too"
    tally = visit.page.locator(".tally").inner_text()
    assert re.findall(r"\d+ [a-z ]+", tally) == ["1 reached", "1 not reached", "1 not measured in this profile"]
    assert visit.images_without_alt() == visit.broken_images() == 0
    assert visit.requests == visit.complaints == []


def test_the_index_leads_to_every_page_and_pages_to_each_other(browser: Any, report: Path) -> None:
    visit = browser.open(report)
    page = visit.page
    assert page.locator(".card h3").all_inner_texts() == ["First & foremost", "A toy"]
    page.get_by_role("heading", name="First & foremost").get_by_role("link").click()
    assert page.url.endswith("/00_first.html")
    page.get_by_role("link", name="Next → A toy").click()
    assert page.url.endswith("/01_toy.html")
    page.get_by_role("link", name="Previous").click()
    assert page.url.endswith("/00_first.html")
    page.get_by_role("link", name="Directed Evolution", exact=True).click()
    assert page.url.endswith("/index.html")
    page.goto(report.with_name("00_first.html").as_uri())
    page.get_by_role("link", name="toy", exact=True).click()
    assert page.url.endswith("/01_toy.html"), "links between notebooks lead to pages"
    assert visit.requests == visit.complaints == []


def test_a_notebook_s_page_shows_formulas_pictures_and_a_slider_that_moves(browser: Any, report: Path) -> None:
    visit = browser.open(report.with_name("00_first.html"))
    page = visit.page
    assert page.locator("math").count() == 3
    assert page.locator("math[display=block] mfrac").count() == 1
    assert "$" not in page.locator("main").inner_text()
    assert page.locator('img[alt="A small plane"]').is_visible()
    assert "VBox" not in page.content()
    slider = page.get_by_role("slider", name="Sparsity")
    picture = page.locator(".delib-explorer img:visible")
    assert picture.get_attribute("alt") == "A plane of shade 0"
    for key, spoken in (("ArrowRight", "90%"), ("Home", "0%"), ("End", "90%")):
        slider.press(key)
        assert slider.get_attribute("aria-valuetext") == spoken
    assert picture.get_attribute("alt") == "A plane of shade 90"
    assert page.locator("output").inner_text() == "90%"
    assert page.locator("pre.stream.stdout").all_inner_texts() == ["one\ntwo"]
    assert page.locator("pre.stream.stderr").all_inner_texts() == ["careful"]
    assert visit.images_without_alt() == visit.broken_images() == 0
    assert visit.requests == visit.complaints == []


def test_code_is_folded_until_it_is_wanted_and_the_choice_is_remembered(browser: Any, report: Path) -> None:
    page = browser.open(report.with_name("00_first.html")).page
    code, button = page.locator("details.code pre"), page.get_by_role("button", name="Show code")
    assert not code.first.is_visible()
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    assert code.first.is_visible()
    page.get_by_role("link", name="Next").click()
    assert page.locator("details.code pre").first.is_visible(), "remembered on the next page"
    page.get_by_role("button", name="Show code").click()
    page.reload()
    assert not page.locator("details.code pre").first.is_visible()


def test_code_opens_where_the_browser_stores_nothing(browser: Any, report: Path) -> None:
    path = report.with_name("00_first.html")
    refusing = "<head><script>Object.defineProperty(window, 'localStorage', {get() { throw Error('no') }})</script>"
    path.write_text(path.read_text().replace("<head>", refusing, 1))
    visit = browser.open(path)
    visit.page.get_by_role("button", name="Show code").click()
    assert visit.page.locator("details.code pre").first.is_visible()
    assert visit.complaints == []


def test_without_scripts_all_sections_and_code_can_be_reached(browser: Any, report: Path) -> None:
    page = browser.open(report.with_name("00_first.html"), scripts=False).page
    assert page.get_by_role("heading", name="Another step").is_visible()
    page.locator("details.code summary").first.click()
    assert page.locator("details.code pre").first.is_visible()


def test_the_contents_lead_to_the_sections_and_mark_the_present_one(browser: Any, report: Path) -> None:
    page = browser.open(report.with_name("00_first.html")).page
    page.set_viewport_size({"width": 1280, "height": 500})
    contents = page.get_by_role("navigation", name="Sections of this notebook").get_by_role("link")
    assert contents.all_inner_texts() == ["One step", "Another step"]
    contents.last.press("Enter")
    assert page.locator(":target").inner_text() == "Another step"
    page.wait_for_selector(".contents a[aria-current]:text('Another step')")
    box, text = contents.last.bounding_box(), page.locator("main").bounding_box()
    assert box["x"] >= text["x"] + text["width"], "beside the text"


def test_presenting_shows_one_step_a_screen_and_ends_with_escape(browser: Any, report: Path) -> None:
    visit = browser.open(report.with_name("00_first.html"))
    page = visit.page
    page.keyboard.press("p")
    shown = page.locator(".step:visible")
    assert shown.count() == 1
    assert not page.locator("details.code").first.is_visible()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("heading", level=2).all_inner_texts() == ["One step"]
    assert page.locator(".counter").inner_text().startswith("2 / ")
    page.keyboard.press("End")
    slider = page.get_by_role("slider")
    assert slider.is_visible()
    slider.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "90%", "a slider keeps its arrow keys"
    page.keyboard.press("PageUp")
    assert page.get_by_role("heading", level=2).all_inner_texts() == ["One step"]
    page.keyboard.press("Escape")
    assert shown.count() > 1
    page.get_by_role("button", name="Present").click()
    assert shown.count() == 1
    assert visit.complaints == []


@pytest.mark.parametrize("run", ["page", "presenting"])
def test_an_explorer_fits_the_screen_with_its_slider(browser: Any, project: Any, run: str) -> None:
    buffer = io.BytesIO()
    Image.new("L", (1600, 1600)).save(buffer, "PNG")
    frames = [Frame(f"{s}%", buffer.getvalue(), f"A plane of shade {s}", "A caption") for s in (0, 90)]
    executed(
        project, "00_a", new_markdown_cell("## One"), shown({"text/html": Explorer(frames, "Shades")._repr_html_()})
    )
    page = browser.open(compile_report("quick").with_name("00_a.html")).page
    page.set_viewport_size({"width": 1280, "height": 720})
    if run == "presenting":
        page.keyboard.press("p")
        page.keyboard.press("End")
    else:
        page.locator(".delib-explorer img:visible").evaluate(
            "image => scrollTo(0, image.getBoundingClientRect().top - 60)"
        )
    picture, bar = page.locator(".delib-explorer img:visible").bounding_box(), page.get_by_role("slider").bounding_box()
    assert run == "presenting" or picture["width"] == pytest.approx(picture["height"])
    assert picture["y"] >= 0
    assert bar["y"] + bar["height"] <= 720


def test_the_index_opens_with_teacher_and_student_and_a_slider(browser: Any, report: Path) -> None:
    visit = browser.open(report)
    left, right = visit.page.locator(".hero img:visible").all()
    assert (left.get_attribute("alt"), right.get_attribute("alt")) == ("A plane of shade 0",) * 2
    visit.page.get_by_role("slider", name="Sparsity").press("End")
    assert left.get_attribute("alt") == "A plane of shade 0"
    assert visit.page.locator(".hero img:visible").last.get_attribute("alt") == "A plane of shade 90"
    assert visit.page.locator(".hero output").inner_text() == "90%"
    first = visit.page.locator("main img").first.bounding_box()
    assert first["y"] < 300, "the first picture stands on the first screen"


def test_the_numbers_of_the_index_are_the_shipped_student_s(browser: Any, project: Any, report: Path) -> None:
    metrics = {"sparsity": 0.9002, "compression_ratio": 42.14, "retention_25": 0.9675, "photos_tested": 364}
    alone = {"metrics": metrics | {"retention_25": 1.0}, "ships": False}
    write_json(project.root / "data" / "students" / "of-another-licence.json", alone)
    for name, others in {
        "small": {},
        "smaller": {"compression_ratio": 94.0, "retention_25": 0.9422, "sparsity": 0.95},
        "dense": {"compression_ratio": 20.0, "retention_25": 1.0, "sparsity": 0.8},  # larger than the paper claims
    }.items():
        write_json(project.root / "data" / "students" / f"{name}.json", {"metrics": metrics | others})
    numbers = browser.open(compile_report("quick")).page.locator(".numbers dd").all_inner_texts()
    assert numbers == ["90.0%", "42.1×", "96.8%"]


def test_each_claim_leads_to_the_cell_and_the_record_that_measured_it(browser: Any, report: Path) -> None:
    visit = browser.open(report)
    row = visit.page.locator(".claims tr", has_text="Perfect")
    row.get_by_role("link", name="97.00%").click()
    assert visit.page.url.endswith("01_toy.html#cell-2")
    assert "toy.accuracy" in visit.page.locator(":target").text_content()
    visit.page.go_back()
    visit.page.locator(".claims").get_by_role("link", name="record: 01_toy:toy.accuracy").first.click()
    assert visit.page.locator(":target").inner_text() == "toy.accuracy 0.97"


def test_slides_work_offline_with_their_sliders(browser: Any, project: Any, report: Path) -> None:
    pytest.importorskip("pyreveal")
    notes = new_markdown_cell("Slowly.", metadata={"slideshow": {"slide_type": "notes"}})
    executed(project, "02_talk", new_markdown_cell("## One\n\nSaid."), notes, figure_of(90), title="A talk")
    index = compile_report("quick", slides=True)
    visit = browser.open(index.with_name("02_talk.slides.html"))
    page = visit.page
    page.wait_for_selector(".reveal.ready")
    page.keyboard.press("ArrowRight")
    slide = page.locator(".slides > section.present")
    assert slide.get_by_role("heading", level=2).inner_text() == "One"
    page.keyboard.press("n")
    assert page.locator(".speaker-notes").inner_text().strip() == "Slowly."
    slide.get_by_role("slider").press("End")
    assert slide.locator("img:visible").get_attribute("alt") == "A plane of shade 90"
    assert slide.get_by_role("slider").get_attribute("aria-valuetext") == "90%"
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    assert [rule["id"] for rule in axe.run(page).response["violations"]] == []
    assert visit.requests == visit.complaints == []
    page.goto(index.as_uri())
    page.get_by_role("link", name="Slides of 02_talk").click()
    assert "02_talk.slides.html" in page.url


def test_slides_without_reveal_js_say_what_to_install(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyreveal", None)
    with pytest.raises(ValueError, match=r"slides need reveal\.js; install it with"):
        compile_report("quick", slides=True)


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_axe_finds_nothing(browser: Any, report: Path, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for name in ("index.html", "00_first.html"):
        page = browser.open(report.with_name(name), width=width).page
        page.emulate_media(color_scheme=scheme)
        page.evaluate("document.querySelectorAll('details').forEach((element) => { element.open = true; })")
        assert [(rule["id"], rule["nodes"][0]["html"]) for rule in axe.run(page).response["violations"]] == []


@pytest.mark.parametrize("width", [360, 1280, 1920])
def test_pages_fit_the_screen(browser: Any, report: Path, width: int) -> None:
    for name in ("index.html", "00_first.html"):
        page = browser.open(report.with_name(name), width=width).page
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(browser: Any, report: Path, scheme: str) -> None:
    """WCAG's contrast of at least 4.5, for every colour that text has on the page."""
    for name in ("index.html", "00_first.html"):
        visit = browser.open(report.with_name(name))
        visit.page.emulate_media(color_scheme=scheme)
        contrast, where = visit.page.evaluate(CONTRAST)
        assert contrast >= 4.5, where


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


def test_the_circumstances_of_a_run_are_on_its_page_and_on_the_index(browser: Any, report: Path) -> None:
    page = browser.open(report.with_name("01_toy.html")).page
    page.get_by_text("Circumstances of this run: 1 min 15 s, seed 0").click()
    facts = page.locator("dl.facts").inner_text()
    assert "toy.accuracy 0.97" in facts
    assert "torch 2.9" in facts
    assert "abc" in browser.open(report).page.locator("dl.facts").inner_text()


def test_the_browser_refuses_what_a_page_would_load_by_script(browser: Any, project: Any) -> None:
    executed(project, "00_a", shown({"text/html": "<script>fetch('https://example.org/x').catch(() => 0)</script>"}))
    visit = browser.open(compile_report("quick").with_name("00_a.html"))
    assert visit.requests == []
    assert any("Content Security Policy" in complaint for complaint in visit.complaints)


def test_a_failed_notebook_and_a_page_of_one_that_is_gone_are_no_part(project: Any, report: Path) -> None:
    folder = project.reports / "quick"
    (folder / "notebooks" / "00_first.ipynb").rename(folder / "notebooks" / "00_first.failed.ipynb")
    for left in folder.glob("records/00_first.*"):
        left.unlink()
    compile_report("quick")
    assert sorted(path.name for path in folder.glob("*.html")) == ["01_toy.html", "index.html"]


def test_without_a_run_the_command_that_makes_one_is_named(project: Any) -> None:
    with pytest.raises(
        ValueError, match=r"quick holds no executed notebook; make it with `delib report --profile quick`"
    ):
        compile_report("quick")


@pytest.mark.parametrize("broken", ["", "{", '{"nbformat": 4, "cells": [{"source": "x"}]}', '{"nbformat": 4}'])
def test_a_broken_notebook_is_named_in_one_line(project: Any, report: Path, broken: str) -> None:
    (project.reports / "quick" / "notebooks" / "01_toy.ipynb").write_text(broken)
    stamp(project, "01_toy")
    with pytest.raises(ValueError, match=r"01_toy\.ipynb") as refusal:
        compile_report("quick")
    assert "\n" not in str(refusal.value)


def test_a_broken_output_is_named_in_one_line(project: Any) -> None:
    path = executed(project, "00_a", new_code_cell("1"))
    content = json.loads(path.read_text())
    content["cells"][1]["outputs"] = [{"output_type": "display_data"}]
    path.write_text(json.dumps(content))
    stamp(project, "00_a")
    with pytest.raises(ValueError, match=r"00_a\.ipynb"):
        compile_report("quick")


def test_the_reference_is_the_report_and_its_numbers(project: Any, report: Path) -> None:
    readme = project.root / "README.md"
    readme.write_text("# x\n\n<!-- claims -->\n<!-- /claims -->\n")
    stale = project.reports / "reference" / "99_gone.html"
    stale.parent.mkdir()
    stale.touch()
    index = publish_reference("quick")
    assert index.read_bytes() == report.read_bytes()
    names = sorted(str(path.relative_to(index.parent)) for path in index.parent.rglob("*") if path.is_file())
    assert names == ["00_first.html", "01_toy.html", "index.html", "records/00_first.json", "records/01_toy.json"]
    assert "| Perfect |  | ≥ 99.00% | 97.00% | ✗ **not reached** |" in readme.read_text()


def test_there_is_no_reference_without_a_report(project: Any) -> None:
    with pytest.raises(ValueError, match=r"holds no executed notebook; make it with `delib report --profile quick`"):
        publish_reference("quick")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations_read_as_one_would_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said
