"""Folding norms changes nothing that the network computes, and neither does unfolding them."""

import pytest
import torch
from torch import nn

from delib.nn.batchnorm import folded, norm_pairs, unfolded


class Net(nn.Module):
    """A skip around a block; one convolution with a norm, one with a norm and a bias, one whose output is used bare."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.c2, self.b2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.c3, self.b3 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b1(self.c1(x)).relu()
        x = x + self.b2(self.c2(x))
        return self.b3(self.c3(x).relu())


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    net = Net()
    for _ in range(20):
        net(torch.randn(8, 3, 6, 6) + 1)
    for norm in (net.b1, net.b2, net.b3):
        nn.init.normal_(norm.weight, 1, 0.3)
        nn.init.normal_(norm.bias)
    return net.eval()


INPUTS = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def test_only_norms_right_behind_a_layer_are_paired(net: Net) -> None:
    assert norm_pairs(net, INPUTS) == {"c1": "b1", "c2": "b2"}


@torch.no_grad()
def test_there_and_back_the_network_computes_the_same(net: Net) -> None:
    pairs = norm_pairs(net, INPUTS)
    wanted = net(INPUTS)
    flat = folded(net, pairs)
    back = unfolded(flat, net, pairs)
    assert torch.allclose(flat(INPUTS), wanted, atol=1e-5)
    assert torch.allclose(back(INPUTS), wanted, atol=1e-5)
    assert torch.equal(net(INPUTS), wanted)
    assert {n: t.shape for n, t in back.state_dict().items()} == {n: t.shape for n, t in net.state_dict().items()}
    assert len(back.b1.running_var.unique()) == 1
    assert not back.b2.running_mean.any()
