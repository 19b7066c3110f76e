"""The whole way at full size: YOLOv3's 62,001,757 values read, evolved to 90%, quantised, encoded, decoded, exported.

Prints one JSON document with the seconds of each step and the process's peak memory after it. The weights are a file of
random values in the official layout (normal, scaled as He et al. 2015 do, so that activations neither vanish nor
explode; norms with scattered statistics): neither time nor memory depends on what a network has learnt. Whether the
student is any good is no question here.

The evolution is ``delib.evolve`` as everywhere: in every cycle each of the 75 convolutions is given candidate
sets, each is tentatively zeroed and measured by the divergence of the network's detections, the best is zeroed.

``evolve_memory_ratio`` is the evolution's peak above what the process held before it had a network, less the largest
inputs and outputs that one layer has on the calibration images, divided by the network's size: the goal is 3. Memory is
what is in use: glibc is told to give back at once what is freed, which by itself it keeps for later use.

``--fit`` measures instead how the time of each step grows: with the number of weights (layers of one width, 512, more
and more of them, from .3 to 62 million weights), with the population and with the calibration inputs (at 1 million
weights); what does not vary is a population of 16, ``Cycle``'s default, and 64 inputs. A step's exponent is the slope
of log(seconds) over log(amount) by least squares. Runs of all amounts are interleaved, and of each the fastest of
``--rounds`` counts, so that a machine's other work falls on all alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from delib.coding import container as encode
from delib.detection.darknet import Darknet
from delib.detection.darknet_weights import read_weights, tensors, value_count, write_weights
from delib.detection.divergence import detection_divergence
from delib.detection.zoo import NETWORKS, export_darknet
from delib.evolution.criteria import criterion_named
from delib.evolution.evolve import Cycle, evolve
from delib.layerwise.compress import quantize
from delib.nn.divergence import mse
from delib.nn.layers import float32_bytes, sparsity, weight_layers
from delib.suite.record import git_revision, package_versions

STEPS: dict[str, dict[str, float]] = {}
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}  # bytes


def peak_megabytes() -> float:
    """The most memory that this process has held so far; Linux counts it in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def peak_device_megabytes(device: str) -> float:
    """The most memory that tensors on a GPU have taken so far; 0 on a processor."""
    return torch.cuda.max_memory_allocated() / (1 << 20) if device.startswith("cuda") else 0.0


@contextmanager
def step(name: str) -> Iterator[None]:
    """Time what is done inside and note the peak memory after it."""
    start = time.perf_counter()
    yield
    STEPS[name] = {"seconds": time.perf_counter() - start, "peak_megabytes": peak_megabytes()}
    print(name, STEPS[name], file=sys.stderr, flush=True)


@torch.no_grad()
def layer_bytes(network: nn.Module, images: Tensor) -> int:
    """The most that the inputs and outputs of one weight layer take."""
    sizes = [0]
    measure = lambda _, args, output: sizes.append(4 * (args[0].numel() + output.numel()))  # noqa: E731 (keeps nothing)
    hooks = [layer.register_forward_hook(measure) for layer in weight_layers(network).values()]
    network(images)
    for hook in hooks:
        hook.remove()
    return max(sizes)


def same(a: Any, b: Any) -> bool:
    """Whether two containers, or two tensors of them, are equal bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, encode.LevelTensor):
        fields = ("mask", "indices", "codebook")
        return isinstance(b, encode.LevelTensor) and all(same(getattr(a, f), getattr(b, f)) for f in fields)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@torch.no_grad()
def random_weights(network: Darknet, seed: int = 0) -> Darknet:
    """Fill the network with plausible random values, in place, and return it: for proofs at full size without a file.

    Weights are normal with variance 2 / inputs (He et al. 2015), so that activations neither vanish nor explode;
    the batch norms' statistics are scattered around mean 0 and variance 1.
    """
    generator = torch.Generator().manual_seed(seed)
    kinds = network.kinds
    for name, tensor in tensors(network):
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() > 1:
            noise *= (2 / tensor[0].numel()) ** 0.5
        elif name.endswith(("running_var", "weight")):
            noise = 1 + 0.1 * noise.clamp(-3, 3)
            index = int(name.removeprefix("bn").split(".")[0])
            if name.endswith("weight") and kinds[index + 1] == "shortcut":
                noise *= 0.25  # else every sum of a residual block doubles the variance
        else:
            noise *= 0.1
        tensor.copy_(noise)
    return network


def whole_way(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All the steps; returns what came out of them."""
    before, build = peak_megabytes(), NETWORKS[options.network][0]
    write_weights(random_weights(build(), options.seed), folder / "random.weights")
    chance = torch.Generator().manual_seed(options.seed)
    images = torch.rand(options.images, 3, options.size, options.size, generator=chance).to(options.device)
    with step("read"):
        teacher = build()
        read_weights(teacher, folder / "random.weights")
        teacher.to(options.device)
    network_bytes, activations = float32_bytes(teacher), layer_bytes(teacher, images)
    with step("evolve"):
        evolved = evolve(
            teacher,
            images,
            options.sparsity,
            Cycle(options.population, options.share, criterion_named(options.criterion), batch=options.images),
            divergence=detection_divergence(teacher.heads),
            seed=options.seed,
        )
    peak = peak_device_megabytes(options.device) or peak_megabytes() - before
    student, rows = evolved.student, evolved.rows
    reached, cycles = sparsity(student), evolved.cycle
    del teacher, evolved
    with step("quantize"):
        quantized = quantize(student, options.bits)
    with step("encode"):
        size = encode.write(folder / "student.delib", quantized)
    with step("decode"):
        decoded = encode.read(folder / "student.delib")
    state = {n: t.dense() if isinstance(t, encode.LevelTensor) else t for n, t in decoded.items()}
    with step("export"):
        export_darknet(state, folder / "student.weights")
    with step("read_exported"):
        exported = build()
        read_weights(exported, folder / "student.weights")
    return {
        "values": value_count(exported),
        "weights": sum(layer.weight.numel() for layer in weight_layers(exported).values()),
        "cycles": cycles,
        "divergences_measured": len(rows) * options.population,
        "sparsity": reached,
        "bits": quantized.bits,
        "encoded_bytes": size,
        "compression_ratio": (folder / "random.weights").stat().st_size / size,
        "decoded_bit_for_bit": same(quantized, decoded),
        "exported_the_same": all(np.array_equal(t.numpy(), state[n]) for n, t in tensors(exported)),
        "evolve_memory_ratio": (peak * (1 << 20) - activations) / network_bytes,
    }


WIDTH = 512  # of every layer of the networks whose times are fitted
DEPTHS = (1, 4, 16, 64, 236)  # .3, 1, 4.2, 16.8 and 61.9 million weights
POPULATIONS = (2, 4, 8, 16)
INPUTS = (64, 256, 1024, 4096)
SHARE = 0.21  # of the survivors in each cycle: .21, .38, then half of the weights are zero


def chain(depth: int) -> nn.Sequential:
    """Layers of one width, their weights as He et al. 2015 draw them."""
    torch.manual_seed(0)
    layers = nn.Sequential(*(part for _ in range(depth) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())))
    for layer in weight_layers(layers).values():
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layers.eval()


def times(depth: int, population: int = Cycle().population, inputs: int = 64) -> dict[str, float]:
    """Seconds of processor time of each step: an evolution of three cycles to half the weights, assessed at each
    layer's own outputs, with the check of the network before it; then quantising, encoding and decoding."""
    network, images = chain(depth), torch.randn(inputs, WIDTH, generator=torch.Generator().manual_seed(0))
    marks = [time.process_time()]
    cycle = Cycle(population, SHARE, horizon=0, batch=inputs)
    student = evolve(network, images, 0.5, cycle, divergence=mse, seed=0).student
    marks.append(time.process_time())
    quantized = quantize(student, 4)
    marks.append(time.process_time())
    data = encode.encode(quantized)
    marks.append(time.process_time())
    encode.decode(data)
    marks.append(time.process_time())
    steps = ("evolve", "quantize", "encode", "decode")
    return dict(zip(steps, np.diff(marks).tolist(), strict=True))


def exponents(runs: dict[float, dict[str, float]]) -> dict[str, float]:
    """For each step the slope of log(seconds) over log(amount), by least squares."""
    amounts = np.log(list(runs))
    steps = next(iter(runs.values()))
    return {step: float(np.polyfit(amounts, np.log([run[step] for run in runs.values()]), 1)[0]) for step in steps}


def growth(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and exponents over the numbers of weights, over populations and over calibration inputs."""
    settings: dict[str, dict[float, tuple[int, ...]]] = {
        "weights": {depth * WIDTH**2: (depth,) for depth in DEPTHS if depth * WIDTH**2 <= options.most * 1e6},
        "population": {population: (4, population) for population in POPULATIONS},
        "inputs": {inputs: (4, Cycle().population, inputs) for inputs in INPUTS},
    }
    times(1)  # compiles
    best: dict[str, dict[float, dict[str, float]]] = {over: {} for over in settings}
    for _ in range(options.rounds):
        for over, amounts in settings.items():
            for amount, setting in amounts.items():
                run = times(*setting)
                before = best[over].get(amount, run)
                best[over][amount] = {step: min(before[step], run[step]) for step in run}
                print(over, amount, best[over][amount], file=sys.stderr, flush=True)
    return {over: {"exponents": exponents(runs), "seconds": runs} for over, runs in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true", help="how times grow, instead of the whole way once")
    parser.add_argument("--rounds", type=int, default=3, help="of --fit")
    parser.add_argument("--most", type=float, default=62, help="of --fit: millions of weights at most")
    parser.add_argument("--network", choices=list(NETWORKS), default="yolov3")
    parser.add_argument("--sparsity", type=float, default=0.9, help="of every convolution's weights")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--images", type=int, default=1, help="random images that candidates are assessed on")
    parser.add_argument("--size", type=int, default=416, help="their height and width, a multiple of 32 pixels")
    parser.add_argument("--population", type=int, default=4)
    parser.add_argument("--share", type=float, default=0.5, help="a candidate set's share of a layer's survivors")
    parser.add_argument("--criterion", default="activation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    # glibc reads them when a process starts; what is given back at once must be asked for again, which takes time
    if sys.platform == "linux" and not options.fit and not GIVE_BACK.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | GIVE_BACK)
    start, revision = time.perf_counter(), git_revision()
    with tempfile.TemporaryDirectory() as folder:
        results = growth(options) if options.fit else whole_way(options, Path(folder))
    circumstances = {
        "versions": package_versions(),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else "cpu",
        "git_revision": revision,
        "options": vars(options),
        "seconds": time.perf_counter() - start,
        "peak_memory_megabytes": peak_megabytes(),
        "peak_device_megabytes": peak_device_megabytes(options.device),
    }
    print(json.dumps({"benchmark": "scale", **circumstances, "steps": STEPS, **results}, indent=2))


if __name__ == "__main__":
    main()
