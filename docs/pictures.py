"""Make the README's pictures anew: the shipped student beside its teacher, and the slider of an executed notebook 03.

delib run 03_coco_yolov3 && python docs/pictures.py
"""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

from PIL import Image

from delib import detection
from delib.detection import Study
from delib.files import project_root

FOLDER = Path(__file__).parent / "images"
WIDTH = 900  # pixels of the README's column


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    picture = side_by_side()
    picture.quantize(128).save(FOLDER / "side_by_side.png", optimize=True)
    frames = [frame.quantize(64) for frame in slider()]
    frames[0].save(FOLDER / "slider.gif", save_all=True, append_images=frames[1:], duration=900, loop=0, optimize=True)


def side_by_side() -> Image.Image:
    """What teacher and shipped student find on three of the sample photos."""
    teacher = detection.load_yolo("yolov3-tiny")
    study = Study(teacher, detection.sample_photos())
    student = next(student for student in detection.shipped() if student.file.stem == "yolov3-tiny-s90-b4")
    wide = [i for i in study.order if study.pictures[i].shape[2] > study.pictures[i].shape[1]]
    png, _ = study.side_by_side(study.detect(student.network()), wide[:3])
    return _scaled(png)


def slider() -> list[Image.Image]:
    """The pictures that the slider of notebook 03 moves through, as its last quick run left them."""
    executed = project_root() / "reports" / "quick" / "notebooks" / "03_coco_yolov3.ipynb"
    cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    pages = ["".join(o.get("data", {}).get("text/html", "")) for cell in cells for o in cell.get("outputs", [])]
    explorer, *_ = [page for page in pages if 'type="range"' in page]
    return [_scaled(base64.b64decode(png)) for png in re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", explorer)]


def _scaled(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png)).convert("RGB")
    return image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()
