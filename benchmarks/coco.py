"""A detector and its compressed student on photos, run by torch, and darknet's by OpenCV from the exported files.

Prints one JSON document. ``make bench`` runs it on the sample photos, which show that it works; name folders of photos
that the student never saw for numbers that mean something, labelled ones for average precision:

    python benchmarks/coco.py --images FOLDER --images ANOTHER
    python benchmarks/coco.py --images FOLDER --network yolov5s-seg --size 640 --student FILE.delib

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from opencv import OpenCV

from delib.coding.quantized import Quantized
from delib.detection.coco import photos, sample_photos
from delib.detection.darknet import Darknet
from delib.detection.infer import Detector
from delib.detection.study import Study
from delib.detection.zoo import export_darknet, load_detector
from delib.files import project_root, sha256
from delib.nn.layers import float32_bytes
from delib.suite.record import git_revision, package_versions

STUDENT = project_root() / "data" / "students" / "yolov3-tiny-s90-b4.delib"
# AP50 at 416 pixels on COCO, as published for the official weights: on their authors' page, and in YOLOv3's paper.
PUBLISHED_AP50 = {"yolov3-tiny": 0.331, "yolov3": 0.554}
# Photos differ: on some hundred of them AP50 lies a few points off. Wrong anchors cost 15.
ALLOWED_BELOW = 0.05


def main(args: argparse.Namespace) -> dict[str, object]:
    torch.set_num_threads(1)
    several = [photo for folder in args.images for photo in photos(folder)] or sample_photos()
    teacher = load_detector(args.network)
    held = Quantized.load(args.student)
    networks: Any = (teacher, held.network(teacher))
    seconds, metrics = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        runtimes: dict[str, tuple[Sequence[Detector], int]] = {"torch": (networks, 8)}
        if isinstance(teacher, Darknet):
            runtimes["opencv"] = ([by_opencv(n, Path(folder)) for n in networks], 1)
        for name, ((theirs, ours), batch) in runtimes.items():
            start = time.perf_counter()
            study = Study(theirs, several, args.size, batch=batch)
            metrics[name] = study.scores(study.detect(ours))
            seconds[name] = round(time.perf_counter() - start, 1)
    return {
        "photos": len(several),
        "student": {
            "file": args.student.name,
            "sha256": sha256(args.student),
            "bytes": args.student.stat().st_size,
            "compression_ratio": float32_bytes(teacher) / args.student.stat().st_size,
            "sparsity": held.sparsity,
            "bits": held.bits,
        },
        "metrics": metrics,
        "as_published": as_published(args.network, metrics["torch"]),
        "seconds": seconds,
    }


def by_opencv(network: Darknet, folder: Path) -> OpenCV:
    """The network as OpenCV reads and decodes it, from the files that are exported of it."""
    weights = folder / f"{id(network)}.weights"
    _, cfg = export_darknet(network.state_dict(), weights)
    return OpenCV(cfg, weights)


def as_published(network: str, metrics: dict[str, float]) -> dict[str, float | bool]:
    """The teacher's AP50 beside the published one, and whether it is as good; empty without labels or publication."""
    if "teacher_ap50" not in metrics or network not in PUBLISHED_AP50:
        return {}
    published = PUBLISHED_AP50[network]
    good = metrics["teacher_ap50"] >= published - ALLOWED_BELOW
    return {"published_ap50": published, "teacher_ap50": metrics["teacher_ap50"], "as_good": good}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", action="append", default=[], help="folder of photos to measure on; may be repeated")
    parser.add_argument("--student", type=Path, default=STUDENT, help="the student's .delib file")
    parser.add_argument("--network", default="yolov3-tiny", help="which network it is a student of")
    parser.add_argument("--size", type=int, help="pixels of a side of its input; by default what it prefers")
    options = parser.parse_args()
    result = main(options)
    about = {
        "benchmark": "coco",
        "versions": package_versions(),
        "threads": 1,
        "machine": platform.machine(),
        "git_revision": git_revision(),
        "options": {
            "images": [Path(folder).name for folder in options.images],
            "network": options.network,
            "size": options.size,
        },
    }
    json.dump(about | result, sys.stdout, indent=2)
    print()
    if not result["as_published"] or result["as_published"]["as_good"]:  # type: ignore[index]
        sys.exit(0)
    sys.exit("the teacher's average precision is not what is published for its weights: are its boxes read rightly?")
