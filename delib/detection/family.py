"""The students of a detector that ship: one thinned on from another, each with its file and the record of what was
measured."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from delib.coding.quantized import Quantized
from delib.detection.darknet import Darknet
from delib.detection.infer import LIKELY, SHOWN
from delib.detection.zoo import load_yolo
from delib.files import project_root


@dataclass(frozen=True)
class ShippedStudent:
    """A student in ``data/students``: its ``teacher``'s name, its ``file``, and its record's ``metrics``."""

    teacher: str
    file: Path
    metrics: Mapping[str, float]

    @property
    def sparsity(self) -> float:
        """Share of the convolutions' weights that are zero."""
        return self.metrics["sparsity"]

    def network(self) -> Darknet:
        """The student, decoded. Raises DataUnavailable where its teacher's file can neither be found nor fetched."""
        network = Quantized.load(self.file).network(load_yolo(self.teacher))
        assert isinstance(network, Darknet)
        return network


def shipped(teacher: str = "yolov3-tiny") -> list[ShippedStudent]:
    """The teacher's students in ``data/students``, the densest first."""
    records = (project_root() / "data" / "students").glob(f"{teacher}-s*.json")
    found = [
        ShippedStudent(teacher, path.with_suffix(".delib"), json.loads(path.read_text(encoding="utf-8"))["metrics"])
        for path in records
    ]
    return sorted(found, key=lambda student: student.sparsity)


CLAIMED = (40, 80)  # how many times smaller the paper's students are
BAND = "{} to {} times smaller".format(*CLAIMED)
Rows = Sequence[Mapping[str, float]]
Lines = dict[str, tuple[list[float], list[float]]]


def least_squares() -> Rows:
    """What YOLOv3-tiny keeps by layer-wise least squares alone, the densest first: one mapping of metrics for each
    sparsity, from the record of ``benchmarks/least_squares.py``."""
    record = project_root() / "reports" / "bench" / "least_squares.json"
    rows: Rows = json.loads(record.read_text(encoding="utf-8"))["rows"]
    return rows


def kept(trained: Rows, alone: Rows) -> Lines:
    """What students keep of what their teacher finds, by the shares of weights that are zero: lines for
    ``suite.figures.curves`` from metrics, the densest first. The first point of each is the teacher itself.

    ``trained`` are the students that ship; ``alone`` are those by least squares alone, drawn beside them.
    """
    shares = {
        f"objects at {SHOWN}": (lambda m: m["retention_25"]),
        f"objects at {LIKELY}": (lambda m: m["retention_50"]),
        "AP50": (lambda m: m["ap50"] / m["teacher_ap50"]),
    }
    return {
        f"{name}, {how}": ([0.0, *(m["sparsity"] for m in rows)], [1.0, *(share(m) for m in rows)])
        for how, rows in (("distilled", trained), ("least squares", alone))
        for name, share in shares.items()
    }


def claimed_band(trained: Rows) -> tuple[str, float, float]:
    """The sparsities at which files are as much smaller as the paper claims, interpolated between students, the densest
    first: the logarithm of the ratio by that of the survivors, as the file shrinks with these."""
    survivors = [0.0, *(math.log(1 - m["sparsity"]) for m in trained)]
    ratios = [0.0, *(math.log(m["compression_ratio"]) for m in trained)]
    low, high = np.interp(np.log(CLAIMED), ratios, survivors)
    return BAND, -math.expm1(low), -math.expm1(high)
