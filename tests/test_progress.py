"""Progress: on a terminal a bar for each notebook, else a line a minute; what is left is known from the last run."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from test_runner import PARAMETERS, RECORD

from delib.suite import progress
from delib.suite.progress import Progress, Work, seconds_of_cells
from delib.suite.runner import run, run_all


def executed(path: Path, *seconds: float | None) -> Path:
    cells = [{"metadata": {"papermill": {"duration": value}}} for value in seconds]
    path.write_text(json.dumps({"cells": cells}))
    return path


def test_what_is_left_comes_from_the_last_run_of_the_same_cells(tmp_path: Path) -> None:
    before = executed(tmp_path / "a.ipynb", 10.0, None, 100.0, 90.0)
    assert seconds_of_cells(before, 4) == [10.0, 0.0, 100.0, 90.0]
    assert seconds_of_cells(before, 5) is None, "it has other cells now"
    for broken in ("", "{}", '{"cells": [{}]}'):
        before.write_text(broken)
        assert seconds_of_cells(before, 1) is None
    assert seconds_of_cells(tmp_path / "none.ipynb", 1) is None


def test_cells_count_by_the_time_that_they_take() -> None:
    work = Work("01_mnist", 4, [10.0, 0.0, 100.0, 90.0])
    assert work.share == pytest.approx(0, abs=0.01)
    work.enter(2)
    assert str(work) == "01_mnist: cell 3 of 4, about 3 min 10 s left"
    assert work.share == pytest.approx(0.05, abs=0.01)
    work.cell_begun -= 40
    assert str(work).endswith("about 2 min 30 s left")
    work.cell_begun -= 1000
    assert str(work).endswith("about 1 min 30 s left"), "it takes longer than the last time"
    new = Work("02_new", 4)
    new.enter(1)
    new.begun -= 65
    assert (str(new), new.share) == ("02_new: cell 2 of 4, at work for 1 min 05 s", 0.25)


SLOW = "import time\ntime.sleep(0.5)"


def test_without_a_terminal_it_is_a_line_a_minute(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "MINUTE", 0.2)
    project.notebook("10_toy", SLOW, RECORD, parameters=PARAMETERS)
    told = io.StringIO()
    run("10_toy", "smoke", progress=Progress(told))
    lines = told.getvalue().splitlines()
    assert "10_toy: cell 4 of 5, at work for " in "".join(lines)
    again = io.StringIO()
    run("10_toy", "smoke", force=True, progress=Progress(again))
    assert "10_toy: cell 4 of 5, about " in again.getvalue()
    assert "\x1b" not in told.getvalue() + again.getvalue()


def test_on_a_terminal_it_is_a_bar_for_each_and_lines_above(project: Any) -> None:
    for name in ("00_a", "01_b"):
        project.notebook(name, SLOW, RECORD.replace("10_toy", name), parameters=PARAMETERS)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        run_all("smoke", jobs=2, progress=Progress(terminal))
    shown = b""
    while part := _read(ours):
        shown += part
    os.close(ours)
    text = shown.decode()
    for name in ("00_a", "01_b"):
        assert re.search(rf"{name}: cell [1-5] of 5", text), "whichever cell it is at when the bar is drawn"
        assert f"{name} (smoke) … done" in text


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux's end of file
        return b""


def test_a_bar_does_not_hold_up_what_it_shows() -> None:
    begin = time.monotonic()
    with Progress(io.StringIO()) as shown:
        shown.say("a line")
    assert time.monotonic() - begin < 1
    assert sys.stderr is not shown.stream
