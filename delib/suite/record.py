"""What a run leaves behind: parameters, seed, versions and metrics as JSON; files written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from delib.files import clock, project_root, restored_seconds, write_json
from delib.suite.parameters import check_parameters, read_parameters

RECORDED_PACKAGES = ("delib", "torch", "torchvision", "numpy", "numba", "constriction", "papermill")
# Folder of reports for notebooks that are played with, outside the runner.
LAB = "lab"


def git_revision() -> str:
    """Commit of delib's checkout, with ``+changes`` where tracked files differ from it; ``unknown`` outside one."""
    source = Path(__file__)
    git = ["git", "-C", str(source.parent)]
    try:
        # Installed into another project's folder, delib would find that project's commits.
        subprocess.run([*git, "ls-files", "--error-unmatch", source.name], capture_output=True, check=True)
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        # What a run itself writes is not a change of the code that made it.
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ":/", ":!/reports"], check=False)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip() + ("+changes" if changed.returncode else "")


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages on which a result depends."""
    versions = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    return versions


def report_folder(run: str | Path) -> Path:
    """Where a run leaves its files: ``reports/<run>`` of the project for a name, the path itself if absolute."""
    return project_root() / "reports" / run


def record_path(run: str | Path, notebook: str) -> Path:
    """Where the record of a notebook stands; ``run`` is a profile or another folder of reports."""
    return report_folder(run) / "records" / f"{notebook}.json"


def read_records(run: str | Path) -> dict[str, dict[str, Any]]:
    """All records of a run by notebook name, in the notebooks' order. Raises ValueError on a bad one, naming it."""
    folder = record_path(run, "any").parent
    return {path.stem: read_record(path) for path in sorted(folder.glob("*.json"))}


def past_runs(notebook: str, profile: str) -> dict[str, float]:
    """Seconds that a notebook took in this profile, by the names of the runs, wherever in ``reports/`` they stand.

    Raises ValueError on a bad record, naming it.
    """
    seconds = {}
    for path in sorted(report_folder("").glob(f"*/records/{notebook}.json")):
        record = read_record(path)
        try:
            if record["parameters"]["profile"] == profile:
                seconds[path.parents[1].name] = float(record["seconds"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a record ({error}); delete it and run the notebook again") from None
    return seconds


def read_record(path: Path) -> dict[str, Any]:
    """One record. Raises ValueError, naming the file, where it is none."""
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record["metrics"], dict):
            raise TypeError("metrics are no table")
        return record
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not a record ({error}); delete it and run the notebook again") from None


def _is_literal(value: Any) -> bool:
    """Whether JSON can hold a value, as all of a parameters cell; not so an imported table of functions."""
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


class Run:
    """One run of one notebook: collects metrics and data checksums, writes them with the circumstances.

    Made in the cell after the parameters: ``run = Run("01_mnist", globals())`` keeps every literal defined so far
    as a parameter, among which ``profile`` and ``seed`` are expected. Where the notebook's file is found, in the
    current folder or in ``notebooks/``, the values are checked against the ranges that it gives, and
    ``run.parameters`` hold the content of recipes in place of their names.
    """

    def __init__(self, notebook: str, namespace: Mapping[str, Any], device: str = "cpu") -> None:
        self.notebook, self.device = notebook, device
        self.parameters = {
            name: value
            for name, value in namespace.items()
            if not name.startswith("_") and name not in ("In", "Out") and _is_literal(value)
        }
        for name in ("profile", "seed"):
            if name not in self.parameters:
                raise ValueError(f"{notebook}: the parameters cell must define `{name}` before the run is recorded")
        places = [folder / f"{notebook}.ipynb" for folder in (Path.cwd(), project_root() / "notebooks")]
        if path := next((path for path in places if path.is_file()), None):
            known = read_parameters(path)
            given = {name: value for name, value in self.parameters.items() if name in known}
            self.parameters |= check_parameters(path, given)
        self.metrics: dict[str, float] = {}
        self.data: dict[str, str] = {}
        self._unfinished: list[Path] = []
        self._start = clock()

    @property
    def folder(self) -> Path:
        """Where this run's own files go: ``$DELIB_RUN`` if the runner set it, else ``reports/lab``.

        In JupyterLab any value may have been changed by hand, so nothing made there passes for a profile's result.
        """
        return report_folder(os.environ.get("DELIB_RUN") or LAB)

    def checkpoint(self, name: str) -> Path:
        """A file for work that is not done yet, from which an interrupted run goes on; ``write`` removes it.

        It belongs to these parameters (``threads`` aside) and this data: with others the work begins anew. The runner
        keeps it with the run's other checkpoints.
        """
        known = {name: value for name, value in self.parameters.items() if name != "threads"}
        digest = hashlib.sha256(json.dumps([known, self.data], sort_keys=True).encode()).hexdigest()
        folder = Path(os.environ.get("DELIB_CHECKPOINTS") or self.folder)
        self._unfinished.append(folder / f"{name}-{digest[:8]}.ckpt")
        return self._unfinished[-1]

    def add(self, network: str, **metrics: float) -> None:
        """Add metrics as ``"<network>.<metric>"``. Raises ValueError if one is not a finite number."""
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise ValueError(f"metric {network}.{name} is {value}, not a finite number")
            self.metrics[f"{network}.{name}"] = value if isinstance(value, int) else float(value)

    def write(self) -> Path:
        """Write the record atomically and remove the checkpoints; returns the record's path."""
        import torch

        path = record_path(self.folder, self.notebook)
        write_json(
            path,
            {
                "notebook": self.notebook,
                "parameters": self.parameters,
                "seed": self.parameters["seed"],
                "versions": package_versions(),
                "machine": f"{platform.system()} {platform.machine()}",
                "device": torch.cuda.get_device_name(self.device) if self.device.startswith("cuda") else "cpu",
                "threads": torch.get_num_threads(),
                "git_revision": git_revision(),
                "data": self.data,
                "seconds": round(clock() - self._start, 1),
                "restored_seconds": round(restored_seconds(), 1),
                "metrics": self.metrics,
            },
        )
        for file in self._unfinished:
            file.unlink(missing_ok=True)
        return path
