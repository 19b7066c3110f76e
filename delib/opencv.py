"""OpenCV 4's darknet runtime as a detector: an independent witness of what an exported `.weights` file finds."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from delib.darknet import Darknet
from delib.weights import CFGS, NETWORKS


class OpenCV:
    """A network of ``NETWORKS`` run from its `.weights` file by OpenCV instead of torch; goes into ``detect``.

    What the raw outputs mean is read by the torch network's own ``decode``; everything before is OpenCV's.
    Raises ValueError where this OpenCV has no darknet runtime (5 and later), or cannot read the file.
    """

    training = False

    def __init__(self, name: str, weights: str | Path) -> None:
        import cv2

        if not hasattr(cv2.dnn, "readNetFromDarknet"):
            raise ValueError(f"OpenCV {cv2.__version__} has no darknet runtime; install opencv-python<5")
        like: Darknet = NETWORKS[name][0]()
        self.size, self.margin, self.decode = like.size, like.margin, like.decode
        # OpenCV names a convolution by its number in the cfg; each head is the convolution before a yolo layer.
        self._heads = [f"conv_{i - 1}" for i, kind in enumerate(like.kinds) if kind == "yolo"]
        with tempfile.TemporaryDirectory() as folder:
            cfg = Path(folder) / "network.cfg"
            cfg.write_text(CFGS[name]())
            try:
                self._net = cv2.dnn.readNetFromDarknet(str(cfg), str(weights))
            except cv2.error as error:
                raise ValueError(f"{weights}: OpenCV cannot read it ({error.err})") from None

    def train(self, mode: bool = True) -> OpenCV:
        """Does nothing: OpenCV only evaluates."""
        return self

    def __call__(self, images: Tensor) -> list[Tensor]:
        self._net.setInput(images.numpy())
        return [torch.from_numpy(np.array(raw)) for raw in self._net.forward(self._heads)]
