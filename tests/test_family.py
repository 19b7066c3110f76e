"""The detectors in data/students: each file is what its record says, and they stand in a row, the densest first."""

from __future__ import annotations

import json

import pytest
from house import ROOT

from delib.coding import Quantized
from delib.detection import kept, shipped
from delib.detection.family import ShippedStudent

FOLDER = ROOT / "data" / "students"
STUDENTS = shipped("yolov3-tiny")


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
    lines, _ = kept(STUDENTS)
    for sparsities, shares in lines.values():
        assert sparsities == [0.0, *(student.sparsity for student in STUDENTS)]
        assert shares[0] == 1
    assert lines["objects retained at 0.25"][1][1:] == [student.metrics["retention_25"] for student in STUDENTS]
    assert lines["AP50, of the teacher's"][1][1] == STUDENTS[0].metrics["ap50"] / STUDENTS[0].metrics["teacher_ap50"]


def test_the_band_lies_where_files_are_as_small_as_the_paper_claims() -> None:
    metrics = {"retention_25": 1.0, "retention_50": 1.0, "ap50": 0.3, "teacher_ap50": 0.3}
    family = [
        ShippedStudent("t", FOLDER, metrics | {"sparsity": s, "compression_ratio": r})
        for s, r in ((0.8, 21.0), (0.9, 61.0), (0.98, 101.0))
    ]
    assert kept(family)[1][1:] == pytest.approx((0.8 + 0.1 * 19 / 40, 0.9 + 0.08 * 19 / 40))


def test_a_teacher_without_students_has_none() -> None:
    assert shipped("yolov9") == []


def test_a_student_finds_objects_with_its_teachers_heads() -> None:
    network = STUDENTS[0].network()
    assert len(network.heads) == 2
    assert not network.training
