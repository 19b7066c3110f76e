"""Detections drawn on their photo: translucent masks, boxes, class and confidence; teacher and student side by side."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import draw_segmentation_masks

from delib.detection.coco import CLASSES
from delib.detection.infer import Detections
from delib.detection.metrics import match

# Okabe and Ito (2008): told apart by colour-blind readers too; the class is always written beside it.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
OPACITY = 0.45
GAP, INK, PAPER = 12, "#111111", "#FFFFFF"
Area = tuple[int, int, int, int]  # left, top, right, bottom


def colour(cls: int) -> str:
    """A class's colour, the same in every picture."""
    return PALETTE[cls % len(PALETTE)]


def overlay(photo: Tensor, found: Detections, *, height: int = 480, lost: Detections | None = None) -> np.ndarray:
    """The photo, uint8 RGB [3, h, w], scaled to ``height`` pixels with the detections on it: uint8 [height, width, 3].

    ``lost`` objects are drawn as dashed boxes without a mask. Lines and letters have the same size on every photo.
    """
    scale = height / photo.shape[1]
    size = (height, max(1, round(photo.shape[2] * scale)))
    canvas = F.interpolate(photo[None].cpu().float(), size, mode="bilinear", antialias=True)[0].round().byte()
    if found.masks is not None and len(found):
        masks = F.interpolate(found.masks[None].float(), size, mode="bilinear")[0] > 0.5
        # The largest first, so that small objects stay visible on top of what they stand before.
        for i in masks.sum((1, 2)).argsort(descending=True).tolist():
            ink = colour(int(found.classes[i]))
            canvas = draw_segmentation_masks(canvas, masks[i], alpha=OPACITY, colors=ink)
            canvas = draw_segmentation_masks(canvas, _rim(masks[i]), alpha=1, colors=ink)
    image = Image.fromarray(canvas.permute(1, 2, 0).numpy())
    taken: list[Area] = []
    if lost is not None:
        _draw_boxes(image, lost, scale, taken, dashed=True)
    _draw_boxes(image, found, scale, taken)
    return np.asarray(image)


def side_by_side(
    photo: Tensor, teacher: Detections, student: Detections, *, height: int = 480, confident: float = 0.8
) -> np.ndarray:
    """Teacher's and student's detections on the same photo, each under a line that counts: uint8 [h, w, 3].

    Of the teacher's objects above ``confident`` those that the student lost are dashed on the student's side.
    """
    objects = teacher[teacher.scores > confident]
    lost = objects[match(objects, student) < 0]
    kept = len(objects) - len(lost)
    titles = (
        f"Teacher: {len(objects)} object{'s' * (len(objects) != 1)} above {confident:g}",
        f"Student: {kept} of {len(objects)} found" + (f", {len(lost)} lost (dashed)" if len(lost) else ""),
    )
    panels = (overlay(photo, teacher, height=height), overlay(photo, student, height=height, lost=lost))
    return beside([titled(panel, title) for panel, title in zip(panels, titles, strict=True)])


def titled(panel: np.ndarray, title: str) -> np.ndarray:
    """A picture under a line of text."""
    font = _font(18)
    image = Image.new("RGB", (panel.shape[1], panel.shape[0] + 32), PAPER)
    image.paste(Image.fromarray(panel), (0, 32))
    while font.getlength(title) > panel.shape[1] and font.size > 9:
        font = _font(int(font.size) - 1)
    ImageDraw.Draw(image).text((2, 16), title, INK, font, anchor="lm")
    return np.asarray(image)


def beside(panels: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of the same height in a row, with a white gap between them."""
    gap = np.full((panels[0].shape[0], GAP, 3), 255, np.uint8)
    row = [part for panel in panels for part in (panel, gap)]
    return np.concatenate(row[:-1], 1)


def png(picture: np.ndarray) -> bytes:
    """A picture, uint8 [h, w, 3], as a PNG file with a palette of 256 colours: a third of the bytes, as good to see."""
    buffer = io.BytesIO()
    image = Image.fromarray(picture)
    image = image.quantize(palette=image.quantize(256), dither=Image.Dither.FLOYDSTEINBERG)  # no bands in a sky
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def below(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures one below the other, with a white gap between them; narrower ones are centred on white."""
    width = max(picture.shape[1] for picture in pictures)
    rows = []
    for picture in pictures:
        spare = width - picture.shape[1]
        sides = ((0, GAP), (spare // 2, spare - spare // 2), (0, 0))
        rows.append(np.pad(picture, sides, constant_values=255))
    return np.concatenate(rows)[:-GAP]


def describe(found: Detections) -> str:
    """The detections in words, for alternative texts: ``person 0.98, dog 0.85``."""
    pairs = zip(found.classes.tolist(), found.scores.tolist(), strict=True)
    return ", ".join(f"{_name(cls)} {score:.2f}" for cls, score in pairs) or "nothing"


def _rim(mask: Tensor) -> Tensor:
    """The pixels of a mask [h, w] within two pixels of its edge."""
    outside = (~mask)[None].float()
    return mask & (F.max_pool2d(outside, 5, 1, 2)[0] > 0)


def _draw_boxes(image: Image.Image, found: Detections, scale: float, taken: list[Area], dashed: bool = False) -> None:
    """Boxes, then labels above them; the most confident object gets the best place for its label."""
    draw = ImageDraw.Draw(image)
    boxes = (found.boxes * scale).round().int().tolist()
    inks = [colour(cls) for cls in found.classes.tolist()]
    order = found.scores.argsort(descending=True, stable=True).tolist()
    for i in reversed(order):
        _draw_box(draw, boxes[i], inks[i], dashed)
    for i in order:
        text = f"{_name(int(found.classes[i]))} {float(found.scores[i]):.2f}"
        _draw_label(draw, image.size, boxes[i], f"lost: {text}" if dashed else text, inks[i], taken)


def _draw_box(draw: ImageDraw.ImageDraw, box: list[int], ink: str, dashed: bool) -> None:
    x1, y1, x2, y2 = box
    if not dashed:
        draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=INK, width=1)  # seen on any background
        draw.rectangle((x1, y1, x2, y2), outline=ink, width=3)
        return
    for (ax, ay), (bx, by) in (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x2, y2), (x1, y2)), ((x1, y2), (x1, y1))):
        length = max(abs(bx - ax), abs(by - ay), 1)
        for start in range(0, length, 14):
            ends = [start / length, min(start + 8, length) / length]
            line = [(ax + (bx - ax) * t, ay + (by - ay) * t) for t in ends]
            draw.line(line, INK, 5)
            draw.line(line, PAPER, 3)


def _draw_label(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], box: list[int], text: str, ink: str, taken: list[Area]
) -> None:
    """A label at the first free place around its box, never off the photo; ``taken`` grows by the label's area."""
    font = _font(14)
    width, height = int(font.getlength(text)) + 8, 20
    x1, y1, x2, y2 = box
    corners = [(x, y) for y in (y1 - height, y1, y2, y2 - height) for x in (x1 - 1, x2 - width + 1)]
    places = [(min(max(x, 0), max(size[0] - width, 0)), min(max(y, 0), size[1] - height)) for x, y in corners]
    areas = [(x, y, x + width, y + height) for x, y in places]
    area = next((a for a in areas if not any(_overlap(a, other) for other in taken)), areas[0])
    taken.append(area)
    draw.rectangle(area, fill=ink, outline=INK)
    red, green, blue = ImageColor.getrgb(ink)[:3]
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 120
    draw.text((area[0] + 4, area[1] + height / 2), text, INK if bright else PAPER, font, anchor="lm")


def _overlap(a: Area, b: Area) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _name(cls: int) -> str:
    return CLASSES[cls] if cls < len(CLASSES) else f"class {cls}"


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu, which comes with matplotlib: the same letters on every machine."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans-Bold.ttf"), size)
