"""A page's layout: numbered figures with captions, links to figures and papers, sections, and steps for the screen."""

from __future__ import annotations

import functools
import itertools
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from bs4 import BeautifulSoup

from delib.suite import pictures

Element = Any  # a Tag: by its own types every attribute may be missing, or be a list
FIGURE = "img.delib-figure, figure.delib-explorer, figure.delib-hand"
CAPTION = 160  # letters; what is longer, such as all detections on four photos, ends with its first clause
ENOUGH = 400  # letters of prose for one step
BACK = r"(?:last|previous) figure|figures? above"
AHEAD = r"figures? below|next figure|move the slider|the slider goes"
WIDE = ("table", ".delib-explorer", ".delib-hand", "img", "svg")  # of such outputs one step shows one


@dataclass
class Section:
    """A heading with what stands below it: HTML in ``steps``, each of which fits a screen; ``notes`` for who speaks."""

    id: str
    title: str
    steps: list[str] = field(default_factory=list)
    notes: str = ""


def captioned(page: BeautifulSoup) -> None:
    """Give every figure and explorer a number, an id and a visible caption: the words of its alt, or its title."""
    found: list[Element] = page.select(FIGURE)
    for number, shown in enumerate(found, start=1):
        if shown.name == "img":
            _sized(shown)
            frame = shown.wrap(page.new_tag("figure"))
            caption = page.new_tag("figcaption")
            words = page.new_tag("span", attrs={"aria-hidden": "true"})  # whoever hears the alt need not hear it twice
            words.string = brief(str(shown.get("alt", "")))
            caption.append(words)
            frame.append(caption)
        else:
            frame, caption = shown, shown.figcaption
        link = page.new_tag("a", attrs={"class": "number", "href": f"#figure-{number}"})
        link.string = f"Figure {number}."
        caption.insert(0, link)
        caption.insert(1, " ")
        frame.insert_before(page.new_tag("a", attrs={"id": f"figure-{number}", "class": "anchor"}))


def _sized(image: Element) -> None:
    """Let a figure grow with the text, up to the pixels that it has; ``width`` is what it was drawn for."""
    drawn, data = str(image.get("width", "")), pictures.read(str(image.get("src", "")))
    if drawn.isdigit() and data:
        pixels = int.from_bytes(data[16:20], "big")
        image["style"] = f"width:min(100%,{int(drawn) / 16:g}rem,{pixels}px);height:auto"


def brief(words: str) -> str:
    """An alt as a caption: whole, or its first clause if it is long."""
    clause = re.match(r".*?(?=[.:;] )", words, re.DOTALL)
    return f"{clause[0]}." if len(words) > CAPTION and clause else words


def without_empty_headers(page: BeautifulSoup) -> None:
    """Header cells that head nothing become plain cells, as in the corner of a data frame."""
    for header in page.select("th"):
        if not header.get_text().strip():
            header.name = "td"
            del header["scope"]


def linked(page: BeautifulSoup) -> None:
    """Where the prose names a figure it leads there; the first mention of a method leads to its paper."""
    elements: list[Element] = page.select("a.anchor, .prose p, .prose li")
    anchors, passed = [str(element["id"]) for element in elements if element.name == "a"], 0
    for element in elements:
        if element.name == "a":
            passed += 1
            continue
        named = {f"[Ff]igure {number}": id for number, id in enumerate(anchors, start=1)}
        named |= dict(zip((f"(?i:{BACK})", f"(?i:{AHEAD})"), ["", *anchors, ""][passed : passed + 2]))
        for words, id in named.items():
            if id:
                _mark(page, element, rf"\b{words}\b", "a", {"href": f"#{id}"})
    prose = [element for element in elements if element.name == "p"]
    for paper in papers():
        words = rf"(?<![\w-])(?i:{'|'.join(map(re.escape, paper['names']))})(?![\w-])"
        any(_mark(page, element, words, "a", {"href": paper["address"]}, once=True) for element in prose)


def explained(page: BeautifulSoup, glossary: Mapping[str, str]) -> None:
    """The first mention of each of the glossary's terms in the prose gets its meaning, one hover away."""
    prose = page.select(".prose p, .prose li")
    for term in sorted(glossary, key=len, reverse=True):
        words = rf"(?<![\w-])(?i:{re.escape(term)})(s|es)?(?![\w-])"
        any(_mark(page, element, words, "abbr", {"title": glossary[term]}, once=True) for element in prose)


def _mark(
    page: BeautifulSoup, element: Element, words: str, tag: str, attributes: dict[str, str], *, once: bool = False
) -> bool:
    """Put what matches ``words`` in an element's own text into tags. Returns whether there was any."""
    for text in list(element.find_all(string=re.compile(words))):
        if text.find_parent(["a", "abbr", "code", "pre", "math", "script", "style", "figure"]):
            continue
        end, pieces = 0, []
        for match in itertools.islice(re.finditer(words, text), 1 if once else None):
            marked = page.new_tag(tag, attrs=attributes)
            marked.string = match[0]
            pieces += [text[end : match.start()], marked]
            end = match.end()
        text.replace_with(*pieces, text[end:])
        if once:
            return True
    return False


@functools.cache
def papers() -> list[dict[str, Any]]:
    """The papers that pages lead to: ``names``, ``authors``, ``title`` and ``address`` of each."""
    text = (files("delib.suite") / "templates" / "papers.toml").read_text(encoding="utf-8")
    return list(tomllib.loads(text)["paper"])


def sections(page: BeautifulSoup, title: str) -> list[Section]:
    """The page cut at its headings of level two, each part into steps that a screen can show.

    What stands before the first heading is a section without an id. A step ends where prose follows an output, a
    second output comes or the prose gets long, unless a cell's slide type says otherwise (``slide`` and ``subslide``
    begin a step, ``fragment`` and ``-`` go on, ``skip`` is a step that pages show and slides do not).
    """
    found = [Section("", title)]
    parts: dict[int, list[Element]] = {0: []}
    for block in _blocks(page):
        heading = block.find("h2", recursive=False) if _is(block, "prose") else None
        if heading:
            found.append(Section(str(heading.get("id") or f"section-{len(found)}"), heading.decode_contents()))
            parts[len(found) - 1] = []
            heading.extract()
        if block.get("data-slide") == "notes":
            found[-1].notes += block.decode_contents()
        elif block.find(True) or block.get_text().strip():
            parts[len(found) - 1].append(block)
    for i, section in enumerate(found):
        section.steps = ["".join(_run(step)) for step in _steps(page, parts[i])]
    return found


def _blocks(page: BeautifulSoup) -> Iterator[Element]:
    """Cells and pieces of prose, in their order; a piece of prose has at most one heading, at its beginning."""
    blocks: list[Element] = page.find_all(True, recursive=False)
    for block in blocks:
        piece = block
        if _is(block, "prose"):
            for child in list(block.find_all("h2", recursive=False)):
                if child.find_previous_sibling(True) is None:
                    continue
                rest = page.new_tag(block.name, attrs={**block.attrs})
                for sibling in [child, *child.next_siblings]:
                    rest.append(sibling.extract())
                yield piece
                piece = rest
        yield piece


def _steps(page: BeautifulSoup, blocks: list[Element]) -> list[list[Element]]:
    steps: list[list[Element]] = [[]]
    for block in itertools.chain.from_iterable(_pieces(page, block) for block in blocks):
        kind, prose = block.get("data-slide", ""), _is(block, "prose")
        full = any(map(_shows, steps[-1])) and (prose or _shows(block))
        long = prose and 0 < _words(steps[-1]) > ENOUGH - len(block.get_text())
        apart = kind in ("slide", "subslide") or (kind == "skip") != _skipped(steps[-1])
        if steps[-1] and (apart or ((full or long) and kind not in ("fragment", "-"))):
            steps.append([])
        steps[-1].append(block)
    *before, last = steps
    alone = any(_shows(block) or block.get("data-slide") for block in last) or _words(last) >= ENOUGH
    return steps if alone or not before or not any(map(_shows, before[-1])) else [*before[:-1], before[-1] + last]


def _pieces(page: BeautifulSoup, block: Element) -> Iterator[Element]:
    """A block, or several: long prose, whose headings and formulas stay with their words; outputs a screen each."""
    if _is(block, "cell"):
        yield from _screens(page, block)
        return
    if not _is(block, "prose") or block.get("data-slide") or len(block.get_text()) <= ENOUGH:
        yield block
        return
    piece = page.new_tag(block.name, attrs={**block.attrs})
    for child in block.find_all(True, recursive=False):
        whole = piece.find(["p", "ul", "ol", "blockquote", "pre"]) and not child.find("math", recursive=False)
        if whole and _words([piece]) + len(child.get_text()) > ENOUGH:
            yield piece
            piece = page.new_tag(block.name, attrs={**block.attrs})
        piece.append(child.extract())
    yield piece


def _screens(page: BeautifulSoup, block: Element) -> Iterator[Element]:
    """A cell, or several of its slide type where its outputs have more than one thing to look at: the first has the
    code."""
    outputs, shown, kind = block.select_one(".outputs"), False, block.get("data-slide")
    for output in outputs.find_all(True, recursive=False) if outputs else []:
        wide = output.name in WIDE or output.select_one(", ".join(WIDE)) is not None
        if wide and shown:
            yield block
            block = page.new_tag("div", attrs={"class": "cell"} | ({"data-slide": kind} if kind else {}))
            block.append(outputs := page.new_tag("div", attrs={"class": "outputs"}))
        if output.parent is not outputs:
            outputs.append(output.extract())
        shown = shown or wide
    yield block


def _skipped(blocks: Iterable[Element]) -> bool:
    """Whether slides leave these blocks out."""
    return any(block.get("data-slide") == "skip" for block in blocks)


def _words(blocks: Iterable[Element]) -> int:
    """Letters of prose."""
    return sum(len(block.get_text()) for block in blocks if _is(block, "prose"))


def _is(block: Element, kind: str) -> bool:
    return kind in block.get("class", [])


def _shows(block: Element) -> bool:
    """Whether a block is a cell with something to look at."""
    return _is(block, "cell") and block.select_one(", ".join(WIDE)) is not None


def _run(blocks: Iterable[Element]) -> Iterator[str]:
    """The blocks of a step as HTML, with neighbouring cells in one element, which stands beside the prose on slides."""
    within = False
    for block in blocks:
        cell = _is(block, "cell")
        if cell != within:
            yield '<div class="seen">' if cell else "</div>"
        within = cell
        yield str(block)
    if within:
        yield "</div>"
