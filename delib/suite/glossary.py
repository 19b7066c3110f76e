"""The README's glossary, and prose in which each of its terms is explained where it first occurs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from pathlib import Path

ROW = re.compile(r"\| (?P<terms>[^|]+?) \| (?P<meanings>[^|]+?) \|[^|]*\|")
HEADING = "## The words"
SILENT = re.compile(r"</?(a|code|math|abbr|dfn|strong|h\d)\b")  # elements whose text is left alone


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


class Glossary:
    """Marks the first occurrence of each term in one page's prose, as an ``<abbr>`` whose title explains it."""

    def __init__(self, meanings: Mapping[str, str]) -> None:
        self.left = {term.lower(): meaning for term, meaning in meanings.items()}

    def marked(self, html: str) -> str:
        """A paragraph's HTML with its terms marked; code, formulas, links and what is emphasised are left alone."""
        pieces, silent = re.split(r"(<[^>]+>)", html), 0
        for i, piece in enumerate(pieces):
            if i % 2:
                silent += bool(SILENT.match(piece)) * (-1 if piece.startswith("</") else 1)
            elif not silent:
                pieces[i] = self._explained(piece)
        return "".join(pieces)

    def _explained(self, text: str) -> str:
        if not self.left:
            return text
        longest = sorted(self.left, key=len, reverse=True)
        pattern = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, longest))})(s|es)?(?![\w-])", re.IGNORECASE)

        def explain(found: re.Match[str]) -> str:
            meaning = self.left.pop(found[1].lower(), None)
            return f'<abbr title="{escape(meaning)}">{found[0]}</abbr>' if meaning else found[0]

        return pattern.sub(explain, text)
