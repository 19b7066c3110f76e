"""Files that someone made to do harm: good ones with header and payloads changed, and the checksum made good again.

``python tests/hostile.py 100000`` decodes so many of them and prints what came of it, with the longest time and the
most memory that any took; the suite decodes a few.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
import zlib
from collections import Counter
from random import Random
from typing import Any

import numpy as np
from old_container import encode_v1

from delib.coding import container, container_v1
from delib.coding.container import DelibError, LevelTensor, decode, encode
from delib.coding.header import DICTIONARY

VALUES: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, 3, 7, 255, 4096, 70_000, 1 << 20, 1 << 24, 1 << 31, 1 << 40, 1 << 64, 10**300),
    *(0.5, 1.0, -0.0, 1e308, float("nan"), float("inf"), "", "w", "b", "deflate", "float32", "int64", "object"),
    *("\n", "\ud800", "x" * 5000, [], [0], [1], [1 << 40] * 3, [1 << 20, 1 << 20], [0, 1 << 40], [1] * 9, {}, {"a": 1}),
]
# The fields of version 2's entries, by their number.
FIELDS = {
    2: ("name", "same"),
    4: ("name", "shape", "bytes", "dtype"),
    5: ("name", "shape", "bytes", "dtype", "packed"),
    6: ("name", "shape", "bytes", "levels", "survivors", "scaled"),
    7: ("name", "shape", "bytes", "levels", "survivors", "scaled", "level_bits"),
}
ORDER = ("name", "same", "shape", "bytes", "dtype", "packed", "levels", "survivors", "scaled", "level_bits")
KEYS = (*ORDER, "deflated", "counts", "prior")


def sealed(body: bytes, magic: bytes) -> bytes:
    """A file with a good checksum around whatever it holds."""
    digest = container_v1.DIGEST if magic == container_v1.MAGIC else container.DIGEST
    return magic + hashlib.sha256(body).digest()[:digest] + body


def forged(entries: object, payload: bytes, magic: bytes = container.MAGIC, text: bytes | None = None) -> bytes:
    """A file, of either version, whose header says whatever its author wanted us to believe."""
    if text is None:
        text = json.dumps(listed(entries) if magic == container.MAGIC else entries).encode()
    packer = zlib.compressobj(6, wbits=15 if magic == container_v1.MAGIC else -15)
    header = packer.compress(text) + packer.flush()
    return sealed(len(header).to_bytes(4, "little") + header + payload, magic)


def listed(entries: Any) -> Any:
    """Entries as version 2's header has them, lists of values."""
    return (
        [list(in_order(e).values()) if isinstance(e, dict) else e for e in entries]
        if isinstance(entries, list)
        else entries
    )


def in_order(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in sorted(entry, key=lambda key: ORDER.index(key) if key in ORDER else 99)}


def parts(data: bytes) -> tuple[bytes, list[dict[str, Any]], bytes]:
    """Magic, header entries and payloads of a good file."""
    magic = data[: len(container.MAGIC)]
    old = magic == container_v1.MAGIC
    begin = len(magic) + (container_v1.DIGEST if old else container.DIGEST)
    stop = begin + 4 + int.from_bytes(data[begin : begin + 4], "little")
    inflate = zlib.decompressobj(15) if old else zlib.decompressobj(-15, zdict=DICTIONARY)
    entries = json.loads(inflate.decompress(data[begin + 4 : stop]))
    return (
        magic,
        entries if old else [dict(zip(FIELDS[len(entry)], entry, strict=True)) for entry in entries],
        data[stop:],
    )


def mutated(data: bytes, chance: Random) -> bytes:
    """A good file with a few things changed, and its checksum made good again."""
    magic, entries, payload = parts(data)
    body = bytearray(payload)
    for _ in range(chance.choice((0, 1, 1, 3))):
        change_entries(entries, chance)
    for _ in range(chance.choice((0, 0, 1, 20))):
        if body:
            body[chance.randrange(len(body))] = chance.choice((0, 255, chance.randrange(256)))
    if chance.random() < 0.1:
        start = chance.randrange(len(body) + 1)
        body[start : start + chance.randrange(40)] = bytes(chance.choice((0, 4, 4096)))
    if chance.random() < 0.3 and entries and isinstance(entries[-1], dict):
        entries[-1]["bytes"] = len(body) - sum(size_of(entry) for entry in entries[:-1])
    text = json.dumps(listed(entries) if magic == container.MAGIC and chance.random() < 0.9 else entries)
    if chance.random() < 0.05:
        at = chance.randrange(len(text) + 1)
        text = text[:at] + chance.choice(("[" * 3000, "{", "1e999", "NaN", "\\ud800", '"', "9" * 5000)) + text[at:]
    return forged(None, bytes(body), magic, text.encode())


def size_of(entry: Any) -> int:
    size = entry.get("bytes", 0) if isinstance(entry, dict) else 0
    return size if type(size) is int else 0


def change_entries(entries: list[Any], chance: Random) -> None:
    kind, at = chance.random(), chance.randrange(len(entries) + 1)
    if kind < 0.1:
        entries.insert(at, chance.choice([*VALUES, *entries]))
    elif entries and kind < 0.15:
        del entries[at - 1]
    elif entries and isinstance(entry := entries[at - 1], dict):
        entries[at - 1] = entry = dict(entry)
        key = chance.choice((*KEYS, "same", *entry))
        near = [value * 2 for value in entry.values() if type(value) is int] + [[1, 1, size_of(entry) * 999]]
        if kind < 0.25:
            entry.pop(key, None)
        else:
            entry[key] = chance.choice((*VALUES, *near, *entry.values()))


def files() -> list[bytes]:
    """Good files of both versions, of a few hundred bytes to a few kilobytes."""
    chance = np.random.default_rng(0)

    def weight(*shape: int, density: float, levels: int, scaled: bool = False) -> LevelTensor:
        mask = chance.random(shape) < density
        indices = chance.integers(0, levels, int(mask.sum())).astype(np.uint8)
        scales = chance.random(shape[0]).astype(np.float16) if scaled else None
        return LevelTensor(mask, indices, np.sort(chance.normal(size=levels)).astype(np.float32), scales)

    small = {"w": weight(6, 5, 3, 3, density=0.3, levels=7, scaled=True), "b": np.ones(6, np.float16)}
    large = {
        "w": weight(40, 300, density=0.1, levels=15),
        "v": weight(20, 9, 5, 5, density=0.2, levels=16, scaled=True),
        "b": np.zeros(4096, np.float32),
        "n": np.arange(3),
    }
    large["tied"] = large["w"]
    return [write(tensors) for write in (encode, encode_v1) for tensors in (small, large)]


def busy() -> float:
    """Most seconds of processor time that a file of 20 kB takes, of those made for it: all zeros, or all survivors."""
    slowest = 0.0
    for shape, dense in (((17_600_000, 1), 0), ((270_000, 64), 0), ((18_800, 64), 1), ((8_350, 16, 3, 3), 1)):
        mask = np.full(shape, bool(dense))
        mask.flat[-1] = True
        codebook = np.linspace(0.1, 1, 256, dtype=np.float32)
        data = encode({"w": LevelTensor(mask, np.zeros(int(mask.sum()), np.uint8), codebook)})
        start = time.process_time()
        decode(data)
        slowest = max(slowest, (time.process_time() - start) * 20_000 / len(data))
    return slowest


def main() -> None:
    outcomes: Counter[str] = Counter()
    chance, good, slowest = Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0), files(), 0.0
    for data in good:
        decode(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(int(sys.argv[1])):
        data = mutated(chance.choice(good), chance)
        start = time.perf_counter()
        try:
            decode(data)
            outcomes["decoded"] += 1
        except DelibError as error:
            outcomes["refused" if len(str(error).splitlines()) == 1 else "in several lines"] += 1
        slowest = max(slowest, time.perf_counter() - start)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"made to busy its reader, 20 kB take at most {busy():.1f} s")
    print(dict(outcomes), f"slowest {slowest:.2f} s, memory grew by {grown:.0f} MB")


if __name__ == "__main__":
    main()
