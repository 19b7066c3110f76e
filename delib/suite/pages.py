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
from delib.suite import pictures
from delib.suite.explorer import template
from delib.suite.glossary import read_glossary
from delib.suite.layout import Section, captioned, explained, linked, sections, without_empty_headers
from delib.suite.parameters import read_cells

# Attributes by which elements load something; links that a reader follows are fine.
LOADING = {"src", "srcset", "poster", "background", "data", "xlink:href"}
LINKING = {"link", "use", "image", "feimage"}
PICTURE = 'img[src^="data:image/"]'


@dataclass(frozen=True)
class Moving:
    """An explorer's frames as the page has them: its title, quantity and start; (label, alt, caption, PNG) of each."""

    title: str
    quantity: str
    start: int
    frames: list[tuple[str, str, str, bytes]]


@dataclass(frozen=True)
class Page:
    """A notebook's parts for the templates: HTML, except ``name`` and ``title``, which are plain text.

    ``sections`` are its parts, the first without a heading; ``picture`` (alt, PNG) is for the index; ``explorers`` are
    its sliders; ``cells`` maps the ids of its code cells to their code.
    """

    name: str
    title: str
    intro: str
    sections: list[Section]
    picture: tuple[str, bytes] | None
    explorers: list[Moving]
    cells: dict[str, str]

    def cell_of(self, metric: str) -> str:
        """Id of the cell that measured ``<network>.<metric>``: the first that names it, else the one that records.

        Empty if the notebook has neither.
        """
        name = metric.rpartition(".")[2]
        naming = (cell for cell, code in self.cells.items() if re.search(rf"\b{re.escape(name)}\b", code))
        recording = (cell for cell, code in self.cells.items() if re.search(r"\brun\.add\(", code))
        return next(naming, "") or next(recording, "")


def read_page(executed: Path) -> Page:
    """An executed notebook as a page. Raises ValueError if it is broken or would load anything from elsewhere."""
    renderer = Prose(project_root() / "notebooks")
    try:
        cells = [CoalesceStreamsPreprocessor().preprocess_cell(cell, {}, 0)[0] for cell in read_cells(executed)]
        body = template("cells.html.j2").render(
            cells=cells, prose=renderer.markdown, mathml=mathml, highlighted=highlighted, terminal=_terminal
        )
    except (KeyError, TypeError, AttributeError, TemplateError) as error:
        raise ValueError(f"{executed}: a broken notebook ({error!r}); delete it and run it again") from None
    body = re.sub(r'href="([\w./-]+)\.ipynb"', r'href="\1.html"', body)
    page = BeautifulSoup(body, "html.parser", on_duplicate_attribute="ignore")  # as browsers do
    if outside := loaded(page):
        raise ValueError(f"{executed.name} loads {outside[0][:80]}; embed it, the report must work without a network")
    return _page(executed.stem, page, {f"cell-{i}": c.source for i, c in enumerate(cells, 1) if c.cell_type == "code"})


def _page(name: str, page: BeautifulSoup, cells: dict[str, str]) -> Page:
    """The parts of a page; its figures get numbers and captions, its photos become light."""
    heading, intro = page.select_one(".prose h1"), page.select_one(".prose h1 + p")
    title = heading.get_text().strip() if heading else name
    introduction = str(intro) if intro and intro.get_text().strip() else ""  # no mere picture
    picture = page.select_one(f".cover {PICTURE}") or page.select_one(PICTURE)
    shown = pictures.read(str(picture["src"])) if picture else None
    explorers = [_moving(explorer) for explorer in page.select("figure.delib-explorer")]
    captioned(page)
    without_empty_headers(page)
    linked(page)
    explained(page, read_glossary(project_root() / "README.md"))
    for image in page.select("img"):
        image["src"] = pictures.lightened(str(image.get("src", "")))
    return Page(
        name,
        title,
        introduction,
        sections(page, title),
        (str(picture.get("alt", "")), shown) if picture and shown else None,
        [explorer for explorer in explorers if explorer],
        cells,
    )


def _moving(explorer: Any) -> Moving | None:
    """An explorer of a page as its frames; None if it is not one that our template made."""
    try:
        slider, frames = explorer.select_one("input"), explorer.select(".frame")
        data = [pictures.read(str(frame.img["src"])) for frame in frames]
        words = [(str(f["data-label"]), str(f.img["alt"]), f.select_one(".caption").get_text()) for f in frames]
        title, quantity = explorer.figcaption.get_text().strip(), explorer.select_one("label").get_text().strip()
        made = [(*said, png) for said, png in zip(words, data) if png]
        return Moving(title, quantity, int(str(slider["value"])), made) if len(made) == len(frames) > 1 else None
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


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
    """Markdown as HTML: formulas as MathML, images embedded, headings with ids."""

    def __init__(self, folder: Path) -> None:
        super().__init__(escape=False, embed_images=True, path=str(folder))
        self.ids: set[str] = set()

    def markdown(self, source: str, cell: Any = None) -> str:
        """The source as HTML, with the pictures that are attached to its cell."""
        self.attachments = cell.get("attachments", {}) if cell else {}
        return str(MarkdownWithMath(self).render(source))

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        """A heading with an id of its own."""
        plain = unescape(re.sub(r"<[^>]+>", "", text)).strip()
        slug = re.sub(r"\W+", "-", plain.lower()).strip("-")
        slug = slug if slug not in self.ids else f"{slug}-{len(self.ids)}"
        self.ids.add(slug)
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


def highlighted(code: str) -> str:
    """Python as HTML, a span for each token."""
    return highlight(code, PythonLexer(), HtmlFormatter(nowrap=True)).rstrip()


def _terminal(text: str) -> str:
    """Text as a reader would see it on a terminal, without this machine's folders."""
    text = text.rstrip().replace(f"{project_root()}/", "").replace(str(Path.home()), "~")
    text = re.sub(r"\S*/ipykernel_\d+/\d+\.py:", "line ", text)
    return str(ansi2html(re.sub(r"[^\s\"']*/(?=site-packages/)", "", text)))
