"""A detector and its compressed student on photos, each run by torch and by OpenCV from the exported files.

Prints one JSON document. ``make bench`` runs it on the sample photos, which show that it works; name folders of photos
that the student never saw for numbers that mean something, labelled ones for average precision:

    python benchmarks/coco.py --images FOLDER --images ANOTHER

With labels the teacher's AP50 is held against what is published for its weights, so that boxes that are read wrongly
cannot pass: the benchmark then ends with an error.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import torch

from delib.coding import container as encode
from delib.coding.quantized import Quantized
from delib.detection.coco import Photo, photos, sample_photos
from delib.detection.darknet import Darknet
from delib.detection.infer import Detections, Detector, detect
from delib.detection.metrics import LEAST, scores
from delib.detection.opencv import OpenCV
from delib.detection.zoo import export_darknet, load_yolo
from delib.files import project_root, sha256
from delib.suite.record import git_revision, package_versions

STUDENT = project_root() / "data" / "students" / "yolov3-tiny-s90-b4.delib"
# AP50 at 416 pixels on COCO, as published for the official weights: on their authors' page, and in YOLOv3's paper.
PUBLISHED_AP50 = {"yolov3-tiny": 0.331, "yolov3": 0.554}
# Photos differ: on some hundred of them AP50 lies a few points off. Wrong anchors cost 15.
ALLOWED_BELOW = 0.05


def main(args: argparse.Namespace) -> dict[str, object]:
    torch.set_num_threads(1)
    several = [photo for folder in args.images for photo in photos(folder)] or sample_photos()
    teacher = load_yolo(args.network)
    held = Quantized(encode.read(args.student))
    bench = Bench(several)
    networks = teacher, held.network(teacher)
    marks = {
        "torch": bench.scores(*map(bench.by_torch, networks)),
        "opencv": bench.scores(*map(bench.by_opencv, networks)),
    }
    return {
        "photos": len(several),
        "student": {
            "file": args.student.name,
            "sha256": sha256(args.student),
            "bytes": args.student.stat().st_size,
            "compression_ratio": 4 * sum(p.numel() for p in tensors(teacher)) / args.student.stat().st_size,
            "sparsity": held.sparsity,
            "bits": held.bits,
        },
        "marks": marks,
        "as_published": as_published(args.network, marks["torch"]),
        "seconds": bench.seconds,
    }


class Bench:
    """Photos read once, and how long each side took on them."""

    def __init__(self, several: list[Photo]) -> None:
        self.pictures, self.labels = [photo.read() for photo in several], [photo.boxes for photo in several]
        self.seconds: dict[str, float] = {"torch": 0.0, "opencv": 0.0}

    def by_torch(self, network: Darknet) -> list[Detections]:
        return self._found("torch", network, 8)

    def by_opencv(self, network: Darknet) -> list[Detections]:
        """From the files that are exported of the network, read and decoded by OpenCV."""
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "network.weights"
            _, cfg = export_darknet(network.state_dict(), weights)
            return self._found("opencv", OpenCV(cfg, weights), 1)

    def scores(self, teacher: list[Detections], student: list[Detections]) -> dict[str, float]:
        return scores(self.pictures, teacher, student, self.labels)

    def _found(self, name: str, network: Detector, batch: int) -> list[Detections]:
        start = time.perf_counter()
        detections = detect(network, self.pictures, threshold=LEAST, batch=batch)
        self.seconds[name] = round(self.seconds[name] + time.perf_counter() - start, 1)
        return detections


def as_published(network: str, marks: dict[str, float]) -> dict[str, float | bool]:
    """The teacher's AP50 beside the published one, and whether it is as good; empty without labels."""
    if "teacher_ap50" not in marks:
        return {}
    published = PUBLISHED_AP50[network]
    good = marks["teacher_ap50"] >= published - ALLOWED_BELOW
    return {"published_ap50": published, "teacher_ap50": marks["teacher_ap50"], "as_good": good}


def tensors(network: torch.nn.Module) -> list[torch.Tensor]:
    """What a darknet file holds: all values but torch's counters of batches."""
    return [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", action="append", default=[], help="folder of photos to measure on; may be repeated")
    parser.add_argument("--student", type=Path, default=STUDENT, help="the student's .delib file")
    parser.add_argument("--network", default="yolov3-tiny", help="which network it is a student of")
    options = parser.parse_args()
    measured = main(options)
    about = {
        "benchmark": "coco",
        "versions": package_versions(),
        "threads": 1,
        "machine": platform.machine(),
        "git_revision": git_revision(),
        "options": {"images": [Path(folder).name for folder in options.images], "network": options.network},
    }
    json.dump(about | measured, sys.stdout, indent=2)
    print()
    if not measured["as_published"] or measured["as_published"]["as_good"]:  # type: ignore[index]
        sys.exit(0)
    sys.exit("the teacher's average precision is not what is published for its weights: are its boxes read rightly?")
