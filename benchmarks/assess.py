"""Candidates assessed a second, per layer, against the naive way: a full forward of the network for each candidate.

Prints one JSON document. For every layer of LeNet-5, a small ResNet and YOLOv3-tiny (weights random, for speed does
not depend on them), the same candidate sets of 5% of the layer's weights are measured

- ``output``: the divergence at the network's outputs, naively and by ``Suffix`` (cached prefix). The same arithmetic:
  the difference is expected to be exactly zero.
- ``layer``: the summed squared change of the layer's own outputs (the shortest horizon), naively by running the network
  and comparing, and by ``zeroing_changes`` from the layer's moments. Summed in another order, so equal to a relative
  tolerance of 1e-3 in float32. The moments are gathered once for a layer, at the cost recorded as ``setup_seconds``,
  and serve any number of candidates.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from delib.assess import Suffix, assess, mse, tentatively_zeroed
from delib.darknet import yolov3_tiny
from delib.networks import lenet5, resnet, weight_layers, weight_of
from delib.records import git_revision, package_versions
from delib.refit import matrix_of, moments, zeroing_changes


def squares(student: Any, teacher: Any) -> Tensor:
    """The mean squared difference of one output, or the sum of those of several."""
    if isinstance(student, Tensor):
        return mse(student, teacher)
    return torch.stack([mse(s, t) for s, t in zip(student, teacher, strict=True)]).sum()


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lenet5": (lenet5, (256, 1, 28, 28)),
    "resnet": (resnet, (256, 1, 28, 28)),
    "yolov3-tiny": (yolov3_tiny, (16, 3, 416, 416)),
}


def rate(run: Callable[[], Tensor], candidates: int, least: float) -> tuple[float, Tensor]:
    """Candidates a second, the run repeated for at least ``least`` seconds, and what it measured."""
    start, runs = time.perf_counter(), 0
    while runs == 0 or time.perf_counter() - start < least:
        measured, runs = run(), runs + 1
    return candidates * runs / (time.perf_counter() - start), measured


@torch.no_grad()
def naive(
    network: nn.Module, layer: nn.Module, sets: Tensor, inputs: Tensor, of: Callable[[Any, Tensor], Tensor]
) -> Tensor:
    """``of`` (network's outputs, layer's outputs) after a full forward for each candidate set."""
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda *call: seen.append(call[2]))
    measured = []
    for candidate in sets:
        with tentatively_zeroed(layer, candidate):
            measured.append(of(network(inputs), seen.pop()))
    hook.remove()
    return torch.stack(measured)


@torch.no_grad()
def measure(network: nn.Module, name: str, inputs: Tensor, share: float, candidates: int, least: float) -> dict:
    """Rates of one layer, with the largest relative difference between what the two ways measured."""
    layer = network.get_submodule(name)
    weight = weight_of(layer)
    chance = torch.Generator().manual_seed(0)
    size = max(1, round(share * weight.numel()))
    sets = torch.stack([torch.randperm(weight.numel(), generator=chance)[:size] for _ in range(candidates)])
    few = sets[:2]
    seen: list[Tensor] = []
    with_hook = layer.register_forward_hook(lambda *call: seen.append(call[2]))
    goal = network(inputs)
    with_hook.remove()
    own = seen[0].clone()
    naive_rate, outputs = rate(
        lambda: naive(network, layer, few, inputs, lambda o, _: squares(o, goal)), len(few), least
    )
    changes = naive(network, layer, few, inputs, lambda _, z: (z - own).double().square().sum())
    with Suffix(network, layer, inputs) as suffix:
        suffix_rate, by_suffix = rate(lambda: assess(suffix, few, goal, squares), len(few), least)
    start = time.perf_counter()
    sums = moments(network, copy.deepcopy(network), name, inputs, batch=len(inputs))
    setup = time.perf_counter() - start
    matrix = matrix_of(layer)
    moments_rate, by_moments = rate(lambda: zeroing_changes(sums, matrix, sets), len(sets), least)
    return {
        "layer": name,
        "weights": weight.numel(),
        "naive_per_second": naive_rate,
        "suffix_per_second": suffix_rate,
        "moments_per_second": moments_rate,
        "output_speedup": suffix_rate / naive_rate,
        "layer_speedup": moments_rate / naive_rate,
        "output_difference": float(((by_suffix - outputs) / outputs).abs().max()),
        "layer_difference": float(((by_moments[: len(few)] - changes) / changes).abs().max()),
        "setup_seconds": setup,
    }


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(CASES))
    parser.add_argument("--share", type=float, default=0.05, help="a candidate's share of the layer's weights")
    parser.add_argument("--images", type=int, help="images a candidate is assessed on (default: 256, YOLOv3-tiny 16)")
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=1.0, help="the least time for which each rate is measured")
    options = parser.parse_args()
    results = {}
    for case in options.networks:
        make, shape = CASES[case]
        torch.manual_seed(0)
        network, inputs = make().eval(), torch.rand(options.images or shape[0], *shape[1:])
        rows = []
        for name in weight_layers(network):
            rows.append(measure(network, name, inputs, options.share, options.candidates, options.seconds))
            print(case, rows[-1], file=sys.stderr)
        results[case] = {
            "images": len(inputs),
            "output_speedup": geometric_mean([row["output_speedup"] for row in rows]),
            "layer_speedup": geometric_mean([row["layer_speedup"] for row in rows]),
            "largest_output_difference": max(row["output_difference"] for row in rows),
            "largest_layer_difference": max(row["layer_difference"] for row in rows),
            "layers": rows,
        }
    circumstances = {
        "versions": package_versions(),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "git_revision": git_revision(),
        "options": vars(options),
        "peak_memory_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps({"benchmark": "assess", **circumstances, "networks": results}, indent=2))


if __name__ == "__main__":
    main()
