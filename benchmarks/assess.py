"""Candidates assessed a second, per layer, against the naive way: a full forward of the network for each candidate.

Prints one JSON document. For every layer of LeNet-5, a small ResNet and YOLOv3-tiny (weights random, for speed does
not depend on them), the same candidate sets of 5% of the layer's weights are measured

- ``output``: the divergence at the network's outputs, naively and by ``Suffix``, which runs only what depends on the
  layer. The same arithmetic: the difference is expected to be exactly zero. Behind an early layer is nearly the whole
  network, and no arithmetic spares it: by multiplications alone the geometric mean over YOLOv3-tiny's layers could not
  exceed 3.7 times the naive rate; the wide early layers' other work is what makes it more. (Several candidates stacked
  along the batch were tried: from four images on, no faster.)
- ``horizon_0``, ``horizon_1``: the same at the outputs of the layer itself and of the next that depends on it, where
  ``Suffix`` stops and the naive way runs on. Also exactly equal.

``peak_memory_megabytes`` is the process's, after the network and those before it.
"""

from __future__ import annotations

import argparse
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

from delib.data.classifiers import lenet5, resnet
from delib.detection.darknet import yolov3_tiny
from delib.evolution.assess import Suffix, assess, tentatively_zeroed
from delib.nn.divergence import mse
from delib.nn.hooks import Cut, end, up_to, watched_calls
from delib.nn.layers import weight_layers, weight_of
from delib.suite.record import git_revision, package_versions


def squares(student: Any, teacher: Any) -> Tensor:
    """The mean squared difference of one output, or the sum of those of several."""
    if isinstance(student, Tensor):
        return mse(student, teacher)
    return torch.stack([mse(s, t) for s, t in zip(student, teacher, strict=True)]).sum()


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lenet5": (lenet5, (256, 1, 28, 28)),
    "resnet": (resnet, (256, 1, 28, 28)),
    "yolov3-tiny": (yolov3_tiny, (8, 3, 416, 416)),
}


HORIZONS = (0, 1, None)  # weight layers behind the one at work; None: the network's outputs


def rate(run: Callable[[], Tensor], candidates: int, least: float) -> tuple[float, Tensor]:
    """Candidates a second in the fastest of at least two runs and ``least`` seconds, and what the run measured.

    The fastest, because whatever else the machine does only ever makes one slower.
    """
    seconds: list[float] = []
    while len(seconds) < 2 or sum(seconds) < least:
        start = time.perf_counter()
        measured = run()
        seconds.append(time.perf_counter() - start)
    return candidates / min(seconds), measured


@torch.no_grad()
def naive(
    network: nn.Module,
    layer: nn.Module,
    at: nn.Module,
    sets: Tensor,
    inputs: Tensor,
    of: Callable[[Any, Tensor], Tensor],
) -> Tensor:
    """``of`` (network's outputs, outputs of the module ``at``) after a full forward for each candidate set."""
    measured = []
    for candidate in sets:
        with tentatively_zeroed(layer, candidate), watched_calls([at]) as calls:
            answer = network(inputs)
        measured.append(of(answer, calls[-1].output))
    return torch.stack(measured)


def difference(fast: Tensor, slow: Tensor) -> float:
    """The largest relative difference."""
    return float(((fast - slow) / slow).abs().max())


@torch.no_grad()
def measure_horizons(
    network: nn.Module, layer: nn.Module, sets: Tensor, inputs: Tensor, least: float, naive_rate: float
) -> dict:
    """Rates of ``Suffix`` at the horizons, and how far what it measures is from the naive way's."""
    found = {}
    for layers in HORIZONS:
        until = up_to(network, end(network, layer, inputs[:1], layers))
        goal = until(inputs)
        if isinstance(until, Cut):
            slow = naive(network, layer, until.end, sets, inputs, lambda _, z, goal=goal: squares(z, goal))
        else:
            slow = naive(network, layer, layer, sets, inputs, lambda o, _, goal=goal: squares(o, goal))
        with Suffix(until, layer, inputs) as suffix:
            speed, fast = rate(lambda s=suffix, g=goal: assess(s, sets, g, squares), len(sets), least)
        key = "output" if layers is None else f"horizon_{layers}"
        found[f"{key}_per_second"] = speed
        found[f"{key}_speedup"] = speed / naive_rate
        found[f"{key}_difference"] = difference(fast, slow)
    return found


@torch.no_grad()
def measure(network: nn.Module, name: str, inputs: Tensor, share: float, candidates: int, least: float) -> dict:
    """Rates of one layer, with the largest relative difference between what the two ways measured."""
    layer = network.get_submodule(name)
    weight = weight_of(layer)
    chance = torch.Generator().manual_seed(0)
    size = max(1, round(share * weight.numel()))
    sets = torch.stack([torch.randperm(weight.numel(), generator=chance)[:size] for _ in range(candidates)])
    few, goal = sets[:2], network(inputs)
    network(inputs)  # warm
    naive_rate, _ = rate(
        lambda: naive(network, layer, layer, few, inputs, lambda o, _: squares(o, goal)), len(few), least
    )
    return {
        "layer": name,
        "weights": weight.numel(),
        "naive_per_second": naive_rate,
        **measure_horizons(network, layer, few, inputs, least, naive_rate),
    }


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(CASES))
    parser.add_argument("--share", type=float, default=0.05, help="a candidate's share of the layer's weights")
    parser.add_argument("--images", type=int, help="images a candidate is assessed on (default: 256, YOLOv3-tiny 8)")
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=1.0, help="the least time for which each rate is measured")
    options = parser.parse_args()
    results, revision = {}, git_revision()
    for case in options.networks:
        make, shape = CASES[case]
        torch.manual_seed(0)
        network, inputs = make().eval(), torch.rand(options.images or shape[0], *shape[1:])
        rows = []
        for name in weight_layers(network):
            rows.append(measure(network, name, inputs, options.share, options.candidates, options.seconds))
            print(case, rows[-1], file=sys.stderr)
        ways = [key.removesuffix("_speedup") for key in rows[0] if key.endswith("_speedup")]
        results[case] = {
            "images": len(inputs),
            **{f"{way}_speedup": geometric_mean([row[f"{way}_speedup"] for row in rows]) for way in ways},
            **{f"largest_{way}_difference": max(row[f"{way}_difference"] for row in rows) for way in ways},
            "peak_memory_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "layers": rows,
        }
    circumstances = {
        "versions": package_versions(),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "git_revision": revision,
        "options": vars(options),
        "peak_memory_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps({"benchmark": "assess", **circumstances, "networks": results}, indent=2))


if __name__ == "__main__":
    main()
