"""The one interface of detectors: what the pipeline asks of a network, whichever it is.

Its outputs are a list: one raw tensor for each level, of which ``heads`` say what the channels mean, and last, where it
draws masks, the mask prototypes. All else follows from these.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from delib.detection.calibration import Calibration, calibrate_objectness
from delib.detection.coco import CLASSES
from delib.detection.divergence import (
    BOX_WEIGHT,
    FLOOR,
    MASK_WEIGHT,
    PositionWeights,
    detection_divergence,
    position_weights,
)
from delib.detection.heads import FreeHead, Head
from delib.detection.letterbox import Letterboxing
from delib.nn.divergence import Divergence


class DetectionNetwork(nn.Module, ABC):
    """A detector. Takes images [n, 3, height, width] (RGB, 0..1; multiples of the largest stride), gives its outputs by
    level, each [n, channels, rows, columns], and last, if ``has_masks``, prototypes [n, coefficients, rows, columns].

    ``size`` (height, width) is the input that it prefers, ``letterboxing`` how photos are fitted into it.
    """

    size: tuple[int, int]
    letterboxing: Letterboxing
    heads: Sequence[Head | FreeHead]

    @property
    def names(self) -> tuple[str, ...]:
        """Its classes in words: COCO's where it has as many."""
        count = self.heads[0].classes
        return CLASSES if count == len(CLASSES) else tuple(f"class {i}" for i in range(count))

    @property
    def has_masks(self) -> bool:
        """Whether it draws masks itself."""
        return self.heads[0].coefficients > 0

    @property
    @abstractmethod
    def activations(self) -> dict[str, str]:
        """For each weight layer that an activation follows, the module whose output is the activation's."""

    def decode(self, outputs: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Boxes [n, boxes, 4] in pixels of the input, and confidences [n, boxes, classes], of all levels together."""
        decoded = [head.decode(raw, size) for head, raw in zip(self.heads, outputs)]
        return torch.cat([boxes for boxes, _ in decoded], 1), torch.cat([scores for _, scores in decoded], 1)

    def masks(self, outputs: Sequence[Tensor], photo: int, boxes: Tensor) -> Tensor:
        """Mask logits [boxes, rows, columns] of the ``boxes`` of those indices on one photo of the batch: sums of
        prototypes, weighted by the boxes' coefficients (Bolya et al. 2019, YOLACT, section 3.2)."""
        own = [head.mask_coefficients(raw[photo, None]) for head, raw in zip(self.heads, outputs)]
        coefficients = torch.cat([c.movedim(2, -1).flatten(0, 3) for c in own])[boxes.to(own[0].device)]
        return torch.einsum("pc,chw->phw", coefficients, outputs[-1][photo])

    def divergence(self, background: float = 0.0, boxes: float = BOX_WEIGHT, masks: float = MASK_WEIGHT) -> Divergence:
        """How far a student's outputs are from this network's (see ``detection_divergence``)."""
        return detection_divergence(self.heads, background, boxes, masks)

    def position_weights(self, floor: float = FLOOR) -> PositionWeights:
        """Where it sees something (see ``divergence.position_weights``)."""
        return position_weights(self.heads, floor)

    def calibrate(self, student: Any, inputs: Tensor) -> list[Calibration]:
        """Make a student as sure as this network, in place (see ``calibrate_objectness``)."""
        return calibrate_objectness(student, self, self.heads, inputs, biases=student.certainty_biases())

    def certainty_biases(self) -> list[Tensor] | None:
        """By level, the biases that shift its certainty, sharing their memory; None where they are those of the layers
        whose outputs are the network's."""
        return None
