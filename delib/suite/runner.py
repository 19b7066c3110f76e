"""Running notebooks: the values they run with, their execution by papermill, and no work that is already done."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import math
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

from delib.files import digest, project_root, sha256, write_json
from delib.suite.parameters import (
    PROFILES,
    check_parameters,
    named_paths,
    profile_parameters,
    read_cells,
    read_parameters,
)
from delib.suite.record import package_versions, read_records, record_path, report_folder

# Folders of reports that hold a profile's own results, which no other run may replace.
PROTECTED = (*PROFILES, "reference")
# Notebooks that run at a time. Each then keeps to one thread on a laptop's cores, of which there are two at least: a
# third notebook keeps both of them busy until the end.
JOBS = 3
# Longest path of a socket on macOS; four bytes more on Linux.
SOCKET_PATH = 103


class RunFailed(RuntimeError):
    """A notebook stopped; the message names the cell, the exception, and where the notebook stands."""


@dataclass(frozen=True)
class Result:
    """What a run left: the executed notebook, its record, and whether it had been there already."""

    notebook: Path
    record: Path
    reused: bool


def find_notebook(name: str | Path) -> Path:
    """A notebook by its path, or by its name in ``notebooks/``. Raises ValueError, naming the nearest, if absent."""
    path = Path(name)
    if path.suffix == ".ipynb" and path.is_file():
        return path.resolve()
    present = {notebook.stem: notebook for notebook in notebooks()}
    if path.name.removesuffix(".ipynb") in present:
        return present[path.name.removesuffix(".ipynb")]
    near = difflib.get_close_matches(path.stem, present, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"notebooks/ has {', '.join(present) or 'none'}"
    raise ValueError(f"there is no notebook {name}; {hint}")


def notebooks() -> list[Path]:
    """The numbered sequence in ``notebooks/``, in order."""
    return sorted((project_root() / "notebooks").glob("[0-9]*.ipynb"))


def run(
    notebook: str | Path,
    profile: str = "quick",
    parameters: Mapping[str, Any] | None = None,
    *,
    into: str | Path | None = None,
    text: bool = False,
    force: bool = False,
) -> Result:
    """Execute a notebook with a profile's values and, over them, ``parameters``; skip it if its result is up to date.

    The executed notebook goes to ``reports/<into>/notebooks``, its record to ``reports/<into>/records``. ``into``
    defaults to the profile, or to ``<profile>-custom`` if there are parameters, so that a trial never replaces a
    profile's results. ``text`` reads string parameters as a command line's (see ``check_parameters``); ``force`` runs
    even if nothing changed. Raises ValueError on parameters that do not fit, RunFailed if the notebook stops.
    """
    path = find_notebook(notebook)
    own_values = profile_parameters(path, profile)
    given = check_parameters(path, parameters or {}, text=text, over=own_values)
    if "profile" in given:
        raise ValueError("`profile` is not given as a parameter; choose it with --profile")
    folder, chosen = _folder_for(profile, bool(given), into), own_values | given
    made_from, own = fingerprint(path, chosen), "" if given else profile
    executed, record, stamp = _files(folder, path.stem)
    if not force and _unspoilt(folder, path.stem) == (made_from, own):
        return Result(executed, record, reused=True)
    stamp.unlink(missing_ok=True)
    before = _modified(record)
    defaults = _defaults(path)
    _execute(path, executed, {name: value for name, value in chosen.items() if value != defaults[name]}, folder)
    if _modified(record) == before:
        raise RunFailed(f"{path.stem} ran but left no record; its last cell must call `run.write()`")
    write_stamp(folder, path.stem, made_from, own)
    return Result(executed, record, reused=False)


def _folder_for(profile: str, custom: bool, into: str | Path | None) -> Path:
    """Where a run's results go. Raises ValueError if they would replace those of a profile that it is not."""
    folder = report_folder(into or (f"{profile}-custom" if custom else profile)).resolve()
    for name in PROTECTED:
        if folder == report_folder(name).resolve() and (custom or name != profile):
            raise ValueError(f"`{into}` holds a profile's own results; give a run with other parameters another folder")
    return folder


def run_all(
    profile: str = "quick",
    *,
    force: bool = False,
    jobs: int = JOBS,
    tell: Callable[[str, str], None] = lambda notebook, outcome: None,
) -> list[Result]:
    """Run every notebook of the sequence in a profile; those up to date are skipped.

    ``jobs`` notebooks run at a time, each in a process of its own, for each can run alone, the longest first. ``tell``
    hears the outcome of each as it comes: done, up to date or stopped. If some stop, the others are still finished,
    and the first stopped one's error is raised. Raises ValueError where there are no notebooks.
    """
    paths, threads = notebooks(), max(1, (os.cpu_count() or 1) // jobs)
    if not paths:
        raise ValueError(f"{project_root()} has no notebooks; call delib in its checkout, or name that by DELIB_HOME")
    with (
        tempfile.TemporaryDirectory(
            prefix="delib-", dir=_room_for(len(2 * "/delib-12345678" + "/kernel-1")), ignore_cleanup_errors=True
        ) as temporary,
        ProcessPoolExecutor(jobs, get_context("spawn"), _begin_worker, (temporary, threads)) as pool,
    ):
        runs = {pool.submit(run, path, profile, force=force): path.stem for path in _longest_first(paths)}
        try:
            for finished in as_completed(runs):
                stopped = finished.exception() is not None
                tell(runs[finished], "stopped" if stopped else "up to date" if finished.result().reused else "done")
        except BaseException:
            # The pool itself would first run all that it was given.
            pool.shutdown(wait=False, cancel_futures=True)
            for process in active_children():
                process.terminate()
            raise
    return [finished.result() for finished in sorted(runs, key=lambda finished: runs[finished])]


def _longest_first(paths: list[Path]) -> list[Path]:
    """By the seconds in the reference report's records, so that no long notebook runs alone at the end; a notebook
    that has none comes first."""
    seconds = {name: record.get("seconds", math.inf) for name, record in read_records("reference").items()}
    return sorted(paths, key=lambda path: seconds.get(path.stem, math.inf), reverse=True)


def _begin_worker(temporary: str, threads: int) -> None:
    """A terminal's interrupt reaches every process: the parent alone answers it, by ending the others.

    What they leave in the folder of temporary files, the parent removes. Their kernels take ``threads`` cores each,
    unless a notebook or the caller's environment says how many.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tempfile.tempdir = temporary


def fingerprint(notebook: Path, chosen: Mapping[str, Any]) -> str:
    """One hash of everything that a result depends on, where ``chosen`` are parameters with other values than default.

    That is: the cells, the values with the contents of recipes, the files and folders that they name, the modules
    beside the notebook, delib's sources, and the packages' versions.
    """
    lock = project_root() / "requirements.lock"
    values = {**_defaults(notebook), **chosen}
    named = named_paths(values, notebook.parent)
    parts = [
        [[cell["cell_type"], cell["source"]] for cell in read_cells(notebook)],
        values,
        {text: digest(path) for text, path in named.items()},
        {str(path.relative_to(notebook.parent)): digest(path) for path in _modules_beside(notebook)},
        _sources(),
        package_versions(),
        lock.read_text(encoding="utf-8") if lock.is_file() else "",
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _defaults(notebook: Path) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in read_parameters(notebook).items()}


def _sources() -> dict[str, str]:
    """Digests of delib's modules that results are computed with: all but those that run and show notebooks."""
    package = Path(__file__).parents[1]
    modules = [
        path for wing in package.iterdir() if wing.is_dir() and wing.name != "suite" for path in wing.rglob("*.py")
    ]
    return {str(path.relative_to(package)): sha256(path) for path in [*modules, package / "files.py"]}


def _modules_beside(notebook: Path) -> list[Path]:
    """What a cell may import from the notebook's folder: modules, and packages with all that is in them."""
    folder = notebook.parent
    inner = (path for package in folder.glob("*/__init__.py") for path in package.parent.rglob("*.py"))
    return sorted(path for path in [*folder.glob("*.py"), *inner] if not path.name.startswith("."))


def _files(folder: Path, name: str) -> tuple[Path, Path, Path]:
    """The files of one result: the executed notebook, its record, and the stamp that the runner put beside it."""
    record = record_path(folder, name)
    return folder / "notebooks" / f"{name}.ipynb", record, record.with_suffix(".fingerprint")


def write_stamp(folder: Path, name: str, made_from: str, profile: str) -> None:
    """Say of a result what it was made from, and which two files it consists of, so that no other passes for it.

    ``made_from`` is its fingerprint; ``profile`` is empty if it was run with parameters of its own.
    """
    executed, record, stamp = _files(folder, name)
    content = {"fingerprint": made_from, "profile": profile, "notebook": sha256(executed), "record": sha256(record)}
    write_json(stamp, content)


def _unspoilt(folder: Path, name: str) -> tuple[str, str] | None:
    """Fingerprint and profile of a result; None if a file is missing or is not the one that the runner left."""
    executed, record, stamp = _files(folder, name)
    try:
        left = json.loads(stamp.read_text(encoding="utf-8"))
        if (left["notebook"], left["record"]) == (sha256(executed), sha256(record)):
            return left["fingerprint"], left["profile"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def check_results(run: str | Path, *, current: bool = False) -> None:
    """Refuse results that a report must not show: ValueError names the first, and the mend.

    Notebook, record and stamp of each must be those that the runner left together, in a profile's folder with that
    profile's own values, and, with ``current``, what the profile makes of ``notebooks/`` as they are now.
    """
    folder = report_folder(run)
    profile = next((name for name in PROFILES if folder.resolve() == report_folder(name).resolve()), None)
    present = {notebook.stem: notebook for notebook in notebooks()}
    for name in _results(folder):
        source, left = present.get(name), _unspoilt(folder, name)
        if left is None:
            wrong = "is not what the runner left there"
        elif profile and left[1] != profile:
            wrong = "was made with other parameters"
        elif current and (source is None or left[0] != fingerprint(source, profile_parameters(source, str(profile)))):
            wrong = "was made from something else than stands in notebooks/ and delib/ now"
        else:
            continue
        where = f"--profile {profile}" if profile else f"--into {run}"
        mend = f"run it again with `delib run {name} {where} --force`" if source else "delete its files"
        raise ValueError(f"{name}: its notebook or record in {folder} {wrong}; {mend}")


def _results(folder: Path) -> list[str]:
    """Names of all results in a folder of reports, whole or not."""
    executed = [path.stem for path in (folder / "notebooks").glob("*.ipynb") if not path.stem.endswith(".failed")]
    return sorted({*(name for name in executed if not name.startswith(".")), *read_records(folder)})


def _execute(notebook: Path, executed: Path, values: Mapping[str, Any], folder: Path) -> None:
    """Run the notebook under a temporary name, renamed to ``executed``, or to ``<name>.failed.ipynb`` if it stops."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    executed.parent.mkdir(parents=True, exist_ok=True)
    working = executed.with_name(f".{executed.stem}.{os.getpid()}.ipynb")
    failed = executed.with_name(f"{executed.stem}.failed.ipynb")
    try:
        with _kernel(folder) as options:
            papermill.execute_notebook(str(notebook), str(working), dict(values), cwd=str(notebook.parent), **options)
        os.replace(working, executed)
        failed.unlink(missing_ok=True)
    except papermill.PapermillExecutionError as error:
        os.replace(working, failed)
        first = next((line for line in error.source.splitlines() if line.strip()), "")
        raise RunFailed(
            f"{notebook.stem}: cell In [{error.exec_count}] (`{first}`) raised {error.ename}: "
            f"{' '.join(error.evalue.split())}; it stands in {failed}"
        ) from None
    except DeadKernelError:
        raise RunFailed(
            f"{notebook.stem}: its kernel died, most likely for want of memory; try a smaller one"
        ) from None
    finally:
        working.unlink(missing_ok=True)


@contextmanager
def _kernel(folder: Path) -> Iterator[dict[str, Any]]:
    """What papermill is told of the kernel, whose files and environment variables there are only meanwhile."""
    from ipykernel.kernelspec import write_kernel_spec
    from traitlets.config import Config

    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it would tell what an interrupt leaves of nbclient
    before = dict(os.environ)
    # Of each kernel, as they run side by side; sockets are called `kernel-1` and so on.
    with tempfile.TemporaryDirectory(prefix="delib-", dir=_room_for(len("/delib-12345678/kernel-1"))) as own:
        variables = {"DELIB_BATCH": "1", "DELIB_RUN": str(folder), "TQDM_DISABLE": "1", "JUPYTER_PATH": own}
        try:
            os.environ.update(variables, PYDEVD_DISABLE_FILE_VALIDATION="1")
            # The Python that runs this, whichever other one is registered as `python3` elsewhere.
            write_kernel_spec(f"{own}/kernels/python3")
            yield {
                "kernel_name": "python3",
                "language": "python",
                "request_save_on_cell_execute": False,  # no half-written file, whatever ends this process
                # Between processes of this machine, not over TCP, where other users could read along.
                "config": Config(KernelManager={"transport": "ipc", "ip": f"{own}/kernel"}),
                "extra_arguments": ["--IPKernelApp.log_level=CRITICAL"],
                "progress_bar": {"leave": False} if sys.stderr.isatty() else False,
            }
        finally:
            os.environ.clear()
            os.environ.update(before)


def _room_for(characters: int) -> str | None:
    """Where a temporary folder with sockets below it is made: as usual, or in /tmp where the path would be too long."""
    return None if len(os.fsencode(tempfile.gettempdir())) + characters <= SOCKET_PATH else "/tmp"


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0
