"""The detectors in data/students: each file is what its record says, and they stand in a row, the densest first."""

from __future__ import annotations

import json

import pytest
from house import ROOT

from delib.coding import Quantized
from delib.detection import claimed_band, kept, least_squares, shipped
from delib.detection.family import ShippedStudent

FOLDER = ROOT / "data" / "students"
STUDENTS = shipped("yolov3-tiny")
METRICS = [student.metrics for student in STUDENTS]


@pytest.mark.parametrize("student", STUDENTS, ids=lambda student: student.file.stem)
def test_a_student_is_what_its_record_says(student: ShippedStudent) -> None:
    held, metrics = Quantized.load(student.file), student.metrics
    assert held.sparsity == pytest.approx(metrics["sparsity"])
    assert held.bits <= metrics["bits"] <= 4
    assert metrics["encoded_bytes"] == student.file.stat().st_size
    assert metrics["compression_ratio"] == pytest.approx(metrics["teacher_bytes"] / student.file.stat().st_size)
    assert metrics["retention_25"] == pytest.approx(metrics["retained_25"] / metrics["objects"])
    looks = json.loads(student.file.with_suffix(".json").read_text())["looks_at_test_photos"]
    assert min(looks["the 64"], looks["the 300"]) >= 1, "what was measured was looked at"


def test_they_stand_in_a_row_behind_their_teacher() -> None:
    assert [student.sparsity for student in STUDENTS] == sorted(student.sparsity for student in STUDENTS)
    lines = kept(METRICS, least_squares())
    for sparsities, shares in lines.values():
        assert sparsities == sorted(sparsities)
        assert (sparsities[0], shares[0]) == (0, 1), "the teacher"
        assert all(0 <= share <= 1.1 for share in shares)
    assert lines["objects at 0.25, distilled"][1][1:] == [metrics["retention_25"] for metrics in METRICS]
    assert lines["AP50, distilled"][1][1] == METRICS[0]["ap50"] / METRICS[0]["teacher_ap50"]


def test_what_least_squares_alone_keep_was_measured_on_the_same_photos() -> None:
    for row in least_squares():
        for name in ("objects", "teacher_ap50"):
            assert row[name] == pytest.approx(METRICS[0][name], rel=1e-5)


def test_the_band_lies_where_files_are_as_small_as_the_paper_claims() -> None:
    family = [{"sparsity": s, "compression_ratio": (1 - s) ** -1.5} for s in (0.8, 0.9, 0.98)]
    name, low, high = claimed_band(family)
    assert name == "40 to 80 times smaller"
    assert [(1 - s) ** -1.5 for s in (low, high)] == pytest.approx([40, 80])


def test_a_teacher_without_students_has_none() -> None:
    assert shipped("yolov9") == []


def test_a_student_finds_objects_with_its_teachers_heads() -> None:
    network = STUDENTS[0].network()
    assert len(network.heads) == 2
    assert not network.training
