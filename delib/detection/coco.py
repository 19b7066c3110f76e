"""Photos and what is labelled on them: any folder of images, with YOLO's text labels beside it where there are some."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from delib.data.download import DataUnavailable, FileSet, debian_package, download, web
from delib.data.own import IMAGE_SUFFIXES
from delib.files import cache_folder, write_bytes

# COCO's 80 classes, numbered as in the labels of YOLO networks: torchvision's without those that COCO does not use.
_NAMES = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
CLASSES = tuple(name for name in _NAMES if name not in ("__background__", "N/A"))
MAX_DEEP = (1 << 16) - 1  # white, in 16-bit grey
MAX_LABEL_BYTES = 4 << 20
MAX_ZIP_BYTES = 256 << 20
COCO128_URL = "https://github.com/ultralytics/assets/releases/download/v0.0.0/coco128.zip"
# What darknet's authors show YOLOv3 on; their licence file says GPL-3+, MIT or WTFPL, as one likes. The checksums were
# taken from the Debian package (the pinned archive is version 0.0.0+git20180914 for amd64, in Debian 12); whether the
# authors' repository holds the same bytes could not be confirmed here.
SAMPLES = {
    "dog.jpg": "5a9522051c3cec2bbd2f6323fccba32e8fbf3ddcc2b3e2fd46b04c720bc6f866",
    "eagle.jpg": "f95f57297fd51a6c5ddceb5ed6916fa759d1d65f402fee34c05b31a9608755c0",
    "giraffe.jpg": "00dc48a9b2af8a1fe4c4b79319726591f1033c7e1150f21e7577a79f3b6659f1",
    "horses.jpg": "c8f0a677a1356569e2ce71d2fa88c1030c0ae57ecf5e14170e02d9a86a20dcb4",
    "kite.jpg": "87410f52f79cc256c3949b48a3548632c07c8e9943468ef8caa6250f6643be8e",
    "person.jpg": "cdcbab947e46110fc2b77784ac54ddbbab2640f1e44cb5e91fc8984a9793a7d1",
    "scream.jpg": "dcab7bae866fbb396e01ab27a9c8d2d40b3e80911dafb05a5fa18d1bac6b8d17",
}
SAMPLES_URL = "https://raw.githubusercontent.com/pjreddie/darknet/master/data/"
PACKAGE = "9ca14d36112d242a782bfed4104fa5adcd2ae8bc599ab610f42eb609ee125a01"
SAMPLE_FILES = FileSet(
    "darknet-samples",
    SAMPLES,
    {
        "the authors' repository": web({name: SAMPLES_URL + name for name in SAMPLES}),
        "Debian package darknet": debian_package("darknet", PACKAGE, "usr/share/darknet/data/"),
    },
)
FILE_SETS = {SAMPLE_FILES.name: SAMPLE_FILES}


@dataclass(frozen=True)
class Labels:
    """The objects on one photo: ``boxes`` [n, 4] as left, top, right, bottom, in shares of its width and height,
    ``classes`` [n], and the ``outlines`` [points, 2] of all of them where each was labelled by its outline."""

    boxes: Tensor
    classes: Tensor
    outlines: tuple[Tensor, ...] | None = None

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class Photo:
    """An image file and the objects labelled on it; None where nobody labelled it. ``outlined`` are those labelled by
    their outlines."""

    path: Path
    labels: Labels | None = None
    outlined: Labels | None = None

    def read(self) -> Tensor:
        """The pixels, uint8 RGB [3, height, width], upright; 16-bit grey is scaled to 8 bits.

        Raises ValueError if the file is not an image, or if its pixels are no brightness of 8 or 16 bits.
        """
        try:
            with Image.open(self.path) as image:
                # exif_transpose: cameras store photos lying on their side and note it.
                upright = ImageOps.exif_transpose(image)
                # Pillow's conversion of deep pixels to RGB cuts them off at 255. Only grey ones come as deep as that:
                # of 16-bit colours it keeps the upper eight bits itself.
                deep = upright.mode.startswith(("I", "F"))
                pixels = np.array(upright if deep else upright.convert("RGB"))
        except (OSError, SyntaxError, ValueError, ImportError, Image.DecompressionBombError) as error:
            # ImportError: once imported, ultralytics has Pillow look for a decoder that is not installed.
            raise ValueError(f"{self.path}: not an image that can be read ({error}); remove or replace it") from None
        if deep:
            pixels = np.repeat(self._eight_bits(pixels)[:, :, None], 3, axis=2)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _eight_bits(self, grey: np.ndarray) -> np.ndarray:
        """Brightness in 0..65535 as the nearest one in 0..255, of which each is 257 times as much in 16 bits."""
        if grey.dtype.kind == "f" or grey.min() < 0 or grey.max() > MAX_DEEP:
            kind = "floating-point numbers" if grey.dtype.kind == "f" else f"from {grey.min()} to {grey.max()}"
            hint = f"save it with 8 bits, or with 16 (0 to {MAX_DEEP})"
            raise ValueError(f"{self.path}: its pixels are {kind}, whose black and white nobody says; {hint}")
        return ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)


def photos(folder: str | Path, limit: int | None = None) -> list[Photo]:
    """The images in ``folder`` and below, by name, at most ``limit``, with their labels.

    Labels are looked for where YOLO keeps them: for ``…/images/…/x.jpg`` in ``…/labels/…/x.txt``. Where such a folder
    exists, an image without a file has no objects. Outlines are taken from there, or else from ``…/labels-seg/…/x.txt``
    where there is one. Raises ValueError if there is no image, or a label file is broken.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; name one that holds images")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not paths:
        raise ValueError(f"{folder}: holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return [_labelled(path) for path in paths[:limit]]


def _labelled(image: Path) -> Photo:
    """A photo with what is known of it."""
    parts = list(image.absolute().parts)
    if "images" not in parts:
        return Photo(image)
    at = len(parts) - 1 - parts[::-1].index("images")
    boxes, outlines = (
        Path(*parts[:at], kind, *parts[at + 1 :]).with_suffix(".txt") for kind in ("labels", "labels-seg")
    )
    labels = read_labels(boxes) if boxes.is_file() else None
    outlined = labels if labels is not None and labels.outlines else None
    if outlined is None and outlines.is_file():
        outlined = read_labels(outlines)
    if labels is None and boxes.parent.is_dir():
        labels = Labels(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    return Photo(image, labels, outlined if outlined and outlined.outlines else None)


def read_labels(path: Path) -> Labels:
    """A YOLO label file: for every object a line ``class x y width height``, or its outline ``class x1 y1 x2 y2 …``.

    Coordinates are shares of the photo's size; x and y of a box are its centre; an outline gives the box around it.
    Raises ValueError, naming the line, where it is neither.
    """
    if path.stat().st_size > MAX_LABEL_BYTES:
        raise ValueError(f"{path}: larger than {MAX_LABEL_BYTES} bytes, so not a label file; remove it")
    boxes, classes, outlines = [], [], []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        try:
            values = np.array(line.split(), dtype=float)
        except ValueError:
            values = np.full(5, np.nan)
        if not len(values):
            continue
        good = np.isfinite(values).all() and (len(values) == 5 or (len(values) >= 7 and len(values) % 2 == 1))
        if not good or not 0 <= values[0] < 1 << 15 or np.abs(values[1:]).max() > 2:
            raise ValueError(f"{path}, line {number}: expected a class and relative coordinates; mend or remove it")
        classes.append(int(values[0]))
        outline = values[1:].reshape(-1, 2)
        if len(values) == 5:
            centre, extent = outline
            outline = np.stack([centre - extent / 2, centre + extent / 2])
        else:
            outlines.append(torch.tensor(outline, dtype=torch.float32))
        boxes.append([*outline.min(0), *outline.max(0)])
    drawn = tuple(outlines) if len(outlines) == len(classes) else None
    return Labels(torch.tensor(boxes, dtype=torch.float32).view(-1, 4), torch.tensor(classes).long(), drawn)


def sample_photos() -> list[Photo]:
    """Nine photos: ultralytics' street and football coach, found without importing it, then darknet's seven.

    The seven are fetched once. Where they can be neither found nor fetched, the two are all there is.
    Raises DataUnavailable if ultralytics is not installed.
    """
    spec = importlib.util.find_spec("ultralytics")
    folder = Path(spec.origin).parent / "assets" if spec and spec.origin else Path()
    paths = [folder / name for name in ("bus.jpg", "zidane.jpg")]
    if not all(path.is_file() for path in paths):
        raise DataUnavailable("the sample photos come with ultralytics; install it, or name a folder of images")
    with suppress(DataUnavailable):
        paths += [SAMPLE_FILES.fetch() / name for name in SAMPLE_FILES.checksums]
    return [Photo(path) for path in paths]


def coco128() -> Path:
    """COCO128, the first 128 photos of COCO train2017 with boxes, as ultralytics publishes it; fetched once.

    Its publisher gives no checksum: what arrives over https is taken, and its digest belongs in the run's record.
    Raises DataUnavailable if it is not there and cannot be fetched.
    """
    folder = cache_folder() / "coco128"
    if not (folder / "complete").is_file():
        try:
            with zipfile.ZipFile(io.BytesIO(download(COCO128_URL))) as files:
                if sum(entry.file_size for entry in files.infolist()) > MAX_ZIP_BYTES:
                    raise ValueError("the archive unpacks to more than it should")
                files.extractall(folder)  # which keeps within the folder whatever the entries are called
            write_bytes(folder / "complete", b"")
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            hint = "connect and try again, or name any folder of photos instead"
            raise DataUnavailable(f"coco128: {str(error).splitlines()[0][:100]}; {hint}") from error
    return folder


@dataclass(frozen=True)
class PhotoSets:
    """Photos by what they are for: a student is made on ``recovery``, choices are made on ``validation``, ``tested``
    measures. ``note`` says what that means for the numbers. The first ``own`` photos of ``recovery`` are from the
    folder that the student is meant for."""

    recovery: list[Photo]
    validation: list[Photo]
    tested: list[Photo]
    note: str
    own: int

    def table(self) -> pd.DataFrame:
        """How many photos there are for what."""
        counts = {"recovery": len(self.recovery), "validation": len(self.validation), "test": len(self.tested)}
        roles = ["the student learns from these", "choices are made on these", "what is reported is measured on these"]
        return pd.DataFrame({"photos": counts, "what for": dict(zip(counts, roles, strict=True))})

    @property
    def checksums(self) -> dict[str, str]:
        """SHA-256 of each set: of its files' names and contents, in order."""
        found = {}
        for name in ("recovery", "validation", "tested"):
            total = hashlib.sha256()
            for photo in getattr(self, name):
                total.update(photo.path.name.encode() + hashlib.sha256(photo.path.read_bytes()).digest())
            found[f"{name} photos"] = total.hexdigest()
        return found


def photo_sets(images: str = "", more: str = "", tested: str = "", held_out: int = 60, seed: int = 0) -> PhotoSets:
    """Photos to make a student on and others to measure it on.

    ``images`` is a folder, empty for COCO128, or ``samples`` for the sample photos, which also stand in where COCO128
    is neither here nor can be fetched. ``more`` is a folder of further photos to recover on, if named. ``held_out`` of
    them, at most half, are drawn by ``seed`` for validation; without ``more``, of ``images``. ``tested`` is a folder of
    photos that only measure; empty, those for validation measure as well.
    """
    base, note = _pool(images)
    if note:
        return PhotoSets(base, base, base, note, len(base))
    pool = photos(more) if more else base
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed)).tolist()
    held = min(held_out, len(pool) // 2)
    validation, rest = [pool[i] for i in order[:held]], [pool[i] for i in order[held:]]
    measured = photos(tested) if tested else validation
    also = "" if tested else "; choices are made on the same ones"
    note = f"Measured on {len(measured)} photos that neither calibration nor recovery sees{also}."
    recovery = base + rest if more else rest
    return PhotoSets(recovery, validation, measured, note, len(base) if more else len(rest))


def _pool(images: str) -> tuple[list[Photo], str]:
    """The photos that ``images`` stands for and, if they are but the samples, what that means."""
    try:
        if images != "samples":
            return photos(images or coco128()), ""
        reason = "asked for"
    except DataUnavailable as problem:
        reason = str(problem)
    several = sample_photos()
    count, missing = "nine", ""
    if len(several) == 2:
        count = "two"
        missing = f" Seven more could not be had; connect and run `delib fetch {SAMPLE_FILES.name}`."
    return several, (
        f"Only the {count} sample photos ({reason}), and {count} photos measure nothing. The student is made and "
        f"measured on the same {count}: every number below shows that the code works, none how good the student is on "
        f"other photos.{missing}"
    )
