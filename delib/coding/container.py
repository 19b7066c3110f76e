"""The lossless container: survivor masks, level indices, codebooks and plain tensors in one checked `.delib` file.

Layout: ``MAGIC``, SHA-256 of all that follows, length of the header (4 bytes, little-endian), header (JSON, deflated),
payloads in the header's order. A plain tensor's payload is its bytes, deflated where that is shorter. A quantised
tensor's payload is its codebook, its outputs' scales if it has any, and one range-coded stream (constriction):
survivors a row, the mask, one index a survivor. A further name of a tensor that came before has no payload.

Only additions, multiplications and divisions of IEEE doubles lead to the coding probabilities, so a file decodes alike
on every machine.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from delib.files import write_bytes

MAGIC = b"DELIB\x00\x01\n"
DTYPES = ("float16", "float32", "float64", "bool", "uint8", "int8", "int16", "int32", "int64")
MAX_HEADER = 1 << 24
MAX_LEVELS = 1 << 16
MAX_ROW = (1 << 24) - 1  # weights in a row: the range coder models their counts with 24 bits
# No mask bit is ever given less than this probability. So it costs at least log2(1/(1 - FLOOR)) bits to store, and a
# file of b bytes cannot honestly stand for more than about 5,676·b weights: what makes hostile sizes detectable.
FLOOR = 2.0**-10
WEIGHTS_PER_BYTE = math.ceil(8 / -math.log2(1 - FLOOR))
SLACK_BYTES = 16
MAX_INFLATION = 1032  # no deflated stream stands for more bytes a byte (zlib's documentation, technical details)
PIECE = 1 << 20  # numbers in the largest temporary array
# Candidate strengths of the prior on a column's density, in rows; the encoder takes the best of them.
PRIOR_ROWS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 1024.0)


class DelibError(ValueError):
    """The bytes are not a whole, undamaged `.delib` file."""


@dataclass(frozen=True, eq=False)
class LevelTensor:
    """A sparse quantised weight.

    ``mask`` [the weight's shape, bool] is True for survivors; ``indices`` [survivors] names each one's level, in the
    mask's row-major order; ``codebook`` [levels, float32] holds the levels. With ``scales`` [mask's first axis,
    float16] the levels of each output are multiplied by its scale. Raises ValueError if they disagree.
    """

    mask: NDArray[np.bool_]
    indices: NDArray[np.integer]
    codebook: NDArray[np.float32]
    scales: NDArray[np.float16] | None = None

    def __post_init__(self) -> None:
        if self.mask.dtype != bool or self.mask.ndim == 0:
            raise ValueError("the mask must be an array of bool with at least one dimension")
        if self.indices.shape != (int(self.mask.sum()),):
            raise ValueError(f"{self.indices.size} indices for {int(self.mask.sum())} survivors")
        if self.codebook.dtype != np.float32 or self.codebook.ndim != 1 or len(self.codebook) > MAX_LEVELS:
            raise ValueError(f"the codebook must be a vector of at most {MAX_LEVELS} float32 levels")
        if self.indices.size and not 0 <= int(self.indices.min()) <= int(self.indices.max()) < len(self.codebook):
            raise ValueError("an index lies outside the codebook")
        if self.scales is not None and (self.scales.dtype != np.float16 or self.scales.shape != self.mask.shape[:1]):
            raise ValueError(f"the scales must be a vector of {len(self.mask)} float16 values, one for each output")

    def reshaped(self, shape: tuple[int, ...]) -> LevelTensor:
        """The same weight in another shape whose first axis is as long."""
        return replace(self, mask=self.mask.reshape(shape))

    def dense(self) -> NDArray[np.float32]:
        """The weight itself: the level of every survivor, times its output's scale if there are any; zero elsewhere."""
        weight = np.zeros(self.mask.shape, np.float32)
        values = self.codebook[self.indices]
        if self.scales is not None:
            survivors = self.mask.sum(tuple(range(1, self.mask.ndim)))
            values = values * np.repeat(self.scales.astype(np.float32), survivors)
        weight[self.mask] = values
        return weight


Tensors = Mapping[str, "NDArray[Any] | LevelTensor"]


def encode(tensors: Tensors) -> bytes:
    """The tensors by name, as the bytes of one `.delib` file; the same tensors give the same bytes.

    An object under several names is stored once, and decoded as one object. Raises ValueError on a dtype that the
    container does not hold.
    """
    entries: list[dict[str, Any]] = []
    payloads: list[bytes] = []
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        if first.setdefault(id(tensor), name) != name:
            entries.append({"name": name, "same": first[id(tensor)]})
            continue
        if isinstance(tensor, LevelTensor):
            if tensor.mask.size and tensor.mask[0].size > MAX_ROW:
                raise ValueError(f"{name}: a row of more than {MAX_ROW} weights cannot be encoded; reshape or split it")
            entry, payload = _pack_levels(tensor)
        else:
            if str(tensor.dtype) not in DTYPES:
                raise ValueError(f"{name}: dtype {tensor.dtype} is not one of {', '.join(DTYPES)}")
            entry, payload = _pack_plain(tensor)
        shape = tensor.mask.shape if isinstance(tensor, LevelTensor) else tensor.shape
        entries.append({"name": name, "shape": list(shape), "bytes": len(payload), **entry})
        payloads.append(payload)
    header = zlib.compress(json.dumps(entries, separators=(",", ":")).encode(), 9)
    body = len(header).to_bytes(4, "little") + header + b"".join(payloads)
    return MAGIC + hashlib.sha256(body).digest() + body


def decode(data: bytes) -> dict[str, NDArray[Any] | LevelTensor]:
    """The tensors that were encoded, bit for bit.

    Raises DelibError, before any large allocation, if the bytes are damaged, cut, or claim what they cannot hold.
    """
    tensors: dict[str, NDArray[Any] | LevelTensor] = {}
    for entry, payload in _entries(data):
        if "same" in entry:
            tensors[entry["name"]] = tensors[entry["same"]]
        elif "dtype" in entry:
            tensors[entry["name"]] = _unpack_plain(entry, payload)
        else:
            tensors[entry["name"]] = _unpack_levels(entry, payload)
    return tensors


def sizes(data: bytes) -> dict[str, int]:
    """Bytes of each tensor's payload in an encoded file; the rest of the file is checksum and header."""
    return {entry["name"]: len(payload) for entry, payload in _entries(data)}


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


def _entries(data: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Each tensor's checked header entry and payload."""
    start = len(MAGIC) + 32 + 4
    if data[: len(MAGIC)] != MAGIC:
        raise DelibError("not a .delib file, or of another version; encode the network again")
    if len(data) < start or hashlib.sha256(data[start - 4 :]).digest() != data[len(MAGIC) : start - 4]:
        raise DelibError("checksum mismatch: the file was damaged or cut; get it again")
    stop = start + int.from_bytes(data[start - 4 : start], "little")
    try:
        inflate = zlib.decompressobj()
        entries = json.loads(inflate.decompress(data[start:stop], MAX_HEADER))
        seen: set[str] = set()
        for entry in entries:
            payload = b"" if "same" in entry else data[stop : stop + entry["bytes"]]
            stop += len(payload)
            if "same" not in entry:
                _check_entry(entry, payload)
                seen.add(entry["name"])
            elif entry["same"] not in seen or not isinstance(entry["name"], str):
                raise ValueError("a tensor is said to be the same as one that does not come before it")
            yield entry, payload
    except (zlib.error, ValueError, KeyError, TypeError) as error:
        raise DelibError(f"inconsistent header ({error}); encode the network again") from None
    if stop != len(data):
        raise DelibError("the payloads do not fill the file; encode the network again")


def _check_entry(entry: dict[str, Any], payload: bytes) -> None:
    name, shape = entry["name"], entry["shape"]
    if not isinstance(name, str) or not all(type(n) is int and 0 <= n < 1 << 40 for n in shape) or len(shape) > 8:
        raise ValueError("a name or a shape of the wrong form")
    if len(payload) != entry["bytes"]:
        raise ValueError(f"{name} is cut")
    count = math.prod(shape)
    if "dtype" in entry:
        size = count * np.dtype(entry["dtype"]).itemsize if entry["dtype"] in DTYPES else -1
        deflated = entry.get("deflated", False) is True
        if not (0 <= size <= MAX_INFLATION * len(payload) if deflated else size == len(payload)):
            raise ValueError(f"{name}: shape {shape} does not match its {len(payload)} bytes")
    elif not shape or math.prod(shape[1:]) > MAX_ROW or count > WEIGHTS_PER_BYTE * (len(payload) + SLACK_BYTES):
        raise ValueError(f"{name}: {len(payload)} bytes cannot hold the claimed shape {shape}")
    elif len(entry["counts"]) > MAX_LEVELS or not all(type(n) is int and 0 <= n <= count for n in entry["counts"]):
        raise ValueError(f"{name}: impossible level counts")
    elif sum(entry["counts"]) > count or _stream_start(entry) > len(payload) or entry["prior"] not in PRIOR_ROWS:
        raise ValueError(f"{name}: impossible mask parameters")


def _stream_start(entry: dict[str, Any]) -> int:
    """Bytes of the codebook and the scales, which lie before the range-coded stream."""
    return 4 * len(entry["counts"]) + (2 * int(entry["shape"][0]) if _is_scaled(entry) else 0)


def _is_scaled(entry: dict[str, Any]) -> bool:
    return entry.get("scaled", False) is True


def _pack_plain(tensor: NDArray[Any]) -> tuple[dict[str, Any], bytes]:
    raw = np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<")).tobytes()
    short = zlib.compress(raw, 9)
    entry = {"dtype": str(tensor.dtype)}
    return (entry | {"deflated": True}, short) if len(short) + 16 < len(raw) else (entry, raw)


def _unpack_plain(entry: dict[str, Any], payload: bytes) -> NDArray[Any]:
    dtype = np.dtype(entry["dtype"])
    if entry.get("deflated", False) is True:
        payload = _inflated(payload, math.prod(entry["shape"]) * dtype.itemsize, entry["name"])
    return np.frombuffer(payload, dtype.newbyteorder("<")).astype(dtype).reshape(entry["shape"])


def _inflated(deflated: bytes, size: int, name: str) -> bytes:
    """The ``size`` bytes that were deflated. Raises DelibError, having inflated no more, if it is not exactly these."""
    inflate = zlib.decompressobj()
    try:
        payload = inflate.decompress(deflated, size + 1)
    except zlib.error as error:
        raise DelibError(f"{name}: {error}; encode the network again") from None
    if len(payload) != size or not inflate.eof or inflate.unused_data:
        raise DelibError(f"{name}: its bytes do not inflate to its shape; encode the network again")
    return payload


def _pack_levels(tensor: LevelTensor) -> tuple[dict[str, Any], bytes]:
    rows = tensor.mask.reshape(len(tensor.mask), -1) if tensor.mask.size else tensor.mask.reshape(0, 1)
    counts = np.bincount(tensor.indices, minlength=len(tensor.codebook))
    prior = min(PRIOR_ROWS, key=lambda strength: _mask_bits(rows, strength))
    coder = constriction.stream.queue.RangeEncoder()
    model = MaskModel(rows.shape, int(rows.sum()), prior)
    for row in rows:
        survivors = int(row.sum())
        coder.encode(np.array([survivors], np.int32), model.row_count())
        coder.encode(row.astype(np.int32), _bernoulli(), model.row(survivors))
        model.learn(row)
    if len(counts) > 1 and tensor.indices.size:
        coder.encode(tensor.indices.astype(np.int32), _categorical(counts))
    stream = coder.get_compressed().astype("<u4").tobytes()
    entry: dict[str, Any] = {"counts": counts.tolist(), "prior": prior}
    if tensor.scales is None:
        return entry, tensor.codebook.astype("<f4").tobytes() + stream
    scales = tensor.scales.astype("<f2").tobytes()
    return entry | {"scaled": True}, tensor.codebook.astype("<f4").tobytes() + scales + stream


def _unpack_levels(entry: dict[str, Any], payload: bytes) -> LevelTensor:
    counts = np.array(entry["counts"], np.int64)
    codebook = np.frombuffer(payload[: 4 * len(counts)], "<f4").astype(np.float32)
    start = _stream_start(entry)
    scales = np.frombuffer(payload[4 * len(counts) : start], "<f2").astype(np.float16)
    shape = tuple(entry["shape"])
    mask = np.zeros((shape[0], math.prod(shape[1:])) if math.prod(shape) else (0, 1), bool)
    try:
        coder = constriction.stream.queue.RangeDecoder(np.frombuffer(payload[start:], "<u4").astype("u4"))
        model = MaskModel(mask.shape, int(counts.sum()), entry["prior"])
        for row in mask:
            survivors = int(coder.decode(model.row_count(), 1)[0])
            row[:] = coder.decode(_bernoulli(), model.row(survivors))
            model.learn(row)
        indices = np.zeros(int(mask.sum()), np.int32)
        if len(counts) > 1 and indices.size:
            indices = coder.decode(_categorical(counts), len(indices))
        return LevelTensor(
            mask.reshape(shape),
            indices.astype(_index_type(len(counts))),
            codebook,
            scales if _is_scaled(entry) else None,
        )
    except BaseException as error:
        # A panic of the coder's own language is no Exception; whatever the bytes do to it, they are undecodable.
        if not isinstance(error, AssertionError | ValueError) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())
        raise DelibError(f"{entry['name']}: undecodable stream ({reason}); encode the network again") from None


class MaskModel:
    """How probable each weight of the next row is to survive, given the rows before it.

    The layer is seen as [outputs, everything else]. A column's expected density is its share of survivors so far,
    drawn towards the layer's by a prior worth ``prior`` rows; scaled so that the row's known number of survivors is
    expected. Nothing is transmitted but that number.
    """

    def __init__(self, shape: tuple[int, ...], survivors: int, prior: float) -> None:
        rows, self.columns = shape[0], math.prod(shape[1:])
        density = survivors / max(rows * self.columns, 1)
        self.expected = density * self.columns
        self.weights = np.full(self.columns, prior * max(density, FLOOR))

    def row_count(self) -> Any:
        """The model of the next row's number of survivors: around the layer's mean, with a generous spread."""
        spread = 1.0 + self.expected / 2
        return constriction.stream.model.QuantizedGaussian(0, max(self.columns, 1), self.expected, spread)

    def row(self, survivors: int) -> NDArray[np.float64]:
        """The probability of each weight of the next row, which has this many survivors."""
        p: NDArray[np.float64] = np.clip(self.weights * (survivors / self.weights.sum()), FLOOR, 1 - FLOOR)
        return p

    def learn(self, row: NDArray[np.bool_]) -> None:
        """Take account of a finished row."""
        self.weights += row


def _mask_bits(rows: NDArray[np.bool_], prior: float) -> float:
    """Length of the mask's code in bits under a prior, without writing it."""
    weights, bits = MaskModel(rows.shape, int(rows.sum()), prior).weights, 0.0
    step = max(1, PIECE // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        before = weights + np.cumsum(part, 0) - part  # the model's weights before each row
        p = np.clip(before * (part.sum(1) / before.sum(1))[:, None], FLOOR, 1 - FLOOR)
        bits -= float(np.log2(np.where(part, p, 1 - p)).sum())
        weights = weights + part.sum(0)
    return bits


def _bernoulli() -> Any:
    return constriction.stream.model.Bernoulli(perfect=False)


def _categorical(counts: NDArray[np.integer]) -> Any:
    return constriction.stream.model.Categorical(counts / counts.sum(), perfect=False)


def _index_type(levels: int) -> type[np.integer]:
    return np.uint8 if levels <= 256 else np.uint16
