"""OpenCV 4's darknet runtime as a detector: an independent reference for exported pairs of cfg and weights."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from delib.detection.darknet import Darknet
from delib.detection.darknet_cfg import read_cfg


class OpenCV:
    """A darknet network run from its cfg and `.weights` file by OpenCV instead of torch; goes into ``detect``.

    OpenCV reads the cfg, computes, and decodes the boxes; only the photos' letterboxing and the suppression of
    duplicates are delib's. Confidences below ``least`` are reported as 0.
    Raises ValueError where this OpenCV has no darknet runtime (5 and later), or cannot read the pair.
    """

    training = False

    def __init__(self, cfg: str | Path, weights: str | Path, least: float = 0.001) -> None:
        import cv2

        if not hasattr(cv2.dnn, "readNetFromDarknet"):
            raise ValueError(f"OpenCV {cv2.__version__} has no darknet runtime; install opencv-python<5")
        like = Darknet(read_cfg(cfg))
        self.size, self.letterboxing = like.size, like.letterboxing
        self._heads = [f"yolo_{i}" for i, kind in enumerate(like.kinds) if kind == "yolo"]
        # OpenCV takes the least confidence from the cfg. At 0.2, its own choice, there is no average precision; and its
        # own suppression of duplicates, which ours follows, is switched off.
        asked = Path(cfg).read_text(encoding="utf-8").replace("[yolo]", f"[yolo]\nthresh={least}\nnms_threshold=0")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "network.cfg"
            file.write_text(asked, encoding="utf-8")
            try:
                self._net = cv2.dnn.readNetFromDarknet(str(file), str(weights))
            except cv2.error as error:
                raise ValueError(f"{weights}: OpenCV cannot read it ({error.err})") from None

    def train(self, mode: bool = True) -> OpenCV:
        """Does nothing: OpenCV only evaluates."""
        return self

    def __call__(self, images: Tensor) -> list[Tensor]:
        """What each yolo layer reports: [n, boxes, 5 + classes], each box as centre and extent in shares of the input,
        objectness, and the classes' confidences."""
        self._net.setInput(images.numpy())
        return [torch.from_numpy(np.array(raw)).reshape(len(images), -1, raw.shape[-1]) for raw in self._forward()]

    def _forward(self) -> Sequence[np.ndarray]:
        raw: Sequence[np.ndarray] = self._net.forward(self._heads)
        return raw

    def decode(self, outputs: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Boxes [n, boxes, 4] in pixels of the input, and confidences [n, boxes, classes]."""
        found = torch.cat(list(outputs), 1)
        centres, extents = found[..., :2], found[..., 2:4]
        boxes = torch.cat([centres - extents / 2, centres + extents / 2], -1)
        return boxes * boxes.new_tensor([size[1], size[0]] * 2), found[..., 5:]
