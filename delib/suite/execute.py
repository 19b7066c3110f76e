"""One notebook executed by papermill: its kernel is watched over, its end explained, and nothing of it left behind.

The kernel is a process of its own, so notebooks run side by side in threads of one process: what that one is told (an
interrupt, a termination) ends them all, and where it is killed its kernels notice and end themselves.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import Popen
from typing import Any

import papermill
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from traitlets.config import Config

from delib.suite.runner import RunFailed

# Longest path of a socket on macOS; four bytes more on Linux.
SOCKET_PATH = 103
STARTS = 300  # seconds that a kernel may take to answer, on a machine that is busy
ENDS = 20.0  # seconds within which what was ended is expected to have tidied up


class Stopped(RuntimeError):
    """A notebook was ended with all others."""


class Kernels:
    """The kernels that run, so that all can be ended at once."""

    def __init__(self) -> None:
        self.stopped = False
        self._running: set[Popen[bytes]] = set()
        self._at_work = 0
        self._changed = threading.Condition()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """The block has a kernel, or is about to, and tidies up after it. Raises Stopped if it is too late for one."""
        self.check()
        with self._changed:
            self._at_work += 1
        try:
            yield
        finally:
            with self._changed:
                self._at_work -= 1
                self._changed.notify_all()

    def check(self) -> None:
        """Raises Stopped once all were ended."""
        if self.stopped:
            raise Stopped("ended with the others")

    def add(self, process: Popen[bytes]) -> None:
        """A kernel has started."""
        with self._changed:
            self._running.add(process)
            if self.stopped:
                _kill(process)

    def stop(self) -> None:
        """End every kernel and let none begin; returns when their notebooks have tidied up."""
        with self._changed:
            self.stopped = True
            for process in self._running:
                _kill(process)
            self._changed.wait_for(lambda: not self._at_work, ENDS)


def _kill(process: Popen[bytes]) -> None:
    """A kernel leads a group of processes, of all that its notebook began."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


class _Manager(AsyncKernelManager):
    """Starts the Python that runs this, whichever other one is registered as ``python3`` elsewhere."""

    @property
    def kernel_spec(self) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Python 3", language="python")


class _Engine(NBClientEngine):
    """Papermill's own, with a kernel that others can end and cells that are told of as they begin."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> None:
        """Papermill's other options are for engines that are chosen by the user."""

        def begun(notebook: Any) -> None:
            options["started"](client.km.provisioner.process)

        client = PapermillNotebookClient(
            nb_man,
            kernel_name=kernel_name,
            kernel_manager_class=_Manager,
            startup_timeout=STARTS,
            config=options["config"],
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            on_notebook_start=begun,
            on_cell_start=lambda cell, cell_index: options["tell"](cell_index),
        )
        client.execute(env=options["variables"], cwd=options["folder"])


papermill_engines.register("delib", _Engine)


def execute(
    notebook: Path,
    executed: Path,
    values: Mapping[str, Any],
    variables: Mapping[str, str],
    kernels: Kernels,
    tell: Callable[[int], None],
) -> None:
    """Run a notebook under a temporary name, renamed to ``executed``, or to ``<name>.failed.ipynb`` if it stops.

    Parameters
    ----------
    notebook, executed : Path
    values : mapping
        Parameters with other values than the notebook's own.
    variables : mapping
        Environment variables of the kernel beside this process's own.
    kernels : Kernels
        Those among which this one counts.
    tell : callable
        Called with the index of each cell that begins.

    Raises
    ------
    RunFailed
        If a cell raises an exception or the kernel ends.
    Stopped
        If all kernels were ended.
    """
    executed.parent.mkdir(parents=True, exist_ok=True)
    working = executed.with_name(f".{executed.stem}.{os.getpid()}.{threading.get_ident()}.ipynb")
    failed = executed.with_name(f"{executed.stem}.failed.ipynb")
    memory = _ended_for_memory()
    processes: list[Popen[bytes]] = []

    def started(process: Popen[bytes]) -> None:
        processes.append(process)
        kernels.add(process)

    try:
        with _options(notebook.parent, variables) as options:
            options |= {"started": started, "tell": tell, "progress_bar": False}
            papermill.execute_notebook(str(notebook), str(working), dict(values), **options)
        os.replace(working, executed)
        failed.unlink(missing_ok=True)
    except papermill.PapermillExecutionError as error:
        os.replace(working, failed)
        first = next((line for line in error.source.splitlines() if line.strip()), "")
        raise RunFailed(
            f"{notebook.stem}: cell In [{error.exec_count}] (`{first}`) raised {error.ename}: "
            f"{' '.join(error.evalue.split())}; it stands in {failed}"
        ) from None
    except Exception:  # of many types, where a kernel is gone
        kernels.check()
        if not processes or processes[0].poll() in (None, 0):
            raise
        raise RunFailed(f"{notebook.stem}: its kernel {_end(processes[0].returncode, memory)}") from None
    finally:
        working.unlink(missing_ok=True)


@contextmanager
def _options(folder: Path, variables: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """What papermill is told of the kernel, whose files are there only meanwhile."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it would tell what an interrupt leaves of nbclient
    _remove_leftovers()
    # Sockets are called `kernel-1` and so on.
    room = _room_for(len(f"/delib-{os.getpid()}-12345678/kernel-1"))
    with tempfile.TemporaryDirectory(prefix=f"delib-{os.getpid()}-", dir=room, ignore_cleanup_errors=True) as own:
        # Between processes of this machine, not over TCP, where other users could read along.
        channels = {"transport": "ipc", "ip": f"{own}/kernel", "connection_file": f"{own}/kernel.json"}
        yield {
            "engine_name": "delib",
            "kernel_name": "python3",
            "language": "python",
            "request_save_on_cell_execute": False,  # no half-written file, whatever ends this process
            "config": Config(KernelManager=channels),
            "variables": {**os.environ, "PYDEVD_DISABLE_FILE_VALIDATION": "1", **variables},
            "folder": str(folder),
        }


def _remove_leftovers() -> None:
    """Temporary folders of processes that were killed."""
    for place in {tempfile.gettempdir(), "/tmp"}:
        for path in Path(place).glob("delib-*-*"):
            owner = re.fullmatch(r"delib-(\d+)-\w+", path.name)
            if owner and not _is_alive(int(owner[1])):
                shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _ended_for_memory() -> int | None:
    """How many processes Linux has ended so far for want of memory; None where that is not known."""
    with suppress(OSError):
        if found := re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(encoding="utf-8"), re.MULTILINE):
            return int(found[1])
    return None


def _end(status: int, memory_before: int | None) -> str:
    """How a kernel ended, by the status of its process."""
    if status >= 0:
        return f"ended by itself with status {status}"
    if status != -signal.SIGKILL:
        return f"died of signal {signal.Signals(-status).name}"
    memory = _ended_for_memory()
    if memory is None or memory_before is None:
        return "was killed, from outside or by the system for want of memory"
    if memory > memory_before:
        return "was killed while the system was short of memory, most likely for that; try a smaller one"
    return "was killed from outside (SIGKILL), not for want of memory"


def _room_for(characters: int) -> str | None:
    """Where a temporary folder with sockets below it is made: as usual, or in /tmp where the path would be too long."""
    return None if len(os.fsencode(tempfile.gettempdir())) + characters <= SOCKET_PATH else "/tmp"
