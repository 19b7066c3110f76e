"""A network of one's own for those who have none at hand: torchvision's ResNet-18, trained briefly on FashionMNIST."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from delib.data.images import Split, fashion_mnist
from delib.data.teachers import teacher

LEARNED = 20000  # training images in use: with all of them an epoch takes minutes on two cores
EPOCHS = 2


def resnet18() -> nn.Module:
    """ResNet-18 (He et al. 2015, table 1) for ten classes, trained on the images that ``images`` begins with; kept in
    the cache."""
    return teacher(_resnet18, _three_channels(fashion_mnist().train.take(0, LEARNED)), EPOCHS, learning_rate=0.05)


def _resnet18(seed: int) -> nn.Module:
    from torchvision import models

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.resnet18(num_classes=10)


def images() -> Tensor:
    """FashionMNIST in three equal channels, [30000, 3, 28, 28]: the 20,000 training images in use, then the 10,000 test
    images."""
    data = fashion_mnist()
    return torch.cat([part.images for part in (data.train.take(0, LEARNED), data.test)]).expand(-1, 3, -1, -1)


def labels() -> Tensor:
    """The classes of ``images``, [30000]."""
    data = fashion_mnist()
    return torch.cat([data.train.labels[:LEARNED], data.test.labels])


def _three_channels(data: Split) -> Split:
    return Split(data.images.expand(-1, 3, -1, -1), data.labels)
