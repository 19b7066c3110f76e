"""The explorer's two faces come from the same frames; the figure helper never shows a picture without words."""

from __future__ import annotations

import re
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

from delib.explore import Explorer, Frame
from delib.figures import LINES, MARKERS, PALETTE, house_style, png, show


def drawing(width: float = 2) -> Figure:
    figure, axes = plt.subplots(figsize=(width, 1))
    axes.plot([0, 1])
    return figure


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is displayed, in order."""
    displayed: list[Any] = []
    monkeypatch.setattr("IPython.display.display", lambda thing, **_: displayed.append(thing))
    return displayed


@pytest.fixture
def frames() -> list[Frame]:
    image = png(drawing())
    return [Frame(f"{s}%", image, f"<{s}> & more", f"caption {s}") for s in (0, 50, 90)]


def test_html_holds_every_frame_and_nothing_from_elsewhere(frames: list[Frame]) -> None:
    html = Explorer(frames, "Title", start=1)._repr_html_()
    assert html.count("data:image/png;base64,") == 3
    assert 'alt="&lt;50&gt; &amp; more"' in html
    assert len(re.findall(r"<figure[^>]* hidden>", html)) == 2
    assert 'aria-valuetext="50%"' in html
    assert "http" not in html


def test_several_explorers_of_a_page_have_ids_of_their_own(frames: list[Frame]) -> None:
    explorer = Explorer(frames, "Title")
    page = explorer._repr_html_() + explorer._repr_html_() + Explorer(frames, "Other")._repr_html_()
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) == 6
    assert set(re.findall(r'\bfor="([^"]+)"', page)) <= set(ids)


def test_widget_moves_through_the_same_frames(frames: list[Frame]) -> None:
    _, picture, slider = Explorer(frames, "Title", start=1).widget().children
    assert 'alt="&lt;50&gt;' in picture.value
    slider.value = 2
    assert 'alt="&lt;90&gt;' in picture.value
    assert [label for label, _ in slider.options] == ["0%", "50%", "90%"]


def test_show_displays_what_works_here(frames: list[Frame], shown: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELIB_BATCH", "1")
    Explorer(frames, "Title").show()
    monkeypatch.delenv("DELIB_BATCH")
    Explorer(frames, "Title").show()
    html, widget = shown
    assert html.data.count('<input type="range"') == 1
    assert isinstance(widget, ipywidgets.VBox)


def test_frames_that_cannot_be_explored_are_refused(frames: list[Frame]) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        Explorer([], "Title")
    with pytest.raises(ValueError, match="frame '7%' has no alt"):
        Explorer([*frames, Frame("7%", frames[0].image, " ")], "Title")
    with pytest.raises(ValueError, match="frame '7%' is no PNG"):
        Explorer([*frames, Frame("7%", b"GIF89a", "a picture")], "Title")
    with pytest.raises(ValueError, match="start 3"):
        Explorer(frames, "Title", start=3)


def test_a_figure_is_shown_with_its_words_at_its_size(shown: list[Any]) -> None:
    show(drawing(width=3), 'A "line" & more')
    (output,) = shown
    assert 'alt="A &quot;line&quot; &amp; more"' in output["text/html"]
    assert 'width="288"' in output["text/html"]
    assert output["text/plain"] == '[figure: A "line" & more]'
    assert plt.get_fignums() == []
    with pytest.raises(ValueError, match="needs an alt"):
        show(drawing(), " ")
    plt.close("all")


def test_png_is_twice_as_sharp_as_it_is_shown() -> None:
    image = png(drawing(width=3))
    assert int.from_bytes(image[16:20], "big") == 2 * 288


def test_the_house_style_tells_no_two_lines_apart_by_colour_alone() -> None:
    assert len(PALETTE) == len(set(PALETTE)) == len(set(MARKERS)) == len(set(LINES))
    with house_style():
        _, axes = plt.subplots()
        lines = [axes.plot([0, 1])[0] for _ in PALETTE]
    assert len({(line.get_marker(), str(line.get_linestyle())) for line in lines}) >= 5
    assert len({line.get_marker() for line in lines}) == len(PALETTE)
    plt.close("all")
