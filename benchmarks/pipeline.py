"""Whole pipelines without training at equal divergence: supports, levels and code, ours against nncodec's.

Prints one JSON document. The network is notebook 04's: the ResNet of FashionMNIST with its norms folded; divergences
are those of the decoded network from its teacher on the test images, bytes those of the weights alone.

- ``one price``: supports by ADMM that rates move, levels and rates together, each layer fitted to the ones before.
- ``k-means``: the same supports, k-means at 4 and 3 bits, rounding errors compensated.
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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from delib.coding import encode
from delib.data import CLASSIFIERS, fashion_mnist, teacher
from delib.layerwise import Compression, compress
from delib.nn import copied, folded, kl, norm_pairs, predict, soft_kl, weight_layers, weight_of
from delib.suite.record import git_revision, package_versions

SPARSITY, LARGE = 0.9, 2000  # of layers of more weights than that
CALIBRATION = 1000
PRICES = (5e-8, 1e-7, 2e-7, 3e-7, 4.5e-7, 6e-7)
STEPS = (-38, -34, -30, -28, -26, -24, -22, -20, -18)  # nncodec's qp: four more double the step
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


class Bench:
    """The teacher, what it is calibrated and measured on, and rows of results."""

    def __init__(self) -> None:
        data = fashion_mnist()
        train = data.train.take(0, 40000)
        original = teacher(CLASSIFIERS["resnet"], train, 2, seed=0)
        self.teacher = folded(original, norm_pairs(original, train.images[:1]))
        chance = torch.Generator().manual_seed(0)
        self.inputs = train.images[torch.randperm(len(train), generator=chance)[:CALIBRATION]]
        self.images, self.answers = data.test.images, predict(self.teacher, data.test.images)
        self.weights = {name: weight_of(layer) for name, layer in weight_layers(self.teacher).items()}
        self.goals = {name: SPARSITY if w.numel() > LARGE else 0.0 for name, w in self.weights.items()}

    def row(self, pipeline: str, setting: Any, size: int, network: nn.Module) -> Row:
        divergence = float(kl(predict(network, self.images), self.answers))
        found = {"pipeline": pipeline, "setting": setting, "bytes": size, "divergence": divergence}
        print(found, file=sys.stderr)
        return found

    def ours(self, pipeline: str, **setting: Any) -> Row:
        settings = Compression(batch=100, **setting)
        options: dict[str, Any] = {"rounding": list(self.goals), "divergence": soft_kl}
        student, levels = compress(self.teacher, self.inputs, self.goals, settings, **options)
        return self.row(pipeline, setting, sum(len(encode({n: t})) for n, t in levels.items()), student)

    def sparse(self) -> nn.Module:
        return compress(self.teacher, self.inputs, self.goals, Compression(batch=100), divergence=soft_kl)[0]

    def nncodec(self, python: str, pipeline: str, network: nn.Module) -> list[Row]:
        weights = {name: weight_of(layer).numpy() for name, layer in weight_layers(network).items()}
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "weights.npz"
            np.savez(path, **weights)  # type: ignore[arg-type]
            command = [python, "-c", NNCODEC, str(path), json.dumps(STEPS)]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            for setting, size in json.loads(said.splitlines()[-1]).items():
                values = {name: torch.from_numpy(w) for name, w in np.load(f"{path}.{setting}.npz").items()}
                rows.append(self.row(pipeline, setting, size, with_weights(network, values)))
        return rows


def with_weights(network: nn.Module, values: dict[str, Tensor]) -> nn.Module:
    student = copied(network)
    for name, layer in weight_layers(student).items():
        weight_of(layer).copy_(values[name].view_as(weight_of(layer)))
    return student


def saved(rows: list[Row]) -> dict[str, float | None]:
    """For each other pipeline the least share of its bytes that ``one price`` saves, over the pipeline's settings."""
    mine = sorted((r["divergence"], r["bytes"]) for r in rows if r["pipeline"] == "one price")
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
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench()
    rows = [bench.ours("one price", multiplier=price) for price in PRICES]
    rows += [bench.ours("k-means", bits=bits) for bits in (4, 3)]
    if options.nncodec:
        rows += bench.nncodec(options.nncodec, "nncodec, dense", bench.teacher)
        rows += bench.nncodec(options.nncodec, "nncodec, sparse", bench.sparse())
    else:
        print("no --nncodec: nncodec is left out", file=sys.stderr)
    circumstances = {"versions": package_versions(), "machine": platform.machine(), "git_revision": git_revision()}
    print(json.dumps({"benchmark": "pipeline", **circumstances, "rows": rows, "saved": saved(rows)}, indent=2))


if __name__ == "__main__":
    main()
