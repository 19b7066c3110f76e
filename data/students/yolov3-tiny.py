"""How the YOLOv3-tiny students were made: 80% from least squares, 90% from the one before, 95% from it, 98% from that.

    git show b2d1cd7:data/students/yolov3-tiny-s90-b4.delib > OUT/before.delib
    python data/students/yolov3-tiny.py OUT 80 90 95 98 --own TRAIN128 --coco COCO2K --other PHOTOS

Each: regrowth by gradients (90), gradual pruning, rates in the loop, calibration; five hours of one core with bfloat16
in all. 200 of the photos in COCO2K are held out. Steps are bounded by minutes, so another machine makes
other students. It goes on where it was interrupted, by the files in OUT.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from making import calibrate, split
from torch import Tensor, nn

from delib import detection, distillation, layerwise
from delib.coding import Quantized
from delib.detection import Validation, Views
from delib.detection.coco import photos
from delib.distillation import Recipe, distill
from delib.distillation.distill import _Batches, _compare
from delib.evolution import scale_sparsities
from delib.nn import (
    curvatures,
    fastest_precision,
    first_chain,
    folded,
    norm_pairs,
    unfolded,
    weight_layers,
    weight_of,
)
from delib.nn.layers import weight_keys
from delib.suite.parameters import read_parameters
from delib.suite.runner import find_notebook

NAME = "yolov3-tiny-s{}-b4"
FIRST, FITTED = 0.7, 192  # sparsity by least squares, and photos that it is fitted to


@dataclass(frozen=True)
class Member:
    """A student: of whose pruned weights it is made (none: least squares; 0: the one before), how many zeros may live
    again, the share that survives pruning, the divergence that a bit is worth, minutes of pruning and of levels, and
    the seed of the first."""

    start: int | None
    regrown: int
    survivors: float
    price: float
    minutes: tuple[float, float]
    seed: int


MEMBERS = {
    80: Member(None, 0, 0.2, 2e-7, (20, 22), 71),
    90: Member(0, 700_000, 0.103, 6.5e-7, (54, 52), 11),
    95: Member(90, 0, 0.0508, 8e-7, (80, 50), 51),
    98: Member(95, 0, 0.0205, 1e-6, (30, 22), 31),
}


@dataclass
class Family:
    """What all students share: the teacher, its folded form, the photos and what is compared."""

    args: argparse.Namespace
    teacher: Any = field(default_factory=lambda: detection.load_detector("yolov3-tiny"))

    def __post_init__(self) -> None:
        self.held, self.rest = split(self.args.coco)
        self.pairs = norm_pairs(self.teacher, torch.zeros(1, 3, 64, 64))
        self.plain: Any = self.folded(self.teacher)
        self.sizes = {name: weight_of(layer).numel() for name, layer in weight_layers(self.plain).items()}
        self.early, self.later = list(self.sizes)[:3], list(self.sizes)[3:]
        self.validation = Validation(self.plain, self.held, 416)
        self.objective = distillation.Objective(
            self.plain.divergence(detection.BACKGROUND, boxes=12.0),
            features=[act for name, act in self.plain.activations.items() if name in self.later],
            feature_weight=15.0,
            position_weights=self.plain.position_weights(),
            frozen=first_chain(self.plain, self.early, torch.zeros(1, 3, 64, 64))[0],
            precision=fastest_precision(),
        )

    def folded(self, network: nn.Module) -> Any:
        return folded(network, self.pairs).to(memory_format=torch.channels_last)

    @cached_property
    def views(self) -> Views:
        own = photos(self.args.own)
        pictures = [photo.read() for photo in own + self.rest + photos(self.args.other)]
        shots = detection.oversample(pictures, detection.classes_present(self.teacher, pictures, 416), own=len(own))
        return Views(shots, [320, 384, 416], self.teacher.letterboxing.margin, blend=0.5)

    def pruned(self, member: int) -> Path:
        """The file of a member's weights between pruning and levels."""
        return Path(self.args.out, f"{NAME.format(member)}.pruned.pt")

    def regrowth(self, student: nn.Module, regrown: int) -> dict[str, Tensor]:
        """The zeros whose mean gradient is largest, in units of their output's weights (RigL: Evci et al. 2020)."""
        named, batches = dict(student.named_parameters()), self.batches(student)
        weights = {name: named[weight_keys(student)[name]].requires_grad_() for name in self.later}
        sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for i in range(40):
            divergence, error = _compare(student, self.objective, batches.draw(i, True))
            loss = divergence + self.objective.feature_weight * error
            for name, slope in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
                sums[name] += slope
        scores = {}
        for name, weight in weights.items():
            weight.requires_grad_(False)
            rows = weight.flatten(1)
            unit = (rows.square().sum(1) / (rows != 0).sum(1).clamp_min(1)).sqrt().view(-1, 1, 1, 1)
            scores[name] = sums[name].abs() * unit * (weight == 0)
        least = torch.cat([score.flatten() for score in scores.values()]).topk(regrown).values[-1]
        return {name: (score >= least) | (weights[name] != 0) for name, score in scores.items()}

    def batches(self, student: nn.Module) -> _Batches:
        return _Batches(student, self.plain, self.views, Recipe(40, 8), self.objective, 99)

    def begun(self, start: int) -> tuple[nn.Module, dict[str, Any]]:
        """The weights that a student goes on from, and the levels of the early layers, which stay."""
        before = Quantized.load(Path(self.args.out, f"{NAME.format(start)}.delib" if start else "before.delib"))
        student = self.folded(before.network(self.teacher))
        if start:
            student.load_state_dict(torch.load(self.pruned(start)))
        return student, {name: before[weight_keys(self.teacher)[name]] for name in self.early}

    def least_squares(self) -> tuple[nn.Module, dict[str, Any]]:
        """The same by layer-wise least squares at ``FIRST``, as in notebook 03."""
        shape = read_parameters(find_notebook("03_coco_yolov3"))["recipe"].default["shape"]
        return layerwise.compress(
            self.plain,
            Validation(self.plain, self.rest[:FITTED], 416).inputs,
            scale_sparsities(self.sizes, FIRST, shape),
            layerwise.Compression(bits=4, iterations=25),
            rounding=self.early,
            position_weights=self.plain.position_weights(),
            divergence=self.plain.divergence(),
        )

    def make(self, number: int) -> None:
        member, out = MEMBERS[number], Path(self.args.out, f"{NAME.format(number)}.delib")
        student, first = self.least_squares() if member.start is None else self.begun(member.start)
        amounts: dict[str, Any] = {"rate": 0.003, "average": 0.995, "horizon": 500, "uses": 4}
        options: dict[str, Any] = {"objective": self.objective}
        if not self.pruned(number).is_file():
            allowed = self.regrowth(student, member.regrown) if member.regrown else {}
            kept = sum(int(weight_of(weight_layers(student)[name]).count_nonzero()) for name in self.early)
            pruning = distillation.GradualPruning(
                round(member.survivors * sum(self.sizes.values())) - kept, 0.6, 50, allowed
            )
            recipe, file = Recipe(4700, 8, minutes=member.minutes[0], **amounts), out.with_suffix(".pruning.ckpt")
            options |= {"during": pruning, "seed": member.seed, "checkpoint": file}
            steps = distill(student, self.plain, self.views, recipe, **options)
            torch.save(student.state_dict(), self.pruned(number))
            print(number, len(steps), "steps; divergence", self.validation.divergence(student), flush=True)
        student.load_state_dict(torch.load(self.pruned(number)))
        bends = curvatures(student, self.later, self.validation.inputs[:32], self.plain.divergence())
        levels = distillation.RateAwareQuantization(4, fixed=self.early, multiplier=member.price, curvatures=bends)
        recipe, file = Recipe(4500, 8, minutes=member.minutes[1], **amounts), out.with_suffix(".levels.ckpt")
        options |= {"during": levels, "seed": member.seed + 1, "checkpoint": file}
        steps = distill(student, self.plain, self.views, recipe, **options)
        bare = unfolded(student, self.teacher, self.pairs)
        self.store(layerwise.finalize(bare, first | levels.tensors(student), 4), out, len(steps))

    def store(self, made: Quantized, out: Path, steps: int) -> None:
        """Calibrate and save."""
        before = self.validation.divergence(made.network(self.teacher))
        print(out.name, steps, "steps; divergence before calibration", before, flush=True)
        calibrate(made, self.teacher, self.validation.inputs)
        size = made.save(out)
        divergence = self.validation.divergence(Quantized.load(out).network(self.teacher))
        print(out.name, size, "bytes;", made.sparsity, "zeros; divergence", divergence, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("members", type=int, nargs="+", choices=list(MEMBERS), metavar="MEMBER")
    for folder in ("--own", "--coco", "--other"):
        parser.add_argument(folder, type=Path, required=True)
    torch.set_num_threads(1)
    family = Family(parser.parse_args())
    for each in family.args.members:
        family.make(each)
