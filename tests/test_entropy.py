"""Entropy-constrained quantisation against theory: the rate-distortion function, closed forms, and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from delib.coding import (
    cheapest,
    encode,
    entropy_constrained,
    entropy_of,
    power_levels,
    quantize_entropy,
    rate_distortion_bound,
)
from delib.coding.entropy import Rated

Array = NDArray[np.float64]


def quantiles(count: int = 200_001) -> Array:
    """Equally likely values of a Laplace source of variance 1."""
    u = (np.arange(count) + 0.5) / count - 0.5
    return -np.sign(u) * np.log1p(-2 * np.abs(u)) / math.sqrt(2)


def rate_and_distortion(values: Array, rated: Rated, multiplier: float) -> tuple[float, float]:
    indices = cheapest(values, rated, multiplier)
    shares = np.bincount(indices, minlength=len(rated.levels)) / len(values)
    rate = -sum(p * math.log2(p) for p in shares if p > 0)
    return rate, float(((values - rated.levels[indices]) ** 2).mean())


def dead_zone(step: float, rounding: float) -> tuple[float, float]:
    """Rate and distortion of a uniform quantiser with a dead zone and centroids, which is the form of the optimal
    entropy-constrained one for a Laplace source (Sullivan 1996), in closed form."""
    a = math.sqrt(2)
    edge = step * (1 - rounding)  # where the dead zone ends; bins of one step follow
    outside = math.exp(-a * edge)
    ratio = math.exp(-a * step)
    bins = outside * (1 - ratio) * ratio ** np.arange(400) / 2
    shares = np.concatenate([[1 - outside], bins, bins])
    shares = shares[shares > 0]
    rate = -float(shares @ np.log2(shares))
    inner = 1 - outside * (1 + a * edge + (a * edge) ** 2 / 2)  # ∫ x² over the dead zone, times a²/2; variance is 1
    spread = 1 / a**2 - (step / 2) ** 2 / math.sinh(a * step / 2) ** 2  # variance of a truncated exponential
    return rate, inner + outside * spread


@pytest.mark.parametrize("multiplier", [0.02, 0.1, 0.4, 1.0])
def test_laplace_values_come_within_two_percent_of_the_best_scalar_quantiser(multiplier: float) -> None:
    values = quantiles()
    rate, distortion = rate_and_distortion(values, entropy_constrained(values, multiplier), multiplier)
    settings = itertools.product(np.geomspace(0.1, 8, 120), np.linspace(0, 0.5, 26))
    best = min(d + multiplier * r for r, d in (dead_zone(step, rounding) for step, rounding in settings))
    assert distortion + multiplier * rate <= 1.02 * best
    assert distortion + multiplier * rate >= 0.995 * best


def test_the_bound_of_normal_values_is_shannons() -> None:
    normal = np.random.default_rng(0).normal(size=2_000_000)
    rates, errors = rate_distortion_bound(normal, [0.2, 0.5, 1.0], bins=301)
    assert np.allclose(errors, 2.0 ** (-2 * np.array(rates)), rtol=0.02)  # Shannon (1959): D = 2^(-2R)


@pytest.mark.parametrize("multiplier", [0.1, 0.2, 0.6])
def test_the_gap_to_the_bound_is_the_known_one(multiplier: float) -> None:
    values = quantiles(20_001)
    rate, error = rate_and_distortion(values, entropy_constrained(values, multiplier), multiplier)
    rates, errors = rate_distortion_bound(values, np.geomspace(multiplier / 4, 4 * multiplier, 15))
    least = float(np.interp(rate, rates[::-1], errors[::-1]))
    # Any scalar quantiser lies above; the best by at most .255 bit, that is 1.53 dB, at high rates (Gish and Pierce).
    assert least < error < least * 2 ** (2 * 0.255)


def test_powers_of_two_are_what_they_are_called() -> None:
    values = np.random.default_rng(0).normal(size=500)
    levels = power_levels(values, 8)
    assert len(levels) == 8
    assert np.array_equal(np.log2(np.abs(levels)) % 1, np.zeros(8))
    assert 0.75 * levels.max() <= np.abs(values).max() <= 1.5 * levels.max()


@given(
    values=st.lists(st.floats(-4, 4, allow_subnormal=False), min_size=1, max_size=30),
    levels=st.lists(st.floats(-4, 4), min_size=0, max_size=6, unique=True),
    multiplier=st.floats(1e-3, 4),
    seed=st.integers(0, 1000),
)
@settings(deadline=None)
def test_every_value_takes_its_cheapest_level(
    values: list[float], levels: list[float], multiplier: float, seed: int
) -> None:
    rising = np.unique([*levels, 0.0])
    rated = Rated(rising, np.random.default_rng(seed).uniform(0, 12, len(rising)))
    costs = (np.array(values)[:, None] - rising) ** 2 + multiplier * rated.bits
    chosen = costs[np.arange(len(values)), cheapest(np.array(values), rated, multiplier)]
    assert np.allclose(chosen, costs.min(1), atol=1e-9)


def test_no_assignment_of_few_values_is_cheaper_in_the_end() -> None:
    """Brute force over all partitions of nine values into runs, each run's level its mean or zero."""
    values, multiplier = np.array([-1.1, -1.0, -0.1, 0.0, 0.05, 0.1, 0.9, 1.0, 1.2]), 0.05
    best = math.inf
    for cuts in itertools.chain.from_iterable(itertools.combinations(range(1, 9), k) for k in range(5)):
        runs = np.split(values, cuts)
        for zeroed in range(len(runs)):
            error = sum(float(((run - (0 if i == zeroed else run.mean())) ** 2).sum()) for i, run in enumerate(runs))
            shares = np.array([len(run) for run in runs]) / 9
            best = min(best, error / 9 - multiplier * float(shares @ np.log2(shares)))
    rate, distortion = rate_and_distortion(values, entropy_constrained(values, multiplier), multiplier)
    # Levels are rounded to half precision, the error at most a hundredth more for it.
    assert distortion + multiplier * rate == pytest.approx(best, rel=1e-6)


def test_a_weight_takes_less_room_at_equal_error() -> None:
    """Of a Laplace weight at 90% zeros: 15 levels by k-means against ECSQ of the same squared error."""
    from delib.coding import quantize_weight

    weight = np.random.default_rng(0).laplace(size=(200, 500)).astype(np.float32)
    pruned = np.where(np.abs(weight) > np.quantile(np.abs(weight), 0.9), weight, 0)
    usual = quantize_weight(pruned, 4)
    error = float(((weight - usual.dense()) ** 2).mean())
    low, high = 1e-4, 10.0
    for _ in range(30):
        middle = math.sqrt(low * high)
        found = float(((weight - quantize_entropy(weight, middle).dense()) ** 2).mean())
        low, high = (middle, high) if found < error else (low, middle)
    rated = quantize_entropy(weight, low)
    assert float(((weight - rated.dense()) ** 2).mean()) <= error
    # .644 bits a weight instead of .785 in theory: 18% less.
    assert len(encode({"w": rated})) < 0.85 * len(encode({"w": usual}))


def test_the_container_needs_about_the_entropy() -> None:
    weight = np.random.default_rng(0).laplace(size=(300, 400)).astype(np.float32)
    tensor = quantize_entropy(weight, 0.6)
    assert 8 * len(encode({"w": tensor})) == pytest.approx(entropy_of(tensor) * weight.size, rel=0.03)


@pytest.mark.parametrize("scaled", [False, True])
def test_what_is_zero_does_not_survive(scaled: bool) -> None:
    weight = np.random.default_rng(1).normal(size=(8, 3, 5)).astype(np.float32) * np.arange(1, 9)[:, None, None]
    tensor = quantize_entropy(weight, 0.5, scaled=scaled)
    assert 0 < tensor.mask.sum() < weight.size
    assert (tensor.codebook != 0).all()
    assert np.array_equal(tensor.mask, tensor.dense() != 0)
    everything = quantize_entropy(weight, 1e6, scaled=scaled)
    assert not everything.mask.any() and not everything.dense().any()


@pytest.mark.parametrize("values", [np.zeros(4), np.full(5, 3.0), np.array([1e-30]), np.array([-2.0, 1e6])])
def test_odd_values_are_no_trouble(values: Array) -> None:
    rated = entropy_constrained(values, 0.1)
    assert (np.diff(rated.levels) > 0).all() and 0 in rated.levels


def test_without_values_or_a_price_there_is_no_answer() -> None:
    for values, multiplier in ((np.array([]), 1.0), (np.ones(3), 0.0)):
        with pytest.raises(ValueError, match="multiplier above 0 and values"):
            entropy_constrained(values, multiplier)
