"""The networks that the notebooks start from, and what every part of delib needs to know of a network."""

from __future__ import annotations

from collections.abc import Mapping

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


@torch.no_grad()
def predict(network: nn.Module, inputs: Tensor, batch: int = 1000) -> Tensor:
    """Outputs for ``inputs`` [n, ...], computed in evaluation mode ``batch`` at a time; the mode is put back."""
    training = network.training
    network.eval()
    try:
        return torch.cat([network(part) for part in inputs.split(batch)])
    finally:
        network.train(training)


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images [n, ...] whose largest logit is at the label [n]."""
    return float((predict(network, images).argmax(1) == labels).float().mean())
