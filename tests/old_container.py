"""Version 1 of the container as it was written, for tests of the reader that is left of it."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from typing import Any

import constriction
import numpy as np

from delib.coding.container import LevelTensor
from delib.coding.container_v1 import FLOOR, MAGIC


def encode_v1(tensors: Mapping[str, Any]) -> bytes:
    entries, payloads, names = [], [], {}
    for name, tensor in tensors.items():
        if names.setdefault(id(tensor), name) != name:
            entries.append({"name": name, "same": names[id(tensor)]})
            continue
        if isinstance(tensor, LevelTensor):
            entry, payload = levels(tensor)
        else:
            raw = tensor.tobytes()
            payload = min(raw, zlib.compress(raw, 9), key=len)
            entry = {"shape": list(tensor.shape), "dtype": str(tensor.dtype), "deflated": payload is not raw}
        entries.append({"name": name, "bytes": len(payload), **entry})
        payloads.append(payload)
    header = zlib.compress(json.dumps(entries).encode(), 9)
    body = len(header).to_bytes(4, "little") + header + b"".join(payloads)
    return MAGIC + hashlib.sha256(body).digest() + body


def levels(tensor: LevelTensor, prior: float = 4.0) -> tuple[dict[str, Any], bytes]:
    models, coder = constriction.stream.model, constriction.stream.queue.RangeEncoder()
    rows = tensor.mask.reshape(len(tensor.mask), -1) if tensor.mask.size else tensor.mask.reshape(0, 1)
    counts, columns = np.bincount(tensor.indices, minlength=len(tensor.codebook)), rows.shape[1]
    density = int(rows.sum()) / max(rows.size, 1)
    of_row = models.QuantizedGaussian(0, max(columns, 1), density * columns, 1 + density * columns / 2)
    weights = np.full(columns, prior * max(density, FLOOR))
    for row in rows:
        coder.encode(np.array([row.sum()], np.int32), of_row)
        p = np.clip(weights * (int(row.sum()) / weights.sum()), FLOOR, 1 - FLOOR)
        coder.encode(row.astype(np.int32), models.Bernoulli(perfect=False), p)
        weights += row
    if len(counts) > 1 and tensor.indices.size:
        coder.encode(tensor.indices.astype(np.int32), models.Categorical(counts / counts.sum(), perfect=False))
    scales = b"" if tensor.scales is None else tensor.scales.tobytes()
    entry = {"shape": list(tensor.mask.shape), "counts": counts.tolist(), "prior": prior}
    payload = tensor.codebook.tobytes() + scales + coder.get_compressed().astype("<u4").tobytes()
    return entry | ({} if tensor.scales is None else {"scaled": True}), payload
