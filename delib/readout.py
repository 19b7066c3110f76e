"""Boxes read out anew: the rows of a detector's heads that say where a box lies, by least squares, on few levels.

To the whole loss a weight of these rows is worth little, so thinning leaves few of them, though all of them together
are a thousandth of the network: of YOLOv3-tiny's, at 90%, a ninth. Half of them, fitted to what the finished student
knows, put its boxes closer to the teacher's at no other cost.

So that few levels serve a row well, the channels that it looks at are first brought to one size, by scaling the layer
before: behind an activation that is positively homogeneous nothing else changes (Nagel et al. 2019, section 4.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from delib.confidence import head_layers
from delib.darknet import Head
from delib.detect_loss import Focus
from delib.encode import LevelTensor
from delib.networks import weight_layers, weight_of
from delib.quantize import as_scales, quantize_weight, with_levels
from delib.refit import Moments, bias_of, matrix_of, put_matrix, refit, removal_costs, with_bias
from delib.rounding import rounded

SURVIVORS = 0.5  # of these rows' weights: with .3 YOLOv3-tiny's boxes gain half as much, with .7 no more
RIDGE = 0.03  # pulls towards the present rows; on photos that took no part .01 does as well, .1 worse
FAINT = 0.02  # anchors with less objectness do not count: they are most, and weigh next to nothing
PART = 0.2  # of the survivors that go at a time, before it is asked again what each is worth
BOX = 4  # x, y, w, h


@torch.no_grad()
def read_boxes(
    student: nn.Module,
    teacher: nn.Module,
    heads: Sequence[Head],
    inputs: Iterable[Tensor],
    focus: Focus,
    levels: Mapping[str, LevelTensor],
    bits: int = 4,
) -> dict[str, LevelTensor]:
    """Fit the rows of boxes in place to the teacher's answers on batches of ``inputs`` [n, channels, height, width].

    Each of them minimises Σ p s² (w·x - y)², with x what the student's head receives, y the teacher's answer, p the
    teacher's objectness and s the slope of what y is put through (the logistic function's for a centre, 1 for a size).
    ``SURVIVORS`` of its weights stay, those dropped whose loss the others make up for best. Then the head is rounded to
    2**``bits`` new levels with compensation, its other rows so that their present answers stay, where ``focus`` looks.

    ``student`` is rounded, to ``levels`` by layer. Returns those of the layers that change: each head and the layer
    before it. Raises ValueError where a head is not the output of a 1 x 1 convolution with bias, or there are no
    inputs.
    """
    changed: dict[str, LevelTensor] = {}
    sums, example = _sums(student, teacher, heads, inputs, focus)
    order = list(weight_layers(student))
    before = dict(zip(order[1:], order, strict=False))
    for (name, (boxes, others)), head in zip(sums.items(), heads, strict=True):
        sizes = (others.gram[0].diagonal() / others.gram[0, -1, -1]).sqrt()[:-1].clamp_min(1e-12)
        if (scaled := _equalised(student, before.get(name, ""), name, sizes, levels, example)) is not None:
            changed[before[name]], columns = scaled
            boxes, others = _scaled(boxes, columns), _scaled(others, columns)
        changed[name] = _read(student.get_submodule(name), head, boxes, others, bits)
    return changed


def added(student: nn.Module, heads: Sequence[Head], example: Tensor) -> int:
    """How many survivors ``read_boxes`` adds to a network of which an ``example`` input is given, at most."""
    widths = [weight_of(student.get_submodule(name))[0].numel() for name in head_layers(student, example)]
    return sum(round(SURVIVORS * k) * BOX * len(head.anchors) for k, head in zip(widths, heads, strict=True))


class _Sums(NamedTuple):
    """A head's moments: of its rows of boxes, each with positions counted its own way, and of all the others."""

    boxes: Moments
    others: Moments


def _sums(
    student: nn.Module, teacher: nn.Module, heads: Sequence[Head], inputs: Iterable[Tensor], focus: Focus
) -> tuple[dict[str, _Sums], Tensor]:
    """The moments of every head by its layer's name, and one of the inputs."""
    sums: dict[str, _Sums] = {}
    received: dict[str, Tensor] = {}
    hooks: list[RemovableHandle] = []
    try:
        for part in inputs:
            if not sums:
                for name, head in zip(head_layers(student, part[:1]), heads, strict=True):
                    layer = student.get_submodule(name)
                    sums[name] = _zeros(name, layer, head)
                    note = lambda _, args, name=name: received.update({name: args[0]})  # noqa: E731
                    hooks.append(layer.register_forward_pre_hook(note))
            answers = teacher(part)
            student(part)
            maps = focus(answers)
            for (name, (boxes, others)), head, raw in zip(sums.items(), heads, answers, strict=True):
                x = F.pad(received[name].movedim(1, -1).flatten(0, 2), (0, 1), value=1.0)
                counts = F.adaptive_max_pool2d(maps[:, None], raw.shape[2:]).flatten()
                others.gram[0] += ((x * counts[:, None]).mT @ x).double()
                _add_boxes(boxes, head, x, raw)
    finally:
        for hook in hooks:
            hook.remove()
    if not sums:
        raise ValueError("boxes are read out from the networks' answers to inputs, got no input")
    return sums, part[:1]


def _zeros(name: str, layer: nn.Module, head: Head) -> _Sums:
    weight = weight_of(layer)
    if weight.shape[2:] != (1, 1) or bias_of(layer) is None:
        raise ValueError(f"layer {name!r} is no 1 x 1 convolution with bias; boxes are read out of such heads only")
    k, boxes = weight.shape[1] + 1, BOX * len(head.anchors)
    zeros = lambda *shape: torch.zeros(*shape, dtype=torch.float64, device=weight.device)  # noqa: E731
    rest = len(weight) - boxes
    return _Sums(
        Moments(zeros(boxes, k, k), zeros(boxes, k), zeros(boxes), 0, bias=True),
        Moments(zeros(1, k, k), zeros(rest, k), zeros(rest), 0, bias=True),
    )


def _add_boxes(sums: Moments, head: Head, x: Tensor, raw: Tensor) -> None:
    """Add vectors x [n, k] of one batch and the teacher's answers to the sums of the rows of boxes."""
    anchors = raw.movedim(1, -1).reshape(len(x), len(head.anchors), 5 + head.classes)
    for a, answers in enumerate(anchors.unbind(1)):
        present = answers[:, BOX].sigmoid()
        seen = present > FAINT
        vectors, wanted, counts = x[seen], answers[seen, :BOX], present[seen, None].repeat(1, BOX)
        centre = wanted[:, :2].sigmoid()
        counts[:, :2] *= (centre * (1 - centre)).square()
        for r in range(BOX):
            weighted = (vectors * counts[:, r, None]).mT
            sums.gram[BOX * a + r] += (weighted @ vectors).double()
            sums.cross[BOX * a + r] += (weighted @ wanted[:, r]).double()
        sums.energy[BOX * a : BOX * a + BOX] += (counts * wanted.square()).sum(0).double()


def _equalised(
    student: nn.Module,
    before: str,
    name: str,
    sizes: Tensor,
    levels: Mapping[str, LevelTensor],
    example: Tensor,
) -> tuple[LevelTensor, Tensor] | None:
    """Bring the channels that a layer receives to one size, in place: the layer ``before`` divided by ``sizes``
    [channels], the layer's columns multiplied. Returns the new levels of the layer before and the columns' factors, a
    bias's included; None, and nothing changed, where the network would answer otherwise."""
    if before not in levels or len(levels[before].mask) != len(sizes):
        return None
    first, second, placed = student.get_submodule(before), student.get_submodule(name), levels[before]
    kept, answers = (matrix_of(first), matrix_of(second)), student(example)
    old = np.ones(len(sizes)) if placed.scales is None else placed.scales.astype(np.float64)
    outputs = old / sizes.cpu().numpy()
    most, scales = np.float32(outputs.max()), as_scales(outputs)
    scaled = replace(placed, codebook=placed.codebook * most, scales=scales)
    # Scales are float16 in the file: the columns make up for exactly what they become there.
    columns = F.pad(torch.from_numpy(old / (scales.astype(np.float64) * most)).to(sizes), (0, 1), value=1.0)
    put_matrix(first, kept[0] / columns[:-1, None])
    weight_of(first).copy_(torch.from_numpy(scaled.dense()))  # to the last bit
    put_matrix(second, kept[1] * columns)
    if all(_same(a, b) for a, b in zip(student(example), answers, strict=True)):
        return scaled, columns
    put_matrix(first, kept[0])
    put_matrix(second, kept[1])
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    return float((a - b).abs().max()) <= 1e-3 * float(b.abs().max())


def _scaled(sums: Moments, factors: Tensor) -> Moments:
    """The moments once every vector's entries are divided by ``factors`` [k]."""
    return replace(sums, gram=sums.gram / (factors[:, None] * factors), cross=sums.cross / factors)


def _read(layer: nn.Module, head: Head, boxes: Moments, others: Moments, bits: int) -> LevelTensor:
    """One head's new rows of boxes and new levels, in place."""
    weight, matrix = weight_of(layer), matrix_of(layer)
    alive = with_bias(weight != 0, layer)
    is_box = (torch.arange(len(matrix), device=matrix.device) % (5 + head.classes)) < BOX
    alive[is_box], matrix[is_box] = _fitted(boxes, matrix[is_box])
    put_matrix(layer, matrix)
    array = weight.cpu().numpy()
    placed = quantize_weight(array, bits, scaled=True)
    assert placed.scales is not None
    for rows, sums in ((is_box, boxes), (~is_box, others)):
        here = rows.cpu().numpy()
        part = with_levels(array[here], placed.codebook, placed.scales[here])
        matrix[rows] = rounded(sums, alive[rows], matrix[rows], part, RIDGE)
    put_matrix(layer, matrix)
    levels = with_levels(weight.cpu().numpy(), placed.codebook, placed.scales)
    weight.copy_(torch.from_numpy(levels.dense()))
    return levels


def _fitted(sums: Moments, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Which weights of the rows stay, and their values: both [rows, k]; the bias always stays."""
    alive = torch.ones_like(matrix, dtype=torch.bool)
    count = matrix.shape[1] - 1
    keep = round(SURVIVORS * count)
    fitted = refit(sums, alive, matrix, RIDGE)
    while count > keep:
        costs = removal_costs(sums, alive, fitted, RIDGE)
        costs[:, -1] = torch.inf
        drop = min(count - keep, max(1, int(PART * count)))
        alive.scatter_(1, costs.topk(drop, largest=False).indices, False)
        count -= drop
        fitted = refit(sums, alive, matrix, RIDGE)
    return alive, fitted
