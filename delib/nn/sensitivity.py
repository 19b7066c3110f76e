"""How strongly a network's divergence reacts to small errors of a layer's outputs: its curvature there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from delib.nn.divergence import Divergence
from delib.nn.hooks import Passed, watched_calls
from delib.nn.trace import mapped, tensors_in


def sensitivity(network: nn.Module, layer: nn.Module, inputs: Tensor, divergence: Divergence, seed: int = 0) -> Tensor:
    """The mean over inputs, positions and calls of ∂²divergence/∂z², for each output channel z of a layer: [rows].

    The divergence, a mean over ``inputs`` [n, ...], is that of the network from itself: times n, the result is the
    curvature of one input's divergence. It is estimated by Hutchinson's v·(H v) with random signs v (Bekas, Kokiopoulou
    and Saad 2007), and bounded below at a thousandth of the largest: an output that seems not to matter on the
    calibration inputs may matter on others. A divergence without curvature at zero makes all rows alike.
    Raises ValueError if the layer is never called.
    """
    answer, calls = _forward(network, [layer], inputs)
    if not calls:
        raise ValueError("the layer is never called by the network's forward pass")
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        goal = network(inputs)
    with torch.enable_grad():
        diagonal = _curvature(divergence(answer, goal), [call.output for call in calls], chance)
    return _bounded(torch.stack([_rows(layer, curvature) for curvature in diagonal]).mean(0))


def sensitivities(
    network: nn.Module, layers: Mapping[str, nn.Module], inputs: Tensor, divergence: Divergence, seed: int = 0
) -> dict[str, Tensor]:
    """``sensitivity`` of many layers in one backward pass, with less noise: [rows] by layer name.

    The curvature H of the divergence is taken at the network's outputs alone, as if it were diagonal there, and sent
    back: the mean of (Jᵀ √H u)² over inputs and positions, u random signs and J the outputs' derivatives by a layer's
    outputs. That is the Gauss-Newton matrix's diagonal (Martens and Grosse 2015, section 2), as a sum of squares.
    Raises ValueError if a layer is never called.
    """
    answer, calls = _forward(network, layers.values(), inputs)
    called = {call.module for call in calls}
    if lacking := [name for name, layer in layers.items() if layer not in called]:
        raise ValueError(f"the network's forward pass never calls layer {min(lacking)!r}")
    chance = torch.Generator().manual_seed(seed)
    curvatures = _output_curvature(answer, divergence, chance)
    reached = [(t, h.sqrt() * _signs(h, chance)) for t, h in zip(_floats(answer), curvatures) if t.requires_grad]
    answers, roots = zip(*reached, strict=True)
    outputs = [call.output for call in calls]
    slopes = torch.autograd.grad(answers, outputs, roots, allow_unused=True, materialize_grads=True)
    squares = [(call.module, _rows(call.module, slope.square())) for call, slope in zip(calls, slopes, strict=True)]
    return {
        name: _bounded(torch.stack([rows for module, rows in squares if module is layer]).mean(0))
        for name, layer in layers.items()
    }


def weight_curvatures(
    network: nn.Module, layers: Mapping[str, nn.Module], inputs: Tensor, divergence: Divergence, seed: int = 0
) -> dict[str, Tensor]:
    """The mean over a row's weights of the divergence's second derivatives by them, [rows] by layer name.

    The sensitivity of the row's outputs, of one input's divergence, times the squared inputs that the layer's weights
    meet, summed over positions and averaged over inputs and channels: both are taken as independent, and padding as met
    like the rest.
    """
    found = sensitivities(network, layers, inputs, divergence, seed)
    with torch.no_grad(), watched_calls(layers.values()) as calls:
        network(inputs)
    for name, layer in layers.items():
        met = 0.0
        for call in calls:
            if call.module is layer:
                channels = call.output.shape[-1 if isinstance(layer, nn.Linear) else 1]
                met += float(call.input.square().mean()) * call.output.numel() / channels / len(inputs)
        found[name] = found[name] * len(inputs) * met
    return found


def _forward(network: nn.Module, layers: Iterable[nn.Module], inputs: Tensor) -> tuple[Any, list[Passed]]:
    """The network's answer and the calls of the layers, with the graph that derivatives need."""
    with torch.enable_grad(), _differentiable(network), watched_calls(layers, apart=True) as calls:
        answer = network(inputs)
    return answer, calls


@contextmanager
def _differentiable(network: nn.Module) -> Iterator[None]:
    """Inside the block all parameters take part in the graph: inputs may be whole numbers, and layers frozen."""
    frozen = [parameter for parameter in network.parameters() if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_()
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _floats(answer: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_in(answer) if tensor.is_floating_point()]


def _curvature(diverged: Tensor, variables: list[Tensor], chance: torch.Generator) -> list[Tensor]:
    """An estimate of the diagonal of ∂²diverged/∂variables², in the variables' shapes: v·(H v) with random signs v."""
    anyway: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    slopes = torch.autograd.grad(diverged, variables, create_graph=True, **anyway)
    signs = [_signs(variable, chance) for variable in variables]
    curved = [(slope, v) for slope, v in zip(slopes, signs, strict=True) if slope.requires_grad]
    if not curved:
        return [torch.zeros_like(variable) for variable in variables]
    bent = torch.autograd.grad([slope for slope, _ in curved], variables, [v for _, v in curved], **anyway)
    return [v * hv for v, hv in zip(signs, bent, strict=True)]


def _output_curvature(answer: Any, divergence: Divergence, chance: torch.Generator) -> list[Tensor]:
    """The diagonal of the divergence's second derivatives by a network's outputs, where student and teacher agree."""
    goal = mapped(answer, torch.detach)
    with torch.enable_grad():
        ours = mapped(goal, lambda t: t.clone().requires_grad_() if t.is_floating_point() else t)
        return [curvature.clamp_min(0) for curvature in _curvature(divergence(ours, goal), _floats(ours), chance)]


def _signs(like: Tensor, chance: torch.Generator) -> Tensor:
    return (torch.randint(0, 2, like.shape, generator=chance) * 2 - 1).to(like)


def _rows(layer: nn.Module, values: Tensor) -> Tensor:
    """Values in the shape of a layer's output, their means over inputs and positions: [rows]."""
    return values.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1).mean(1)


def _bounded(rows: Tensor) -> Tensor:
    """Bounded below at a thousandth of the largest; all alike where none is above zero."""
    most = rows.max()
    return rows.clamp_min(1e-3 * most) if most > 0 else torch.ones_like(rows)
