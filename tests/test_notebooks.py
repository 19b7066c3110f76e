"""The real notebooks: committed clean, within their form, and running whole in profile smoke."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from delib import claims, pages, parameters, runner

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LONGEST_CELL = 20

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def content(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def test_there_are_notebooks_and_they_are_numbered() -> None:
    assert NOTEBOOKS
    assert all(path.stem[:2].isdigit() and path.stem[2] == "_" for path in NOTEBOOKS)
    assert len({path.stem[:2] for path in NOTEBOOKS}) == len(NOTEBOOKS)


@each_notebook
def test_committed_clean(path: Path) -> None:
    notebook = content(path)
    assert "widgets" not in notebook["metadata"]
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@each_notebook
def test_begins_with_a_title_and_a_paragraph_then_the_parameters(path: Path) -> None:
    first, second, *_ = content(path)["cells"]
    title, _, paragraph = "".join(first["source"]).partition("\n\n")
    assert title.startswith("# ")
    assert paragraph.strip()
    assert "parameters" in second["metadata"]["tags"]
    assert parameters.read_parameters(path)["profile"].default == "quick"


@each_notebook
def test_cells_are_short(path: Path) -> None:
    for cell in content(path)["cells"]:
        if cell["cell_type"] == "code":
            assert len("".join(cell["source"]).splitlines()) <= LONGEST_CELL


@each_notebook
@pytest.mark.parametrize("profile", parameters.PROFILES)
def test_every_profile_fits_the_notebook(path: Path, profile: str) -> None:
    assert parameters.profile_parameters(path, profile)["profile"] == profile


def test_profiles_name_notebooks_that_exist() -> None:
    profiles = tomllib.loads((ROOT / "notebooks" / "profiles.toml").read_text(encoding="utf-8"))
    assert set(profiles) <= {path.stem for path in NOTEBOOKS}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of its own for the smoke runs, so that nothing left by an earlier run is taken for this one's."""
    return tmp_path_factory.mktemp("smoke")


@each_notebook
def test_runs_in_smoke_and_reads_well(path: Path, smoke: Path) -> None:
    result = runner.run(path, "smoke", into=smoke)
    record = json.loads(result.record.read_text())
    assert record["parameters"]["profile"] == "smoke"
    assert record["metrics"]
    page = pages.read_page(result.notebook)
    assert page.picture, "no picture for the report's index"
    assert 'class="latex"' not in page.body, "a formula that latex2mathml cannot read"
    assert "<img alt=" not in page.body.replace('<img alt="', ""), "a picture without alt"


def test_claims_ask_for_metrics_that_the_notebooks_record(smoke: Path) -> None:
    if len(list(smoke.glob("records/*.json"))) < len(NOTEBOOKS):
        pytest.skip("not all notebooks ran")
    measured = [claim for claim in claims.read_claims(smoke) if claim.comparison]
    assert measured
    assert [claim.text for claim in measured if claim.verdict == claims.NOT_MEASURED] == []
