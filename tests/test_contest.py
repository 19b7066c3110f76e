"""The compensated contest against brute force, nesting, and what the cycle makes of them."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from delib.distillation.gauss_newton import newton
from delib.evolution.assess import Suffix
from delib.evolution.criteria import CRITERIA, Site, admm, hessian, magnitude, obs
from delib.evolution.evolve import evolve
from delib.evolution.population import agreed, propose
from delib.evolution.select import compensated, growing, prescreen, revive
from delib.layerwise.reconstruct import moments, refit
from delib.nn.divergence import kl, mse, soft_kl
from delib.nn.layers import bias_of, matrix_of, predict, put_matrix, weight_layers, weight_of, with_bias
from delib.nn.sensitivity import importance, sensitivities


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
        lambda: importance(network, layer, INPUTS, soft_kl),
    )


def test_importance_is_the_diagonal_of_the_hessian() -> None:
    network = tiny()
    middle = network[:3](INPUTS).detach()
    goal = network(INPUTS).detach()
    tail = network[3:]
    expected = torch.zeros(5)
    for z, t in zip(middle, goal, strict=True):
        full = torch.autograd.functional.hessian(lambda z, t=t: soft_kl(tail(z)[None], t[None]), z)
        expected += full.diagonal() / len(middle) ** 2  # the mean over inputs of the divergence, which is itself a mean
    got = torch.stack([importance(network, network[2], INPUTS, soft_kl, seed) for seed in range(20)]).mean(0)
    assert torch.allclose(got, expected.clamp_min(1e-3 * expected.max()), rtol=0.15, atol=0.02 * float(expected.max()))


def test_a_divergence_without_curvature_makes_all_rows_alike() -> None:
    network = tiny()
    assert (importance(network, network[2], INPUTS, lambda s, t: (s - t).abs().max()) == 1).all()
    with pytest.raises(ValueError, match="never called"):
        importance(network, nn.Linear(2, 2), INPUTS, kl)


def test_sensitivities_are_the_squared_jacobian() -> None:
    """By mean squared error, whose curvature is the same for each output; all layers in one pass."""
    network = tiny()
    layers = {name: network[int(name)] for name in "02"}
    got = [sensitivities(network, layers, INPUTS, mse, seed) for seed in range(40)]
    for name in layers:
        tail = network[int(name) + 1 :]
        middle = network[: int(name) + 1](INPUTS).detach()
        slopes = torch.stack([torch.autograd.functional.jacobian(tail, z) for z in middle])  # [n, outputs, rows]
        expected = slopes.square().sum(1).mean(0)
        mean = torch.stack([rows[name] for rows in got]).mean(0)
        assert torch.allclose(mean / mean.sum(), expected / expected.sum(), rtol=0.1, atol=0.003)


def test_sensitivities_of_a_convolution_used_twice_and_of_several_answers() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            first = self.conv(x)
            return [first, self.conv(first.tanh())]

    torch.manual_seed(0)
    network, inputs = Twice().eval(), torch.randn(3, 2, 4, 4)
    divergence = lambda ours, theirs: sum(w * mse(a, b) for w, a, b in zip((1.0, 3.0), ours, theirs, strict=True))  # noqa: E731
    got = torch.stack(
        [sensitivities(network, {"conv": network.conv}, inputs, divergence, s)["conv"] for s in range(60)]
    )
    expected = torch.zeros(2)
    for x in inputs:
        first = network.conv(x[None]).detach()
        tail = torch.autograd.functional.jacobian(lambda z: network.conv(z.tanh()), first).view(32, 2, 16)
        expected += 3 * tail.square().sum((0, 2)) + 16 + 3 * 16  # behind the first call, itself, and the second one
    mean = got.mean(0)
    assert torch.allclose(mean / mean.sum(), expected / expected.sum(), rtol=0.1)
    with pytest.raises(ValueError, match="never calls layer 'other'"):
        sensitivities(network, {"other": nn.Linear(2, 2)}, inputs, divergence)


def test_the_prescreen_keeps_the_incumbent_and_the_least_errors() -> None:
    network = tiny()
    site = site_of(network)
    sets = torch.stack([torch.randperm(40, generator=chance(i))[:20] for i in range(12)])
    entries = prescreen(site, sets, 4)
    errors = []
    for dead in sets:
        fitted = refit(site.moments, site.support(dead), matrix_of(network[2]))
        trial = copy.deepcopy(network)
        put_matrix(trial[2], fitted)
        difference = (trial[:3](INPUTS) - network[:3](INPUTS)).square().sum(0)
        errors.append(float((difference * site.importance).sum()))
    assert torch.equal(entries[0].dead, sets[0])
    assert entries[0].error == pytest.approx(errors[0], rel=1e-3)
    assert [e.error for e in entries[1:]] == pytest.approx(sorted(errors[1:])[:3], rel=1e-3)


def test_the_winner_is_the_least_divergent_finalist_when_all_inputs_are_seen() -> None:
    network, site = tiny(), site_of(tiny())
    sets = torch.stack([torch.randperm(40, generator=chance(i))[:20] for i in range(12)])
    rounds = growing(INPUTS, network, 1000, chance())
    part, goal = next(rounds)
    with Suffix(network, network[2], part) as suffix:
        before = matrix_of(network[2])
        best, measured = compensated(site, sets, suffix, goal, rounds, kl)
    assert torch.equal(matrix_of(network[2]), before)
    divergences = {}
    for entry in prescreen(site, sets, 4):
        trial = copy.deepcopy(network)
        put_matrix(trial[2], entry.matrix)
        divergences[tuple(entry.dead.tolist())] = float(kl(predict(trial, INPUTS), predict(network, INPUTS)).detach())
    assert divergences[tuple(best.tolist())] == pytest.approx(min(divergences.values()), rel=1e-4)
    assert measured.tolist() == pytest.approx(list(divergences.values()), rel=1e-3)


def test_rounds_are_fresh_and_grow() -> None:
    rounds = growing(INPUTS, tiny(), 50, chance())
    sizes, firsts = zip(*[(len(part), part[0].tolist()) for part, _ in (next(rounds) for _ in range(4))], strict=True)
    assert sizes == (50, 100, 200, 200)
    assert firsts[0] != firsts[1]


def test_the_incumbent_comes_first_and_criteria_share_the_population() -> None:
    site = site_of(tiny())
    sets = list(propose(site, [magnitude, obs], 10, 7, 0.5, chance(), incumbent=True))
    assert [s.shape for s in sets] == [(10,)] * 7
    assert set(sets[0].tolist()) == set(site.weight.abs().flatten().argsort()[:10].tolist())
    assert len(list(propose(site, magnitude, 10, 1, 0.5, chance()))) == 1


def test_hessian_is_the_second_order_change_of_the_error_alone() -> None:
    network = tiny()
    site = site_of(network)
    j = 13
    trial = copy.deepcopy(network)
    weight_of(trial[2]).view(-1)[j] = 0
    change = (trial[:3](INPUTS) - network[:3](INPUTS)).square().sum(0)
    assert float(hessian(site).flatten()[j]) ** 2 == pytest.approx(float((change * site.importance).sum()), rel=1e-3)


def test_obs_prices_the_dead_by_what_their_revival_gains() -> None:
    student, teacher = tiny(), tiny(5)
    alive = torch.rand(5, 8, generator=chance()) < 0.6
    support = with_bias(alive, student[2])
    sums = moments(student, teacher, "2", INPUTS)
    fitted = refit(sums, support, matrix_of(student[2]), ridge=1e-10)
    put_matrix(student[2], fitted)
    site = Site(weight_of(student[2]), INPUTS, bias=bias_of(student[2]), measure_moments=lambda: sums)
    r, c = (~alive).nonzero()[0].tolist()
    revived = fitted.double()
    residual = sums.cross[r, c] - revived[r] @ sums.gram[0, c]
    revived[r, c] = residual / sums.gram[0, c, c]
    gain = (sums.error(fitted.double()) - sums.error(revived)).sum()
    assert float(obs(site)[r, c]) ** 2 == pytest.approx(float(gain), rel=1e-3)


def test_nesting_keeps_what_all_critics_agree_on() -> None:
    weight = torch.arange(1.0, 21.0).view(4, 5)
    site = Site(weight, torch.ones(3, 5))
    chosen = torch.tensor([0, 3, 12, 19])
    assert agreed(chosen, site, []).tolist() == chosen.tolist()
    assert agreed(chosen, site, [magnitude]).tolist() == [0, 3]  # the 8 smallest
    assert agreed(chosen, site, [magnitude, lambda s: -s.weight + 21], slack=4.5).tolist() == [3, 12]
    assert agreed(torch.tensor([18, 19]), site, [magnitude]).tolist() == [18, 19]  # no agreement: the set stands


@pytest.mark.parametrize("name", ["magnitude", "obs", "admm"])
def test_compensated_evolution_meets_its_targets_and_can_be_had_at_every_cycle(name: str) -> None:
    teacher = tiny()
    evolved = evolve(teacher, INPUTS, 0.7, population=4, share=0.4, criterion=CRITERIA[name], compensate=True)
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
    evolved = evolve(tiny(), INPUTS, 0.6, population=4, share=0.3, critics=[hessian, obs])
    plain = evolve(tiny(), INPUTS, 0.6, population=4, share=0.3)
    assert evolved.cycle >= plain.cycle
    assert [int((g > 0).sum()) for g in evolved.generations.values()] == [29, 24, 9]


def test_compensation_lowers_the_divergence() -> None:
    def end(**options: object) -> float:
        ends = [evolve(tiny(seed), INPUTS, 0.6, seed=seed, divergence=mse, **options) for seed in range(3)]
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
    options = {"population": 4, "share": 0.5, "criterion": [admm, obs], "compensate": True, "divergence": squares}
    recovery = partial(newton, inputs=images, divergence=squares)
    plain = evolve(teacher, images, 0.6, **options).student
    recovered = evolve(teacher, images, 0.6, recovery=recovery, **options).student
    for student in (plain, recovered):
        zeros = {name: int((weight_of(layer) == 0).sum()) for name, layer in weight_layers(student).items()}
        assert zeros == {"a": 43, "b": 43, "head": 7}
    with torch.no_grad():
        ends = [float(squares(student(images), teacher(images))) for student in (recovered, plain)]
    assert ends[0] < ends[1]


def test_dead_weights_live_again_where_that_lowers_the_divergence() -> None:
    """Half of a layer is zeroed at random; what is revived makes the student nearer, at the same sparsity."""
    teacher = tiny()
    student = copy.deepcopy(teacher)
    alive = torch.rand(5, 8, generator=chance(3)) < 0.5
    site = site_of(student)
    site.moments = moments(student, teacher, "2", INPUTS)
    put_matrix(student[2], refit(site.moments, with_bias(alive, student[2]), site.matrix()))
    site = site.after(weight_of(student[2]), bias_of(student[2]), alive)
    before = float(mse(predict(student, INPUTS), predict(teacher, INPUTS)))
    rounds = growing(INPUTS, teacher, len(INPUTS), chance())
    with Suffix(student, student[2], INPUTS) as suffix:
        swap = revive(site, 4, suffix, rounds, mse)
        assert swap is not None
        assert revive(site, 0, suffix, rounds, mse) is None
    born, dying = swap
    assert len(born) == len(dying) <= 4
    assert not alive.flatten()[born].any()
    assert alive.flatten()[dying].all()
    assert (weight_of(student[2]).flatten()[dying] == 0).all()
    assert (weight_of(student[2]).flatten()[born] != 0).all()
    assert int((weight_of(student[2]) == 0).sum()) == int((~alive).sum())
    assert float(mse(predict(student, INPUTS), predict(teacher, INPUTS))) < before


def test_evolution_with_revival_meets_its_goals_and_every_cycle_can_be_had_again() -> None:
    options = {"criterion": obs, "compensate": True, "share": 0.3, "population": 3, "divergence": soft_kl, "batch": 50}
    evolved = evolve(tiny(), INPUTS, {"0": 0.7, "2": 0.6}, revival=0.5, progress=False, **options)
    plain = evolve(tiny(), INPUTS, {"0": 0.7, "2": 0.6}, progress=False, **options)
    assert any(not torch.equal(evolved.masks[name], plain.masks[name]) for name in ("0", "2")), "something was revived"
    for cycle in range(evolved.cycle + 1):
        zeros = sum(int((weight_of(evolved.at_cycle(cycle).get_submodule(n)) == 0).sum()) for n in ("0", "2"))
        assert zeros / 88 == pytest.approx(evolved.sparsities[cycle])
    assert [evolved.zeros(name) for name in ("0", "2")] == [round(0.7 * 48), round(0.6 * 40)]
    last = evolved.at_cycle(evolved.cycle).state_dict()
    assert all(torch.equal(value, last[name]) for name, value in evolved.student.state_dict().items())
