"""Files and folders: written whole or not at all, hashed, and where the project keeps them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

# Files and folders of a folder that its digest covers: enough for photos, and soon counted if someone names a disk.
MOST_ENTRIES = 100_000
# What file managers and JupyterLab leave in a folder that one only looked into.
LITTER = (".DS_Store", "Thumbs.db", ".ipynb_checkpoints")


def project_root() -> Path:
    """The folder that holds ``notebooks/``, ``data/`` and ``reports/``.

    ``$DELIB_HOME`` if set, else the checkout that delib is installed from, else the current folder.
    """
    if home := os.environ.get("DELIB_HOME"):
        return Path(home).resolve()
    checkout = Path(__file__).resolve().parents[1]
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()


def check_output(path: Path) -> Path:
    """``path``, where a file can be written to it. Raises ValueError where something else stands there, as a pipe."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is a {'folder' if path.is_dir() else 'pipe or device'}; name a plain file")
    return path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, renamed to it on success and removed on any failure or interrupt.

    A link stays: the file that it points to is replaced. Raises ValueError on a folder, pipe or device.
    """
    path = check_output(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def sole(path: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock ``path`` while the block runs; as long as another process or thread has it, ``waiting`` is called
    with its owner twice a second, and may raise.

    The system frees the lock of a process that ended, however it did; the file that it leaves holds nobody up.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while (file := _locked(path)) is None:
        owner = ""
        with suppress(OSError):  # given back just now
            owner = path.read_text(encoding="utf-8").strip()
        waiting(owner or "another process")
        time.sleep(0.5)
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _locked(path: Path) -> TextIO | None:
    """The file at ``path``, locked and with its owner's name in it; None if another has the lock."""
    file = path.open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
            file.flush()
            return file
    except (BlockingIOError, FileNotFoundError):  # held, or just given back and removed
        pass
    except OSError:  # a file system that knows no locks: better to work than to refuse
        return file
    file.close()
    return None


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old file or the new one, never a half."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as readable JSON, atomically. Raises ValueError on NaN, which JSON cannot hold."""
    write_bytes(path, (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(path: Path) -> str:
    """A hash that changes with a file's content, or with what a folder holds; empty for all else.

    Of a folder's first ``MOST_ENTRIES`` it takes names, sizes and times of change, not contents: reading thousands of
    photos would take longer than many a run that it saves.
    """
    try:
        if path.is_dir():
            listing = list(islice(_entries(path), MOST_ENTRIES))
            return hashlib.sha256(json.dumps(listing).encode()).hexdigest()
        return sha256(path) if path.is_file() else ""
    except OSError:
        return ""


def _entries(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Relative path, size and time of change of all that a folder holds, in a fixed order; folders have size -1."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(set(folders) - set(LITTER))
        yield os.path.relpath(parent, folder), -1, 0
        for name in sorted(set(files) - set(LITTER)):
            file = os.path.join(parent, name)
            found = os.stat(file) if os.path.exists(file) else os.lstat(file)
            yield os.path.relpath(file, folder), found.st_size, found.st_mtime_ns


_restored = [0.0]  # seconds of work that checkpoints gave back


def clock() -> float:
    """Seconds of work, from an arbitrary beginning: what was done before an interruption counts as it did then.

    Its differences, unlike those of ``time.perf_counter``, say how long a step took also where the step, or a part of
    it, came from a checkpoint.
    """
    return time.perf_counter() + _restored[0]


def restored_seconds() -> float:
    """How many of the seconds on the clock came from checkpoints, in this process."""
    return _restored[0]


def advance_clock(seconds: float) -> None:
    """Count ``seconds`` of work that a checkpoint gave back."""
    _restored[0] += seconds


def in_batch() -> bool:
    """Whether a batch run executes this, where progress bars would only fill logs and reports."""
    return os.environ.get("DELIB_BATCH") == "1"


def cache_folder() -> Path:
    """Where fetched files are kept: ``$DELIB_DATA`` if set, else ``data/cache`` of the project."""
    return Path(os.environ.get("DELIB_DATA") or project_root() / "data" / "cache")


def offline() -> bool:
    """Whether the user forbids contacting anything: ``DELIB_OFFLINE=1``."""
    return os.environ.get("DELIB_OFFLINE") == "1"
