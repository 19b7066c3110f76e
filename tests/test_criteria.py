"""Criteria against their formulas and against what zeroing and regrowing a weight do."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from delib.evolution.criteria import Site, activation, criterion_named, hessian, magnitude, obs
from delib.layerwise.reconstruct import moments, reconstruct
from delib.nn.divergence import soft_kl
from delib.nn.layers import bias_of, matrix_of, put_matrix, weight_of, with_bias
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


def test_hessian_is_the_second_order_change_of_the_error_alone() -> None:
    network = tiny()
    site = site_of(network)
    j = 13
    trial = copy.deepcopy(network)
    weight_of(trial[2]).view(-1)[j] = 0
    change = (trial[:3](INPUTS) - network[:3](INPUTS)).square().sum(0)
    assert float(hessian(site).flatten()[j]) ** 2 == pytest.approx(float((change * site.sensitivity).sum()), rel=1e-3)


def test_obs_prices_the_dead_by_what_their_revival_gains() -> None:
    student, teacher = tiny(), tiny(5)
    alive = torch.rand(5, 8, generator=chance()) < 0.6
    support = with_bias(alive, student[2])
    sums = moments(student, teacher, "2", INPUTS)
    fitted = reconstruct(sums, support, matrix_of(student[2]), ridge=1e-10)
    put_matrix(student[2], fitted)
    site = Site(weight_of(student[2]), INPUTS, bias=bias_of(student[2]), measure_moments=lambda: sums)
    r, c = (~alive).nonzero()[0].tolist()
    regrown = fitted.double()
    residual = sums.cross[r, c] - regrown[r] @ sums.gram[0, c]
    regrown[r, c] = residual / sums.gram[0, c, c]
    gain = (sums.error(fitted.double()) - sums.error(regrown)).sum()
    assert float(obs(site)[r, c]) ** 2 == pytest.approx(float(gain), rel=1e-3)
