"""Masks for what was detected: a network's own where it has a mask head, else drawn from the boxes by GrabCut.

GrabCut (Rother, Kolmogorov and Blake 2004) separates what lies inside a box from its surroundings by their colours.
It sees the photo and the box, not the network: its masks show *where* an object was found, and two networks' masks
differ only as far as their boxes do. Whatever shows such masks says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from delib.compare import match
from delib.coco import Labels
from delib.detect import Detections

OWN, PROMPTED = "the network's mask head", "box-prompted GrabCut"


def with_masks(photos: Sequence[Tensor], detections: Sequence[Detections]) -> tuple[list[Detections], str]:
    """The detections with masks, and what made them: ``OWN`` where they have masks already, ``PROMPTED`` otherwise.

    ``photos`` are uint8 RGB [3, height, width].
    """
    if detections and all(found.masks is not None for found in detections):
        return list(detections), OWN
    pairs = zip(photos, detections, strict=True)
    return [replace(found, masks=grabcut(photo, found.boxes)) for photo, found in pairs], PROMPTED


def grabcut(photo: Tensor, boxes: Tensor, *, side: int = 96, context: float = 0.25, iterations: int = 3) -> Tensor:
    """A mask [n, height, width] (bool) inside every box [n, 4] (left, top, right, bottom in pixels) of a photo.

    Each box is cut out with ``context`` of its size around it, scaled so that its longer side has at most ``side``
    pixels (speed; finer detail would be invented anyway) and segmented in ``iterations`` rounds. The same photo and
    boxes give the same masks. Where the surroundings tell nothing (a box that fills the photo, no colours to
    separate) the mask is the ellipse inside the box.
    """
    image = np.ascontiguousarray(photo.permute(1, 2, 0).numpy()[:, :, ::-1])
    masks = np.zeros((len(boxes), *image.shape[:2]), bool)
    for mask, box in zip(masks, boxes.double().numpy(), strict=True):
        _fill(mask, image, box, side, context, iterations)
    return torch.from_numpy(masks)


def _fill(mask: np.ndarray, image: np.ndarray, box: np.ndarray, side: int, context: float, iterations: int) -> None:
    import cv2

    height, width = mask.shape
    extent = np.maximum(box[2:] - box[:2], 1)
    x1, y1 = np.floor(np.maximum(box[:2] - context * extent, 0)).astype(int)
    x2, y2 = np.ceil(np.minimum(box[2:] + context * extent, [width, height])).astype(int)
    if x2 <= x1 or y2 <= y1:
        return
    scale = min(1.0, side / extent.max())
    small = (max(2, round((x2 - x1) * scale)), max(2, round((y2 - y1) * scale)))
    crop = cv2.resize(image[y1:y2, x1:x2], small, interpolation=cv2.INTER_AREA)
    # The box in the small crop's own coordinates.
    inner = (box - [x1, y1, x1, y1]) * (np.array(small * 2) / [x2 - x1, y2 - y1, x2 - x1, y2 - y1])
    share = _segment(crop, inner, iterations)
    full = cv2.resize(share, (int(x2 - x1), int(y2 - y1)), interpolation=cv2.INTER_LINEAR) > 0.5
    inside = np.zeros_like(mask)
    left, top, right, bottom = np.rint(box).astype(int)
    inside[max(top, 0) : max(bottom, top + 1), max(left, 0) : max(right, left + 1)] = True
    mask[y1:y2, x1:x2] = full
    mask &= inside


def _segment(crop: np.ndarray, box: np.ndarray, iterations: int) -> np.ndarray:
    """The foreground of a small image as float32 0 or 1, given that it lies inside ``box``."""
    import cv2

    y, x = np.mgrid[: crop.shape[0], : crop.shape[1]] + 0.5
    centre, radius = (box[:2] + box[2:]) / 2, np.maximum((box[2:] - box[:2]) / 2, 0.5)
    u, v = np.abs(x - centre[0]) / radius[0], np.abs(y - centre[1]) / radius[1]
    ellipse = u**2 + v**2 < 1
    prior = np.full(crop.shape[:2], cv2.GC_BGD, np.uint8)
    prior[(u < 1) & (v < 1)] = cv2.GC_PR_BGD
    prior[ellipse] = cv2.GC_PR_FGD
    result = prior.copy()
    if (prior == cv2.GC_BGD).any() and ellipse.any():
        cv2.setRNGSeed(0)  # its k-means starts at random
        cv2.grabCut(crop, result, None, np.zeros((1, 65)), np.zeros((1, 65)), iterations, cv2.GC_INIT_WITH_MASK)
    found = (result == cv2.GC_FGD) | (result == cv2.GC_PR_FGD)
    # Less than a tenth or all of the box: the colours did not separate.
    if not 0.1 * ellipse.sum() < found.sum() < ((u < 1) & (v < 1)).sum():
        found = ellipse
    return found.astype(np.float32)


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of pairs of masks [n, height, width] (bool): [n], 1 where both are empty."""
    union = (a | b).sum((1, 2))
    return torch.where(union > 0, (a & b).sum((1, 2)) / union.clamp(min=1), 1.0)


def mask_agreement(wanted: Sequence[Detections], found: Sequence[Detections], iou: float = 0.5) -> Tensor:
    """Mask IoU [pairs] of every wanted object that is found (see ``match``), over all photos; both with masks.

    With the teacher's confident detections as ``wanted`` and the student's as ``found``: how alike their masks are.
    """
    values = [torch.zeros(0)]
    for w, f in zip(wanted, found, strict=True):
        if w.masks is None or f.masks is None:
            raise ValueError("masks are compared, but a detection has none; call with_masks first")
        matches = match(w, f, iou)
        hit = matches >= 0
        values.append(mask_iou(w.masks[hit], f.masks[matches[hit]]))
    return torch.cat(values)


def labelled_masks(labels: Labels, size: tuple[int, int]) -> Detections:
    """The outlines labelled on a photo of ``size`` (height, width) as masks, with confidence 1.

    Raises ValueError if the labels have boxes only.
    """
    import cv2

    if len(labels.polygons) != len(labels):
        raise ValueError("these labels hold boxes, no outlines; use the labels-seg folder")
    height, width = size
    masks = np.zeros((len(labels), height, width), np.uint8)
    for mask, polygon in zip(masks, labels.polygons, strict=True):
        # YOLO's label format joins an object's parts into one outline by lines there and back; even-odd filling
        # leaves the lines out.
        cv2.fillPoly(mask, [np.rint(polygon * [width, height]).astype(np.int32)], 1)
    boxes = labels.boxes * labels.boxes.new_tensor([width, height, width, height])
    return Detections(boxes, torch.ones(len(labels)), labels.classes, torch.from_numpy(masks.astype(bool)))
