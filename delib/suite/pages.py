"""One executed notebook as HTML: prose with its formulas, code, outputs, everything inlined."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from nbconvert.filters.ansi import ansi2html
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from delib.files import project_root
from delib.suite.parameters import read_cells

WIDGET = "application/vnd.jupyter.widget-view+json"
# Attributes by which elements load something; links that a reader follows are fine.
LOADING = {"src", "srcset", "poster", "background", "data", "xlink:href"}
LINKING = {"link", "use", "image", "feimage"}
PICTURE = re.compile(r'<img\b[^>]*\bsrc="data:image/[^>]*>')


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
    try:
        return _page(executed, read_cells(executed))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{executed}: a broken notebook ({error!r}); delete it and run it again") from None


def _page(executed: Path, cells: list[dict[str, Any]]) -> Page:
    title, intro = _opening(cells, executed.stem)
    renderer = Prose(project_root() / "notebooks")
    body = "\n".join(_cell(cell, renderer) for cell in cells)
    body = re.sub(r'href="([\w./-]+)\.ipynb"', r'href="\1.html"', body)
    if outside := loaded(body):
        raise ValueError(f"{executed.name} loads {outside[0][:80]}; embed it, the report must work without a network")
    covers = [_outputs(c) for c in cells if "cover" in c["metadata"].get("tags", [])]
    picture = PICTURE.search("".join(covers)) or PICTURE.search(body)
    plain_title, intro = _plain(Prose().markdown(title)), Prose().markdown(intro)
    return Page(executed.stem, plain_title, intro, body, renderer.headings, picture[0] if picture else "")


class _Loads(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            loads = name in LOADING or (name == "href" and tag in LINKING)
            if loads and value and not value.lower().startswith(("data:", "#")):
                self.found.append(value)


def loaded(html: str) -> list[str]:
    """Addresses that the elements of a page would load by themselves."""
    parser = _Loads()
    parser.feed(html)
    parser.close()
    return parser.found


class Prose(IPythonRenderer):
    """Markdown as HTML: formulas as MathML, images embedded, sections with ids collected in ``headings``."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(escape=False, embed_images=folder is not None, path=str(folder or ""))
        self.headings: list[tuple[str, str]] = []

    def markdown(self, source: str) -> str:
        """The source as HTML."""
        return MarkdownWithMath(self).render(source)

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        """A heading with an id; those of level 2 go to the table of contents."""
        plain = _plain(text)
        slug = re.sub(r"\W+", "-", plain.lower()).strip("-")
        slug = slug if slug not in dict(self.headings) else f"{slug}-{len(self.headings)}"
        if level == 2:
            self.headings.append((slug, plain))
        return f'<h{level} id="{slug}">{text}</h{level}>\n'

    def inline_html(self, html: str) -> str:
        """A tag within a sentence as it stands; the base class would close each one at once to embed images."""
        return str(super().inline_html(html)) if html.startswith("<img") else html

    def block_math(self, body: str) -> str:
        """A formula of its own line."""
        return mathml(body, "block")

    def inline_math(self, body: str) -> str:
        """A formula within a sentence."""
        return mathml(body, "inline")

    def latex_environment(self, name: str, body: str) -> str:
        """A formula given as a LaTeX environment."""
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


def _plain(html: str) -> str:
    return unescape(re.sub(r"<[^>]+>", "", html)).strip()


def _opening(cells: list[dict[str, Any]], name: str) -> tuple[str, str]:
    """The title and the first paragraph below it, as Markdown."""
    prose = "\n\n".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")
    heading = re.search(r"^# +(.+)$", prose, re.MULTILINE)
    if heading is None:
        return name, ""
    paragraphs = [p.strip() for p in prose[heading.end() :].split("\n\n") if p.strip()]
    intro = paragraphs[0] if paragraphs and not paragraphs[0].startswith(("#", "|", "!", "<")) else ""
    return heading[1].strip(), intro


def _cell(cell: dict[str, Any], renderer: Prose) -> str:
    if cell["cell_type"] == "markdown":
        renderer.attachments = cell.get("attachments", {})
        return f'<div class="prose">{renderer.markdown(cell["source"])}</div>'
    if cell["cell_type"] != "code" or not cell["source"].strip():
        return ""
    label = "Code"
    if "injected-parameters" in cell["metadata"].get("tags", []):
        label = "Values of this run, in place of those above"
    code = highlight(cell["source"], PythonLexer(), HtmlFormatter(nowrap=True)).rstrip()
    return (
        f'<details class="code" open><summary>{label}</summary><pre tabindex="0"><code>{code}</code></pre></details>'
        f"{_outputs(cell)}"
    )


def _outputs(cell: dict[str, Any]) -> str:
    shown = [html for output in _joined(cell.get("outputs", [])) if (html := _output(output))]
    return f'<div class="outputs">{"".join(shown)}</div>' if shown else ""


def _joined(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The outputs, with pieces of the same stream that follow each other made one."""
    joined: list[dict[str, Any]] = []
    for output in outputs:
        text = "".join(output.get("text", ""))
        if joined and output["output_type"] == "stream" and joined[-1].get("name") == output["name"]:
            joined[-1]["text"] += text
        else:
            joined.append({**output, "text": text})
    return joined


def _output(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        return _text(output["text"], f"stream {output['name']}")
    if output["output_type"] == "error":
        return _text("\n".join(output["traceback"]), "error")
    data = {mime: "".join(value) if isinstance(value, list) else value for mime, value in output["data"].items()}
    if "text/html" in data:
        return f'<div class="html">{data["text/html"]}</div>'
    if WIDGET in data:
        return '<p class="note">An interactive widget stands here in the live notebook.</p>'
    if "image/svg+xml" in data:
        return f'<div class="html">{data["image/svg+xml"]}</div>'
    if "image/png" in data:
        alt = output["metadata"].get("image/png", {}).get("alt") or data.get("text/plain", "figure")
        return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data["image/png"].strip()}">'
    if "text/markdown" in data:
        return f'<div class="prose">{Prose().markdown(data["text/markdown"])}</div>'
    if "text/latex" in data:
        return mathml(data["text/latex"].strip().strip("$"), "block")
    return _text(data.get("text/plain", ""), "value")


def _text(text: str, kind: str) -> str:
    """Text as a reader would see it on a terminal, without this machine's folders."""
    lines = [line.rsplit("\r", 1)[-1] for line in text.rstrip().replace("\r\n", "\n").split("\n")]
    text = "\n".join(lines).replace(f"{project_root()}/", "").replace(str(Path.home()), "~")
    text = re.sub(r"\S*/ipykernel_\d+/\d+\.py:", "line ", text)
    text = re.sub(r"[^\s\"']*/(?=site-packages/)", "", text)
    return f'<pre class="{kind}" tabindex="0">{ansi2html(text)}</pre>' if text.strip() else ""
