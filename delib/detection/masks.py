"""Masks for what was detected: a network's own where it has a mask head, else drawn from the boxes by GrabCut.

GrabCut (Rother, Kolmogorov and Blake 2004) separates what lies inside a box from its surroundings by their colours.
It sees the photo and the box, not the network: its masks show *where* an object was found, and two networks' masks
differ only as far as their boxes do. Whatever shows such masks says so.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# GrabCut's prior, in half extents of the box: surely object within CORE of the centre (as an ellipse), at first guess
# within the ellipse in the box, surely not beyond REACH (as a rectangle: networks' boxes are often too small, and where
# the rectangle ends the mask should seldom have to); CONTEXT is how much more of the photo, in extents, tells what the
# background looks like. Chosen on boxes of YOLOv3-tiny and of a student of it: among the values that agree best with
# COCO's outlines, those for which the masks of both boxes agree best (docs/experiments.md).
CORE, REACH, CONTEXT = 0.65, 1.3, 0.25
# GrabCut works on a small copy whose pixels are blocks of the photo's, cut where both coordinates are multiples of CELL
# blocks: boxes a little apart then show it the same pixels, and their masks differ by the boxes alone.
CELL = 8
SIDE, ROUNDS = 128, 2  # pixels of the copy's longer side (more is slower and no better against COCO's outlines)


def grabcut(photo: Tensor, boxes: Tensor) -> Tensor:
    """A mask [n, height, width] (bool) for every box [n, 4] (left, top, right, bottom in pixels) of a photo.

    Each box is cut out with some surroundings, scaled down by a whole number so that its longer side has at most
    ``SIDE`` pixels, and segmented in two rounds. Where the surroundings tell nothing (a box that fills the photo,
    colours that do not separate) the mask is the ellipse in the box. The same photo and boxes give the same masks.
    """
    image = np.ascontiguousarray(photo.permute(1, 2, 0).numpy()[:, :, ::-1])
    masks = np.zeros((len(boxes), *image.shape[:2]), bool)
    for mask, box in zip(masks, boxes.double().numpy(), strict=True):
        _fill(mask, image, box)
    return torch.from_numpy(masks)


def _fill(mask: np.ndarray, image: np.ndarray, box: np.ndarray) -> None:
    """Segment one box of an image in place of ``mask``, on a small copy of its surroundings."""
    import cv2

    height, width = mask.shape
    extent = np.maximum(box[2:] - box[:2], 1)
    block = math.ceil(extent.max() / SIDE)
    cell = CELL * block
    x1, y1 = (np.floor(np.maximum(box[:2] - CONTEXT * extent, 0) / cell) * cell).astype(int)
    x2, y2 = np.minimum(np.ceil((box[2:] + CONTEXT * extent) / cell) * cell, [width, height]).astype(int)
    if x2 <= x1 or y2 <= y1:
        return
    small = (max(2, round((x2 - x1) / block)), max(2, round((y2 - y1) / block)))
    crop = cv2.resize(image[y1:y2, x1:x2], small, interpolation=cv2.INTER_AREA)
    shrink = np.array(small * 2) / [x2 - x1, y2 - y1, x2 - x1, y2 - y1]
    found = _segment(crop, (box - [x1, y1, x1, y1]) * shrink)
    mask[y1:y2, x1:x2] = cv2.resize(found, (int(x2 - x1), int(y2 - y1)), interpolation=cv2.INTER_LINEAR) > 0.5


def _segment(crop: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The object in a small image as float32 0 or 1, given the box around it."""
    import cv2

    y, x = np.mgrid[: crop.shape[0], : crop.shape[1]] + 0.5
    centre, radius = (box[:2] + box[2:]) / 2, np.maximum((box[2:] - box[:2]) / 2, 0.5)
    u, v = np.abs(x - centre[0]) / radius[0], np.abs(y - centre[1]) / radius[1]
    distance = np.hypot(u, v)  # 1 on the ellipse in the box
    state = np.full(crop.shape[:2], cv2.GC_BGD, np.uint8)
    state[np.maximum(u, v) < REACH] = cv2.GC_PR_BGD
    possible = int((state == cv2.GC_PR_BGD).sum())
    state[(state == cv2.GC_PR_BGD) & (distance < 1)] = cv2.GC_PR_FGD
    state[distance < CORE] = cv2.GC_FGD
    kinds = set(np.unique(state))
    if cv2.GC_BGD in kinds and cv2.GC_FGD in kinds:
        cv2.setRNGSeed(0)  # its k-means starts at random
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(crop, state, (0, 0, 0, 0), *models, ROUNDS, cv2.GC_INIT_WITH_MASK)
    found = (state == cv2.GC_FGD) | (state == cv2.GC_PR_FGD)
    if cv2.GC_BGD not in kinds or found.sum() >= possible:
        found = distance < 1
    return np.asarray(found, np.float32)
