"""Criteria against their formulas, and chance against its stated odds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from delib.evolution.criteria import Site, activation, criterion_named, magnitude
from delib.evolution.population import draw


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 5), st.sampled_from([0.0, 0.3, 1.0, 5.0]), st.integers(0, 9))
def test_sets_hold_survivors_only_and_none_twice(size: int, population: int, temperature: float, seed: int) -> None:
    alive = torch.rand(8, 10, generator=chance(seed)) < 0.6
    alive.view(-1)[:30] = True
    sets = draw(torch.rand(8, 10), alive, size, population, temperature, chance(seed))
    assert sets.shape == (population, size)
    assert alive.flatten()[sets].all()
    assert all(len(set(s.tolist())) == size for s in sets)


def test_temperature_zero_is_the_criterion_alone() -> None:
    relevance = torch.rand(50, generator=chance())
    sets = draw(relevance, torch.ones(50, dtype=torch.bool), 10, 3, 0.0, chance())
    smallest = set(relevance.argsort()[:10].tolist())
    assert all(set(s.tolist()) == smallest for s in sets)


def test_equals_are_taken_in_their_order_and_never_more_than_asked() -> None:
    relevance = torch.tensor([2.0, 1.0, 1.0, 0.0, 1.0, torch.inf])
    (chosen,) = draw(relevance, torch.ones(6, dtype=torch.bool), 3, 1, 0.0, chance())
    assert chosen.tolist() == [1, 2, 3]


def test_odds_are_the_stated_power_of_relevance() -> None:
    relevance, temperature = torch.tensor([1.0, 2.0, 4.0]), 0.5
    sets = draw(relevance, torch.ones(3, dtype=torch.bool), 1, 40_000, temperature, chance())
    shares = torch.bincount(sets.flatten(), minlength=3) / 40_000
    odds = relevance ** (-1 / temperature)
    assert torch.allclose(shares, odds / odds.sum(), atol=0.01)


def test_dead_weights_of_relevance_zero_come_first_when_alive() -> None:
    relevance = torch.tensor([0.0, 1.0, 0.0, 1.0])
    sets = draw(relevance, torch.ones(4, dtype=torch.bool), 2, 20, 0.5, chance())
    assert all(set(s.tolist()) == {0, 2} for s in sets)


def test_more_than_there_are_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="3 survivors"):
        draw(torch.ones(5), torch.tensor([1, 1, 1, 0, 0], dtype=torch.bool), 4, 1, 1.0, chance())


@pytest.mark.parametrize("groups", [1, 2])
def test_activation_weights_by_the_rms_of_the_input_channel(groups: int) -> None:
    torch.manual_seed(0)
    inputs, weight = torch.randn(16, 4, 9, 9), torch.randn(6, 4 // groups, 3, 3)
    got = activation(Site(weight, inputs))
    rms = inputs.square().mean((0, 2, 3)).reshape(groups, -1).mean(0).sqrt()
    assert torch.allclose(got, weight.abs() * rms[None, :, None, None])


@pytest.mark.parametrize("shape", [(32, 5), (8, 7, 5)])
def test_activation_on_linear_layers_takes_the_last_axis(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    inputs, weight = torch.randn(shape), torch.randn(3, 5)
    rms = inputs.reshape(-1, 5).square().mean(0).sqrt()
    assert torch.allclose(activation(Site(weight, inputs)), weight.abs() * rms)


def test_activation_predicts_the_output_change_of_one_weight() -> None:
    """For uncorrelated inputs the rms output change of zeroing w_ij is |w_ij|·rms(x_j): measured, not assumed."""
    torch.manual_seed(0)
    inputs, weight = torch.randn(20_000, 4) * torch.tensor([0.1, 1.0, 3.0, 10.0]), torch.randn(1, 4)
    guess = activation(Site(weight, inputs))
    for j in range(4):
        changed = weight.clone()
        changed[0, j] = 0
        measured = (F.linear(inputs, weight) - F.linear(inputs, changed)).square().mean().sqrt()
        assert float(guess[0, j]) == pytest.approx(float(measured), rel=1e-4)


def test_an_unknown_criterion_is_named_with_the_choices() -> None:
    assert criterion_named("magnitude") is magnitude
    with pytest.raises(ValueError, match="magnitude"):
        criterion_named("magnitud")
