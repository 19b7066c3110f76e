"""Quantisers for arrays of weights and the lossless container; no torch."""

from delib.coding.container import DelibError, LevelTensor, encode
from delib.coding.entropy import (
    Rated,
    cheapest,
    cuts_of,
    entropy_constrained,
    entropy_of,
    quantize_entropy,
    rate_distortion_bound,
)
from delib.coding.quantize import (
    PLACEMENTS,
    Placement,
    kmeans_levels,
    power_levels,
    quantize_tensors,
    quantize_weight,
    uniform_levels,
    with_levels,
)
from delib.coding.quantized import Quantized, decode, load, save

__all__ = [
    "PLACEMENTS",
    "DelibError",
    "LevelTensor",
    "Placement",
    "Quantized",
    "Rated",
    "cheapest",
    "cuts_of",
    "decode",
    "encode",
    "entropy_constrained",
    "entropy_of",
    "kmeans_levels",
    "load",
    "power_levels",
    "quantize_entropy",
    "quantize_tensors",
    "quantize_weight",
    "rate_distortion_bound",
    "save",
    "uniform_levels",
    "with_levels",
]
