"""Selection with refitted survivors against brute force, regrowth, and what the cycle makes of them."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from delib.distillation import gauss_newton
from delib.evolution.criteria import CRITERIA, Site, admm, hessian, magnitude, obs
from delib.evolution.evolve import Cycle, evolve
from delib.evolution.select import better_half, finalists, growing_batches, least_divergent_refitted, regrow, trial_on
from delib.layerwise.reconstruct import moments, reconstruct
from delib.nn.divergence import kl, mse, soft_kl
from delib.nn.layers import bias_of, matrix_of, predict, put_matrix, weight_layers, weight_of, with_bias
from delib.nn.sensitivity import sensitivity


def tiny(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


INPUTS = torch.randn(200, 6, generator=torch.Generator().manual_seed(1))


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def site_of(network: nn.Sequential, survivors: int = 20) -> Site:
    layer = network[2]
    return Site(
        weight_of(layer).clone(),
        INPUTS,
        None,
        survivors,
        bias_of(layer),
        lambda: moments(network, network, "2", INPUTS),
        lambda: sensitivity(network, layer, INPUTS, soft_kl),
    )


def test_the_finalists_are_the_incumbent_and_those_of_least_error() -> None:
    network = tiny()
    site = site_of(network)
    sets = torch.stack([torch.randperm(40, generator=chance(i))[:20] for i in range(12)])
    rivals = finalists(sets, site, 4)
    errors = []
    for dead in sets:
        fitted = reconstruct(site.moments, site.support(dead), matrix_of(network[2]))
        trial = copy.deepcopy(network)
        put_matrix(trial[2], fitted)
        difference = (trial[:3](INPUTS) - network[:3](INPUTS)).square().sum(0)
        errors.append(float((difference * site.sensitivity).sum()))
    assert torch.equal(rivals[0].dead, sets[0])
    assert rivals[0].error == pytest.approx(errors[0], rel=1e-3)
    assert [e.error for e in rivals[1:]] == pytest.approx(sorted(errors[1:])[:3], rel=1e-3)


def test_the_winner_is_the_least_divergent_finalist_when_all_inputs_are_seen() -> None:
    network, site = tiny(), site_of(tiny())
    sets = torch.stack([torch.randperm(40, generator=chance(i))[:20] for i in range(12)])
    batches = growing_batches(INPUTS, network, 1000, chance())
    before = matrix_of(network[2])
    with trial_on(network, network[2], batches, kl) as trial:
        best, measured = least_divergent_refitted(sets, site, trial)
    assert torch.equal(matrix_of(network[2]), before)
    divergences = {}
    for rival in finalists(sets, site, 4):
        student = copy.deepcopy(network)
        put_matrix(student[2], rival.matrix)
        divergences[tuple(rival.dead.tolist())] = float(kl(predict(student, INPUTS), predict(network, INPUTS)).detach())
    assert divergences[tuple(best.tolist())] == pytest.approx(min(divergences.values()), rel=1e-4)
    assert measured.tolist() == pytest.approx(list(divergences.values()), rel=1e-3)


def test_batches_are_fresh_and_grow() -> None:
    batches = growing_batches(INPUTS, tiny(), 50, chance())
    sizes, firsts = zip(*[(len(part), part[0].tolist()) for part, _ in (next(batches) for _ in range(4))], strict=True)
    assert sizes == (50, 100, 200, 200)
    assert firsts[0] != firsts[1]


def test_the_better_half_keeps_its_order_and_the_earlier_of_equals() -> None:
    assert better_half("abcde", [3.0, 1.0, 2.0, 0.5, 9.0]) == ["b", "d"]
    assert better_half("ab", [1.0, 1.0]) == ["a"]
    assert better_half("a", [1.0]) == ["a"]


@pytest.mark.parametrize("name", ["magnitude", "obs", "admm"])
def test_compensated_evolution_meets_its_targets_and_can_be_had_at_every_cycle(name: str) -> None:
    teacher = tiny()
    evolved = evolve(teacher, INPUTS, 0.7, Cycle(population=4, share=0.4, criterion=CRITERIA[name], compensate=True))
    for layer, generation in evolved.generations.items():
        assert torch.equal(weight_of(evolved.student.get_submodule(layer)) == 0, generation > 0)
        assert int((generation > 0).sum()) == round(0.7 * generation.numel())
    for cycle in range(evolved.cycle + 1):
        network = evolved.at_cycle(cycle)
        for layer, module in weight_layers(network).items():
            generation = evolved.generations[layer]
            assert torch.equal(weight_of(module) == 0, (generation > 0) & (generation <= cycle))
    assert torch.equal(evolved.at_cycle(evolved.cycle)(INPUTS), evolved.student(INPUTS))


def test_critics_hold_a_cycle_back_but_the_targets_are_met() -> None:
    evolved = evolve(tiny(), INPUTS, 0.6, Cycle(population=4, share=0.3, critics=[hessian, obs]))
    plain = evolve(tiny(), INPUTS, 0.6, Cycle(population=4, share=0.3))
    assert evolved.cycle >= plain.cycle
    assert [int((g > 0).sum()) for g in evolved.generations.values()] == [29, 24, 9]


def test_compensation_lowers_the_divergence() -> None:
    def end(**options: object) -> float:
        ends = [evolve(tiny(seed), INPUTS, 0.6, Cycle(**options), seed=seed, divergence=mse) for seed in range(3)]
        return sum(float(mse(e.student(INPUTS), tiny(s)(INPUTS)).detach()) for s, e in enumerate(ends))

    fitted = end(criterion=admm, compensate=True, share=1.0, population=4)
    assert fitted < 0.5 * end(criterion=magnitude)
    assert fitted == end(criterion=admm, compensate=True, share=1.0, population=4)


def test_compensation_works_on_convolutions_with_groups_skips_and_several_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1, groups=2)
            self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            x = self.norm(self.a(x)).relu()
            return [self.head((x + self.b(x)).mean((2, 3))), x]

    def squares(student: list[torch.Tensor], teacher: list[torch.Tensor]) -> torch.Tensor:
        return mse(student[0], teacher[0]) + mse(student[1], teacher[1])

    torch.manual_seed(0)
    teacher, images = Two().eval(), torch.randn(40, 2, 6, 6)
    cycle = Cycle(population=4, share=0.5, criterion=[admm, obs], compensate=True)
    recovery = partial(gauss_newton, inputs=images, divergence=squares)
    plain = evolve(teacher, images, 0.6, cycle, divergence=squares).student
    recovered = evolve(teacher, images, 0.6, cycle, divergence=squares, recovery=recovery).student
    for student in (plain, recovered):
        zeros = {name: int((weight_of(layer) == 0).sum()) for name, layer in weight_layers(student).items()}
        assert zeros == {"a": 43, "b": 43, "head": 7}
    with torch.no_grad():
        ends = [float(squares(student(images), teacher(images))) for student in (recovered, plain)]
    assert ends[0] < ends[1]


def test_dead_weights_live_again_where_that_lowers_the_divergence() -> None:
    """Half of a layer is zeroed at random; what is regrown makes the student nearer, at the same sparsity."""
    teacher = tiny()
    student = copy.deepcopy(teacher)
    alive = torch.rand(5, 8, generator=chance(3)) < 0.5
    site = site_of(student)
    site.moments = moments(student, teacher, "2", INPUTS)
    put_matrix(student[2], reconstruct(site.moments, with_bias(alive, student[2]), site.matrix()))
    site = site.after(weight_of(student[2]), bias_of(student[2]), alive)
    before = float(mse(predict(student, INPUTS), predict(teacher, INPUTS)))
    batches = growing_batches(INPUTS, teacher, len(INPUTS), chance())
    with trial_on(student, student[2], batches, mse) as trial:
        swap = regrow(site, 4, trial)
        assert swap is not None
        assert regrow(site, 0, trial) is None
    born, dying = swap
    assert len(born) == len(dying) <= 4
    assert not alive.flatten()[born].any()
    assert alive.flatten()[dying].all()
    assert (weight_of(student[2]).flatten()[dying] == 0).all()
    assert (weight_of(student[2]).flatten()[born] != 0).all()
    assert int((weight_of(student[2]) == 0).sum()) == int((~alive).sum())
    assert float(mse(predict(student, INPUTS), predict(teacher, INPUTS))) < before


def test_evolution_with_regrowth_meets_its_goals_and_every_cycle_can_be_had_again() -> None:
    goals, cycle = {"0": 0.7, "2": 0.6}, Cycle(criterion=obs, compensate=True, share=0.3, population=3, batch=50)
    evolved = evolve(tiny(), INPUTS, goals, replace(cycle, regrowth=0.5), divergence=soft_kl)
    plain = evolve(tiny(), INPUTS, goals, cycle, divergence=soft_kl)
    assert any(not torch.equal(evolved.masks[name], plain.masks[name]) for name in ("0", "2")), "something was regrown"
    for cycle in range(evolved.cycle + 1):
        zeros = sum(int((weight_of(evolved.at_cycle(cycle).get_submodule(n)) == 0).sum()) for n in ("0", "2"))
        assert zeros / 88 == pytest.approx(evolved.sparsities[cycle])
    assert [evolved.zeros(name) for name in ("0", "2")] == [round(0.7 * 48), round(0.6 * 40)]
    last = evolved.at_cycle(evolved.cycle).state_dict()
    assert all(torch.equal(value, last[name]) for name, value in evolved.student.state_dict().items())
