"""Objectness calibration: one shift per head, so that a student is as confident as its teacher on unseen photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from delib.detection.heads import FreeHead, Head
from delib.nn.hooks import watched_calls
from delib.nn.layers import bias_of, weight_layers
from delib.nn.solvers import bisect

WIDEST = 8.0  # a shift at most, in nats: it takes a confidence of 0.0003 to 0.5


@dataclass(frozen=True)
class Calibration:
    """One head's mean objectness, positions weighted by the teacher's: the teacher's, the student's before its logits
    were shifted, and the ``shift``, in nats."""

    teacher: float
    student: float
    shift: float


@torch.no_grad()
def calibrate_objectness(
    student: nn.Module,
    teacher: nn.Module,
    heads: Sequence[Head | FreeHead],
    inputs: Tensor,
    batch: int = 12,
    *,
    biases: Sequence[Tensor] | None = None,
) -> list[Calibration]:
    """Make the student as confident as the teacher on average where that sees something, in place; returns it by head.

    A student that cannot know as much leans towards "nothing here" on photos that it has not learned from. For each of
    ``heads`` (the networks' outputs, see ``Head``) the bias of objectness gets one number b more (of a head that has
    none, the bias of every class), with

        Σ p (σ(s + b) - p) = 0

    over anchors, cells and ``inputs`` [n, channels, height, width], s the student's logits and p the teacher's
    objectness: Platt's scaling (1999) with the slope kept. Within a head the order of detections stays as it was. Take
    inputs that neither network was trained on. ``biases`` are those to be shifted, by head; by default those of the
    layers that the heads are the outputs of. Raises ValueError where a head is not the output of a layer with bias.
    """
    parts, found = inputs.split(batch), []
    biases = _head_biases(student, heads, inputs[:1]) if biases is None else biases
    logits = zip(_objectness(student, heads, parts), _objectness(teacher, heads, parts), strict=True)
    for bias, (ours, told) in zip(biases, logits, strict=True):
        theirs = told.sigmoid()
        shift, weights = _shift(ours, theirs), theirs / theirs.sum()
        bias += shift
        found.append(Calibration(float((weights * theirs).sum()), float((weights * ours.sigmoid()).sum()), shift))
    return found


def _head_biases(network: nn.Module, heads: Sequence[Head | FreeHead], example: Tensor) -> list[Tensor]:
    """The biases of objectness in the layers whose outputs are the network's outputs, in that order."""
    with watched_calls(weight_layers(network).values()) as seen:
        outputs = network(example)[: len(heads)]
    made = {id(call.output): call.module for call in seen}  # ``seen`` holds the outputs: none takes another's identity
    biases = [bias_of(made[id(output)]) if id(output) in made else None for output in outputs]
    known = [bias[4 :: head.values] for head, bias in zip(heads, biases) if bias is not None and isinstance(head, Head)]
    if len(known) < len(heads):
        raise ValueError("objectness can only be calibrated where every head is the output of a layer with a bias")
    return known


def _objectness(network: nn.Module, heads: Sequence[Head | FreeHead], parts: Sequence[Tensor]) -> list[Tensor]:
    """The network's logits of objectness on all inputs, flat, by head."""
    logits = [[head.certainty(raw).flatten() for head, raw in zip(heads, network(part))] for part in parts]
    return [torch.cat(own).double() for own in zip(*logits, strict=True)]


def _shift(logits: Tensor, wanted: Tensor) -> float:
    """The root b of Σ p (σ(s + b) - p), which rises with b."""
    excess = lambda shift: float((wanted * ((logits + shift).sigmoid() - wanted)).sum())  # noqa: E731
    return bisect(excess, -WIDEST, WIDEST)
