"""Detections drawn on their photo: translucent masks, boxes, class and confidence; teacher and student side by side."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from delib.detection.coco import CLASSES
from delib.detection.infer import CONFIDENT, Detections, boxes_overlap
from delib.detection.metrics import lost_objects

# Okabe and Ito (2008): told apart by colour-blind readers too; the class is always written beside it.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
HEIGHT = 360  # pixels of a photo: two side by side fill a page
OPACITY, RIM = 0.45, 2  # of masks, and pixels within which their edge is opaque
DASH, STEP = 8, 14  # pixels of a dash, and from one to the next
GAP, INK, PAPER = 12, "#111111", "#FFFFFF"
Area = tuple[int, int, int, int]  # left, top, right, bottom


def overlay(
    photo: Tensor,
    found: Detections,
    *,
    height: int = HEIGHT,
    lost: Detections | None = None,
    names: Sequence[str] = CLASSES,
) -> np.ndarray:
    """The photo, uint8 RGB [3, h, w], scaled to ``height`` pixels with the detections on it: uint8 [height, width, 3].

    ``names`` are the classes'. ``lost`` objects are drawn as dashed boxes without a mask. Lines and letters have the
    same size on every photo.
    """
    scale = height / photo.shape[1]
    size = (height, max(1, round(photo.shape[2] * scale)))
    canvas = F.interpolate(photo[None].cpu().float(), size, mode="bilinear", antialias=True)[0]
    if found.masks is not None and len(found):
        masks = F.interpolate(found.masks[None].float(), size, mode="bilinear")[0] > 0.5
        # The largest first, so that small objects stay visible on top of what they stand before.
        for i in masks.sum((1, 2)).argsort(descending=True).tolist():
            ink = torch.tensor(ImageColor.getrgb(PALETTE[int(found.classes[i]) % len(PALETTE)])).view(3, 1, 1).float()
            beyond = F.max_pool2d((~masks[i])[None].float(), 2 * RIM + 1, 1, RIM)[0] > 0
            canvas = torch.where(masks[i], torch.where(beyond, ink, torch.lerp(canvas, ink, OPACITY)), canvas)
    image = Image.fromarray(canvas.round().byte().permute(1, 2, 0).numpy())
    taken: list[Area] = []
    if lost is not None:
        _draw(image, lost, scale, taken, names, dashed=True)
    _draw(image, found, scale, taken, names)
    return np.asarray(image)


def side_by_side(
    photo: Tensor,
    teacher: Detections,
    student: Detections,
    *,
    height: int = HEIGHT,
    names: Sequence[str] = CLASSES,
) -> np.ndarray:
    """Teacher's and student's detections on the same photo, each under a line that counts: uint8 [h, w, 3].

    Of the teacher's objects (above ``CONFIDENT``) those that the student lost are dashed on the student's side.
    """
    objects, lost = int((teacher.scores > CONFIDENT).sum()), lost_objects(teacher, student)
    left = f"Teacher: {objects} object{'s' * (objects != 1)} above {CONFIDENT:g}"
    right = f"Student: {objects - len(lost)} of {objects} found" + f", {len(lost)} lost (dashed)" * (len(lost) > 0)
    pairs = ((teacher, None), (student, lost))
    panels = [overlay(photo, found, height=height, lost=gone, names=names) for found, gone in pairs]
    return beside([_titled(panel, title) for panel, title in zip(panels, (left, right), strict=True)])


def beside(panels: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of the same height in a row, with a white gap between them."""
    return np.concatenate([np.pad(p, ((0, 0), (0, GAP), (0, 0)), constant_values=255) for p in panels], 1)[:, :-GAP]


def below(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures one below the other, with a white gap between them; narrower ones are centred on white."""
    spare = [max(p.shape[1] for p in pictures) - picture.shape[1] for picture in pictures]
    sides = [((0, GAP), (n // 2, n - n // 2), (0, 0)) for n in spare]
    return np.concatenate([np.pad(p, s, constant_values=255) for p, s in zip(pictures, sides, strict=True)])[:-GAP]


def png(picture: np.ndarray) -> bytes:
    """A picture, uint8 [h, w, 3], as a PNG file with a palette of 256 colours: a third of the bytes, as good to see."""
    buffer = io.BytesIO()
    image = Image.fromarray(picture)
    image = image.quantize(palette=image.quantize(256), dither=Image.Dither.FLOYDSTEINBERG)  # no bands in a sky
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def describe(found: Detections, names: Sequence[str] = CLASSES) -> str:
    """The detections in words, for alternative texts: ``person 0.98, dog 0.85``."""
    return ", ".join(_labels(found, names)) or "nothing"


def class_name(cls: int, names: Sequence[str] = CLASSES) -> str:
    """The class in words."""
    return names[cls] if cls < len(names) else f"class {cls}"


def _labels(found: Detections, names: Sequence[str]) -> list[str]:
    pairs = zip(found.classes.tolist(), found.scores.tolist(), strict=True)
    return [f"{class_name(cls, names)} {score:.2f}" for cls, score in pairs]


def _titled(panel: np.ndarray, title: str) -> np.ndarray:
    """A picture under a line of text."""
    size = next((n for n in range(18, 9, -1) if _font(n).getlength(title) <= panel.shape[1]), 9)
    image = Image.fromarray(np.pad(panel, ((32, 0), (0, 0), (0, 0)), constant_values=255))
    ImageDraw.Draw(image).text((2, 16), title, INK, _font(size), anchor="lm")
    return np.asarray(image)


def _draw(
    image: Image.Image,
    found: Detections,
    scale: float,
    taken: list[Area],
    names: Sequence[str],
    dashed: bool = False,
) -> None:
    """Boxes, then their labels; the most confident object lies on top and gets the best place for its label."""
    draw, found = ImageDraw.Draw(image), found[found.scores.argsort(descending=True, stable=True)]
    boxes, inks = (
        (found.boxes * scale).round().int().tolist(),
        [PALETTE[cls % len(PALETTE)] for cls in found.classes.tolist()],
    )
    for (x1, y1, x2, y2), ink in zip(reversed(boxes), reversed(inks), strict=True):
        if not dashed:
            draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=INK, width=1)  # seen on any background
            draw.rectangle((x1, y1, x2, y2), outline=ink, width=3)
        for line in _dashes(x1, y1, x2, y2) if dashed else ():
            draw.line(line, INK, 5)
            draw.line(line, PAPER, 3)
    for box, ink, text in zip(boxes, inks, _labels(found, names), strict=True):
        _draw_label(image, box, f"lost: {text}" if dashed else text, ink, taken)


def _dashes(x1: int, y1: int, x2: int, y2: int) -> Iterator[Area]:
    """The dashes of a box's four sides."""
    for x in range(x1, x2 + 1, STEP):
        yield from ((x, y, min(x + DASH, x2), y) for y in (y1, y2))
    for y in range(y1, y2 + 1, STEP):
        yield from ((x, y, x, min(y + DASH, y2)) for x in (x1, x2))


def _draw_label(image: Image.Image, box: Sequence[int], text: str, ink: str, taken: list[Area]) -> None:
    """A label at the first free place around its box, never off the photo; ``taken`` grows by the label's area."""
    draw, font, (right, bottom) = ImageDraw.Draw(image), _font(14), image.size
    width, height = int(font.getlength(text)) + 8, 20
    x1, y1, x2, y2 = box
    corners = [(x, y) for y in (y1 - height, y1, y2, y2 - height) for x in (x1 - 1, x2 - width + 1)]
    places = [(min(max(x, 0), max(right - width, 0)), min(max(y, 0), bottom - height)) for x, y in corners]
    areas = [(x, y, x + width, y + height) for x, y in places]
    area = next((a for a in areas if not any(boxes_overlap(a, other) for other in taken)), areas[0])
    taken.append(area)
    draw.rectangle(area, fill=ink, outline=INK)
    red, green, blue = ImageColor.getrgb(ink)[:3]
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 120
    draw.text((area[0] + 4, area[1] + height / 2), text, INK if bright else PAPER, font, anchor="lm")


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu, which comes with matplotlib: the same letters on every machine."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans-Bold.ttf"), size)
