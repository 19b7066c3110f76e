"""A `.delib` file's outer shape, checked before anything else looks at it: checksum, header by its schema, payloads."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from delib.coding.tensors import DTYPES, MAX_LEVELS, DelibError

Entry = dict[str, Any]
Check = Callable[[Any], bool]
MAX_HEADER = 1 << 24  # bytes of JSON
HEADER_INFLATION = 64  # bytes of JSON a byte of the file; honest headers have at most 20
MAX_INFLATION = 1032  # no deflated stream stands for more bytes a byte (zlib's documentation, technical details)
# Decoding takes at most so many bytes of memory, or the time of as many zeros, for each byte of a tensor's payload: its
# mask (a byte a weight), its survivors, and the walk's memory of the columns. A stream that is shorter is filled up
# with zeros. So a file of b bytes stands for no more than 1,024·b weights, a compression ratio of 4,096 that no useful
# network comes near.
MEMORY_PER_BYTE = 1024
SLACK_BYTES = 16  # a payload's first bytes, for which tiny tensors need no filling


def is_count(value: Any, least: int = 0, most: int = 1 << 48) -> bool:
    """Whether it is an integer, and no bool, within bounds."""
    return type(value) is int and least <= value <= most


def is_shape(value: Any) -> bool:
    """Whether it lists at most 8 lengths of a sensible product."""
    return isinstance(value, list) and len(value) <= 8 and all(map(is_count, value)) and is_count(math.prod(value))


def is_name(value: Any) -> bool:
    return isinstance(value, str)


def is_one_of(*choices: Any) -> Check:
    """A check that it is one of these values, and of the same type."""
    return lambda value: any(type(value) is type(choice) and value == choice for choice in choices)


TIED: dict[str, Check] = {"name": is_name, "same": is_name}
STORED: dict[str, Check] = {"name": is_name, "shape": is_shape, "bytes": is_count}
PLAIN: dict[str, Check] = STORED | {"dtype": is_one_of(*DTYPES)}
LEVELS: dict[str, Check] = STORED | {
    "levels": lambda n: is_count(n, 0, MAX_LEVELS),
    "survivors": lambda n: type(n) is int and is_count(abs(n)),  # below zero: the tensor is turned
    "scaled": is_one_of(False, True),
}
# Forms that an entry may take, in this version of the format: each field with what its value must be. An entry is the
# list of its fields' values in this order; its length says which form it has.
FORMS: tuple[dict[str, Check], ...] = (
    TIED,
    PLAIN,
    PLAIN | {"packed": is_one_of("deflate")},
    LEVELS,
    LEVELS | {"level_bits": is_one_of(16)},
)
# What stands before the header as its compressor sees it, so that even the first entry can refer to something: most of
# a header that has few. Files from before it was used refer to none of it.
DICTIONARY = (
    b'.num_batches_tracked",[],8,"int64"],["running_mean",[64],"running_var",[256],"float32","deflate"],["downsample.0.'
    b'features.classifier.model.0.cv1.m.layer4.block.skip.conv.bias",[1000],256,true,16],["fc3.bias",[300],15,true,16],["'
    b'fc.weight",[10,128],16,false,16],["conv2.weight",[64,32,1,1],["block3.conv1.bias",[128],132,16,false,16],["block1.'
    b'conv2.weight",[64,64,3,3],16,false,16],["conv.weight",[32,1,3,3],16,false,16],["conv1.bias",[32],84,16,false,16],["'
    b'fc2.weight",[10,500],["fc1.weight",[500,800],15,["conv1.weight",['
)


def opened(data: bytes, start: int, digest: int, forms: Sequence[Mapping[str, Check]]) -> list[tuple[Entry, bytes]]:
    """Each tensor's header entry, in one of the ``forms``, and its payload.

    ``data`` is the whole file: ``start`` bytes of magic, the first ``digest`` bytes of the SHA-256 of all that follows,
    the header's length, the header, payloads. Raises DelibError unless all of it is as it should be.
    """
    begin = start + digest
    if len(data) < begin + 4 or hashlib.sha256(data[begin:]).digest()[:digest] != data[start:begin]:
        raise DelibError("checksum mismatch: the file was damaged or cut; get it again")
    stop = begin + 4 + int.from_bytes(data[begin : begin + 4], "little")
    entries = _entries(data[begin + 4 : stop], forms)
    if sum(entry.get("bytes", 0) for entry in entries) != len(data) - stop:
        raise DelibError("the payloads do not fill the file; encode the network again")
    pairs = []
    for entry in entries:
        size = entry.get("bytes", 0)
        pairs.append((entry, data[stop : stop + size]))
        stop += size
    return pairs


def _entries(packed: bytes, forms: Sequence[Mapping[str, Check]]) -> list[Entry]:
    """The header's entries. Raises DelibError unless each has one of the forms and a name of its own."""
    most = min(MAX_HEADER, HEADER_INFLATION * len(packed) + 4096)
    try:
        # Wide enough to recognise version 1's zlib stream, too.
        inflate = zlib.decompressobj(47) if packed[:1] == b"\x78" else zlib.decompressobj(-15, zdict=DICTIONARY)
        text = inflate.decompress(packed, most)
        if not inflate.eof or inflate.unused_data:
            raise ValueError("it is cut or too long")
        entries = json.loads(text)
    except (zlib.error, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:80]
        raise DelibError(f"unreadable header ({reason}); encode the network again") from None
    if not isinstance(entries, list):
        raise DelibError("the header lists no tensors; encode the network again")
    entries = [_named(entry, forms) for entry in entries]
    stored: set[str] = set()
    names: set[str] = set()
    for number, entry in enumerate(entries):
        if not any(_fits(entry, form) for form in forms):
            raise DelibError(f"entry {number} of the header has not the form of a tensor; encode the network again")
        if entry["name"] in names or ("same" in entry and entry["same"] not in stored):
            raise DelibError(f"entry {number} of the header repeats or misses a name; encode the network again")
        names.add(entry["name"])
        stored |= set() if "same" in entry else {entry["name"]}
    return entries


def _named(entry: Any, forms: Sequence[Mapping[str, Check]]) -> Any:
    """An entry that is a list of values, with their fields' names; another (in version 1 it has them) as it is."""
    if not isinstance(entry, list):
        return entry
    return next((dict(zip(form, entry, strict=True)) for form in forms if len(form) == len(entry)), None)


def _fits(entry: Any, form: Mapping[str, Check]) -> bool:
    return (
        isinstance(entry, dict)
        and entry.keys() == form.keys()
        and all(check(entry[key]) for key, check in form.items())
    )


def header_of(entries: Sequence[Entry]) -> bytes:
    """The header's bytes: of each entry its values in the order of its form's fields."""
    rows = [next([entry[key] for key in form] for form in FORMS if form.keys() == entry.keys()) for entry in entries]
    deflate = zlib.compressobj(9, wbits=-15, memLevel=9, zdict=DICTIONARY)
    return deflate.compress(json.dumps(rows, separators=(",", ":")).encode()) + deflate.flush()


def inflated(packed: bytes, size: int) -> bytes:
    """The ``size`` bytes that were deflated. Raises DelibError, having inflated no more, if it is not exactly these."""
    inflate = zlib.decompressobj()
    try:
        payload = inflate.decompress(packed, size + 1) if size <= MAX_INFLATION * len(packed) else b""
    except zlib.error as error:
        raise DelibError(f"{error}; encode the network again") from None
    if len(payload) != size or not inflate.eof or inflate.unused_data:
        raise DelibError("its bytes do not inflate to its shape; encode the network again")
    return payload
