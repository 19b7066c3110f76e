"""The cycle against brute force on tiny networks: what it chooses, what it keeps, where it stops."""

import copy
from dataclasses import replace
from functools import partial
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from delib.coding.container import encode
from delib.distillation import Recipe, distill
from delib.evolution.check import zero_goals
from delib.evolution.criteria import CRITERIA
from delib.evolution.evolve import Cycle, evolve
from delib.layerwise.compress import quantize
from delib.nn.divergence import DIVERGENCES, Divergence, kl, mse
from delib.nn.layers import sparsity, weight_layers, weight_of


def tiny(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


INPUTS = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))


def population_of(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Collects every population that the evolution draws from now on."""
    module = import_module("delib.evolution.evolve")  # the wing hands on the function by this name
    seen, original = [], module.propose

    def spy(*args, **kwargs) -> Tensor:
        seen.append(torch.stack(list(original(*args, **kwargs))))
        return seen[-1]

    monkeypatch.setattr(module, "propose", spy)
    return seen


@pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)
@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
def test_the_zeroed_set_is_the_least_divergent_of_its_population(
    criterion, divergence: Divergence, monkeypatch
) -> None:
    # In double precision: soft_kl takes differences of float32's last digits a hundredfold, more than the tolerance.
    teacher, inputs = tiny().double(), INPUTS.double()
    populations = population_of(teacher, monkeypatch)
    cycle = Cycle(population=6, share=0.2, criterion=criterion, batch=64)
    evolved = evolve(teacher, inputs, {"2": 0.5}, cycle, divergence=divergence)
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for cycle, candidates in enumerate(populations, start=1):
            measured = []
            for candidate in candidates:
                trial = copy.deepcopy(student)
                trial[2].weight.view(-1)[candidate] = 0
                measured.append(float(divergence(trial(inputs), teacher(inputs))))
            best = candidates[measured.index(min(measured))]
            died = (evolved.generations["2"] == cycle).flatten().nonzero().squeeze(1)
            assert set(died.tolist()) == set(best.tolist())
            row = evolved.history.iloc[cycle - 1]
            assert row.divergence == pytest.approx(min(measured), rel=1e-4, abs=1e-7)
            assert row.population_mean == pytest.approx(sum(measured) / len(measured), rel=1e-4, abs=1e-7)
            student[2].weight.view(-1)[best] = 0
    assert torch.equal(student[2].weight, evolved.student[2].weight)


@settings(max_examples=25)
@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.05, 1), st.integers(1, 4))
def test_targets_are_met_to_the_weight(first: float, last: float, share: float, population: int) -> None:
    teacher = tiny()
    evolved = evolve(teacher, INPUTS, {"0": first, "4": last}, Cycle(share=share, population=population))
    zeros = {name: int((weight_of(layer) == 0).sum()) for name, layer in weight_layers(evolved.student).items()}
    assert zeros == {"0": round(first * 48), "2": 0, "4": round(last * 15)}


def test_the_teacher_is_left_as_it_was() -> None:
    teacher, before = tiny(), tiny().state_dict()
    evolve(teacher, INPUTS, 0.8, Cycle(population=2))
    assert all(torch.equal(teacher.state_dict()[name], value) for name, value in before.items())


recovery = partial(distill, inputs=INPUTS, recipe=Recipe(steps=5, batch=16))


def test_zeros_hold_through_recovery() -> None:
    evolved = evolve(tiny(), INPUTS, 0.7, Cycle(population=3, share=0.3), recovery=recovery)
    for name, generation in evolved.generations.items():
        weight = weight_of(evolved.student.get_submodule(name))
        assert torch.equal(weight == 0, generation > 0)
    assert sparsity(evolved.student) == pytest.approx(round(0.7 * 48 + 0.7 * 40 + 0.7 * 15) / 103, abs=0.02)


def test_more_cycles_than_a_byte_can_count() -> None:
    torch.manual_seed(0)
    teacher, inputs = nn.Linear(400, 3), torch.randn(20, 400)
    evolved = evolve(teacher, inputs, 0.9, Cycle(population=1, share=1 / 400), divergence=mse)
    assert evolved.cycle > 256
    for cycle in (100, 255, 256, 300, evolved.cycle):
        zeros = int((evolved.at_cycle(cycle).weight == 0).sum())
        generation = evolved.generations[""]
        assert zeros == int(((generation > 0) & (generation <= cycle)).sum())
        assert torch.equal(evolved.died("", evolved.sparsities[cycle]) > 0, evolved.at_cycle(cycle).weight == 0)
        assert zeros == round(evolved.sparsities[cycle] * 1200)
    assert int(evolved.generations[""].max()) == evolved.cycle


def test_every_state_on_the_way_can_be_had_again() -> None:
    """The network at a cycle is what a run that stopped there would have returned."""
    full = evolve(tiny(), INPUTS, 0.7, Cycle(population=3, share=0.3), recovery=recovery, seed=3)
    assert full.cycle >= 3
    for cycle in range(full.cycle + 1):
        network = full.at_cycle(cycle)
        zeros = {
            name: int((generation > 0).logical_and(generation <= cycle).sum())
            for name, generation in full.generations.items()
        }
        assert {name: int((weight_of(layer) == 0).sum()) for name, layer in weight_layers(network).items()} == zeros
    last = full.at(full.sparsities[-1]).state_dict()
    assert all(torch.equal(value, last[name]) for name, value in full.student.state_dict().items())
    first = full.at(0.0).state_dict()
    assert all(torch.equal(value, first[name]) for name, value in tiny().state_dict().items())


def test_an_earlier_cycle_equals_the_run_that_stopped_there() -> None:
    cycle = Cycle(population=3, share=0.25)
    full = evolve(tiny(), INPUTS, {"0": 0.9}, cycle, recovery=recovery, seed=5)
    stop = full.cycle // 2
    short = evolve(tiny(), INPUTS, {"0": full.sparsities[stop]}, cycle, recovery=recovery, seed=5)
    assert short.cycle == stop
    expected, got = short.student.state_dict(), full.at_cycle(stop).state_dict()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_sparsity_rises_with_every_cycle_and_at_takes_the_last_within_reach() -> None:
    evolved = evolve(tiny(), INPUTS, 0.8, Cycle(population=2, share=0.2))
    passed = evolved.sparsities
    assert passed == sorted(passed)
    assert passed[0] == 0
    between = (passed[2] + passed[3]) / 2
    assert sparsity(evolved.at(between)) == pytest.approx(passed[2])
    with pytest.raises(ValueError, match="not passed through"):
        evolved.at(0.95)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not() -> None:
    coded = [encode(quantize(evolve(tiny(), INPUTS, 0.6, seed=seed, recovery=recovery).student)) for seed in (1, 1, 2)]
    assert coded[0] == coded[1] != coded[2]


def test_more_candidates_find_less_divergent_students() -> None:
    """Selection is at work: over seeds, the best of 32 beats the only one of 1."""

    def mean_end(size: int) -> float:
        students = [evolve(tiny(), INPUTS, {"0": 0.5}, Cycle(population=size), seed=seed).student for seed in range(5)]
        with torch.no_grad():
            return sum(float(kl(student(INPUTS), tiny()(INPUTS))) for student in students) / 5

    assert mean_end(32) < 0.8 * mean_end(1)


@pytest.mark.parametrize("compensate", [False, True])
def test_a_short_horizon_minds_only_what_it_sees(compensate: bool) -> None:
    """At horizon 0 the layers behind do not matter: with others the same weights die."""
    other = tiny()
    with torch.no_grad():
        other[4].weight.copy_(torch.randn(3, 5))
    cycle = Cycle(population=6, share=0.3, compensate=compensate)
    for layers, alike in ((0, True), (1, True), (None, False)):
        short = replace(cycle, horizon=layers)
        ours, theirs = (evolve(n, INPUTS, {"0": 0.6}, short, divergence=mse) for n in (tiny(), other))
        assert torch.equal(ours.generations["0"], theirs.generations["0"]) == alike
    assert evolve(tiny(), INPUTS, 0.5, replace(cycle, horizon=9), divergence=mse).cycle > 1


def test_with_a_horizon_the_divergence_is_asked_only_where_it_is_measured() -> None:
    class Decision(nn.Module):
        def forward(self, logits: Tensor) -> Tensor:
            return logits.argmax(1)

    decided = nn.Sequential(*tiny(), Decision())
    with pytest.raises(ValueError, match="divergence"):
        evolve(decided, INPUTS, 0.5, Cycle(population=2))
    student = evolve(decided, INPUTS, 0.5, Cycle(population=2, horizon=0)).student
    assert sparsity(student) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("compensate", [False, True])
def test_a_network_may_be_the_layer_itself(compensate: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 4).eval()
    evolved = evolve(layer, INPUTS, 0.5, Cycle(population=2, compensate=compensate))
    assert int((weight_of(evolved.student) == 0).sum()) == 12
    assert torch.equal(weight_of(evolved.at(0.0)), weight_of(layer))
    assert torch.equal(weight_of(evolved.at(0.5)), weight_of(evolved.student))
    assert quantize(evolved.student).sparsity == 0.5


def test_any_callable_is_a_divergence() -> None:
    evolved = evolve(tiny(), INPUTS, 0.3, Cycle(population=2), divergence=lambda s, t: (s - t).abs().max())
    assert evolved.history.divergence.iloc[-1] > 0


@pytest.mark.parametrize(
    ("targets", "options", "named"),
    [
        ({"conv9": 0.5}, {}, "conv9"),
        ({"0": 1.5}, {}, "1.5"),
        (-0.1, {}, "-0.1"),
        (0.5, {"share": 0.0}, "share"),
        (0.5, {"population": 0}, "population"),
        (0.5, {"temperature": -1.0}, "temperature"),
        (0.5, {"regrowth": 0.5}, "compensate"),
    ],
)
def test_wrong_arguments_are_named(targets, options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        evolve(tiny(), INPUTS, targets, Cycle(**options))


def test_goals_are_counts_of_weights() -> None:
    assert zero_goals(tiny(), 0.5) == {"0": 24, "2": 20, "4": 8}


def test_divergences_are_zero_for_equals_and_agree_with_their_definitions() -> None:
    s, t = torch.randn(7, 4), torch.randn(7, 4)
    p, q = t.softmax(1), s.softmax(1)
    assert float(kl(s, t)) == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-5)
    assert float(mse(s, t)) == pytest.approx(float(((s - t) ** 2).mean()), rel=1e-5)
    assert float(kl(t, t)) == pytest.approx(0, abs=1e-6)
    assert float(mse(t, t)) == 0
