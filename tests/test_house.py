"""The house is in order: one idea a room, arrows downwards, a README that is true, no trace of a machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from house import MODULES, ROOT, imported, needs_git, project, source, tracked

import delib

# The README's table of the house, as strict as it reads: which wings a wing may use beside files.
MAY_USE: dict[str, set[str]] = {
    "cli": {"suite", "detection", "distillation", "coding", "data"},
    "suite": set(),
    "detection": {"distillation", "evolution", "layerwise", "coding", "data", "nn"},
    "distillation": {"evolution", "layerwise", "coding", "nn"},
    "evolution": {"layerwise", "coding", "nn"},
    "layerwise": {"coding", "nn"},
    "coding": set(),
    "data": {"nn"},
    "nn": set(),
    "files": set(),
}
LIBRARIES_LATE = ("torch", "numpy", "matplotlib", "pandas", "ultralytics")
MOST_PARAMETERS = 8


def wing_of(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("module", [module for module in MODULES if wing_of(module) in MAY_USE])
def test_arrows_between_wings_point_downwards(module: str) -> None:
    used = {name.split(".")[1] for name in imported(module) if name.startswith("delib.")}
    upwards = used - MAY_USE[wing_of(module)] - {wing_of(module), "files"}
    assert not upwards, f"delib/{module} uses {upwards}"


def test_every_module_lives_in_a_wing_that_the_readme_shows() -> None:
    assert {wing_of(module) for module in MODULES} == {*MAY_USE, "__main__"}
    table = (ROOT / "README.md").read_text().split("| wing |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)", table, re.MULTILINE)) == {*MAY_USE}


def test_the_container_needs_no_torch() -> None:
    assert not {name for name in imported("coding.container") if name.split(".")[0] == "torch"}


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_a_private_name_of_another(module: str) -> None:
    nodes = [node for node in ast.walk(ast.parse(source(module).read_text())) if isinstance(node, ast.ImportFrom)]
    private = [alias.name for node in nodes for alias in node.names if alias.name.startswith("_")]
    assert [name for name in private if name != "_BatchNorm"] == [], (
        "torch's base class of batch norms has no other name"
    )


@pytest.mark.parametrize("module", MODULES)
def test_no_function_has_more_than_eight_parameters(module: str) -> None:
    for node in ast.walk(ast.parse(source(module).read_text())):
        if isinstance(node, ast.FunctionDef):
            names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            count = len([name for name in names if name not in ("self", "cls")])
            assert count <= MOST_PARAMETERS or is_command(node), f"{node.name} of delib/{module} has {count} parameters"


def is_command(node: ast.FunctionDef) -> bool:
    """Of the command line, where parameters are options."""
    return any("command" in ast.unparse(decorator) for decorator in node.decorator_list)


def test_importing_delib_is_quick_and_imports_no_library() -> None:
    code = "import sys, delib; print([name for name in sys.argv[1:] if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, *LIBRARIES_LATE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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
