"""Thinning: the goal is met whatever the time, the set missed least goes, cut-off work comes to the same end."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from delib.distillation.distill import distil
from delib.distillation.fake_quantize import Rounding
from delib.distillation.pruning import CRITERIA, Thinning
from delib.nn.divergence import mse
from delib.nn.layers import weight_layers, weight_of


def pair() -> tuple[nn.Sequential, nn.Sequential, dict[str, Tensor]]:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)).eval()
    student = copy.deepcopy(teacher)
    return (
        student,
        teacher,
        {n: torch.ones_like(weight_of(m), dtype=torch.bool) for n, m in weight_layers(student).items()},
    )


def inputs(count: int, chance: torch.Generator) -> Tensor:
    return torch.randn(count, 8, generator=chance)


TEST = inputs(500, torch.Generator().manual_seed(9))
COMMON = {"inputs": inputs, "divergence": mse, "batch": 32, "rate": 0.01, "progress": False}


def survivors(network: nn.Module) -> int:
    return sum(int(weight_of(m).count_nonzero()) for m in weight_layers(network).values())


@torch.no_grad()
def error(student: nn.Module, teacher: nn.Module) -> float:
    return float(mse(student(TEST), teacher(TEST)))


def thinned(thinning: Thinning, steps: int = 300, **more: object) -> tuple[nn.Module, float]:
    student, teacher, masks = pair()
    distil(student, teacher, masks, 0, steps=steps, thinning=thinning, **COMMON, **more)
    return student, error(student, teacher)


@pytest.mark.parametrize("steps", [4, 61, 300])
def test_the_goal_is_met_to_the_weight(steps: int) -> None:
    thinning = Thinning(150, every=20)
    student, _ = thinned(thinning, steps)
    assert survivors(student) == thinning.cycles[-1].survivors == 150
    falls = [cycle.survivors for cycle in thinning.cycles]
    assert falls == sorted(falls, reverse=True)


def test_time_that_runs_out_thins_faster() -> None:
    student, _ = thinned(Thinning(150, every=5), 10**6, minutes=0.01)
    assert survivors(student) == 150


def test_the_set_that_is_missed_least_goes() -> None:
    worst = {"worst": lambda value, slope: -value.square() * slope}
    thinning = Thinning(150, every=20, criteria=worst | CRITERIA)
    thinned(thinning)
    assert all(c.chosen == min(c.divergences, key=c.divergences.__getitem__) for c in thinning.cycles)
    assert not any(c.chosen == "worst" for c in thinning.cycles)
    assert all(c.divergences["worst"] > c.divergences[c.chosen] for c in thinning.cycles)


def test_thinned_while_it_learns_beats_magnitude_at_once() -> None:
    """The reference: the 150 largest weights of the teacher in units of their rows, then as many steps with them."""
    student, teacher, _ = pair()
    sizes = {n: weight_of(m).square().mean(1, keepdim=True).sqrt() for n, m in weight_layers(student).items()}
    worth = {n: weight_of(m).abs() / sizes[n] for n, m in weight_layers(student).items()}
    least = torch.cat([w.flatten() for w in worth.values()]).topk(150).values.min()
    masks = {n: w >= least for n, w in worth.items()}
    distil(student, teacher, masks, 0, steps=300, **COMMON)
    assert survivors(student) == 150
    assert thinned(Thinning(150, every=20))[1] < 0.8 * error(student, teacher)


def test_interrupted_thinning_goes_on_to_the_same_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("delib.distillation.distill.SAVE", 0.0)
    whole, _ = thinned(Thinning(150, every=20), 200, uses=1)
    student, teacher, masks = pair()
    calls = 0

    def failing(s: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 130:
            raise KeyboardInterrupt
        return mse(s, t)

    for divergence in (failing, mse):
        thinning = Thinning(150, every=20)
        student, teacher, masks = pair()
        settings = COMMON | {"divergence": divergence, "checkpoint": tmp_path / "thin.ckpt"}
        try:
            distil(student, teacher, masks, 0, steps=200, thinning=thinning, **settings)
        except KeyboardInterrupt:
            continue
    assert len(thinning.cycles) == 8
    for a, b in zip(whole.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_thinning_while_rounding_is_refused() -> None:
    with pytest.raises(ValueError, match="thin the student first"):
        thinned(Thinning(150), rounding=Rounding(3))
