"""A notebook over a grid of its parameters: every combination is run, and all end in one table and one page."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delib.files import atomic_path, write_bytes
from delib.suite.progress import Progress, duration
from delib.suite.record import read_record, report_folder
from delib.suite.runner import JOBS, PROTECTED, Result, Task, find_notebook, how, perform_all, prepare

if TYPE_CHECKING:
    import pandas as pd  # the command line needs to be quick

MOST = 10_000  # cells of a grid


@dataclass(frozen=True)
class Cell:
    """One combination of values, and the task that runs the notebook with it."""

    values: Mapping[str, Any]
    task: Task

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.values.items())


@dataclass(frozen=True)
class Swept:
    """What a sweep left: its table, its page, how many cells ran or were there already, and what stopped the others."""

    table: Path
    page: Path
    done: int
    reused: int
    failed: Mapping[str, str]


def sweep(
    notebook: str | Path,
    grid: Mapping[str, Sequence[Any]],
    profile: str = "quick",
    *,
    into: str = "",
    jobs: int = JOBS,
    scheduler: str = "",
    progress: Progress | None = None,
) -> Swept:
    """Run a notebook with every combination of the values in ``grid``; those that are up to date are not run again.

    Parameters
    ----------
    notebook : str or Path
    grid : mapping of parameter to values
        Texts are read as a command line's (see ``check_parameters``); the first parameter varies slowest.
    profile : str
        Has the values of all other parameters.
    into : str
        Folder of reports for table, page and ``cells/``, where each cell has a folder; by default
        ``sweep-<notebook>-<profile>``.
    jobs : int
        Cells that run at a time on this machine; where it has GPUs, they take turns.
    scheduler : str
        Address of a Dask scheduler; cells run on its workers instead, which must see the same folders.
    progress : Progress, optional

    Raises
    ------
    ValueError
        On values that do not fit, before anything runs.
    """
    path, said = find_notebook(notebook), progress or Progress(quiet=True)
    folder = report_folder(into or f"sweep-{path.stem}-{profile}")
    if folder.name in PROTECTED:
        raise ValueError(f"`{into}` holds a profile's own results; give a sweep another folder")
    cells = {cell.task.folder: cell for cell in grid_cells(path, grid, profile, folder)}
    outcomes: dict[Path, Result | Exception] = {}
    threads = max(1, (os.cpu_count() or 1) // jobs)
    tasks = [cell.task for cell in cells.values()]
    with closing(perform_all(tasks, jobs, said, threads, scheduler)) as performed:
        for task, outcome in performed:
            outcomes[task.folder] = outcome
            said.say(f"{len(outcomes)} of {len(cells)}: {cells[task.folder]} … {how(outcome)}")
    table = _written([_row(cell, outcomes[own]) for own, cell in cells.items()], folder)
    results = [outcome for outcome in outcomes.values() if isinstance(outcome, Result)]
    failed = {str(cells[own]): _said(error) for own, error in outcomes.items() if isinstance(error, Exception)}
    page = _page(table, path.stem, list(grid), folder)
    reused = sum(result.reused for result in results)
    return Swept(folder / "table.csv", page, len(results) - reused, reused, failed)


def grid_cells(notebook: Path, grid: Mapping[str, Sequence[Any]], profile: str, folder: Path) -> Iterator[Cell]:
    """Every combination, with its own folder below ``folder``. Raises ValueError on values that do not fit, and on a
    grid that is empty or beyond measure."""
    count = 1
    for name, values in grid.items():
        if not values:
            raise ValueError(f"--grid {name} has no values")
        count *= len(values)
    if not grid or count > MOST:
        raise ValueError(f"a grid has 1 to {MOST} cells, this one {count if grid else 0}")
    seen = set()
    for chosen in itertools.product(*grid.values()):
        given = dict(zip(grid, chosen, strict=True))
        task = prepare(notebook, profile, given, into=folder, text=True)
        read = {name: _value(task.chosen, name) for name in grid}
        key = json.dumps(read, sort_keys=True)
        if key in seen:
            raise ValueError(f"the grid has {given} twice")
        seen.add(key)
        short = re.sub(r"[^\w.-]+", "-", "_".join(f"{name}-{value}" for name, value in read.items()))[:60]
        own = folder / "cells" / f"{short}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
        cell = Cell(read, task)
        yield replace(cell, task=replace(task, folder=own, label=str(cell)))


def _value(chosen: Mapping[str, Any], name: str) -> Any:
    """A parameter's value, or that of a recipe's field."""
    value: Any = chosen
    for part in name.split("."):
        value = value[part]
    return value


def grid_of(texts: Sequence[str]) -> dict[str, list[str]]:
    """The grid of a command line: ``name=a,b,c`` each. Commas inside brackets separate nothing. Raises ValueError."""
    grid: dict[str, list[str]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not name or not values:
            raise ValueError(f"`{text}` names no values; write --grid NAME=A,B,C")
        if name in grid:
            raise ValueError(f"--grid {name} is there twice")
        grid[name] = [value.strip() for value in re.split(r",(?![^\[{(]*[\]})])", values)]
    return grid


def _row(cell: Cell, outcome: Result | Exception) -> dict[str, Any]:
    """A line of the table: the values, the metrics, the seconds, and what stopped the cell."""
    named = {name: value if isinstance(value, int | float | str) else str(value) for name, value in cell.values.items()}
    executed, record, _ = cell.task.files
    if isinstance(outcome, Exception):
        failed = executed.with_name(f"{executed.stem}.failed.ipynb")
        return {**named, "error": _said(outcome), "notebook": str(failed if failed.is_file() else "")}
    found = read_record(record)
    return {**named, **found["metrics"], "seconds": found.get("seconds"), "error": "", "notebook": str(executed)}


def _said(error: Exception) -> str:
    """An error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _written(rows: list[dict[str, Any]], folder: Path) -> pd.DataFrame:
    """The table, as ``table.csv`` and ``table.parquet``."""
    import pandas as pd

    table = pd.DataFrame(rows)
    last = [name for name in ("seconds", "error", "notebook") if name in table]
    table = table[[name for name in table if name not in last] + last]
    write_bytes(folder / "table.csv", table.to_csv(index=False).encode())
    with atomic_path(folder / "table.parquet") as temporary:
        table.to_parquet(temporary, index=False)
    return table


def _page(table: pd.DataFrame, notebook: str, axes: list[str], folder: Path) -> Path:
    """The report page: curves with their spread, the table, and the cells that failed."""
    from delib.suite.explorer import template

    good, failed = table[table.error == ""], table[table.error != ""]
    skipped = {*axes, "seconds", "error", "notebook"}
    metrics = [str(name) for name in good if name not in skipped and good[name].notna().any()]
    facts = {
        "notebook": notebook,
        "axes": axes,
        "metrics": metrics,
        "rows": good.to_dict("records"),
        "failed": failed.to_dict("records"),
        "pictures": [picture for name in metrics if (picture := _picture(good, axes, name))],
        "seconds": duration(float(good.seconds.sum())) if len(good) else "",
    }
    path = folder / "index.html"
    write_bytes(path, template("sweep.html.j2").render(**facts).encode())
    return path


def _picture(table: pd.DataFrame, axes: list[str], metric: str) -> Any:
    """A metric's curve over the first numeric axis but the seed, a line for each combination of the other axes."""
    from delib.suite import figures
    from delib.suite.explorer import Frame

    numeric = [name for name in axes if name != "seed" and table[name].nunique() > 1]
    x = next((name for name in numeric if table[name].map(lambda v: isinstance(v, int | float)).all()), None)
    if x is None:
        return None
    others = [name for name in axes if name not in (x, "seed")]
    groups = table.groupby(others, sort=False) if others else [((), table)]
    lines: dict[str, tuple[Any, Any, Any, Any]] = {}
    for key, part in groups:
        name = ", ".join(f"{other} {value}" for other, value in zip(others, key, strict=True)) or metric
        spread = part.groupby(x)[metric].agg(["mean", "min", "max"])
        lines[name] = (spread.index, spread["mean"], spread["min"], spread["max"])
    alt = f"{metric} against {x}: mean and, where cells differ in the seed alone, range."
    return Frame(metric, figures.ranges(lines, x, metric), alt)
