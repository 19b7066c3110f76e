"""A step of YOLOv3-tiny's distillation with layers that multiply in bfloat16, against one in float32, side by side.

Prints one JSON document. Weights and inputs are random, for speed does not depend on them; nine tenths of the weights
are dead and the early layers frozen, as in notebook 03. Both precisions take turns, a few steps each; the ratio is that
of the medians. On a processor without units for bfloat16 it is expected below 1: ``fastest`` says what
``delib.distil.fastest_precision`` would choose.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time

import torch

from delib.darknet import yolov3_tiny
from delib.detect_loss import detection_divergence, focus
from delib.distil import distil, fastest_precision, modules_before
from delib.networks import weight_layers, weight_of
from delib.norms import folded, norm_pairs
from delib.records import git_revision, package_versions


def seconds(precision: torch.dtype, side: int, steps: int) -> float:
    """A step's time, the lessons of every fourth of them included."""
    torch.manual_seed(0)
    network = yolov3_tiny().eval()
    example = torch.zeros(1, 3, 64, 64)
    teacher = folded(network, norm_pairs(network, example)).to(memory_format=torch.channels_last)
    student = copy.deepcopy(teacher)
    masks = {name: torch.rand(weight_of(layer).shape) < 0.1 for name, layer in weight_layers(student).items()}
    settings = {"divergence": detection_divergence(network.heads), "focus": focus(network.heads), "uses": 4}
    settings |= {"features": ["act8", "act10", "act12", "act13", "act14", "act21"], "precision": precision}
    begun = time.perf_counter()
    distil(
        student,
        teacher,
        masks,
        0,
        inputs=lambda n, c: torch.rand(n, 3, side, side, generator=c).contiguous(memory_format=torch.channels_last),
        steps=steps,
        frozen=modules_before(teacher, "c6", example),
        progress=False,
        **settings,
    )
    return (time.perf_counter() - begun) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=416, help="pixels of a side of the inputs")
    parser.add_argument("--steps", type=int, default=8, help="steps in a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    precisions = (torch.float32, torch.bfloat16)
    turns = [[seconds(p, options.side, options.steps) for p in precisions] for _ in range(options.turns + 1)][1:]
    whole, half = (statistics.median(turn) for turn in zip(*turns, strict=True))
    report = {
        "benchmark": "distil",
        "seconds_per_step": {"float32": whole, "bfloat16": half},
        "times_faster": whole / half,
        "fastest": str(fastest_precision()).removeprefix("torch."),
        "options": vars(options),
        "versions": package_versions(),
        "machine": platform.machine(),
        "git_revision": git_revision(),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
