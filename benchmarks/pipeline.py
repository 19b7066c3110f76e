"""Whole pipelines without training at equal divergence: supports, levels and code, ours against nncodec's.

Prints one JSON document. The networks, norms folded, are notebook 04's, the ResNet of FashionMNIST, and with
``--images`` YOLOv3-tiny. Divergences are those of the decoded network from its teacher, on the test images and on
photos of the folder to which nothing was fitted; bytes are those of the weights alone.

- ``one price``: supports by ADMM, at a sparsity that suits the price, which rates then move; levels and rates together,
  each layer fitted to the ones before. A bit is worth the same divergence in every layer, as errors of the k-means
  student's layers, one at a time, say (``layerwise.assessed_prices``).
- ``k-means``: supports by ADMM at 90%, k-means at 4 and 3 bits, rounding errors compensated.
- ``nncodec``: uniform levels by rate and distortion (DeepCABAC) at several step sizes, with dependent quantisation
  (trellis) and without, of the dense weights and of those at the sparse supports; its ``lambda_scale`` is 1, and no
  other was tried. It needs ``--nncodec``, the Python of an environment of its own, as numpy must be below 2.
- ``saved``: the least share of a pipeline's bytes that ``one price`` saves at the same divergence, interpolated between
  its prices in the logarithms of both; None where no setting of the pipeline lies between them.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from delib import detection
from delib.coding import LevelTensor, encode
from delib.data import CLASSIFIERS, fashion_mnist, teacher
from delib.detection import SHOWN
from delib.evolution import scale_sparsities
from delib.layerwise import Compression, assessed_prices, compress
from delib.nn import copied, folded, kl, norm_pairs, predict, soft_kl, weight_layers, weight_of
from delib.suite.parameters import read_parameters
from delib.suite.record import git_revision, package_versions
from delib.suite.runner import find_notebook

SPARSITY, LARGE = 0.9, 2000  # of layers of more weights than that
CALIBRATION = 1000
# Sparsity of the supports that rates start from, and the divergence that a bit is worth.
PRICES = {
    "resnet": [(0.9, price) for price in (6e-7, 1e-6, 1.5e-6, 2.2e-6, 3e-6, 4e-6)],
    "yolov3-tiny": [(0.85, price) for price in (9.5e-7, 1.55e-6)],
}
# nncodec's qp: four more double the step
STEPS = {"resnet": (-38, -34, -30, -28, -26, -24, -22, -20, -18), "yolov3-tiny": (-38, -34, -30, -26, -22)}
FITTED, MEASURED = 256, 100  # photos
SIDE = 416
NNCODEC = """
import contextlib, io, json, sys
import numpy as np
from nncodec import nnc
weights, sizes = dict(np.load(sys.argv[1])), {}
for qp in json.loads(sys.argv[2]):
    for trellis in (True, False):
        with contextlib.redirect_stdout(io.StringIO()):
            stream = nnc.compress(dict(weights), bitstream_path=sys.argv[1] + ".nnc", qp=qp, nonweight_qp=qp,
                                  use_dq=trellis, lambda_scale=1.0, return_bitstream=True)
            back = nnc.decompress(sys.argv[1] + ".nnc")
        np.savez(f"{sys.argv[1]}.{qp}.{trellis}.npz", **back)
        sizes[f"{qp}.{trellis}"] = len(stream)
print(json.dumps(sizes))
"""

Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """A network with its norms folded, what it is calibrated on, its layers' ``goals`` by the whole sparsity, and how a
    student is measured: its divergence, and for a detector its retention."""

    name: str
    teacher: nn.Module
    inputs: Tensor
    goals: Callable[[float], dict[str, float]]
    measure: Callable[[nn.Module], Row]
    settings: Compression
    options: dict[str, Any]

    def row(self, pipeline: str, setting: Any, size: int, network: nn.Module) -> Row:
        found = {"network": self.name, "pipeline": pipeline, "setting": setting, "bytes": size, **self.measure(network)}
        print(found, file=sys.stderr, flush=True)
        return found

    def compressed(self, sparsity: float, **setting: Any) -> tuple[nn.Module, dict[str, LevelTensor]]:
        settings, goals = replace(self.settings, **setting), self.goals(sparsity)
        return compress(self.teacher, self.inputs, goals, settings, rounding=list(goals), **self.options)

    def kmeans(self) -> list[tuple[Row, nn.Module]]:
        found = [(bits, *self.compressed(SPARSITY, bits=bits)) for bits in (4, 3)]
        return [
            (self.row("k-means", {"sparsity": SPARSITY, "bits": bits}, size_of(levels), student), student)
            for bits, student, levels in found
        ]

    def one_price(self, tried: nn.Module) -> list[Row]:
        """At several prices, those of layers as the errors of a student that was ``tried`` say."""
        shares = assessed_prices(self.teacher, tried, self.inputs, 1.0, settings=self.settings, **self.options)
        rows = []
        for sparsity, price in PRICES[self.name]:
            multiplier = {name: price * share for name, share in shares.items()}
            student, levels = self.compressed(sparsity, multiplier=multiplier)
            rows.append(self.row("one price", {"sparsity": sparsity, "multiplier": price}, size_of(levels), student))
        return rows

    def sparse(self) -> nn.Module:
        return compress(self.teacher, self.inputs, self.goals(SPARSITY), self.settings, **self.options)[0]

    def nncodec(self, python: str, pipeline: str, network: nn.Module) -> list[Row]:
        weights = {name: weight_of(layer).contiguous().numpy() for name, layer in weight_layers(network).items()}
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "weights.npz"
            np.savez(path, **weights)  # type: ignore[arg-type]
            command = [python, "-c", NNCODEC, str(path), json.dumps(STEPS[self.name])]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            for setting, size in json.loads(said.splitlines()[-1]).items():
                values = {name: torch.from_numpy(w) for name, w in np.load(f"{path}.{setting}.npz").items()}
                rows.append(self.row(pipeline, setting, size, with_weights(network, values)))
        return rows

    def rows(self, python: str | None) -> list[Row]:
        (four, tried), (three, _) = self.kmeans()
        found = [*self.one_price(tried), four, three]
        if python:
            found += self.nncodec(python, "nncodec, dense", self.teacher)
            found += self.nncodec(python, "nncodec, sparse", self.sparse())
        return found


def resnet() -> Bench:
    data = fashion_mnist()
    train = data.train.take(0, 40000)
    original = teacher(CLASSIFIERS["resnet"], train, 2, seed=0)
    plain = folded(original, norm_pairs(original, train.images[:1]))
    chance = torch.Generator().manual_seed(0)
    inputs = train.images[torch.randperm(len(train), generator=chance)[:CALIBRATION]]
    answers = predict(plain, data.test.images)
    sizes = {name: weight_of(layer).numel() for name, layer in weight_layers(plain).items()}

    def goals(sparsity: float) -> dict[str, float]:
        return {name: sparsity if size > LARGE else 0.0 for name, size in sizes.items()}

    def measure(network: nn.Module) -> Row:
        return {"divergence": float(kl(predict(network, data.test.images), answers))}

    return Bench("resnet", plain, inputs, goals, measure, Compression(batch=100), {"divergence": soft_kl})


def yolov3_tiny(folder: str) -> Bench:
    """On photos of a folder: some that layers are fitted to, and others that are measured."""
    found = detection.photos(folder)
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()
    held, own = [found[i] for i in order[:MEASURED]], [found[i] for i in order[-FITTED:]]
    original = detection.load_yolo("yolov3-tiny")
    plain = folded(original, norm_pairs(original, torch.zeros(1, 3, 64, 64))).to(memory_format=torch.channels_last)
    recipe = read_parameters(find_notebook("03_coco_yolov3"))["recipe"].default
    sizes = {name: weight_of(layer).numel() for name, layer in weight_layers(plain).items()}

    def goals(sparsity: float) -> dict[str, float]:
        return dict.fromkeys(sizes, 0.0) | scale_sparsities(sizes, sparsity, recipe["shape"])

    validation, study = detection.Validation(plain, held, SIDE), detection.Study(original, held, SIDE)

    def measure(network: nn.Module) -> Row:
        retention = study.compare(study.detect(network)).retention(SHOWN)
        return {"divergence": validation.divergence(network), "retention": retention}

    inputs = detection.Validation(plain, own, SIDE).inputs
    settings, options = Compression(iterations=25, draws=4), {"divergence": detection.detection_divergence(plain.heads)}
    return Bench("yolov3-tiny", plain, inputs, goals, measure, settings, options)


def size_of(levels: dict[str, LevelTensor]) -> int:
    return sum(len(encode({name: tensor})) for name, tensor in levels.items())


def with_weights(network: nn.Module, values: dict[str, Tensor]) -> nn.Module:
    student = copied(network)
    for name, layer in weight_layers(student).items():
        weight_of(layer).copy_(values[name].view_as(weight_of(layer)))
    return student


def saved(rows: list[Row], network: str) -> dict[str, float | None]:
    """For each other pipeline the least share of its bytes that ``one price`` saves, over the pipeline's settings."""
    rows = [row for row in rows if row["network"] == network]
    mine = sorted((r["divergence"], r["bytes"]) for r in rows if r["pipeline"] == "one price")
    # Settings that another one beats in both are no one's choice.
    mine = [one for i, one in enumerate(mine) if all(one[1] < before[1] for before in mine[:i])]
    logs = np.log(np.array(mine))
    found: dict[str, float | None] = {}
    for pipeline in dict.fromkeys(r["pipeline"] for r in rows if r["pipeline"] != "one price"):
        shares = [
            1 - float(np.exp(np.interp(np.log(r["divergence"]), logs[:, 0], logs[:, 1]))) / r["bytes"]
            for r in rows
            if r["pipeline"] == pipeline and mine[0][0] <= r["divergence"] <= mine[-1][0]
        ]
        found[pipeline] = min(shares) if shares else None
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nncodec", help="a Python that has nncodec; without one it is left out")
    parser.add_argument("--images", help="a folder of photos such as COCO's; without one YOLOv3-tiny is left out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    benches = [resnet()] + ([yolov3_tiny(options.images)] if options.images else [])
    rows = [row for bench in benches for row in bench.rows(options.nncodec)]
    gains = {bench.name: saved(rows, bench.name) for bench in benches}
    circumstances = {"versions": package_versions(), "machine": platform.machine(), "git_revision": git_revision()}
    print(json.dumps({"benchmark": "pipeline", **circumstances, "rows": rows, "saved": gains}, indent=2))


if __name__ == "__main__":
    main()
