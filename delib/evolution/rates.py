"""The rate database: every layer quantised at several prices of a bit, for an allocation of bytes to choose from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from delib.coding.container import LevelTensor, encode
from delib.evolution.database import Allocation
from delib.layerwise.admm import admm
from delib.layerwise.compress import Compression, layer_sensitivities, position_maps
from delib.layerwise.rate_aware import quantize_rate_aware
from delib.layerwise.reconstruct import Moments, moments, reconstruct
from delib.nn.checkpoint import Checkpoint, from_arrays, to_arrays
from delib.nn.divergence import Divergence
from delib.nn.layers import copied, matrix_of, put_matrix, weight_layers, weight_of

_Saved = tuple[float, list[Tensor | None], Tensor, int, float]  # an entry in a checkpoint


@dataclass(frozen=True)
class RateEntry:
    """One layer at one price of a bit: its ``levels``, its ``matrix`` [rows, k] with them, bias last, the ``bytes`` of
    its file, and the ``cost``: the divergence per input that its outputs' error causes, to second order."""

    multiplier: float
    levels: LevelTensor
    matrix: Tensor
    bytes: int
    cost: float

    def state(self) -> _Saved:
        """What a checkpoint holds."""
        return self.multiplier, from_arrays(vars(self.levels).values()), self.matrix, self.bytes, self.cost

    @classmethod
    def of(cls, state: _Saved) -> RateEntry:
        """The entry of a ``state``."""
        multiplier, held, matrix, size, cost = state
        return cls(multiplier, LevelTensor(*to_arrays(held)), matrix, size, cost)


class RateDatabase(dict[str, list[RateEntry]]):
    """Each layer's entries, by its name, in the order of falling bytes. ``search_allocation`` takes it as it takes a
    ``SparsityDatabase``: what an entry saves is counted in bytes instead of zeros."""

    @classmethod
    @torch.no_grad()
    def build(
        cls,
        teacher: nn.Module,
        sparsities: Mapping[str, float],
        inputs: Tensor,
        multipliers: Sequence[float],
        divergence: Divergence,
        settings: Compression = Compression(),
        position_weights: Callable[[Any], Tensor] | None = None,
    ) -> RateDatabase:
        """The layers in ``sparsities``, in the network's order, at every one of the rising
        ``multipliers`` (divergence per bit).

        Each starts from the support that ADMM finds at its sparsity, reconstructed, and moves it as the rates demand
        (see ``quantize_rate_aware``). Its inputs are those that the layers before deliver at the middle multiplier, so
        that it also corrects their errors; an allocation far from that is corrected less well. ``settings`` and
        ``position_weights`` are those of ``layerwise.compress``; bits and multiplier of the settings are not used. In a
        run of notebooks an interrupted database goes on after the layer that it was last saved with.
        """
        database, student = cls(), copied(teacher)
        fixed = sparsities, inputs, multipliers, divergence, settings, position_weights
        saved = Checkpoint("rates", teacher, *fixed)
        made: dict[str, list[_Saved]] = saved.read(inputs.device) or {}
        layers = {name: layer for name, layer in weight_layers(teacher).items() if name in sparsities}
        sensitive = layer_sensitivities(teacher, layers, inputs, divergence, settings.draws)
        positions = position_maps(teacher, layers, inputs, settings, position_weights, divergence, sensitive)
        for name, layer in layers.items():
            if name not in made:
                summed: dict[str, Any] = {"position_weights": positions.get(name), "enough": settings.enough}
                sums = moments(student, teacher, name, inputs, settings.batch, **summed)
                weights = sensitive[name] / 2  # of a quadratic function's curvature is its value
                entries = _entries(name, layer, sums, sparsities[name], weights, multipliers, settings)
                made[name] = [entry.state() for entry in entries]
                saved.offer(lambda: made)
            entries = [RateEntry.of(state) for state in made[name]]
            put_matrix(student.get_submodule(name), entries[len(entries) // 2].matrix)
            database[name] = _falling(entries)
        saved.finish(lambda: made)
        return database

    @torch.no_grad()
    def put(self, student: nn.Module, allocation: Allocation) -> None:
        """Give each layer its entry at the level named, in place."""
        for name, level in allocation.items():
            put_matrix(student.get_submodule(name), self[name][level].matrix)

    def savings(self) -> dict[str, list[int]]:
        """What each layer's entries save of the bytes of its first."""
        return {name: [entries[0].bytes - entry.bytes for entry in entries] for name, entries in self.items()}

    def costs(self) -> dict[str, list[float]]:
        """The costs of each layer's entries."""
        return {name: [entry.cost for entry in entries] for name, entries in self.items()}

    def equal_slopes(self, multiplier: float) -> Allocation:
        """For each layer the entry of least cost + ``multiplier`` · bits: one price for all, which is best where the
        layers' errors do not interact (reverse water-filling)."""
        return {
            name: min(range(len(entries)), key=lambda i: entries[i].cost + multiplier * 8 * entries[i].bytes)
            for name, entries in self.items()
        }

    def total(self, allocation: Allocation) -> int:
        """Bytes of all layers."""
        return sum(self[name][level].bytes for name, level in allocation.items())


def _entries(
    name: str,
    layer: nn.Module,
    sums: Moments,
    sparsity: float,
    weights: Tensor,
    multipliers: Iterable[float],
    settings: Compression,
) -> list[RateEntry]:
    """One layer at every multiplier, from the support that ADMM finds at a sparsity."""
    matrix, weight = matrix_of(layer), weight_of(layer)
    survivors = weight.numel() - round(sparsity * weight.numel())
    support, _ = admm(sums, matrix, survivors, weights, ridge=settings.ridge, iterations=settings.iterations)
    start, entries = reconstruct(sums, support, matrix, settings.ridge), []
    options: dict[str, Any] = {"ridge": settings.ridge, "kernel": weight[0, 0].numel()}
    for multiplier in multipliers:
        levels, rounded = quantize_rate_aware(sums, start, multiplier, weights, **options)
        cost = float((sums.error(rounded).clamp_min(0) * weights).sum()) / sums.inputs
        levels = levels.reshaped(tuple(weight.shape))
        entries.append(RateEntry(multiplier, levels, rounded, len(encode({name: levels})), cost))
    return entries


def _falling(entries: Iterable[RateEntry]) -> list[RateEntry]:
    """Those that no other beats in both bytes and cost, the largest first."""
    kept: list[RateEntry] = []
    for entry in sorted(entries, key=lambda entry: (entry.bytes, entry.cost)):
        if not kept or entry.cost < kept[-1].cost:
            kept.append(entry)
    return kept[::-1]
