"""The method: criteria propose candidate sets, tentative zeroing assesses them, the least divergent is zeroed."""

from delib.evolution.allocate import Search, allocate, goals_by_layer, scale_sparsities, search_allocation
from delib.evolution.assess import Suffix, assess, tentatively_zeroed
from delib.evolution.check import checked_goals
from delib.evolution.criteria import CRITERIA, Criterion, Site, admm, criterion_named, hessian, magnitude, obs, random
from delib.evolution.database import Entry, SparsityDatabase
from delib.evolution.evolve import Cycle, Recovery, evolve
from delib.evolution.evolved import Evolved
from delib.evolution.outputs import evolve_outputs
from delib.evolution.population import draw
from delib.evolution.rates import RateDatabase

__all__ = [
    "CRITERIA",
    "Criterion",
    "Cycle",
    "Entry",
    "Evolved",
    "RateDatabase",
    "Recovery",
    "Search",
    "Site",
    "SparsityDatabase",
    "Suffix",
    "admm",
    "allocate",
    "assess",
    "checked_goals",
    "criterion_named",
    "draw",
    "evolve",
    "evolve_outputs",
    "goals_by_layer",
    "hessian",
    "magnitude",
    "obs",
    "random",
    "scale_sparsities",
    "search_allocation",
    "tentatively_zeroed",
]
