"""Distillation of a sparse student: one trainer, pruning and fake quantisation while it runs, Gauss-Newton recovery,
and a whole network compressed in one call."""

from delib.distillation.compress import compress
from delib.distillation.distill import distill
from delib.distillation.fake_quantize import FakeQuantization
from delib.distillation.gauss_newton import gauss_newton
from delib.distillation.pruning import GradualPruning
from delib.distillation.recipe import Objective, Recipe

__all__ = ["FakeQuantization", "GradualPruning", "Objective", "Recipe", "compress", "distill", "gauss_newton"]
