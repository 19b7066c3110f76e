"""A grid of twelve cells of notebook 01 in ``smoke``: one worker, two workers of this machine, two of a Dask cluster.

Prints one JSON document: the seconds of each, and how many times as fast as one worker two are. Two of joblib are to
be 1.7 times as fast on two cores; Dask's on loopback are to take at most a fifth longer. The three take turns,
``--rounds`` times, and of each the fastest counts, so that a machine's other work falls on all alike. Teachers and
data are there before the clock starts. Two hyperthreads of one core count as two, and cannot be 1.7 times as fast as
one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from delib.suite.grid import sweep
from delib.suite.record import git_revision, package_versions, report_folder

NOTEBOOK = "01_mnist"
GRID: dict[str, Any] = {"temperature": [0.2, 0.5, 1.0], "bits": [2, 3, 4, 5]}
FOLDER = "sweep-benchmark"


@contextmanager
def cluster(workers: int) -> Iterator[str]:
    """The address of a Dask scheduler on loopback with so many workers of one thread, each a process."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scheduler.json"
        quiet = ["--no-dashboard", "--scheduler-file", str(file)]
        commands = [["dask_scheduler", "--host", "127.0.0.1", "--port", "0", *quiet]]
        commands += [["dask_worker", "--nthreads", "1", "--no-nanny", *quiet]] * workers
        started = []
        try:
            for name, *options in commands:
                command = [sys.executable, "-m", f"distributed.cli.{name}", *options]
                started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
                while not file.is_file():
                    time.sleep(0.1)
            yield str(json.loads(file.read_text())["address"])
        finally:
            for process in reversed(started):
                process.terminate()
                process.wait()


def seconds(jobs: int, address: str = "", grid: dict[str, Any] = GRID) -> float:
    """Of the whole grid, from nothing."""
    shutil.rmtree(report_folder(FOLDER), ignore_errors=True)
    start = time.perf_counter()
    swept = sweep(NOTEBOOK, grid, "smoke", into=FOLDER, jobs=jobs, scheduler=address)
    took = time.perf_counter() - start
    if swept.failed:
        raise SystemExit(f"cells stopped: {dict(swept.failed)}")
    return took


def measured(rounds: int) -> dict[str, Any]:
    """The fastest of each kind of worker, and the ratios that are promised."""
    kinds = {"one worker": (1, False), "two workers": (2, False), "two Dask workers": (2, True)}
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, (jobs, dask) in kinds.items():
            if dask:
                with cluster(jobs) as address:
                    found[kind].append(seconds(jobs, address))
            else:
                found[kind].append(seconds(jobs))
            print(kind, found[kind][-1], file=sys.stderr, flush=True)
    best = {kind: min(took) for kind, took in found.items()}
    return {
        "seconds": best,
        "two_workers_are_faster_by": best["one worker"] / best["two workers"],
        "dask_takes_longer_by": best["two Dask workers"] / best["two workers"] - 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    seconds(1, grid={"bits": [4]})  # fetches, trains and compiles what is kept
    document = {
        "benchmark": "sweep",
        "versions": package_versions(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "git_revision": git_revision(),
        **measured(options.rounds),
    }
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
