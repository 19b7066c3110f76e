"""Running notebooks: the values they run with, their execution, and no work that is already done."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from delib.files import digest, project_root, sha256, sole, write_json
from delib.suite.parameters import (
    PROFILES,
    check_parameters,
    named_paths,
    profile_parameters,
    read_cells,
    read_parameters,
)
from delib.suite.progress import Progress
from delib.suite.record import package_versions, read_records, record_path, report_folder

if TYPE_CHECKING:
    from delib.suite.execute import Kernels  # the command line needs to be quick

# Folders of reports that hold a profile's own results, which no other run may replace.
PROTECTED = (*PROFILES, "reference")
# Notebooks that run at a time. Each then keeps to one thread on a laptop's cores, of which there are two at least: a
# third notebook keeps both of them busy until the end.
JOBS = 3
ANSWERS = 20  # seconds within which a cluster's scheduler has to
WAIT = 60.0  # seconds after which it is said again that another run is waited for
SHOWS_STUDENTS = "shipped("  # in a cell that reads data/students


class RunFailed(RuntimeError):
    """A notebook stopped; the message names the cell, the exception, and where the notebook stands."""


@dataclass(frozen=True)
class Result:
    """What a run left: the executed notebook, its record, and whether it had been there already."""

    notebook: Path
    record: Path
    reused: bool


@dataclass(frozen=True)
class Task:
    """A notebook to be run, into a folder of reports: ``chosen`` are values other than its own, ``profile`` is empty if
    they are not a profile's; ``force`` runs it even if nothing changed; ``label`` tells it from others of its name."""

    notebook: Path
    chosen: Mapping[str, Any]
    folder: Path
    profile: str = ""
    force: bool = False
    label: str = ""

    @property
    def name(self) -> str:
        return self.notebook.stem

    @property
    def files(self) -> tuple[Path, Path, Path]:
        """The executed notebook, its record, and the stamp that the runner puts beside it."""
        return _files(self.folder, self.name)


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
    progress: Progress | None = None,
) -> Result:
    """Execute a notebook with a profile's values and, over them, ``parameters``; skip it if its result is up to date.

    The executed notebook goes to ``reports/<into>/notebooks``, its record to ``reports/<into>/records``. ``into``
    defaults to the profile, or to ``<profile>-custom`` if there are parameters, so that a trial never replaces a
    profile's results. ``text`` reads string parameters as a command line's (see ``check_parameters``); ``force`` runs
    even if nothing changed; ``progress`` shows how far it is. An interrupted run goes on after the long step that it
    had last finished or saved. Raises ValueError on parameters that do not fit, RunFailed if the notebook stops.
    """
    task = prepare(notebook, profile, parameters, into=into, text=text, force=force)
    ((_, outcome),) = perform_all([task], 1, progress or Progress(quiet=True))
    return _or_raise(outcome)


def prepare(
    notebook: str | Path,
    profile: str = "quick",
    parameters: Mapping[str, Any] | None = None,
    *,
    into: str | Path | None = None,
    text: bool = False,
    force: bool = False,
) -> Task:
    """What ``run`` would do, with its parameters checked. Raises ValueError if they do not fit."""
    path = find_notebook(notebook)
    own_values = profile_parameters(path, profile)
    given = check_parameters(path, parameters or {}, text=text, over=own_values)
    if "profile" in given:
        raise ValueError("`profile` is not given as a parameter; choose it with --profile")
    folder = _folder_for(profile, bool(given), into)
    return Task(path, own_values | given, folder, "" if given else profile, force)


def _folder_for(profile: str, custom: bool, into: str | Path | None) -> Path:
    """Where a run's results go. Raises ValueError if they would replace those of a profile that it is not."""
    folder = report_folder(into or (f"{profile}-custom" if custom else profile)).resolve()
    for name in PROTECTED:
        if folder == report_folder(name).resolve() and (custom or name != profile):
            raise ValueError(f"`{into}` holds a profile's own results; give a run with other parameters another folder")
    return folder


def run_all(
    profile: str = "quick", *, force: bool = False, jobs: int = JOBS, progress: Progress | None = None
) -> list[Result]:
    """Run every notebook of the sequence in a profile; those up to date are skipped.

    ``jobs`` notebooks run at a time, for each can run alone, the longest first; their kernels share the cores, unless a
    notebook or the caller's environment says how many threads there are. ``progress`` is told the outcome of each as it
    comes: done, up to date or stopped. If some stop, the others are still finished, and the first stopped one's error
    is raised. Raises ValueError where there are no notebooks.
    """
    paths, said = notebooks(), progress or Progress(quiet=True)
    if not paths:
        raise ValueError(f"{project_root()} has no notebooks; call delib in its checkout, or name that by DELIB_HOME")
    outcomes: dict[str, Result | Exception] = {}
    tasks = [prepare(path, profile, force=force) for path in _longest_first(paths)]
    with closing(perform_all(tasks, jobs, said, max(1, (os.cpu_count() or 1) // jobs))) as performed:
        for task, outcome in performed:
            outcomes[task.name] = outcome
            said.say(f"{task.name} ({profile}) … {how(outcome)}")
    return [_or_raise(outcomes[name]) for name in sorted(outcomes)]


def how(outcome: Result | Exception) -> str:
    """How a task ended, in a word or two."""
    return "stopped" if isinstance(outcome, Exception) else "up to date" if outcome.reused else "done"


def _or_raise(outcome: Result | Exception) -> Result:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _longest_first(paths: list[Path]) -> list[Path]:
    """By the seconds in the reference report's records, so that no long notebook runs alone at the end; a notebook
    that has none comes first."""
    seconds = {name: record.get("seconds", math.inf) for name, record in read_records("reference").items()}
    return sorted(paths, key=lambda path: seconds.get(path.stem, math.inf), reverse=True)


def perform_all(
    tasks: Sequence[Task], jobs: int, progress: Progress, threads: int | None = None, scheduler: str = ""
) -> Generator[tuple[Task, Result | Exception]]:
    """Perform tasks, ``jobs`` at a time, and yield each with its result, or what stopped it, as it comes.

    Each has a kernel, a process of its own, so threads are enough on this side: no pool breaks if one dies. Kernels
    take ``threads`` cores each, unless a notebook or the caller's environment says how many. An interrupt ends all
    kernels, and tasks that have not begun never do. With the address of a Dask ``scheduler`` its workers perform them
    instead; the tasks of a worker that dies are given to another.
    """
    from joblib import Parallel, delayed

    from delib.suite.execute import Kernels

    kernels, slots = Kernels(), SimpleQueue[dict[str, str]]()
    for variables in device_slots(jobs, threads):
        slots.put(variables)

    def attempt(task: Task) -> tuple[Task, Result | Exception]:
        variables = slots.get()
        try:
            return task, perform(task, kernels, progress, variables)
        finally:
            slots.put(variables)

    try:
        with progress:
            if scheduler:
                yield from _on_cluster(tasks, scheduler)
            else:
                # Never in this thread, as joblib does with one job: an interrupt is this one's to hear.
                options = {"backend": "threading", "return_as": "generator_unordered", "pre_dispatch": jobs}
                yield from Parallel(max(jobs, 2), batch_size=1, **options)(delayed(attempt)(task) for task in tasks)
    except BaseException:
        kernels.stop()
        raise


def device_slots(jobs: int, threads: int | None) -> list[dict[str, str]]:
    """The environment variables of the kernels that run at a time: their cores and, where there are GPUs, one each."""
    cores = {"OMP_NUM_THREADS": str(threads)} if threads and "OMP_NUM_THREADS" not in os.environ else {}
    gpus = _gpus() if jobs > 1 else []
    return [cores | ({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {}) for i in range(jobs)]


def _gpus() -> list[str]:
    """The names by which CUDA knows this machine's GPUs, those that the environment allows."""
    if (allowed := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in allowed.split(",") if name]
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return re.findall(r"UUID: (GPU-[\w-]+)", listed.stdout)


def _on_cluster(tasks: Sequence[Task], scheduler: str) -> Iterator[tuple[Task, Result | Exception]]:
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise ValueError("a Dask cluster needs the extra `cluster`: pip install delib[cluster]") from None
    try:
        client = Client(scheduler, timeout=ANSWERS)
    except (OSError, ValueError) as error:
        raise ValueError(f"no Dask scheduler answers at {scheduler} ({type(error).__name__})") from None
    with client:
        tasks_of = {client.submit(_attempt, task, pure=False): task for task in tasks}
        for future in as_completed(tasks_of):
            # Also of a task on which one worker after the other died.
            yield tasks_of[future], future.exception() or future.result()


def _attempt(task: Task) -> Result | Exception:
    """On another machine: perform a task with what the worker was given."""
    from delib.suite.execute import Kernels

    return perform(task, Kernels(), Progress(quiet=True), {})


def perform(task: Task, kernels: Kernels, progress: Progress, variables: Mapping[str, str]) -> Result | Exception:
    """Perform a task, unless its result is up to date; returns what stopped it, as other tasks go on."""
    try:
        with kernels.at_work():
            made_from = fingerprint(task.notebook, task.chosen)

            def needed() -> bool:
                return task.force or _unspoilt(task.folder, task.name) != (made_from, task.profile)

            if done := needed():
                with sole(task.folder / f".{task.name}.lock", _waiting(task, kernels, progress)):
                    if done := needed():  # another run may have done it meanwhile
                        _perform(task, made_from, kernels, progress, variables)
            executed, record, _ = task.files
            return Result(executed, record, reused=not done)
    except Exception as error:
        return error


def _waiting(task: Task, kernels: Kernels, progress: Progress) -> Callable[[str], None]:
    """Says, every minute, whom the task waits for."""
    said = -math.inf

    def wait(owner: str) -> None:
        nonlocal said
        kernels.check()
        if time.monotonic() - said >= WAIT:
            said = time.monotonic()
            progress.say(f"{task.label or task.name}: waits for {owner}, who runs it into {task.folder}")

    return wait


def _perform(task: Task, made_from: str, kernels: Kernels, progress: Progress, variables: Mapping[str, str]) -> None:
    from delib.suite.execute import execute

    executed, record, stamp = task.files
    stamp.unlink(missing_ok=True)
    before, checkpoints = _modified(record), _checkpoints(task, made_from)
    if task.force:
        shutil.rmtree(checkpoints, ignore_errors=True)
    defaults = _defaults(task.notebook)
    values = {name: value for name, value in task.chosen.items() if value != defaults[name]}
    own = {"DELIB_BATCH": "1", "TQDM_DISABLE": "1", "DELIB_RUN": str(task.folder)}
    own |= {"DELIB_CHECKPOINTS": str(checkpoints), **variables}
    cells = len(read_cells(task.notebook)) + bool(values)  # papermill adds one for them
    with progress.of(task.label or task.name, cells, executed) as work:
        execute(task.notebook, executed, values, own, kernels, work.enter)
    if _modified(record) == before:
        raise RunFailed(f"{task.name} ran but left no record; its last cell must call `run.write()`")
    write_stamp(task.folder, task.name, made_from, task.profile)
    for old in checkpoints.parent.glob(f"{task.name}-*"):
        shutil.rmtree(old, ignore_errors=True)
    with suppress(OSError):
        checkpoints.parent.rmdir()


def _checkpoints(task: Task, made_from: str) -> Path:
    """Where the long steps of a task save themselves: a folder for all that it is made from, gone once it is done."""
    return task.folder / "checkpoints" / f"{task.name}-{made_from[:16]}"


def fingerprint(notebook: Path, chosen: Mapping[str, Any]) -> str:
    """One hash of everything that a result depends on, where ``chosen`` are parameters with other values than default.

    That is: the cells, the values with the contents of recipes, the files and folders that they name, the modules
    beside the notebook, delib's sources, the packages' versions, and for a notebook that shows the students that ship
    these and their records.
    """
    lock = project_root() / "requirements.lock"
    values = {**_defaults(notebook), **chosen}
    named = named_paths(values, notebook.parent)
    cells = [[cell["cell_type"], cell["source"]] for cell in read_cells(notebook)]
    parts = [
        cells,
        values,
        {text: digest(path) for text, path in named.items()},
        {str(path.relative_to(notebook.parent)): digest(path) for path in _modules_beside(notebook)},
        _sources(),
        package_versions(),
        lock.read_text(encoding="utf-8") if lock.is_file() else "",
    ]
    if any(SHOWS_STUDENTS in source for kind, source in cells if kind == "code"):
        students = sorted((project_root() / "data" / "students").glob("*.delib"))
        parts.append({path.name: [digest(path), digest(path.with_suffix(".json"))] for path in students})
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


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0
