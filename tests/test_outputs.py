"""Evolution of outputs: against brute force, and that what is gone is gone for every layer behind it."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from delib.distillation import Objective, Recipe, distill
from delib.evolution import evolve_outputs
from delib.evolution.outputs import _zero_unread
from delib.nn import checkpoint, saved_to
from delib.nn.divergence import mse

INPUTS = torch.randn(150, 3, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def teacher() -> nn.Sequential:
    torch.manual_seed(0)
    convolutions = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=2), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*convolutions, nn.Linear(48, 10), nn.ReLU(), nn.Linear(10, 4)).eval()


def without(network: nn.Sequential, name: str, output: int) -> nn.Sequential:
    student = copy.deepcopy(network)
    with torch.no_grad():
        student.get_submodule(name).weight[output] = 0
        student.get_submodule(name).bias[output] = 0
    return student


@torch.no_grad()
def error(student: nn.Module, teacher: nn.Module) -> float:
    return float(mse(student(INPUTS), teacher(INPUTS)))


@pytest.mark.parametrize("name", ["0", "2", "5"])
def test_the_output_that_is_missed_least_goes_first(teacher: nn.Sequential, name: str) -> None:
    rows = len(teacher.get_submodule(name).weight)
    student = evolve_outputs(teacher, INPUTS, {name: rows - 1}, divergence=mse)
    best = min(range(rows), key=lambda output: error(without(teacher, name, output), teacher))
    layer = student.get_submodule(name)
    assert [i for i in range(rows) if not layer.weight[i].any()] == [best] and layer.bias[best] == 0
    assert error(student, without(teacher, name, best)) < 1e-12, "what read it is zeroed, and that changes nothing"


def test_goals_are_met_and_nothing_reads_what_is_gone(teacher: nn.Sequential) -> None:
    goals = {"0": 5, "2": 4, "5": 6}
    student = evolve_outputs(teacher, INPUTS, goals, share=0.3, divergence=mse)
    alive = {name: student.get_submodule(name).weight.flatten(1).any(1) for name in goals}
    assert {name: int(own.sum()) for name, own in alive.items()} == goals
    for name, own in alive.items():
        assert not student.get_submodule(name).bias[~own].any()
    convolved = student[2].weight  # 2 groups of 4 inputs and 6 outputs each
    for group in range(2):
        assert not convolved[6 * group : 6 * group + 6][:, ~alive["0"][4 * group : 4 * group + 4]].any()
    assert not student[5].weight.view(10, 12, 4)[:, ~alive["2"]].any()
    assert not student[7].weight[:, ~alive["5"]].any() and student[7].weight[:, alive["5"]].all()


def test_outputs_are_judged_anew_after_each_cycle(teacher: nn.Sequential) -> None:
    """Of two units that do the same work one can be spared; to lose both would be the worst."""
    with torch.no_grad():
        teacher[5].weight[1], teacher[5].bias[1] = teacher[5].weight[0], teacher[5].bias[0]
        teacher[7].weight[:, :2] = 30.0
        teacher[7].weight[:, 1] = -30.0 + 0.01 * torch.arange(4)
    student = evolve_outputs(teacher, INPUTS, {"5": 8}, share=0.05, divergence=mse)
    assert error(student, teacher) < error(without(teacher, "5", 0), teacher)


def test_what_a_recovery_does_to_the_dead_is_undone(teacher: nn.Sequential) -> None:
    seeds: list[int] = []

    def recovery(student: nn.Module, teacher: nn.Module, *, seed: int) -> None:
        assert torch.is_grad_enabled()
        seeds.append(seed)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter += 0.01

    student = evolve_outputs(teacher, INPUTS, {"5": 6}, share=0.2, divergence=mse, recovery=recovery, seed=3)
    alive = student[5].weight.any(1)
    assert seeds == [3, 4] and int(alive.sum()) == 6
    assert not student[5].bias[~alive].any() and not student[7].weight[:, ~alive].any()
    assert student[0].weight.allclose(teacher[0].weight + 0.02)


def test_the_same_seed_gives_the_same_student_and_the_teacher_is_left_as_it_was(teacher: nn.Sequential) -> None:
    before = copy.deepcopy(teacher.state_dict())
    students = [evolve_outputs(teacher, INPUTS, {"0": 4}, batch=40, divergence=mse, seed=5) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*(s.state_dict().values() for s in students), strict=True))
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in before.items())


def test_interrupted_work_goes_on_to_the_same_bits(
    teacher: nn.Sequential, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, stop = tmp_path / "log", tmp_path / "stop"

    def recovery(student: nn.Module, teacher: nn.Module, *, seed: int) -> None:
        distill(student, teacher, INPUTS, Recipe(5, batch=20), objective=Objective(mse), seed=seed)
        with log.open("a") as file:
            file.write(f"{seed} ")
        if seed == 2 and stop.exists():
            raise KeyboardInterrupt

    def evolved(folder: str) -> nn.Module:
        with saved_to(tmp_path / folder):
            return evolve_outputs(teacher, INPUTS, {"0": 4, "5": 5}, batch=60, divergence=mse, recovery=recovery)

    monkeypatch.setattr(checkpoint, "SAVE", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)
    straight = evolved("straight")
    stop.touch()
    with pytest.raises(KeyboardInterrupt):
        evolved("stopped")
    stop.unlink()
    resumed = evolved("stopped")
    assert log.read_text() == "0 1 2 0 1 2 2 ", "straight, interrupted, and from where it was"
    assert all(map(torch.equal, straight.state_dict().values(), resumed.state_dict().values()))


def test_a_weight_that_reads_something_once_stays() -> None:
    """The second input is not zero on one of the inputs alone, in the last part that is looked at."""
    layer = nn.Linear(3, 2)
    inputs = torch.zeros(150, 3)
    inputs[:, 0], inputs[149, 1] = 1.0, 1.0
    values = layer.weight.detach().clone()
    _zero_unread(nn.Sequential(layer), inputs)
    assert torch.equal(layer.weight, values * torch.tensor([1.0, 1.0, 0.0]))


@pytest.mark.parametrize(
    ("goals", "share", "said"),
    [
        ({"conv": 3}, 0.1, "no convolution or linear layer 'conv'; it has 0, 2, 5, 7"),
        ({"0": 9}, 0.1, "layer '0' has 8 outputs and can keep 1..8, got 9"),
        ({"0": 0}, 0.1, "got 0"),
        ({"0": 3}, 0.0, "share must lie above 0 and up to 1, got 0.0"),
    ],
)
def test_what_cannot_be_is_refused_by_name(teacher: nn.Sequential, goals: dict, share: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        evolve_outputs(teacher, INPUTS, goals, share=share)


class Odd(nn.Module):
    """A network with a layer that it never calls, and one whose weight it uses for something else as well."""

    def __init__(self, drawn: bool = False) -> None:
        super().__init__()
        self.drawn, self.used, self.idle, self.tied = drawn, nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tied(self.used(x)) @ self.tied.weight
        return x * torch.rand(()) if self.drawn else x


@pytest.mark.parametrize(
    ("network", "name", "said"),
    [
        (Odd(), "idle", "layer 'idle' is never called"),
        (Odd(drawn=True), "used", "answers differently each time"),
    ],
)
def test_networks_that_cannot_be_assessed_are_refused(network: nn.Module, name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        evolve_outputs(network, torch.randn(5, 4), {name: 2}, divergence=mse)


def test_a_weight_that_is_used_elsewhere_too_stays() -> None:
    torch.manual_seed(0)
    network, inputs = Odd(), torch.randn(50, 4)
    student = evolve_outputs(network, inputs, {"used": 2}, divergence=mse)
    assert not student.used.weight.any(1).all()
    assert torch.equal(student.tied.weight, network.tied.weight)
