"""A whole network sparsified and rounded by least squares alone, layer after layer: where distillation starts from.

Every layer sees what the finished layers before it deliver and is fitted to what the teacher's layer answers, so it
also mends what they broke. No gradient, no labels; see ``refit`` and ``supports`` for the mathematics.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from delib.coding.container import LevelTensor
from delib.coding.quantize import Placement, quantize_tensors, quantize_weight, with_levels
from delib.coding.quantized import Quantized
from delib.files import in_batch
from delib.layerwise.admm import admm
from delib.layerwise.gptq import rounded
from delib.layerwise.reconstruct import RIDGE, Moments, moments, refit
from delib.nn.divergence import Divergence
from delib.nn.layers import matrix_of, put_matrix, weight_key, weight_layers, weight_of, with_bias
from delib.nn.sensitivity import sensitivities

ITERATIONS = 75  # of ADMM: on YOLOv3-tiny's layers more no longer lower the error, and the largest takes 1 s for each
# Called for a sparse layer once it is refitted: its name, its moments, its teacher's matrix [rows, k], how much
# each of its weights is worth keeping [rows, k], and how many survive.
Watch = Callable[[str, Moments, Tensor, Tensor, int], None]
LOOKED = 128  # inputs that outputs are weighed on: with half as many, YOLOv3-tiny's scatter by a quarter to a half
ENOUGH = 1 << 18  # vectors a layer is fitted to: 57 for each weight of the longest row of YOLOv3-tiny


@torch.no_grad()
def compensated(
    teacher: nn.Module,
    inputs: Tensor,
    targets: Mapping[str, float],
    *,
    bits: int = 4,
    rounding: Collection[str] = (),
    batch: int = 16,
    ridge: float = RIDGE,
    focus: Callable[[Any], Tensor] | None = None,
    divergence: Divergence | None = None,
    enough: int = ENOUGH,
    iterations: int = ITERATIONS,
    watch: Watch | None = None,
    progress: bool = True,
) -> tuple[nn.Module, dict[str, LevelTensor]]:
    """A student with the sparsities of ``targets``, and the levels of the layers named in ``rounding``.

    In the network's order each layer named in either gets its support by ADMM, its values by least squares and, if it
    is in ``rounding``, 2**``bits`` levels with one scale an output, each rounding error made up for by the weights
    still unrounded and by the bias. ``inputs`` [n, ...] are calibration inputs, run ``batch`` at a time. A layer in
    ``rounding`` without a target keeps the teacher's survivors. ``focus`` says, from the teacher's outputs, how much
    positions count [n, rows, columns], and ``enough`` how many are (see ``refit.moments`` for both); ``iterations`` are
    those of ADMM; ``watch`` is told of every sparse layer that is not rounded. With a ``divergence`` ADMM counts an
    error of each output by how strongly that reacts to it (see ``assess.sensitivities``, measured on ``LOOKED`` of the
    inputs); by default all outputs of a layer count alike. Raises ValueError on a layer that the network lacks.
    """
    layers = weight_layers(teacher)
    if unknown := sorted({*targets, *rounding} - set(layers)):
        raise ValueError(f"the network has no weight layer {unknown[0]!r}; it has {', '.join(layers)}")
    student = copy.deepcopy(teacher).eval()
    levels: dict[str, LevelTensor] = {}
    names = [name for name in layers if name in targets or name in rounding]
    maps = None if focus is None else torch.cat([focus(teacher(part)) for part in inputs.split(batch)])
    rows = _row_weights(teacher, {name: layers[name] for name in names if targets.get(name)}, inputs, divergence)
    for name in tqdm(names, unit="layer", disable=not progress or in_batch()):
        sums = moments(student, teacher, name, inputs, batch, focus=maps, enough=enough)
        matrix = matrix_of(student.get_submodule(name))
        support, strength = _support(sums, matrix, targets.get(name, 0.0), rows.get(name), ridge, iterations)
        put_matrix(student.get_submodule(name), refit(sums, support, matrix, ridge))
        if watch is not None and name in targets and name not in rounding:
            watch(name, sums, matrix, strength, int(support.sum()) - len(matrix) * sums.bias)
        if name in rounding:
            levels[name] = _round(student.get_submodule(name), sums, bits, ridge)
    return student, levels


def _row_weights(
    teacher: nn.Module, layers: Mapping[str, nn.Module], inputs: Tensor, divergence: Divergence | None
) -> dict[str, Tensor]:
    """How much each output of each layer counts, [rows] by layer: nothing is said without a divergence."""
    if divergence is None or not layers:
        return {}
    parts = inputs[:LOOKED].split(8)  # gradients take much memory
    measured = [sensitivities(teacher, layers, part, divergence, seed) for seed, part in enumerate(parts)]
    return {name: torch.stack([rows[name] for rows in measured]).mean(0) for name in layers}


def _support(
    sums: Moments, matrix: Tensor, sparsity: float, rows: Tensor | None, ridge: float, iterations: int
) -> tuple[Tensor, Tensor]:
    """Which weights survive, by ADMM, and how much each is worth keeping: both [rows, k]; a bias always survives."""
    size = matrix.numel() - (len(matrix) if sums.bias else 0)
    if sparsity == 0:
        survivors = matrix != 0
        survivors[:, matrix.shape[1] - sums.bias :] = True
        return survivors, matrix.abs()
    return admm(sums, matrix, size - round(sparsity * size), rows, ridge=ridge, iterations=iterations)


def _round(layer: nn.Module, sums: Moments, bits: int, ridge: float) -> LevelTensor:
    """Compensated rounding in place; returns the weight as levels, bit for bit what the layer then holds."""
    weight, matrix = weight_of(layer), matrix_of(layer)
    placed = quantize_weight(weight.cpu().numpy(), bits, scaled=True)
    put_matrix(layer, rounded(sums, with_bias(weight != 0, layer), matrix, placed, ridge))
    levels = with_levels(weight.cpu().numpy(), placed.codebook, placed.scales)
    weight.copy_(torch.from_numpy(levels.dense()))
    return levels


def finished(network: nn.Module, levels: Mapping[str, LevelTensor], bits: int = 4) -> Quantized:
    """The network quantised with a scale for each output, layers that have ``levels`` already by those; biases halved.

    Biases and norms go into the file as float16; on the networks here that changes no output by more than the weights'
    rounding does. Running variances and means stay float32: where norms are folded they are constants.
    """
    quantized = quantize(network, bits, scaled=True)
    quantized.update({weight_key(name): tensor for name, tensor in levels.items()})
    parameters = {name for name, _ in network.named_parameters()}
    for name in parameters - {weight_key(layer) for layer in weight_layers(network)}:
        quantized[name] = torch.from_numpy(quantized[name]).half().numpy()
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
    With ``scaled`` each output's weights share a scale of their own (see ``row_scales``) beside the layer's levels.
    Biases, norms and buffers stay as they are. Raises ValueError on bits outside 1..16 or an unknown method.
    """
    names = {weight_key(layer): layer for layer in weight_layers(network)}
    of = bits if isinstance(bits, Mapping) else dict.fromkeys(names.values(), bits)
    if missing := set(names.values()) - set(of):
        raise ValueError(f"no number of bits is given for layer {min(missing)!r}")
    return quantize_tensors(
        network.state_dict(), {name: of[layer] for name, layer in names.items()}, method, scaled=scaled
    )
