"""Sweeps: every combination ends in the table, what is there is not run again, and a cluster may lose a worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_interrupts import until

from delib.suite import runner
from delib.suite.grid import grid_of, sweep

PARAMETERS = """profile = "quick"  # which set of values
seed = 0  # 0..: of chance
sparsity = 0.5  # 0..1: share of zeros
layers = ["a"]  # any: names"""
CELL = """import os
from delib.files import write_json
from delib.suite.record import record_path
assert (sparsity, seed) != (0.9, 1) or os.path.exists(os.environ["DELIB_HOME"] + "/mended"), "no luck"
metrics = {"toy.accuracy": 1 - sparsity ** 2 + seed / 100}
write_json(record_path(os.environ["DELIB_RUN"], "10_toy"), {"metrics": metrics, "seconds": 1.5})"""
GRID = {"sparsity": ["0.5", "0.9"], "seed": ["0", "1"]}


@pytest.fixture
def toy(project: Any) -> Path:
    path: Path = project.notebook("10_toy", CELL, parameters=PARAMETERS)
    return path


def test_grids_of_the_command_line() -> None:
    assert grid_of(["a=1,2.5", "b=x"]) == {"a": ["1", "2.5"], "b": ["x"]}
    assert grid_of(["a=[1,2],[3]", 'b={"x":1,"y":2},{"x":3,"y":4}']) == {
        "a": ["[1,2]", "[3]"],
        "b": ['{"x":1,"y":2}', '{"x":3,"y":4}'],
    }
    for wrong in (["a"], ["a="], ["=1"], ["a=1", "a=2"]):
        with pytest.raises(ValueError, match="--grid"):
            grid_of(wrong)


@pytest.mark.parametrize(
    ("grid", "complaint"),
    [
        ({"sparsity": ["0.5", "7"]}, "`sparsity` must be within"),
        ({"sparsty": ["0.5"]}, "did you mean `sparsity`"),
        ({"seed": ["1", "1"]}, "twice"),
        ({"seed": []}, "no values"),
        ({}, "1 to"),
        ({"seed": [str(i) for i in range(200)], "sparsity": [str(i / 100) for i in range(100)]}, "20000"),
    ],
)
def test_a_grid_that_does_not_fit_is_refused_before_anything_runs(
    project: Any, toy: Path, grid: dict[str, list[str]], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        sweep("10_toy", grid, "smoke")
    assert not project.reports.exists()


def table_of(folder: Path) -> pd.DataFrame:
    csv, parquet = pd.read_csv(folder / "table.csv", keep_default_na=False), pd.read_parquet(folder / "table.parquet")
    assert list(csv) == list(parquet)
    assert csv.error.tolist() == parquet.error.tolist()
    return parquet


def test_every_cell_ends_in_the_table_and_only_what_is_missing_runs_again(project: Any, toy: Path) -> None:
    swept = sweep("10_toy", GRID, "smoke", jobs=2)
    assert (swept.done, swept.reused, list(swept.failed)) == (3, 0, ["sparsity=0.9 seed=1"])
    folder = project.reports / "sweep-10_toy-smoke"
    table = table_of(folder)
    assert table[["sparsity", "seed"]].to_numpy().tolist() == [[0.5, 0], [0.5, 1], [0.9, 0], [0.9, 1]]
    assert table["toy.accuracy"].iloc[:3].tolist() == pytest.approx([0.75, 0.76, 0.19])
    assert "raised AssertionError: no luck" in table.error.iloc[3]
    assert Path(table.notebook.iloc[3]).name == "10_toy.failed.ipynb"
    assert Path(table.notebook.iloc[3]).is_file()
    page = swept.page.read_text()
    assert "no luck" in page
    assert "toy.accuracy against sparsity" in page
    (project.root / "mended").touch()
    again = sweep("10_toy", {**GRID, "seed": ["0", "1", "2"]}, "smoke", jobs=2)
    assert (again.done, again.reused, again.failed) == (3, 3, {})
    assert table_of(folder).error.tolist() == [""] * 6
    assert "no luck" not in again.page.read_text()


def test_a_sweep_touches_no_profile_s_results(project: Any, toy: Path) -> None:
    with pytest.raises(ValueError, match="a profile's own results"):
        sweep("10_toy", GRID, "smoke", into="quick")


@pytest.mark.parametrize(("allowed", "wanted"), [("0,1", ["0", "1", "0"]), ("", [None] * 3), ("7", ["7"] * 3)])
def test_cells_take_turns_on_the_gpus(monkeypatch: pytest.MonkeyPatch, allowed: str, wanted: list[str | None]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert [slot.get("CUDA_VISIBLE_DEVICES") for slot in runner.device_slots(3, None)] == wanted


@pytest.fixture
def cluster(project: Any, tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A real scheduler and two workers on loopback, each a process of its own."""
    pytest.importorskip("distributed")
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False"}
    options: dict[str, Any] = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    file = tmp_path / "scheduler.json"
    quiet = ["--no-dashboard", "--scheduler-file", str(file)]
    begun = [
        subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", *quiet],
            **options,
        )
    ]
    try:
        assert until(lambda: file.exists() and json.loads(file.read_text())["address"], 120)
        worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--nthreads", "1", "--no-nanny", *quiet]
        begun += [
            subprocess.Popen([*worker, "--local-directory", str(tmp_path / f"w{i}")], **options) for i in range(2)
        ]
        yield json.loads(file.read_text())["address"], begun[1:]
    finally:
        for process in begun:
            process.kill()
            process.wait()


def test_on_a_cluster_every_cell_ends_in_the_table_though_a_worker_is_killed(
    project: Any, toy: Path, cluster: tuple[str, list[subprocess.Popen[bytes]]], tmp_path: Path
) -> None:
    address, workers = cluster
    (project.root / "mended").touch()
    wait = f"import os, time\nopen({str(tmp_path)!r} + f'/begun-{{os.getppid()}}', 'w').close()\ntime.sleep(1)"
    project.notebook("10_toy", wait, CELL, parameters=PARAMETERS)
    command = [sys.executable, "-m", "delib", "sweep", "10_toy", "--profile", "smoke", "--scheduler", address]
    command += ["--grid", "sparsity=0.5,0.7,0.9", "--grid", "seed=0,1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    victim = workers[1]
    assert until(lambda: (tmp_path / f"begun-{victim.pid}").exists(), 200)
    os.kill(victim.pid, signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.splitlines()[0] == "6 done, 0 up to date, 0 stopped"
    table = table_of(project.reports / "sweep-10_toy-smoke")
    assert len(table) == 6
    assert table.error.tolist() == [""] * 6
    assert table["toy.accuracy"].notna().all()


def test_a_scheduler_that_is_not_there_is_said(project: Any, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(runner, "ANSWERS", 1)
    with pytest.raises(ValueError, match=r"^no Dask scheduler answers at tcp://127\.0\.0\.1:9 "):
        sweep("10_toy", GRID, "smoke", scheduler="tcp://127.0.0.1:9")
