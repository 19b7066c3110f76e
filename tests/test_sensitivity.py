"""Sensitivities against full Hessians and Jacobians."""

import pytest
import torch
from torch import nn

from delib.nn.divergence import kl, mse, soft_kl
from delib.nn.sensitivity import LEAST, position_sensitivities, sensitivities, sensitivity


def tiny(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


INPUTS = torch.randn(200, 6, generator=torch.Generator().manual_seed(1))


def test_sensitivity_is_the_diagonal_of_the_hessian() -> None:
    network = tiny()
    middle = network[:3](INPUTS).detach()
    goal = network(INPUTS).detach()
    tail = network[3:]
    expected = torch.zeros(5)
    for z, t in zip(middle, goal, strict=True):
        full = torch.autograd.functional.hessian(lambda z, t=t: soft_kl(tail(z)[None], t[None]), z)
        expected += full.diagonal() / len(middle) ** 2  # the mean over inputs of the divergence, which is itself a mean
    got = torch.stack([sensitivity(network, network[2], INPUTS, soft_kl, seed) for seed in range(20)]).mean(0)
    assert torch.allclose(got, expected.clamp_min(1e-3 * expected.max()), rtol=0.15, atol=0.02 * float(expected.max()))


def test_a_divergence_without_curvature_makes_all_rows_alike() -> None:
    network = tiny()
    assert (sensitivity(network, network[2], INPUTS, lambda s, t: (s - t).abs().max()) == 1).all()
    with pytest.raises(ValueError, match="never called"):
        sensitivity(network, nn.Linear(2, 2), INPUTS, kl)


def test_sensitivities_are_the_squared_jacobian() -> None:
    """By mean squared error, whose curvature is the same for each output; all layers in one pass."""
    network = tiny()
    layers = {name: network[int(name)] for name in "02"}
    got = [sensitivities(network, layers, INPUTS, mse, seed) for seed in range(40)]
    for name in layers:
        tail = network[int(name) + 1 :]
        middle = network[: int(name) + 1](INPUTS).detach()
        slopes = torch.stack([torch.autograd.functional.jacobian(tail, z) for z in middle])  # [n, outputs, rows]
        expected = slopes.square().sum(1).mean(0)
        mean = torch.stack([rows[name] for rows in got]).mean(0)
        assert torch.allclose(mean / mean.sum(), expected / expected.sum(), rtol=0.1, atol=0.003)


def test_sensitivities_of_a_convolution_used_twice_and_of_several_answers() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            first = self.conv(x)
            return [first, self.conv(first.tanh())]

    torch.manual_seed(0)
    network, inputs = Twice().eval(), torch.randn(3, 2, 4, 4)
    divergence = lambda ours, theirs: sum(w * mse(a, b) for w, a, b in zip((1.0, 3.0), ours, theirs, strict=True))  # noqa: E731
    got = torch.stack(
        [sensitivities(network, {"conv": network.conv}, inputs, divergence, s)["conv"] for s in range(60)]
    )
    expected = torch.zeros(2)
    for x in inputs:
        first = network.conv(x[None]).detach()
        tail = torch.autograd.functional.jacobian(lambda z: network.conv(z.tanh()), first).view(32, 2, 16)
        expected += 3 * tail.square().sum((0, 2)) + 16 + 3 * 16  # behind the first call, itself, and the second one
    mean = got.mean(0)
    assert torch.allclose(mean / mean.sum(), expected / expected.sum(), rtol=0.1)
    with pytest.raises(ValueError, match="never calls layer 'other'"):
        sensitivities(network, {"other": nn.Linear(2, 2)}, inputs, divergence)


def test_position_sensitivities_are_the_squared_jacobian_by_position() -> None:
    """One half of each image is what the answer looks at."""
    torch.manual_seed(0)
    conv, last = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)
    network, inputs = nn.Sequential(conv, nn.Tanh(), last).eval(), torch.randn(2, 2, 6, 5)
    seen = torch.linspace(0, 2, 5).square()
    divergence = lambda ours, theirs: (seen * (ours - theirs).square()).sum() / len(ours)  # noqa: E731
    rows = torch.tensor([0.5, 1.0, 4.0])
    layers = {"conv": conv, "last": last}
    got = position_sensitivities(network, layers, {"conv": rows, "last": rows[:2]}, inputs, divergence, 400, batch=1)
    expected = []
    for x in inputs:
        middle = conv(x[None]).detach()
        slopes = torch.autograd.functional.jacobian(lambda z: last(z.tanh()) * seen.sqrt(), middle)
        expected.append((slopes.view(-1, 3, 6, 5).square().sum(0) / rows[:, None, None]).mean(0))
    for name, share in (("conv", torch.stack(expected)), ("last", seen.expand(2, 6, 5))):
        around = nn.functional.unfold(nn.functional.pad(share[:, None], (1, 1, 1, 1), value=torch.nan), 3)
        mean = around.nanmean(1).view_as(share)
        assert torch.allclose(got[name], LEAST + mean / mean.mean(), rtol=0.15)
        assert float(got[name].mean()) == pytest.approx(1 + LEAST)


def test_position_sensitivities_do_not_depend_on_the_batch_nor_on_a_divergence_without_curvature() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 2, 3)
    network, inputs = nn.Sequential(conv, nn.Tanh(), nn.Flatten(), nn.Linear(32, 3)).eval(), torch.randn(5, 1, 6, 6)
    of = lambda divergence, batch: position_sensitivities(  # noqa: E731
        network, {"0": conv}, {"0": torch.ones(2)}, inputs, divergence, 600, batch
    )["0"]
    assert torch.allclose(of(mse, 3), of(mse, 1), rtol=0.15)
    assert (of(lambda s, t: (s - t).abs().max(), 5) == 1 + LEAST).all()


def test_position_sensitivities_of_fine_maps_are_pooled() -> None:
    conv = nn.Conv2d(1, 2, 3, padding=1)
    maps = position_sensitivities(
        nn.Sequential(conv), {"0": conv}, {"0": torch.ones(2)}, torch.randn(3, 1, 130, 70), mse
    )
    assert maps["0"].shape == (3, 64, 64) and torch.allclose(maps["0"], torch.tensor(1 + LEAST))
