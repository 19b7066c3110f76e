"""TODO"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from delib.nn.divergence import Divergence
from delib.nn.layers import weight_of


def importance(network: nn.Module, layer: nn.Module, inputs: Tensor, divergence: Divergence, seed: int = 0) -> Tensor:
    """How strongly the divergence from the network itself reacts to a small error of each output of a layer: [rows].

    That is the mean, over inputs and positions, of ∂²divergence/∂z² for the layer's outputs z, estimated by
    Hutchinson's v·(H v) with random signs v (Bekas, Kokiopoulou and Saad 2007). Rows are kept within a thousandth of
    the most important one: what seems not to matter on the calibration inputs may matter on others. A
    divergence without curvature at zero makes all rows alike.
    """
    outputs: list[Tensor] = []
    hook = layer.register_forward_hook(lambda *call: outputs.append(call[2]))
    try:
        with torch.enable_grad():
            answer = network(inputs.clone().requires_grad_())
    finally:
        hook.remove()
    if not outputs:
        raise ValueError("the layer is never called by the network's forward pass")
    with torch.no_grad():
        goal = network(inputs)
    with torch.enable_grad():
        slopes = torch.autograd.grad(divergence(answer, goal), outputs, create_graph=True)
        chance = torch.Generator().manual_seed(seed)
        signs = [_signs(z, chance) for z in outputs]
        bends = torch.autograd.grad(slopes, outputs, signs)
    axis = -1 if isinstance(layer, nn.Linear) else 1
    rows = torch.stack([(v * b).movedim(axis, 0).flatten(1).mean(1) for v, b in zip(signs, bends, strict=True)]).sum(0)
    return _bounded(rows)


def sensitivities(
    network: nn.Module, layers: Mapping[str, nn.Module], inputs: Tensor, divergence: Divergence, seed: int = 0
) -> dict[str, Tensor]:
    """``importance`` of many layers at a fraction of its cost and of its noise, up to a factor of each layer: [rows].

    The curvature H of the divergence is taken at the network's outputs alone, as if it were diagonal there, and sent
    back: the mean of (Jᵀ √H u)² over inputs and positions, u random signs and J the outputs' derivatives by a layer's
    outputs. That is the Gauss-Newton matrix's diagonal (Martens and Grosse 2015, section 2), as a sum of squares.
    ``network`` answers with a tensor or a sequence of tensors. Raises ValueError if a layer is never called.
    """
    calls: list[tuple[str, Tensor]] = []
    hooks = [m.register_forward_hook(lambda *call, name=n: calls.append((name, call[2]))) for n, m in layers.items()]
    try:
        with torch.enable_grad():
            answer = network(inputs.clone().requires_grad_())
    finally:
        for hook in hooks:
            hook.remove()
    if lacking := set(layers) - {name for name, _ in calls}:
        raise ValueError(f"the network's forward pass never calls layer {min(lacking)!r}")
    chance = torch.Generator().manual_seed(seed)
    answers = [answer] if isinstance(answer, Tensor) else list(answer)
    roots = [h.sqrt() * _signs(h, chance) for h in _output_curvature(answer, divergence, chance)]
    sums = {name: torch.zeros(weight_of(layer).shape[0]).to(weight_of(layer)) for name, layer in layers.items()}
    behind = torch.autograd.grad(answers, [output for _, output in calls], roots)
    for (name, _), slopes in zip(calls, behind, strict=True):
        axis = -1 if isinstance(layers[name], nn.Linear) else 1
        sums[name] += slopes.square().movedim(axis, 0).flatten(1).mean(1)
    return {name: _bounded(rows) for name, rows in sums.items()}


def _output_curvature(answer: Any, divergence: Divergence, chance: torch.Generator) -> list[Tensor]:
    """The diagonal of the divergence's second derivatives by a network's outputs, where student and teacher agree."""
    single = isinstance(answer, Tensor)
    goal = [tensor.detach() for tensor in ([answer] if single else answer)]
    with torch.enable_grad():
        ours = [tensor.clone().requires_grad_() for tensor in goal]
        diverged = divergence(ours[0], goal[0]) if single else divergence(ours, goal)
        slopes = torch.autograd.grad(diverged, ours, create_graph=True)
        signs = [_signs(tensor, chance) for tensor in ours]
        bends = torch.autograd.grad(slopes, ours, signs)
    return [(v * b).clamp_min(0) for v, b in zip(signs, bends, strict=True)]


def _signs(like: Tensor, chance: torch.Generator) -> Tensor:
    return (torch.randint(0, 2, like.shape, generator=chance) * 2 - 1).to(like)


def _bounded(rows: Tensor) -> Tensor:
    """Within a thousandth of the most important one; all alike where none is."""
    most = rows.max()
    return rows.clamp_min(1e-3 * most) if most > 0 else torch.ones_like(rows)
