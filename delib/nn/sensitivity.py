"""How strongly a network's divergence reacts to small errors of a layer's outputs: its curvature there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delib.nn.divergence import Divergence
from delib.nn.hooks import Passed, watched_calls
from delib.nn.trace import mapped, tensors_in

UNUSED: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}  # of autograd: unused means a slope of zero

FINEST = 64  # cells a side of maps of positions: finer, those of an early layer would take more memory than they tell
LEAST = 0.02  # of a position's mean weight, added everywhere: what seems not to matter on these inputs may on others


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
    slopes = _slopes(answer, calls, divergence, torch.Generator().manual_seed(seed))
    squares = [(call.module, _rows(call.module, slope.square())) for call, slope in zip(calls, slopes, strict=True)]
    return {
        name: _bounded(torch.stack([rows for module, rows in squares if module is layer]).mean(0))
        for name, layer in layers.items()
    }


def position_sensitivities(
    network: nn.Module,
    layers: Mapping[str, nn.Module],
    rows: Mapping[str, Tensor],
    inputs: Tensor,
    divergence: Divergence,
    draws: int = 4,
    batch: int = 8,
) -> dict[str, Tensor]:
    """How strongly the divergence reacts to errors at each position of convolutions' outputs, on each input: for each
    of ``layers`` [n, height, width] of mean 1, no finer than ``FINEST``.

    The curvature at an output and a position is taken as that of the output, ``rows`` as of ``sensitivities``, times
    that of the position: the mean over outputs of (Jᵀ √H u)² / rows, estimated as there by several ``draws`` of signs
    for ``batch`` inputs at a time. As few draws say little of one position, it takes the mean of itself and its
    neighbours, 3 x 3, and ``LEAST`` more. Calls of one layer add up. Positions that the divergence does not react to at
    all count alike.
    """
    chance = torch.Generator().manual_seed(0)
    found: dict[str, list[Tensor]] = {name: [] for name in layers}
    for part in inputs.split(batch):
        answer, calls = _forward(network, layers.values(), part)
        drawn = [
            _positions(calls, _slopes(answer, calls, divergence, chance, again=True), layers, rows)
            for _ in range(draws)
        ]
        for name, parts in found.items():
            parts.append(torch.stack([maps[name] for maps in drawn]).sum(0) * len(part))  # of a mean over the part
    return {name: _smoothed(torch.cat(parts)) for name, parts in found.items()}


def curvatures(
    network: nn.Module, names: Iterable[str], inputs: Tensor, divergence: Divergence, seed: int = 0
) -> dict[str, Tensor]:
    """The divergence's second derivatives by the weights of layers or by biases, named as in ``weights_and_biases``:
    their mean over a row's weights, [rows].

    Of one input's divergence, averaged over ``inputs``: the Gauss-Newton matrix's diagonal, estimated as in
    ``sensitivities`` but sent back to the parameters themselves, input by input. A weight of a convolution acts at all
    positions at once, so what it does at each may add up. Bounded as there; all alike where a layer is never called.
    """
    chance = torch.Generator().manual_seed(seed)
    modules, own = dict(network.named_modules()), dict(network.named_parameters(remove_duplicate=False))
    parameters = {name: own[f"{name}.weight".lstrip(".") if name in modules else name] for name in names}
    sums = [torch.zeros(len(p), dtype=torch.float64, device=p.device) for p in parameters.values()]
    for part in inputs.split(1):
        with torch.enable_grad(), _differentiable(network):
            answers, roots = _rooted(network(part), divergence, chance)
            slopes = torch.autograd.grad(answers, list(parameters.values()), roots, **UNUSED)
        for total, slope in zip(sums, slopes, strict=True):
            total += slope.double().square().reshape(len(total), -1).mean(1)
    return {name: _bounded(total / len(inputs)) for name, total in zip(parameters, sums, strict=True)}


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


def _slopes(
    answer: Any, calls: Sequence[Passed], divergence: Divergence, chance: torch.Generator, again: bool = False
) -> tuple[Tensor, ...]:
    """Jᵀ √H u by the output of each call, with random signs u; ``again`` keeps the graph for another draw."""
    answers, roots = _rooted(answer, divergence, chance)
    return torch.autograd.grad(answers, [call.output for call in calls], roots, retain_graph=again, **UNUSED)


def _positions(
    calls: Sequence[Passed], slopes: Sequence[Tensor], layers: Mapping[str, nn.Module], rows: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """For each layer the mean of slopes² / rows over outputs, calls summed: [n, 1, height, width]."""
    sums: dict[str, Tensor] = {}
    for name, layer in layers.items():
        own = [slope for call, slope in zip(calls, slopes, strict=True) if call.module is layer]
        size = min(own[0].shape[2], FINEST), min(own[0].shape[3], FINEST)
        means = [(slope.square() / rows[name].to(slope)[:, None, None]).mean(1, keepdim=True) for slope in own]
        sums[name] = torch.stack([F.adaptive_avg_pool2d(mean, size) for mean in means]).sum(0)
    return sums


def _smoothed(maps: Tensor) -> Tensor:
    """Means of neighbours, by their mean, and ``LEAST``: [n, height, width]."""
    means = F.avg_pool2d(maps, 3, 1, 1, count_include_pad=False)[:, 0]
    return LEAST + (means / means.mean() if means.any() else torch.ones_like(means))


def _floats(answer: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_in(answer) if tensor.is_floating_point()]


def _curvature(diverged: Tensor, variables: list[Tensor], chance: torch.Generator) -> list[Tensor]:
    """An estimate of the diagonal of ∂²diverged/∂variables², in the variables' shapes: v·(H v) with random signs v."""
    slopes = torch.autograd.grad(diverged, variables, create_graph=True, **UNUSED)
    signs = [_signs(variable, chance) for variable in variables]
    curved = [(slope, v) for slope, v in zip(slopes, signs, strict=True) if slope.requires_grad]
    if not curved:
        return [torch.zeros_like(variable) for variable in variables]
    bent = torch.autograd.grad([slope for slope, _ in curved], variables, [v for _, v in curved], **UNUSED)
    return [v * hv for v, hv in zip(signs, bent, strict=True)]


def _output_curvature(answer: Any, divergence: Divergence, chance: torch.Generator) -> list[Tensor]:
    """The diagonal of the divergence's second derivatives by a network's outputs, where student and teacher agree."""
    goal = mapped(answer, torch.detach)
    with torch.enable_grad():
        ours = mapped(goal, lambda t: t.clone().requires_grad_() if t.is_floating_point() else t)
        return [curvature.clamp_min(0) for curvature in _curvature(divergence(ours, goal), _floats(ours), chance)]


def _rooted(answer: Any, divergence: Divergence, chance: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
    """Those of a network's outputs that depend on its parameters, and for each √H u, with random signs u."""
    curvatures = _output_curvature(answer, divergence, chance)
    reached = [(t, h.sqrt() * _signs(h, chance)) for t, h in zip(_floats(answer), curvatures) if t.requires_grad]
    return [t for t, _ in reached], [root for _, root in reached]


def _signs(like: Tensor, chance: torch.Generator) -> Tensor:
    return (torch.randint(0, 2, like.shape, generator=chance) * 2 - 1).to(like)


def _rows(layer: nn.Module, values: Tensor) -> Tensor:
    """Values in the shape of a layer's output, their means over inputs and positions: [rows]."""
    return values.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1).mean(1)


def _bounded(rows: Tensor) -> Tensor:
    """Bounded below at a thousandth of the largest; all alike where none is above zero."""
    most = rows.max()
    return rows.clamp_min(1e-3 * most) if most > 0 else torch.ones_like(rows)
