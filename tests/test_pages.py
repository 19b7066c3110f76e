"""A notebook's page: every kind of output, formulas, and nothing that would be loaded from elsewhere."""

from __future__ import annotations

import io
import re
from base64 import b64encode
from html import escape
from typing import Any

import pytest
from bs4 import BeautifulSoup
from made import executed, png, printed, shown
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from PIL import Image

from delib.suite.explorer import Explorer, Frame
from delib.suite.pages import mathml, read_page
from delib.suite.report import compile_report
from delib.suite.slides import deck

WIDGET = "application/vnd.jupyter.widget-view+json"
SECRET_FOLDER = "/some/where"


@pytest.mark.parametrize(
    "html",
    [
        '<img alt="x" src="https://example.org/x.png">',
        "<script src='//example.org/x.js'></script>",
        "<IMG SRC=figure.png>",
        '<img alt="of two, browsers take the first" src="https://example.org/x.png" src="data:,">',
        '<link rel="stylesheet" href="style.css">',
        '<iframe title="a > b" src="https://example.org"></iframe>',
    ],
)
def test_a_page_that_would_load_something_is_refused_by_name(project: Any, html: str) -> None:
    executed(project, "00_a", shown({"text/html": html}))
    with pytest.raises(ValueError, match=r"^00_a\.ipynb loads .*; embed it"):
        compile_report("quick")


def body(project: Any, *cells: Any) -> str:
    """All of a page's sections, as its template puts them together."""
    return "".join(step for section in read_page(executed(project, "00_a", *cells)).sections for step in section.steps)


def test_outputs_become_what_a_reader_can_use(project: Any) -> None:
    assert "<svg" in body(project, shown({"image/svg+xml": "<svg></svg>", "text/plain": "x"}))
    picture = {"image/png": b64encode(png()).decode(), "text/plain": "<Figure>"}
    html = body(project, shown(picture, {"image/png": {"alt": "A plane"}}))
    assert re.search(r'<img alt="A plane" [^>]*src="data:image/png', html)
    assert 'alt="&lt;Figure&gt;"' in body(project, shown(picture))
    assert "<strong>bold</strong>" in body(project, shown({"text/markdown": "**bold**"}))
    assert "<math" in body(project, shown({"text/latex": "$x$"}))
    assert "An interactive widget stands here" in body(project, shown({WIDGET: {}, "text/plain": "VBox()"}))
    assert "1 &lt; 2" in body(project, shown({"text/plain": "1 < 2"}))


def test_text_is_shown_as_on_a_terminal_and_tells_nothing_of_the_machine(
    project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", SECRET_FOLDER)
    text = f"  0%|   |\r100%|###|\n\x1b[31mred\x1b[0m\n{SECRET_FOLDER}/a.py and {project.root}/notebooks/b.ipynb\n"
    html = body(project, new_code_cell("f()", outputs=[printed(text)]))
    assert "  0%" not in html
    assert "100%|###|" in html
    assert re.search(r"<span class=\"ansi-red-fg\">red</span>", html)
    assert "~/a.py and notebooks/b.ipynb" in html
    warning = "/opt/me/.venv/lib/python3.11/site-packages/torch/x.py:1: Warning"
    html = body(project, new_code_cell("f()", outputs=[printed(warning, "stderr")]))
    assert ">site-packages/torch/x.py:1: Warning" in html
    error = new_output("error", ename="E", evalue="e", traceback=["\x1b[0;31mE\x1b[0m", f"{SECRET_FOLDER}/x.py: e"])
    html = body(project, new_code_cell("f()", outputs=[error]))
    assert SECRET_FOLDER not in html
    assert "\x1b" not in html


def figure(alt: str, width: int = 40) -> Any:
    """A cell that shows a figure as ``figures.show`` does."""
    source = f"data:image/png;base64,{b64encode(png()).decode()}"
    return shown({"text/html": f'<img class="delib-figure" alt="{escape(alt)}" width="{width}" src="{source}">'})


def test_figures_and_explorers_are_numbered_and_captioned_and_prose_leads_to_them(project: Any) -> None:
    moving = Explorer([Frame("0%", png(), "None gone"), Frame("90%", png(9), "Most gone")], "Shades")
    page = BeautifulSoup(
        body(
            project,
            figure("A plane. It is grey."),
            new_markdown_cell("Figure 1 is flat, as the figure above; the figure below moves. Figure 7 is none."),
            shown({"text/html": moving._repr_html_()}),
            figure("Photos of many things: " + "horse 0.94, " * 40),
        ),
        "html.parser",
    )
    captions = [caption.get_text() for caption in page.select("figcaption")]
    assert captions == ["Figure 1. A plane. It is grey.", "Figure 2. Shades", "Figure 3. Photos of many things."]
    assert [(link.get_text(), link["href"]) for link in page.select(".prose a")] == [
        ("Figure 1", "#figure-1"),
        ("figure above", "#figure-1"),
        ("figure below", "#figure-2"),
    ]
    assert [anchor["id"] for anchor in page.select(".anchor")] == ["figure-1", "figure-2", "figure-3"]


def test_the_first_mention_of_a_method_leads_to_its_paper(project: Any) -> None:
    text = "SparseGPT-like peers, such as `Wanda`.\n\nWanda and SparseGPT, and Wanda again."
    page = BeautifulSoup(body(project, new_markdown_cell(text)), "html.parser")
    links = {link.get_text(): link["href"] for link in page.select(".prose a")}
    assert links == {"Wanda": "https://arxiv.org/abs/2306.11695", "SparseGPT": "https://arxiv.org/abs/2301.00774"}


def test_photos_become_light_and_drawings_stay_as_they_are(project: Any) -> None:
    noise = Image.effect_noise((300, 200), 80)
    buffer = io.BytesIO()
    noise.save(buffer, "PNG")
    photo = shown({"text/html": f'<img alt="x" src="data:image/png;base64,{b64encode(buffer.getvalue()).decode()}">'})
    html = body(project, photo)
    assert "data:image/webp" in html
    assert len(html) < len(photo.outputs[0].data["text/html"]) / 1.5
    assert b64encode(png()).decode() in body(project, figure("A drawing"))


def slides(project: Any, *cells: Any) -> list[str]:
    """The words of each step of the second section on."""
    sections = read_page(executed(project, "00_a", *cells)).sections[1:]
    return [BeautifulSoup(step, "html.parser").get_text(" ", strip=True) for s in sections for step in s.steps]


def test_a_section_is_cut_where_prose_follows_a_figure_or_gets_long_unless_a_cell_says_otherwise(project: Any) -> None:
    heading, after = new_markdown_cell("## One\n\nBefore."), new_markdown_cell("After." + " More." * 90)
    assert [step[:13] for step in slides(project, heading, figure("A"), after, figure("B"))] == [
        "Before. Code ",
        "After. More. ",
    ]
    assert len(slides(project, heading, figure("A"), figure("B"))) == 2
    assert len(slides(project, heading, figure("A"), new_markdown_cell("A short word after."))) == 1
    assert len(slides(project, new_markdown_cell("## One\n\n" + "\n\n".join(["Word " * 60] * 3)))) == 3
    kept = figure("B")
    kept.metadata["slideshow"] = {"slide_type": "fragment"}
    assert len(slides(project, heading, figure("A"), kept)) == 1
    split = new_markdown_cell("Apart.", metadata={"slideshow": {"slide_type": "slide"}})
    assert slides(project, heading, split) == ["Before.", "Apart."]


def test_each_figure_of_a_cell_has_a_screen_of_its_own_and_its_code_stands_on_the_first(project: Any) -> None:
    both = figure("A")
    both.outputs += figure("B").outputs
    first, second = slides(project, new_markdown_cell("## One"), both)
    assert ("A" in first, "B" in first, "Code" in first) == (True, False, True)
    assert ("A" in second, "B" in second, "Code" in second) == (False, True, False)


def test_what_slides_skip_stands_on_the_page_alone(project: Any) -> None:
    aside = new_markdown_cell("An aside.", metadata={"slideshow": {"slide_type": "skip"}})
    cells = [new_markdown_cell("## One\n\nShown."), aside, new_markdown_cell("Shown too.")]
    page = read_page(executed(project, "00_a", *cells))
    assert len(page.sections[1].steps) == 3
    words = [BeautifulSoup(slide.body, "html.parser").get_text(strip=True) for slide in deck(page)]
    assert words[-2:] == ["Shown.", "Shown too."]
    both = figure("A")
    both.outputs += figure("B").outputs
    both.metadata["slideshow"] = {"slide_type": "skip"}
    page = read_page(executed(project, "00_a", new_markdown_cell("## One\n\nShown."), both))
    assert len(deck(page)) == 1 + len(deck(read_page(executed(project, "00_a")))), "neither of its figures"


def test_notes_are_for_who_speaks_only(project: Any) -> None:
    notes = new_markdown_cell("Say it slowly.", metadata={"slideshow": {"slide_type": "notes"}})
    path = executed(project, "00_a", new_markdown_cell("## One\n\nShown."), notes)
    section = read_page(path).sections[1]
    assert "slowly" in section.notes
    assert "slowly" not in "".join(section.steps)


def test_the_cell_that_measured_is_found_by_its_metric(project: Any) -> None:
    cells = (new_code_cell("accuracy = 1"), new_code_cell('run.add("toy", accuracy=accuracy, **others)'))
    page = read_page(executed(project, "00_a", *cells))
    assert (page.cell_of("toy.accuracy"), page.cell_of("toy.bits")) == ("cell-2", "cell-3")
    assert read_page(executed(project, "00_a")).cell_of("toy.bits") == ""


def test_pictures_in_prose_are_embedded(project: Any) -> None:
    (project.root / "notebooks" / "plane.png").write_bytes(png())
    assert ' src="data:image/png;base64,' in body(project, new_markdown_cell("![A plane](plane.png)"))


@pytest.mark.parametrize("latex", [r"\frac{1}{2}", r"x_{ij}^2", r"\begin{matrix}a & b\\c & d\end{matrix}"])
def test_formulas_become_mathml(latex: str) -> None:
    html = mathml(latex, "block")
    assert html.startswith("<math")
    assert "\\" not in html


@pytest.mark.parametrize("latex", ["x_1_2 < y", r"\frac", "a_", r"\nosuch{x}", r"\begin{aligned}a&=b\end{aligned}"])
def test_a_formula_that_cannot_be_read_stands_as_it_was_written(latex: str) -> None:
    assert mathml(latex, "inline") == f'<code class="latex">{escape(latex)}</code>'


def test_tags_in_a_sentence_hold_their_text(project: Any) -> None:
    assert "<kbd>Shift</kbd>" in body(project, new_markdown_cell("Press <kbd>Shift</kbd>."))
