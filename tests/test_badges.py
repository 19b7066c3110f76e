"""`delib badges`: the README points to Binder and Colab, and Colab's copies of the notebooks install themselves."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from house import ROOT
from IPython.core.inputtransformer2 import TransformerManager
from typer.testing import CliRunner

from delib.cli import app

ADDRESS = "https://github.com/someone/directed-evolution"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    shutil.copy(ROOT / "README.md", tmp_path)
    monkeypatch.setenv("DELIB_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("address", [ADDRESS, ADDRESS + ".git", ADDRESS + "/"])
def test_each_badge_opens_a_notebook_that_is_there(home: Path, address: str) -> None:
    assert CliRunner().invoke(app, ["badges", address]).exit_code == 0
    once = (home / "README.md").read_text()
    links = re.findall(
        r"\]\(https://colab\.research\.google\.com/github/someone/directed-evolution/blob/HEAD/(.+?)\)", once
    )
    assert [Path(link).name for link in links] == sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert all((home / link).is_file() for link in links)
    assert "(https://mybinder.org/v2/gh/someone/directed-evolution/HEAD?" in once
    CliRunner().invoke(app, ["badges", address])
    assert (home / "README.md").read_text() == once


def test_a_copy_is_the_notebook_behind_one_cell(home: Path) -> None:
    CliRunner().invoke(app, ["badges", ADDRESS])
    for path in (home / "colab").iterdir():
        copy = json.loads(path.read_text())
        nbformat.validate(copy)
        _, *rest = copy["cells"]
        assert rest == json.loads((home / "notebooks" / path.name).read_text())["cells"]


def test_the_cell_installs_in_colab_and_does_nothing_elsewhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CliRunner().invoke(app, ["badges", ADDRESS])
    cell = "".join(json.loads((home / "colab" / "00_method.ipynb").read_text())["cells"][0]["source"])
    ran: list[str] = []

    class Shell:
        def system(self, command: str) -> None:
            ran.append(command)

        def run_line_magic(self, name: str, line: str) -> None:
            ran.append(f"{name} {line}")

    names: dict[str, Any] = {"get_ipython": Shell}
    python = TransformerManager().transform_cell(cell)
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    exec(python, names)
    assert ran == []
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    exec(python, names)
    assert ran == [f"git clone -q {ADDRESS} repository", "cd repository", "pip install -q ."]


@pytest.mark.parametrize(
    "address", ["", "someone/name", "https://example.org/someone/name", "https://github.com/someone"]
)
def test_another_address_is_refused_in_one_line_and_nothing_is_written(home: Path, address: str) -> None:
    result = CliRunner().invoke(app, ["badges", address])
    assert result.exit_code
    assert "expected https://github.com/OWNER/NAME" in str(result.exception)
    assert not (home / "colab").exists()
    assert (home / "README.md").read_text() == (ROOT / "README.md").read_text()
