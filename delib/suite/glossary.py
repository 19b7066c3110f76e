"""The glossary, which stands in the README: what each word means."""

from __future__ import annotations

import re
from pathlib import Path

ROW = re.compile(r"\| (?P<terms>[^|]+?) \| (?P<meanings>[^|]+?) \|[^|]*\|")
HEADING = "## The words"


def read_glossary(readme: Path) -> dict[str, str]:
    """Each term of the table under ``HEADING`` with its meaning; empty where there is none.

    Several terms of a row are separated by commas, their meanings by semicolons if there are as many.
    """
    _, _, rest = readme.read_text(encoding="utf-8").partition(f"\n{HEADING}\n") if readme.is_file() else ("", "", "")
    glossary: dict[str, str] = {}
    for row in ROW.finditer(rest.partition("\n## ")[0]):
        terms, meanings = row["terms"].split(", "), row["meanings"].split("; ")
        if terms == ["here"] or set(row["terms"]) <= {"-", " "}:
            continue
        if len(terms) != len(meanings):
            meanings = [row["meanings"]] * len(terms)
        glossary |= dict(zip(terms, meanings, strict=True))
    return glossary
