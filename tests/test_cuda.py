"""On a GPU the same comes out as on a processor: candidate sets, divergences, thinned and rounded students."""

import copy

import pytest
import torch
from torch import Tensor, nn

from delib.distillation.distill import distil
from delib.distillation.fake_quantize import Rounding
from delib.distillation.pruning import Thinning
from delib.evolution.criteria import activation, hessian
from delib.evolution.evolve import evolve
from delib.layerwise.compress import quantize
from delib.nn.divergence import mse
from delib.nn.layers import weight_layers, weight_of

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
        settings = {"population": 4, "criterion": criterion, "divergence": mse, "progress": False}
        ends[device] = evolve(teacher(device), INPUTS.to(device), 0.8, **settings)
    same = [(ends["cuda"].masks[name].cpu() == mask).float().mean() for name, mask in ends["cpu"].masks.items()]
    assert min(same) > 0.98  # sums in another order may turn a close contest
    assert quantize(ends["cuda"].student, 4).bits == 4


def test_a_student_is_thinned_and_rounded_as_on_a_processor() -> None:
    errors = {}
    for device in ("cpu", "cuda"):
        whole = teacher(device)
        student = copy.deepcopy(whole)
        masks = {n: torch.ones_like(weight_of(m), dtype=torch.bool) for n, m in weight_layers(student).items()}
        common = {"inputs": lambda n, c, device=device: inputs(n, c).to(device), "steps": 200, "divergence": mse}
        common |= {"progress": False, "features": ["1", "3"], "rate": 0.01, "batch": 32}
        common |= {"recorded": device == "cuda"}
        distil(student, whole, masks, 0, thinning=Thinning(300, every=20), **common)
        masks = {n: weight_of(m) != 0 for n, m in weight_layers(student).items()}
        rounding = Rounding(3)
        distil(student, whole, masks, 1, rounding=rounding, **common)
        assert sum(int(mask.sum()) for mask in masks.values()) == 300
        assert all(len(tensor.codebook) <= 8 for tensor in rounding.tensors(student).values())
        with rounding.applied(student), torch.no_grad():
            errors[device] = float(mse(student(INPUTS.to(device)), whole(INPUTS.to(device))))
    assert errors["cuda"] == pytest.approx(errors["cpu"], rel=0.3)
