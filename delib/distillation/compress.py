"""A network compressed in one call: norms folded, pruned inside distillation, levels in the loop, ready for a file."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor, nn

from delib.coding.quantized import Quantized
from delib.distillation.distill import distill
from delib.distillation.fake_quantize import rate_aware
from delib.distillation.pruning import GradualPruning
from delib.distillation.recipe import Objective, Recipe
from delib.evolution.check import checked_goals, first_answer
from delib.layerwise.compress import finalize
from delib.nn.batchnorm import folded, norm_pairs, unfolded
from delib.nn.layers import copied, float32_bytes, original, weight_layers, weight_of

# How long ``compress`` takes, by name. Adam's horizon is long, as its mean squared gradients are what criteria read.
STANDARD = Recipe(steps=2000, batch=64, rate=0.01, horizon=500)
RECIPES = {
    "brief": replace(STANDARD, steps=500),
    "standard": STANDARD,
    "thorough": replace(STANDARD, steps=20000, average=0.995),
}

LOOKED = 256  # inputs that curvatures are measured on, one backward pass each


def compress(
    network: nn.Module,
    inputs: Tensor,
    sparsity: float = 0.9,
    bits: int = 4,
    *,
    recipe: Recipe | str = "standard",
    objective: Objective = Objective(),  # noqa: B008 (frozen)
    multiplier: float | None = None,
    seed: int = 0,
) -> Quantized:
    """Compress a trained network, without labels, into what ``save`` writes and the network itself can load.

    Batch norms are folded into their layers. Then a student is distilled from the network while cycles of evolution
    zero candidate sets across all layers (see ``GradualPruning``), and for some steps more with its weights at levels
    of least error and bits (see ``rate_aware``), where further weights may die. At the end the norms are there again,
    without effect.

    Parameters
    ----------
    network : nn.Module
        Its values are left as they are; it is put into evaluation mode. Its linear and convolutional layers, as far as
        they are called, become sparse together.
    inputs : Tensor [n, ...]
        What the network is meant for, a thousand or more; the student learns from nothing else.
    sparsity : float
        Share of the weights of these layers that is zero at least. How sparse each layer becomes, comes out.
    bits : int
        Bits per survivor: at most 2**bits levels per layer.
    recipe : Recipe or str
        The distillation in all, or its name in ``RECIPES``. Three quarters of the steps prune and recover, one quarter
        has the weights at their levels, at half the rate: weights are few only towards the end of the first, and both
        need time to learn.
    objective : Objective
        What is compared with the network's answers.
    multiplier : float, optional
        Divergence that a bit of the file is worth; by default a share of what pruning cost (see ``rate_aware``). More
        makes the file smaller, and the student worse.
    seed : int
        The same seed on the same device gives the same bytes.

    Returns
    -------
    Quantized
        Every tensor of the network's state dict.

    Raises
    ------
    ValueError
        On a sparsity, a number of bits or a recipe that is none, and on whatever would make the result wrong (see
        ``evolution.checked_goals``).
    """
    if not 0 <= sparsity < 1 or not 1 <= bits <= 16:
        raise ValueError(f"sparsity must lie in 0..<1 and bits in 1..16, got {sparsity} and {bits}")
    pruning, rounding = stages(recipe)
    network = original(network).eval()
    goals = checked_goals(network, inputs, sparsity, objective.divergence)
    pairs = norm_pairs(network, inputs[:8])
    teacher = folded(network, pairs)
    student = copied(teacher)
    distill(
        student, teacher, inputs, pruning, objective=objective, during=pruned_to(student, goals, sparsity), seed=seed
    )
    looked, divergence = inputs[:LOOKED], objective.divergence
    quantization = rate_aware(student, teacher, looked, bits, divergence=divergence, multiplier=multiplier)
    distill(student, teacher, inputs, rounding, objective=objective, during=quantization, seed=seed + 1)
    return finalize(unfolded(student, network, pairs), quantization.tensors(student), bits)


def stages(recipe: Recipe | str) -> tuple[Recipe, Recipe]:
    """The recipes of the two stages of ``compress``: pruning, and training with the weights at their levels.

    Raises ValueError for a name that is not in ``RECIPES``.
    """
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise ValueError(f"no recipe is called {recipe!r}; choose one of {', '.join(RECIPES)}")
        recipe = RECIPES[recipe]
    last = recipe.steps // 4
    return replace(recipe, steps=recipe.steps - last), replace(recipe, steps=last, rate=recipe.rate / 2)


def pruned_to(student: nn.Module, names: Collection[str], sparsity: float) -> GradualPruning:
    """Pruning of the named layers together to at least a sparsity; other layers lose nothing."""
    counts = {name: weight_of(layer).numel() for name, layer in weight_layers(student).items()}
    zeros = math.ceil(sparsity * sum(counts[name] for name in names))
    return GradualPruning(sum(counts.values()) - zeros, fixed=set(counts) - set(names))


def cost(network: nn.Module, inputs: Tensor, recipe: Recipe | str = "standard") -> tuple[float, int]:
    """Seconds and bytes that ``compress`` will take, measured on two steps of it.

    The bytes are those of the tensors: teacher, student, its values, their units, gradients, average and Adam's two
    moments, and what a batch's backward pass remembers. The libraries come on top. Raises ValueError where the network
    does not take the inputs.
    """
    pruning, rounding = stages(recipe)
    network = copied(network)
    first_answer(network, inputs)
    batch = inputs[torch.arange(pruning.batch) % len(inputs)]
    remembered: dict[int, int] = {}

    def remember(tensor: Tensor) -> Tensor:
        remembered[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        network(batch)
    seconds = []
    for steps in (1, 3):
        begin = time.perf_counter()
        distill(copied(network), network, batch, replace(pruning, steps=steps))
        seconds.append(time.perf_counter() - begin)
    each = max(0.0, (seconds[1] - seconds[0]) / 2)  # of a tiny network chance may take longer than two steps
    return each * (pruning.steps + rounding.steps), 8 * float32_bytes(network) + sum(remembered.values())
