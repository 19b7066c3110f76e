"""On a GPU the same comes out as on a processor: candidate sets, divergences, pruned and quantised students."""

import copy
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from delib.distillation import FakeQuantization, GradualPruning, Objective, Recipe, distill
from delib.evolution.criteria import activation, hessian
from delib.evolution.evolve import Cycle, evolve
from delib.layerwise.compress import quantize
from delib.nn import checkpoint
from delib.nn.divergence import mse
from delib.nn.layers import hold, weight_layers, weight_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def teacher(device: str) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)
    return nn.Sequential(*layers).eval().to(device)


def inputs(count: int, chance: torch.Generator) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=chance)


INPUTS = inputs(64, torch.Generator().manual_seed(9))


@pytest.mark.parametrize("criterion", [activation, hessian])
def test_evolution_zeroes_the_same_weights(criterion: object) -> None:
    ends = {}
    for device in ("cpu", "cuda"):
        cycle = Cycle(population=4, criterion=criterion)
        ends[device] = evolve(teacher(device), INPUTS.to(device), 0.8, cycle, divergence=mse)
    same = [(ends["cuda"].masks[name].cpu() == mask).float().mean() for name, mask in ends["cpu"].masks.items()]
    assert min(same) > 0.98  # sums in another order may turn a close contest
    assert quantize(ends["cuda"].student, 4).bits == 4


def test_a_student_is_pruned_and_quantised_as_on_a_processor() -> None:
    errors = {}
    recipe, objective = Recipe(steps=200, batch=32, rate=0.01), Objective(mse, features=["1", "3"])
    for device in ("cpu", "cuda"):
        whole = teacher(device)
        student, source = copy.deepcopy(whole), lambda n, chance, device=device: inputs(n, chance).to(device)
        distill(student, whole, source, recipe, objective=objective, during=GradualPruning(300, every=20))
        fake = FakeQuantization(3)
        distill(student, whole, source, recipe, objective=objective, during=fake, seed=1)
        assert sum(int(weight_of(layer).count_nonzero()) for layer in weight_layers(student).values()) == 300
        assert all(len(tensor.codebook) <= 8 for tensor in fake.tensors(student).values())
        with fake.applied(student), torch.no_grad():
            errors[device] = float(mse(student(INPUTS.to(device)), whole(INPUTS.to(device))))
    assert errors["cuda"] == pytest.approx(errors["cpu"], rel=0.3)


calls: dict[str, Any] = {"made": 0, "stop": 0, "device": "cpu"}


def stopping(student: Tensor, goal: Tensor) -> Tensor:
    calls["made"] += 1
    if calls["made"] > calls["stop"]:
        raise KeyboardInterrupt
    return mse(student, goal)


def inputs_there(count: int, chance: torch.Generator) -> Tensor:
    return inputs(count, chance).to(calls["device"])


def test_a_distillation_goes_on_on_another_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SAVE", 0.0)
    ends = {}
    for devices in (("cpu", "cpu"), ("cuda", "cpu"), ("cpu", "cuda")):
        for device, stop in zip(devices, (50, math.inf), strict=True):
            whole = teacher(device)
            calls.update(made=0, stop=stop, device=device)
            student = copy.deepcopy(whole)
            hold(student, {"0": weight_of(student[0]) > 0})
            with suppress(KeyboardInterrupt):
                settings = {"objective": Objective(stopping), "checkpoint": tmp_path / "-".join(devices)}
                distill(student, whole, inputs_there, Recipe(steps=100, batch=32, rate=0.01), **settings)
        with torch.no_grad():
            ends[devices] = float(mse(student(INPUTS.to(device)), whole(INPUTS.to(device))))
    assert max(ends.values()) == pytest.approx(min(ends.values()), rel=0.3)
