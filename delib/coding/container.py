"""The lossless container: survivor masks, level indices, codebooks and plain tensors in one checked `.delib` file.

Layout: ``MAGIC``, the first 8 bytes of the SHA-256 of all that follows, the length of the header (4 bytes,
little-endian), the header (JSON, deflated), payloads in the header's order. A plain tensor's payload is its bytes,
deflated where that is shorter. A quantised tensor's payload is its codebook, in half precision if that holds it, its
outputs' scales if it has any, and the stream of ``mixing``. A further name of a tensor that came before has no payload.
`docs/format.md` has it in full.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delib.coding import container_v1
from delib.coding.header import FORMS, MEMORY_PER_BYTE, SLACK_BYTES, Entry, header_of, inflated, opened
from delib.coding.tensors import DTYPES, MAX_LEVELS, DelibError, LevelTensor, Tensors, index_type
from delib.files import write_bytes

__all__ = [
    "DTYPES",
    "MAGIC",
    "MAX_LEVELS",
    "DelibError",
    "LevelTensor",
    "Tensors",
    "decode",
    "encode",
    "read",
    "sizes",
    "write",
]

MAGIC = b"DELIB\x00\x02\n"
DIGEST = 8  # bytes of the checksum: it guards against damage; whoever means harm can compute any
COLUMN_BYTES = 96  # the most that the walk's memory takes for a column: counters, and the rows above
TURNED_BYTES = 1  # that it takes the header to say so
SURVIVOR_BYTES = 16  # of time: reading a survivor, with up to 16 bits of its index, takes as long as a dozen zeros


def encode(tensors: Tensors) -> bytes:
    """The tensors by name, as the bytes of one `.delib` file; the same tensors give the same bytes.

    An object under several names is stored once, and decoded as one object. Raises ValueError on a dtype that the
    container does not hold.
    """
    entries: list[Entry] = []
    payloads: list[bytes] = []
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        if first.setdefault(id(tensor), name) != name:
            entries.append({"name": name, "same": first[id(tensor)]})
            continue
        if isinstance(tensor, LevelTensor):
            entry, payload = _pack_levels(tensor)
        else:
            if str(tensor.dtype) not in DTYPES:
                raise ValueError(f"{name}: dtype {tensor.dtype} is not one of {', '.join(DTYPES)}")
            entry, payload = _pack_plain(tensor)
        entries.append({"name": name, "bytes": len(payload), **entry})
        payloads.append(payload)
    header = header_of(entries)
    body = len(header).to_bytes(4, "little") + header + b"".join(payloads)
    return MAGIC + hashlib.sha256(body).digest()[:DIGEST] + body


def decode(data: bytes) -> dict[str, NDArray[Any] | LevelTensor]:
    """The tensors that were encoded, bit for bit.

    Raises DelibError, before any large allocation, if the bytes are damaged, cut, or claim what they cannot hold.
    """
    first = data[: len(MAGIC)] == container_v1.MAGIC
    tensors: dict[str, NDArray[Any] | LevelTensor] = {}
    for entry, payload in _opened(data):
        name = entry["name"]
        try:
            if "same" in entry:
                tensors[name] = tensors[entry["same"]]
            elif first:
                tensors[name] = container_v1.unpacked(entry, payload)
            else:
                tensors[name] = (_unpack_plain if "dtype" in entry else _unpack_levels)(entry, payload)
        except DelibError as error:
            raise DelibError(f"{name[:80]!a}: {error}") from None
    return tensors


def sizes(data: bytes) -> dict[str, int]:
    """Bytes of each tensor's payload in an encoded file; the rest of the file is checksum and header."""
    return {entry["name"]: len(payload) for entry, payload in _opened(data)}


def write(path: Path, tensors: Tensors) -> int:
    """Encode into a file, whole or not at all. Returns its size in bytes."""
    data = encode(tensors)
    write_bytes(path, data)
    return len(data)


def read(path: Path) -> dict[str, NDArray[Any] | LevelTensor]:
    """Decode a file. Raises DelibError, naming the file, if it is not a good one."""
    try:
        return decode(path.read_bytes())
    except DelibError as error:
        raise DelibError(f"{path}: {error}") from None


def _opened(data: bytes) -> list[tuple[Entry, bytes]]:
    """Each tensor's header entry and payload, of either version."""
    start = data[: len(MAGIC)]
    if start == container_v1.MAGIC:
        return opened(data, len(MAGIC), container_v1.DIGEST, container_v1.FORMS)
    if start != MAGIC:
        raise DelibError("not a .delib file, or of another version; encode the network again")
    return opened(data, len(MAGIC), DIGEST, FORMS)


def _pack_plain(tensor: NDArray[Any]) -> tuple[Entry, bytes]:
    raw = np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<")).tobytes()
    short = zlib.compress(raw, 9)
    entry = {"shape": list(tensor.shape), "dtype": str(tensor.dtype)}
    return (entry | {"packed": "deflate"}, short) if len(short) + 16 < len(raw) else (entry, raw)


def _unpack_plain(entry: Entry, payload: bytes) -> NDArray[Any]:
    dtype, size = np.dtype(entry["dtype"]), math.prod(entry["shape"])
    if "packed" in entry:
        payload = inflated(payload, size * dtype.itemsize)
    if len(payload) != size * dtype.itemsize:
        raise DelibError(f"{len(payload)} bytes do not hold its shape; encode the network again")
    return np.frombuffer(payload, dtype.newbyteorder("<")).astype(dtype).reshape(entry["shape"])


def signed_sizes(codebook: NDArray[np.float32]) -> NDArray[np.int32]:
    """For each level its rank by size among the levels of its sign, from 1; negative for negative levels, [levels]."""
    signed = np.zeros(len(codebook), np.int32)
    negative = codebook < 0
    for sign, group in ((-1, np.flatnonzero(negative)), (1, np.flatnonzero(~negative))):
        order = np.argsort(np.abs(codebook[group]), kind="stable")
        signed[group[order]] = sign * np.arange(1, len(group) + 1)
    return signed


def tables(tensor: LevelTensor) -> bytes:
    """What a quantised tensor's payload begins with: its codebook and its scales."""
    codebook = tensor.codebook.astype("<f2" if _halves(tensor.codebook) else "<f4").tobytes()
    return codebook + (b"" if tensor.scales is None else tensor.scales.astype("<f2").tobytes())


def _halves(codebook: NDArray[np.float32]) -> bool:
    """Whether half precision holds every level, bit for bit."""
    with np.errstate(over="ignore"):
        back = codebook.astype(np.float16).astype(np.float32)
    return np.array_equal(back.view(np.int32), codebook.view(np.int32))


def _pack_levels(tensor: LevelTensor) -> tuple[Entry, bytes]:
    from delib.coding import mixing

    shape, levels, survivors = tensor.mask.shape, len(tensor.codebook), len(tensor.indices)
    signed = signed_sizes(tensor.codebook)
    values, largest = signed[tensor.indices], _largest(signed)
    stream = mixing.encoded(tensor.mask, values, largest) if survivors else b""
    payload = _filled(tables(tensor) + stream, shape, survivors)
    if survivors and len(shape) > 1:
        turned = tables(tensor) + mixing.encoded(*_turned(tensor.mask, values), largest)
        turned = _filled(turned, shape, -survivors)
        if len(turned) + TURNED_BYTES < len(payload):
            payload, survivors = turned, -survivors
    entry = {"shape": list(shape), "levels": levels, "survivors": survivors, "scaled": tensor.scales is not None}
    entry |= {"level_bits": 16} if _halves(tensor.codebook) else {}
    return entry, payload


def _filled(payload: bytes, shape: tuple[int, ...], survivors: int) -> bytes:
    """The payload with as many zeros behind it as a reader asks for."""
    return payload.ljust(-(-_claimed(shape, survivors) // MEMORY_PER_BYTE) - SLACK_BYTES, b"\0")


def _unpack_levels(entry: Entry, payload: bytes) -> LevelTensor:
    from delib.coding import mixing

    shape, levels, survivors = tuple(entry["shape"]), entry["levels"], abs(entry["survivors"])
    turned = entry["survivors"] < 0
    each = entry.get("level_bits", 32) // 8
    start = each * levels + (2 * shape[0] if entry["scaled"] and shape else 0)
    if (
        not shape
        or start > len(payload)
        or survivors > (math.prod(shape) if levels else 0)
        or (turned and len(shape) < 2)
    ):
        raise DelibError("its shape, its levels and its bytes do not agree; encode the network again")
    if _claimed(shape, entry["survivors"]) > MEMORY_PER_BYTE * (len(payload) + SLACK_BYTES):
        raise DelibError(f"{len(payload)} bytes cannot hold its shape; encode the network again")
    codebook = np.frombuffer(payload[: each * levels], f"<f{each}").astype(np.float32)
    scales = np.frombuffer(payload[each * levels : start], "<f2").astype(np.float16) if entry["scaled"] else None
    if not survivors:
        return LevelTensor(np.zeros(shape, bool), np.zeros(0, index_type(levels)), codebook, scales)
    signed = signed_sizes(codebook)
    largest = _largest(signed)
    span = 1 << (largest - 1).bit_length()  # what as many bits can say, whether a level has it or not
    index = np.full(2 * span + 1, -1, np.int32)
    index[signed + span] = np.arange(levels)
    found = mixing.decoded(payload[start:], _swapped(shape) if turned else shape, survivors, largest)
    if found is None or (index[found[1] + span] < 0).any():
        raise DelibError("undecodable stream; encode the network again")
    if turned:
        found = _turned(*found)
    return LevelTensor(found[0], index[found[1] + span].astype(index_type(levels)), codebook, scales)


def _largest(signed: NDArray[np.int32]) -> int:
    return int(np.abs(signed).max(initial=0))


def _swapped(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the tensor turned: by inputs, then outputs."""
    return (shape[1], shape[0], *shape[2:])


def _turned(mask: NDArray[np.bool_], values: NDArray[np.int32]) -> tuple[NDArray[np.bool_], NDArray[np.int32]]:
    """A mask with its first two axes swapped, and its survivors' values in the new row-major order."""
    swapped = np.ascontiguousarray(mask.swapaxes(0, 1))
    rows, columns, kernel = *mask.shape[:2], math.prod(mask.shape[2:])
    places = np.flatnonzero(mask)
    row, rest = np.divmod(places, columns * kernel)
    column, k = np.divmod(rest, kernel)
    return swapped, values[np.argsort((column * rows + row) * kernel + k)]


def _claimed(shape: tuple[int, ...], survivors: int) -> int:
    """What decoding takes, in bytes of memory or the time that they stand for: the mask, the survivors, the columns;
    where the tensor is turned (``survivors`` below zero), another mask, and thrice the survivors, as places are sorted.
    """
    if survivors < 0:
        return math.prod(shape) - 2 * SURVIVOR_BYTES * survivors + _claimed(_swapped(shape), -survivors)
    return math.prod(shape) + SURVIVOR_BYTES * survivors + (COLUMN_BYTES * math.prod(shape[1:]) if survivors else 0)
