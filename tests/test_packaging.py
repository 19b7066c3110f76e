"""A fresh checkout: its bounds agree everywhere, what is built is whole, and what is promised is there."""

from __future__ import annotations

import email
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from house import MODULES, ROOT, imported, needs_git, project, tracked
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Where a lock must serve: two platforms, and every Python that its packages are out for.
PLATFORMS = (
    {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"},
    {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64", "os_name": "posix"},
)
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# Distributions whose modules have another name, so that the test needs no installed metadata.
NAMES = {"bs4": "beautifulsoup4", "cv2": "opencv-python", "IPython": "ipython", "PIL": "pillow", "yaml": "pyyaml"}


def direct_requirements() -> list[Requirement]:
    """What pyproject.toml asks for, extras included."""
    extras = project()["optional-dependencies"].values()
    return [Requirement(text) for group in (project()["dependencies"], *extras) for text in group]


def locked() -> list[tuple[Requirement, str]]:
    """Each entry of the lock: its requirement, and the whole text with hashes."""
    text = (ROOT / "requirements.lock").read_text()
    entries = re.findall(r"^(?! |#)(.+(?:\n .+)*)", text, re.MULTILINE)
    return [(Requirement(entry.split("\\\n")[0]), entry) for entry in entries]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git tracks, with nothing installed or built in it."""
    folder = tmp_path_factory.mktemp("checkout")
    for path in tracked():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    return folder


def test_conda_installs_this_repository_and_repeats_no_bound() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert conda == [f"python{project()['requires-python']}", "pip"]
    (installed,) = pip["pip"]
    extras = re.fullmatch(r"-e \.\[(.+)\]", installed)
    assert extras is not None, f"{installed} does not install this checkout"
    assert set(extras[1].split(",")) <= set(project()["optional-dependencies"])


def test_no_other_file_states_dependencies() -> None:
    for name in ("setup.py", "setup.cfg", "requirements.txt", "Pipfile", "poetry.lock"):
        assert not (ROOT / name).exists(), f"{name} would be a second place for bounds"


@pytest.mark.parametrize("requirement", direct_requirements(), ids=str)
def test_the_lock_has_every_direct_dependency_within_its_bounds(requirement: Requirement) -> None:
    entries = [r for r, _ in locked() if canonicalize_name(r.name) == canonicalize_name(requirement.name)]
    for platform in PLATFORMS:
        for python in PYTHONS:
            environment = {**platform, "python_version": python, "python_full_version": f"{python}.1"}
            chosen = [r for r in entries if r.marker is None or Marker(str(r.marker)).evaluate(environment)]
            assert len(chosen) == 1, f"{requirement.name} on {platform['sys_platform']}, Python {python}: {chosen}"
            (pin,) = chosen[0].specifier
            assert pin.operator == "=="
            assert requirement.specifier.contains(pin.version, prereleases=True), f"{chosen[0]} is not {requirement}"


def test_the_lock_is_hashed_and_names_no_index() -> None:
    entries = locked()
    assert len(entries) > 50
    for requirement, text in entries:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", text), f"{requirement.name} has no hash"
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert not [line for line in lines if "://" in line]
    assert not [line for line in lines if line.strip().startswith("-") and not line.startswith("    --hash=sha256:")]


@pytest.mark.parametrize("module", MODULES)
def test_everything_a_module_imports_is_a_declared_dependency(module: str) -> None:
    extras = [texts for name, texts in project()["optional-dependencies"].items() if name != "dev"]
    texts = [*project()["dependencies"], *itertools.chain.from_iterable(extras)]
    declared = {canonicalize_name(Requirement(text).name) for text in texts}
    used = {name.split(".")[0] for name in imported(module)} - set(sys.stdlib_module_names) - {"delib"}
    undeclared = {name for name in used if canonicalize_name(NAMES.get(name, name)) not in declared}
    assert not undeclared, f"delib/{module}.py imports {undeclared}, which pyproject.toml does not ask for"


@needs_git
def test_the_wheel_holds_the_whole_package(checkout: Path, tmp_path: Path) -> None:
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("delib-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        expected = [str(p) for p in tracked() if p.parts[0] == "delib"]
        assert sorted(names) == sorted(expected)
        assert {"delib/py.typed", "delib/suite/templates/style.css", "delib/suite/templates/index.html.j2"} <= set(
            names
        )
        metadata = email.message_from_bytes(archive.read(f"delib-{project()['version']}.dist-info/METADATA"))
        assert {Requirement(t) for t in metadata.get_all("Requires-Dist", [])} >= {
            Requirement(text) for text in project()["dependencies"]
        }
        assert metadata["License-Expression"] == "MIT"
        entry_points = archive.read(f"delib-{project()['version']}.dist-info/entry_points.txt").decode()
        assert "delib = delib.cli:main" in entry_points
        archive.extractall(tmp_path / "site")
    # From outside the checkout, the packaged module starts and finds its templates.
    code = "import delib.suite.report as r; print(r.__file__, r.template('index.html.j2').name)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "site") in done.stdout
    assert "index.html.j2" in done.stdout


def dry_run(folder: Path, target: str) -> str:
    command = ["make", "--dry-run", "--no-print-directory", target]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


@needs_git
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("target", "does"),
    [
        ("report", "delib report --profile quick"),
        ("test", "pytest"),
        ("lab", "jupyter lab"),
        ("lint", "mypy"),
        ("bench", "benchmarks/"),
    ],
)
def test_on_a_fresh_checkout_each_target_sets_itself_up_first(checkout: Path, target: str, does: str) -> None:
    (checkout / "benchmarks").mkdir(exist_ok=True)
    (checkout / "benchmarks" / "any.py").touch()
    steps = dry_run(checkout, target)
    order = [steps.find(part) for part in ("-m venv .venv", "--requirement requirements.lock", "--editable .", does)]
    assert -1 not in order
    assert order == sorted(order)
    assert "--require-hashes" in steps


@needs_git
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_sets_up_again_only_if_the_lock_changed(checkout: Path) -> None:
    ready = checkout / ".venv" / "ready"
    ready.parent.mkdir(exist_ok=True)
    ready.touch()
    assert "venv .venv" not in dry_run(checkout, "test")
    later = ready.stat().st_mtime + 5
    os.utime(checkout / "requirements.lock", (later, later))
    assert "venv .venv" in dry_run(checkout, "test")
    shutil.rmtree(ready.parent)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_alone_lists_the_commands() -> None:
    said = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in said.splitlines()} >= {"report", "test", "lab", "lint", "bench", "clean"}


@needs_git
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_sets_up_that_outputs_of_notebooks_are_never_committed(checkout: Path) -> None:
    def call(*command: str) -> str:
        return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True).stdout

    (checkout / ".venv").symlink_to(sys.prefix)
    call("make", "filter")  # in a tarball: nothing happens
    assert "filter" in dry_run(checkout, "test"), "with all else that the first call sets up"
    call("git", "init", "--quiet")
    call("git", "add", "--all")
    some = call("git", "ls-files", "*.ipynb").split()[:2]  # one that was run and one that was not; a second each
    before = {path: call("git", "show", f":{path}") for path in some}
    call("make", "filter")
    path = some[0]
    book = json.loads((checkout / path).read_text())
    for count, cell in enumerate(cell for cell in book["cells"] if cell["cell_type"] == "code"):
        output = {"output_type": "stream", "name": "stdout", "text": ["seen\n"]}
        cell.update(execution_count=count, outputs=[output], metadata={**cell["metadata"], "collapsed": True})
    book["metadata"]["language_info"] |= {"version": "3.99", "mimetype": "text/x-python"}
    book["metadata"]["widgets"] = {"state": {}}
    (checkout / path).write_text(json.dumps(book))
    call("git", "add", "--renormalize", *some)
    assert {path: call("git", "show", f":{path}") for path in some} == before
    (checkout / ".venv").unlink()
    shutil.rmtree(checkout / ".git")


def test_clean_keeps_the_data_and_the_reference() -> None:
    steps = dry_run(ROOT, "clean")
    assert "data" not in steps
    assert "! -name reference" in steps


def test_continuous_integration_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text().splitlines()
    assert "set -e" in script.read_text()


WORDS = {"--quiet", "--disable-pip-version-check", "python", "$(BIN)/python"}  # in which calls of pip may differ


def test_binder_installs_what_make_installs() -> None:
    """Neither can be run here; what both call is the same, and every file that it needs is there."""
    calls, made = (
        [set(line.split()) - WORDS for line in (ROOT / name).read_text().splitlines() if "-m pip install" in line]
        for name in (".binder/postBuild", "Makefile")
    )
    assert calls == made
    assert os.access(ROOT / ".binder" / "postBuild", os.X_OK)
