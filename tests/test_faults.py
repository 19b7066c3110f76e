"""Faults of the machine: one clear line, nothing lost that was computed, no half file, and the next run goes on."""

from __future__ import annotations

import ctypes
import gzip
import hashlib
import http.server
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_interrupts import alive, hear_interrupts, until
from test_runner import PARAMETERS, RECORD, files
from torch import nn

from delib.data import download
from delib.data.download import DataUnavailable, FileSet, web
from delib.evolution import evolve
from delib.files import sole
from delib.nn import saved_to
from delib.suite.runner import run

SMALL = 100_000  # bytes that a file may take where the disk is as good as full


def delib(*words: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "delib", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def said(process: subprocess.Popen[str], seconds: float = 120) -> str:
    """The one line with which it failed."""
    _, err = process.communicate(timeout=seconds)
    assert process.returncode != 0
    (line,) = err.splitlines()
    return line


def small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, SMALL))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with hardly any room, where the machine lets us make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


BIG = "from IPython.display import display_html\nimport random\ndisplay_html(random.randbytes(400_000).hex(), raw=True)"


def fails_and_goes_on(project: Any, complaint: str, **options: Any) -> None:
    project.notebook("10_toy", RECORD, parameters=PARAMETERS)
    run("10_toy", "smoke")
    kept = {name: (project.reports / name).read_bytes() for name in files(project.reports)}
    project.notebook("10_toy", RECORD, BIG, parameters=PARAMETERS)
    line = said(delib("run", "10_toy", "--profile", "smoke", **options))
    assert line.startswith("delib: ")
    assert complaint in line
    left = {name: (project.reports / name).read_bytes() for name in files(project.reports)}
    assert left["smoke/notebooks/10_toy.ipynb"] == kept["smoke/notebooks/10_toy.ipynb"]
    assert set(kept) - set(left) == {"smoke/records/10_toy.fingerprint"}, "so that the next call runs it again"
    assert set(left) <= set(kept), "no half file"


def test_files_that_may_not_grow_are_said_and_spoil_nothing(project: Any) -> None:
    fails_and_goes_on(project, "File too large", preexec_fn=small_files)
    assert not run("10_toy", "smoke").reused


def test_a_full_disk_is_said_and_spoils_nothing(project: Any, small_disk: Path) -> None:
    project.reports.symlink_to(small_disk)
    fails_and_goes_on(project, "No space left on device")


def in_a_fork(work: Callable[[], object]) -> str:
    """What ``work`` raised or returned, in a process that may change what this one must not."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            try:
                outcome = str(work())
            except BaseException as error:  # pytest's own are none of Exception
                outcome = f"{type(error).__name__}: {error}"
            os.write(writing, outcome.encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as file:
        return file.read()


def test_work_goes_on_where_its_checkpoints_find_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELIB_BATCH", "1")  # bars would find no room either
    inputs = torch.randn(64, 60, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, 5)).eval()
    rows = evolve(teacher, inputs, 0.5).rows

    def cramped() -> bool:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        warned = pytest.warns(UserWarning, match=r"evolve\.ckpt: no checkpoint was written \(.*\); the work goes on$")
        with warned, saved_to(tmp_path / "evolve.ckpt"):
            return evolve(teacher, inputs, 0.5).rows == rows

    assert in_a_fork(cramped) == "True"
    assert list(tmp_path.iterdir()) == []


def obey_permissions() -> None:
    """Root may write anywhere; from the next program on, it may not."""
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone can make root obey")


@needs_linux
def test_a_reports_folder_that_cannot_be_written_is_said(project: Any) -> None:
    project.notebook("10_toy", RECORD, parameters=PARAMETERS)
    (project.reports / "smoke").mkdir(parents=True)
    (project.reports / "smoke").chmod(0o555)
    line = said(delib("run", "10_toy", "--profile", "smoke", preexec_fn=obey_permissions))
    assert line.startswith("delib: ")
    assert "Permission denied" in line
    assert str(project.reports / "smoke") in line
    assert files(project.reports) == []
    (project.reports / "smoke").chmod(0o755)
    assert not run("10_toy", "smoke").reused


CONTENT = {"a.bin": b"alpha" * 1000}


def file_set(**sources: Any) -> FileSet:
    return FileSet("toy", {name: hashlib.sha256(c).hexdigest() for name, c in CONTENT.items()}, sources)


def test_a_data_folder_that_cannot_be_written_is_said_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    monkeypatch.setenv("DELIB_DATA", str(tmp_path / "data"))
    asked: list[object] = []
    with pytest.raises(DataUnavailable, match=r"^toy: .*data/toy cannot be written to .*name another .* DELIB_DATA$"):
        file_set(first=lambda names: asked.append(names) or iter(CONTENT.items())).fetch()
    assert asked == []


class Answers(http.server.BaseHTTPRequestHandler):
    """A host with every fault: it trickles, breaks off, sends a page, or says nothing."""

    def do_GET(self) -> None:
        body = {
            "/page": b"<!DOCTYPE html><html>Please log in</html>",
            "/page.gz": b"<!DOCTYPE html><html>Please log in</html>",
            "/cut.gz": gzip.compress(CONTENT["a.bin"])[:-12],
        }.get(self.path, CONTENT["a.bin"])
        if self.path == "/silent":
            time.sleep(2)
        self.send_response(404 if self.path == "/none" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        for at in range(0, len(body), step := 2 if self.path == "/trickle" else len(body)):
            self.wfile.write(body[at : at + step])
            if self.path == "/short":
                break
            time.sleep(0.05 if self.path == "/trickle" else 0)
            if self.server.ended:  # type: ignore[attr-defined]
                return

    def log_message(self, *_: object) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True


@pytest.fixture
def host() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.ended = False  # type: ignore[attr-defined]
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield "http:" + f"//127.0.0.1:{server.server_port}"
        server.ended = True  # type: ignore[attr-defined]
        server.shutdown()


FAULTS = {
    "page": "a web page instead of a.bin",
    "page.gz": "Not a gzipped file",
    "cut.gz": "Compressed file ended",
    "none": "127.0.0.1: 404",
    "trickle": "127.0.0.1: too slow, 0.0 kB a second",
    "silent": "127.0.0.1: no answer",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_source_with_a_fault_is_left_for_the_next(
    fault: str, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "CONNECT_SECONDS", 0.5)
    monkeypatch.setenv("DELIB_DATA", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("DELIB_OFFLINE", raising=False)
    begin, bad = time.monotonic(), web({"a.bin": f"{host}/{fault}"})
    with pytest.raises(DataUnavailable) as refusal:
        file_set(bad=bad).fetch()
    assert f"bad: {FAULTS[fault]}" in str(refusal.value)
    assert time.monotonic() - begin < 10
    folder = file_set(bad=bad, good=web({"a.bin": f"{host}/good"})).fetch()
    assert (folder / "a.bin").read_bytes() == CONTENT["a.bin"]
    assert os.listdir(folder) == ["a.bin"]


def test_of_two_runs_into_one_folder_the_second_waits_and_says_for_whom(project: Any, tmp_path: Path) -> None:
    go = tmp_path / "go"
    wait = f"import os, time\nopen({str(tmp_path)!r} + '/begun', 'w').close()\n"
    wait += f"while not os.path.exists({str(go)!r}): time.sleep(0.05)"
    project.notebook("10_toy", wait, RECORD, parameters=PARAMETERS)
    first = delib("run", "10_toy", "--profile", "smoke")
    assert until(lambda: (tmp_path / "begun").exists())
    second = delib("run", "10_toy", "--profile", "smoke")
    assert second.stderr is not None
    line = second.stderr.readline()
    assert line.startswith(f"10_toy: waits for process {first.pid} on ")
    assert " since 20" in line
    first.kill()  # its lock is nobody's from now on
    first.communicate()
    go.touch()
    out, _ = second.communicate(timeout=120)
    assert second.returncode == 0
    assert out.startswith("done: ")
    assert not (project.reports / "smoke" / ".10_toy.lock").exists()


def test_a_lock_is_one_s_own_and_free_once_given_back(tmp_path: Path) -> None:
    lock, heard = tmp_path / "x.lock", []

    def refuse(owner: str) -> None:
        heard.append(owner)
        raise InterruptedError

    for _ in range(2):
        with sole(lock, refuse):
            with pytest.raises(InterruptedError), sole(lock, refuse):
                pass
            assert lock.exists()
        assert not lock.exists()
    assert all(owner.startswith(f"process {os.getpid()} on ") for owner in heard)
    assert len(heard) == 2
    lock.write_text("process 1 on a machine that is gone")
    with sole(lock, refuse):
        pass


LONG = """from delib.nn import checkpoint
checkpoint.SAVE = checkpoint.SHORT = 0
import torch
from delib.evolution import evolve
def recovery(student, teacher, *, seed):
    print(f"cycle {seed}", file=open(LOG, "a"))
torch.manual_seed(0)
net, inputs = torch.nn.Linear(40, 10), torch.randn(100, 40)
def long(seed):
    evolved = evolve(net, inputs, 0.5, recovery=recovery, seed=seed)
    return float(evolved.student.weight.sum() + torch.rand(()))"""
STOP = """import os, time
first = long(100)
open(LOG, "a").write("halfway\\n")
while not os.path.exists(LOG + ".go"): time.sleep(0.05)"""
LAST = """from delib.files import write_json
from delib.suite.record import record_path
write_json(record_path(os.environ["DELIB_RUN"], "10_toy"), {"metrics": {"toy.a": first, "toy.b": long(200)}})"""


def test_a_killed_notebook_goes_on_after_its_last_long_step(project: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"
    project.notebook("10_toy", f"LOG = {str(log)!r}\n{LONG}", STOP, LAST, parameters=PARAMETERS)
    process = delib("run", "10_toy", "--profile", "smoke")
    assert until(lambda: log.exists() and "halfway" in log.read_text())
    process.kill()
    process.communicate()
    cycles = log.read_text().splitlines().index("halfway")
    (tmp_path / "log.go").touch()
    record = run("10_toy", "smoke").record.read_bytes()
    again = log.read_text().splitlines()[cycles + 1 :]
    assert again[0] == "halfway", "the first step was not done again"
    assert len(again) == cycles + 1
    assert files(project.reports) == [f"smoke/{name}" for name in RESULTS], "checkpoints are gone"
    log.unlink()
    assert run("10_toy", "smoke", force=True).record.read_bytes() == record, "as if nothing had been"
    assert len(log.read_text().splitlines()) == 2 * cycles + 1


RESULTS = ["notebooks/10_toy.ipynb", "records/10_toy.fingerprint", "records/10_toy.json"]


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_report_that_is_ended_leaves_no_kernel_and_no_temporary_folder(
    project: Any, tmp_path: Path, end: signal.Signals
) -> None:
    for i in range(2):
        slow = (
            f"import os, time\nopen({str(tmp_path)!r} + '/begun{i}', 'w').write(f'{{os.getpid()}}\\n')\ntime.sleep(600)"
        )
        project.notebook(f"0{i}_slow", slow, parameters=PARAMETERS)
    begun = [tmp_path / f"begun{i}" for i in range(2)]
    temporary = tempfile.mkdtemp()  # a short name, as sockets need
    environment = {**os.environ, "TMPDIR": temporary}
    process = delib("report", "--profile", "smoke", env=environment, preexec_fn=hear_interrupts)
    assert until(lambda: all(path.is_file() and path.read_text().endswith("\n") for path in begun))
    process.send_signal(end)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    kernels = [int(path.read_text()) for path in begun]
    assert until(lambda: not any(map(alive, kernels)), 20), "kernels go on computing"
    if end == signal.SIGKILL:  # nobody was left to tidy up; the next run does
        shutil.rmtree(project.root / "notebooks")
        project.notebook("10_toy", RECORD, parameters=PARAMETERS)
        assert delib("run", "10_toy", "--profile", "smoke", env=environment).wait(120) == 0
    else:
        assert process.returncode == 128 + end
        assert err.splitlines() == ["delib: terminated; the next call goes on from here"]
        assert files(project.reports) == []
    assert os.listdir(temporary) == []
    shutil.rmtree(temporary)
