"""Interrupts: the old results stay, nothing half-written appears, nothing goes on computing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_runner import PARAMETERS, RECORD, files

from delib.suite.record import read_records
from delib.suite.runner import run


@pytest.fixture
def toy(project: Any) -> Path:
    path: Path = project.notebook("10_toy", RECORD, parameters=PARAMETERS)
    return path


def hear_interrupts() -> None:
    """What runs in the background, as these tests may, begins deaf to them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout
    return bool(state.strip()) and not state.startswith("Z")


def until(happened: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if happened():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_leaves_the_old_results_and_no_half_written_file(
    project: Any, toy: Path, tmp_path: Path, end: signal.Signals
) -> None:
    run("10_toy", "smoke")
    before = {name: (project.reports / name).read_bytes() for name in files(project.reports)}
    begun = tmp_path / "begun"
    slow = f"import os, time\nopen({str(begun)!r}, 'w').write(f'{{os.getpid()}}\\n')\ntime.sleep(600)"
    project.notebook("10_toy", slow, RECORD, parameters=PARAMETERS)
    command = [sys.executable, "-m", "delib", "run", "10_toy", "--profile", "smoke"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear_interrupts
    )
    assert until(lambda: begun.is_file() and begun.read_text().endswith("\n")), "the notebook did not start"
    process.send_signal(end)
    said = "".join(process.communicate(timeout=60))
    assert process.returncode not in (0, None)
    assert "Traceback" not in said
    kernel = int(begun.read_text())
    assert until(lambda: not alive(kernel), 20), "the kernel goes on computing"
    (project.reports / "smoke" / ".10_toy.lock").unlink(missing_ok=True)  # nobody's, where its owner was killed
    left = {name: (project.reports / name).read_bytes() for name in files(project.reports)}
    del before["smoke/records/10_toy.fingerprint"]  # so that the next call runs it again
    assert left == before
    assert set(read_records("smoke")) == {"10_toy"}


def test_an_interrupted_report_stops_at_once_and_begins_nothing_more(project: Any, tmp_path: Path) -> None:
    for i in range(3):
        slow = (
            f"import os, time\nopen({str(tmp_path)!r} + '/begun{i}', 'w').write(f'{{os.getpid()}}\\n')\ntime.sleep(600)"
        )
        project.notebook(f"0{i}_slow", slow, parameters=PARAMETERS)
    command = [sys.executable, "-m", "delib", "report", "--profile", "smoke", "--jobs", "1"]
    sockets = tempfile.mkdtemp()  # a short name, as sockets need
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_interrupts,
        env={**os.environ, "TMPDIR": sockets},
    )
    begun = tmp_path / "begun0"
    try:
        assert until(lambda: begun.is_file() and begun.read_text().endswith("\n")), "the notebook did not start"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
        said = "".join(process.communicate(timeout=30))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    assert "Traceback" not in said
    assert until(lambda: not alive(int(begun.read_text())), 20), "the kernel goes on computing"
    assert not (tmp_path / "begun1").exists()
    assert files(project.reports) == []
    assert [name for name in os.listdir(sockets) if name.startswith("delib-")] == [], "sockets stay behind"
    shutil.rmtree(sockets)
