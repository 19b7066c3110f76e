"""The explorer: one set of frames, moved by keyboard in a real browser without a network, and live by a widget."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from delib.suite.choices import Choices
from delib.suite.explorer import Explorer, Frame

SHADES = (0, 90, 180)


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (40, 20), shade).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def frames() -> list[Frame]:
    return [Frame(f"{s}%", picture(s), f"A plane of shade {s}", f"caption {s} < 200 & more") for s in SHADES]


def page_with(folder: Path, *explorers: Explorer) -> Path:
    path = folder / "explorer.html"
    body = "".join(explorer._repr_html_() for explorer in explorers)
    path.write_text(f"<!doctype html><meta charset=utf-8><title>x</title>{body}", encoding="utf-8")
    return path


def state(section: Any) -> dict[str, Any]:
    """What a reader has before them: the one visible picture, its words, the label, and what is read out."""
    shown = section.locator("img:visible")
    assert shown.count() == 1
    return {
        "alt": shown.get_attribute("alt"),
        "caption": section.locator(".caption:visible").inner_text(),
        "label": section.locator("output").inner_text(),
        "spoken": section.locator("input").get_attribute("aria-valuetext"),
        "source": shown.get_attribute("src"),
    }


def test_the_keyboard_moves_picture_words_and_label_offline(browser: Any, tmp_path: Path, frames: list[Frame]) -> None:
    visit = browser.open(page_with(tmp_path, Explorer(frames, "Shades", start=1)))
    section = visit.page.get_by_role("figure", name="Shades")
    first = state(section)
    assert (first["alt"], first["label"], first["spoken"]) == ("A plane of shade 90", "90%", "90%")
    assert first["caption"] == "caption 90 < 200 & more"
    visit.page.get_by_role("slider", name="Sparsity").focus()
    visit.page.keyboard.press("ArrowRight")
    second = state(section)
    assert (second["alt"], second["label"], second["spoken"]) == ("A plane of shade 180", "180%", "180%")
    assert second["source"] != first["source"]
    visit.page.keyboard.press("ArrowRight")
    assert state(section) == second, "the last frame is the end"
    visit.page.keyboard.press("Home")
    assert state(section)["label"] == "0%"
    assert visit.broken_images() == 0
    assert visit.requests == []
    assert visit.complaints == []


def test_two_explorers_on_a_page_move_apart(browser: Any, tmp_path: Path, frames: list[Frame]) -> None:
    visit = browser.open(page_with(tmp_path, Explorer(frames, "One"), Explorer(frames, "Two", quantity="Bits")))
    visit.page.get_by_role("slider", name="Bits").press("End")
    assert state(visit.page.get_by_role("figure", name="One"))["label"] == "0%"
    assert state(visit.page.get_by_role("figure", name="Two"))["label"] == "180%"


def test_a_picture_is_shown_at_half_its_pixels(browser: Any, tmp_path: Path, frames: list[Frame]) -> None:
    visit = browser.open(page_with(tmp_path, Explorer(frames, "Shades")))
    box = visit.page.locator("img:visible").bounding_box()
    assert (box["width"], box["height"]) == (20, 10)


def test_without_scripts_every_frame_is_there(browser: Any, tmp_path: Path, frames: list[Frame]) -> None:
    page = browser.open(page_with(tmp_path, Explorer(frames, "Shades")), scripts=False).page
    assert page.locator("img:visible").count() == 3


def test_the_browser_of_these_tests_does_notice_requests_and_errors(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text('<title>x</title><img src="http://example.org/x.png"><script>throw Error("oh")</script>')
    visit = browser.open(path)
    assert visit.requests == ["http://example.org/x.png"]
    assert any("oh" in complaint for complaint in visit.complaints)
    assert visit.images_without_alt() == 1
    assert visit.broken_images() == 1


def test_the_widget_shows_the_same_frames(frames: list[Frame]) -> None:
    title, shown, bar = Explorer(frames, "Shades", start=1).widget().children
    play, slider = bar.children
    assert "Shades" in title.value
    assert list(slider._options_labels) == [frame.label for frame in frames]
    assert [part.value for part in shown.children] == [frame.live for frame in frames]
    assert 'alt="A plane of shade 180"' in shown.children[2].value
    assert "caption 180 &lt; 200" in shown.children[2].value
    assert slider.index == shown.selected_index == play.value == 1, "moved in the browser: see test_lab"


@pytest.mark.parametrize("batch", ["1", ""])
def test_a_batch_run_shows_html_and_a_live_notebook_the_widget(
    frames: list[Frame], batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    monkeypatch.setenv("DELIB_BATCH", batch)
    monkeypatch.setattr("IPython.display.display", shown.append)
    Explorer(frames, "Shades").show()
    shown_as = shown[-1]
    assert type(shown_as).__name__ == ("HTML" if batch else "VBox")


def test_what_comes_from_outside_is_escaped(browser: Any, tmp_path: Path) -> None:
    nasty = '"><script>window.harmed = 1</script>'
    visit = browser.open(page_with(tmp_path, Explorer([Frame(nasty, picture(0), nasty, nasty)], nasty, quantity=nasty)))
    assert visit.page.evaluate("window.harmed === undefined")
    assert state(visit.page.locator("figure"))["alt"] == nasty
    assert visit.complaints == []


def test_frames_that_cannot_be_shown_are_refused(frames: list[Frame]) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        Explorer([], "x")
    with pytest.raises(ValueError, match="'50%' has no alt"):
        Explorer([*frames, Frame("50%", picture(1), " ")], "x")
    with pytest.raises(ValueError, match="'50%' is no PNG"):
        Explorer([*frames, Frame("50%", b"\xff\xd8\xff", "a photo")], "x")
    for start in (-1, 3):
        with pytest.raises(ValueError, match=f"start {start}"):
            Explorer(frames, "x", start=start)


def chosen() -> Choices:
    """Of two layers and three shades; what was drawn is kept, to see that nothing is drawn that nobody chose."""

    def draw(layer: str, shade: int) -> tuple[bytes, str]:
        drawn.append((layer, shade))
        return picture(shade), f"{layer} at {shade}"

    drawn: list[tuple[str, int]] = []
    options = {"Layer": {"fc1": "fc1", "fc2": "fc2"}, "Shade": {f"{s}%": s for s in SHADES}}
    made = Choices("Shades", options, draw)
    made.drawn = drawn  # type: ignore[attr-defined]
    return made


def test_every_choice_draws_its_picture_and_only_that() -> None:
    choices = chosen()
    _, layer, shade, shown = choices.widget().children
    assert (type(layer).__name__, type(shade).__name__) == ("Dropdown", "SelectionSlider")
    assert 'alt="Shades, fc1, 0%: fc1 at 0"' in shown.value
    layer.value = "fc2"
    shade.value = "180%"
    assert 'alt="Shades, fc2, 180%: fc2 at 180"' in shown.value
    assert choices.drawn == [("fc1", 0), ("fc2", 0), ("fc2", 180)]  # type: ignore[attr-defined]


def test_without_a_kernel_the_last_quantity_has_a_slider(browser: Any, tmp_path: Path) -> None:
    visit = browser.open(page_with(tmp_path, chosen().explorer()))
    section = visit.page.get_by_role("figure", name="Shades, fc1")
    visit.page.get_by_role("slider", name="Shade").press("End")
    assert state(section)["alt"] == "Shades, fc1, 180%: fc1 at 180"
    assert visit.requests == visit.complaints == []


def test_choices_without_a_stop_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one stop"):
        Choices("x", {"Layer": {}}, lambda layer: (picture(0), layer))
