"""Files that are read, changed at random: each is read or refused by one line, in little time and memory.

``python tests/fuzz.py --seconds 60`` changes good files of every kind for so long and prints what came of them;
``--kind cfg`` one kind alone. Files that show a fault are kept in the current folder. The suite does so for a moment.
`fuzz_guided.py` lets coverage guide the changes.
"""

from __future__ import annotations

import argparse
import json
import resource
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import torch
from hostile import files, mutated

from delib.coding import decode
from delib.detection.coco import read_labels
from delib.detection.darknet import Darknet
from delib.detection.darknet_cfg import parse_cfg, read_cfg, yolov3_tiny_cfg
from delib.detection.darknet_weights import HEADER, read_weights, value_count
from delib.suite.parameters import read_parameters
from delib.suite.record import read_record

SECONDS = 2.0  # of processor time that a file may take at most
MEGABYTES = 500  # by which the process may grow
CFG = """[net]
height=64
width=96
channels=3
[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky
[convolutional]
filters=8
size=3
groups=2
padding=1
activation=mish
[shortcut]
from=-2
[maxpool]
size=2
stride=2
[upsample]
[route]
layers=-1,2
groups=2
group_id=1
[convolutional]
filters=14
size=1
activation=linear
[yolo]
mask=1,2
anchors=3,4, 5,6, 7,8
classes=2
num=3
"""
RECORD = {
    **{"notebook": "01", "parameters": {"profile": "quick", "seed": 0}, "seed": 0, "versions": {"torch": "2.9"}},
    **{"machine": "x86_64", "device": "cpu", "threads": 1, "git_revision": "abc", "data": {}, "seconds": 7.5},
    "metrics": {"lenet.accuracy": 0.97},
}
PARAMETERS = ['profile = "quick"  # of values\n', "seed = 0  # 0..: of chance\n", "sizes = [1, 2]  # 0<..: of sets\n"]
CELL = {"cell_type": "code", "id": "a", "execution_count": None, "outputs": [], "metadata": {"tags": ["parameters"]}}
NOTEBOOK = {"cells": [CELL | {"source": PARAMETERS}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
WORDS = (
    *(
        "-1",
        "0",
        "1",
        "2",
        "7",
        "255",
        "65536",
        "99999999999",
        "-99999999999",
        "1" * 400,
        "1e999",
        "nan",
        "-inf",
        "0.5",
    ),
    *("", "\0", "\n", "\r", "\u2028", "é", "#", ";", "=", ",", "[", "]", "{", "}", '"', "'", "\\", "[net]", "[yolo]"),
    *("[route]", "[shortcut]", "layers=-1", "from=-1", "stride=63", "null", "true", "[" * 3000, '{"metrics": {}}'),
)


class Fault(Exception):
    """A file was neither read nor refused as it should be."""


@dataclass(frozen=True)
class Kind:
    """One kind of file: good ones, how they are changed, and what reads them."""

    good: tuple[bytes, ...]
    change: Callable[[bytes, Random], bytes]
    read: Callable[[bytes], object]


def changed_text(data: bytes, chance: Random) -> bytes:
    """A text with lines and words moved, repeated, left out or replaced, or with bytes of no text."""
    lines = data.decode().split("\n")
    for _ in range(chance.choice((1, 1, 2, 5))):
        at, other = chance.randrange(len(lines)), chance.randrange(len(lines))
        how = chance.random()
        if how < 0.15:
            lines[at:at] = lines[other : other + chance.randrange(1, 9)]
        elif how < 0.3 and len(lines) > 1:
            del lines[at]
        elif how < 0.8:
            words = lines[at].replace("=", " = ").replace(",", " , ").replace(":", " : ").split(" ")
            words[chance.randrange(len(words))] = chance.choice(WORDS)
            lines[at] = " ".join(words)
        else:
            lines[at] = chance.choice(WORDS)
    text = "\n".join(lines).encode()
    return changed_bytes(text, chance) if chance.random() < 0.1 else text


def changed_cfg(data: bytes, chance: Random) -> bytes:
    """A cfg with sections moved, repeated or left out, and options set to numbers that may make sense."""
    if chance.random() < 0.2:
        return changed_text(data, chance)
    net, *sections = data.decode().split("\n[")
    for _ in range(chance.choice((1, 1, 2, 5))):
        at, other = chance.randrange(len(sections)), chance.randrange(len(sections))
        how = chance.random()
        if how < 0.2:
            sections.insert(at, sections[other])
        elif how < 0.3 and len(sections) > 1:
            del sections[at]
        elif how < 0.4:
            net = net.replace(chance.choice(("=64", "=96", "=416")), f"={chance.randrange(1, 200)}")
        else:
            lines = sections[at].split("\n")
            options = [line.split("=")[0] for line in lines if "=" in line] or ["stride"]
            value = ",".join(str(chance.randrange(-9, 20)) for _ in range(chance.choice((1, 1, 2))))
            lines.insert(1, f"{chance.choice((*options, 'groups', 'padding'))}={value}")
            sections[at] = "\n".join(lines)
    return "\n[".join([net, *sections]).encode()


def changed_bytes(data: bytes, chance: Random) -> bytes:
    """Bytes replaced, cut out or repeated."""
    body = bytearray(data)
    for _ in range(chance.choice((1, 2, 9))):
        at = chance.randrange(len(body) + 1)
        how = chance.random()
        if how < 0.6:
            body[at : at + 4] = struct.pack("<f", chance.choice((0, -1, 1e30, float("nan"), float("inf"))))
        elif how < 0.8:
            body[at : at + chance.randrange(9)] = b""
        else:
            body[at:at] = chance.randbytes(chance.randrange(9))
    return bytes(body)


@cache
def folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


def file(name: str, data: bytes) -> Path:
    path = Path(folder().name) / name
    path.write_bytes(data)
    return path


@torch.no_grad()
def network_of(data: bytes) -> None:
    """Read a cfg, build its network without memory for its values, and pass an image through it."""
    sections = read_cfg(file("x.cfg", data))
    with torch.device("meta"):
        network = Darknet(sections)
        try:
            network.eval()(torch.zeros(1, 3, *network.size))
        except Exception as error:
            raise Fault(f"was built, but its first pass fails: {error!r}") from error


@cache
def small() -> Darknet:
    return Darknet(parse_cfg(CFG))


KINDS = {
    "container": Kind(tuple(files()), mutated, decode),
    "cfg": Kind(tuple(cfg.encode() for cfg in (*[CFG] * 19, yolov3_tiny_cfg())), changed_cfg, network_of),
    "weights": Kind(
        (HEADER + bytes(4 * value_count(small())),),
        changed_bytes,
        lambda data: read_weights(small(), file("x.weights", data)),
    ),
    "labels": Kind(
        (b"0 .5 .5 .2 .2\n3 .1 .1 .2 .1 .2 .2\n", b""), changed_text, lambda data: read_labels(file("x.txt", data))
    ),
    "record": Kind(
        (json.dumps(RECORD, indent=1).encode(),), changed_text, lambda data: read_record(file("x.json", data))
    ),
    "parameters": Kind(
        (json.dumps(NOTEBOOK, indent=1).encode(),), changed_text, lambda data: read_parameters(file("x.ipynb", data))
    ),
}


def tried(read: Callable[[bytes], object], data: bytes) -> str:
    """``read`` or ``refused``. Raises Fault if it is neither, or takes too long."""
    start = time.process_time()
    try:
        read(data)
        done = "read"
    except ValueError as error:
        if len(str(error).splitlines()) != 1:
            raise Fault(f"refused, but not in one line: {str(error)!r}") from error
        done = "refused"
    except Fault:
        raise
    except BaseException as error:
        raise Fault(repr(error)[:200]) from error
    if (seconds := time.process_time() - start) > SECONDS:
        raise Fault(f"took {seconds:.1f} s")
    return done


def fuzz(name: str, seconds: float, chance: Random) -> tuple[Counter[str], dict[str, bytes]]:
    """How many changed files of a kind were read and refused in so many seconds; the first file that shows each fault.

    Raises what a good file does if one is refused.
    """
    kind, outcomes, faults = KINDS[name], Counter[str](), dict[str, bytes]()
    for data in kind.good:
        kind.read(data)  # and what takes long but once is done: imports, the walk compiled
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop:
        data = kind.change(chance.choice(kind.good), chance)
        try:
            outcomes[tried(kind.read, data)] += 1
        except Fault as fault:
            outcomes["faults"] += 1
            faults.setdefault(str(fault), data)
    return outcomes, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="for all kinds together")
    parser.add_argument("--kind", choices=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    names = [options.kind] if options.kind else list(KINDS)
    before, number = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for name in names:
        outcomes, faults = fuzz(name, options.seconds / len(names), Random(options.seed))
        print(name, dict(outcomes), flush=True)
        for fault, data in faults.items():
            number += 1
            Path(f"fault-{number}").write_bytes(data)
            print(f"  fault-{number}: {fault}", flush=True)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"memory grew by {grown:.0f} MB")
    sys.exit(number > 0 or grown > MEGABYTES)


if __name__ == "__main__":
    main()
