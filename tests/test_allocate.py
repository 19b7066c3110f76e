"""Allocation against exhaustive search over levels, and its budget to the weight."""

from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from delib.evolution.allocate import Search, allocate, greedy_allocation, level_switch, scale_sparsities
from delib.nn.divergence import mse
from delib.nn.layers import weight_layers

INPUTS = torch.randn(200, 6, generator=torch.Generator().manual_seed(1))


def tiny() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 3)).eval()


def ladders(seed: int) -> tuple[dict[str, list[int]], dict[str, list[float]]]:
    """Zeros and rising convex costs of three layers of different sizes."""
    chance = torch.Generator().manual_seed(seed)
    zeros = {name: [size * i // 5 for i in range(5)] for name, size in (("a", 20), ("b", 50), ("c", 100))}
    costs = {n: torch.rand(5, generator=chance).sort().values.cumsum(0).tolist() for n in zeros}
    return zeros, {n: [0.0, *c[:-1]] for n, c in costs.items()}


@settings(max_examples=40)
@given(st.integers(0, 1000), st.integers(0, 136))
def test_the_greedy_start_meets_the_budget_near_the_cheapest(seed: int, budget: int) -> None:
    zeros, costs = ladders(seed)
    levels = greedy_allocation(zeros, costs, budget)
    assert sum(zeros[n][i] for n, i in levels.items()) >= budget
    every = [dict(zip(zeros, choice, strict=True)) for choice in product(range(5), repeat=3)]
    best = min(
        sum(costs[n][i] for n, i in e.items()) for e in every if sum(zeros[n][i] for n, i in e.items()) >= budget
    )
    step = max(max(b - a for a, b in pairwise(c)) for c in costs.values())
    assert sum(costs[n][i] for n, i in levels.items()) <= best + step  # greedy errs by at most its last step


@settings(max_examples=60)
@given(st.integers(0, 1000), st.integers(1, 120))
def test_level_switches_preserve_the_budget(seed: int, budget: int) -> None:
    zeros, costs = ladders(seed)
    parent = greedy_allocation(zeros, costs, budget)
    child = level_switch(parent, zeros, budget, torch.Generator().manual_seed(seed))
    assert sum(zeros[n][i] for n, i in child.items()) >= budget
    assert all(0 <= i < 5 for i in child.values())


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.75])
def test_zeros_add_up_to_the_weight_and_fixed_layers_keep_theirs(sparsity: float) -> None:
    targets = allocate(
        tiny(), INPUTS, sparsity, fixed={"4": 0.0}, search=Search(generations=3, batch=50), divergence=mse
    )
    sizes = {"0": 48, "2": 72, "4": 27}
    assert targets["4"] == 0.0
    assert sum(round(targets[n] * sizes[n]) for n in sizes) == round(sparsity * 147)


def test_a_layer_that_does_not_matter_takes_the_zeros() -> None:
    network = tiny()
    with torch.no_grad():
        network[4].weight[:, 3:] = 0  # six of the middle layer's nine rows are never read
    targets = allocate(network, INPUTS, 0.4, search=Search(generations=5, batch=50), divergence=mse)
    assert targets["2"] > 0.5 > targets["0"]


def test_a_budget_that_cannot_be_met_is_refused() -> None:
    layers = list(weight_layers(tiny()))
    with pytest.raises(ValueError, match="cannot hold"):
        allocate(tiny(), INPUTS, 0.9, fixed={layers[0]: 0.0})


SIZES = {"a": 100, "b": 1000, "c": 5000}


@given(st.floats(0.02, 0.98), st.floats(0.1, 0.9), st.floats(0.1, 0.9))
@settings(max_examples=60)
def test_a_shape_is_scaled_to_the_whole_networks_sparsity(goal: float, b: float, c: float) -> None:
    shape = {"b": b, "c": c}
    targets = scale_sparsities(SIZES, goal, shape)
    zeros = sum(share * SIZES[name] for name, share in targets.items())
    assert zeros / 6100 == pytest.approx(goal, abs=0.0051)
    if all(share > 0 for share in targets.values()) and targets != shape:
        assert (1 - targets["b"]) / (1 - targets["c"]) == pytest.approx((1 - b) / (1 - c), rel=1e-6)
    assert all(0 <= share < 1 for share in targets.values())


def test_a_shape_that_fits_is_taken_as_it_is_and_too_much_is_refused() -> None:
    shape = {"b": 0.5, "c": 0.9}  # 5,000 of 6,100
    assert scale_sparsities(SIZES, 0.82, shape) == shape
    with pytest.raises(ValueError, match="needs more zeros than b have"):
        scale_sparsities(SIZES, 0.9, {"b": 0.5})


@pytest.mark.parametrize(("settings", "named"), [({"offspring": 0}, "offspring"), ({"generations": -1}, "generations")])
def test_a_wrong_search_is_named(settings: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Search(**settings)
