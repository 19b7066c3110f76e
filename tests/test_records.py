"""Records: files whole or not at all, metrics that are numbers, the parameters as they were."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from delib import files
from delib.files import atomic_path, write_bytes, write_json
from delib.suite import record as records
from delib.suite.record import Run, git_revision, read_records


def everything_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("stop", [OSError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, stop: type[BaseException]) -> None:
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")

    def write_half() -> None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half of the ne")
            raise stop

    with pytest.raises(stop):
        write_half()
    assert path.read_bytes() == b"old"
    assert everything_in(tmp_path) == ["a.bin"]


def test_a_file_appears_under_its_name_only_when_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.bin"
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        assert not path.exists()
    assert path.read_bytes() == b"half"
    assert everything_in(tmp_path) == ["a.bin"]


def test_what_a_link_points_to_is_written_and_the_link_stays(tmp_path: Path) -> None:
    link, real = tmp_path / "link", tmp_path / "new" / "real.bin"
    link.symlink_to("new/real.bin")
    for content in (b"first", b"second"):
        write_bytes(link, content)
        assert link.is_symlink()
        assert real.read_bytes() == content
    assert everything_in(tmp_path / "new") == ["real.bin"]


def test_pipes_devices_and_folders_are_refused_and_stay(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link, Path("/dev/null")):
        before = path.stat().st_ino
        with pytest.raises(ValueError, match=rf"^{path} is a pipe or device; name a plain file$"):
            write_bytes(path, b"x")
        assert path.stat().st_ino == before
    with pytest.raises(ValueError, match=r" is a folder; name a plain file$"):
        write_bytes(tmp_path, b"x")
    assert everything_in(tmp_path) == []


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": math.nan})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_disk_that_a_parameter_names_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        write_bytes(tmp_path / "disk" / f"{number}.jpg", b"x")
    whole = files.digest(tmp_path / "disk")
    monkeypatch.setattr(files, "MOST_ENTRIES", 3)
    first = files.digest(tmp_path / "disk")
    assert first != whole
    (tmp_path / "disk" / "9.jpg").touch()
    assert files.digest(tmp_path / "disk") == first


def made_run(**more: object) -> Run:
    return Run("10_toy", {"profile": "smoke", "seed": 3} | more)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, torch.tensor(math.nan), np.float32("inf")])
def test_metrics_that_are_no_finite_numbers_are_refused_by_name(value: float) -> None:
    run = made_run()
    with pytest.raises(ValueError, match=r"lenet5\.loss is (nan|-?inf|tensor)"):
        run.add("lenet5", loss=value)
    assert run.metrics == {}


def test_metrics_become_plain_numbers_under_the_network_s_name() -> None:
    run = made_run()
    run.add("lenet5", bits=4, loss=torch.tensor(0.5), share=np.float64(0.25), count=np.int64(7))
    assert run.metrics == {"lenet5.bits": 4, "lenet5.loss": 0.5, "lenet5.share": 0.25, "lenet5.count": 7}
    assert {type(value) for value in run.metrics.values()} <= {int, float}
    assert type(run.metrics["lenet5.bits"]) is int


def test_parameters_are_the_literals_and_nothing_that_was_imported() -> None:
    parameters = {"targets": {"a": {"fc1": 0.5}}, "names": ["x", "y"], "limit": None, "exact": True, "rate": 1e-3}
    imported = {"PLACEMENTS": {"kmeans": math.floor}, "math": math, "torch": torch, "floor": math.floor, "Path": Path}
    jupyter = {"_i1": "seed = 3", "__name__": "__main__", "In": ["", "seed = 3"], "Out": {}, "_": 5, "ids": {1: 2}}
    run = made_run(**parameters, **imported, **jupyter)
    assert run.parameters == {"profile": "smoke", "seed": 3, **parameters}


@pytest.mark.parametrize("missing", ["profile", "seed"])
def test_a_run_without_profile_or_seed_is_no_run(missing: str) -> None:
    namespace = {"profile": "smoke", "seed": 0}
    del namespace[missing]
    with pytest.raises(ValueError, match=rf"10_toy: .*`{missing}`"):
        Run("10_toy", namespace)


def test_a_record_tells_how_to_repeat_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELIB_RUN", str(tmp_path / "run"))
    run = made_run(epochs=2)
    run.data["train"] = "ab" * 32
    run.add("toy", accuracy=0.5)
    path = run.write()
    assert path == tmp_path / "run" / "records" / "10_toy.json"
    record = read_records(tmp_path / "run")["10_toy"]
    assert record["parameters"] == {"profile": "smoke", "seed": 3, "epochs": 2}
    assert record["seed"] == 3
    assert record["threads"] == torch.get_num_threads()
    assert record["versions"]["torch"] == version("torch")
    assert {"python", "numpy", "constriction", "delib"} <= set(record["versions"])
    assert record["data"] == {"train": "ab" * 32}
    assert record["metrics"] == {"toy.accuracy": 0.5}
    assert record["seconds"] >= 0
    assert record["device"]
    assert record["machine"]
    assert record["git_revision"]


def test_without_the_runner_a_run_writes_to_the_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELIB_HOME", str(tmp_path))
    monkeypatch.delenv("DELIB_RUN", raising=False)
    assert made_run().folder == tmp_path / "reports" / "lab", "never to a profile, whose values it may not have"


def test_records_come_in_the_notebooks_order_and_a_broken_one_is_named(tmp_path: Path) -> None:
    for name in ("01_b", "00_a"):
        write_json(tmp_path / "records" / f"{name}.json", {"metrics": {}})
    assert list(read_records(tmp_path)) == ["00_a", "01_b"]
    for broken in ("{", "[]", '{"seed": 1}'):
        (tmp_path / "records" / "01_b.json").write_text(broken)
        with pytest.raises(ValueError, match=r"01_b\.json"):
            read_records(tmp_path)
    assert read_records(tmp_path / "nowhere") == {}


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_revision_is_the_commit_and_says_if_files_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        done = subprocess.run(["git", "-C", str(tmp_path), *who, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    package = tmp_path / "delib" / "records.py"
    write_bytes(package, b"# one\n")
    monkeypatch.setattr(records, "__file__", str(package))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_revision() == "unknown"
    git("init", "-q")
    (tmp_path / "other.txt").write_text("someone else's")
    git("add", "other.txt")
    git("commit", "-qm", "without the package")
    assert git_revision() == "unknown", "installed inside another project, whose commits say nothing of delib"
    git("add", "delib")
    git("commit", "-qm", "with it")
    commit = git("rev-parse", "HEAD")
    assert git_revision() == commit
    write_bytes(tmp_path / "reports" / "quick" / "index.html", b"what a run writes is no change of the code")
    assert git_revision() == commit
    package.write_text("# two\n")
    assert git_revision() == f"{commit}+changes"


def test_a_checkpoint_belongs_to_its_parameters_and_data_and_goes_with_the_record(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DELIB_RUN", str(tmp_path))
    run, again, other = made_run(threads=1), made_run(threads=2), made_run(sparsity=0.9)
    file = run.checkpoint("net-0")
    assert file == again.checkpoint("net-0")
    assert len({file, run.checkpoint("net-1"), other.checkpoint("net-0")}) == 3
    again.data["photos"] = "another digest"
    assert file != again.checkpoint("net-0")
    file.write_bytes(b"half done")
    run.write()
    assert not file.exists()


def test_values_changed_by_hand_are_held_to_the_notebook_s_own_ranges(project, tmp_path, monkeypatch) -> None:
    cell = 'profile = "quick"  # any: set\nseed = 0  # 0..: of chance\nbits = 4  # 1..8: per survivor\n'
    project.profiles("[10_toy.recipe.own]\nsteps = 5  # 1..: of training\n[10_toy.recipe.long]\nsteps = 50\n")
    notebook = project.notebook("10_toy", parameters=f'{cell}recipe = "own"  # a recipe: of training')
    assert made_run(bits=2, recipe="own").parameters["recipe"] == {"steps": 5}
    assert made_run(bits=2, recipe="long", more=99).parameters == {
        **{"profile": "smoke", "seed": 3, "bits": 2, "recipe": {"steps": 50}, "more": 99}
    }
    for wrong, complaint in (
        ({"bits": 99}, r"within 1\.\.8"),
        ({"bits": "4"}, "a whole number"),
        ({"seed": -1}, "seed"),
    ):
        with pytest.raises(ValueError, match=rf"^10_toy: parameter .*{complaint}"):
            made_run(**wrong)
    # A notebook played with in a folder of its own is held to its own ranges.
    (tmp_path / "own").mkdir()
    text = notebook.read_text().replace("1..8", "1..99")
    (tmp_path / "own" / notebook.name).write_text(text.replace("a recipe:", "any:"))
    monkeypatch.chdir(tmp_path / "own")
    assert made_run(bits=99).parameters["bits"] == 99
    notebook.unlink()
    monkeypatch.chdir(tmp_path)
    assert made_run(bits=999).parameters["bits"] == 999, "without the file nothing is checked"
