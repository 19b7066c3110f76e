"""The networks that the notebooks start from, and what every part of delib needs to know of a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

WEIGHT_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def lenet300(seed: int = 0) -> nn.Sequential:
    """LeNet-300-100 (LeCun et al. 1998): two hidden layers, 266,200 weights and 410 biases.

    Takes images [n, 1, 28, 28], gives logits [n, 10]. ``seed`` fixes the random initial values.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _named(
            flatten=nn.Flatten(),
            fc1=nn.Linear(784, 300),
            relu1=nn.ReLU(),
            fc2=nn.Linear(300, 100),
            relu2=nn.ReLU(),
            fc3=nn.Linear(100, 10),
        )


def lenet5(seed: int = 0) -> nn.Sequential:
    """LeNet-5 as in Caffe's examples (20-50-500): 430,500 weights and 580 biases.

    Takes images [n, 1, 28, 28], gives logits [n, 10]. ``seed`` fixes the random initial values.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
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


def vgg(seed: int = 0) -> nn.Sequential:
    """A VGG-like network for small images: 3 x 3 convolutions in three stages, no normalisation, 2,412,376 weights.

    Takes images [n, 1, 28, 28], gives logits [n, 10] (after Simonyan and Zisserman 2014, section 2.1, scaled down;
    initial values after He et al. 2015, section 2.2).
    """
    layers: dict[str, nn.Module] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
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


def resnet(seed: int = 0) -> nn.Sequential:
    """A small residual network with batch norm: three blocks of 32, 64 and 128 channels, 306,720 weights.

    Takes images [n, 1, 28, 28], gives logits [n, 10].
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
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


def _named(**modules: nn.Module) -> nn.Sequential:
    network = nn.Sequential()
    for name, module in modules.items():
        network.add_module(name, module)
    return network


def weight_layers(network: nn.Module) -> dict[str, nn.Module]:
    """The layers that can be sparsified, by name, in the order of definition: linear and convolutional ones.

    Raises ValueError if there is none.
    """
    layers: dict[str, nn.Module] = {n: m for n, m in network.named_modules() if isinstance(m, WEIGHT_LAYERS)}
    if not layers:
        raise ValueError(f"{type(network).__name__} has no linear or convolutional layer to sparsify")
    return layers


def weight_key(name: str) -> str:
    """The state dict's key of a layer's weight; a network may itself be the layer, named ''."""
    return f"{name}.weight" if name else "weight"


def weight_of(layer: nn.Module) -> Tensor:
    """A layer's weight, without gradient tracking and sharing its memory."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def parameter_count(network: nn.Module) -> int:
    """Number of trainable values: weights and biases."""
    return sum(p.numel() for p in network.parameters())


def float32_bytes(network: nn.Module) -> int:
    """Size of the network's state dict at 4 bytes a value: the numerator of every compression ratio here."""
    return 4 * sum(int(t.numel()) for t in network.state_dict().values())


def sparsity(network: nn.Module, layers: Mapping[str, nn.Module] | None = None) -> float:
    """Share of zeros among the weights of the given layers, by default of all weight layers."""
    weights = [weight_of(layer) for layer in (layers or weight_layers(network)).values()]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


@contextmanager
def channels_last(*networks: nn.Module) -> Iterator[None]:
    """Inside the block the weights of two-dimensional convolutions lie in memory channels last, afterwards as before.

    The values are the same; on processors the networks here run up to 2.5 times and train up to 1.7 times as fast.
    """
    weights = [p for network in networks for p in network.parameters() if p.dim() == 4 and p.is_contiguous()]
    for weight in weights:
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for weight in weights:
            weight.data = weight.data.contiguous()


@torch.no_grad()
def predict(network: nn.Module, inputs: Tensor, batch: int = 1000) -> Tensor:
    """Outputs for ``inputs`` [n, ...], computed in evaluation mode ``batch`` at a time; the mode is put back."""
    training = network.training
    network.eval()
    try:
        with channels_last(network):
            return torch.cat([network(part) for part in inputs.split(batch)])
    finally:
        network.train(training)


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images [n, ...] whose largest logit is at the label [n]."""
    return float((predict(network, images).argmax(1) == labels).float().mean())
