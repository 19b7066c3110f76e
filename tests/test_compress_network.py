"""A network compressed in one call: as sparse as asked, few levels, and the plain network loads what comes back."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import delib
from delib.coding import LevelTensor
from delib.distillation import Recipe, cost
from delib.nn import accuracy, weight_layers, weight_of


class Small(nn.Module):
    """Convolutions with norms, a skip, and a head that only training calls."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.c2, self.b2 = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.head, self.aux = nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b1(self.c1(x)))
        x = (x + F.relu(self.b2(self.c2(x)), inplace=True)).mean((2, 3))
        return self.head(x) + self.aux(x) if self.training else self.head(x)


def stripes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy images [count, 1, 8, 8] of stripes, across, down or along a diagonal: which is the label."""
    generator = torch.Generator().manual_seed(seed)
    labels, shift = (
        torch.randint(0, 4, (count,), generator=generator),
        torch.randint(0, 4, (count,), generator=generator),
    )
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    ways = torch.stack([y, x, x + y, x - y])
    bright = ((ways[labels] + shift[:, None, None]) % 4 < 2).float()
    return (bright + 0.5 * torch.randn(count, 8, 8, generator=generator))[:, None], labels


@pytest.fixture(scope="module")
def trained() -> Small:
    torch.manual_seed(0)
    network, (images, labels) = Small(), stripes(2000, 0)
    adam = torch.optim.Adam(network.parameters(), 0.01)
    for step in range(120):
        part = slice(step % 20 * 100, (step % 20 + 1) * 100)
        adam.zero_grad()
        F.cross_entropy(network(images[part]), labels[part]).backward()
        adam.step()
    return network


@pytest.mark.filterwarnings("ignore:left dense")
def test_one_call_compresses_a_network_that_then_loads_into_the_plain_one(trained: Small) -> None:
    images, labels = stripes(1000, 1)
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    quantized = delib.compress(trained, stripes(2000, 2)[0], 0.75, 3, recipe=Recipe(200, 64, 0.01, horizon=500))
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())
    network = delib.decode(delib.encode(quantized)).network(like=Small()).eval()
    evolved = {name: weight_of(layer) for name, layer in weight_layers(network).items() if name != "aux"}
    assert sum(int((w == 0).sum()) for w in evolved.values()) >= 0.75 * sum(w.numel() for w in evolved.values())
    assert all(len(tensor.codebook) <= 8 for tensor in quantized.values() if isinstance(tensor, LevelTensor))
    assert weight_of(network.aux).count_nonzero() == network.aux.weight.numel()
    whole, rest = accuracy(trained.eval(), images, labels), accuracy(network, images, labels)
    assert whole > 0.9
    assert rest > whole - 0.04
    assert len(delib.encode(quantized)) < 2500


@pytest.mark.parametrize(
    ("options", "message"),
    [({"sparsity": 1.0}, "sparsity"), ({"bits": 17}, "bits"), ({"recipe": "short"}, "brief, standard, thorough")],
)
def test_what_is_out_of_range_is_refused(trained: Small, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        delib.compress(trained, stripes(20, 0)[0], **options)


def test_the_cost_is_that_of_its_steps(trained: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    module, now = import_module("delib.distillation.compress"), 0.0
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)

    def distilled(student: nn.Module, teacher: nn.Module, inputs: Tensor, recipe: Recipe) -> None:
        nonlocal now
        now += 7 + 0.5 * recipe.steps  # to begin takes its time, too

    monkeypatch.setattr(module, "distill", distilled)
    images, _ = stripes(100, 0)
    seconds, size = cost(trained, images, Recipe(400, 64))
    assert seconds == 0.5 * 400
    assert cost(trained, images, Recipe(40000, 64))[0] == 100 * seconds
    assert cost(trained, images, Recipe(400, 256))[1] > size > 8 * 4 * sum(p.numel() for p in trained.parameters())
