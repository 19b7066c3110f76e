"""Entries of layers against what they do to the divergence, and allocations that keep the total and lower it."""

import copy
from itertools import pairwise, product

import pytest
import torch
from torch import nn

from delib.evolution.allocate import Search, goals_by_layer, greedy_allocation, search_allocation
from delib.evolution.criteria import obs
from delib.evolution.database import LEVELS, SparsityDatabase, total
from delib.layerwise.compress import compress
from delib.nn.divergence import mse
from delib.nn.layers import matrix_of, put_matrix, sparsity, weight_layers, weight_of

INPUTS = torch.randn(200, 3, 6, 6, generator=torch.Generator().manual_seed(1)).cumsum(-1)
FACTORS = (1.5, 1.0, 0.5)


@pytest.fixture
def teacher() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 12, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 4)
    return nn.Sequential(*layers).eval()


@pytest.fixture
def watched(teacher: nn.Sequential) -> tuple[nn.Module, SparsityDatabase]:
    database = SparsityDatabase()
    targets = {"0": 0.5, "2": 0.5, "5": 0.5}
    student, _ = compress(teacher, INPUTS, targets, divergence=mse, watch=database.watch(FACTORS))
    return student, database


def squares(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The squared error per input: of constant curvature, so that second order is all there is behind a layer."""
    return (student - teacher).square().sum(1).mean()


def test_costs_are_the_divergence_to_second_order(teacher: nn.Sequential) -> None:
    """Of small errors, at layers with and without positions alike: measured, not assumed."""
    database = SparsityDatabase.build(teacher, ["0", "2", "5"], INPUTS, obs, squares)
    for name in database:
        student = copy.deepcopy(teacher)
        for level in (1, 2):
            entry, matrix = database[name][level], matrix_of(teacher.get_submodule(name))
            put_matrix(student.get_submodule(name), entry.matrix())
            with torch.no_grad():
                measured = float(squares(student(INPUTS), teacher(INPUTS)))
            assert entry.cost == pytest.approx(measured, rel=0.6), (name, level, matrix.shape)


def test_entries_cost_more_the_sparser_they_are(teacher: nn.Sequential) -> None:
    (entries,) = SparsityDatabase.build(teacher, ["2"], INPUTS, obs, mse).values()
    assert [entry.zeros for entry in entries] == [round(level * 864) for level in LEVELS]
    assert entries[0].cost == 0
    assert entries[-1].cost > entries[6].cost > entries[2].cost
    assert torch.equal(entries[5].matrix() != 0, entries[5].support)
    assert torch.equal(entries[0].matrix(), matrix_of(teacher[2]))


def test_every_layer_that_is_compressed_is_entered_around_its_sparsity(watched) -> None:
    student, database = watched
    assert list(database) == ["0", "2", "5"]
    for name, entries in database.items():
        weight = weight_of(student.get_submodule(name))
        assert [weight.numel() - entry.zeros for entry in entries] == [round(f * weight.numel() / 2) for f in FACTORS]
        assert [e.cost for e in entries] == sorted(e.cost for e in entries), "sparser, so further off"
        assert all((b.support <= a.support).all() for a, b in pairwise(entries)), "nested"
        assert torch.allclose(entries[1].matrix(), matrix_of(student.get_submodule(name)), atol=1e-5)


def test_a_search_keeps_the_total_and_does_not_raise_the_divergence(teacher: nn.Sequential, watched) -> None:
    student, database = watched
    budget = sum(entries[1].zeros for entries in database.values())
    search = Search(generations=6, batch=100)
    parents = search_allocation(student, teacher, database, budget, INPUTS, search=search, divergence=mse)
    final, gaps = copy.deepcopy(student.state_dict()), []
    for parent in parents:
        database.put(student, parent)
        assert total(database.savings(), parent) >= budget
        with torch.no_grad():
            gaps.append(float(mse(student(INPUTS), teacher(INPUTS))))
    assert len(parents) == 7
    assert parents[0] == greedy_allocation(database.savings(), database.costs(), budget)
    assert gaps[-1] <= gaps[0]
    assert sparsity(student, weight_layers(student)) >= 0.5
    assert all(torch.equal(value, final[name]) for name, value in student.state_dict().items()), "left with the winner"


def test_students_go_through_the_entries_of_all_layers_together(watched) -> None:
    student, database = watched
    before = copy.deepcopy(student.state_dict())
    zeros = [sparsity(each, weight_layers(each)) for each in database.students(student)]
    assert len(zeros) == min(map(len, database.values()))
    assert zeros == sorted(zeros) and zeros[0] < zeros[-1]
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items()), "copies"


def levels_below(student: nn.Module, database: SparsityDatabase) -> dict[str, list[tuple[int, float]]]:
    """For each layer the student's own survivors and those of its sparser entries, with what each costs more."""
    found = {}
    for name, (_, own, sparser) in database.items():
        size = weight_of(student.get_submodule(name)).numel()
        found[name] = [(size - own.zeros, 0.0), (size - sparser.zeros, sparser.cost - own.cost)]
    return found


@pytest.mark.parametrize("share", [0.55, 0.6, 0.75, 0.9, 1.0])
def test_goals_of_layers_add_up_and_are_near_the_cheapest(watched, share: float) -> None:
    """Against all choices of levels: the one taken errs by its last step at most (see ``greedy_allocation``)."""
    student, database = watched
    now = {name: int(weight_of(student.get_submodule(name)).count_nonzero()) for name in database}
    wanted = round(share * sum(now.values()))
    goals = goals_by_layer(student, database, wanted)
    assert sum(goals.values()) == wanted and all(goals[name] <= now[name] for name in now)
    levels = levels_below(student, database)
    choices = [c for c in product(*levels.values()) if sum(many for many, _ in c) <= wanted]
    best = min(sum(cost for _, cost in choice) for choice in choices)
    taken = sum(own[1][1] for name, own in levels.items() if goals[name] < own[0][0])
    assert taken <= best + max(own[1][1] for own in levels.values())


def test_the_layer_whose_weights_cost_least_is_thinned_first(watched) -> None:
    student, database = watched
    per_weight = {n: (b[1] - a[1]) / (a[0] - b[0]) for n, (a, b) in levels_below(student, database).items()}
    cheapest = min(per_weight, key=per_weight.__getitem__)
    now = {name: int(weight_of(student.get_submodule(name)).count_nonzero()) for name in database}
    goals = goals_by_layer(student, database, sum(now.values()) - 1)
    assert goals == now | {cheapest: now[cheapest] - 1}


def test_goals_that_no_entry_reaches_are_refused_and_no_layer_grows(watched) -> None:
    student, database = watched
    now = {name: int(weight_of(student.get_submodule(name)).count_nonzero()) for name in database}
    with pytest.raises(ValueError, match=r"the sparsest entries leave \d+ survivors, not 10; enter"):
        goals_by_layer(student, database, 10)
    assert goals_by_layer(student, database, 10**6) == now
