"""Distillation of a sparse student: one trainer, pruning and fake quantisation while it runs, Gauss-Newton recovery,
and a whole network compressed in one call."""

from delib.distillation.compress import RECIPES, compress, cost, pruned_to, stages
from delib.distillation.distill import distill
from delib.distillation.fake_quantize import FakeQuantization, RateAwareQuantization, rate_aware
from delib.distillation.gauss_newton import gauss_newton
from delib.distillation.pruning import GradualPruning
from delib.distillation.recipe import Objective, Recipe, softened

__all__ = ["RECIPES", "FakeQuantization", "GradualPruning", "Objective", "RateAwareQuantization", "Recipe"]
__all__ += ["compress", "cost", "distill", "gauss_newton", "pruned_to", "rate_aware", "softened", "stages"]
