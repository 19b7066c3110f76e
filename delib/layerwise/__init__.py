"""Reconstruction of layers by least squares: moments, supports by ADMM, compensated rounding, compress, baselines."""

from delib.layerwise.admm import admm
from delib.layerwise.baselines import BASELINES, prune
from delib.layerwise.compress import Compression, Problem, compress, finalize, quantize
from delib.layerwise.prices import assessed_prices
from delib.layerwise.rate_aware import quantize_rate_aware
from delib.layerwise.reconstruct import Moments, moments, reconstruct, removal_costs
from delib.layerwise.rounding import round_compensated

__all__ = [
    "BASELINES",
    "Compression",
    "Moments",
    "Problem",
    "admm",
    "assessed_prices",
    "compress",
    "finalize",
    "moments",
    "prune",
    "quantize",
    "quantize_rate_aware",
    "reconstruct",
    "removal_costs",
    "round_compensated",
]
