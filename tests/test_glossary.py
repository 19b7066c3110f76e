"""The glossary: what the README explains, and where pages show it."""

from __future__ import annotations

from pathlib import Path

from house import ROOT

from delib.suite.glossary import Glossary, read_glossary


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
    glossary = Glossary({"teacher": 'the <"original">', "student": "the sparse one"})
    first = glossary.marked("Students ask; the teacher answers. Every teacher does.")
    said = "the &lt;&quot;original&quot;&gt;"
    assert first == (
        f'<abbr title="the sparse one">Students</abbr> ask; the <abbr title="{said}">teacher</abbr> answers. '
        "Every teacher does."
    )
    assert glossary.marked("A teacher and a student.") == "A teacher and a student."


def test_code_links_formulas_and_attributes_are_left_alone() -> None:
    html = '<code>teacher</code> <a>the teacher</a> <math><mi>teacher</mi></math> <i title="teacher">teachers-pet</i>'
    assert Glossary({"teacher": "t"}).marked(html) == html
    assert Glossary({"teacher": "t"}).marked(html + " teacher").endswith(' <abbr title="t">teacher</abbr>')


def test_the_longest_term_counts() -> None:
    found = Glossary({"Sparsity": "share of zeros", "sparsity database": "entries"}).marked("The sparsity database.")
    assert found == 'The <abbr title="entries">sparsity database</abbr>.'
