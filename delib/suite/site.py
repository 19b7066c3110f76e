"""The site: the report, the documents, and a page that runs Python in the browser, as files for any static host."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from bs4 import BeautifulSoup

from delib.files import project_root, write_bytes
from delib.suite.explorer import template
from delib.suite.pages import Prose, highlighted
from delib.suite.record import report_folder

CONTEXTS = {
    "no context": "def context(done, row, column):\n    return ()",
    "its row": "def context(done, row, column):\n    return row",
    "its column": "def context(done, row, column):\n    return column",
    "neighbours": "def context(done, row, column):\n    return done[row][column - 1] > 0, done[row - 1][column] > 0",
    "row and column, roughly": (
        "def context(done, row, column):\n"
        "    left = sum(level > 0 for level in done[row][:column]) * 8 // (column + 1)\n"
        "    above = sum(line[column] > 0 for line in done[:row]) * 8 // (row + 1)\n"
        "    return left, above"
    ),
}
PAGES = {"#notebooks": "Notebooks", "try.html": "Try it: Python in this browser", "docs/teaching.html": "Teaching"}


def build_site(target: Path, run: str, pyodide: Path, layer: str, weights: Sequence[Sequence[int]]) -> Path:
    """Write the site into ``target``; returns its index.

    Parameters
    ----------
    target : Path
        A new or empty folder, or one with an earlier site, which is replaced.
    run : str
        Whose report, a folder of ``reports/``.
    pyodide : Path
        The folder of Pyodide's core.
    layer, weights : str, [rows][columns]
        What the page that runs Python encodes, and what it says these weights are of.

    Raises
    ------
    ValueError
        If there is no such report, or if the folder holds anything but an earlier site.
    """
    source, docs = report_folder(run), project_root() / "docs"
    if not (source / "index.html").is_file():
        raise ValueError(f"{source} holds no report; make it with `delib report`, or take --run reference")
    if target.exists() and any(target.iterdir()) and not (target / "worker.js").is_file():
        raise ValueError(f"{target} is not empty and no earlier site; name a new folder")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(pyodide, target / "pyodide", ignore=shutil.ignore_patterns(".*"))
    for page in source.glob("*.html"):
        shutil.copy(page, target)
    links = " · ".join(f'<a href="{page}">{words}</a>' for page, words in PAGES.items())
    index = (target / "index.html").read_text(encoding="utf-8")
    links = f'<nav aria-label="Site" class="kicker">{links}</nav>\n</header>'
    write_bytes(target / "index.html", index.replace("</header>", links, 1).encode())
    shutil.copytree(docs / "images", target / "docs" / "images")
    for path in sorted([*docs.glob("*.md"), *docs.glob("solutions/*.md")]):
        write_bytes(target / "docs" / path.relative_to(docs).with_suffix(".html"), document(path, docs).encode())
    write_bytes(target / "try.html", _try(docs / "coder.py", layer, weights).encode())
    write_bytes(target / "worker.js", template("worker.js").render().encode())
    return target / "index.html"


def document(path: Path, root: Path) -> str:
    """A Markdown document as a page, whose links to other documents lead to their pages."""
    page = BeautifulSoup(Prose(path.parent).markdown(path.read_text(encoding="utf-8")), "html.parser")
    for link in page.select("a[href]"):
        link["href"] = re.sub(r"\.md(?=$|#)", ".html", str(link["href"]))
    for wide in page.select("table, pre"):
        label = {"table": "Table"}.get(wide.name, "Code")
        wide.wrap(page.new_tag("div", attrs={"class": "scroll", "tabindex": "0", "role": "group", "aria-label": label}))
    heading = page.select_one("h1")
    up = "../" * len(path.relative_to(root).parts)
    title = heading.get_text() if heading else path.stem
    return str(template("document.html.j2").render(title=title, body=str(page), up=up))


def _try(coder: Path, layer: str, weights: Sequence[Sequence[int]]) -> str:
    code = coder.read_text(encoding="utf-8")
    facts = {"layer": layer, "weights": weights, "rows": len(weights), "columns": len(weights[0])}
    shown = {"coder": code, "highlighted": highlighted(code), "contexts": CONTEXTS}
    return str(template("try.html.j2").render(**facts, **shown))
