"""The method: criteria propose candidate sets, tentative zeroing assesses them, the least divergent is zeroed."""

from delib.evolution.allocate import Rungs, put_levels, spread, trade
from delib.evolution.assess import Suffix, assess, tentatively_zeroed
from delib.evolution.criteria import admm, criterion_named, hessian, magnitude, random
from delib.evolution.evolve import evolve
from delib.evolution.population import draw

__all__ = [
    "Rungs",
    "Suffix",
    "admm",
    "assess",
    "criterion_named",
    "draw",
    "evolve",
    "hessian",
    "magnitude",
    "put_levels",
    "random",
    "spread",
    "tentatively_zeroed",
    "trade",
]
