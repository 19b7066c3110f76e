"""How `yolov3-tiny-s90-b4.delib` was made: regrowth by gradients, gradual pruning, rates in the loop, calibration.

    git show b2d1cd7:data/students/yolov3-tiny-s90-b4.delib > before.delib
    python data/students/yolov3-tiny-s90-b4.py before.delib OUT.delib --own TRAIN128 --coco COCO2K --other PHOTOS

Two hours of one core with bfloat16; 200 of the photos in COCO2K are held out. Steps are bounded by minutes, so another
machine makes another student. It goes on where it was interrupted, by the checkpoints beside OUT.delib.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from delib import detection, distillation, layerwise
from delib.coding import Quantized
from delib.detection import Validation, Views
from delib.detection.coco import Photo, photos
from delib.distillation import Recipe, distill
from delib.distillation.distill import _Batches, _compare
from delib.nn import (
    curvatures,
    fastest_precision,
    folded,
    modules_before,
    norm_pairs,
    unfolded,
    weight_layers,
    weight_of,
)
from delib.nn.layers import weight_keys

REGROWN, LEFT, PRICE, HELD = 700_000, 0.103, 6.5e-7, 200


def split(folder: Path) -> tuple[list[Photo], list[Photo]]:
    found = photos(folder)
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(7)).tolist()
    return [found[i] for i in order[:HELD]], [found[i] for i in order[HELD:]]


def regrowth(student: nn.Module, batches: _Batches, later: list[str]) -> dict[str, Tensor]:
    """The zeros whose mean gradient is largest, in units of their output's weights (RigL: Evci et al. 2020)."""
    named = dict(student.named_parameters())
    weights = {name: named[weight_keys(student)[name]].requires_grad_() for name in later}
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for i in range(40):
        divergence, error = _compare(student, batches.objective, batches.draw(i, True))
        loss = divergence + batches.objective.feature_weight * error
        for name, slope in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            sums[name] += slope
    scores = {}
    for name, weight in weights.items():
        weight.requires_grad_(False)
        rows = weight.flatten(1)
        unit = (rows.square().sum(1) / (rows != 0).sum(1).clamp_min(1)).sqrt().view(-1, 1, 1, 1)
        scores[name] = sums[name].abs() * unit * (weight == 0)
    least = torch.cat([score.flatten() for score in scores.values()]).topk(REGROWN).values[-1]
    return {name: (score >= least) | (weights[name] != 0) for name, score in scores.items()}


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    held, rest = split(args.coco)
    own = photos(args.own)
    teacher = detection.load_detector("yolov3-tiny")
    pictures = [photo.read() for photo in own + rest + photos(args.other)]
    shots = detection.oversample(pictures, detection.classes_present(teacher, pictures, 416), own=len(own))
    pairs = norm_pairs(teacher, torch.zeros(1, 3, 64, 64))
    plain: Any = folded(teacher, pairs).to(memory_format=torch.channels_last)
    before = Quantized.load(args.before)
    student = folded(before.network(teacher), pairs).to(memory_format=torch.channels_last)
    sizes = {name: weight_of(layer).numel() for name, layer in weight_layers(plain).items()}
    early, later = list(sizes)[:3], list(sizes)[3:]
    views = Views(shots, [320, 384, 416], teacher.letterboxing.margin, blend=0.5)
    objective = distillation.Objective(
        plain.divergence(detection.BACKGROUND, boxes=12.0),
        features=[act for name, act in plain.activations.items() if name in later],
        feature_weight=15.0,
        position_weights=plain.position_weights(),
        frozen=modules_before(plain, later[0], torch.zeros(1, 3, 64, 64)),
        precision=fastest_precision(),
    )
    validation = Validation(plain, held, 416)
    allowed = regrowth(student, _Batches(student, plain, views, Recipe(40, 8), objective, 99), later)
    kept = sum(int(weight_of(weight_layers(student)[name]).count_nonzero()) for name in early)
    pruning = distillation.GradualPruning(round(LEFT * sum(sizes.values())) - kept, 0.6, 50, allowed)
    amounts: dict[str, Any] = {"rate": 0.003, "average": 0.995, "horizon": 500, "uses": 4}
    rounds, file = Recipe(4700, 8, minutes=54, **amounts), args.out.with_suffix(".pruning.ckpt")
    distill(student, plain, views, rounds, objective=objective, during=pruning, seed=11, checkpoint=file)
    bends = curvatures(student, later, validation.inputs[:32], plain.divergence())
    levels = distillation.RateAwareQuantization(4, fixed=early, multiplier=PRICE, curvatures=bends)
    rounds, file = Recipe(4500, 8, minutes=52, **amounts), args.out.with_suffix(".levels.ckpt")
    distill(student, plain, views, rounds, objective=objective, during=levels, seed=12, checkpoint=file)
    first: dict[str, Any] = {name: before[weight_keys(teacher)[name]] for name in early}
    made = layerwise.finalize(unfolded(student, teacher, pairs), first | levels.tensors(student), 4)
    network = made.network(teacher)
    teacher.calibrate(network, validation.inputs)
    for name, value in network.state_dict().items():
        if name.endswith("bias") and isinstance(stored := made[name], np.ndarray):
            made.replace(name, value.numpy().astype(stored.dtype))
    print(made.save(args.out), "bytes; divergence", validation.divergence(Quantized.load(args.out).network(teacher)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for file in ("before", "out"):
        parser.add_argument(file, type=Path)
    for folder in ("--own", "--coco", "--other"):
        parser.add_argument(folder, type=Path, required=True)
    main(parser.parse_args())
