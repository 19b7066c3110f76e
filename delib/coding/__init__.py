"""Quantisers for arrays of weights and the lossless container; no torch."""

from delib.coding.container import DelibError, LevelTensor, encode
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
from delib.coding.rate import level_costs

__all__ = [
    "PLACEMENTS",
    "DelibError",
    "LevelTensor",
    "Placement",
    "Quantized",
    "decode",
    "encode",
    "kmeans_levels",
    "level_costs",
    "load",
    "quantize_tensors",
    "quantize_weight",
    "save",
    "uniform_levels",
    "with_levels",
]
