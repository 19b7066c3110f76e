"""A step of distillation in several ways, side by side: Adam on dense parameters with dead ones masked, as ``distill``
does, and on the survivors alone, packed; layers that multiply in float32 and in bfloat16.

Prints one JSON document: for YOLOv3-tiny and for the ResNet of notebook 02 seconds per step and bytes of the state that
a checkpoint holds. Weights and inputs are random, for speed does not depend on them; nine tenths of the weights are
dead and YOLOv3-tiny's early layers frozen, as in notebook 03. The ways take turns; a turn's first half is not timed, in
it libraries choose their kernels. On one thread of a processor the time is the process's own, which others do not
lengthen. A processor without units for bfloat16 is slower in it: ``fastest`` is what ``fastest_precision`` says.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from delib.data.classifiers import resnet
from delib.detection import detection_divergence, position_weights
from delib.detection.darknet import yolov3_tiny
from delib.distillation import Objective, Recipe, distill
from delib.distillation.optimizer import MaskedAdam
from delib.nn import fastest_device, fastest_precision, first_chain, folded, norm_pairs, weight_layers, weight_of
from delib.nn.layers import hold, stored
from delib.suite.record import git_revision, package_versions

USES = 4  # of a batch of YOLOv3-tiny
FEATURES = ["act8", "act10", "act12", "act13", "act14", "act21"]


class PackedAdam(MaskedAdam):
    """The same moves, of survivors that lie in memory side by side: less arithmetic, but they must be gathered."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.places = [stored(unit).nonzero()[:, 0] for unit in self.units]
        for name in ("units", "values", "mean"):
            pairs = zip(getattr(self, name), self.places, strict=True)
            setattr(self, name, [stored(tensor)[place] for tensor, place in pairs])
        group = self.adam.param_groups[0]
        self.adam = torch.optim.Adam(self.values, lr=group["lr"], betas=group["betas"], fused=True)

    def scaled_gradients(self) -> list[Tensor]:
        members = zip(self.trained, self.places, self.units, strict=True)
        gradients = [stored(parameter.grad)[place] * unit for parameter, place, unit in members]
        for parameter in self.trained:
            parameter.grad = None
        return gradients

    def write(self, values: Sequence[Tensor]) -> None:
        for parameter, place, unit, value in zip(self.parameters, self.places, self.units, values, strict=True):
            stored(parameter)[place] = value * unit

    def state(self) -> dict[str, Any]:
        return {"places": self.places, "units": self.units, "mean": self.mean, "adam": self.adam.state_dict()}


def tiny(options: argparse.Namespace, precision: torch.dtype) -> tuple[nn.Module, Objective, Recipe, tuple[int, ...]]:
    """YOLOv3-tiny, what is compared and how, and the shape of an input."""
    torch.manual_seed(0)
    network, example = yolov3_tiny().eval(), torch.zeros(1, 3, 64, 64)
    teacher = folded(network, norm_pairs(network, example))
    objective = Objective(
        detection_divergence(teacher.heads),
        FEATURES,
        position_weights=position_weights(teacher.heads),
        frozen=first_chain(teacher, ["c0", "c2", "c4"], example)[0],
        precision=precision,
    )
    recipe = Recipe(options.steps, options.batch, uses=USES)
    return teacher, objective, recipe, (3, options.side, options.side)


def fashion(
    options: argparse.Namespace, precision: torch.dtype
) -> tuple[nn.Module, Objective, Recipe, tuple[int, ...]]:
    """The same of the ResNet for images of clothes."""
    network = resnet().eval()
    teacher = folded(network, norm_pairs(network, torch.zeros(1, 1, 28, 28)))
    return teacher, Objective(precision=precision), Recipe(options.steps), (1, 28, 28)


def seconds(
    make: Callable[..., Any], optimizer: type[MaskedAdam], precision: torch.dtype, options: argparse.Namespace
) -> tuple[float, int]:
    """A step's time, new batches at their share included, and the bytes of the optimizer's state."""
    teacher, objective, recipe, shape = make(options, precision)
    teacher = teacher.to(options.device).to(memory_format=torch.channels_last)
    student = copy.deepcopy(teacher)
    hold(student, {n: torch.rand_like(weight_of(layer)) < 0.1 for n, layer in weight_layers(student).items()})
    clock = time.process_time if options.device == "cpu" and options.threads == 1 else time.perf_counter
    drawn: list[float] = []
    made: list[MaskedAdam] = []

    def inputs(count: int, chance: torch.Generator) -> Tensor:
        drawn.append(clock())
        images = torch.rand(count, *shape, generator=chance)
        return images.to(options.device).contiguous(memory_format=torch.channels_last)

    trainer = import_module("delib.distillation.distill")

    def watched(*arguments: Any) -> MaskedAdam:
        made.append(optimizer(*arguments))
        return made[-1]

    trainer.MaskedAdam = watched  # type: ignore[attr-defined]
    try:
        distill(student, teacher, inputs, recipe, objective=objective)
    finally:
        trainer.MaskedAdam = MaskedAdam  # type: ignore[attr-defined]
    half = len(drawn) // 2
    elapsed = clock() - drawn[half]
    torch.save(made[0].state(), file := io.BytesIO())
    return elapsed / (recipe.steps - recipe.uses * half), len(file.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=416, help="pixels of a side of YOLOv3-tiny's inputs")
    parser.add_argument("--batch", type=int, default=8, help="inputs of YOLOv3-tiny per step")
    parser.add_argument("--steps", type=int, default=16, help="steps in a turn; some hundred on a GPU")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--device", default=fastest_device())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ways = {
        f"{network.__name__}, {name}, {precision}": (network, optimizer, getattr(torch, precision))
        for network in (tiny, fashion)
        for precision in options.precisions
        for name, optimizer in (("dense", MaskedAdam), ("packed", PackedAdam))
    }
    turns = [[seconds(*way, options) for way in ways.values()] for _ in range(options.turns + 1)][1:]
    times = {way: [turn[i][0] for turn in turns] for i, way in enumerate(ways)}
    report = {
        "benchmark": "distil",
        "seconds_per_step": {way: statistics.median(each) for way, each in times.items()},
        "least_seconds_per_step": {way: min(each) for way, each in times.items()},
        "state_bytes": {way: turns[0][i][1] for i, way in enumerate(ways)},
        "fastest": str(fastest_precision(options.device)).removeprefix("torch."),
        "options": vars(options),
        "versions": package_versions(),
        "machine": platform.machine(),
        "git_revision": git_revision(),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
