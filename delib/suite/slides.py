"""Slides of a notebook's page: its steps, one a slide, for reveal.js, which the extra ``slides`` brings along."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

from delib.suite.pages import Page


@dataclass(frozen=True)
class Slide:
    """One slide: its heading (none on the first, whose text has its own), its HTML, and notes for who speaks."""

    heading: str
    body: str
    notes: str


def deck(page: Page) -> list[Slide]:
    """The slides of a page; steps of mere code are none. A section's notes go with its first slide."""
    slides = []
    for section in page.sections:
        shown = [step for step in section.steps if 'class="prose"' in step or 'class="outputs' in step]
        heading = section.title if section.id else ""
        slides += [Slide(heading, step, "" if i else section.notes) for i, step in enumerate(shown)]
    return slides


def reveal() -> tuple[str, str]:
    """The style sheet and the script of reveal.js (MIT licence). Raises ValueError where it is not installed."""
    try:
        dist = files("pyreveal") / "revealjs" / "dist"
        return (dist / "reveal.css").read_text(encoding="utf-8"), (dist / "reveal.js").read_text(encoding="utf-8")
    except (ModuleNotFoundError, FileNotFoundError):
        raise ValueError("slides need reveal.js; install it with `pip install pyreveal`, or delib[slides]") from None
