"""The Gauss-Newton recovery against closed forms."""

import copy
from importlib import import_module

import pytest
import torch
from torch import nn

from delib.distillation import gauss_newton
from delib.distillation.gauss_newton import _Problem
from delib.nn.divergence import Divergence, kl, mse, soft_kl
from delib.nn.layers import weight_of

MODULE = import_module("delib.distillation.gauss_newton")  # the wing hands on the function by this name
INPUTS = torch.randn(200, 6, generator=torch.Generator().manual_seed(1))


def tiny(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).eval()


def test_one_step_on_a_linear_network_is_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "CURVATURE_SHARE", 1.0)
    torch.manual_seed(0)
    student, teacher = nn.Sequential(nn.Linear(6, 3)).eval(), nn.Sequential(nn.Linear(6, 3)).eval()
    mask = torch.rand(3, 6) < 0.5
    weight_of(student[0]).mul_(mask)
    gauss_newton(student, teacher, INPUTS, steps=1, iterations=100, damping=0.0, divergence=mse)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))[20:]
    x = torch.cat([INPUTS[order], torch.ones(180, 1)], dim=1)
    y = teacher(INPUTS[order]).detach()
    for r in range(3):
        columns = torch.cat([mask[r], torch.tensor([True])])
        best = torch.linalg.lstsq(x[:, columns], y[:, r : r + 1]).solution[:, 0]
        got = torch.cat([weight_of(student[0])[r][mask[r]], student[0].bias.detach()[r : r + 1]])
        assert torch.allclose(got, best, atol=1e-4)
    assert torch.equal(weight_of(student[0]) != 0, mask)


@pytest.mark.parametrize("divergence", [mse, kl, soft_kl], ids=["mse", "kl", "soft_kl"])
def test_products_are_those_of_the_full_matrices(divergence: Divergence, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a student equal to the teacher the residual vanishes and Gauss-Newton is the full Hessian."""
    monkeypatch.setattr(MODULE, "BATCH", 20)
    network = tiny()
    weight_of(network[0]).mul_(alive := torch.rand(8, 6) < 0.7)
    problem = _Problem(network, copy.deepcopy(network), INPUTS[:50], divergence)
    values = nn.utils.parameters_to_vector(network.parameters()).detach()
    direction = torch.randn_like(values)
    goal = network(INPUTS[:50]).detach()

    def loss(vector: torch.Tensor) -> torch.Tensor:
        named = problem.named(vector)
        return divergence(torch.func.functional_call(network, named, (INPUTS[:50],)), goal)

    _, expected = torch.autograd.functional.hvp(loss, values, direction)
    got = problem.curvature(values, direction)
    assert torch.allclose(got, expected, rtol=1e-3, atol=1e-6)
    assert not problem.named(got)["0.weight"][~alive].any()
    moved = values + 0.1 * torch.randn_like(values)
    slope = torch.autograd.functional.jacobian(loss, moved)
    assert torch.allclose(problem.gradient(moved), slope, rtol=1e-3, atol=1e-6)
    assert problem.loss(moved) == pytest.approx(float(loss(moved)), rel=1e-4)


def test_the_divergence_falls_and_the_dead_stay_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "CURVATURE_SHARE", 1.0)
    teacher, student = tiny(), tiny()
    mask = torch.rand(8, 6) < 0.6
    weight_of(student[0]).mul_(mask)
    before = float(kl(student(INPUTS), teacher(INPUTS)).detach())
    gauss_newton(student, teacher, INPUTS)
    assert float(kl(student(INPUTS), teacher(INPUTS)).detach()) < 0.3 * before
    assert torch.equal(weight_of(student[0]) != 0, mask)


def test_a_perfect_student_is_left_alone_but_for_rounding() -> None:
    student = tiny()
    gauss_newton(student, tiny(), INPUTS)
    # Parameters in one vector lie elsewhere in memory, and some processors then add up in another order.
    pairs = zip(student.parameters(), tiny().parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in pairs)
    assert float(kl(student(INPUTS), tiny()(INPUTS)).detach()) < 1e-7


def test_too_few_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 10"):
        gauss_newton(tiny(), tiny(), INPUTS[:9])
