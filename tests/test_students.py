"""The classifiers in data/students: each file decodes into the plain network and is what its record says."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from house import ROOT

import delib
from delib.data import CLASSIFIERS, mnist
from delib.nn import accuracy, float32_bytes, weight_layers, weight_of
from delib.suite.claims import student_records

FOLDER = ROOT / "data" / "students"
SHIPPED = [name for name in student_records() if name in CLASSIFIERS]


def test_some_ship() -> None:
    assert "lenet300" in SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_student_is_what_its_record_says(name: str) -> None:
    file, record = FOLDER / f"{name}.delib", student_records()[name]
    metrics: dict[str, Any] = record["metrics"]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == record["sha256"]
    network = delib.load(file).network(like=CLASSIFIERS[name]())
    test = mnist().test
    # One image of 10,000 may fall to the other side where sums are added up in another order.
    assert accuracy(network, test.images, test.labels) == pytest.approx(metrics["accuracy"], abs=1.5e-4)
    assert metrics["error"] == pytest.approx(1 - metrics["accuracy"])
    assert metrics["encoded_bytes"] == file.stat().st_size
    assert metrics["compression_ratio"] == pytest.approx(float32_bytes(network) / file.stat().st_size)
    weights = [weight_of(layer) for layer in weight_layers(network).values()]
    assert metrics["weights"] == sum(weight.numel() for weight in weights)
    assert metrics["survivors"] == sum(int(weight.count_nonzero()) for weight in weights)
    assert all(len(weight[weight != 0].unique()) <= 2 ** metrics["bits"] for weight in weights)
