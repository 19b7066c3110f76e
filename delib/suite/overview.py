"""What the index opens with: a network that gets sparser at a slider, three numbers; where claims were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from delib.suite import pictures
from delib.suite.claims import Claim
from delib.suite.pages import Moving, Page

HERO = 720  # pixels of a side; two stand side by side, and all frames together stay below half a megabyte
CARD = 560
CLAIMED = 40  # times smaller at least, says the paper
SHIPPED = "students/"  # before the name of a student's record in a claim's metric


@dataclass(frozen=True)
class Hero:
    """An explorer's first frame, the teacher, to stand beside its others: (label, alt, caption, address) of each."""

    page: Page
    title: str
    quantity: str
    start: int
    frames: list[tuple[str, str, str, str]]


def hero(pages: Sequence[Page]) -> Hero | None:
    """The explorer to open with: the first on photos, else the first. None without any."""
    found = [(page, explorer) for page in pages for explorer in page.explorers]
    found.sort(key=lambda pair: not pictures.is_photo(pair[1].frames[0][3]))
    return next((made for page, explorer in found if (made := _hero(page, explorer))), None)


def _hero(page: Page, explorer: Moving) -> Hero | None:
    panels = pictures.first_panels([frame[3] for frame in explorer.frames])
    frames = [
        (label, alt, caption, pictures.inlined(pictures.shrunk(panel, HERO), 70))
        for (label, alt, caption, _), panel in zip(explorer.frames, panels)
    ]
    return Hero(page, explorer.title, explorer.quantity, explorer.start, frames) if frames else None


def cards(pages: Sequence[Page]) -> list[tuple[Page, str]]:
    """Each page with its picture, small; empty where it has none."""
    return [(page, pictures.thumbnail(page.picture[1], CARD) if page.picture else "") for page in pages]


def numbers(students: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Of the students that ship and are as small as the paper claims, the one that finds most, of equals the smallest:
    its name and metrics; empty if there is none."""
    wanted = {"sparsity", "compression_ratio", "retention_25"}
    shipping = {name: record["metrics"] for name, record in students.items() if record.get("ships", True)}
    every = {name: metrics for name, metrics in shipping.items() if wanted <= set(metrics)}
    known = {name: metrics for name, metrics in every.items() if metrics["compression_ratio"] >= CLAIMED}
    if not known:
        return {}
    name = max(known, key=lambda student: (known[student]["retention_25"], known[student]["compression_ratio"]))
    return {"name": name, **known[name]}


def evidence(claims: Sequence[Claim], pages: Sequence[Page]) -> dict[str, tuple[str, str]]:
    """For each metric that a claim goes by: where the cell stands that measured it, and where its record."""
    known = {page.name: page for page in pages}
    places = {}
    for metric in {claim.metric for claim in claims if claim.metric and claim.measured is not None}:
        record, _, name = metric.partition(":")
        if record.startswith(SHIPPED):
            places[metric] = (_showing(record.removeprefix(SHIPPED), pages), f"#{metric}")
        elif record in known:
            cell = known[record].cell_of(name)
            places[metric] = (f"{record}.html#{cell}" if cell else "", f"{record}.html#{name}")
    return places


def _showing(student: str, pages: Sequence[Page]) -> str:
    """The section of a page that names a student that ships, in code or in what it prints; empty if none does."""
    parts = ((page.name, section) for page in pages for section in page.sections)
    found = (f"{name}.html#{section.id}" for name, section in parts if student in "".join(section.steps))
    return next(found, "")
