"""Bytes and speed of lossless coders on the very same integers: the sparse quantised weights of encoded students.

Prints one JSON document. The students are `.delib` files: the shipped one of YOLOv3-tiny, those that the notebooks
left in ``reports/lab``, and any named on the command line. Every weight becomes the signed sizes of its levels, 0 for a
zero; codebooks, scales and biases are left out, for all alike.

- ``order_0`` is no coder: the entropy of each layer's integers, in bytes. What is below it has found context.
- ``delib`` counts a whole file without codebooks and scales, so with its header; ``delib_v1_streams`` is what the
  streams alone take in a file that version 1 wrote. Speeds are megabytes of the dense float32 weights a second of
  processor time, the best of ``--rounds``, after a warming run (the first ever compiles the walk, some ten seconds).
- ``nncodec`` (DeepCABAC) needs numpy below 2: ``--nncodec`` names the Python of an environment of its own.
- General coders are given all layers in one stretch, as int8 where that holds the integers, else int16; pcodec is given
  each layer as int16.
- ``huffman``: the gaps between survivors in one Huffman code, their levels in another, and a byte for the length of
  every code word between the least symbol and the largest.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import heapq
import importlib
import json
import lzma
import math
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from delib.coding import LevelTensor, container
from delib.coding.container import signed_sizes
from delib.suite.record import git_revision, package_versions

SHIPPED = Path(__file__).parents[1] / "data" / "students" / "yolov3-tiny-s90-b4.delib"
LEFT = sorted((Path(__file__).parents[1] / "reports" / "lab").rglob("*.delib"))
NNCODEC = """
import contextlib, io, json, sys, time
import numpy as np
from nncodec import nnc
weights = dict(np.load(sys.argv[1]))
with contextlib.redirect_stdout(io.StringIO()):
    start = time.process_time()
    stream = nnc.compress(weights, bitstream_path=sys.argv[1] + ".nnc", return_bitstream=True)
    middle = time.process_time()
    back = nnc.decompress(sys.argv[1] + ".nnc")
    end = time.process_time()
assert all(np.array_equal(back[name], weight) for name, weight in weights.items())
print(json.dumps([len(stream), middle - start, end - middle]))
"""


def integers(tensors: dict[str, LevelTensor]) -> dict[str, np.ndarray]:
    """Each weight's signed sizes, int32, 0 for zeros."""
    found = {}
    for name, tensor in tensors.items():
        found[name] = np.zeros(tensor.mask.shape, np.int32)
        found[name][tensor.mask] = signed_sizes(tensor.codebook)[tensor.indices]
    return found


def order_0(weights: dict[str, np.ndarray]) -> int:
    bits = 0.0
    for weight in weights.values():
        _, counts = np.unique(weight, return_counts=True)
        bits -= float((counts * np.log2(counts / counts.sum())).sum())
    return math.ceil(bits / 8)


def huffman(weights: dict[str, np.ndarray]) -> int:
    """Bytes of gaps between survivors and of their levels, each with a Huffman code of its own in every layer."""
    bits = 0
    for weight in weights.values():
        places = np.flatnonzero(weight)
        bits += code_length(np.diff(places, prepend=-1)) + code_length(weight.ravel()[places])
    return math.ceil(bits / 8)


def code_length(symbols: np.ndarray) -> int:
    """Bits of the symbols in their Huffman code, and of its table: a byte for every code word's length."""
    counts = np.unique(symbols, return_counts=True)[1].tolist()
    total = 8 * (int(symbols.max()) - int(symbols.min()) + 1) if len(symbols) else 0
    heapq.heapify(counts)
    while len(counts) > 1:
        merged = heapq.heappop(counts) + heapq.heappop(counts)
        heapq.heappush(counts, merged)
        total += merged
    return total


def bytes_of(weights: dict[str, np.ndarray]) -> bytes:
    largest = max(int(np.abs(weight).max(initial=0)) for weight in weights.values())
    return b"".join(weight.astype(np.int8 if largest < 128 else np.int16).tobytes() for weight in weights.values())


def general_coders() -> dict[str, Callable[[bytes], bytes]]:
    """Coders of bytes at their strongest setting; those that are not installed are left out, with a word."""
    coders: dict[str, Callable[[bytes], bytes]] = {
        "gzip_9": lambda raw: gzip.compress(raw, 9),
        "bzip2_9": lambda raw: bz2.compress(raw, 9),
        "xz_9e": lambda raw: lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME),
    }
    for module, name, make in (
        ("zstandard", "zstd_19", lambda m: m.ZstdCompressor(level=19).compress),
        ("brotli", "brotli_11", lambda m: m.compress),
        ("kanzi", "kanzi_9", lambda m: lambda raw: m.compress(raw, 9)),
    ):
        try:
            coders[name] = make(importlib.import_module(module))
        except ImportError:
            print(f"{module} is not installed: left out", file=sys.stderr)
    return coders


def pcodec(weights: dict[str, np.ndarray]) -> int | None:
    try:
        from pcodec import ChunkConfig, standalone
    except ImportError:
        print("pcodec is not installed: left out", file=sys.stderr)
        return None
    config = ChunkConfig(compression_level=12)
    return sum(len(standalone.simple_compress(w.astype(np.int16).ravel(), config)) for w in weights.values())


def nncodec(python: str, weights: dict[str, np.ndarray]) -> tuple[int, float, float]:
    """Bytes, and seconds of encoding and decoding, in another Python that has nncodec."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.npz"
        np.savez(path, **weights)
        command = [python, "-c", NNCODEC, str(path)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    size, encoding, decoding = json.loads(said.splitlines()[-1])
    return size, encoding, decoding


def fastest(run: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """Seconds of processor time of the fastest of the rounds, for others only ever slow it down; and what it gave."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        result = run()
        seconds.append(time.process_time() - start)
    return min(seconds), result


def levels_bytes(tensors: dict[str, LevelTensor]) -> int:
    """Bytes of codebooks and scales in version 1."""
    return sum(t.codebook.nbytes + (0 if t.scales is None else t.scales.nbytes) for t in tensors.values())


def measure(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Every coder's bytes, and the speeds of ours, version 1's and nncodec's, on one student's weights."""
    data = path.read_bytes()
    reading, tensors = fastest(lambda: container.decode(data), options.rounds)
    levels = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, LevelTensor)}
    weights = integers(levels)
    megabytes = 4 * sum(weight.size for weight in weights.values()) / 1e6
    container.decode(container.encode(levels))  # compiles
    encoding, coded = fastest(lambda: container.encode(levels), options.rounds)
    decoding, _ = fastest(lambda: container.decode(coded), options.rounds)
    tables = sum(len(container.tables(tensor)) for tensor in levels.values())
    sizes = {"order_0": order_0(weights), "delib": len(coded) - tables, "huffman": huffman(weights)}
    speeds = {"delib_encode": megabytes / encoding, "delib_decode": megabytes / decoding}
    if data.startswith(container.MAGIC[:6] + b"\x01"):
        streams = container.sizes(data)
        sizes["delib_v1_streams"] = sum(streams[name] for name in levels) - levels_bytes(levels)
        speeds["delib_v1_decode"] = megabytes / reading
    sizes |= {name: len(code(bytes_of(weights))) for name, code in general_coders().items()}
    if (size := pcodec(weights)) is not None:
        sizes["pcodec_12"] = size
    if options.nncodec:
        sizes["nncodec"], slow, slower = nncodec(options.nncodec, weights)
        speeds |= {"nncodec_encode": megabytes / slow, "nncodec_decode": megabytes / slower}
    return {
        "weights": sum(weight.size for weight in weights.values()),
        "survivors": sum(int(np.count_nonzero(weight)) for weight in weights.values()),
        "bytes": dict(sorted(sizes.items(), key=lambda item: item[1])),
        "megabytes_per_second": speeds,
        "seconds_to_encode": encoding,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="*", type=Path, help="further .delib files")
    parser.add_argument("--nncodec", help="a Python that has nncodec; without one it is left out")
    parser.add_argument("--rounds", type=int, default=3, help="runs of which the fastest counts")
    options = parser.parse_args()
    if not options.nncodec:
        print("no --nncodec: nncodec is left out", file=sys.stderr)
    results = {}
    for path in (SHIPPED, *LEFT, *options.students):
        results[path.stem] = measure(path, options)
        print(path.stem, results[path.stem], file=sys.stderr)
    circumstances = {"versions": package_versions(), "machine": platform.machine(), "git_revision": git_revision()}
    print(json.dumps({"benchmark": "coding", **circumstances, "students": results}, indent=2))


if __name__ == "__main__":
    main()
