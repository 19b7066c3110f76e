"""Reconstruction of layers by least squares: second moments, supports by ADMM, compensated rounding, baselines."""

from delib.layerwise.admm import admm
from delib.layerwise.compress import compensated, finished, quantize
from delib.layerwise.reconstruct import Moments, moments, refit, removal_costs, zeroing_changes

__all__ = [
    "Moments",
    "admm",
    "compensated",
    "finished",
    "moments",
    "quantize",
    "refit",
    "removal_costs",
    "zeroing_changes",
]
