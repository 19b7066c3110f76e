"""What the paper and the project claim, and whether the records bear it out."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delib.files import project_root, write_bytes
from delib.suite.record import read_record, read_records

MARKERS = ("<!-- claims -->", "<!-- /claims -->")
SOURCES = {"paper": "The paper (abstract)", "project": "This project"}
COMPARISONS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "at_least": ("≥", lambda measured, threshold: measured >= threshold),
    "above": (">", lambda measured, threshold: measured > threshold),
    "at_most": ("≤", lambda measured, threshold: measured <= threshold),
}
UNITS: dict[str, Callable[[float], str]] = {
    "percent": lambda x: f"{100 * x:.2f}%",
    "points": lambda x: f"{100 * x:.2f} points",
    "times": lambda x: f"{x:.1f}×",
    "bits": lambda x: f"{x:g} bits",
    "seconds": lambda x: f"{x:.0f} s",
    "bytes": lambda x: f"{x:,.0f} bytes",
}
# Accuracies come as float32, and 0.98 - 0.975 is a little more than 0.005: beyond these decimals is only noise.
DECIMALS = 6
NOT_MEASURED, REACHED, NOT_REACHED = "not measured in this profile", "reached", "not reached"


@dataclass(frozen=True)
class Claim:
    """A claim, the value measured for it (None: not measured), and the comparison that decides."""

    text: str
    source: str
    on: str = ""
    unit: str = "percent"
    comparison: str = ""
    threshold: float = 0.0
    measured: float | None = None
    metric: str = ""  # what measures it, "<record>:<network>.<metric>"
    headline: bool | str = False  # stands in the README, in these words if they are given; the report has all

    @property
    def verdict(self) -> str:
        """One of ``REACHED``, ``NOT_REACHED``, ``NOT_MEASURED``."""
        if self.measured is None:
            return NOT_MEASURED
        measured = round(self.measured, DECIMALS)
        return REACHED if COMPARISONS[self.comparison][1](measured, self.threshold) else NOT_REACHED

    @property
    def stated(self) -> str:
        """The claim in words that stand alone, as ``text`` may go on from the claim before it."""
        return self.headline if isinstance(self.headline, str) and self.headline else self.text

    @property
    def shown(self) -> str:
        """The measured value with its unit; empty if not measured."""
        return "" if self.measured is None else UNITS[self.unit](self.measured)

    @property
    def goal(self) -> str:
        """The threshold with its comparison, such as ``≥ 55.0×``; empty if nothing measures the claim yet."""
        if not self.comparison:
            return ""
        return f"{COMPARISONS[self.comparison][0]} {UNITS[self.unit](self.threshold)}"


def read_claims(run: str | Path) -> list[Claim]:
    """The claims with what was measured for them: by the records of ``run``, or by those of the students that ship.

    Raises ValueError on a malformed list or record.
    """
    path = project_root() / "reports" / "claims.toml"
    if not path.is_file():
        return []
    records = read_records(run) | {f"students/{name}": record for name, record in student_records().items()}
    metrics = {f"{source}:{name}": x for source, record in records.items() for name, x in record["metrics"].items()}
    try:
        return [_claim(entry, metrics) for entry in tomllib.loads(path.read_text(encoding="utf-8"))["claim"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name}: {error}") from None


def student_records() -> dict[str, dict[str, Any]]:
    """The records in ``data/students``, by name, also of a student that may not ship itself (``"ships": false``).

    Raises ValueError on a bad one.
    """
    return {file.stem: read_record(file) for file in sorted((project_root() / "data" / "students").glob("*.json"))}


def _claim(entry: dict[str, Any], metrics: Mapping[str, float]) -> Claim:
    entry = dict(entry)
    metric, minus = entry.pop("metric", None), entry.pop("minus", None)
    comparisons = {name: entry.pop(name) for name in COMPARISONS if name in entry}
    claim = f"claim {entry.get('text', '')!r}"
    if strays := set(entry) - {"text", "source", "on", "unit", "headline"}:
        raise ValueError(f"{claim}: unknown key {min(strays)!r}")
    if entry.get("source") not in SOURCES or entry.get("unit", "percent") not in UNITS:
        raise ValueError(f"{claim}: source must be one of {', '.join(SOURCES)}, unit one of {', '.join(UNITS)}")
    if len(comparisons) != (metric is not None):
        raise ValueError(f"{claim}: a metric goes with exactly one of {', '.join(COMPARISONS)}")
    if metric is None:
        return Claim(**entry)
    ((comparison, threshold),) = comparisons.items()
    measured = metrics.get(metric)
    if minus is not None and measured is not None:
        measured = measured - metrics[minus] if minus in metrics else None
    return Claim(**entry, metric=metric, comparison=comparison, threshold=threshold, measured=measured)


def markdown_table(claims: list[Claim]) -> str:
    """The claims as a Markdown table."""
    rows = ["| claimed by | claim | on | goal | measured | |", "|---|---|---|---|---|---|"]
    for claim in claims:
        verdict = {REACHED: "✓ reached", NOT_REACHED: "✗ **not reached**", NOT_MEASURED: "not measured"}[claim.verdict]
        rows.append(
            f"| {SOURCES[claim.source]} | {claim.stated} | {claim.on} | {claim.goal} | {claim.shown} | {verdict} |"
        )
    return "\n".join(rows)


def with_table(readme: str, claims: list[Claim]) -> str:
    """README's text with the table of headlines (of all claims if none is one) between its markers made anew.

    Raises ValueError without both markers.
    """
    claims = [claim for claim in claims if claim.headline] or claims
    return between(readme, MARKERS, f"\n{markdown_table(claims)}\n")


def between(readme: str, markers: tuple[str, str], text: str) -> str:
    """README's text with ``text`` between two markers, each on a line of its own. Raises ValueError without both."""
    begin, end = markers
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if len(pattern.findall(readme)) != 1:
        raise ValueError(f"README.md needs the markers {begin} and {end}, once")
    return pattern.sub(lambda _: f"{begin}\n{text}\n{end}", readme)


def update_readme(run: str | Path = "reference") -> Path:
    """Rewrite README's table of claims from the records of ``run``. Returns README's path."""
    path = project_root() / "README.md"
    write_bytes(path, with_table(path.read_text(encoding="utf-8"), read_claims(run)).encode())
    return path
