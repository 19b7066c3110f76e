"""Networks of torchvision, ultralytics and torch: folded, followed, quantised, encoded, decoded to the same answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig as Block

from delib.coding import decode, encode
from delib.detection import load_ultra
from delib.evolution import Suffix
from delib.layerwise import quantize
from delib.nn import agree, folded, never_called, norm_pairs, unfolded, weight_layers, weight_of


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(320, 5))


def of_torchvision(name: str, **options: object) -> Callable[[], nn.Module]:
    return partial(models.get_model, name, weights=None, **options)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet10": (partial(models.ResNet, models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5), (3, 32, 32)),
    "mobilenet_v2": (of_torchvision("mobilenet_v2", width_mult=0.25), (3, 32, 32)),
    "mobilenet_v3_small": (of_torchvision("mobilenet_v3_small", num_classes=5), (3, 32, 32)),
    "efficientnet_b0": (of_torchvision("efficientnet_b0", num_classes=5), (3, 32, 32)),
    "shufflenet_v2": (of_torchvision("shufflenet_v2_x0_5", num_classes=5), (3, 32, 32)),
    "squeezenet": (of_torchvision("squeezenet1_1", num_classes=5), (3, 32, 32)),
    "mnasnet": (of_torchvision("mnasnet0_5", num_classes=5), (3, 32, 32)),
    "regnet": (of_torchvision("regnet_y_400mf", num_classes=5), (3, 32, 32)),
    "densenet": (partial(models.DenseNet, 8, (2, 2, 2, 2), 16, num_classes=5), (3, 32, 32)),
    "convnext": (partial(models.ConvNeXt, [Block(16, 32, 1), Block(32, None, 1)]), (3, 32, 32)),
    "vision transformer": (partial(models.VisionTransformer, 32, 8, 2, 4, 32, 64, num_classes=7), (3, 32, 32)),
    "swin": (partial(models.SwinTransformer, [4, 4], 16, [2, 2], [2, 2], [4, 4], num_classes=7), (3, 64, 64)),
    "segmentation": (of_torchvision("lraspp_mobilenet_v3_large", weights_backbone=None), (3, 32, 32)),
    "transformer encoder": (encoder, (10, 32)),
    **{
        name: (partial(load_ultra, f"{name}.yaml"), (3, 64, 64))
        for name in ("yolov5n", "yolov8n", "yolov10n", "yolo11n", "yolo12n", "yolov8n-seg", "yolo11n-seg")
    },
}


@pytest.fixture(params=NETWORKS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    """A network with random weights, a tenth of them alive, and norms that do something; and two inputs."""
    torch.manual_seed(0)
    make, shape = NETWORKS[request.param]
    network = make().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    for layer in weight_layers(network).values():
        weight = weight_of(layer)
        weight.mul_(3 * (torch.rand_like(weight) < 0.1))
    for module in network.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():  # as torchvision's vision transformer begins
            nn.init.normal_(module.weight)
    return network, torch.rand(2, *shape)


@torch.no_grad()
def test_the_whole_way(case: tuple[nn.Module, Tensor]) -> None:
    network, inputs = case
    answer = network(inputs)
    pairs = norm_pairs(network, inputs)
    flat = folded(network, pairs)
    assert agree(flat(inputs), answer)
    assert agree(unfolded(flat, network, pairs)(inputs), answer)
    check_some_suffixes(flat, inputs)
    quantized = quantize(network, 2, "uniform")
    held = decode(encode(quantized)).network(like=network)
    assert agree(held(inputs), quantized.network(like=network)(inputs), 1e-6)
    assert not agree(held(inputs), answer)


def check_some_suffixes(network: nn.Module, inputs: Tensor) -> None:
    """Half the weights of a layer go: the suffix gives what the whole network does."""
    layers = weight_layers(network)
    idle = never_called(network, layers, inputs)
    called = [name for name in layers if name not in idle]
    for name in {called[0], called[len(called) // 2]}:
        weight = weight_of(layers[name])
        with Suffix(network, layers[name], inputs) as suffix:
            values = weight.clone()
            weight.mul_(torch.rand_like(weight) < 0.5)
            followed = suffix()
        assert agree(followed, network(inputs), 1e-6), name
        weight.copy_(values)


@pytest.mark.parametrize("name", ["resnet10", "mobilenet_v2", "squeezenet"])
def test_every_norm_behind_a_convolution_is_folded(name: str) -> None:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    network = make().eval()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norm_pairs(network, torch.rand(1, *shape))) == len(norms)
