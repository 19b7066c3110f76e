"""The networks that the notebooks start from: each takes images [n, 1, 28, 28] and gives logits [n, 10]."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from itertools import pairwise

import torch
from torch import Tensor, nn

from delib.nn.layers import weight_layers, weight_of


def _seeded(make: Callable[[], nn.Sequential]) -> Callable[..., nn.Sequential]:
    """``make`` with a parameter ``seed`` that fixes the initial values; the global generator stays as it is."""

    @wraps(make)
    def seeded(seed: int = 0) -> nn.Sequential:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return make()

    return seeded


def _named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


@_seeded
def lenet300() -> nn.Sequential:
    """LeNet-300-100 (LeCun et al. 1998): two hidden layers, 266,200 weights and 410 biases."""
    return _named(
        flatten=nn.Flatten(),
        fc1=nn.Linear(784, 300),
        relu1=nn.ReLU(),
        fc2=nn.Linear(300, 100),
        relu2=nn.ReLU(),
        fc3=nn.Linear(100, 10),
    )


@_seeded
def lenet5() -> nn.Sequential:
    """LeNet-5 as in Caffe's examples (20-50-500): 430,500 weights and 580 biases."""
    return _named(
        conv1=nn.Conv2d(1, 20, 5),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(20, 50, 5),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(800, 500),
        relu1=nn.ReLU(),
        fc2=nn.Linear(500, 10),
    )


@_seeded
def vgg() -> nn.Sequential:
    """A VGG-like network for small images: 3 x 3 convolutions in three stages, no normalisation, 2,412,376 weights
    (after Simonyan and Zisserman 2014, section 2.1, scaled down; initial values after He et al. 2015, section 2.2)."""
    layers: dict[str, nn.Module] = {}
    for i, (before, after) in enumerate(pairwise([1, 24, 48, 96, 96, 192, 192]), start=1):
        layers |= {f"conv{i}": nn.Conv2d(before, after, 3, padding=1), f"relu{i}": nn.ReLU()}
        if i in (1, 2, 4):
            layers[f"pool{i}"] = nn.MaxPool2d(2)
    layers |= {"flatten": nn.Flatten(), "fc1": nn.Linear(1728, 1024), "relu7": nn.ReLU()}
    network = _named(**layers, fc2=nn.Linear(1024, 10))
    for layer in weight_layers(network).values():  # without norms only this scale lets deep layers learn
        nn.init.kaiming_normal_(weight_of(layer), nonlinearity="relu")
    return network


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm, added to their input (He et al. 2015, section 3.3)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.skip: nn.Module = nn.Identity()
        if before != after or stride != 1:
            self.skip = _named(conv=nn.Conv2d(before, after, 1, stride, bias=False), bn=nn.BatchNorm2d(after))
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(inner + self.skip(x))


@_seeded
def resnet() -> nn.Sequential:
    """A small residual network with batch norm: three blocks of 32, 64 and 128 channels, 306,720 weights."""
    return _named(
        conv=nn.Conv2d(1, 32, 3, 2, 1, bias=False),
        bn=nn.BatchNorm2d(32),
        relu=nn.ReLU(),
        block1=ResidualBlock(32, 32, 1),
        block2=ResidualBlock(32, 64, 2),
        block3=ResidualBlock(64, 128, 2),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(128, 10),
    )


CLASSIFIERS = {make.__name__: make for make in (lenet300, lenet5, resnet, vgg)}
