"""Gradual pruning: the goal is met whatever the time, the set of least divergence goes, zeros may regrow if allowed."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from delib.distillation import GradualPruning, Objective, Recipe, distill
from delib.distillation.pruning import CRITERIA
from delib.nn.divergence import mse
from delib.nn.layers import hold, weight_layers, weight_of


def pair() -> tuple[nn.Sequential, nn.Sequential]:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)).eval()
    return copy.deepcopy(teacher), teacher


def inputs(count: int, chance: torch.Generator) -> Tensor:
    return torch.randn(count, 8, generator=chance)


TEST = inputs(500, torch.Generator().manual_seed(9))
SQUARES = Objective(mse)
RECIPE = Recipe(steps=300, batch=32, rate=0.01)


def survivors(network: nn.Module) -> int:
    return sum(int(weight_of(m).count_nonzero()) for m in weight_layers(network).values())


@torch.no_grad()
def error(student: nn.Module, teacher: nn.Module) -> float:
    return float(mse(student(TEST), teacher(TEST)))


def pruned(pruning: GradualPruning, recipe: Recipe = RECIPE) -> tuple[nn.Module, float]:
    student, teacher = pair()
    distill(student, teacher, inputs, recipe, objective=SQUARES, during=pruning)
    return student, error(student, teacher)


@pytest.mark.parametrize("steps", [4, 61, 300])
def test_the_goal_is_met_to_the_weight(steps: int) -> None:
    pruning = GradualPruning(150, every=20)
    student, _ = pruned(pruning, replace(RECIPE, steps=steps))
    assert survivors(student) == pruning.cycles[-1].survivors == 150
    falls = [cycle.survivors for cycle in pruning.cycles]
    assert falls == sorted(falls, reverse=True)
    assert pruning.cycles[-1].step >= 0.75 * steps


@pytest.mark.parametrize("steps", [4, 61, 300])
def test_layers_with_goals_of_their_own_meet_them_to_the_weight(steps: int) -> None:
    goals = {"0": 200, "2": 90}
    pruning = GradualPruning(goals, every=20)
    student, _ = pruned(pruning, replace(RECIPE, steps=steps))
    assert {n: int(weight_of(m).count_nonzero()) for n, m in weight_layers(student).items()} == goals | {"4": 96}
    falls = [cycle.survivors for cycle in pruning.cycles]
    assert falls == sorted(falls, reverse=True) and falls[-1] == 200 + 90 + 96
    assert len(falls) == 1 or falls[0] > falls[-1], "gradually"


def test_weights_compete_within_their_layer_where_it_has_a_goal() -> None:
    """At once, by magnitude alone: the reference is each layer's largest weights in units of their outputs."""
    teacher = pair()[1]
    pruning = GradualPruning({"0": 100, "2": 300}, until=1e-9, every=1, criteria={"m": CRITERIA["magnitude"]})
    student, _ = pruned(pruning, replace(RECIPE, steps=2, rate=0.0))
    for name, many in (("0", 100), ("2", 300)):
        weight = weight_of(teacher.get_submodule(name))
        sizes = weight.abs() / weight.square().mean(1, keepdim=True).sqrt()
        assert torch.equal(weight_of(student.get_submodule(name)) != 0, sizes >= sizes.flatten().topk(many).values[-1])


def test_a_goal_for_a_layer_that_is_not_trained_is_refused_before_the_first_step() -> None:
    with pytest.raises(ValueError, match="no layer 'conv' is trained; survivors may be given for 0, 2, 4"):
        pruned(GradualPruning({"conv": 5}))


def test_time_that_runs_out_prunes_faster() -> None:
    student, _ = pruned(GradualPruning(150, every=5), replace(RECIPE, steps=10**6, minutes=0.02))
    assert survivors(student) == 150


def test_the_set_of_least_divergence_goes() -> None:
    worst = {"worst": lambda value, gradient: -value.square() * gradient}
    pruning = GradualPruning(150, every=20, criteria=worst | CRITERIA)
    pruned(pruning)
    assert all(c.chosen == min(c.divergences, key=c.divergences.__getitem__) for c in pruning.cycles)
    assert not any(c.chosen == "worst" for c in pruning.cycles)
    assert all(c.divergences["worst"] > c.divergences[c.chosen] for c in pruning.cycles)


def test_pruning_while_training_beats_magnitude_at_once() -> None:
    """The reference: the 150 largest weights of the teacher in units of their rows, then as many steps with them."""
    student, teacher = pair()
    sizes = {n: weight_of(m).square().mean(1, keepdim=True).sqrt() for n, m in weight_layers(student).items()}
    saliency = {n: weight_of(m).abs() / sizes[n] for n, m in weight_layers(student).items()}
    least = torch.cat([each.flatten() for each in saliency.values()]).topk(150).values.min()
    hold(student, {n: each >= least for n, each in saliency.items()})
    distill(student, teacher, inputs, RECIPE, objective=SQUARES)
    assert survivors(student) == 150
    assert pruned(GradualPruning(150, every=20))[1] < 0.8 * error(student, teacher)


def test_zeros_stay_but_those_that_may_regrow_compete() -> None:
    torch.manual_seed(1)
    dead = {n: torch.rand_like(weight_of(m)) < 0.5 for n, m in weight_layers(pair()[0]).items()}
    regrowth = {"2": dead["2"] & (torch.rand(32, 32) < 0.5)}
    student, teacher = pair()
    hold(student, {name: ~mask for name, mask in dead.items()})
    pruning = GradualPruning(150, every=20, regrowth=regrowth)
    distill(student, teacher, inputs, RECIPE, objective=SQUARES, during=pruning)
    alive = {n: weight_of(m) != 0 for n, m in weight_layers(student).items()}
    assert survivors(student) == 150
    assert (alive["2"] & regrowth["2"]).any()
    dead["2"] &= ~regrowth["2"]
    assert not any((alive[name] & mask).any() for name, mask in dead.items())


def test_layers_that_are_not_trained_are_not_pruned() -> None:
    student, teacher = pair()
    objective = replace(SQUARES, frozen=["0", "1"])
    distill(student, teacher, inputs, RECIPE, objective=objective, during=GradualPruning(100, every=20))
    assert torch.equal(student[0].weight, teacher[0].weight)
    assert survivors(student[2:]) == 100
