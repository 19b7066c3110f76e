"""The baselines against plain restatements of their papers on small layers."""

import pytest
import torch
from torch import Tensor, nn

from delib.layerwise.baselines import (
    BASELINES,
    DAMPING,
    alps,
    cheapest_prefixes,
    exact_obs,
    magnitude,
    obs_traces,
    prune,
    sparsegpt,
    wanda,
)
from delib.nn.layers import weight_of


def layer(rows: int = 4, k: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    x = torch.randn(80, k, generator=chance).double() @ torch.randn(k, k, generator=chance).double()
    return torch.randn(rows, k, generator=chance).double(), x.T @ x


def error(weight: Tensor, pruned: Tensor, gram: Tensor) -> float:
    return float((((weight - pruned) @ gram) * (weight - pruned)).sum())


def damped(gram: Tensor) -> Tensor:
    return gram + DAMPING * gram.diagonal().mean() * torch.eye(len(gram)).double()


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.75])
def test_sparsity_is_met(name: str, sparsity: float) -> None:
    weight, gram = layer()
    assert int((BASELINES[name](weight, gram, sparsity) == 0).sum()) == round(sparsity * weight.numel())


def test_magnitude_and_wanda_zero_their_smallest_scores() -> None:
    weight, gram = layer()
    dead = magnitude(weight, gram, 0.5) == 0
    assert weight.abs()[dead].max() <= weight.abs()[~dead].min()
    scores = weight.abs() * gram.diagonal().sqrt()
    for row, alive in zip(scores, wanda(weight, gram, 0.5) != 0, strict=True):
        assert row[~alive].max() <= row[alive].min()


def test_sparsegpt_is_its_algorithm_with_the_inverse_computed_anew_for_every_column() -> None:
    weight, gram = layer()
    hessian, expected = damped(gram), weight.clone()
    mask = None
    for j in range(12):
        if j % 4 == 0:  # a new block: its mask by the inverses of the remaining columns
            inverses = [torch.linalg.inv(hessian[i:, i:])[0, 0] for i in range(j, j + 4)]
            scores = expected[:, j : j + 4].square() / torch.stack(inverses)
            mask = torch.zeros(16, dtype=torch.bool)
            mask[scores.flatten().argsort()[:8]] = True
            mask = mask.view(4, 4)
        inverse = torch.linalg.inv(hessian[j:, j:])
        for r in range(4):
            if mask[r, j % 4]:
                expected[r, j:] -= expected[r, j] / inverse[0, 0] * inverse[0]
                expected[r, j] = 0
    assert torch.allclose(sparsegpt(weight, gram, 0.5, block=4), expected, atol=1e-9)


def test_obs_traces_are_greedy_removal_with_full_recomputation() -> None:
    weight, gram = layer(rows=2, k=40)  # long enough for the dead to be dropped from the inverse
    hessian = damped(gram)
    order, losses = obs_traces(weight, gram)
    for r in range(2):
        row, alive = weight[r].clone(), list(range(40))
        for step in range(40):
            inverse = torch.linalg.inv(hessian[alive][:, alive])
            costs = row[alive].square() / inverse.diagonal()
            i = int(costs.argmin())
            assert int(order[r, step]) == alive[i]
            assert float(losses[r, step]) == pytest.approx(float(costs[i]), rel=1e-5, abs=1e-9)
            row[alive] -= row[alive][i] / inverse[i, i] * inverse[i]
            row[alive.pop(i)] = 0


def test_exact_obs_values_are_those_of_the_updates() -> None:
    weight, gram = layer(rows=1)
    order, _ = obs_traces(weight, gram)
    hessian, row, alive = damped(gram), weight[0].clone(), list(range(12))
    for j in order[0, :6].tolist():
        inverse = torch.linalg.inv(hessian[alive][:, alive])
        i = alive.index(j)
        row[alive] -= row[j] / inverse[i, i] * inverse[i]
        row[alive.pop(i)] = 0
    assert torch.allclose(exact_obs(weight, gram, 0.5)[0], row, atol=1e-8)


def test_cheapest_prefixes_is_the_cheapest_of_all_splits() -> None:
    for seed in range(5):
        losses = torch.rand(3, 6, generator=torch.Generator().manual_seed(seed)).cummax(1).values
        totals = {
            (a, b, c): float(losses[0, :a].sum() + losses[1, :b].sum() + losses[2, :c].sum())
            for a in range(7)
            for b in range(7)
            for c in range(7)
            if a + b + c == 8
        }
        counts = tuple(cheapest_prefixes(losses, 8).tolist())
        assert totals[counts] == pytest.approx(min(totals.values()))


def test_the_better_methods_are_better() -> None:
    """The order of the papers' own tables: compensation beats none, exact OBS and ADMM beat SparseGPT."""
    totals = dict.fromkeys(BASELINES, 0.0)
    for seed in range(10):
        weight, gram = layer(rows=6, k=20, seed=seed)
        for name, baseline in BASELINES.items():
            totals[name] += error(weight, baseline(weight, gram, 0.6), gram)
    assert totals["alps"] < totals["sparsegpt"] < totals["magnitude"]
    assert totals["exact_obs"] < totals["sparsegpt"]


def test_prune_goes_layer_by_layer_on_the_students_own_inputs() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).eval()
    inputs = torch.randn(50, 2, 6, 6)
    student = prune(network, inputs, {"0": 0.5, "3": 0.75}, alps)
    assert int((weight_of(student[0]) == 0).sum()) == 2 * 9  # each group is a problem of its own
    assert int((weight_of(student[3]) == 0).sum()) == 240
    x = student[:3](inputs).double()
    expected = alps(weight_of(network[3]).double(), x.T @ x, 0.75)
    assert torch.allclose(weight_of(student[3]).double(), expected.double(), atol=1e-4)
    assert torch.equal(student[3].bias, network[3].bias)
