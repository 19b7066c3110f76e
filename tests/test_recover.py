"""Recovery brings the student nearer to the teacher without waking a dead weight."""

import pytest
import torch
from torch import nn

from delib.distillation.distill import recover
from delib.nn.divergence import kl
from delib.nn.layers import weight_layers, weight_of


def pair() -> tuple[nn.Sequential, nn.Sequential, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    student = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    student.load_state_dict(teacher.state_dict())
    masks = {n: torch.rand_like(weight_of(m)) < 0.5 for n, m in weight_layers(student).items()}
    for name, mask in masks.items():
        weight_of(student.get_submodule(name)).mul_(mask)
    return student.eval(), teacher, masks


INPUTS = torch.randn(256, 6, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def divergence(student: nn.Module, teacher: nn.Module) -> float:
    return float(kl(student(INPUTS), teacher(INPUTS)))


def test_divergence_falls_and_masks_hold_after_every_step() -> None:
    student, teacher, masks = pair()
    before = divergence(student, teacher)
    seen = []

    def check(network: nn.Module) -> None:
        seen.append(all(bool((weight_of(network.get_submodule(n))[~m] == 0).all()) for n, m in masks.items()))

    recover(student, teacher, masks, 0, inputs=INPUTS, steps=200, batch=32, learning_rate=1e-2, after_step=check)
    assert len(seen) == 200
    assert all(seen)
    assert divergence(student, teacher) < 0.5 * before
    assert not student.training


def test_the_same_seed_recovers_alike_and_the_teacher_does_not_move() -> None:
    results = []
    for _ in range(2):
        student, teacher, masks = pair()
        before = {n: t.clone() for n, t in teacher.state_dict().items()}
        recover(student, teacher, masks, 7, inputs=INPUTS, steps=10)
        assert all(torch.equal(before[n], t) for n, t in teacher.state_dict().items())
        results.append(student.state_dict())
    assert all(torch.equal(results[0][n], results[1][n]) for n in results[0])


def test_no_inputs_is_said() -> None:
    student, teacher, masks = pair()
    with pytest.raises(ValueError, match="got none"):
        recover(student, teacher, masks, 0, inputs=INPUTS[:0])


def test_recovery_that_leads_astray_on_the_validation_inputs_is_undone() -> None:
    student, teacher, masks = pair()
    before = {n: t.clone() for n, t in student.state_dict().items()}
    count = 0

    def spoil(network: nn.Module) -> None:
        nonlocal count
        count += 1
        for name, mask in masks.items():
            weight_of(network.get_submodule(name)).add_(mask * 1.0)

    options = {"inputs": INPUTS[:128], "validation": INPUTS[128:], "every": 5, "patience": 3}
    recover(student, teacher, masks, 0, steps=500, after_step=spoil, **options)
    assert count == 15  # three looks, none better than the start
    assert all(torch.equal(before[n], t) for n, t in student.state_dict().items())


def test_early_stopping_keeps_the_least_divergent_student_of_those_it_looked_at() -> None:
    student, teacher, masks = pair()
    apart = INPUTS[128:]
    seen = []

    def watch(network: nn.Module) -> None:
        with torch.no_grad():
            seen.append(float(kl(network(apart), teacher(apart), 2.0)))

    options = {"inputs": INPUTS[:32], "validation": apart, "every": 1, "patience": 1000}
    recover(student, teacher, masks, 0, steps=300, batch=8, learning_rate=5e-2, after_step=watch, **options)
    with torch.no_grad():
        assert float(kl(student(apart), teacher(apart), 2.0)) == pytest.approx(min(seen))
    assert min(seen) < seen[-1]
