"""One executed notebook as HTML: prose with its formulas, code, outputs, everything inlined."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup
from jinja2 import TemplateError
from latex2mathml.converter import convert
from nbconvert.filters.ansi import ansi2html
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from delib.files import project_root
from delib.suite.explorer import template
from delib.suite.parameters import read_cells

# Attributes by which elements load something; links that a reader follows are fine.
LOADING = {"src", "srcset", "poster", "background", "data", "xlink:href"}
LINKING = {"link", "use", "image", "feimage"}
PICTURE = 'img[src^="data:image/"]'


@dataclass(frozen=True)
class Page:
    """A notebook's parts for the templates: HTML, except ``name`` and ``title``, which are plain text.

    ``headings`` are (id, text) of its sections; ``picture`` is an ``<img>`` for the index, empty if it has none.
    """

    name: str
    title: str
    intro: str
    body: str
    headings: list[tuple[str, str]]
    picture: str


def read_page(executed: Path) -> Page:
    """An executed notebook as a page. Raises ValueError if it is broken or would load anything from elsewhere."""
    renderer = Prose(project_root() / "notebooks")
    try:
        cells = [CoalesceStreamsPreprocessor().preprocess_cell(cell, {}, 0)[0] for cell in read_cells(executed)]
        body = template("cells.html.j2").render(
            cells=cells, prose=renderer.markdown, mathml=mathml, highlighted=_highlighted, terminal=_terminal
        )
    except (KeyError, TypeError, AttributeError, TemplateError) as error:
        raise ValueError(f"{executed}: a broken notebook ({error!r}); delete it and run it again") from None
    body = re.sub(r'href="([\w./-]+)\.ipynb"', r'href="\1.html"', body)
    page = BeautifulSoup(body, "html.parser", on_duplicate_attribute="ignore")  # as browsers do
    if outside := loaded(page):
        raise ValueError(f"{executed.name} loads {outside[0][:80]}; embed it, the report must work without a network")
    title, intro = page.select_one(".prose h1"), page.select_one(".prose h1 + p")
    return Page(
        executed.stem,
        title.get_text().strip() if title else executed.stem,
        str(intro) if intro and intro.get_text().strip() else "",  # no mere picture
        body,
        renderer.headings,
        str(page.select_one(f".cover {PICTURE}") or page.select_one(PICTURE) or ""),
    )


def loaded(page: BeautifulSoup) -> list[str]:
    """Addresses that the elements of a page would load by themselves."""
    return [
        str(value)
        for tag in page.find_all(True)
        for name, value in tag.attrs.items()
        if (name in LOADING or (name == "href" and tag.name in LINKING))
        and value
        and not str(value).lower().startswith(("data:", "#"))
    ]


class Prose(IPythonRenderer):
    """Markdown as HTML: formulas as MathML, images embedded, sections with ids collected in ``headings``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(escape=False, embed_images=True, path=str(folder))
        self.headings: list[tuple[str, str]] = []

    def markdown(self, source: str, cell: Any = None) -> str:
        """The source as HTML, with the pictures that are attached to its cell."""
        self.attachments = cell.get("attachments", {}) if cell else {}
        return str(MarkdownWithMath(self).render(source))

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        """A heading with an id; those of level 2 go to the table of contents."""
        plain = unescape(re.sub(r"<[^>]+>", "", text)).strip()
        slug = re.sub(r"\W+", "-", plain.lower()).strip("-")
        slug = slug if slug not in dict(self.headings) else f"{slug}-{len(self.headings)}"
        if level == 2:
            self.headings.append((slug, plain))
        return f'<h{level} id="{slug}">{text}</h{level}>\n'

    def inline_html(self, html: str) -> str:
        """A tag within a sentence as it stands; the base class would close each one at once to embed images."""
        return str(super().inline_html(html)) if html.startswith("<img") else html

    def block_math(self, body: str) -> str:
        return mathml(body, "block")

    def inline_math(self, body: str) -> str:
        return mathml(body, "inline")

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")


def mathml(latex: str, display: str) -> str:
    """LaTeX as MathML; as its own source, marked, where latex2mathml cannot read it."""
    try:
        converted: str = convert(latex.strip(), display=display)
    except Exception:  # latex2mathml raises many kinds of its own
        converted = "\\"
    # Commands that it does not know, and alignments that it does not see, it passes through as text.
    if "\\" in converted or ">&<" in converted:
        return f'<code class="latex">{escape(latex.strip())}</code>'
    return converted


def _highlighted(code: str) -> str:
    return highlight(code, PythonLexer(), HtmlFormatter(nowrap=True)).rstrip()


def _terminal(text: str) -> str:
    """Text as a reader would see it on a terminal, without this machine's folders."""
    text = text.rstrip().replace(f"{project_root()}/", "").replace(str(Path.home()), "~")
    text = re.sub(r"\S*/ipykernel_\d+/\d+\.py:", "line ", text)
    return str(ansi2html(re.sub(r"[^\s\"']*/(?=site-packages/)", "", text)))
