"""The runner: notebooks with other values, results that are kept while they hold, and nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import papermill
import pytest

from delib.suite import runner
from delib.suite.progress import Progress
from delib.suite.report import compile_report, publish_reference
from delib.suite.runner import Result, RunFailed, run

ROOT = Path(__file__).resolve().parents[1]
PARAMETERS = """profile = "quick"  # which set of values
seed = 0  # of chance
epochs = 3  # passes
rate = 0.1  # of learning"""
# Leaves a record without the seconds that importing torch takes.
RECORD = """import os
from delib.files import write_json
from delib.suite.record import record_path
write_json(record_path(os.environ["DELIB_RUN"], "10_toy"), {"metrics": {"toy.epochs": epochs}})"""


@pytest.fixture
def toy(project: Any) -> Path:
    project.profiles("[10_toy.smoke]\nepochs = 1\n")
    path: Path = project.notebook("10_toy", RECORD, parameters=PARAMETERS)
    return path


class Heard(Progress):
    """Keeps the lines instead of showing them."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def outputs(executed: Path) -> list[list[dict[str, Any]]]:
    """The outputs of each code cell."""
    cells = json.loads(executed.read_text())["cells"]
    return [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]


@pytest.fixture
def executions(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stands in for papermill: keeps the values that notebooks are given, and leaves what a run leaves."""
    given: list[dict[str, Any]] = []

    def execute(source: str, target: str, values: dict[str, Any], **options: Any) -> None:
        given.append(values)
        shutil.copy(source, target)
        record = Path(options["variables"]["DELIB_RUN"], "records", f"{Path(source).stem}.json")
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps({"metrics": {"toy.runs": len(given)}}))

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    return given


def test_a_run_leaves_the_executed_notebook_and_its_record(project: Any) -> None:
    project.profiles("[10_toy.smoke]\nepochs = 1\n")
    cells = (
        'from delib.suite import Run\nrun = Run("10_toy", globals())\nderived = 10 * epochs',
        "import torch\nfrom delib.evolution import evolve\nnetwork = torch.nn.Sequential(torch.nn.Linear(4, 3))\n"
        "evolve(network, torch.rand(8, 4), 0.5).sparsities[-1]",
        'run.add("toy", derived=derived)\nrun.write().name',
    )
    project.notebook("10_toy", *cells, parameters=PARAMETERS)
    import_module("joblib")  # which leaves a variable of its own
    before = dict(os.environ)
    result = run("10_toy", "smoke", {"rate": "1e-3"}, text=True)
    assert result == Result(
        project.reports / "smoke-custom" / "notebooks" / "10_toy.ipynb",
        project.reports / "smoke-custom" / "records" / "10_toy.json",
        reused=False,
    )
    record = json.loads(result.record.read_text())
    assert record["parameters"] == {"profile": "smoke", "seed": 0, "epochs": 1, "rate": 0.001}
    assert record["metrics"] == {"toy.derived": 10}, "what follows from a parameter follows from the value of this run"
    shown = [[output["output_type"] for output in cell] for cell in outputs(result.notebook)]
    assert shown == [[], [], [], ["execute_result"], ["execute_result"]], "values, and no bars of progress"
    assert files(project.reports) == [f"smoke-custom/{name}" for name in RESULTS]
    assert dict(os.environ) == before


RESULTS = ["notebooks/10_toy.ipynb", "records/10_toy.fingerprint", "records/10_toy.json"]


def test_values_over_profile_over_notebook(toy: Path, executions: list[dict[str, Any]]) -> None:
    run("10_toy", "quick")
    run("10_toy", "smoke")
    run("10_toy", "smoke", {"epochs": 7, "rate": 1})
    assert executions == [{}, {"profile": "smoke", "epochs": 1}, {"profile": "smoke", "epochs": 7, "rate": 1.0}]


def test_a_second_run_is_skipped_until_something_changes(
    project: Any, toy: Path, executions: list[dict[str, Any]]
) -> None:
    def runs_again(**options: Any) -> bool:
        before = len(executions)
        result = run("10_toy", "smoke", **options)
        assert result.reused == (len(executions) == before)
        return not result.reused

    assert runs_again()
    assert not runs_again()
    assert runs_again(force=True)
    project.notebook("10_toy", RECORD, "1 + 1", parameters=PARAMETERS)
    assert runs_again(), "a cell was added"
    project.profiles("[10_toy.smoke]\nepochs = 2\n[11_other.smoke]\nx = 1\n")
    assert runs_again(), "the profile changed"
    project.profiles("[10_toy.smoke]\nepochs = 2\n")
    assert not runs_again(), "another notebook's profile is none of its business"
    for lost in RESULTS:
        (project.reports / "smoke" / lost).unlink()
        assert runs_again(), f"{lost} was gone"
    assert not runs_again()


def test_a_change_of_delib_makes_results_stale_but_one_of_the_report_does_not(
    toy: Path, executions: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package"
    shutil.copytree(ROOT / "delib", package)
    monkeypatch.setattr(runner, "__file__", str(package / "suite" / "runner.py"))
    run("10_toy", "smoke")

    def reused_once_changed(module: str) -> bool:
        with (package / f"{module}.py").open("a") as file:
            file.write("# changed\n")
        return run("10_toy", "smoke").reused

    assert all(map(reused_once_changed, ("cli", "suite/report", "suite/claims", "suite/figures")))
    for module in ("files", "coding/quantize", "evolution/evolve", "nn/__init__"):
        assert not reused_once_changed(module)


def test_other_versions_or_another_lock_make_results_stale(
    project: Any, toy: Path, executions: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("10_toy", "smoke")
    (project.root / "requirements.lock").write_text("torch==1\n")
    assert not run("10_toy", "smoke").reused
    monkeypatch.setattr(runner, "package_versions", lambda: {"torch": "0.1"})
    assert not run("10_toy", "smoke").reused
    assert run("10_toy", "smoke").reused


def test_a_run_notices_modules_beside_the_notebook_and_what_parameters_name(
    project: Any, executions: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(path: Path, text: str = "x") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def runs_again() -> bool:
        return not run("10_toy", "smoke").reused

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    named = '\nphotos = "photos"  # folder\nrates = {"a": ["~/rates.csv"]}  # files\ntext = "no file"  # of no weight'
    beside = project.notebook("10_toy", RECORD, parameters=PARAMETERS + named).parent
    changes = {
        "a module beside it": beside / "helper.py",
        "a package beside it": beside / "tools" / "__init__.py",
        "a module in that": beside / "tools" / "inner" / "deep.py",
        "a folder that a default names, seen from the notebook": beside / "photos" / "a.jpg",
        "one photo more, in a folder of that": beside / "photos" / "more" / "b.jpg",
        "a file that a dict names, from home": tmp_path / "home" / "rates.csv",
    }
    assert runs_again()
    for said, path in changes.items():
        for text in ("x = 1", "x = 22"):
            change(path, text)
            assert runs_again(), said
        assert not runs_again(), said
    (beside / "photos" / "a.jpg").unlink()
    assert runs_again(), "a photo less"
    for path in (beside / "notes" / "scratch.py", beside / "notes.txt", beside / "photos" / ".DS_Store"):
        change(path)
        assert not runs_again(), f"{path.name} is none of its business"


@pytest.mark.parametrize("odd", ["", " ", "x" * 5000, "a\0b", "~nobody-of-this-name/x", "/dev/zero", "\ud800"])
def test_a_parameter_may_be_any_text(project: Any, toy: Path, executions: list[dict[str, Any]], odd: str) -> None:
    project.notebook("10_toy", RECORD, parameters=f"{PARAMETERS}\nodd = {odd!r}  # any text")
    run("10_toy", "smoke")
    assert run("10_toy", "smoke").reused


def test_a_changed_recipe_makes_results_stale(project: Any, executions: list[dict[str, Any]]) -> None:
    project.notebook("10_toy", RECORD, parameters=f'{PARAMETERS}\nrecipe = "own"  # a recipe: of training')
    recipes = "[10_toy.recipe.own]\nsteps = 5  # 1..: steps\n[10_toy.recipe.long]\nsteps = {}\n[10_toy.smoke]\n{}\n"
    project.profiles(recipes.format(50, "epochs = 1"))
    assert not run("10_toy", "smoke").reused
    assert run("10_toy", "smoke").reused
    project.profiles(recipes.format(60, "epochs = 1"))
    assert run("10_toy", "smoke").reused, "of a recipe that it does not take"
    project.profiles(recipes.format(60, 'epochs = 1\nrecipe = "long"'))
    assert not run("10_toy", "smoke").reused
    project.profiles(recipes.format(70, 'epochs = 1\nrecipe = "long"'))
    assert not run("10_toy", "smoke").reused
    project.profiles(recipes.format(70, "epochs = 1").replace("steps = 5 ", "steps = 6 "))
    assert not run("10_toy", "smoke").reused
    assert [given.get("recipe") for given in executions] == [None, {"steps": 60}, {"steps": 70}, None]
    run("10_toy", "smoke", {"recipe.steps": "7"}, text=True)
    assert executions[-1] == {"profile": "smoke", "epochs": 1, "recipe": {"steps": 7}}


def test_a_new_student_makes_stale_what_shows_them_and_nothing_else(
    project: Any, executions: list[dict[str, Any]]
) -> None:
    project.notebook("10_toy", RECORD, parameters=PARAMETERS)
    project.notebook("11_toy", RECORD.replace("10_toy", "11_toy"), "# detection.shipped()", parameters=PARAMETERS)
    folder = project.root / "data" / "students"
    folder.mkdir(parents=True)
    for change in (folder / "net-s90.delib", folder / "net-s90.json"):
        assert not run("11_toy", "smoke").reused
        run("10_toy", "smoke")
        change.write_text("{}")
    assert not run("11_toy", "smoke").reused
    assert run("11_toy", "smoke").reused
    assert run("10_toy", "smoke").reused


def test_an_unchanged_notebook_saved_again_by_an_editor_is_not_run_again(
    toy: Path, executions: list[dict[str, Any]]
) -> None:
    run("10_toy", "smoke")
    content = json.loads(toy.read_text())
    content["cells"][2].update(execution_count=5, outputs=[])
    content["metadata"]["language_info"] = {"name": "python", "version": "3.12"}
    toy.write_text(json.dumps(content))
    assert run("10_toy", "smoke").reused


def test_a_trial_never_replaces_a_profile_s_results(
    project: Any, toy: Path, executions: list[dict[str, Any]], tmp_path: Path
) -> None:
    own = run("10_toy", "smoke")
    kept = own.record.read_bytes()
    trial = run("10_toy", "smoke", {"epochs": 9})
    assert trial.record.parents[1] == project.reports / "smoke-custom"
    elsewhere = run("10_toy", "smoke", {"epochs": 9}, into="trial")
    assert elsewhere.record.parents[1] == project.reports / "trial"
    assert run("10_toy", "smoke", {"epochs": 9}, into=tmp_path / "x").notebook.parents[1] == tmp_path / "x"
    for folder in ("smoke", "quick", "paper", "reference", "./smoke", project.reports / "quick"):
        with pytest.raises(ValueError, match="give a run with other parameters another folder"):
            run("10_toy", "smoke", {"epochs": 9}, into=folder)
    for folder in ("quick", "reference"):
        with pytest.raises(ValueError, match="give a run with other parameters another folder"):
            run("10_toy", "smoke", into=folder)
    assert own.record.read_bytes() == kept
    assert run("10_toy", "smoke").reused


PLAYED = (
    'from delib.suite import Run\nrun = Run("10_toy", globals())',
    'run.add("toy", epochs=epochs)\nrun.write()',
)


def played_with(notebook: Path, out: Path, **parameters: Any) -> None:
    """The notebook run by plain papermill, which knows nothing of profiles."""
    papermill.execute_notebook(str(notebook), str(out), parameters, kernel_name="python3", language="python")


def test_playing_never_touches_what_is_claimed(project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DELIB_RUN", raising=False)
    (project.root / "README.md").write_text("<!-- claims -->\n<!-- /claims -->\n")
    toy = project.notebook("10_toy", *PLAYED, parameters=PARAMETERS)
    own = run("10_toy", "quick")
    reference = publish_reference("quick").parent
    before = {name: (project.reports / name).read_bytes() for name in files(project.reports)}
    played_with(toy, tmp_path / "played.ipynb", epochs=9)
    assert json.loads((project.reports / "lab" / "records" / "10_toy.json").read_text())["parameters"]["epochs"] == 9
    assert {name: (project.reports / name).read_bytes() for name in before} == before
    assert run("10_toy", "quick").reused
    # By force: with the runner's own variable, as a checkout from before would write.
    monkeypatch.setenv("DELIB_RUN", str(project.reports / "quick"))
    played_with(toy, tmp_path / "played.ipynb", epochs=9)
    assert json.loads(own.record.read_text())["metrics"] == {"toy.epochs": 9}
    for refused in (compile_report, publish_reference):
        with pytest.raises(ValueError, match=r"^10_toy: .*`delib run 10_toy --profile quick --force`$"):
            refused("quick")
    assert (reference / "records" / "10_toy.json").read_bytes() == before["quick/records/10_toy.json"]
    assert not run("10_toy", "quick").reused
    assert json.loads(own.record.read_text())["metrics"] == {"toy.epochs": 3}
    publish_reference("quick")


def test_results_that_do_not_belong_together_are_run_again_and_not_published(
    project: Any, toy: Path, executions: list[dict[str, Any]]
) -> None:
    """Of the files of a result, each is changed by hand in turn."""
    own = run("10_toy", "smoke")
    for path in (own.notebook, own.record, own.record.with_suffix(".fingerprint")):
        for spoil in (lambda path: path.write_text(path.read_text() + "\n\n{}"), Path.unlink):
            assert run("10_toy", "smoke").reused
            runner.check_results("smoke", current=True)
            spoil(path)
            if path.suffix != ".json" or not path.exists():  # a broken record is refused as such
                with pytest.raises(ValueError, match=r"^10_toy: .* is not what the runner left there; run it again"):
                    runner.check_results("smoke")
            assert not run("10_toy", "smoke").reused


def test_what_another_run_made_is_not_a_profile_s_own(
    project: Any, toy: Path, executions: list[dict[str, Any]], tmp_path: Path
) -> None:
    run("10_toy", "smoke", {"epochs": 1})  # which is the profile's own value
    runner.check_results("smoke-custom")
    shutil.copytree(project.reports / "smoke-custom", project.reports / "smoke")
    with pytest.raises(ValueError, match=r"^10_toy: .* was made with other parameters; run it again"):
        runner.check_results("smoke")
    assert not run("10_toy", "smoke").reused
    with pytest.raises(ValueError, match="`smoke-custom` is no profile"):
        publish_reference("smoke-custom")


def test_only_what_the_notebooks_make_now_is_published(
    project: Any, toy: Path, executions: list[dict[str, Any]], tmp_path: Path
) -> None:
    (project.root / "README.md").write_text("<!-- claims -->\n<!-- /claims -->\n")
    copied = json.loads(toy.read_text())
    copied["cells"].append({**copied["cells"][0], "id": "more"})
    (tmp_path / "10_toy.ipynb").write_text(json.dumps(copied))
    (tmp_path / "profiles.toml").write_text("[10_toy.smoke]\nepochs = 1\n")
    run(tmp_path / "10_toy.ipynb", "smoke")
    runner.check_results("smoke")
    with pytest.raises(ValueError, match=r"^10_toy: .* something else than stands in notebooks/"):
        runner.check_results("smoke", current=True)
    run("10_toy", "smoke")
    runner.check_results("smoke", current=True)
    toy.rename(toy.with_name("11_toy.ipynb"))
    with pytest.raises(ValueError, match=r"^10_toy: .* something else than stands in notebooks/.*; delete its files$"):
        runner.check_results("smoke", current=True)


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"epoch": 1}, "no parameter `epoch`; did you mean `epochs`"),
        ({"epochs": 0.5}, "`epochs` must be a whole number"),
        ({"profile": "paper"}, "choose it with --profile"),
    ],
)
def test_parameters_that_do_not_fit_stop_before_anything_runs(
    project: Any, toy: Path, executions: list[dict[str, Any]], parameters: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        run("10_toy", "smoke", parameters)
    assert executions == []
    assert not project.reports.exists()


def test_notebooks_are_found_by_path_and_by_name(project: Any, toy: Path) -> None:
    assert {runner.find_notebook(name) for name in ("10_toy", "10_toy.ipynb", "notebooks/10_toy.ipynb", toy)} == {toy}
    with pytest.raises(ValueError, match="no notebook 10_tay; did you mean 10_toy"):
        runner.find_notebook("10_tay")
    with pytest.raises(ValueError, match="no notebook zzz; notebooks/ has 10_toy"):
        runner.find_notebook("zzz")


def test_the_sequence_runs_side_by_side_and_a_stopped_one_holds_up_no_other(project: Any) -> None:
    for name in ("02_b", "00_a"):
        project.notebook(name, RECORD.replace("10_toy", name).replace("epochs}", "seed}"))
    (project.root / "notebooks" / "scratch.ipynb").write_text("no part of the sequence")
    progress = Heard()
    results = runner.run_all("quick", progress=progress)
    assert [result.notebook.stem for result in results] == ["00_a", "02_b"]
    assert sorted(progress.lines) == ["00_a (quick) … done", "02_b (quick) … done"]
    project.notebook("01_c", "1 / 0")
    progress.lines.clear()
    with pytest.raises(runner.RunFailed, match="01_c"):
        runner.run_all("quick", progress=progress)
    assert sorted(progress.lines) == [
        "00_a (quick) … up to date",
        "01_c (quick) … stopped",
        "02_b (quick) … up to date",
    ]


@pytest.mark.parametrize("jobs", [1, 3])
def test_notebooks_that_run_side_by_side_share_the_cores(
    project: Any, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads = 'int(os.environ["OMP_NUM_THREADS"])'
    project.notebook("10_toy", RECORD.replace("epochs}", threads + "}"))
    (result,) = runner.run_all("quick", jobs=jobs)
    metrics = json.loads(result.record.read_text())["metrics"]
    assert metrics == {"toy.epochs": max(1, (os.cpu_count() or 1) // jobs)}


def test_the_longest_notebooks_of_the_reference_start_first(project: Any) -> None:
    for name in ("00_a", "01_b", "02_c"):
        project.notebook(name, RECORD.replace("10_toy", name).replace("epochs}", "seed}"))
    folder = project.reports / "reference" / "records"
    folder.mkdir(parents=True)
    for name, seconds in (("00_a", 1.0), ("02_c", 30.0)):
        (folder / f"{name}.json").write_text(json.dumps({"notebook": name, "seconds": seconds, "metrics": {}}))
    progress = Heard()
    results = runner.run_all("quick", jobs=1, progress=progress)
    assert [line.split()[0] for line in progress.lines] == ["01_b", "02_c", "00_a"]
    assert [result.notebook.stem for result in results] == ["00_a", "01_b", "02_c"]


def test_a_failing_notebook_is_kept_aside_and_named_in_one_line(project: Any, toy: Path) -> None:
    good = run("10_toy", "smoke").notebook.read_bytes()
    project.notebook("10_toy", "\n# a comment\nhalf = epochs / 0\n", RECORD, parameters=PARAMETERS)
    with pytest.raises(RunFailed) as failure:
        run("10_toy", "smoke")
    folder = project.reports / "smoke"
    failed = folder / "notebooks" / "10_toy.failed.ipynb"
    message = str(failure.value)
    assert message.startswith("10_toy: cell In [3] (`# a comment`) raised ZeroDivisionError: division by zero")
    assert message.endswith(str(failed))
    assert "\n" not in message
    assert "ZeroDivisionError" in {output.get("ename") for cell in outputs(failed) for output in cell}
    assert (folder / "notebooks" / "10_toy.ipynb").read_bytes() == good
    assert files(folder) == ["notebooks/10_toy.failed.ipynb", "notebooks/10_toy.ipynb", "records/10_toy.json"]
    project.notebook("10_toy", RECORD, parameters=PARAMETERS)
    assert not run("10_toy", "smoke").reused, "what failed since is run again"
    assert not failed.exists()


def test_sockets_have_room_where_temporary_files_lie_deep(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As batch systems set it; a socket's path has at most 107 bytes, on macOS 103.
    deep = tmp_path / ("scratch-of-the-project-" + "x" * 40) / "job.1234567.batch-server.example"
    deep.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    monkeypatch.setenv("TMPDIR", str(deep))
    project.notebook("10_toy", RECORD.replace("epochs}", "seed}"))
    assert not run("10_toy", "smoke").reused
    (result,) = runner.run_all("quick")
    assert not result.reused
    assert list(deep.iterdir()) == []


def test_notebooks_run_in_delib_s_own_python_whatever_is_registered(
    project: Any, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {"display_name": "Python 3", "language": "python", "argv": [str(tmp_path / "gone" / "python")]}
    folder = tmp_path / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    project.notebook("10_toy", RECORD, "import sys\nprint(sys.executable)", parameters=PARAMETERS)
    assert outputs(run("10_toy", "smoke").notebook)[-1][0]["text"] == [f"{sys.executable}\n"]


def test_a_dead_kernel_and_a_missing_record_are_said(project: Any, toy: Path) -> None:
    project.notebook("10_toy", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", parameters=PARAMETERS)
    with pytest.raises(RunFailed, match=r"^10_toy: its kernel was killed") as failure:
        run("10_toy", "smoke")
    if sys.platform == "linux":
        assert str(failure.value).endswith("from outside (SIGKILL), not for want of memory"), "as the system knows"
    assert files(project.reports) == []
    project.notebook("10_toy", "1 + 1", parameters=PARAMETERS)
    with pytest.raises(RunFailed, match=r"^10_toy ran but left no record; its last cell must call"):
        run("10_toy", "smoke")
    assert "records/10_toy.fingerprint" not in files(project.reports / "smoke")
