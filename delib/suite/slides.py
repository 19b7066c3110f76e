"""Slides of a notebook's page: its steps, one a slide, for reveal.js, which the extra ``slides`` brings along."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

from bs4 import BeautifulSoup

from delib.suite.pages import Page

OPENING = "Title"  # what the guide's notes call the first slide


@dataclass(frozen=True)
class Slide:
    """One slide: its heading (none on the first, whose text has its own), its HTML, and notes for who speaks."""

    heading: str
    body: str
    notes: str


def deck(page: Page, notes: Mapping[str, str] | None = None) -> list[Slide]:
    """The slides of a page; steps of mere code, and those to skip, are none.

    A section's notes go with its first slide, and with them those that ``notes`` has for its title.
    """
    slides = []
    for section in page.sections:
        steps = [step for step in section.steps if 'data-slide="skip"' not in step]
        shown = [step for step in steps if 'class="prose"' in step or 'class="outputs' in step]
        heading = section.title if section.id else ""
        title = BeautifulSoup(heading, "html.parser").get_text() or OPENING
        said = section.notes + escape((notes or {}).get(title, ""))
        slides += [Slide(heading, step, "" if i else said) for i, step in enumerate(shown)]
    return slides


def read_notes(guide: Path) -> dict[str, dict[str, str]]:
    """What the lecturer's guide says at each section, by notebook and by title; nothing without a guide."""
    text = guide.read_text(encoding="utf-8") if guide.is_file() else ""
    parts = re.split(r"^### (\d\d_\w+)$", text, flags=re.MULTILINE)
    return {
        name: dict(re.findall(r"^- \*\*(.+?)\*\*: (.+)$", part, re.MULTILINE))
        for name, part in zip(parts[1::2], parts[2::2])
    }


def reveal() -> tuple[str, str]:
    """The style sheet and the script of reveal.js (MIT licence). Raises ValueError where it is not installed."""
    try:
        dist = files("pyreveal") / "revealjs" / "dist"
        return (dist / "reveal.css").read_text(encoding="utf-8"), (dist / "reveal.js").read_text(encoding="utf-8")
    except (ModuleNotFoundError, FileNotFoundError):
        raise ValueError("slides need reveal.js; install it with `pip install pyreveal`, or delib[slides]") from None
