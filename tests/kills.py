"""Long steps killed at random moments: however often, each must end in the bytes of an uninterrupted one.

``python tests/kills.py --kills 20`` kills every step twenty times and prints one JSON document. The steps run in forks
of this process, so that none has to import PyTorch first.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from delib.distillation import GradualPruning, Recipe, distill, gauss_newton
from delib.evolution import Cycle, RateDatabase, Search, SparsityDatabase, evolve, search_allocation
from delib.evolution.criteria import magnitude, obs
from delib.files import clock
from delib.nn import checkpoint, kl, mse
from delib.nn.fingerprint import fingerprint

INPUTS = torch.randn(600, 40, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 40), nn.ReLU(), nn.Linear(40, 10)).eval()


def recovery(student: nn.Module, teacher: nn.Module, *, seed: int) -> None:
    """One that asks chance where no seed reaches, and has a long step inside."""
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1e-4 * torch.randn_like(parameter) * random.random() * float(np.random.rand()))
    distill(student, teacher, INPUTS, Recipe(steps=10, batch=32), seed=seed)


def evolving() -> Any:
    compensated = Cycle(6, 0.2, obs, compensate=True, regrowth=0.2, batch=100)
    evolved = [evolve(network(), INPUTS, 0.8, Cycle(6, 0.3), divergence=kl, recovery=recovery)]
    evolved += [evolve(network(), INPUTS, {"0": 0.9, "2": 0.7}, compensated, seed=1)]
    return [[e.student.state_dict(), e.generations, e.states, e.rows, e.sparsities] for e in evolved]


def drawn(count: int, chance: torch.Generator) -> torch.Tensor:
    return torch.rand(count, 40, generator=chance)


def distilling() -> Any:
    student, pruning = network(), GradualPruning(1500, every=20)
    losses = distill(
        student, network(), lambda n, chance: torch.rand(n, 40, generator=chance), Recipe(200), during=pruning
    )
    return [student.state_dict(), losses, pruning.cycles]


def building() -> Any:
    names = ["0", "2", "4"]
    first = SparsityDatabase.build(network(), names, INPUTS, magnitude, mse)
    second = SparsityDatabase.build(network(), names, INPUTS, obs, mse)
    rates = RateDatabase.build(network(), dict.fromkeys(names, 0.5), INPUTS, [1e-6, 1e-5], mse)
    return [first.state(), second.state(), {n: [entry.state() for entry in entries] for n, entries in rates.items()}]


def allocating() -> Any:
    database, student = SparsityDatabase.build(network(), ["0", "2", "4"], INPUTS, magnitude, kl), network()
    parents = search_allocation(student, network(), database, 3000, INPUTS, search=Search(30, 6, 100), divergence=kl)
    return [parents, student.state_dict()]


def recovering() -> Any:
    student = network()
    with torch.no_grad():
        student[0].weight[::2] = 0
    many = torch.randn(3000, 40, generator=torch.Generator().manual_seed(2))
    gauss_newton(student, network(), many, divergence=kl, steps=4)
    return student.state_dict()


STEPS: dict[str, Callable[[], Any]] = {
    "evolve": evolving,
    "distill": distilling,
    "database": building,
    "allocate": allocating,
    "gauss_newton": recovering,
}


def in_a_fork(step: Callable[[], Any], result: Path) -> int:
    """Begin a step in a process of its own, which leaves the hash of what it made and the seconds it did not repeat."""
    if child := os.fork():
        return child
    try:
        for seeded in (random.seed, np.random.seed, torch.manual_seed):
            seeded(5)
        made = fingerprint(step(), torch.rand(3), np.random.rand(3), random.random())
        result.write_text(json.dumps([made, clock() - time.perf_counter()]))
    finally:
        os._exit(0)


def uninterrupted(step: Callable[[], Any], folder: Path) -> tuple[str, float]:
    start = time.monotonic()
    os.waitpid(in_a_fork(step, folder / "whole"), 0)
    return json.loads((folder / "whole").read_text())[0], time.monotonic() - start


def killed(
    step: Callable[[], Any], folder: Path, kills: int, seconds: float, chance: random.Random
) -> tuple[str, float]:
    """The step's hash after so many kills, fewer if it ends before, and the seconds of work that were given back."""
    result, checkpoints = folder / "result", folder / "checkpoints"
    os.environ["DELIB_CHECKPOINTS"] = str(checkpoints)
    for _ in range(kills):
        child = in_a_fork(step, result)
        time.sleep(chance.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if result.exists():
            break
    if not result.exists():
        os.waitpid(in_a_fork(step, result), 0)
    del os.environ["DELIB_CHECKPOINTS"]
    left = [path.name for path in checkpoints.rglob("*.part")] if checkpoints.exists() else []
    made, restored = json.loads(result.read_text())
    result.unlink()
    shutil.rmtree(checkpoints, ignore_errors=True)
    return made if len(left) <= kills else "half files", restored


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--at-once", type=int, default=4, help="kills of one step before it may end")
    parser.add_argument("--steps", nargs="*", default=list(STEPS), choices=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    checkpoint.SAVE, checkpoint.SHARE, checkpoint.SHORT = 0.0, 1.0, 0.0
    os.environ["DELIB_BATCH"] = "1"
    torch.set_num_threads(1)  # a fork finds no other threads of its parent
    distill(network(), network(), INPUTS, Recipe(1))  # what PyTorch sets up at the first step, the forks find done
    chance, told = random.Random(options.seed), {}
    for name in options.steps:
        step = STEPS[name]
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            whole, seconds = uninterrupted(step, folder)
            rounds = [
                killed(step, folder, options.at_once, seconds / 2, chance)
                for _ in range(-(-options.kills // options.at_once))
            ]
        told[name] = {
            "seconds": round(seconds, 2),
            "kills": options.at_once * len(rounds),
            "same": all(made == whole for made, _ in rounds),
            "restored": [round(restored, 2) for _, restored in rounds],
        }
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
