"""The rate database and the allocations of bytes that are searched in it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from delib.coding import encode
from delib.evolution import RateDatabase, Search, search_allocation
from delib.layerwise import Compression
from delib.nn import copied, mse, put_matrix, weight_layers, weight_of

MULTIPLIERS = [1e-6, 3e-6, 1e-5, 3e-5]


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(160, 5))
    return net.eval()


INPUTS = torch.randn(400, 1, 8, 8, generator=torch.Generator().manual_seed(1)).cumsum(-1)


@pytest.fixture(scope="module")
def database(network: nn.Sequential) -> RateDatabase:
    return RateDatabase.build(network, dict.fromkeys(weight_layers(network), 0.6), INPUTS, MULTIPLIERS, mse)


def test_entries_fall_in_bytes_and_rise_in_cost(database: RateDatabase) -> None:
    for name, entries in database.items():
        assert len(entries) > 1
        sizes, costs = [e.bytes for e in entries], [e.cost for e in entries]
        assert sizes == sorted(set(sizes), reverse=True)
        assert costs == sorted(costs)
        assert all(e.bytes == len(encode({name: e.levels})) for e in entries)


@torch.no_grad()
def test_costs_are_the_divergence_that_errors_cause(network: nn.Sequential, database: RateDatabase) -> None:
    for level in (1, 2):
        student = copied(network)
        database.put(student, {"0": level})
        entry = database["0"][level]
        assert (weight_of(student[0]).numpy() == entry.levels.dense()).all()
        assert 0.5 < entry.cost / float(mse(student(INPUTS), network(INPUTS))) < 2


@torch.no_grad()
def test_costs_are_the_divergence_where_positions_are_measured(network: nn.Sequential) -> None:
    """The left half of each image is dark and half the images are, too: errors there are none, or cost nothing."""
    inputs = INPUTS * (torch.arange(8) > 3) * (torch.arange(400)[:, None, None, None] % 2)
    settings = Compression(draws=4)
    entries = RateDatabase.build(network, {"2": 0.6}, inputs, MULTIPLIERS, mse, settings)["2"]
    for entry in entries[1:3]:
        student = copied(network)
        put_matrix(student[2], entry.matrix)
        assert 0.5 < entry.cost / float(mse(student(inputs), network(inputs))) < 2


def test_later_layers_correct_the_errors_of_those_before(network: nn.Sequential, database: RateDatabase) -> None:
    """Put together, the errors are less than the sum of what each alone would cause."""
    middle = {name: len(entries) // 2 for name, entries in database.items()}
    student = copied(network)
    database.put(student, middle)
    with torch.no_grad():
        together = float(mse(student(INPUTS), network(INPUTS)))
    assert together < sum(database[name][level].cost for name, level in middle.items())


@torch.no_grad()
def test_errors_move_to_positions_that_count_less(network: nn.Sequential) -> None:
    """The left half is smooth, the right half noise, which decides unless the left counts more."""
    inputs = torch.cat([INPUTS[..., :4], 3 * INPUTS.diff(dim=-1)[..., -4:]], dim=-1)
    counts = torch.cat([torch.ones(6, 3), torch.full((6, 3), 1e-3)], dim=1)
    options = [{}, {"position_weights": lambda answers: counts.expand(len(answers), -1, -1)}]
    ratios = []
    for option in options:
        student = copied(network)
        database = RateDatabase.build(network, {"0": 0.6}, inputs, [1e-8, 1e-6, 1e-5, 1e-4], mse, **option)
        found = []
        for level in range(len(database["0"])):
            database.put(student, {"0": level})
            errors = (student[0](inputs) - network[0](inputs)).square()
            found.append(float(errors[..., :2].mean() / errors[..., 4:].mean()))
        ratios.append(float(np.mean(found)))
    assert ratios[1] < 0.7 * ratios[0]


def test_equal_slopes_are_the_best_sum_of_costs_at_their_bytes(database: RateDatabase) -> None:
    """Against all allocations: what a Lagrangian chooses is on the lower hull."""
    levels = [range(len(entries)) for entries in database.values()]
    for multiplier in (1e-6, 3e-5, 1e-3):
        chosen = database.equal_slopes(multiplier)
        size = database.total(chosen)
        cost = sum(database[name][level].cost for name, level in chosen.items())
        for other in itertools.product(*levels):
            allocation = dict(zip(database, other, strict=True))
            if database.total(allocation) <= size:
                assert sum(database[n][i].cost for n, i in allocation.items()) >= cost - 1e-12


@torch.no_grad()
def test_evolution_finds_the_best_allocation_of_few(network: nn.Sequential, database: RateDatabase) -> None:
    """Against exhaustive search, the divergence measured on all inputs."""
    budget = int(0.55 * sum(entries[0].bytes - entries[-1].bytes for entries in database.values()))
    student, divergences = copied(network), {}
    for levels in itertools.product(*(range(len(entries)) for entries in database.values())):
        allocation = dict(zip(database, levels, strict=True))
        if sum(database[n][0].bytes for n in database) - database.total(allocation) >= budget:
            database.put(student, allocation)
            divergences[levels] = float(mse(student(INPUTS), network(INPUTS)))
    search = Search(generations=12, offspring=8, batch=100)
    found = search_allocation(student, network, database, budget, INPUTS, search=search, divergence=mse)[-1]
    best = min(divergences.values())
    assert divergences[tuple(found[name] for name in database)] <= 1.1 * best
