"""What YOLOv3-tiny still finds at each sparsity by layer-wise least squares alone, without training.

Prints one JSON document; notebook 03 shows the one in ``reports/bench`` beside the students that ship. ``make bench``
leaves it out, as nobody's photos come with the project:

    python benchmarks/least_squares.py --calibration FOLDER --images FOLDER --images ANOTHER

Layers are fitted to photos of ``--calibration``: supports by ADMM, at sparsities uneven over the layers as in the
notebook, survivors by least squares, 4 bits, rounding errors compensated. Retention and average precision are those of
the decoded student on the labelled photos of ``--images``, to which nothing was fitted.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from typing import cast

import torch

from delib import detection, layerwise
from delib.coding import encode
from delib.evolution import scale_sparsities
from delib.nn import float32_bytes, folded, norm_pairs, unfolded, weight_layers, weight_of
from delib.suite.parameters import read_parameters
from delib.suite.record import git_revision, package_versions
from delib.suite.runner import find_notebook

SPARSITIES = (0.8, 0.9, 0.95, 0.98)
FITTED, SIDE, BITS, ITERATIONS = 64, 416, 4, 25


class Bench:
    """A teacher, the photos that layers are fitted to and those that are measured."""

    def __init__(self, calibration: Sequence[detection.Photo], measured: Sequence[detection.Photo]) -> None:
        self.teacher = detection.load_yolo("yolov3-tiny")
        self.pairs = norm_pairs(self.teacher, torch.zeros(1, 3, 64, 64))
        plain = folded(self.teacher, self.pairs).to(memory_format=torch.channels_last)
        self.plain = cast(detection.Darknet, plain)
        self.study = detection.Study(self.teacher, measured, SIDE)
        order = torch.randperm(len(calibration), generator=torch.Generator().manual_seed(0))[:FITTED].tolist()
        self.inputs = detection.Validation(self.plain, [calibration[i] for i in order], SIDE).inputs
        self.shape = read_parameters(find_notebook("03_coco_yolov3"))["recipe"].default["shape"]

    def row(self, sparsity: float) -> dict[str, float]:
        sizes = {name: weight_of(layer).numel() for name, layer in weight_layers(self.plain).items()}
        student, levels = layerwise.compress(
            self.plain,
            self.inputs,
            dict.fromkeys(sizes, 0.0) | scale_sparsities(sizes, sparsity, self.shape),
            layerwise.Compression(bits=BITS, iterations=ITERATIONS),
            rounding=list(sizes),
            position_weights=self.plain.position_weights(),
            divergence=self.plain.divergence(),
        )
        held = layerwise.finalize(unfolded(student, self.teacher, self.pairs), levels, BITS)
        size, decoded = len(encode(dict(held))), cast(detection.Detector, held.network(self.teacher))
        row = {"sparsity": held.sparsity, "encoded_bytes": size}
        row |= {"compression_ratio": float32_bytes(self.teacher) / size}
        row |= self.study.scores(self.study.detect(decoded))
        print(row, file=sys.stderr, flush=True)
        return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", required=True, help="folder of photos that layers are fitted to")
    parser.add_argument("--images", required=True, action="append", help="folder of labelled photos; may be repeated")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measured = [photo for folder in options.images for photo in detection.photos(folder)]
    bench = Bench(detection.photos(options.calibration), measured)
    report = {
        "benchmark": "least_squares",
        "versions": package_versions(),
        "threads": 1,
        "machine": platform.machine(),
        "git_revision": git_revision(),
        "photos": {"fitted": len(bench.inputs), "measured": len(bench.study)},
        "bits": BITS,
        "rows": [bench.row(sparsity) for sparsity in SPARSITIES],
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
