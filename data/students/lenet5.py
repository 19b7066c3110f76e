"""How the LeNet-5 student was made, whose record lies beside this file.

    python data/students/lenet5.py OUT

First the network itself evolves: channels and units are candidate sets, and of 20, 50 and 500 a few are left. What
survives lies together, so that its places cost the file little. Then levels in the loop, at prices that rise, zero the
weights among them that are not worth their bits. Half an hour of one core; goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from delib import nn
from delib.data import CLASSIFIERS, mnist, teacher, views
from delib.distillation import Recipe, distill, rate_aware
from delib.distillation.recipe import softened
from delib.evolution import evolve_outputs
from delib.layerwise import finalize

EXTENT = 0.35  # of the jitter, as in profile paper of notebook 01
OUTPUTS = {"conv1": 8, "conv2": 14, "fc1": 24}
PRICES = (1e-6, 5e-6)  # of a bit, one after another
RECOVERY, FINAL, LEVELS = Recipe(300), Recipe(3000, rate=0.02), Recipe(5000, rate=0.02)


def make(out: Path) -> None:
    data = mnist()
    train, validation = data.train, data.validation
    seen = views(train.images, EXTENT)
    original = teacher(CLASSIFIERS["lenet5"], train, 6, seed=0, jitter=EXTENT)

    def recovery(student: torch.nn.Module, teacher: torch.nn.Module, *, seed: int) -> None:
        distill(student, teacher, seen, RECOVERY, seed=seed)

    def right(network: torch.nn.Module) -> float:
        return nn.accuracy(network, validation.images, validation.labels)

    with nn.saved_to(out / "outputs.ckpt"):
        student = evolve_outputs(original, train.images, OUTPUTS, divergence=softened, recovery=recovery)
    distill(student, original, seen, FINAL, seed=99, checkpoint=out / "final.ckpt")
    print("Validation images right:", right(original), "by the teacher,", right(student), "by few outputs", flush=True)
    for i, price in enumerate(PRICES):
        levels = rate_aware(student, original, train.images[:300], multiplier=price, biases=True)
        distill(student, original, seen, LEVELS, during=levels, seed=i, checkpoint=out / f"levels-{i}.ckpt")
        made = finalize(student, levels.tensors(student))
        size = made.save(out / "lenet5.delib")
        ratio, network = nn.float32_bytes(original) / size, made.network(original)
        print(f"{price}: {size} bytes, {ratio:.1f} times smaller;", right(network), "right", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    make(out)
