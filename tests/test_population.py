"""Populations: chance against its stated odds, several criteria, critics."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from delib.evolution.criteria import Site, magnitude, random
from delib.evolution.population import agreed, draw, propose


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=60)
@given(st.integers(1, 30), st.integers(1, 5), st.sampled_from([0.0, 0.3, 1.0, 5.0]), st.integers(0, 9))
def test_sets_hold_survivors_only_and_none_twice(size: int, population: int, temperature: float, seed: int) -> None:
    alive = torch.rand(8, 10, generator=chance(seed)) < 0.6
    alive.view(-1)[:30] = True
    sets = draw(torch.rand(8, 10), alive, size, population, temperature, chance(seed))
    assert sets.shape == (population, size)
    assert alive.flatten()[sets].all()
    assert all(len(set(s.tolist())) == size for s in sets)


def test_temperature_zero_is_the_criterion_alone() -> None:
    saliency = torch.rand(50, generator=chance())
    sets = draw(saliency, torch.ones(50, dtype=torch.bool), 10, 3, 0.0, chance())
    smallest = set(saliency.argsort()[:10].tolist())
    assert all(set(s.tolist()) == smallest for s in sets)


def test_equals_are_taken_in_their_order_and_never_more_than_asked() -> None:
    saliency = torch.tensor([2.0, 1.0, 1.0, 0.0, 1.0, torch.inf])
    (chosen,) = draw(saliency, torch.ones(6, dtype=torch.bool), 3, 1, 0.0, chance())
    assert chosen.tolist() == [1, 2, 3]


def test_odds_are_the_stated_power_of_saliency() -> None:
    saliency, temperature = torch.tensor([1.0, 2.0, 4.0]), 0.5
    sets = draw(saliency, torch.ones(3, dtype=torch.bool), 1, 40_000, temperature, chance())
    shares = torch.bincount(sets.flatten(), minlength=3) / 40_000
    odds = saliency ** (-1 / temperature)
    assert torch.allclose(shares, odds / odds.sum(), atol=0.01)


def test_dead_weights_of_saliency_zero_come_first_when_alive() -> None:
    saliency = torch.tensor([0.0, 1.0, 0.0, 1.0])
    sets = draw(saliency, torch.ones(4, dtype=torch.bool), 2, 20, 0.5, chance())
    assert all(set(s.tolist()) == {0, 2} for s in sets)


def test_more_than_there_are_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="3 survivors"):
        draw(torch.ones(5), torch.tensor([1, 1, 1, 0, 0], dtype=torch.bool), 4, 1, 1.0, chance())


def test_the_incumbent_comes_first_and_criteria_share_the_population() -> None:
    weight = torch.rand(5, 8, generator=chance())
    site = Site(weight, torch.ones(3, 8))
    sets = list(propose(site, [magnitude, random], 10, 7, 0.5, chance(), incumbent=True))
    assert [s.shape for s in sets] == [(10,)] * 7
    assert set(sets[0].tolist()) == set(weight.flatten().argsort()[:10].tolist())
    assert len(list(propose(site, magnitude, 10, 1, 0.5, chance()))) == 1


def test_nesting_keeps_what_all_critics_agree_on() -> None:
    weight = torch.arange(1.0, 21.0).view(4, 5)
    site = Site(weight, torch.ones(3, 5))
    chosen = torch.tensor([0, 3, 12, 19])
    assert agreed(chosen, site, []).tolist() == chosen.tolist()
    assert agreed(chosen, site, [magnitude]).tolist() == [0, 3]  # the 8 smallest
    assert agreed(chosen, site, [magnitude, lambda s: -s.weight + 21], slack=4.5).tolist() == [3, 12]
    assert agreed(torch.tensor([18, 19]), site, [magnitude]).tolist() == [18, 19]  # no agreement: the set stands
