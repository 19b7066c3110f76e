"""A compressed detector from its file, measured twice on the same photos: by torch, and by OpenCV as exported weights.

Prints one JSON document. ``make bench`` runs it on the sample photos, which show that it works; name a folder of photos
that the student never saw for numbers that mean something:

    python benchmarks/coco.py --images FOLDER
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

from delib import encode
from delib.coco import photo_sets
from delib.detect import Detections, Detector, detect
from delib.opencv import OpenCV
from delib.quantize import Quantized
from delib.records import git_revision, package_versions, project_root, sha256
from delib.scores import LEAST, scores
from delib.weights import export_darknet, load_yolo

STUDENT = project_root() / "data" / "students" / "yolov3-tiny-s90-b4.delib"


def main(args: argparse.Namespace) -> dict[str, object]:
    torch.set_num_threads(1)
    photos = photo_sets(args.images, tested="" if args.images == "samples" else args.images).tested
    pictures, labels = [photo.read() for photo in photos], [photo.boxes for photo in photos]
    teacher = load_yolo(args.network)
    held = Quantized(encode.read(args.student))
    seconds: dict[str, float] = {}

    def found(name: str, network: Detector, batch: int = 8) -> list[Detections]:
        start = time.perf_counter()
        detections = detect(network, pictures, threshold=LEAST, batch=batch)
        seconds[name] = round(time.perf_counter() - start, 1)
        return detections

    wanted = found("teacher", teacher)
    student = held.network(teacher)
    marks = {"torch": scores(pictures, wanted, found("torch", student), labels)}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "student.weights"
        export_darknet(student.state_dict(), weights)
        marks["opencv"] = scores(pictures, wanted, found("opencv", OpenCV(args.network, weights), 1), labels)
    return {
        "photos": len(photos),
        "student": {
            "file": args.student.name,
            "sha256": sha256(args.student),
            "bytes": args.student.stat().st_size,
            "compression_ratio": 4 * sum(p.numel() for p in tensors(teacher)) / args.student.stat().st_size,
            "sparsity": held.sparsity,
            "bits": held.bits,
        },
        "marks": marks,
        "retained_differently": abs(marks["torch"]["retained_25"] - marks["opencv"]["retained_25"]),
        "seconds": seconds,
    }


def tensors(network: torch.nn.Module) -> list[torch.Tensor]:
    """What a darknet file holds: all values but torch's counters of batches."""
    return [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="samples", help="folder of photos to measure on")
    parser.add_argument("--student", type=Path, default=STUDENT, help="the student's .delib file")
    parser.add_argument("--network", default="yolov3-tiny", help="which network it is a student of")
    options = parser.parse_args()
    about = {
        "benchmark": "coco",
        "versions": package_versions(),
        "threads": 1,
        "machine": platform.machine(),
        "git_revision": git_revision(),
        "options": {"images": Path(options.images).name, "network": options.network},
    }
    json.dump(about | main(options), sys.stdout, indent=2)
    print()
