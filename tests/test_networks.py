"""The networks have the sizes that the literature gives, and the counting functions count."""

import pytest
import torch
from torch import nn

from delib.data.classifiers import lenet5, lenet300, resnet, vgg
from delib.nn.layers import (
    accuracy,
    channels_last,
    float32_bytes,
    parameter_count,
    predict,
    sparsity,
    weight_layers,
    weight_of,
)

SIZES = [(lenet300, 266_200, 410), (lenet5, 430_500, 580), (vgg, 2_412_376, 1_682), (resnet, 306_720, 1_354)]


@pytest.mark.parametrize(("make", "weights", "biases"), SIZES)
def test_sizes_are_those_of_the_literature(make, weights: int, biases: int) -> None:
    network = make()
    assert sum(weight_of(layer).numel() for layer in weight_layers(network).values()) == weights
    assert parameter_count(network) == weights + biases
    buffers = sum(buffer.numel() for buffer in network.buffers())
    assert float32_bytes(network) == 4 * (weights + biases + buffers)
    assert predict(network, torch.zeros(3, 1, 28, 28)).shape == (3, 10)


def test_the_seed_fixes_the_initial_values_and_leaves_the_global_chance_alone() -> None:
    before = torch.random.get_rng_state()
    a, b, c = lenet300(1), lenet300(1), lenet300(2)
    assert torch.equal(a.fc1.weight, b.fc1.weight)
    assert not torch.equal(a.fc1.weight, c.fc1.weight)
    assert torch.equal(before, torch.random.get_rng_state())


def test_sparsity_is_the_share_of_zero_weights() -> None:
    network = lenet300()
    weight_of(network.fc2)[:50] = 0
    assert sparsity(network) == pytest.approx(15_000 / 266_200)
    assert sparsity(network, {"fc2": network.fc2}) == 0.5


def test_prediction_in_batches_is_prediction_and_keeps_the_mode() -> None:
    network, images = lenet300().train(), torch.randn(25, 1, 28, 28)
    assert torch.allclose(predict(network, images, batch=7), network(images), atol=1e-6)
    assert network.training
    labels = predict(network, images).argmax(1)
    assert accuracy(network, images, labels) == 1
    labels[:5] += 1
    assert accuracy(network, images, labels) == pytest.approx(0.8)


def test_a_network_without_weight_layers_is_said_to_have_none() -> None:
    with pytest.raises(ValueError, match="ReLU"):
        weight_layers(nn.ReLU())


@pytest.mark.parametrize("make", [lenet5, resnet, vgg])
def test_channels_last_changes_the_order_in_memory_alone_and_only_inside(make) -> None:
    network = make().eval()
    images = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        expected = network(images)
        with channels_last(network):
            assert not all(p.is_contiguous() for p in network.parameters())
            assert torch.allclose(network(images), expected, atol=1e-5)
    assert all(p.is_contiguous() for p in network.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
