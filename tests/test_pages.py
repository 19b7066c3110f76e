"""A notebook's page: every kind of output, formulas, and nothing that would be loaded from elsewhere."""

from __future__ import annotations

import re
from base64 import b64encode
from html import escape
from typing import Any

import pytest
from made import executed, png, printed, shown
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

from delib.suite.pages import mathml, read_page
from delib.suite.report import compile_report

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
    return read_page(executed(project, "00_a", *cells)).body


def test_outputs_become_what_a_reader_can_use(project: Any) -> None:
    assert "<svg" in body(project, shown({"image/svg+xml": "<svg></svg>", "text/plain": "x"}))
    picture = {"image/png": b64encode(png()).decode(), "text/plain": "<Figure>"}
    assert '<img alt="A plane" src="data:image/png' in body(project, shown(picture, {"image/png": {"alt": "A plane"}}))
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


def test_pictures_in_prose_are_embedded(project: Any) -> None:
    (project.root / "notebooks" / "plane.png").write_bytes(png())
    assert '<img src="data:image/png;base64,' in body(project, new_markdown_cell("![A plane](plane.png)"))


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
