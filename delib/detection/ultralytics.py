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
from delib.detection.detector import DetectionNetwork
from delib.detection.heads import FreeHead
from delib.detection.letterbox import ULTRALYTICS
from delib.files import cache_folder, write_bytes

# Heads whose every output delib reads. Others (Pose, OBB, Classify, RTDETRDecoder, ...) give more, or something else:
# their weights would be evolved without being looked at.
HEADS = ("Detect", "v10Detect", "Segment", "Segment26")
MAX_NAME = 40  # characters of a class
ASSETS_URL = "https://github.com/ultralytics/assets/releases/download/v8.4.0/"


class Ultra(DetectionNetwork):
    """An ultralytics detection or segmentation network of the anchor-free kind (YOLOv3u, YOLOv8, YOLO11, ...).

    Takes images [n, 3, height, width] (RGB, 0..1; multiples of 32), gives the head's raw outputs, in training and
    evaluation alike: for each level (see ``FreeHead``) box distributions, class logits and, for segmentation, mask
    coefficients, [n, 4 * bins + classes + coefficients, height / stride, width / stride], and last mask prototypes
    [n, coefficients, height / 4, width / 4].
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
            plain_prototypes(head.proto)
        self.heads = [FreeHead(head.reg_max, head.nc, getattr(head, "nm", 0))] * head.nl
        self.train(self.training)

    @property
    def _head(self) -> Any:
        return self.model.model[-1]  # type: ignore[index]

    @property
    def names(self) -> tuple[str, ...]:
        own, count = getattr(self.model, "names", None), self._head.nc
        return class_names(own, count) if own else super().names

    @property
    def activations(self) -> dict[str, str]:
        return activated_layers(self)

    def train(self, mode: bool = True) -> Ultra:
        super().train(mode)
        self._head.training = True  # the head's own flag alone: give raw outputs, decode nothing
        if hasattr(self._head, "proto"):
            self._head.proto.training = False  # and give prototypes alone
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        raw = self.model(images)
        joined = torch.cat([raw[name] for name in ("boxes", "scores", "mask_coefficient") if name in raw], 1)
        shapes = [tuple(level.shape[2:]) for level in raw["feats"]]
        parts = joined.split([rows * columns for rows, columns in shapes], 2)
        levels = [part.unflatten(2, shape) for part, shape in zip(parts, shapes)]
        return [*levels, raw["proto"]] if "proto" in raw else levels

    def certainty_biases(self) -> list[Tensor]:
        return [branch[-1].bias.detach() for branch in self._head.cv3]


def activated_layers(network: nn.Module) -> dict[str, str]:
    """The convolutions inside of ultralytics' ``Conv`` modules, each with that module's name."""
    from ultralytics.nn.modules import Conv

    held = {name: module for name, module in network.named_modules() if isinstance(module, Conv)}
    return {f"{name}.conv": name for name, module in held.items() if not isinstance(module.act, nn.Identity)}


def class_names(names: Any, count: int) -> tuple[str, ...]:
    """Classes' names as checkpoints hold them, a list or a dict by number; short, of printable characters."""
    listed = dict(enumerate(names)) if isinstance(names, list | tuple) else names if isinstance(names, dict) else {}
    texts = [str(listed.get(i, ""))[:MAX_NAME] for i in range(count)]
    return tuple(t if t.strip() and t.isprintable() else f"class {i}" for i, t in enumerate(texts))


@torch.no_grad()
def plain_prototypes(proto: Any) -> None:
    """Write ``proto``'s transposed convolution as a convolution, in place: the same outputs, up to rounding.

    Its kernels, as wide as its stride, do not overlap: each input gives the pixels of one block, as a convolution of
    1 x 1 with a channel for each pixel does. Convolutions can be sparsified, reconstructed and quantised by output.
    """
    old = proto.upsample
    if not isinstance(old, nn.ConvTranspose2d):
        return
    step = old.stride[0]
    if old.kernel_size != old.stride or old.groups != 1 or any((*old.padding, *old.output_padding)) or old.bias is None:
        raise ValueError("the mask prototypes' transposed convolution has overlapping kernels, which delib cannot read")
    weight = old.weight.flatten(2).permute(1, 2, 0).flatten(0, 1)  # [in, out, rows, columns] -> [out * block, in]
    new = nn.Conv2d(old.in_channels, len(weight), 1, device=old.weight.device, dtype=old.weight.dtype)
    new.weight.copy_(weight[:, :, None, None])
    new.bias.copy_(old.bias.repeat_interleave(step * step))  # type: ignore[union-attr]
    proto.upsample = nn.Sequential(new, nn.PixelShuffle(step))


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
    file = path if path.suffix == ".yaml" or path.is_file() else fetched(path)
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


def fetched(path: Path) -> Path:
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
