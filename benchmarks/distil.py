"""A step of YOLOv3-tiny's distillation in several ways, side by side: layers that multiply in float32 and in bfloat16,
and on a GPU also passes that are recorded once and replayed (see ``delib.recorded``).

Prints one JSON document. Weights and inputs are random, for speed does not depend on them; nine tenths of the weights
are dead and the early layers frozen, as in notebook 03. The ways take turns; a turn's first half is not timed, in it
passes are recorded and libraries choose their kernels. Ratios are of medians, each way against the one before.
On a processor without units for bfloat16 its ratio is expected below 1: ``fastest`` says what
``delib.distil.fastest_precision`` would choose.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from itertools import pairwise

import torch
from torch import Tensor

from delib.detection.darknet import yolov3_tiny
from delib.detection.divergence import detection_divergence, focus
from delib.distillation.distill import distil
from delib.nn.batchnorm import folded, norm_pairs
from delib.nn.device import fastest_device, fastest_precision
from delib.nn.hooks import modules_before
from delib.nn.layers import weight_layers, weight_of
from delib.suite.record import git_revision, package_versions

USES = 4  # steps to a lesson


def seconds(precision: torch.dtype, recorded: bool, options: argparse.Namespace) -> float:
    """A step's time, the lessons of every fourth of them included."""
    torch.manual_seed(0)
    network = yolov3_tiny().eval()
    example = torch.zeros(1, 3, 64, 64, device=options.device)
    teacher = folded(network.to(options.device), norm_pairs(network, example)).to(memory_format=torch.channels_last)
    student = copy.deepcopy(teacher)
    masks = {name: torch.rand(weight_of(layer).shape) < 0.1 for name, layer in weight_layers(student).items()}
    lessons: list[float] = []

    def inputs(count: int, chance: torch.Generator) -> Tensor:
        lessons.append(time.perf_counter())
        images = torch.rand(count, 3, options.side, options.side, generator=chance)
        return images.to(options.device).contiguous(memory_format=torch.channels_last)

    settings = {"divergence": detection_divergence(network.heads), "focus": focus(network.heads), "uses": USES}
    settings |= {"features": ["act8", "act10", "act12", "act13", "act14", "act21"], "precision": precision}
    settings |= {"frozen": modules_before(teacher, "c6", example), "recorded": recorded, "batch": options.batch}
    on = {name: mask.to(options.device) for name, mask in masks.items()}
    distil(student, teacher, on, 0, inputs=inputs, steps=options.steps, progress=False, **settings)
    half = len(lessons) // 2
    return (time.perf_counter() - lessons[half]) / (options.steps - USES * half)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=416, help="pixels of a side of the inputs")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=16, help="steps in a turn; some hundred on a GPU")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default=fastest_device())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ways = {"float32": (torch.float32, False), "bfloat16": (torch.bfloat16, False)}
    if options.device.startswith("cuda"):
        ways["bfloat16, recorded"] = (torch.bfloat16, True)
    turns = [[seconds(*way, options) for way in ways.values()] for _ in range(options.turns + 1)][1:]
    medians = dict(zip(ways, map(statistics.median, zip(*turns, strict=True)), strict=True))
    report = {
        "benchmark": "distil",
        "seconds_per_step": medians,
        "times_faster": {f"{new} than {old}": medians[old] / medians[new] for old, new in pairwise(medians)},
        "fastest": str(fastest_precision(options.device)).removeprefix("torch."),
        "options": vars(options),
        "versions": package_versions(),
        "machine": platform.machine(),
        "git_revision": git_revision(),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
