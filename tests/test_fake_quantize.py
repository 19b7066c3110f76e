"""Fake quantisation equals quantisation, in any order of memory; levels stay where they were placed."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from delib.coding import encode, quantize_weight
from delib.coding.entropy import as_tensor
from delib.distillation import FakeQuantization, Objective, RateAwareQuantization, Recipe, distill
from delib.layerwise import Compression, compress, finalize, quantize
from delib.nn import curvatures, mse, weight_layers, weight_of, weights_and_biases


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
    with FakeQuantization(3).applied(net):
        assert all(torch.equal(wanted[name], tensor) for name, tensor in net.state_dict().items())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_memory_may_be_laid_out_anew_between_passes(net: nn.Sequential) -> None:
    fake = FakeQuantization(3)
    with fake.applied(net):
        wanted = copy.deepcopy(net.state_dict())
    net.to(memory_format=torch.channels_last)
    with fake.applied(net):
        assert all(torch.equal(wanted[name], tensor) for name, tensor in net.state_dict().items())


def test_fixed_layers_stay_and_levels_are_kept(net: nn.Sequential) -> None:
    fake = FakeQuantization(3, fixed=["2"])
    before = net[2].weight.detach().clone()
    seen = []
    for _ in range(3):
        with fake.applied(net):
            assert torch.equal(net[2].weight, before)
            passed = net[0].weight.detach().clone()
        seen.append(fake.tensors(net)["0"].codebook)
        stored = fake.tensors(net)
        assert "2" not in stored
        assert (stored["0"].dense() == passed.numpy()).all()
        weight_of(net[0]).mul_(torch.rand(len(net[0].weight)).view(-1, *[1] * (net[0].weight.dim() - 1)) + 0.5)
    assert seen[0] is seen[1] is seen[2]


def test_row_scales_help_where_outputs_differ_in_size() -> None:
    torch.manual_seed(0)
    weight = (torch.randn(20, 100) * torch.logspace(-3, 1, 20)[:, None]).numpy()
    errors = []
    for scaled in (True, False):
        difference = torch.from_numpy(quantize_weight(weight, 4, scaled=scaled).dense() - weight).square().sum(1)
        errors.append(difference / torch.from_numpy(weight).square().sum(1))
    assert errors[0].max() < 0.03
    assert errors[1].max() > 0.5


@torch.no_grad()
def test_a_sparse_network_rounded_with_compensation_is_where_training_begins(net: nn.Sequential) -> None:
    rounded_net, levels = compress(net, INPUTS, {}, Compression(bits=3), rounding=["0", "2", "5"])
    for name, layer in weight_layers(net).items():
        assert torch.equal(weight_of(layer) != 0, weight_of(rounded_net.get_submodule(name)) != 0)
    begun, before = FakeQuantization(3, levels=levels), copy.deepcopy(rounded_net.state_dict())
    with begun.applied(rounded_net):
        assert all(torch.equal(before[name], tensor) for name, tensor in rounded_net.state_dict().items())
    with FakeQuantization(3).applied(net):
        nearest = net(INPUTS)
    assert (rounded_net(INPUTS) - net(INPUTS)).square().mean() < 0.7 * (nearest - net(INPUTS)).square().mean()


def dense() -> tuple[nn.Sequential, torch.Tensor]:
    """A network that was never pruned, and inputs."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 80), nn.ReLU(), nn.Linear(80, 80), nn.ReLU(), nn.Linear(80, 4)).eval()
    return net, torch.randn(2000, 20)


@torch.no_grad()
def distilled(during: FakeQuantization) -> tuple[float, int]:
    """Error on other inputs, and bytes, of a student trained with its weights at their levels."""
    teacher, inputs = dense()
    student, objective = copy.deepcopy(teacher), Objective(mse)
    with torch.enable_grad():
        distill(student, teacher, inputs[:1000], Recipe(300, 64, 0.01), objective=objective, during=during)
    held = during.tensors(student)
    with during.applied(student):
        passed = {name: weight_of(layer).clone() for name, layer in weight_layers(student).items()}
    assert all((passed[name].numpy() == tensor.dense()).all() for name, tensor in held.items())
    network = finalize(student, held).network(student)
    return float(mse(network(inputs[1000:]), teacher(inputs[1000:]))), len(encode(finalize(student, held)))


def test_rates_in_the_loop_take_fewer_bytes_at_the_same_error() -> None:
    most, size = distilled(FakeQuantization(2))
    teacher, inputs = dense()
    bends = curvatures(teacher, weight_layers(teacher), inputs[:500], mse)
    error, rated = distilled(RateAwareQuantization(5, multiplier=3e-7, curvatures=bends))
    assert error < most and rated < size, (most, size, error, rated)


def test_rows_and_columns_without_survivors_change_no_level_of_the_others() -> None:
    """A small layer, and the same one spread out over rows and columns of a larger one, with and without levels."""
    torch.manual_seed(0)
    small, large = nn.Sequential(nn.Linear(30, 20)), nn.Sequential(nn.Linear(90, 100))
    rows, columns = torch.randperm(100)[:20].sort()[0], torch.randperm(90)[:30].sort()[0]
    with torch.no_grad():
        small[0].weight *= torch.rand(20, 30) < 0.6
        large[0].weight.zero_()
        large[0].weight[rows[:, None], columns] = small[0].weight
    bends = torch.rand(20) + 0.5, torch.rand(100)
    bends[1][rows] = bends[0]
    quantizations = [RateAwareQuantization(4, multiplier=1e-4, curvatures={"0": bend}, scaled=False) for bend in bends]
    levels = [q.tensors(net)["0"] for q, net in zip(quantizations, (small, large))]
    again = [RateAwareQuantization(multiplier=1e-4, levels={"0": own}) for own in levels]
    for one, other in (levels, [q.tensors(net)["0"] for q, net in zip(again, (small, large))]):
        assert 0 < one.mask.sum() < small[0].weight.count_nonzero()
        assert (one.dense() == other.dense()[rows[:, None], columns]).all() and one.mask.sum() == other.mask.sum()


def test_survivors_die_and_come_back_with_the_rates() -> None:
    teacher, inputs = dense()
    bends = curvatures(teacher, weight_layers(teacher), inputs[:500], mse)
    rated = RateAwareQuantization(4, multiplier=1e-6, curvatures=bends, again=(1,))
    with rated.applied(teacher):
        few = int((teacher[2].weight != 0).sum())
    rated.multiplier = 1e-9
    with rated.applied(teacher):
        many = int((teacher[2].weight != 0).sum())
    assert few < many <= 6400
    assert bool((teacher[2].weight != 0).all())


def convolutional() -> tuple[nn.Module, torch.Tensor]:
    """A convolution whose weights act at 64 positions that are added up, on inputs that are all positive."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)).eval()
    return network, torch.rand(400, 2, 10, 10)


@pytest.mark.parametrize("made", [dense, convolutional])
def test_curvatures_are_the_mean_second_derivatives(made: Callable[[], tuple[nn.Module, torch.Tensor]]) -> None:
    teacher, inputs = made()
    held = weights_and_biases(teacher)
    found = curvatures(teacher, held, inputs[:400], mse)
    parameters = dict(teacher.named_parameters())
    for name, weight in held.items():
        # Of mse, the Hessian is exactly the mean of 2 (∂answer/∂w)² over inputs and answers.
        squares = torch.zeros_like(weight)
        own = parameters[name if name in parameters else f"{name}.weight"]
        for x in inputs[:200]:
            for answer in teacher(x[None])[0]:
                squares += torch.autograd.grad(answer, own, retain_graph=True)[0].square()
        exact = 2 * squares.view(len(weight), -1).mean(1) / 200 / 4
        assert torch.corrcoef(torch.stack([found[name], exact.double()]))[0, 1] > 0.9 or len(exact) < 6
        assert 0.8 < float(found[name].mean() / exact.mean()) < 1.25, name


def test_curvatures_do_not_depend_on_the_memory_format() -> None:
    network, inputs = convolutional()
    held = list(weights_and_biases(network))
    found = curvatures(network, held, inputs[:20], mse)
    network, inputs = network.to(memory_format=torch.channels_last), inputs.to(memory_format=torch.channels_last)
    for name, rows in curvatures(network, held, inputs[:20], mse).items():
        torch.testing.assert_close(rows, found[name])


def test_biases_may_have_levels_too() -> None:
    teacher, inputs = dense()
    bends = curvatures(teacher, weights_and_biases(teacher), inputs[:500], mse)
    for during in (
        FakeQuantization(2, biases=True),
        RateAwareQuantization(2, multiplier=1e-6, curvatures=bends, biases=True, scaled=False),
    ):
        held = during.tensors(teacher)
        assert set(held) == set(weights_and_biases(teacher))
        network = finalize(teacher, held).network(teacher)
        with during.applied(teacher):
            assert torch.equal(network(inputs[:9]), teacher(inputs[:9]))
        assert len(network[0].bias.unique()) <= 5


@pytest.mark.parametrize("scaled", [False, True])
def test_levels_that_are_given_get_their_rates(scaled: bool) -> None:
    teacher, _ = dense()
    for layer in weight_layers(teacher).values():
        weight_of(layer).mul_(weight_of(layer).abs() > weight_of(layer).abs().median())
    placed = FakeQuantization(2, scaled=scaled).tensors(teacher)
    put = copy.deepcopy(teacher)
    for name, layer in weight_layers(put).items():
        weight_of(layer).copy_(torch.from_numpy(placed[name].dense()))
    cheap, dear = (RateAwareQuantization(multiplier=price, levels=placed) for price in (1e-12, 1e-2))
    with cheap.applied(put):  # where bits cost nothing, weights that lie at their levels stay there
        assert all((weight_of(w).numpy() == placed[n].dense()).all() for n, w in weight_layers(put).items())
    with dear.applied(put):
        assert int((put[2].weight == 0).sum()) > 0.9 * put[2].weight.numel()
    nothing = RateAwareQuantization(levels={"2": as_tensor(np.zeros((80, 80), int), np.zeros(1))}, fixed=["0", "4"])
    with nothing.applied(put):
        assert not put[2].weight.any()
