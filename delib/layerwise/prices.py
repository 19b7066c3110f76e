"""What a bit is worth in each layer, by what errors of that layer are measured to cost.

Rate-aware levels weigh bits against errors by second derivatives. Where these misjudge errors as large as a student's,
all prices of a layer are wrong by one factor: the heads of a detector, whose logits saturate, would get twice the bytes
that their errors are worth. So the factor is assessed directly, as everything else: the teacher tentatively gets one
layer of a student, and its divergence says what that layer's errors cost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delib.layerwise.compress import Compression, layer_sensitivities, position_maps
from delib.layerwise.reconstruct import output_vectors
from delib.nn.divergence import Divergence
from delib.nn.hooks import calls, watched_calls
from delib.nn.layers import copied, matrix_of, put_matrix, weight_layers

ASSESSED = 64  # inputs that a layer's errors are measured on: their sum is large, and hardly scatters


@torch.no_grad()
def assessed_prices(
    teacher: nn.Module,
    student: nn.Module,
    inputs: Tensor,
    multiplier: float,
    divergence: Divergence,
    settings: Compression = Compression(),
    position_weights: Callable[[Any], Tensor] | None = None,
) -> dict[str, float]:
    """The price of a bit for each weight layer, as ``Compression.multiplier`` takes it.

    ``multiplier`` times what sensitivities say of the student's errors over what they are measured to cost. A layer
    that the student left as it is, or whose errors cost nothing, gets the median factor of the others.

    Parameters
    ----------
    teacher, student : nn.Module
        The student is any compressed one whose errors are about as large as those to come.
    inputs : Tensor [n, ...]
        Calibration inputs; errors are looked at on the first ``ASSESSED``.
    multiplier : float
        Divergence that one bit is worth, in every layer.
    divergence, settings, position_weights
        As for ``compress``.
    """
    layers, parts = weight_layers(teacher), inputs[:ASSESSED].split(settings.batch)
    sensitive = layer_sensitivities(teacher, layers, inputs, divergence, settings.draws)
    maps = position_maps(teacher, layers, inputs, settings, position_weights, divergence, sensitive)
    answers, factors = [teacher(part) for part in parts], {}
    for name, layer in layers.items():
        alone = copied(teacher)
        put_matrix(alone.get_submodule(name), matrix_of(student.get_submodule(name)))
        places = maps[name][:ASSESSED, None].split(settings.batch) if name in maps else [None] * len(parts)
        said = measured = 0.0
        for part, answer, weights in zip(parts, answers, places, strict=True):
            with watched_calls([alone.get_submodule(name)], apart=True) as seen:
                measured += float(divergence(alone(part), answer)) * len(part)
            pairs = zip(seen, calls(teacher, layer, part), strict=True)
            said += sum(_said(layer, ours.output - theirs, sensitive[name], weights) for ours, (_, theirs) in pairs)
        if said > 0 and measured > 0:
            factors[name] = said / measured
    usual = float(np.median(list(factors.values()))) if factors else 1.0
    return {name: multiplier * factors.get(name, usual) for name in layers}


def _said(layer: nn.Module, errors: Tensor, rows: Tensor, places: Tensor | None) -> float:
    """What errors of a layer's outputs cost by these outputs' sensitivities, at ``places`` [n, 1, h, w] that count."""
    squares = errors.square()
    if places is not None:
        squares = squares * F.adaptive_max_pool2d(places, squares.shape[2:])
    return float((output_vectors(layer, squares) @ rows.to(squares)).sum()) / 2
