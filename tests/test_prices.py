"""Prices of a bit by layer, against errors measured by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from delib.layerwise import Compression, assessed_prices
from delib.nn import copied, mse, weight_layers, weight_of

INPUTS = torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(1)).cumsum(-1)


class Saturating(nn.Module):
    """Two heads on one trunk; what the second answers saturates."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
        self.plain, self.bent = nn.Conv2d(6, 4, 3), nn.Conv2d(6, 4, 3)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.trunk(x)
        return [self.plain(x), self.bent(x)]


def squares(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
    return mse(ours[0], theirs[0]) + mse((3 * ours[1]).tanh(), (3 * theirs[1]).tanh())


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return Saturating().eval()


@pytest.fixture(scope="module")
def student(network: nn.Module) -> nn.Module:
    noisy = copied(network)
    chance = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in weight_layers(noisy).values():
            weight_of(layer).add_(torch.randn(weight_of(layer).shape, generator=chance) * 0.3)
    return noisy


@pytest.mark.parametrize("settings", [Compression(), Compression(draws=20)])
def test_where_errors_cost_what_is_said_the_price_stays(network, student, settings) -> None:
    """A squared error of the answer itself has no higher derivatives; a saturating one costs less than is said."""
    prices = assessed_prices(network, student, INPUTS, 1e-5, squares, settings)
    assert list(prices) == list(weight_layers(network))
    assert prices["plain"] == pytest.approx(1e-5, rel=0.1)
    assert prices["bent"] > 2e-5


def test_the_factor_is_what_is_said_over_what_is_measured(network, student) -> None:
    """By hand, of the last layer: half the curvature times the squared error, where the former is evenly 2."""
    alone = copied(network)
    alone.plain.load_state_dict(student.plain.state_dict())
    cubes = lambda ours, theirs: mse(ours[0], theirs[0]) + (ours[0] - theirs[0]).abs().pow(3).mean()  # noqa: E731
    with torch.no_grad():
        ours, theirs = alone(INPUTS[:64]), network(INPUTS[:64])
        factor = float(mse(ours[0], theirs[0]) / cubes(ours, theirs))
    assert assessed_prices(network, student, INPUTS, 1.0, cubes)["plain"] == pytest.approx(factor, rel=0.02)


def test_a_layer_without_errors_gets_the_median(network, student) -> None:
    kept = copied(student)
    kept.trunk.load_state_dict(network.trunk.state_dict())
    prices = assessed_prices(network, kept, INPUTS, 1e-5, squares)
    assert prices["trunk.0"] == pytest.approx((prices["plain"] + prices["bent"]) / 2)
    assert set(assessed_prices(network, network, INPUTS, 1e-5, squares).values()) == {1e-5}
