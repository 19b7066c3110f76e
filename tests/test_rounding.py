"""Rounding in the loop equals quantisation; compensated rounding beats rounding to the nearest level."""

import copy

import pytest
import torch
from torch import nn

from delib.coding.container import decode, encode
from delib.coding.quantize import quantize_weight
from delib.coding.quantized import Quantized
from delib.distillation.fake_quantize import Rounding
from delib.layerwise.compress import compensated, finished, quantize
from delib.layerwise.gptq import rounded
from delib.layerwise.reconstruct import moments
from delib.nn.layers import matrix_of, sparsity, weight_layers, weight_of, with_bias


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten())
    net.append(nn.Linear(12 * 16, 5))
    for layer in weight_layers(net).values():
        weight_of(layer).mul_(torch.rand_like(weight_of(layer)) < 0.7)
    return net.eval()


INPUTS = torch.randn(300, 3, 8, 8, generator=torch.Generator().manual_seed(1)).cumsum(-1)


def test_inside_the_block_the_network_is_the_quantised_one_and_afterwards_itself(net: nn.Sequential) -> None:
    before = copy.deepcopy(net.state_dict())
    wanted = quantize(net, 3, scaled=True).network(net).state_dict()
    with Rounding(3).applied(net):
        assert all(torch.equal(wanted[name], tensor) for name, tensor in net.state_dict().items())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_layers_that_are_done_stay_and_levels_are_kept(net: nn.Sequential) -> None:
    rounding = Rounding(3, done=["2"])
    before = net[2].weight.detach().clone()
    seen = []
    for _ in range(3):
        with rounding.applied(net):
            assert torch.equal(net[2].weight, before)
            passed = net[0].weight.detach().clone()
        seen.append(rounding.levels["0"])
        stored = rounding.tensors(net)
        assert "2" not in stored
        assert (stored["0"].dense() == passed.numpy()).all()
        weight_of(net[0]).mul_(torch.rand(len(net[0].weight)).view(-1, *[1] * (net[0].weight.dim() - 1)) + 0.5)
    assert seen[0] is seen[1] is seen[2]


@pytest.mark.parametrize("name", ["0", "2", "5"])
def test_compensated_rounding_uses_the_levels_and_beats_the_nearest(net: nn.Sequential, name: str) -> None:
    layer = net.get_submodule(name)
    levels = quantize_weight(weight_of(layer).numpy(), 3, scaled=True)
    sums = moments(net, net, name, INPUTS)
    support, matrix = with_bias(weight_of(layer) != 0, layer), matrix_of(layer)
    result = rounded(sums, support, matrix, levels)
    nearest = matrix.clone()
    nearest[:, : weight_of(layer)[0].numel()] = torch.from_numpy(levels.dense()).flatten(1)
    assert sums.error(result).sum() < 0.9 * sums.error(nearest).sum()
    scale = torch.from_numpy(levels.scales).float()[:, None]
    grid = torch.cat([torch.zeros(1), torch.from_numpy(levels.codebook)])
    weights = result[:, : weight_of(layer)[0].numel()]
    assert ((weights / scale)[..., None] - grid).abs().min(-1).values.max() < 1e-5
    assert not result[~support].any()


def test_row_scales_help_where_outputs_differ_in_size() -> None:
    torch.manual_seed(0)
    weight = (torch.randn(20, 100) * torch.logspace(-3, 1, 20)[:, None]).numpy()
    errors = []
    for scaled in (True, False):
        difference = torch.from_numpy(quantize_weight(weight, 4, scaled=scaled).dense() - weight).square().sum(1)
        errors.append(difference / torch.from_numpy(weight).square().sum(1))
    assert errors[0].max() < 0.03
    assert errors[1].max() > 0.5


def test_a_network_shrinks_by_least_squares_alone_and_its_file_holds_it(net: nn.Sequential) -> None:
    net[2].weight.data.normal_()
    targets = {"2": 0.6, "5": 0.5}
    student, levels = compensated(net, INPUTS, targets, rounding=["0", "2"], progress=False)
    for name, target in targets.items():
        assert sparsity(student, {name: student.get_submodule(name)}) == pytest.approx(target, abs=1e-3)
    cut = copy.deepcopy(net)
    for name in targets:
        mask = weight_of(student.get_submodule(name)) != 0
        weight_of(cut.get_submodule(name)).mul_(mask)
    with torch.no_grad():
        wanted = net(INPUTS)
        error, uncompensated = ((n(INPUTS) - wanted).square().mean() for n in (student, cut))
    assert error < 0.3 * uncompensated
    quantized = finished(student, levels, 4)
    held = Quantized(decode(encode(quantized))).network(net)
    assert quantized.bits == 4
    assert torch.equal(held[2].weight, student[2].weight)
    assert torch.equal(held[2].bias, student[2].bias.half().float())


def test_an_unknown_layer_is_named(net: nn.Sequential) -> None:
    with pytest.raises(ValueError, match="'conv9'"):
        compensated(net, INPUTS, {"conv9": 0.5})


@torch.no_grad()
def test_a_sparse_network_rounded_with_compensation_is_where_training_begins(net: nn.Sequential) -> None:
    rounded_net, levels = compensated(net, INPUTS, {}, bits=3, rounding=["0", "2", "5"], progress=False)
    for name, layer in weight_layers(net).items():
        assert torch.equal(weight_of(layer) != 0, weight_of(rounded_net.get_submodule(name)) != 0)
    begun, before = Rounding(3, begun=levels), copy.deepcopy(rounded_net.state_dict())
    with begun.applied(rounded_net):
        assert all(torch.equal(before[name], tensor) for name, tensor in rounded_net.state_dict().items())
    with Rounding(3).applied(net):
        nearest = net(INPUTS)
    assert (rounded_net(INPUTS) - net(INPUTS)).square().mean() < 0.7 * (nearest - net(INPUTS)).square().mean()
