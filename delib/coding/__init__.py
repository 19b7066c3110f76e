"""Quantisers for arrays of weights and the lossless container; numpy only."""

from delib.coding.container import DelibError, LevelTensor, encode
from delib.coding.entropy import Rated, cheapest, entropy_constrained, quantize_entropy
from delib.coding.quantize import (
    PLACEMENTS,
    Placement,
    kmeans_levels,
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
    "decode",
    "encode",
    "entropy_constrained",
    "kmeans_levels",
    "load",
    "quantize_entropy",
    "quantize_tensors",
    "quantize_weight",
    "save",
    "uniform_levels",
    "with_levels",
]
