"""How the yolov5s-seg student of 90% was made, whose record lies beside this file.

    python data/students/yolov5s-seg.py OUT --own TRAIN128 --coco COCO2K --other PHOTOS

Least squares at 80%, each layer as sparse as the errors in a sparsity database suggest; thinned on to the goals of each
layer that the same database suggests for 90%; then rates in the loop, and calibration. Two and a half hours of one core
with bfloat16. 200 of the photos in COCO2K are held out. Steps are bounded by minutes, so another machine makes another
student. It goes on where it was interrupted, by the files in OUT.

The teacher's weights are distributed under the GPL-3.0, and what is derived of them would be too: no file ships.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from making import calibrate, split
from torch import nn

from delib import detection, distillation, layerwise
from delib.coding import Quantized, encode
from delib.detection import Validation, Views
from delib.detection.coco import photos
from delib.distillation import GradualPruning, Recipe, distill
from delib.evolution import SparsityDatabase
from delib.evolution.allocate import greedy_allocation
from delib.nn import curvatures, fastest_precision, folded, norm_pairs, unfolded, weight_layers, weight_of

FITTED = 64  # photos that least squares are fitted to, at 448 pixels
FACTORS = (3.3, 2.5, 2.0, 1.5, 1.25, 1.0, 0.8, 0.6, 0.4, 0.25, 0.15, 0.08)  # of the survivors at 70%, in the database
SPARSEST = 0.97  # that a layer becomes by least squares
FROZEN = ("model.0", "model.1", "model.2")  # .5% of the weights: quantised by rates, 31 levels at most, not trained
BLOCKS = [f"model.{i}" for i in (3, 4, 5, 6, 7, 8, 9, 10, 13, 14, 17, 18, 20, 21, 23)]  # whose outputs are compared
MASKS = 0.5  # weight of masks' errors, five times the default: untrained they are the last to suffer, then the first
BYTES = 640_000


def survivors(network: nn.Module) -> dict[str, int]:
    return {name: int(weight_of(layer).count_nonzero()) for name, layer in weight_layers(network).items()}


@dataclass
class Making:
    """The teacher, its folded form, the photos, and what is compared."""

    args: argparse.Namespace
    teacher: Any = field(default_factory=lambda: detection.load_detector("yolov5s-seg"))

    def __post_init__(self) -> None:
        self.held, self.rest = split(self.args.coco)
        self.own = photos(self.args.own)
        self.pairs = norm_pairs(self.teacher, torch.zeros(1, 3, 64, 64))
        self.plain = self.folded()
        self.sizes = {name: weight_of(layer).numel() for name, layer in weight_layers(self.plain).items()}
        self.early = [name for name in self.sizes if name.startswith(tuple(f"{each}." for each in FROZEN))]
        self.later = [name for name in self.sizes if name not in self.early]
        self.validation = Validation(self.plain, self.held[:60], 512)
        self.objective = distillation.Objective(
            detection.detection_divergence(self.plain.heads, detection.BACKGROUND, 12.0, MASKS),
            features=BLOCKS,
            feature_weight=50.0,
            position_weights=self.plain.position_weights(),
            frozen=FROZEN,
            precision=fastest_precision(),
        )

    def folded(self) -> Any:
        return folded(self.teacher, self.pairs).to(memory_format=torch.channels_last)

    @cached_property
    def views(self) -> Views:
        pictures = [photo.read() for photo in self.own + self.rest + photos(self.args.other)]
        seen = detection.classes_present(detection.load_yolo("yolov3-tiny"), pictures, 416)
        shots = detection.oversample(pictures, seen, own=len(self.own))
        return Views(shots, [320, 384, 448], self.teacher.letterboxing.margin, blend=0.5)

    def least_squares(self, targets: dict[str, float], **options: Any) -> tuple[Any, dict[str, Any]]:
        return layerwise.compress(
            self.plain,
            Validation(self.plain, (self.own + self.rest)[:FITTED], 448).inputs,
            dict.fromkeys(self.early, 0.0) | targets,
            layerwise.Compression(iterations=15, multiplier={n: 1e-8 * (n in self.early) for n in self.sizes}),
            rounding=self.early,
            position_weights=self.plain.position_weights(),
            divergence=self.plain.divergence(),
            **options,
        )

    def targets(self, sparsity: float) -> dict[str, float]:
        """Of each later layer, by the database: the least error for so many zeros."""
        file = Path(self.args.out, "costs.json")
        if not file.is_file():
            database = SparsityDatabase()
            self.least_squares(dict.fromkeys(self.later, 0.7), watch=database.watch(FACTORS, steps=6))
            entries = {name: [(entry.zeros, entry.cost) for entry in own] for name, own in database.items()}
            file.write_text(json.dumps(entries))
        entries = json.loads(file.read_text())
        zeros = {name: [0, *(many for many, _ in own)] for name, own in entries.items()}
        # What the layers before broke is in every cost; most of it, as an entry may be no worse than a dense layer.
        costs = {
            name: [0.0, *(max(0.0, cost - 0.9 * min(c for _, c in own)) for _, cost in own)]
            for name, own in entries.items()
        }
        levels = greedy_allocation(zeros, costs, round(sparsity * sum(self.sizes.values())))
        return {name: min(SPARSEST, zeros[name][level] / self.sizes[name]) for name, level in levels.items()}

    def start(self) -> tuple[Any, dict[str, Any]]:
        """80% by least squares, and the levels of the early layers."""
        file = Path(self.args.out, "start.pt")
        if not file.is_file():
            student, levels = self.least_squares(self.targets(0.8))
            torch.save((student.state_dict(), levels), file)
        student = self.folded()
        state, levels = torch.load(file, weights_only=False)
        student.load_state_dict(state)
        return student, levels

    def train(self, student: Any, steps: int, minutes: float, rate: float, **options: Any) -> None:
        recipe = Recipe(steps, 4, rate, minutes=minutes, average=0.995, horizon=300, uses=4, memory=60)
        distill(student, self.plain, self.views, recipe, objective=self.objective, **options)
        print("divergence", self.validation.divergence(student), flush=True)

    def pruned(self) -> tuple[Any, dict[str, Any]]:
        """Thinned on to 90%."""
        (student, levels), out = self.start(), Path(self.args.out)
        if not (out / "pruned.pt").is_file():
            before = {name: many for name, many in survivors(student).items() if name in self.later}
            wanted = {name: round((1 - share) * self.sizes[name]) for name, share in self.targets(0.9).items()}
            goals = {name: min(before[name], wanted[name]) for name in self.later}
            options = {"during": GradualPruning(goals, 0.4, 50), "checkpoint": out / "pruning.ckpt"}
            self.train(student, 9000, 75, 0.003, seed=11, **options)
            torch.save(student.state_dict(), out / "pruned.pt")
        student.load_state_dict(torch.load(out / "pruned.pt"))
        return student, levels

    def make(self) -> None:
        student, first = self.pruned()
        bends = curvatures(student, self.later, self.validation.inputs[:32], self.plain.divergence())

        def levels(price: float) -> distillation.RateAwareQuantization:
            return distillation.RateAwareQuantization(4, fixed=self.early, multiplier=price, curvatures=bends)

        low, high = 1e-8, 1e-4
        for _ in range(9):
            price = (low * high) ** 0.5
            large = len(encode(dict(first | levels(price).tensors(student)))) > BYTES
            low, high = (price, high) if large else (low, price)
        during, out = levels(price), Path(self.args.out)
        self.train(student, 4500, 40, 0.00225, during=during, seed=12, checkpoint=out / "levels.ckpt")
        self.store(layerwise.finalize(unfolded(student, self.teacher, self.pairs), first | during.tensors(student), 4))

    def store(self, made: Quantized) -> None:
        """Calibrate and save."""
        out = Path(self.args.out, "yolov5s-seg-s90-b4.delib")
        calibrate(made, self.teacher, Validation(self.teacher, self.held, 512).inputs)
        size = made.save(out)
        divergence = self.validation.divergence(Quantized.load(out).network(self.teacher))
        print(size, "bytes;", made.sparsity, "zeros; divergence", divergence)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    for folder in ("--own", "--coco", "--other"):
        parser.add_argument(folder, type=Path, required=True)
    torch.set_num_threads(1)
    Making(parser.parse_args()).make()
