"""The detectors in data/students: each file is what its record says, and they stand in a row, the densest first."""

from __future__ import annotations

import json

import pytest
from house import ROOT

from delib.coding import Quantized
from delib.detection import kept_by_size, kept_by_sparsity, shipped
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
    lines = kept_by_size(STUDENTS)
    for ratios, shares in lines.values():
        assert ratios == [1.0, *(student.metrics["compression_ratio"] for student in STUDENTS)]
        assert shares[0] == 1
    assert lines["objects retained at 0.25"][1][1:] == [student.metrics["retention_25"] for student in STUDENTS]
    assert lines["AP50, of the teacher's"][1][1] == STUDENTS[0].metrics["ap50"] / STUDENTS[0].metrics["teacher_ap50"]


def test_against_sparsity_they_keep_as_much() -> None:
    by_size, by_sparsity = kept_by_size(STUDENTS), kept_by_sparsity(STUDENTS)
    assert [shares for _, shares in by_size.values()] == [shares for _, shares in by_sparsity.values()]
    for places, _ in by_sparsity.values():
        assert places == [0.0, *(student.sparsity for student in STUDENTS)]


def test_a_teacher_without_students_has_none() -> None:
    assert shipped("yolov9") == []


def test_a_student_finds_objects_with_its_teachers_heads() -> None:
    network = STUDENTS[0].network()
    assert len(network.heads) == 2
    assert not network.training
