"""Photos and what is labelled on them: any folder of images, with YOLO's text labels beside it where there are some."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from delib.records import write_bytes
from delib.sources import DataUnavailable, cache_folder, download

# COCO's 80 classes, numbered as in the labels of YOLO networks.
# fmt: off
CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MAX_LABEL_BYTES = 4 << 20
MAX_ZIP_BYTES = 256 << 20
COCO128_URL = "https://github.com/ultralytics/assets/releases/download/v0.0.0/coco128.zip"


@dataclass(frozen=True)
class Labels:
    """The objects on one photo: ``boxes`` [n, 4] as left, top, right, bottom and ``classes`` [n].

    Coordinates are shares of the photo's width and height. ``polygons`` holds each object's outline [points, 2],
    and is empty where only boxes are known.
    """

    boxes: Tensor
    classes: Tensor
    polygons: list[np.ndarray] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class Photo:
    """An image file, the boxes labelled on it and the outlines labelled on it; None where nothing was labelled."""

    path: Path
    boxes: Labels | None = None
    outlines: Labels | None = None

    def read(self) -> Tensor:
        """The pixels, uint8 RGB [3, height, width], upright. Raises ValueError if it is not an image."""
        try:
            with Image.open(self.path) as image:
                # exif_transpose: cameras store photos lying on their side and note it.
                return torch.from_numpy(np.array(ImageOps.exif_transpose(image).convert("RGB"))).permute(2, 0, 1)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{self.path}: not an image that can be read ({error}); remove or replace it") from None


def photos(folder: str | Path, limit: int | None = None) -> list[Photo]:
    """The images in ``folder`` and below, by name, at most ``limit``, with their labels.

    Labels are looked for where YOLO keeps them: for ``…/images/…/x.jpg`` in ``…/labels/…/x.txt`` (boxes) and
    ``…/labels-seg/…/x.txt`` (outlines). Where such a folder exists, an image without a file has no objects.
    Raises ValueError if there is no image, or a label file is not what it should be.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; name one that holds images")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not paths:
        raise ValueError(f"{folder}: holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return [Photo(p, _labels_of(p, "labels"), _labels_of(p, "labels-seg")) for p in paths[:limit]]


def _labels_of(image: Path, kind: str) -> Labels | None:
    parts = list(image.absolute().parts)
    if "images" not in parts:
        return None
    parts[len(parts) - 1 - parts[::-1].index("images")] = kind
    path = Path(*parts).with_suffix(".txt")
    if path.is_file():
        return read_labels(path)
    return Labels(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)) if path.parent.is_dir() else None


def read_labels(path: Path) -> Labels:
    """A YOLO label file: a line ``class x y width height`` for every object, or ``class x1 y1 x2 y2 x3 y3 …``.

    Coordinates are shares of the photo's size; x and y of a box are its centre. Raises ValueError, naming the line,
    where it is neither.
    """
    if path.stat().st_size > MAX_LABEL_BYTES:
        raise ValueError(f"{path}: larger than {MAX_LABEL_BYTES} bytes, so not a label file; remove it")
    boxes, classes, polygons = [], [], []
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
        if len(values) == 5:
            x, y, w, h = values[1:]
            boxes.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
        else:
            polygons.append(values[1:].reshape(-1, 2).astype(np.float32))
            boxes.append([*polygons[-1].min(0), *polygons[-1].max(0)])
    if polygons and len(polygons) != len(boxes):
        raise ValueError(f"{path}: mixes boxes and outlines; keep one kind")
    return Labels(torch.tensor(boxes, dtype=torch.float32).view(-1, 4), torch.tensor(classes).long(), polygons)


def sample_photos() -> list[Photo]:
    """The two photos that come with ultralytics, a street and a football coach, found without importing it.

    Raises DataUnavailable if ultralytics is not installed.
    """
    spec = importlib.util.find_spec("ultralytics")
    folder = Path(spec.origin).parent / "assets" if spec and spec.origin else Path()
    paths = [folder / name for name in ("bus.jpg", "zidane.jpg")]
    if not all(path.is_file() for path in paths):
        raise DataUnavailable("the sample photos come with ultralytics; install it, or name a folder of images")
    return [Photo(path) for path in paths]


def coco128() -> Path:
    """COCO128, the first 128 photos of COCO train2017 with boxes, as ultralytics publishes it; fetched once.

    Its publisher gives no checksum: what arrives over https is taken, and its digest belongs in the run's record.
    Raises DataUnavailable if it is not there and cannot be fetched.
    """
    folder = cache_folder() / "coco128"
    if not (folder / "complete").is_file():
        try:
            _unpack_images(download(COCO128_URL), folder)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise DataUnavailable(
                f"coco128: {str(error).splitlines()[0][:100]}; connect and try again, "
                f"or name any folder of photos instead"
            ) from error
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

    @property
    def checksums(self) -> dict[str, str]:
        """SHA-256 of each set: of its files' names and contents, in order."""
        sets = {"recovery": self.recovery, "validation": self.validation, "tested": self.tested}
        return {f"{name} photos": _digest(several) for name, several in sets.items()}


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
    note = f"Measured on {len(measured)} photos that neither calibration nor recovery sees" + (
        "." if tested else "; choices are made on the same ones."
    )
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
    return sample_photos(), (
        f"Only the two sample photos ({reason}). The student is made and measured on the same two: every number below "
        "shows that the code works, none how good the student is on other photos."
    )


def _digest(several: list[Photo]) -> str:
    total = hashlib.sha256()
    for photo in several:
        total.update(photo.path.name.encode() + hashlib.sha256(photo.path.read_bytes()).digest())
    return total.hexdigest()


def _unpack_images(archive: bytes, folder: Path) -> None:
    """Images and labels of a zip archive, by their names alone: ``images/x.jpg``, ``labels/x.txt``."""
    kinds = {".jpg": "images", ".txt": "labels"}
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        entries = [e for e in files.infolist() if Path(e.filename).suffix in kinds and "train2017" in e.filename]
        if sum(entry.file_size for entry in entries) > MAX_ZIP_BYTES:
            raise ValueError("the archive unpacks to more than it should")
        for entry in entries:
            name = Path(entry.filename).name
            write_bytes(folder / kinds[Path(name).suffix] / name, files.read(entry))
    write_bytes(folder / "complete", b"")
