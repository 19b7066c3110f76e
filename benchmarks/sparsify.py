"""Quality and seconds of every sparsifier on LeNet-300-100, the same teachers, calibration images and layer sparsities.

Prints one JSON document. No method trains with labels; ``gauss_newton`` in a name says that the survivors were also
fitted to the teacher's outputs by Gauss-Newton steps. Each baseline runs with its paper's damping of the Gram matrix
and with the smaller one that evolution uses; evolution is held against the better of the two mean test accuracies.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from delib.data.classifiers import lenet300
from delib.data.images import mnist
from delib.data.teachers import teacher
from delib.distillation.gauss_newton import gauss_newton
from delib.evolution.criteria import admm
from delib.evolution.evolve import Cycle, evolve
from delib.layerwise.baselines import BASELINES, DAMPING, prune
from delib.layerwise.reconstruct import RIDGE
from delib.nn.divergence import kl, soft_kl
from delib.nn.layers import accuracy, predict
from delib.suite.record import git_revision, package_versions

Method = Callable[[nn.Module, Tensor, dict[str, float], int], nn.Module]


def baseline(name: str, damping: float) -> Method:
    def run(network: nn.Module, inputs: Tensor, targets: dict[str, float], seed: int) -> nn.Module:
        return prune(network, inputs, targets, partial(BASELINES[name], damping=damping))

    return run


def evolution(share: float, population: int, temperature: float = 0.1, recover: bool = False) -> Method:
    def run(network: nn.Module, inputs: Tensor, targets: dict[str, float], seed: int) -> nn.Module:
        return evolve(
            network,
            inputs,
            targets,
            Cycle(population, share, admm, temperature, compensate=True),
            divergence=soft_kl,
            recovery=partial(gauss_newton, inputs=inputs) if recover else None,
            seed=seed,
        ).student

    return run


METHODS: dict[str, Method] = {
    "magnitude": baseline("magnitude", DAMPING),
    "wanda": baseline("wanda", DAMPING),
    **{
        f"{name}, damping {d}": baseline(name, d)
        for name in ("sparsegpt", "alps", "exact_obs")
        for d in (DAMPING, RIDGE)
    },
    "evolution": evolution(share=1.0, population=16),
    "evolution + gauss_newton": evolution(share=0.5, population=8, recover=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.8, 0.9, 0.95, 0.98])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    options = parser.parse_args()
    data, rows = mnist(), []
    for seed in range(options.seeds):
        network = teacher(lenet300, data.train, options.epochs, seed=seed)
        chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[: options.images]
        inputs = data.train.images[chosen]
        answers = predict(network, data.validation.images)
        rows.append(
            {"method": "teacher", "seed": seed, "accuracy": accuracy(network, data.test.images, data.test.labels)}
        )
        for s in options.sparsities:
            for name in options.methods:
                start = time.perf_counter()
                student = METHODS[name](network, inputs, {"fc1": s, "fc2": s, "fc3": 0.7 * s}, seed)
                row = {"method": name, "seed": seed, "sparsity": s, "seconds": time.perf_counter() - start}
                row["accuracy"] = accuracy(student, data.test.images, data.test.labels)
                row["validation_kl"] = float(kl(predict(student, data.validation.images), answers))
                rows.append(row)
                print(row, file=sys.stderr)
    circumstances = {
        "versions": package_versions(),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "git_revision": git_revision(),
        "data": data.checksums,
        "options": vars(options),
    }
    print(json.dumps({"benchmark": "sparsify", **circumstances, "means": means(rows), "rows": rows}, indent=2))


def means(rows: list[dict]) -> list[dict]:
    """Mean and standard deviation over seeds of each method at each sparsity."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["method"], row.get("sparsity")), []).append(row)
    table = []
    for (method, s), group in groups.items():
        entry = {"method": method, "sparsity": s}
        for key in ("accuracy", "validation_kl", "seconds"):
            values = torch.tensor([row[key] for row in group if key in row], dtype=torch.float64)
            if len(values):
                entry[key] = float(values.mean())
                entry[f"{key}_deviation"] = float(values.std(correction=0))
        table.append(entry)
    return table


if __name__ == "__main__":
    main()
