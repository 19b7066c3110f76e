"""The runner: what it refuses, what it leaves behind, what it does not do twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PARAMETERS, notebook

from delib import parameters, runner
from delib.records import read_records


def cells_of(path: Path) -> str:
    return json.dumps(json.loads(path.read_text())["cells"])


def write_first(project: Path, *extra: str, parameters_cell: str = PARAMETERS) -> Path:
    """The first notebook with other code: the given cells, between its beginning and its record."""
    path = project / "notebooks" / "00_first.ipynb"
    begin = [("code", parameters_cell, "parameters"), ("code", "from delib.records import Run")]
    end = ("code", 'Run("00_first", globals()).write()')
    path.write_text(notebook([*begin, *(("code", source) for source in extra), end]))
    return path


# --- Parameters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epohcs": 3}, "no parameter `epohcs`; did you mean `epochs`?"),
        ({"zzz": 3}, "it takes profile, seed, epochs, rate, deep, sparsities"),
        ({"epochs": 2.5}, "`epochs` must be a whole number such as 2, got 2.5"),
        ({"epochs": True}, "`epochs` must be a whole number"),
        ({"deep": "true"}, "`deep` must be true or false"),
        ({"deep": 1}, "`deep` must be true or false"),
        ({"rate": "0.1"}, "`rate` must be a finite number"),
        ({"rate": float("nan")}, "`rate` must be a finite number"),
        ({"sparsities": [0.5, "a"]}, "`sparsities` must be a list"),
        ({"sparsities": 0.5}, "`sparsities` must be a list"),
    ],
)
def test_wrong_parameters_are_refused_in_one_line(project: Path, given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as error:
        parameters.check_parameters(project / "notebooks" / "00_first.ipynb", given)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("rate", "1e-3", 0.001),
        ("rate", "2", 2.0),
        ("rate", "-.5", -0.5),
        ("epochs", "7", 7),
        ("deep", "true", True),
        ("deep", "False", False),
        ("profile", "true", "true"),
        ("sparsities", "[0.25, 1]", [0.25, 1.0]),
        ("sparsities", "[]", []),
    ],
)
def test_a_command_lines_text_becomes_the_type_of_the_default(
    project: Path, name: str, text: str, value: object
) -> None:
    checked = parameters.check_parameters(project / "notebooks" / "00_first.ipynb", {name: text}, text=True)
    assert checked == {name: value}
    assert type(checked[name]) is type(value)


@pytest.mark.parametrize("text", ["3.5", "three", "true", "", "[1]"])
def test_text_that_is_no_whole_number_is_refused_for_one(project: Path, text: str) -> None:
    with pytest.raises(ValueError, match="`epochs` must be a whole number"):
        parameters.check_parameters(project / "notebooks" / "00_first.ipynb", {"epochs": text}, text=True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("batch = 2 * 64  # images", "is no literal"),
        ("import os  # no", "only `name = literal  # comment`"),
        ("batch = 64", "needs a comment"),
        ("pair = (1, 2)  # a tuple, which JSON does not know", "only `name = literal  # comment`"),
        ("batch = (  # images", "not Python"),
    ],
)
def test_a_parameters_cell_holds_commented_literals_only(project: Path, line: str, message: str) -> None:
    path = write_first(project, parameters_cell=PARAMETERS + line)
    with pytest.raises(ValueError, match=message):
        parameters.read_parameters(path)


def test_a_parameters_cell_must_name_profile_and_seed(project: Path) -> None:
    path = write_first(project, parameters_cell='profile = "quick"  # which')
    with pytest.raises(ValueError, match="must define `seed`"):
        parameters.read_parameters(path)


def test_what_is_no_notebook_is_named(project: Path) -> None:
    path = project / "notebooks" / "02_bad.ipynb"
    path.write_text('{"cells": 3')
    with pytest.raises(ValueError, match=r"02_bad\.ipynb: not a notebook"):
        runner.run(path)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("[00_first.smoke]\nepcohs = 1", "profile smoke: 00_first has no parameter `epcohs`; did you mean `epochs`?"),
        ("[00_first.smoke]\nepochs = 'one'", "profile smoke: 00_first: parameter `epochs` must be a whole number"),
        ("[00_first.quick]\nepochs = 1", "quick is the parameters cell itself"),
        ("[00_first.smoke", "profiles.toml: "),
    ],
)
def test_a_wrong_profile_section_is_refused(project: Path, section: str, message: str) -> None:
    (project / "notebooks" / "profiles.toml").write_text(section)
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        runner.run("00_first", "smoke")


# --- Runs -------------------------------------------------------------------------------------------------------


def test_a_run_takes_the_profiles_values_and_leaves_notebook_and_record(compiled: Path) -> None:
    executed = compiled / "reports" / "smoke" / "notebooks" / "00_first.ipynb"
    assert "batch 1, epochs 1, rate 1.0, deep False" in cells_of(executed)
    record = json.loads((compiled / "reports" / "smoke" / "records" / "00_first.json").read_text())
    assert record["parameters"]["profile"] == "smoke"
    assert record["metrics"] == {"net.accuracy": 0.9, "net.magnitude": 0.8, "net.epochs": 1}
    hidden = [path for path in executed.parent.iterdir() if path.name.startswith(".")]
    assert hidden == []


def test_what_is_up_to_date_is_not_run_again_and_what_changed_is(project: Path) -> None:
    path = write_first(project, "print('one')")
    assert not runner.run(path).reused
    assert runner.run("00_first").reused

    write_first(project, "print('two')")
    changed = runner.run("00_first")
    assert not changed.reused
    assert "two" in cells_of(changed.notebook)

    changed.record.unlink()
    assert not runner.run("00_first").reused


def test_every_ingredient_of_a_result_is_in_its_fingerprint(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = project / "notebooks" / "00_first.ipynb"
    prints = {runner._fingerprint(path, {}), runner._fingerprint(path, {"epochs": 3})}
    (project / "requirements.lock").write_text("torch==1\n")
    prints.add(runner._fingerprint(path, {}))
    monkeypatch.setattr(runner, "package_versions", lambda: {"torch": "0.1"})
    prints.add(runner._fingerprint(path, {}))
    write_first(project)
    prints.add(runner._fingerprint(path, {}))
    assert len(prints) == 5


def test_a_run_with_other_parameters_leaves_the_profiles_results_alone(project: Path) -> None:
    write_first(project)
    own = runner.run("00_first")
    before = own.record.read_bytes()
    custom = runner.run("00_first", parameters={"epochs": "5"}, text=True)
    named = runner.run("00_first", parameters={"epochs": 6}, into="mine")

    assert own.record.read_bytes() == before
    assert read_records("quick-custom")["00_first"]["parameters"]["epochs"] == 5
    assert read_records("mine")["00_first"]["parameters"]["epochs"] == 6
    assert custom.notebook.parent.parent.name == "quick-custom"
    assert named.record == project / "reports" / "mine" / "records" / "00_first.json"
    with pytest.raises(ValueError, match="another folder"):
        runner.run("00_first", parameters={"epochs": 5}, into="quick")
    with pytest.raises(ValueError, match="--profile"):
        runner.run("00_first", parameters={"profile": "smoke"})


def test_a_failing_run_names_cell_and_exception_and_keeps_the_last_good_result(project: Path) -> None:
    write_first(project, "print('good')")
    good = runner.run("00_first")
    write_first(project, "shares = [0.5]\nshares[3]")
    with pytest.raises(runner.RunFailed) as error:
        runner.run("00_first")

    failed = good.notebook.with_name("00_first.failed.ipynb")
    message = str(error.value)
    assert "\n" not in message
    assert "00_first: cell In [3] (`shares = [0.5]`) raised IndexError: list index out of range" in message
    assert str(failed) in message
    assert "IndexError" in cells_of(failed)
    assert "good" in cells_of(good.notebook)
    assert not runner.run(write_first(project, "print('good')")).reused
    assert not failed.exists()


def test_a_notebook_that_leaves_no_record_is_refused(project: Path) -> None:
    path = project / "notebooks" / "00_first.ipynb"
    path.write_text(notebook([("code", PARAMETERS, "parameters")]))
    with pytest.raises(runner.RunFailed, match="left no record"):
        runner.run(path)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_leaves_no_half_written_file(project: Path, ending: signal.Signals) -> None:
    began = project / "began"
    path = write_first(project, f"import pathlib, time\n\npathlib.Path({str(began)!r}).touch()\ntime.sleep(60)")
    process = subprocess.Popen(
        [sys.executable, "-m", "delib", "run", str(path)], env=os.environ | {"DELIB_HOME": str(project)}
    )
    deadline = time.monotonic() + 60
    while not began.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert began.exists()
    process.send_signal(ending)
    assert process.wait(timeout=30) != 0
    left = {file.name for file in (project / "reports").rglob("*") if file.is_file()}
    assert left <= {"claims.toml", "00_first.failed.ipynb"}


def test_an_unknown_notebook_or_profile_is_answered_with_what_there_is(project: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 01_second"):
        runner.run("01_secnod")
    with pytest.raises(ValueError, match="choose one of smoke, quick, paper"):
        runner.run("00_first", "fast")
