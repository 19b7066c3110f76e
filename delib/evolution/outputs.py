"""Evolution of outputs: candidate sets of one output each, a channel of a convolution or a unit of a linear layer.

With an output dies what later layers make of it. The survivors lie together in few rows and columns, and to say where
they lie costs a file next to nothing; scattered, it costs more than their values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from delib.evolution.assess import Suffix, zeroed
from delib.evolution.check import checked_goals
from delib.evolution.evolve import Recovery
from delib.files import in_batch
from delib.layerwise.reconstruct import input_vectors
from delib.nn.checkpoint import Checkpoint
from delib.nn.divergence import Divergence, fitting
from delib.nn.hooks import calls
from delib.nn.layers import bias_of, copied, hold, matrix_of, original, put_matrix, weight_layers, weight_of
from delib.nn.trace import agree

PART = 100  # inputs at a time that are looked through for what is never read


@torch.no_grad()
def evolve_outputs(
    teacher: nn.Module,
    inputs: Tensor,
    goals: Mapping[str, int],
    *,
    share: float = 0.15,
    batch: int = 1000,
    divergence: Divergence = fitting,
    recovery: Recovery | None = None,
    seed: int = 0,
) -> nn.Module:
    """Evolve a student of which layers keep few of their outputs, its divergence from the teacher as small as possible.

    A cycle goes once through the layers that have more outputs than their goal. Each output in turn is zeroed
    tentatively, weights and bias, and the divergence measured on inputs drawn anew; those that cause the least are
    zeroed. Then weights that read nothing but zeros are zeroed, and the survivors recovered.

    Parameters
    ----------
    teacher : nn.Module
        Left as it is, in evaluation mode.
    inputs : Tensor [n, ...]
        Calibration inputs, ``batch`` of them for each layer and cycle; no labels are used.
    goals : mapping of layer name to int
        How many outputs convolutions and linear layers keep; others keep all. The network's answer is best left whole.
    share : float
        Of a layer's outputs, how many go in a cycle. They are judged one by one: of two that stand in for each other
        either can be spared, but not both, so few should go at once.
    divergence, recovery, seed
        As for ``evolve``.

    Returns
    -------
    The student, in evaluation mode, of the teacher's shapes: what is gone is zero. In a run of notebooks, or inside
    ``nn.saved_to``, interrupted work goes on after the cycle that it was last saved with.

    Raises
    ------
    ValueError
        On a layer that the network lacks, or that is neither a convolution nor linear; on a goal or a share out of
        range; and on whatever would make the result wrong (see ``checked_goals``).
    """
    teacher = original(teacher).eval()
    _check(teacher, inputs, goals, share, divergence)
    student, cycle = copied(teacher), 0
    alive = {name: torch.ones(len(weight_of(student.get_submodule(name))), dtype=torch.bool) for name in goals}
    saved = Checkpoint("outputs", teacher, inputs, goals, share, batch, divergence, recovery, seed)
    if (held := saved.read(inputs.device)) is not None:
        student.load_state_dict(held["student"])
        cycle, alive = held["cycle"], {name: own.cpu() for name, own in held["alive"].items()}

    def state() -> dict[str, Any]:
        return {"student": student.state_dict(), "cycle": cycle, "alive": alive}

    outputs, left = sum(map(len, alive.values())), sum(int(own.sum()) for own in alive.values())
    total = outputs - sum(goals.values())
    with tqdm(total=total, initial=outputs - left, unit="output", disable=in_batch()) as bar:
        while missing := {name: int(own.sum()) - goals[name] for name, own in alive.items() if own.sum() > goals[name]}:
            chance = torch.Generator().manual_seed(seed * 1_000_003 + cycle)
            for name, many in missing.items():
                part = inputs[torch.randperm(len(inputs), generator=chance)[:batch].to(inputs.device)]
                living = _least_missed(student, name, alive[name], part, teacher(part), divergence)
                gone = living[: min(many, math.ceil(share * len(living)))]
                alive[name][gone] = False
                _zero(student.get_submodule(name), gone)
                bar.update(len(gone))
            _zero_unread(student, part)
            if recovery is not None:
                with saved.within(cycle):
                    _recover(student, teacher, alive, recovery, seed + cycle)
            cycle += 1
            saved.offer(state)
    saved.finish(state)
    return student.eval()


def _recover(
    student: nn.Module, teacher: nn.Module, alive: Mapping[str, Tensor], recovery: Recovery, seed: int
) -> None:
    """Recover the survivors; whatever this did to the dead, biases of outputs among them, is undone."""
    held = {name: weight_of(layer) != 0 for name, layer in weight_layers(student).items()}
    with torch.enable_grad():
        recovery(student, teacher, seed=seed)
    hold(student, held)
    for name, own in alive.items():
        _zero(student.get_submodule(name), (~own).nonzero()[:, 0])


def _check(teacher: nn.Module, inputs: Tensor, goals: Mapping[str, int], share: float, divergence: Divergence) -> None:
    layers = weight_layers(teacher)
    for name, goal in goals.items():
        if not isinstance(layers.get(name), nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            raise ValueError(f"the network has no convolution or linear layer {name!r}; it has {', '.join(layers)}")
        rows = len(weight_of(layers[name]))
        if not 1 <= goal <= rows:
            raise ValueError(f"layer {name!r} has {rows} outputs and can keep 1..{rows}, got {goal}")
    if not 0 < share <= 1:
        raise ValueError(f"share must lie above 0 and up to 1, got {share}")
    checked_goals(teacher, inputs, dict.fromkeys(goals, 0.5), divergence)


def _least_missed(
    student: nn.Module, name: str, alive: Tensor, inputs: Tensor, goal: Any, divergence: Divergence
) -> Tensor:
    """The outputs of a layer that are alive, those first without which the divergence would be least, each alone."""
    layer, living, caused = student.get_submodule(name), alive.nonzero()[:, 0], []
    with Suffix(student, layer, inputs) as suffix:
        for output in living.split(1):
            with ExitStack() as zeros:
                for tensor in _own(layer):
                    zeros.enter_context(zeroed(tensor, output.to(tensor.device)))
                caused.append(divergence(suffix(), goal).reshape(()))
    return living[torch.stack(caused).cpu().argsort(stable=True)]


def _own(layer: nn.Module) -> list[Tensor]:
    """A layer's weight, and its bias if it has one: an output's share of both is at the same index."""
    bias = bias_of(layer)
    return [weight_of(layer)] if bias is None else [weight_of(layer), bias]


def _zero(layer: nn.Module, outputs: Tensor) -> None:
    for tensor in _own(layer):
        tensor[outputs.to(tensor.device)] = 0


def _zero_unread(student: nn.Module, inputs: Tensor) -> None:
    """Zero the weights that are multiplied with nothing but zeros on all of the inputs.

    Not those of a layer by which the answer would change: the network uses its weight elsewhere, too.
    """
    parts = inputs.split(PART)
    for layer in weight_layers(student).values():
        if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            continue
        vectors = (input_vectors(layer, x) for part in parts for x, _ in calls(student, layer, part))
        read = [(own != 0).any(1) for own in vectors]  # [groups, k]
        if not read or (own := torch.stack(read).any(0)).all():
            continue
        held, answer = matrix_of(layer), student(parts[0])
        put_matrix(layer, held * own.repeat_interleave(len(held) // len(own), dim=0))
        if not agree(student(parts[0]), answer):
            put_matrix(layer, held)
