"""Version 1 of the container, which is still read but no longer written.

A quantised tensor's payload is its codebook, its outputs' scales if it has any, and one range-coded stream
(constriction): for every row the number of survivors and the mask, then one index a survivor, whose probabilities are
the counts in the header. Only additions, multiplications and divisions of IEEE doubles lead to the probabilities.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delib.coding.header import (
    MEMORY_PER_BYTE,
    PLAIN,
    SLACK_BYTES,
    STORED,
    TIED,
    Check,
    Entry,
    inflated,
    is_count,
    is_one_of,
)
from delib.coding.tensors import MAX_LEVELS, DelibError, LevelTensor, index_type

MAGIC = b"DELIB\x00\x01\n"
DIGEST = 32  # bytes of the checksum
MAX_ROW = 1 << 22  # weights in a row; decoding one takes some 50 bytes each
FLOOR = 2.0**-10  # no mask bit was given less than this probability
# A row's number of survivors has a spread of at least 1 and so costs more than half a bit.
ROWS_PER_BYTE = 16
PRIOR_ROWS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 1024.0)


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MAX_LEVELS and all(map(is_count, value))


_LEVELS: dict[str, Check] = STORED | {"counts": _are_counts, "prior": is_one_of(*PRIOR_ROWS)}
_FLAG = is_one_of(False, True)
FORMS = (TIED, PLAIN, PLAIN | {"deflated": _FLAG}, _LEVELS, _LEVELS | {"scaled": _FLAG})


def unpacked(entry: Entry, payload: bytes) -> NDArray[Any] | LevelTensor:
    """The tensor of an entry (of one of ``FORMS``) and its payload. Raises DelibError if they do not agree."""
    if "dtype" not in entry:
        return _unpacked_levels(entry, payload)
    dtype, size = np.dtype(entry["dtype"]), math.prod(entry["shape"])
    if entry.get("deflated", False):
        payload = inflated(payload, size * dtype.itemsize)
    if len(payload) != size * dtype.itemsize:
        raise DelibError(f"{len(payload)} bytes do not hold its shape; encode the network again")
    return np.frombuffer(payload, dtype.newbyteorder("<")).astype(dtype).reshape(entry["shape"])


def _unpacked_levels(entry: Entry, payload: bytes) -> LevelTensor:
    shape, levels, survivors = tuple(entry["shape"]), len(entry["counts"]), sum(entry["counts"])
    scaled = entry.get("scaled", False)
    start = 4 * levels + (2 * shape[0] if scaled and shape else 0)
    size, room = math.prod(shape), len(payload) + SLACK_BYTES
    if not shape or start > len(payload) or survivors > size or (len(payload) - start) % 4:
        raise DelibError("its shape, its levels and its bytes do not agree; encode the network again")
    if size > MEMORY_PER_BYTE * room or (size and shape[0] > ROWS_PER_BYTE * room) or math.prod(shape[1:]) > MAX_ROW:
        raise DelibError(f"{len(payload)} bytes cannot hold its shape; encode the network again")
    codebook = np.frombuffer(payload[: 4 * levels], "<f4").astype(np.float32)
    scales = np.frombuffer(payload[4 * levels : start], "<f2").astype(np.float16) if scaled else None
    try:
        mask, indices = _stream(np.frombuffer(payload[start:], "<u4").astype("u4"), shape, entry)
        return LevelTensor(mask, indices.astype(index_type(levels)), codebook, scales)
    except BaseException as error:
        # A panic of the coder's own language is no Exception; whatever the bytes do to it, they are undecodable.
        if not isinstance(error, AssertionError | ValueError) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:80]
        raise DelibError(f"undecodable stream ({reason}); encode the network again") from None


def _stream(words: NDArray[np.uint32], shape: tuple[int, ...], entry: Entry) -> tuple[NDArray[Any], NDArray[Any]]:
    """The mask and the indices.

    A column's expected density is its share of survivors so far, drawn towards the layer's by a prior worth ``prior``
    rows, and scaled so that the row's known number of survivors is expected.
    """
    from constriction import stream

    counts = np.array(entry["counts"], np.int64)
    mask = np.zeros((shape[0], math.prod(shape[1:])) if math.prod(shape) else (0, 1), bool)
    coder, (rows, columns), models = stream.queue.RangeDecoder(words), mask.shape, stream.model
    density = int(counts.sum()) / max(rows * columns, 1)
    row_count = models.QuantizedGaussian(0, max(columns, 1), density * columns, 1.0 + density * columns / 2)
    weights = np.full(columns, entry["prior"] * max(density, FLOOR))
    for row in mask:
        survivors = int(coder.decode(row_count, 1)[0])
        p = np.clip(weights * (survivors / weights.sum()), FLOOR, 1 - FLOOR)
        row[:] = coder.decode(models.Bernoulli(perfect=False), p)
        weights += row
    indices = np.zeros(int(mask.sum()), np.int32)
    if len(counts) > 1 and indices.size:
        indices = coder.decode(models.Categorical(counts / counts.sum(), perfect=False), len(indices))
    return mask.reshape(shape), indices
