"""The house is in order: one idea a room, arrows downwards, a README that is true, no trace of a machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from house import MODULES, ROOT, imported, needs_git, project, tracked

import delib


@pytest.mark.parametrize("module", MODULES)
def test_no_module_holds_two_ideas(module: str) -> None:
    assert len((ROOT / "delib" / f"{module}.py").read_text().splitlines()) <= 400


def floors() -> dict[str, int]:
    """The README's table: the floor of every module that it names. It names none twice."""
    section = (ROOT / "README.md").read_text().split("| floor | modules |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (\d) \| (.+) \|$", section, re.MULTILINE)
    pairs = [(name, int(floor)) for floor, text in rows for name in re.findall(r"`(\w+)`", text)]
    assert len(pairs) == len(dict(pairs)), "a module stands in the table twice"
    return dict(pairs)


def test_the_readme_names_exactly_the_modules_there_are() -> None:
    assert sorted(floors()) == MODULES


def test_no_module_uses_one_of_a_higher_floor() -> None:
    of = floors()
    upwards = [
        f"{module} uses {name}"
        for module in MODULES
        for name in (full.split(".")[1] for full in imported(module) if full.startswith("delib."))
        if of[name] > of[module]
    ]
    assert not upwards


def test_licence_and_citation() -> None:
    assert (ROOT / "LICENSE").read_text().startswith("MIT License\n\nCopyright (c) ")
    assert project()["license"] == "MIT"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == "MIT"
    assert {"message", "title", "authors"} <= set(citation)
    (paper,) = citation["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:2206.05859"
    assert "2206.05859" in (ROOT / "README.md").read_text()


def test_one_version_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project()["version"] == delib.__version__ == str(citation["version"])
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## {re.escape(delib.__version__)}\b", changes, re.MULTILINE)


@needs_git
def test_links_in_documents_lead_somewhere() -> None:
    for document in (path for path in tracked() if path.suffix == ".md"):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / document).read_text()):
            assert (ROOT / document.parent / target).exists(), f"{document} links to {target}"


def test_the_readme_s_make_targets_are_there() -> None:
    named = set(re.findall(r"(?:`| {4})make (\w+)", (ROOT / "README.md").read_text()))
    assert {"report", "test", "lab", "lint", "bench", "clean"} <= named
    makefile = (ROOT / "Makefile").read_text()
    assert not [target for target in named if not re.search(rf"^{target}:.*##", makefile, re.MULTILINE)]


# Folders of the machine that a file was written on, and hosts that only some machines can reach.
MACHINE = re.compile(r"(?<![\w.\-/])/(?:home|root|Users|work|mnt|tmp|var/folders)/[\w.\-]+")
LOCAL_HOST = re.compile(
    r"https?://(?:[^/\s@]+@|\d+\.\d+\.\d+\.\d+|localhost|[^/\s.\"'`)]+(?:[/:\s\"'`)]|$)|[^/\s]+:\d+"
    r"|[^/\s]*\b(?:artifactory|nexus|proxy|registry|internal|intranet)\b)"
)


@needs_git
def test_no_tracked_file_names_a_machine_or_a_private_host() -> None:
    found = []
    for path in tracked():
        if path == Path("tests") / Path(__file__).name:
            continue
        text = (ROOT / path).read_bytes().decode("utf-8", errors="ignore")
        text = re.sub(r"base64,[A-Za-z0-9+/=\s]+", "", text)
        for pattern in (MACHINE, LOCAL_HOST):
            found += [f"{path}: {match[0]}" for match in pattern.finditer(text)]
    assert not found


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("see /home/someone/project", True),
        ("C = '/mnt/x'", True),
        ("notebooks/tmp/x", False),
        ("http://10.0.0.1/packages", True),
        ("https://registry.some.company.net/npm", True),
        ("https://host:8081/x", True),
        ("https://pytorch.org/get-started", False),
        ("http://buildhost/packages", True),
    ],
)
def test_the_search_for_machines_finds_them(text: str, named: bool) -> None:
    assert bool(MACHINE.search(text) or LOCAL_HOST.search(text)) == named
