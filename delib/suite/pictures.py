"""Pictures for pages: photos made light, drawings left as they are, thumbnails, one panel of a row of photos."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image

# Bytes a pixel at which a PNG is taken for a photo. Drawings need less than 0.12, photos with detections more than 0.4.
PHOTO = 0.25
QUALITY = 80  # of WebP: photos with boxes and labels look as before at twice the size, at a quarter of the bytes
WHITE, GAP = 240, 5  # between photos that stand side by side: at least this light, over so many columns
PNG = "data:image/png;base64,"


def read(source: str) -> bytes | None:
    """The bytes of an inlined PNG; None for anything else."""
    return base64.b64decode(source.removeprefix(PNG)) if source.startswith(PNG) else None


def lightened(source: str) -> str:
    """An inlined PNG of a photo as WebP; drawings, and what Pillow cannot read, as they are."""
    data = read(source)
    image = _image(data) if data and is_photo(data) else None
    return inlined(image) if image else source


def is_photo(data: bytes) -> bool:
    """Whether a PNG is a photo rather than a drawing, by how little its compression achieves."""
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))  # of its header
    return len(data) >= PHOTO * max(1, width * height)


def thumbnail(data: bytes, width: int) -> str:
    """A PNG no wider than ``width`` pixels, inlined as WebP; empty if Pillow cannot read it."""
    image = _image(data)
    return inlined(shrunk(image, width)) if image else ""


def shrunk(image: Image.Image, width: int) -> Image.Image:
    """The image at most ``width`` pixels wide."""
    if image.width <= width:
        return image
    return image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)


def inlined(image: Image.Image, quality: int = QUALITY) -> str:
    """An image as an address that holds it, as WebP."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def first_panels(frames: Sequence[bytes]) -> list[Image.Image]:
    """The leftmost photo of each picture in which several stand side by side on white; else the whole pictures.

    Cut is where a column is white in all pictures alike. Empty if one of them cannot be read.
    """
    images = [image for image in map(_image, frames) if image]
    if len(images) < len(frames) or len({image.size for image in images}) != 1:
        return images if len(images) == len(frames) else []
    white = np.all([np.asarray(image.convert("L")).min(axis=0) >= WHITE for image in images], axis=0)
    gaps = [at for at in np.flatnonzero(white) if at > images[0].height // 2 and white[at : at + GAP].all()]
    cut = int(gaps[0]) if gaps else images[0].width
    return [image.crop((0, 0, cut, image.height)) for image in images]


def _image(data: bytes) -> Image.Image | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data)).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None
