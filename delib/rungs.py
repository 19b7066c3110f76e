"""Layers trade zeros: a student's layers a little sparser and a little denser, and the network's own word on which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from delib.allocate import Version
from delib.refit import RIDGE, STEPS, Moments, refit

# Layer sparsities known to be good. YOLOv3-tiny's: what an earlier search, by least sum of relative layer errors, found
# for 90%; its first three layers are 0.3% of its weights and stay dense. The ResNet's: what ``allocate.allocate`` found
# for 92.5% on FashionMNIST in 20 generations.
SHAPES: dict[str, dict[str, float]] = {
    "yolov3-tiny": {
        "c6": 0.50, "c8": 0.75, "c10": 0.885, "c12": 0.96, "c13": 0.64, "c14": 0.885, "c15": 0.69, "c18": 0.22,
        "c21": 0.89, "c22": 0.60,
    },
    "resnet": {
        "conv": 0.2, "block1.conv1": 0.8, "block1.conv2": 0.7, "block2.conv1": 0.9, "block2.conv2": 0.9,
        "block2.skip.conv": 0.2, "block3.conv1": 0.95, "block3.conv2": 0.97, "block3.skip.conv": 0.7, "fc": 0.7,
    },
}  # fmt: skip
FACTORS = (1.56, 1.25, 1.0, 0.8, 0.64)  # of the survivors: exchanges of about a quarter of a layer


class Rungs:
    """For ``compensate.compensated`` to ``watch``: every sparse layer at several numbers of survivors.

    ``factors`` multiply the number of survivors that the layer's target leaves it, at most to the whole layer.
    ``versions`` then holds a ``Version`` for each, refitted (see ``refit`` for ``ridge`` and ``steps``) to what the
    layers before deliver at factor 1. The supports are nested, by the weights' worth in the layer's own sparse least
    squares.
    """

    def __init__(self, factors: Sequence[float] = FACTORS, ridge: float = RIDGE, steps: int = STEPS) -> None:
        self.factors, self.ridge, self.steps = tuple(factors), ridge, steps
        self.versions: dict[str, list[Version]] = {}

    def __call__(self, name: str, sums: Moments, matrix: Tensor, strength: Tensor, survivors: int) -> None:
        self.versions[name] = [self._version(sums, matrix, strength, round(f * survivors)) for f in self.factors]

    def _version(self, sums: Moments, matrix: Tensor, strength: Tensor, survivors: int) -> Version:
        weights = strength[:, : strength.shape[1] - sums.bias]
        support = torch.ones_like(matrix, dtype=torch.bool)
        alive = torch.zeros(weights.numel(), dtype=torch.bool, device=weights.device)
        alive[weights.flatten().topk(min(survivors, weights.numel())).indices] = True
        support[:, : weights.shape[1]] = alive.view_as(weights)
        fitted = refit(sums, support, matrix, self.ridge, self.steps)
        return Version(support, fitted[support], float(sums.error(fitted).sum() / sums.energy.sum()))


def spread(sizes: Mapping[str, int], sparsity: float, shape: Mapping[str, float]) -> dict[str, float]:
    """Layer sparsities that add up to ``sparsity`` of all weights: the survivors of ``shape`` times one common factor.

    ``sizes`` are the layers' numbers of weights; layers not in ``shape`` stay dense, none is denser than that.
    Where ``shape`` adds up to ``sparsity`` already, to half a percent, it is taken as it is.
    Raises ValueError if the layers in ``shape`` have fewer weights than are to be zero.
    """
    total, wanted = sum(sizes.values()), sparsity * sum(sizes.values())
    if wanted > sum(sizes[name] for name in shape):
        raise ValueError(f"a sparsity of {sparsity} needs more zeros than {', '.join(shape)} have weights")

    def at(factor: float) -> dict[str, float]:
        return {name: max(0.0, 1 - factor * (1 - share)) for name, share in shape.items()}

    def zeros(factor: float) -> float:
        return sum(share * sizes[name] for name, share in at(factor).items())

    if abs(zeros(1.0) - wanted) < 0.005 * total:
        return dict(shape)
    low, high = 0.0, 1 / max(1e-9, 1 - max(shape.values()))
    for _ in range(60):  # more survivors, fewer zeros: by halving
        middle = (low + high) / 2
        low, high = (middle, high) if zeros(middle) > wanted else (low, middle)
    return at(low)
