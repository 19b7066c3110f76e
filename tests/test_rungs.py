"""Layer sparsities spread by a shape, rungs around them, and trades that keep the total and lower the divergence."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from delib.evolution.allocate import Rungs, put_levels, spread, trade
from delib.layerwise.compress import compensated
from delib.nn.divergence import mse
from delib.nn.layers import sparsity, weight_layers, weight_of

SIZES = {"a": 100, "b": 1000, "c": 5000}
INPUTS = torch.randn(200, 3, 6, 6, generator=torch.Generator().manual_seed(1)).cumsum(-1)
FACTORS = (1.5, 1.0, 0.5)


@given(st.floats(0.02, 0.98), st.floats(0.1, 0.9), st.floats(0.1, 0.9))
@settings(max_examples=60, deadline=None)
def test_a_shape_is_scaled_to_the_whole_networks_sparsity(goal: float, b: float, c: float) -> None:
    shape = {"b": b, "c": c}
    targets = spread(SIZES, goal, shape)
    zeros = sum(share * SIZES[name] for name, share in targets.items())
    assert zeros / 6100 == pytest.approx(goal, abs=0.0051)
    if all(share > 0 for share in targets.values()) and targets != shape:
        assert (1 - targets["b"]) / (1 - targets["c"]) == pytest.approx((1 - b) / (1 - c), rel=1e-6)
    assert all(0 <= share < 1 for share in targets.values())


def test_a_shape_that_fits_is_taken_as_it_is_and_too_much_is_refused() -> None:
    shape = {"b": 0.5, "c": 0.9}  # 5,000 of 6,100
    assert spread(SIZES, 0.82, shape) == shape
    with pytest.raises(ValueError, match="needs more zeros than b have"):
        spread(SIZES, 0.9, {"b": 0.5})


@pytest.fixture
def fitted() -> tuple[nn.Sequential, nn.Module, Rungs]:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Conv2d(12, 4, 1)).eval()
    rungs = Rungs(FACTORS)
    student, _ = compensated(teacher, INPUTS, {"0": 0.5, "2": 0.5, "4": 0.5}, watch=rungs, progress=False)
    return teacher, student, rungs


def test_every_layer_gets_its_rungs_around_what_the_student_has(fitted) -> None:
    _, student, rungs = fitted
    assert list(rungs.versions) == ["0", "2", "4"]
    for name, versions in rungs.versions.items():
        weight = weight_of(student.get_submodule(name))
        alive = [weight.numel() - version.zeros for version in versions]
        assert alive == [round(f * weight.numel() / 2) for f in FACTORS]
        assert [v.cost for v in versions] == sorted(v.cost for v in versions), "sparser, so further off"
        assert all((b.support <= a.support).all() for a, b in pairwise(versions)), "nested"
        matrix = versions[1].matrix()[:, : weight[0].numel()].view_as(weight)
        assert torch.allclose(matrix, weight, atol=1e-5)


def test_trading_keeps_the_total_and_does_not_raise_the_divergence(fitted) -> None:
    teacher, student, rungs = fitted
    start = dict.fromkeys(rungs.versions, 1)
    budget = sum(versions[1].zeros for versions in rungs.versions.values())
    options = {"divergence": mse, "generations": 6, "batch": 100, "progress": False}
    parents = trade(student, teacher, rungs.versions, start, budget, INPUTS, **options)
    gaps = []
    for parent in parents:
        put_levels(student, rungs.versions, parent)
        assert sum(rungs.versions[n][level].zeros for n, level in parent.items()) >= budget
        with torch.no_grad():
            gaps.append(float(mse(student(INPUTS), teacher(INPUTS))))
    assert len(parents) == 7
    assert parents[0] == start
    assert gaps[-1] <= gaps[0]
    assert sparsity(student, weight_layers(student)) >= 0.5
