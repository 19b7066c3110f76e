"""Levels against brute force, and the network that the levels give."""

import itertools

import kmeans1d
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from delib.coding.container import LevelTensor, decode, encode
from delib.coding.quantize import (
    coded_levels,
    in_half_precision,
    kmeans_levels,
    quantize_tensors,
    quantize_weight,
    uniform_levels,
)
from delib.coding.quantized import Quantized
from delib.data.classifiers import lenet300
from delib.layerwise.compress import quantize
from delib.nn.layers import weight_layers, weight_of


def squared_error(values: np.ndarray, levels: np.ndarray) -> float:
    return float(((values[:, None].astype(float) - levels[None].astype(float)) ** 2).min(1).sum())


def least_squared_error(values: np.ndarray, count: int) -> float:
    """By trying every way to cut the sorted values into clusters."""
    ordered = np.sort(values).astype(float)
    ways = itertools.combinations(range(1, len(ordered)), count - 1)
    return min(sum(((p - p.mean()) ** 2).sum() for p in np.split(ordered, cuts)) for cuts in ways)


VALUES = hnp.arrays(np.float32, st.integers(2, 11), elements=st.floats(-4, 4, width=32))


@settings(max_examples=150, deadline=None)
@given(VALUES, st.integers(1, 5))
def test_kmeans_is_as_good_as_trying_everything(values: np.ndarray, count: int) -> None:
    levels = kmeans_levels(values, count)
    assert len(levels) <= count
    assert np.all(np.diff(levels) > 0)
    best = least_squared_error(values, min(count, len(values)))
    assert squared_error(values, levels) <= best + 1e-4 * (1 + best)


def test_kmeans_on_many_values_cannot_be_improved_by_lloyds_iterations() -> None:
    values = np.random.default_rng(0).laplace(size=200_000)
    levels = kmeans_levels(values, 16)
    ours = refined = squared_error(values, levels)
    for _ in range(20):
        nearest = np.abs(values[:, None] - levels[None]).argmin(1)
        levels = np.bincount(nearest, values) / np.bincount(nearest)
        refined = min(refined, squared_error(values, levels))
    assert ours <= 1.0001 * refined
    assert ours < squared_error(values, uniform_levels(values, 16))


@settings(deadline=None)
@given(VALUES, st.integers(1, 8))
def test_uniform_levels_are_equally_spaced_within_the_range(values: np.ndarray, count: int) -> None:
    levels = uniform_levels(values, count).astype(float)
    assert values.min() <= levels.min()
    assert levels.max() <= values.max()
    step = (float(values.max()) - float(values.min())) / count
    assert np.all(np.abs(values[:, None] - levels[None]).min(1) <= step / 2 + 1e-5)


@settings(deadline=None)
@given(hnp.arrays(np.float32, (5, 7), elements=st.floats(-2, 2, width=32)), st.integers(1, 4))
def test_zeros_stay_zero_and_every_survivor_takes_its_nearest_level(weight: np.ndarray, bits: int) -> None:
    tensor = quantize_weight(weight, bits)
    dense = tensor.dense()
    assert np.all(dense[weight == 0] == 0)
    assert np.array_equal(tensor.mask, weight != 0)
    assert len(tensor.codebook) <= 2**bits
    nearest = np.abs(weight[..., None] - tensor.codebook).min(-1)
    assert np.allclose(np.abs(weight - dense)[tensor.mask], nearest[tensor.mask])


def network_with_norm() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    net(torch.randn(8, 2, 4, 4))  # moves the norm's running statistics
    weight_of(net[0]).view(-1)[::2] = 0
    return net.eval()


def test_the_decoded_network_is_the_quantised_network() -> None:
    original = network_with_norm()
    quantized = quantize(original, bits=3)
    student = quantized.network(original)
    decoded = Quantized(decode(encode(quantized))).network(original)
    for (name, a), b in zip(student.state_dict().items(), decoded.state_dict().values(), strict=True):
        assert a.dtype == b.dtype, name
        assert torch.equal(a, b), name
    x = torch.randn(5, 2, 4, 4)
    assert torch.equal(student(x), decoded(x))
    for layer in weight_layers(student).values():
        assert len(weight_of(layer).unique()) <= 2**3 + 1
    assert torch.equal(student[1].running_var, original[1].running_var)


def test_bits_may_differ_by_layer() -> None:
    quantized = quantize(lenet300(), bits={"fc1": 2, "fc2": 3, "fc3": 5})
    counts = {name: len(t.codebook) for name, t in quantized.items() if isinstance(t, LevelTensor)}
    assert counts == {"fc1.weight": 4, "fc2.weight": 8, "fc3.weight": 32}


def test_a_bare_state_dict_quantises_like_its_network() -> None:
    network = lenet300()
    a, b = quantize(network, bits=4), quantize_tensors(network.state_dict(), 4)
    assert encode(a) == encode(b)


def test_another_networks_file_is_refused_in_one_line() -> None:
    quantized = quantize(network_with_norm())
    with pytest.raises(ValueError, match="another network") as refusal:
        quantized.network(lenet300())
    assert "\n" not in str(refusal.value)
    other = nn.Sequential(nn.Conv2d(2, 4, 5), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(ValueError, match=r"0\.weight"):
        quantized.network(other)


@pytest.mark.parametrize("wrong", [{"bits": 0}, {"bits": 17}, {"method": "magic"}, {"bits": {"fc1": 4}}])
def test_wrong_arguments_are_named(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"bits|magic"):
        quantize(lenet300(), **wrong)


def test_sparsity_counts_the_zeros_of_the_quantised_layers() -> None:
    network = lenet300()
    weight_of(network.fc1).view(-1)[:235_200] = 0
    assert quantize(network).sparsity == pytest.approx(235_200 / 266_200)


@pytest.mark.parametrize("draw", ["laplace", "normal", "uniform"])
def test_many_levels_are_nearly_as_good_as_the_optimum(draw: str) -> None:
    values = getattr(np.random.default_rng(1), draw)(size=40_000).astype(np.float32)
    best = np.asarray(kmeans1d.cluster(values.astype(np.float64), 128).centroids)
    levels = kmeans_levels(values, 128)
    assert len(levels) <= 128
    assert squared_error(values, levels) < 1.3 * squared_error(values, best)


def test_sixteen_bits_take_no_longer_than_sorting_does() -> None:
    values = np.random.default_rng(2).normal(size=300_000).astype(np.float32)
    levels = kmeans_levels(values, 1 << 16)
    assert 1 << 15 < len(levels) <= 1 << 16
    # The optimal error of many levels is (∫ p^(1/3))³ / (12 n²): for the standard normal √3 π / 2 n² (Panter and Dite).
    nearest = levels[np.clip(np.searchsorted((levels[1:] + levels[:-1]) / 2, values), 0, len(levels) - 1)]
    assert ((values - nearest) ** 2).mean() < 2 * np.sqrt(3) * np.pi / 2 / len(levels) ** 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float16])
def test_types_that_numpy_lacks_are_read_as_float32(dtype: torch.dtype) -> None:
    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    held = quantize_tensors({"w": weight, "b": weight[0].clone()}, bits=16)
    assert np.array_equal(held["w"].dense(), weight.float().numpy())  # type: ignore[union-attr]
    assert np.array_equal(np.asarray(held["b"]), weight[0].float().numpy())


def test_what_is_not_finite_is_kept_whole_or_refused_by_name() -> None:
    mask = torch.full((6, 6), -torch.inf).triu(1)
    assert np.array_equal(np.asarray(quantize_tensors({"mask": mask})["mask"]), mask.numpy())
    for value in (torch.nan, torch.inf):
        weight = torch.randn(4, 4)
        weight[1, 1] = value
        with pytest.raises(ValueError, match=r"^w holds values that are not finite"):
            quantize_tensors({"w": weight}, {"w": 4})
    with pytest.raises(ValueError, match=r"^w holds"):
        quantize_tensors({"w": torch.full((2, 2), torch.nan)})


@pytest.mark.parametrize("count", [8, 16, 32])
def test_coded_levels_are_those_that_an_entropy_coder_makes_most_of(count: int) -> None:
    """Of normal values the uniform ones, but not if a value lies far out."""
    normal = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    levels = coded_levels(normal, count)
    assert np.array_equal(levels, uniform_levels(normal, count))
    assert np.abs(normal - levels[np.abs(normal[:, None] - levels).argmin(1)]).max() < 8 / count
    far = np.append(normal, np.float32(1000))
    assert np.array_equal(coded_levels(far, count), kmeans_levels(far, count))


def test_a_value_far_out_among_many_has_its_own_level() -> None:
    values = np.append(np.random.default_rng(0).normal(size=50_000), 1000).astype(np.float32)
    levels = kmeans_levels(values, 16)
    assert levels[-1] == 1000
    assert np.abs(levels[:-1]).max() < 5


def test_a_single_value_is_its_own_level() -> None:
    assert coded_levels(np.full(5, 0.3, np.float32), 16).tolist() == [np.float32(0.3)]


def test_levels_take_half_the_bytes_where_that_hardly_matters_and_are_exact_where_it_would() -> None:
    values = np.random.default_rng(0).laplace(size=3000).astype(np.float32)
    for levels in (kmeans_levels(values, 16), uniform_levels(values, 5)):
        rounded = in_half_precision(levels, values)
        assert np.array_equal(rounded, levels.astype(np.float16).astype(np.float32))
    few = np.float32([-0.1, 0.1, 1 / 3])  # kept without any loss, which a rounded level would be
    assert np.array_equal(in_half_precision(few, np.repeat(few, 5)), few)
    assert in_half_precision(np.float32([1e5, 2e5]), np.float32([1e5, 1.1e5, 2.2e5])).tolist() == [1e5, 2e5], (
        "too large"
    )
    assert in_half_precision(np.float32([1e-9, 2e-9]), np.float32([1e-9, 2.5e-9])).tolist() == [
        *np.float32([1e-9, 2e-9])
    ], "too small"
    close = np.float32([1, 1.0001])
    assert np.array_equal(in_half_precision(close, np.float32([0, 2])), close), "two would become one"
