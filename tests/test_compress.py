"""A network shrunk by least squares alone; compensated rounding beats rounding to the nearest level."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from delib.coding.container import LevelTensor, decode, encode
from delib.coding.quantize import quantize_weight
from delib.coding.quantized import Quantized
from delib.layerwise.compress import Compression, compress, finalize
from delib.layerwise.reconstruct import Moments, moments
from delib.layerwise.rounding import round_compensated
from delib.nn import checkpoint
from delib.nn.checkpoint import saved_to
from delib.nn.divergence import mse
from delib.nn.layers import matrix_of, sparsity, weight_layers, weight_of, with_bias


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten())
    net.append(nn.Linear(12 * 16, 5))
    for layer in weight_layers(net).values():
        weight_of(layer).mul_(torch.rand_like(weight_of(layer)) < 0.7)
    return net.eval()


INPUTS = torch.randn(300, 3, 8, 8, generator=torch.Generator().manual_seed(1)).cumsum(-1)


def rounding_of(net: nn.Module, name: str, bits: int) -> tuple[Moments, Tensor, Tensor, LevelTensor]:
    """A layer's moments, support and matrix, and the levels that it is to be rounded to."""
    layer = net.get_submodule(name)
    levels = quantize_weight(weight_of(layer).numpy(), bits, scaled=True)
    return moments(net, net, name, INPUTS), with_bias(weight_of(layer) != 0, layer), matrix_of(layer), levels


@pytest.mark.parametrize("name", ["0", "2", "5"])
def test_compensated_rounding_uses_the_levels_and_beats_the_nearest(net: nn.Sequential, name: str) -> None:
    sums, support, matrix, levels = rounding_of(net, name, 3)
    result, nearest, k = round_compensated(sums, support, matrix, levels), matrix.clone(), levels.mask[0].size
    nearest[:, :k] = torch.from_numpy(levels.dense()).flatten(1)
    assert sums.error(result).sum() < 0.9 * sums.error(nearest).sum()
    scale = torch.from_numpy(levels.scales).float()[:, None]
    grid = torch.cat([torch.zeros(1), torch.from_numpy(levels.codebook)])
    assert ((result[:, :k] / scale)[..., None] - grid).abs().min(-1).values.max() < 1e-5
    assert not result[~support].any()


@pytest.mark.parametrize("name", ["0", "2", "5"])
def test_after_compensated_rounding_no_single_weight_has_a_better_level(net: nn.Sequential, name: str) -> None:
    sums, support, matrix, levels = rounding_of(net, name, 2)
    result = round_compensated(sums, support, matrix, levels, ridge=0, sweeps=100).double()
    least, scale = sums.error(result), torch.from_numpy(levels.scales).double()
    for row, column in support[:, : levels.mask[0].size].nonzero()[::7].tolist():
        for level in levels.codebook.tolist():
            other = result.clone()
            other[row, column] = level * scale[row]
            assert sums.error(other)[row] >= least[row] * (1 - 1e-6)


def test_a_network_shrinks_by_least_squares_alone_and_its_file_holds_it(net: nn.Sequential) -> None:
    net[2].weight.data.normal_()
    targets = {"2": 0.6, "5": 0.5}
    student, levels = compress(net, INPUTS, targets, rounding=["0", "2"])
    for name, target in targets.items():
        assert sparsity(student, {name: student.get_submodule(name)}) == pytest.approx(target, abs=1e-3)
    cut = copy.deepcopy(net)
    for name in targets:
        mask = weight_of(student.get_submodule(name)) != 0
        weight_of(cut.get_submodule(name)).mul_(mask)
    with torch.no_grad():
        wanted = net(INPUTS)
        error, cut_error = ((n(INPUTS) - wanted).square().mean() for n in (student, cut))
    assert error < 0.3 * cut_error
    quantized = finalize(student, levels, 4)
    held = Quantized(decode(encode(quantized))).network(net)
    assert quantized.bits == 4
    assert torch.equal(held[2].weight, student[2].weight)
    assert torch.equal(held[2].bias, student[2].bias.half().float())


def test_an_interrupted_run_goes_on_to_the_same_bits(
    net: nn.Sequential, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> tuple[nn.Module, dict[str, LevelTensor]]:
        return compress(net, INPUTS, {"0": 0.5, "2": 0.6, "5": 0.7}, rounding=["2"], divergence=mse)

    def counted(student: nn.Module, teacher: nn.Module, name: str, *args: Any, **options: Any) -> Moments:
        seen.append(name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return moments(student, teacher, name, *args, **options)

    seen: list[str] = []
    whole, levels = run()
    monkeypatch.setattr(checkpoint, "SAVE", 0.0)  # whenever there is something to save
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)
    monkeypatch.setattr(sys.modules[compress.__module__], "moments", counted)
    with pytest.raises(KeyboardInterrupt), saved_to(tmp_path / "compress.ckpt"):
        run()
    with saved_to(tmp_path / "compress.ckpt"):
        resumed, taken_up = run()
    assert seen == ["0", "2", "5", "5"], "the first two were there"
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))
    assert encode(levels) == encode(taken_up)


def test_an_unknown_layer_is_named(net: nn.Sequential) -> None:
    with pytest.raises(ValueError, match="'conv9'"):
        compress(net, INPUTS, {"conv9": 0.5})


def test_sensitive_outputs_keep_more_weights(net: nn.Sequential) -> None:
    """With a divergence that sees one output of the last layer alone, that output's row keeps the most survivors."""
    student, _ = compress(net, INPUTS, {"5": 0.6}, divergence=lambda s, t: mse(s[:, 2], t[:, 2]))
    alive = (weight_of(student.get_submodule("5")) != 0).sum(1)
    assert int(alive.argmax()) == 2


@torch.no_grad()
def test_draws_move_errors_to_positions_that_no_one_looks_at() -> None:
    """Noise on the left, smooth on the right, where alone the divergence looks."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    noise = torch.randn(200, 3, 12, 12)
    inputs = torch.cat([3 * noise[..., :6], noise[..., 6:].cumsum(-1).cumsum(-2) / 4], -1)
    fresh, inputs = inputs[:40], inputs[40:]
    looked_at = lambda ours, theirs: mse(ours[..., 5:], theirs[..., 5:])  # noqa: E731
    targets, options = dict.fromkeys(weight_layers(network), 0.6), {"divergence": looked_at}
    errors = []
    for draws in (0, 2):
        student, _ = compress(network, inputs, targets, Compression(draws=draws), **options)
        errors.append(float(looked_at(student(fresh), network(fresh))))
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("options", [{}, {"divergence": mse, "position_weights": lambda answers: answers[:, 0]}])
def test_draws_need_a_divergence_and_nothing_else(net: nn.Sequential, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="draws measure sensitivities to a divergence"):
        compress(net, INPUTS, {"2": 0.5}, Compression(draws=1), **options)


def test_zeroes_without_a_target_stay(net: nn.Sequential) -> None:
    """A sparse network that is only rounded keeps its survivors."""
    student, levels = compress(net, INPUTS, {}, Compression(bits=3), rounding=["2"])
    assert torch.equal(weight_of(student[2]) != 0, weight_of(net[2]) != 0)
    assert list(levels) == ["2"]
    assert len(levels["2"].codebook) <= 8
    assert all(
        torch.equal(weight_of(m), weight_of(student.get_submodule(n)))
        for n, m in weight_layers(net).items()
        if n != "2"
    )


@pytest.mark.parametrize(
    ("settings", "named"), [({"bits": 17}, "1..16"), ({"batch": 0}, "batch"), ({"ridge": -1.0}, "ridge")]
)
def test_wrong_settings_are_named(settings: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Compression(**settings)


@pytest.mark.parametrize(("divergence", "prices"), [(None, (1e-6, 1e-5, 1e-4)), (mse, (1e-8, 1e-7, 1e-6))])
def test_a_price_of_a_bit_trades_bytes_for_error(net: nn.Sequential, divergence: Any, prices: Any) -> None:
    """What the file holds is what the network answers with."""
    sizes, errors = [], []
    for price in prices:
        settings = Compression(multiplier=price)
        student, levels = compress(net, INPUTS, {"2": 0.6}, settings, rounding=["0", "2", "5"], divergence=divergence)
        held = finalize(student, levels).network(student)
        for name, tensor in levels.items():
            assert (weight_of(held.get_submodule(name)).numpy() == tensor.dense()).all()
            assert torch.equal(weight_of(held.get_submodule(name)), weight_of(student.get_submodule(name)))
        sizes.append(len(encode(levels)))
        with torch.no_grad():
            errors.append(float(mse(held(INPUTS), net(INPUTS))))
    assert sizes[0] > sizes[1] > sizes[2]
    assert errors[0] < errors[1] < errors[2]
