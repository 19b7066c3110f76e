"""The glossary: what the README explains, and where pages show it."""

from __future__ import annotations

from pathlib import Path

from bs4 import BeautifulSoup
from house import ROOT

from delib.suite.glossary import read_glossary
from delib.suite.layout import explained


def marked(html: str, **glossary: str) -> str:
    """The inside of a paragraph once its terms are explained."""
    page = BeautifulSoup(f'<div class="prose"><p>{html}</p></div>', "html.parser")
    explained(page, {term.replace("_", " "): meaning for term, meaning in glossary.items()})
    return page.p.decode_contents() if page.p else ""


def test_the_readme_explains_the_words() -> None:
    glossary = read_glossary(ROOT / "README.md")
    assert len(glossary) > 40
    assert all(term and meaning and "|" not in term + meaning for term, meaning in glossary.items())
    assert "original network" in glossary["teacher"] and "sparse" in glossary["student"]
    assert glossary["augmentation"] == glossary["views"]
    assert "here" not in glossary


def test_no_readme_no_glossary(tmp_path: Path) -> None:
    assert read_glossary(tmp_path / "README.md") == {}


def test_a_term_is_explained_where_it_first_occurs_and_only_there() -> None:
    found = marked(
        "Students ask; the teacher answers. Every teacher does.", teacher='the <"original">', student="sparse"
    )
    assert found == (
        '<abbr title="sparse">Students</abbr> ask; the <abbr title=\'the &lt;"original"&gt;\'>teacher</abbr> answers. '
        "Every teacher does."
    )


def test_code_links_formulas_and_attributes_are_left_alone() -> None:
    html = '<code>teacher</code> <a>the teacher</a> <math><mi>teacher</mi></math> <i title="teacher">teachers-pet</i>'
    assert marked(html, teacher="t") == html
    assert marked(html + " teacher", teacher="t").endswith(' <abbr title="t">teacher</abbr>')


def test_the_longest_term_counts() -> None:
    found = marked("The sparsity database.", sparsity="share of zeros", sparsity_database="entries")
    assert found == 'The <abbr title="entries">sparsity database</abbr>.'
