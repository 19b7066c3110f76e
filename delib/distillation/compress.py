"""A network compressed in one call: norms folded, pruned inside distillation, levels in the loop, ready for a file."""

from __future__ import annotations

import math

from torch import Tensor, nn

from delib.coding.quantized import Quantized
from delib.distillation.distill import distill
from delib.distillation.fake_quantize import FakeQuantization
from delib.distillation.pruning import GradualPruning
from delib.distillation.recipe import Objective, Recipe
from delib.evolution.check import checked_goals
from delib.layerwise.compress import finalize
from delib.nn.batchnorm import folded, norm_pairs, unfolded
from delib.nn.layers import copied, original, weight_layers, weight_of


def compress(
    network: nn.Module,
    inputs: Tensor,
    sparsity: float = 0.9,
    bits: int = 4,
    *,
    steps: int = 2000,
    batch: int = 64,
    objective: Objective = Objective(),  # noqa: B008 (frozen)
    seed: int = 0,
) -> Quantized:
    """Compress a trained network, without labels, into what ``save`` writes and the network itself can load.

    Batch norms are folded into their layers. Then a student is distilled from the network while cycles of evolution
    zero candidate sets across all layers (see ``GradualPruning``), and for some steps more with its weights at their
    levels (see ``FakeQuantization``). At the end the norms are there again, without effect.

    Parameters
    ----------
    network : nn.Module
        Its values are left as they are; it is put into evaluation mode. Its linear and convolutional layers, as far as
        they are called, become sparse together.
    inputs : Tensor [n, ...]
        What the network is meant for, a thousand or more; the student learns from nothing else.
    sparsity : float
        Share of the weights of these layers that is zero. How sparse each layer becomes, comes out.
    bits : int
        Bits per survivor: at most 2**bits levels per layer.
    steps, batch : int
        Steps of distillation in all, and inputs in each. Three quarters of the steps prune and recover, one quarter has
        the weights at their levels: weights are few only towards the end of the first, and both need time to learn.
    objective : Objective
        What is compared with the network's answers.
    seed : int
        The same seed on the same device gives the same bytes.

    Returns
    -------
    Quantized
        Every tensor of the network's state dict.

    Raises
    ------
    ValueError
        On a sparsity or a number of bits out of range, and on whatever would make the result wrong (see
        ``evolution.checked_goals``).
    """
    if not 0 <= sparsity < 1 or not 1 <= bits <= 16:
        raise ValueError(f"sparsity must lie in 0..<1 and bits in 1..16, got {sparsity} and {bits}")
    network = original(network).eval()
    goals = checked_goals(network, inputs, sparsity, objective.divergence)
    pairs = norm_pairs(network, inputs[:8])
    teacher = folded(network, pairs)
    student = copied(teacher)
    counts = {name: weight_of(layer).numel() for name, layer in weight_layers(student).items()}
    left = sum(counts.values()) - math.ceil(sparsity * sum(counts[name] for name in goals))
    evolution, quantization = GradualPruning(left, fixed=set(counts) - set(goals)), FakeQuantization(bits)
    pruning = Recipe(steps - steps // 4, batch, rate=0.01, horizon=500)
    rounding = Recipe(steps // 4, batch, rate=0.005)
    distill(student, teacher, inputs, pruning, objective=objective, during=evolution, seed=seed)
    distill(student, teacher, inputs, rounding, objective=objective, during=quantization, seed=seed + 1)
    return finalize(unfolded(student, network, pairs), quantization.tensors(student), bits)
