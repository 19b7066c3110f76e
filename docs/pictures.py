"""Make the README's pictures anew, from the shipped student and from layer-wise least squares on the sample photos.

python docs/pictures.py
"""

from __future__ import annotations

import copy
import io
from pathlib import Path

import torch
from PIL import Image

from delib import detection, evolution, layerwise, nn
from delib.detection import Study

FOLDER = Path(__file__).parent / "images"
WIDTH = 900  # pixels of the README's column
SHAPE = {
    "c6": 0.5,
    "c8": 0.75,
    "c10": 0.885,
    "c12": 0.96,
    "c13": 0.64,
    "c14": 0.885,
    "c15": 0.69,
    "c18": 0.22,
    "c21": 0.89,
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    teacher = detection.load_yolo("yolov3-tiny")
    study = Study(teacher, detection.sample_photos())
    student, _ = detection.shipped("yolov3-tiny-s90-b4")
    best = [i for i in study.order if study.pictures[i].shape[2] > study.pictures[i].shape[1]][:3]
    picture, _ = study.side_by_side(study.detect(student.network(teacher)), best)
    _scaled(Image.open(io.BytesIO(picture)).convert("RGB")).quantize(128).save(
        FOLDER / "side_by_side.png", optimize=True
    )
    frames = [
        Image.open(io.BytesIO(png)).convert("RGB") for _, png, _, _ in study.frames(fading(study, teacher), best[:2])
    ]
    slides = [_scaled(frame).quantize(64) for frame in frames]
    slides[0].save(FOLDER / "slider.gif", save_all=True, append_images=slides[1:], duration=900, loop=0, optimize=True)


def fading(study: Study, teacher: torch.nn.Module) -> dict[float, list[detection.Detections]]:
    """What students by layer-wise least squares find, by their sparsity; the teacher first."""
    plain = nn.folded(teacher, nn.norm_pairs(teacher, torch.zeros(1, 3, 64, 64)))
    sizes = {name: nn.weight_of(layer).numel() for name, layer in nn.weight_layers(plain).items()}
    database = evolution.SparsityDatabase()
    inputs, _ = detection.prepare(study.pictures, (416, 416))
    targets = evolution.scale_sparsities(sizes, 0.8, SHAPE)
    watch = database.watch(factors=(2.5, 1.5, 1.0, 0.75, 0.5, 0.25, 0.1))
    settings = layerwise.Compression(iterations=25)
    weighed = detection.position_weights(plain.heads)
    student, _ = layerwise.compress(plain, inputs, targets, settings, position_weights=weighed, watch=watch)
    found, sparser = {0.0: study.teacher}, copy.deepcopy(student)
    for level in range(7):
        database.put(sparser, dict.fromkeys(database, level))
        found[nn.sparsity(sparser)] = study.detect(sparser)
    return found


def _scaled(image: Image.Image) -> Image.Image:
    return image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()
