"""The students of a detector that ship: one thinned on from another, each with its file and the record of what was
measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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


Lines = dict[str, tuple[list[float], list[float]]]


def kept_by_size(students: Sequence[ShippedStudent]) -> Lines:
    """Lines for ``suite.figures.curves``: what the students keep of what their teacher finds, against how many times
    smaller they are. The first point is the teacher itself."""
    return _kept(students, 1.0, "compression_ratio")


def kept_by_sparsity(students: Sequence[ShippedStudent]) -> Lines:
    """As ``kept_by_size``, against the students' sparsity."""
    return _kept(students, 0.0, "sparsity")


def _kept(students: Sequence[ShippedStudent], teacher: float, against: str) -> Lines:
    metrics = [student.metrics for student in students]
    places = [teacher, *(each[against] for each in metrics)]
    lines = {
        f"objects retained at {at}": [m[f"retention_{round(100 * at)}"] for m in metrics] for at in (SHOWN, LIKELY)
    }
    lines["AP50, of the teacher's"] = [each["ap50"] / each["teacher_ap50"] for each in metrics]
    return {name: (places, [1.0, *values]) for name, values in lines.items()}
