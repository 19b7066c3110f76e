"""Hostile files made by a fuzzer that coverage guides: atheris, Python's libFuzzer (``pip install --group fuzz``).

``python tests/fuzz_guided.py -max_total_time=60`` runs for a minute and ends at the first fault, whose file it keeps
as ``crash-…``; ``-runs=N`` and libFuzzer's other options are passed on, a folder named last keeps what was found
worth trying. The first byte of an input chooses the kind of file, the rest is the file. Of a container it is the
header's text, a zero and the payloads, around which length, deflate and checksum are made good.
"""

from __future__ import annotations

import sys
import tempfile
import zlib
from pathlib import Path

import atheris

# The walk is compiled, which what instrumenting adds cannot be.
with atheris.instrument_imports(include=["delib"], exclude=["delib.coding.mixing"]):
    import fuzz
    from hostile import forged, parts

from delib.coding import container, container_v1
from delib.coding.header import DICTIONARY

MAGICS = (container.MAGIC, container_v1.MAGIC)


def opened(data: bytes) -> bytes:
    """A good container as the fuzzer sees it."""
    magic, _, payload = parts(data)
    start = len(magic) + (container_v1.DIGEST if magic == container_v1.MAGIC else container.DIGEST) + 4
    inflate = zlib.decompressobj(15) if magic == container_v1.MAGIC else zlib.decompressobj(-15, zdict=DICTIONARY)
    return bytes([MAGICS.index(magic)]) + inflate.decompress(data[start:]) + b"\0" + payload


def closed(data: bytes) -> bytes:
    """The container that stands for what the fuzzer made."""
    text, _, payload = data[1:].partition(b"\0")
    return forged(None, payload, MAGICS[data[0] % len(MAGICS)] if data else MAGICS[0], text)


def one_input(data: bytes) -> None:
    """Read one file. Raises Fault if it is neither read nor refused as it should be."""
    if data:
        name = list(fuzz.KINDS)[data[0] % len(fuzz.KINDS)]
        content = closed(data[1:]) if name == "container" else data[1:]
        fuzz.tried(fuzz.KINDS[name].read, content)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, kind) in enumerate(fuzz.KINDS.items()):
            for i, good in enumerate(set(kind.good)):
                kind.read(good)
                content = opened(good) if name == "container" else good
                (Path(folder) / f"{name}-{i}").write_bytes(bytes([number]) + content)
        words = [word for word in fuzz.WORDS if 1 < len(word.encode()) < 64]  # libFuzzer's longest
        dictionary = Path(folder).with_suffix(".txt")
        escaped = ["".join(f"\\x{byte:02x}" for byte in word.encode()) for word in words]
        dictionary.write_text("".join(f'"{word}"\n' for word in escaped))
        given = [argument for argument in sys.argv[1:] if not argument.startswith("-dict=")]
        atheris.Setup(
            [sys.argv[0], *given, folder, f"-dict={dictionary}", "-timeout=60", "-rss_limit_mb=4096"], one_input
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
