"""The Gauss-Newton recovery against closed forms."""

import copy

import pytest
import torch
from torch import nn

from delib.distillation.gauss_newton import _Problem, newton
from delib.nn.divergence import kl, mse, soft_kl
from delib.nn.layers import weight_of

INPUTS = torch.randn(200, 6, generator=torch.Generator().manual_seed(1))


def tiny(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).eval()


def test_one_step_on_a_linear_network_is_least_squares() -> None:
    torch.manual_seed(0)
    student, teacher = nn.Sequential(nn.Linear(6, 3)).eval(), nn.Sequential(nn.Linear(6, 3)).eval()
    mask = torch.rand(3, 6) < 0.5
    weight_of(student[0]).mul_(mask)
    newton(
        student, teacher, {"0": mask}, inputs=INPUTS, steps=1, iterations=100, damping=0.0, curved=1.0, divergence=mse
    )
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
def test_products_are_those_of_the_full_matrices(divergence) -> None:
    """At a student equal to the teacher the residual vanishes and Gauss-Newton is the full Hessian."""
    network = tiny()
    values = {name: p.detach().clone() for name, p in network.named_parameters()}
    free = {name: torch.ones_like(v) for name, v in values.items()}
    problem = _Problem(network, copy.deepcopy(network), INPUTS[:50], 20, divergence, free)
    direction = {name: torch.randn_like(v) for name, v in values.items()}

    def loss(*tensors: torch.Tensor) -> torch.Tensor:
        outputs = torch.func.functional_call(network, dict(zip(values, tensors, strict=True)), (INPUTS[:50],))
        return divergence(outputs, network(INPUTS[:50]).detach())

    _, expected = torch.autograd.functional.hvp(loss, tuple(values.values()), tuple(direction.values()))
    got = problem.curvature(values, direction)
    for product, name in zip(expected, values, strict=True):
        assert torch.allclose(got[name], product, rtol=1e-3, atol=1e-6)


def test_the_divergence_falls_and_the_dead_stay_dead() -> None:
    teacher, student = tiny(), tiny()
    mask = torch.rand(8, 6) < 0.6
    weight_of(student[0]).mul_(mask)
    before = float(kl(student(INPUTS), teacher(INPUTS)).detach())
    newton(student, teacher, {"0": mask}, inputs=INPUTS, curved=1.0)
    assert float(kl(student(INPUTS), teacher(INPUTS)).detach()) < 0.3 * before
    assert torch.equal(weight_of(student[0]) != 0, mask)


def test_a_perfect_student_is_left_alone() -> None:
    student = tiny()
    newton(student, tiny(), {}, inputs=INPUTS)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), tiny().parameters(), strict=True))


def test_too_few_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 10"):
        newton(tiny(), tiny(), {}, inputs=INPUTS[:9])
