"""Distillation of a sparse student: gradual pruning and fake quantisation on the way, Gauss-Newton recovery."""

from delib.distillation.distill import distil, recover
from delib.distillation.fake_quantize import Rounding
from delib.distillation.gauss_newton import newton
from delib.distillation.pruning import Thinning

__all__ = ["Rounding", "Thinning", "distil", "newton", "recover"]
