"""What a detector still finds at each sparsity by layer-wise least squares alone, without training.

Prints one JSON document; notebook 03 shows the one in ``reports/bench`` beside the students that ship. ``make bench``
leaves it out, as nobody's photos come with the project:

    python benchmarks/least_squares.py --calibration FOLDER --images FOLDER --images ANOTHER
    python benchmarks/least_squares.py ... --network yolov7-seg --price 1e-7 --sparsity 0.8 --sparsity 0.9

Layers are fitted to photos of ``--calibration``: supports by ADMM, survivors by least squares, 4 bits, rounding errors
compensated; or with a ``--price``, of a bit in nats per photo, levels and more zeros by rates. Sparsities are uneven
over the layers: YOLOv3-tiny's as in the notebook, those of others as the weights' squares times the divergence's
curvature rank them (optimal brain damage). Retention and average precision are those of the decoded student on the
labelled photos of ``--images``, to which nothing was fitted.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from collections.abc import Sequence
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from delib import detection, layerwise
from delib.coding import encode
from delib.evolution import scale_sparsities
from delib.nn import bisect, curvatures, float32_bytes, folded, norm_pairs, unfolded, weight_layers, weight_of
from delib.suite.parameters import read_parameters
from delib.suite.record import git_revision, package_versions
from delib.suite.runner import find_notebook

SPARSITIES = (0.8, 0.9, 0.95, 0.98)
FITTED, SIDE, BITS, ITERATIONS = 64, 416, 4, 25
FEWEST = 1 / 3  # of the network's share of survivors, in any layer: curvatures do not see one lost as a whole


class Bench:
    """A teacher, the photos that layers are fitted to and those that are measured."""

    def __init__(
        self, network: str, calibration: Sequence[detection.Photo], measured: Sequence[detection.Photo]
    ) -> None:
        self.teacher = detection.load_detector(network)
        self.pairs = norm_pairs(self.teacher, torch.zeros(1, 3, 64, 64))
        plain = folded(self.teacher, self.pairs).to(memory_format=torch.channels_last)
        self.plain = cast(detection.DetectionNetwork, plain)
        self.study = detection.Study(self.teacher, measured, SIDE)
        order = torch.randperm(len(calibration), generator=torch.Generator().manual_seed(0))[:FITTED].tolist()
        self.inputs = detection.Validation(self.plain, [calibration[i] for i in order], SIDE).inputs
        self.shape = read_parameters(find_notebook("03_coco_yolov3"))["recipe"].default["shape"]
        self.weights = {name: weight_of(layer) for name, layer in weight_layers(self.plain).items()}

    @cached_property
    def saliencies(self) -> dict[str, Tensor]:
        """What it costs to zero each weight, to second order, sorted by layer."""
        bends = curvatures(self.plain, self.weights, self.inputs, self.plain.divergence())
        return {
            name: (weight.flatten(1).square() * bends[name][:, None]).flatten().sort()[0]
            for name, weight in self.weights.items()
        }

    def targets(self, sparsity: float) -> dict[str, float]:
        sizes = {name: weight.numel() for name, weight in self.weights.items()}
        if self.shape.keys() <= sizes.keys():
            return dict.fromkeys(sizes, 0.0) | scale_sparsities(sizes, sparsity, self.shape)

        sparsest = 1 - FEWEST * (1 - sparsity)

        def below(log_cost: float) -> dict[str, float]:
            counts = {n: int(torch.searchsorted(own, math.exp(log_cost))) for n, own in self.saliencies.items()}
            return {name: min(sparsest, many / sizes[name]) for name, many in counts.items()}

        def excess(log_cost: float) -> float:
            return sum(share * sizes[name] for name, share in below(log_cost).items()) - sparsity * sum(sizes.values())

        return below(bisect(excess, -80.0, 20.0))

    def row(self, sparsity: float, price: float) -> dict[str, float]:
        student, levels = layerwise.compress(
            self.plain,
            self.inputs,
            self.targets(sparsity),
            layerwise.Compression(bits=BITS, iterations=ITERATIONS, multiplier=price),
            rounding=list(self.weights),
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
    parser.add_argument("--network", default="yolov3-tiny", help="a detector's name or file, as for load_detector")
    parser.add_argument("--calibration", required=True, help="folder of photos that layers are fitted to")
    parser.add_argument("--images", required=True, action="append", help="folder of labelled photos; may be repeated")
    parser.add_argument("--sparsity", type=float, action="append", help=f"may be repeated; by default {SPARSITIES}")
    parser.add_argument("--price", type=float, default=0.0, help="of a bit, in nats per photo; 0: 4 bits by k-means")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measured = [photo for folder in options.images for photo in detection.photos(folder)]
    bench = Bench(options.network, detection.photos(options.calibration), measured)
    report = {
        "benchmark": "least_squares",
        "network": options.network,
        "versions": package_versions(),
        "threads": 1,
        "machine": platform.machine(),
        "git_revision": git_revision(),
        "photos": {"fitted": len(bench.inputs), "measured": len(bench.study)},
        **({"price": options.price} if options.price else {"bits": BITS}),
        "rows": [bench.row(sparsity, options.price) for sparsity in options.sparsity or SPARSITIES],
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
