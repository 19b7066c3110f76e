"""Rate-aware quantisation of a layer: against exhaustive search, against two steps one after the other, and theory."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from delib.coding import encode, quantize_weight, with_levels
from delib.layerwise import Moments, admm, quantize_rate_aware, reconstruct, round_compensated
from delib.layerwise.rate_aware import Prices, _Descent


def layer(rows: int, k: int, seed: int = 0, groups: int = 1, bias: bool = False) -> tuple[Moments, Tensor]:
    """A matrix of weights and the moments of correlated inputs that are never negative."""
    chance = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=chance, dtype=torch.float64)  # noqa: E731
    spread = torch.linspace(0.1, 1, k, dtype=torch.float64)
    x = (draw(groups, 500, k) @ (draw(k, k) * spread[:, None])).relu()
    if bias:
        x[:, :, -1] = 1
    matrix = draw(rows, k)
    y = (x @ matrix.view(groups, -1, k).mT).transpose(0, 1).reshape(500, rows)
    grouped = y.T.view(groups, -1, 500) @ x
    return Moments(x.mT @ x, grouped.view(rows, k), y.square().sum(0), 500, bias, 500), matrix


def dense(levels: object) -> Tensor:
    return torch.from_numpy(levels.dense()).double()  # type: ignore[attr-defined]


def descent_from_prices(seed: int) -> _Descent:
    """Five weights, three levels, and what each costs."""
    moments, matrix = layer(1, 5, seed)
    descent = _Descent(moments, matrix, 0.2, None, 1e-3)
    descent.values = descent.start.view(1, 1, 5).clone()
    descent.levels, descent.zero = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64), 1
    descent.indices = torch.bucketize(matrix, torch.tensor([-0.5, 0.5], dtype=torch.float64))
    descent.prices = Prices(torch.full((1, 5), 0.5), torch.full((1, 5), 1.8), torch.tensor([1.0, 0.0, 1.0]), 1)
    return descent


def test_close_to_the_best_of_all_assignments() -> None:
    """All 243 are tried."""
    excess = []
    for seed in range(40):
        descent, costs = descent_from_prices(seed), []
        for _ in range(10):
            descent.sweep()
        found = descent.cost()
        for indices in itertools.product(range(3), repeat=5):
            descent.indices = torch.tensor(indices)[None]
            descent.values = descent.levels[descent.indices][None]
            costs.append(descent.cost())
        excess.append(found / min(costs) - 1)
    assert min(excess) >= -1e-9
    assert np.mean(np.array(excess) < 1e-9) > 0.5
    assert np.mean(excess) < 0.1


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_what_survives_in_a_kernel_tells_how_likely_the_rest_of_it_survives(spread: float) -> None:
    """Predicted and observed shares of survivors agree whatever number of others of the kernel survives."""
    chance = np.random.default_rng(0)
    density = 0.05 * (chance.gamma(1 / spread, spread, (400, 100, 1)) if spread else 1.0)
    mask = torch.from_numpy(chance.random((400, 100, 9)) < density)
    prices = Prices.of(mask.flatten(1).long(), 0, 2, kernel=9)
    predicted = torch.exp2(-prices.alive).view(mask.shape)
    others = mask.sum(2, keepdim=True) - mask.long()
    for n in range(4 if spread else 2):
        observed = mask[others == n].double()
        deviation = float(observed.mean() * (1 - observed.mean()) / len(observed)) ** 0.5
        assert abs(predicted[others == n].mean() - observed.mean()) < 0.05 * observed.mean() + 3 * deviation


def test_survivors_gather_in_kernels_where_that_is_cheaper() -> None:
    moments, matrix = layer(64, 180, seed=3)
    factors = 1.5 * torch.randn(64, 20, 1, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    matrix = (matrix.view(64, 20, 9) * factors.exp()).flatten(1)
    cross = matrix @ moments.gram[0]
    moments = replace(moments, cross=cross, energy=(cross * matrix).sum(1))
    unit = float(moments.energy.sum()) / moments.inputs / matrix.numel()
    ratios = []
    for multiplier in unit * np.array([0.2, 0.4, 0.8]):
        found = [quantize_rate_aware(moments, matrix, multiplier, kernel=kernel)[0] for kernel in (9, 1)]
        errors = [float(moments.error(dense(levels)).sum()) / moments.inputs for levels in found]
        sizes = [len(encode({"w": levels.reshaped((64, 20, 3, 3))})) for levels in found]
        gathered, apart = (e + multiplier * 8 * size for e, size in zip(errors, sizes))
        ratios.append(gathered / apart)
    assert max(ratios) < 1.0 and np.mean(ratios) < 0.98


@pytest.mark.parametrize("groups", [1, 2])
def test_fewer_bytes_at_the_same_error_than_support_values_and_levels_one_after_the_other(groups: int) -> None:
    moments, matrix = layer(64, 120, groups=groups)
    support, _ = admm(moments, matrix.float(), int(0.1 * matrix.numel()))
    start = reconstruct(moments, support, matrix)
    placed = quantize_weight(start.float().numpy(), 4, scaled=True)
    rounded = round_compensated(moments, support, start, placed)
    usual = with_levels(rounded.float().numpy(), placed.codebook, placed.scales)
    error = float(moments.error(dense(usual)).sum())
    unit = float(moments.energy.sum()) / moments.inputs / matrix.numel()
    fewer = [
        len(encode({"w": levels})) / len(encode({"w": usual}))
        for multiplier in unit * np.geomspace(0.05, 1, 9)
        for levels, _ in [quantize_rate_aware(moments, start, multiplier)]
        if float(moments.error(dense(levels)).sum()) <= error
    ]
    assert min(fewer) < 0.85


def test_support_and_levels_follow_the_price() -> None:
    moments, matrix = layer(32, 60)
    unit = float(moments.energy.sum()) / moments.inputs / matrix.numel()
    found = [quantize_rate_aware(moments, matrix, factor * unit)[0] for factor in (0.01, 0.1, 1.0)]
    errors = [float(moments.error(dense(levels)).sum()) for levels in found]
    assert errors == sorted(errors)
    assert [levels.mask.sum() for levels in found] == sorted((levels.mask.sum() for levels in found), reverse=True)
    assert all((np.diff(levels.codebook) > 0).all() for levels in found)


def test_a_row_that_matters_more_gets_finer_steps() -> None:
    moments, matrix = layer(32, 60)
    weights = torch.ones(32)
    weights[:16] = 100.0
    unit = float(moments.energy.sum()) / moments.inputs / matrix.numel()
    levels, _ = quantize_rate_aware(moments, matrix, 5 * unit, weights)
    errors = moments.error(dense(levels)) / moments.energy
    assert errors[:16].mean() < 0.2 * errors[16:].mean()
    assert levels.mask[:16].sum() > levels.mask[16:].sum()


def test_a_bias_is_not_quantised_and_makes_up_for_the_rest() -> None:
    moments, matrix = layer(16, 30, bias=True)
    unit = float(moments.energy.sum()) / moments.inputs / matrix.numel()
    levels, found = quantize_rate_aware(moments, matrix, 2 * unit)
    assert levels.mask.shape == (16, 29)
    assert torch.equal(found[:, :-1], dense(levels).to(found))
    kept = torch.cat([found[:, :-1], matrix[:, -1:]], dim=1)
    assert float(moments.error(found).sum()) < float(moments.error(kept).sum())


def test_scales_where_outputs_count_differently_and_only_there() -> None:
    moments, matrix = layer(32, 60)
    unit = float(moments.energy.sum()) / moments.inputs / matrix.numel()
    alike, _ = quantize_rate_aware(moments, matrix, 0.3 * unit)
    assert alike.scales is None
    sizes = torch.logspace(-2, 2, 32, dtype=torch.float64)
    moments = replace(moments, cross=moments.cross * sizes[:, None], energy=moments.energy * sizes**2)
    levels, found = quantize_rate_aware(moments, matrix * sizes[:, None], 0.3 * unit, 1 / sizes**2)
    assert levels.scales is not None and levels.scales.dtype == np.float16
    assert torch.allclose(found, dense(levels), rtol=1e-6)
    relative = moments.error(found) / moments.energy
    assert relative.max() < 10 * relative.min()  # one codebook for all would leave the small ones nothing
    costs = [
        float((moments.error(values) / sizes**2).sum()) / moments.inputs + 0.3 * unit * 8 * len(encode({"w": tensor}))
        for values, tensor in ((found, levels), (dense(alike) * sizes[:, None], alike))
    ]
    assert costs[0] < 1.03 * costs[1] + 0.3 * unit * 16 * 32


@pytest.mark.parametrize("groups", [1, 2])
def test_weights_chosen_together_cost_less_than_one_after_the_other(groups: int) -> None:
    moments, matrix = layer(64, 120, seed=1, groups=groups)
    unit = float(moments.energy.sum()) / moments.inputs / matrix.numel()
    start = reconstruct(moments, admm(moments, matrix.float(), int(0.1 * matrix.numel()))[0], matrix)
    ratios = []
    for multiplier in unit * np.geomspace(0.05, 0.5, 4):
        found = [quantize_rate_aware(moments, start, multiplier, iterations=many)[0] for many in (75, 0)]
        errors = [float(moments.error(dense(levels)).sum()) / moments.inputs for levels in found]
        together, single = (e + multiplier * 8 * len(encode({"w": levels})) for e, levels in zip(errors, found))
        ratios.append(together / single)
    assert max(ratios) < 1.01
    assert np.mean(ratios) < 0.93


def test_a_dense_start_does_not_end_at_zero() -> None:
    """Seen alone, each of many weights that share inputs would rather be zero; together they are not."""
    moments, matrix = layer(16, 200, seed=2)
    unit = float(moments.energy.sum()) / moments.inputs / matrix.numel()
    sparse = reconstruct(moments, admm(moments, matrix.float(), int(0.1 * matrix.numel()))[0], matrix)
    for multiplier in unit * np.array([0.5, 1.0]):
        costs = []
        for start in (matrix, sparse):
            levels, _ = quantize_rate_aware(moments, start, multiplier)
            assert levels.mask.any()
            error = float(moments.error(dense(levels)).sum()) / moments.inputs
            costs.append(error + multiplier * 8 * len(encode({"w": levels})))
        assert costs[0] < 1.3 * costs[1]
