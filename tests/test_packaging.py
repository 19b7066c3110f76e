"""What a fresh checkout needs to install, test and cite itself."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from delib import __version__, claims

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")


def requirements() -> list[Requirement]:
    extras = [entry for extra in PROJECT["optional-dependencies"].values() for entry in extra]
    return [Requirement(entry) for entry in PROJECT["dependencies"] + extras]


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return listed.stdout.splitlines()


def test_conda_installs_what_pyproject_says_and_no_more() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, pip = environment["dependencies"]
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    assert pip == {"pip": ["-e .[dev]"]}


def test_the_lock_holds_every_dependency_within_its_bounds() -> None:
    locked = {
        name.lower(): Version(number) for name, number in re.findall(r"^([\w.-]+)==([^\s;]+)", LOCK, re.MULTILINE)
    }
    for requirement in requirements():
        assert locked[requirement.name.lower()] in requirement.specifier, requirement


def test_the_lock_has_hashes_and_names_no_index() -> None:
    entries = re.findall(r"^[\w.-]+==.*\n(?: .*\n)*", LOCK, re.MULTILINE)
    assert len(entries) > 50
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in LOCK


def test_everything_that_delib_imports_is_declared() -> None:
    declared = {requirement.name.lower() for requirement in map(Requirement, PROJECT["dependencies"])}
    # These stand or fall with a declared package: they are its own foundation.
    declared |= {"traitlets", "nbclient", "markupsafe", "cycler", "ipython"}
    distributions = packages_distributions()
    for path in (ROOT / "delib").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for top in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"delib", "__future__"}:
                owners = {owner.lower() for owner in distributions.get(top, [top])}
                assert owners & declared, f"{path.name} imports {top}"


def test_a_wheel_of_what_is_committed_is_complete(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in tracked():
        if not name.startswith("reports/") and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = source.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"delib-{__version__}.dist-info/METADATA").decode()
        entries = archive.read(f"delib-{__version__}.dist-info/entry_points.txt").decode()
    modules = {f"delib/{path.name}" for path in (source / "delib").glob("*.py")}
    templates = {f"delib/templates/{path.name}" for path in (source / "delib" / "templates").iterdir()}
    assert modules | templates | {"delib/py.typed"} <= names
    assert f"Version: {__version__}" in metadata
    assert "License-Expression: MIT" in metadata
    assert "delib = delib.cli:main" in entries


def test_one_version_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert PROJECT["version"] == __version__ == citation["version"]
    assert re.search(rf"^## {re.escape(__version__)}\b", changelog, re.MULTILINE)


def test_the_citation_names_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    (paper,) = citation["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:2206.05859"
    assert "2206.05859" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readmes_claims_are_those_of_the_reference_report() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert claims.with_table(readme, claims.read_claims(ROOT / "reports" / "reference")) == readme


def test_the_readme_names_every_module_and_every_make_target() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "delib").glob("[a-z]*.py"):
        assert f"`{path.stem}`" in readme, path.name
    for target in ("report", "test", "lab", "lint", "bench", "clean", "reference"):
        assert f"`make {target}`" in readme or f"    make {target} " in readme
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_links_of_the_readmes_lead_somewhere() -> None:
    for readme in (path for path in map(ROOT.joinpath, tracked()) if path.name == "README.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", readme.read_text(encoding="utf-8")):
            if not target.startswith("reports/reference/"):  # made, and committed, by `make reference`
                assert (readme.parent / target).exists(), f"{readme}: {target}"


def test_no_module_of_delib_is_long() -> None:
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "delib").glob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 310} == {}
