"""Ultralytics' networks as plain torch modules: the one place that imports ultralytics, and it does so late.

ultralytics is AGPL-3.0 software. Left alone it writes settings into the home folder, reports usage and installs
packages; ``library`` forbids all three before the import.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from delib.data.download import DataUnavailable, download
from delib.detection.letterbox import ULTRALYTICS
from delib.files import cache_folder, write_bytes

# Heads whose every output delib reads. Others (Pose, OBB, Classify, RTDETRDecoder, ...) give more, or something else:
# their weights would be evolved without being looked at.
HEADS = ("Detect", "v10Detect", "Segment", "Segment26")
ASSETS_URL = "https://github.com/ultralytics/assets/releases/download/v8.4.0/"


class Ultra(nn.Module):
    """An ultralytics detection or segmentation network of the anchor-free kind (YOLOv3u, YOLOv8, YOLO11, ...).

    Takes images [n, 3, height, width] (RGB, 0..1; multiples of 32), gives the head's raw outputs, in training and
    evaluation alike: box distributions [n, 4 * bins, places], class logits [n, classes, places] and, for segmentation,
    mask coefficients [n, 32, places] and mask prototypes [n, 32, height / 4, width / 4].
    """

    size = (640, 640)
    letterboxing = ULTRALYTICS

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        head = self._head
        # The head's fixed convolution, which turns distributions into distances, is done in `decode`: it is no
        # weight to evolve. Nor are branches that no output comes from: the second head of networks that are trained to
        # give each object one box, and the classes of single pixels that help to train masks.
        head.dfl = nn.Identity()
        for name in [name for name, _ in head.named_children() if name.startswith("one2one_")]:
            setattr(head, name, None)
        if hasattr(head, "proto"):
            head.proto.semseg = None
        self.train(self.training)

    @property
    def _head(self) -> Any:
        return self.model.model[-1]  # type: ignore[index]

    @property
    def has_masks(self) -> bool:
        """Whether the network has a mask head."""
        return hasattr(self._head, "proto")

    def train(self, mode: bool = True) -> Ultra:
        super().train(mode)
        self._head.training = True  # the head's own flag alone: give raw outputs, decode nothing
        if self.has_masks:
            self._head.proto.training = False  # and give prototypes alone
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        raw = self.model(images)
        names = ("boxes", "scores", "mask_coefficient", "proto")
        return [raw[name] for name in names if name in raw]

    def decode(self, outputs: list[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Boxes [n, places, 4] in pixels of the input, and confidences [n, places, classes].

        A box's sides are expected values of distributions over 0..bins-1 strides from its place (Li et al. 2020,
        generalized focal loss, eq. 6).
        """
        from ultralytics.utils.tal import dist2bbox, make_anchors

        strides = self._head.stride
        grids = [outputs[0].new_empty(1, 1, *(int(side / stride) for side in size)) for stride in strides.tolist()]
        places, scales = make_anchors(grids, strides)
        n, channels, _ = outputs[0].shape
        distances = outputs[0].view(n, 4, channels // 4, -1)
        if channels > 4:
            bins = torch.arange(channels // 4).to(distances)
            distances = (distances.softmax(2) * bins[:, None]).sum(2)
        boxes = dist2bbox(distances.view(n, 4, -1).mT, places, xywh=False) * scales
        return boxes, outputs[1].sigmoid().mT

    def masks(self, outputs: list[Tensor], photo: int, places: Tensor) -> Tensor:
        """Mask logits [places, height / 4, width / 4] of the boxes at ``places`` on one photo of the batch."""
        coefficients, prototypes = outputs[2][photo][:, places], outputs[3][photo]
        return torch.einsum("cp,chw->phw", coefficients, prototypes)


def load_ultra(name: str | Path) -> Ultra:
    """A network by its checkpoint (``yolo11n-seg.pt``: a path, or a name to fetch once) or, with random weights,
    by its description (``yolo11n-seg.yaml``, which comes with ultralytics).

    Checkpoints are read with ``weights_only=True`` and ultralytics' list of allowed classes. Raises ValueError for a
    file that is none, or of a network that is not for detection or segmentation; DataUnavailable for a checkpoint that
    is neither here nor can be fetched.
    """
    path = Path(name)
    if path.suffix not in (".pt", ".yaml"):
        raise ValueError(f"{name}: expected an ultralytics checkpoint (.pt) or description (.yaml)")
    tasks = library()
    file = path if path.suffix == ".yaml" or path.is_file() else _fetch(path)
    try:
        if path.suffix == ".yaml":
            description = tasks.yaml_model_load(path)
            head = description["head"][-1][2]
        else:
            model, _ = tasks.load_checkpoint(file)
            head = type(model.model[-1]).__name__
    except FileNotFoundError:
        raise ValueError(f"{name}: ultralytics has no such network description") from None
    except Exception as error:  # whatever its readers raise on a file that is something else
        reason = f"{type(error).__name__} {error}".splitlines()[0][:100]
        raise ValueError(f"{file}: no checkpoint or description that ultralytics can read safely ({reason})") from None
    if head not in HEADS:
        wanted = "use a detection or segmentation network, such as yolo11n or yolo11n-seg"
        raise ValueError(f"{file}: {head} is not a head that delib can read; {wanted}")
    if path.suffix == ".yaml":
        kind = tasks.SegmentationModel if head.startswith("Segment") else tasks.DetectionModel
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = kind(description, verbose=False)
    return Ultra(model).eval()


def _fetch(path: Path) -> Path:
    """A published checkpoint, fetched once. Its publisher gives no checksum; its digest belongs in the record."""
    if path.name == "yolov3.pt":
        raise ValueError(
            "yolov3.pt: ultralytics would silently load another network, YOLOv3u; "
            "ask for yolov3u.pt, or for the paper's network with load_yolo('yolov3')"
        )
    known = cache_folder() / "ultralytics" / path.name
    if known.is_file():
        return known
    if str(path) != path.name:
        raise ValueError(f"{path}: no such file; name a checkpoint that is there, or one that ultralytics publishes")
    try:
        write_bytes(known, download(ASSETS_URL + path.name))
    except OSError as error:
        raise DataUnavailable(
            f"{path.name} is not here and could not be fetched ({str(error).splitlines()[0][:80]}); "
            f"connect and try again, or put it into {known.parent}"
        ) from error
    return known


def library() -> Any:
    """``ultralytics.nn.tasks``, imported with its habits forbidden."""
    os.environ.setdefault("YOLO_CONFIG_DIR", str(cache_folder() / "ultralytics"))
    os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false", YOLO_VERBOSE="false", ULTRALYTICS_SAFE_LOAD="1")
    from ultralytics.nn import tasks

    tasks.SAFE_LOAD = True  # type: ignore[attr-defined]  # the variable was read when ultralytics was first imported, which may have been elsewhere
    return tasks
