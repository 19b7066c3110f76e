"""A whole network sparsified and rounded by least squares alone, layer after layer: where distillation starts from.

Every layer sees what the compressed layers before it deliver and is fitted to what the teacher's layer answers, so that
it also corrects their errors. No gradients, no labels; see ``reconstruct`` and ``admm`` for the mathematics.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from delib.coding.container import LevelTensor
from delib.coding.quantize import Placement, quantize_tensors, quantize_weight, with_levels
from delib.coding.quantized import Quantized
from delib.files import in_batch
from delib.layerwise.admm import admm
from delib.layerwise.rate_aware import quantize_rate_aware
from delib.layerwise.reconstruct import RIDGE, Moments, moments, reconstruct
from delib.layerwise.rounding import round_compensated
from delib.nn.checkpoint import Checkpoint, from_arrays, to_arrays
from delib.nn.divergence import Divergence
from delib.nn.layers import (
    copied,
    matrix_of,
    matrix_to_weight,
    original,
    own_tensors,
    put_matrix,
    weight_keys,
    weight_layers,
    weight_of,
    with_bias,
)
from delib.nn.sensitivity import position_sensitivities, sensitivities

MATRIX_BITS = 8  # of parameters that are no weight layer's, such as embeddings: hardly a loss, a quarter of the bytes
LOOKED = 128  # inputs that sensitivities are measured on once: with half, YOLOv3-tiny's scatter by a quarter to a half
PART = 8  # inputs at a time where gradients are taken, which need much memory


@dataclass(frozen=True)
class Compression:
    """The settings of ``compress``; the defaults are YOLOv3-tiny's.

    ``bits`` per survivor of rounded layers; with a ``multiplier`` above 0 these are quantised rate-aware instead (see
    ``quantize_rate_aware``), and it is the divergence, where one is given, that a bit is worth. Both may differ by
    layer (mappings by layer name). ``batch`` inputs are run at a time. ``ridge`` damps the Gram matrices (see
    ``reconstruct``). A layer is fitted to ``enough`` vectors: 2**18 are 57 for each weight of YOLOv3-tiny's longest
    row. ``iterations`` of ADMM: there more than 75 no longer lower the error, and the largest layer takes 1 s for each.

    With ``draws`` above 0 the sensitivities of outputs are measured by so many draws of signs on every input, not by
    one on the first ``LOOKED``, and those of positions, too, in place of ``position_weights``. They take as long as
    2 · draws · inputs backward passes, and suit networks that few positions decide, such as detectors; of a classifier
    that is sure of nearly every input they leave few inputs that count.
    """

    bits: int | Mapping[str, int] = 4
    multiplier: float | Mapping[str, float] = 0.0
    batch: int = 16
    ridge: float = RIDGE
    enough: int = 1 << 18
    iterations: int = 75
    draws: int = 0

    def __post_init__(self) -> None:
        for bits in self.bits.values() if isinstance(self.bits, Mapping) else [self.bits]:
            if not 1 <= bits <= 16:
                raise ValueError(f"bits per survivor must lie in 1..16, got {bits}")
        prices = self.multiplier.values() if isinstance(self.multiplier, Mapping) else [self.multiplier]
        if min(self.batch, self.enough) < 1 or min(self.ridge, self.iterations, self.draws, *prices) < 0:
            raise ValueError(
                f"batch and enough must be at least 1, ridge, iterations, draws and multiplier at least 0, got {self}"
            )

    def of(self, name: str) -> Compression:
        """The settings of one layer. Raises ValueError if bits or multiplier differ by layer and lack it."""
        own = {key: value for key, value in vars(self).items() if isinstance(value, Mapping)}
        if lacking := [key for key, values in own.items() if name not in values]:
            raise ValueError(f"no {lacking[0]} is given for layer {name!r}")
        return replace(self, **{key: values[name] for key, values in own.items()})


class Problem(NamedTuple):
    """The sparse least-squares problem of one layer: its ``moments``, its ``matrix`` [rows, k] before, the ``strength``
    [rows, k] with which ADMM holds on to each weight, how many weights are to survive, and the layer's ``sensitivity``
    [rows] per input, None where it was not measured."""

    moments: Moments
    matrix: Tensor
    strength: Tensor
    survivors: int
    sensitivity: Tensor | None


_Layer = tuple[Tensor, list[Tensor | None]]  # a layer in a checkpoint: its matrix, and its levels if it has some
Watch = Callable[[str, Problem], None]  # called with each sparse layer's name and problem once it is reconstructed


@torch.no_grad()
def compress(
    teacher: nn.Module,
    inputs: Tensor,
    targets: Mapping[str, float],
    settings: Compression = Compression(),
    *,
    rounding: Collection[str] = (),
    position_weights: Callable[[Any], Tensor] | None = None,
    divergence: Divergence | None = None,
    watch: Watch | None = None,
) -> tuple[nn.Module, dict[str, LevelTensor]]:
    """Sparsify and round layers in the network's order: supports by ADMM, values by least squares, then levels.

    Parameters
    ----------
    teacher : nn.Module
        Left as it is. May be sparse: a layer without a target keeps its survivors.
    inputs : Tensor [n, ...]
        Calibration inputs.
    targets : mapping of layer name to sparsity
    rounding : collection of layer names
        Layers that get 2**bits levels with one scale per output, each rounding error made up for by the other weights
        and by the bias; or, with a multiplier, the cheapest of error and bits.
    position_weights : callable, optional
        From the teacher's outputs, how much positions count, [n, rows, columns] (see ``reconstruct.moments``).
    divergence : Divergence, optional
        If given, ADMM weights the error of each output by the sensitivity of this divergence to it (see
        ``nn.sensitivity``); by default all outputs of a layer count alike.
    watch : callable, optional
        Called with name and ``Problem`` of every layer that is sparsified but not rounded. Without it, an interrupted
        run goes on after the layer that it was last saved with (see ``nn.saved_to``).

    Returns
    -------
    The student, in evaluation mode, and the levels of the layers in ``rounding`` by name.

    Raises
    ------
    ValueError
        On a layer that the network lacks, or that settings which differ by layer leave out; on ``draws`` without a
        divergence, or beside ``position_weights``.
    """
    teacher = original(teacher)
    layers = weight_layers(teacher)
    if unknown := sorted({*targets, *rounding} - set(layers)):
        raise ValueError(f"the network has no weight layer {unknown[0]!r}; it has {', '.join(layers)}")
    own = {name: settings.of(name) for name in rounding}
    student = copied(teacher)
    levels: dict[str, LevelTensor] = {}
    names = [name for name in layers if name in targets or name in rounding]
    weighted = {n: layers[n] for n in names if targets.get(n) or settings.multiplier}
    sensitive = layer_sensitivities(teacher, weighted, inputs, divergence, settings.draws)
    found = {n: layers[n] for n in names}
    positions = position_maps(teacher, found, inputs, settings, position_weights, divergence, sensitive)
    saved = Checkpoint("compress", teacher, inputs, targets, settings, rounding, position_weights, divergence)
    done = _taken_up(saved, student, levels, inputs.device) if watch is None else []
    for name in tqdm([name for name in names if name not in done], unit="layer", disable=in_batch()):
        layer = student.get_submodule(name)
        counts = positions.get(name)
        sums = moments(student, teacher, name, inputs, settings.batch, position_weights=counts, enough=settings.enough)
        support, problem = _solve(sums, matrix_of(layer), targets.get(name, 0.0), sensitive.get(name), settings)
        put_matrix(layer, reconstruct(sums, support, problem.matrix, settings.ridge))
        if watch is not None and name in targets and name not in rounding:
            watch(name, problem)
        if name in rounding:
            levels[name] = _round(layer, sums, sensitive.get(name), own[name])
        done.append(name)
        if watch is None:
            saved.offer(lambda: _state(student, levels, done))
    if watch is None:
        saved.finish(lambda: _state(student, levels, done))
    return student, levels


def _state(student: nn.Module, levels: Mapping[str, LevelTensor], done: Iterable[str]) -> dict[str, _Layer]:
    """What a checkpoint holds of the layers that are done."""
    parts = {name: from_arrays(vars(tensor).values()) for name, tensor in levels.items()}
    return {name: (matrix_of(student.get_submodule(name)), parts.get(name, [])) for name in done}


def _taken_up(saved: Checkpoint, student: nn.Module, levels: dict[str, LevelTensor], device: torch.device) -> list[str]:
    """The layers that an interrupted run has done, put into ``student`` and ``levels`` as it left them."""
    done: dict[str, _Layer] = saved.read(device) or {}
    for name, (matrix, parts) in done.items():
        put_matrix(student.get_submodule(name), matrix)
        if parts:
            levels[name] = LevelTensor(*to_arrays(parts))
    return list(done)


def position_maps(
    teacher: nn.Module,
    layers: Mapping[str, nn.Module],
    inputs: Tensor,
    settings: Compression,
    position_weights: Callable[[Any], Tensor] | None,
    divergence: Divergence | None,
    sensitive: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """How much positions count on each input, [n, rows, columns] by layer: as ``position_weights`` say of the teacher's
    outputs, or with ``draws`` as measured, given the sensitivities of outputs; layers that are missing count evenly."""
    if settings.draws:
        if divergence is None or position_weights is not None:
            raise ValueError("draws measure sensitivities to a divergence: give one, and no position_weights")
        planes = {name: layers[name] for name in sensitive if isinstance(layers[name], nn.Conv2d)}
        return position_sensitivities(teacher, planes, sensitive, inputs, divergence, settings.draws, PART)
    if position_weights is None:
        return {}
    maps = torch.cat([position_weights(teacher(part)) for part in inputs.split(settings.batch)])
    return dict.fromkeys(layers, maps)


def layer_sensitivities(
    teacher: nn.Module,
    layers: Mapping[str, nn.Module],
    inputs: Tensor,
    divergence: Divergence | None,
    draws: int = 0,
) -> dict[str, Tensor]:
    """How strongly one input's divergence reacts to each output of the layers, [rows] by layer (see
    ``nn.sensitivities``): the mean over ``draws`` of all inputs, or one of the first ``LOOKED``; empty without a
    divergence."""
    if divergence is None or not layers:
        return {}
    parts = inputs.split(PART) * draws if draws else inputs[:LOOKED].split(PART)
    sums: dict[str, Tensor] = {}
    for seed, part in enumerate(parts):
        for name, rows in sensitivities(teacher, layers, part, divergence, seed).items():
            # Of one input's divergence: that of the whole part is their mean.
            sums[name] = sums.get(name, 0) + rows * len(part) / len(parts)
    return sums


def _solve(
    sums: Moments, matrix: Tensor, sparsity: float, sensitivity: Tensor | None, settings: Compression
) -> tuple[Tensor, Problem]:
    """Which weights survive [rows, k], and the problem that this solves; a bias always survives."""
    size = matrix.numel() - (len(matrix) if sums.bias else 0)
    if sparsity == 0:
        support, strength = matrix != 0, matrix.abs()
        support[:, matrix.shape[1] - sums.bias :] = True
    else:
        survivors = size - round(sparsity * size)
        support, strength = admm(
            sums, matrix, survivors, sensitivity, ridge=settings.ridge, iterations=settings.iterations
        )
    return support, Problem(sums, matrix, strength, int(support.sum()) - len(matrix) * sums.bias, sensitivity)


def _round(layer: nn.Module, sums: Moments, sensitivity: Tensor | None, settings: Compression) -> LevelTensor:
    """Rounding in place; returns the weight as levels, bit for bit what the layer then holds."""
    weight, matrix = weight_of(layer), matrix_of(layer)
    assert not isinstance(settings.bits, Mapping) and not isinstance(settings.multiplier, Mapping)
    if settings.multiplier:
        half = None if sensitivity is None else sensitivity / 2  # of a quadratic function's curvature is its value
        levels, rounded = quantize_rate_aware(
            sums, matrix, settings.multiplier, half, ridge=settings.ridge, kernel=weight[0, 0].numel()
        )
        levels = levels.reshaped(tuple(weight.shape))
    else:
        placed = quantize_weight(weight.cpu().numpy(), settings.bits, scaled=True)
        rounded = round_compensated(sums, with_bias(weight != 0, layer), matrix, placed, settings.ridge)
        levels = with_levels(matrix_to_weight(rounded, weight.shape).cpu().numpy(), placed.codebook, placed.scales)
    put_matrix(layer, rounded)
    weight.copy_(torch.from_numpy(levels.dense()))
    return levels


def finalize(network: nn.Module, levels: Mapping[str, LevelTensor], bits: int = 4) -> Quantized:
    """The network as it goes into its file: quantised with one scale per output, biases and norms in half precision.

    Layers and biases that have ``levels`` already keep them. Other matrices of parameters, such as embeddings, get 2**8
    levels. On the networks here float16 biases and norms change no output by more than the weights' rounding does; what
    float16 cannot hold stays float32, as do running variances and means: where norms are folded they are constants.
    """
    keys = weight_keys(network)
    own, parameters = own_tensors(network), {name for name, _ in network.named_parameters()}
    others = {name: own[name] for name in parameters & set(own) - set(keys.values()) if own[name].is_floating_point()}
    matrices = {name for name, tensor in others.items() if tensor.dim() > 1}
    wanted = dict.fromkeys(keys.values(), bits) | dict.fromkeys(matrices, MATRIX_BITS)
    quantized = quantize_tensors(network.state_dict(), wanted, scaled=True)
    for name, tensor in levels.items():
        quantized.replace(keys.get(name, name), tensor)
    for name in others.keys() - matrices - levels.keys():
        if others[name].abs().max() < torch.finfo(torch.float16).max:
            quantized.replace(name, others[name].half().cpu().numpy())
    return quantized


def quantize(
    network: nn.Module,
    bits: int | Mapping[str, int] = 4,
    method: str | Placement = "kmeans",
    *,
    scaled: bool = False,
) -> Quantized:
    """Give the survivors (non-zero weights) of every weight layer at most 2**bits levels, each layer its own.

    ``bits`` may differ by layer (a mapping by layer name). ``method`` is ``"kmeans"``, ``"uniform"`` or any placement.
    With ``scaled`` the weights of each output share a scale of their own (see ``row_scales``) beside the layer's
    levels. Biases, norms and buffers stay as they are. Raises ValueError on bits outside 1..16 or an unknown method.
    """
    network = original(network)
    keys = weight_keys(network)
    of = bits if isinstance(bits, Mapping) else dict.fromkeys(keys, bits)
    if missing := set(keys) - set(of):
        raise ValueError(f"no number of bits is given for layer {min(missing)!r}")
    wanted = {key: of[name] for name, key in keys.items()}
    return quantize_tensors(network.state_dict(), wanted, method, scaled=scaled)
