"""What is checked of a network before it is evolved, so that a result is right or refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from delib.evolution.assess import Suffix
from delib.nn.divergence import Divergence
from delib.nn.hooks import end, never_called, up_to
from delib.nn.layers import own_tensors, weight_keys, weight_layers, weight_of
from delib.nn.trace import agree, mapped

EXAMPLES = 2  # inputs that the network is tried on
NOTEWORTHY = 0.01  # share of all parameters from which on one that stays dense is named


@torch.no_grad()
def checked_goals(
    network: nn.Module,
    inputs: Tensor,
    targets: float | Mapping[str, float],
    divergence: Divergence,
    horizon: int | None = None,
) -> dict[str, int]:
    """How many weights of each layer are to be zero (see ``zero_goals``), once the network has been tried.

    Parameters
    ----------
    network : nn.Module
        As it was when this returns.
    inputs : Tensor [n, ...]
        The first ``EXAMPLES`` of them are used.
    targets : float or mapping of layer name to float
        One number goes for every layer that the network calls; a warning names what it leaves dense.
    divergence : Divergence
        Of two answers of the network, or where there is a ``horizon`` of what it is measured at (see ``Cycle``).

    Raises
    ------
    ValueError
        In one line, if the network does not take the inputs or answers differently each time; on a layer of
        ``targets`` that it lacks, never calls, or whose effects cannot be followed; on recurrent layers, if ``targets``
        is one number; if the divergence cannot tell its answers apart.
    """
    goals = zero_goals(network, targets)
    example, _ = first_answer(network, inputs)
    uncalled = never_called(network, goals, example)
    if isinstance(targets, Mapping) and uncalled:
        raise ValueError(
            f"layer {uncalled[0]!r} is never called: the network uses its weight otherwise, or not at all; leave it out"
        )
    goals = {name: goal for name, goal in goals.items() if name not in uncalled}
    if not isinstance(targets, Mapping):
        _refuse_recurrent(network)
        _warn_of_dense(network, uncalled)
    for name in goals:
        layer = network.get_submodule(name)
        part = up_to(network, end(network, layer, example[:1], horizon))
        _check_layer(part, layer, name, example, divergence)
    return goals


def first_answer(network: nn.Module, inputs: Tensor) -> tuple[Tensor, Any]:
    """The inputs that the network is tried on, and its answer, which must be the same twice.

    Raises ValueError, in one line, where the network does not take the inputs or answers differently each time.
    """
    if not isinstance(inputs, Tensor):
        raise ValueError(
            f"inputs must be one tensor [n, ...], got {type(inputs).__name__}; a network that takes several can be "
            "wrapped into a module that takes one"
        )
    example = inputs[:EXAMPLES]
    try:
        answer, again = network(example), network(example)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise ValueError(
            f"the network does not take the inputs, {tuple(example.shape)} of {example.dtype}: {reason}"
        ) from error
    if not agree(again, answer):
        raise ValueError(
            "the network answers differently each time it is asked the same; take out what draws at random"
        )
    return example, answer


def zero_goals(network: nn.Module, targets: float | Mapping[str, float]) -> dict[str, int]:
    """How many weights of each layer are to be zero: sparsity times weights, rounded to the nearest whole number.

    Raises ValueError, naming the layer, on one that the network lacks or a sparsity outside 0..1.
    """
    layers = weight_layers(network)
    wanted = dict(targets) if isinstance(targets, Mapping) else dict.fromkeys(layers, targets)
    for name, target in wanted.items():
        if name not in layers:
            raise ValueError(f"the network has no weight layer {name!r}; it has {', '.join(layers)}")
        if not 0 <= target <= 1:
            raise ValueError(f"the sparsity of layer {name!r} must lie in 0..1, got {target}")
    return {name: round(target * weight_of(layers[name]).numel()) for name, target in wanted.items()}


def _refuse_recurrent(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            raise ValueError(
                f"layer {name!r} of type {type(module).__name__} cannot be sparsified; name the layers that should be, "
                "by a mapping of layer name to sparsity"
            )


def _warn_of_dense(network: nn.Module, uncalled: list[str]) -> None:
    """Warn of the larger parameters that one sparsity for all layers does not reach."""
    names = {name for name, _ in network.named_parameters()}
    parameters = {name: tensor for name, tensor in own_tensors(network).items() if name in names}
    sparse = {key for name, key in weight_keys(network).items() if name not in uncalled}
    least = NOTEWORTHY * sum(tensor.numel() for tensor in parameters.values())
    large = [name for name, tensor in parameters.items() if tensor.dim() > 1 and tensor.numel() >= least]
    if dense := [name for name in large if name not in sparse]:
        warnings.warn(
            f"left dense: {', '.join(dense)}; only linear and convolutional layers that the network calls are evolved",
            stacklevel=4,
        )


def _check_layer(network: nn.Module, layer: nn.Module, name: str, example: Tensor, divergence: Divergence) -> None:
    """Without half of the layer's weights the suffix answers as the network does, and the divergence sees it."""
    with Suffix(network, layer, example) as suffix:
        answer = suffix()
        with _halved(layer):
            followed = suffix()
    with _halved(layer):
        without = network(example)
    if not agree(followed, without):
        raise ValueError(f"what layer {name!r} does to the network's answer cannot be followed: name other layers")
    try:
        # In double precision: where a layer matters little, a sum of float32 logarithms may round to below zero.
        diverged = float(divergence(_double(without), _double(answer)))
    except (TypeError, AttributeError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:150]
        raise ValueError(
            f"the divergence cannot compare outputs of type {type(answer).__name__} ({reason}); name one that does"
        ) from error
    if not diverged > 0 and not agree(without, answer):
        raise ValueError(
            f"the divergence is {diverged} though the answer with half of layer {name!r} is another; name a divergence "
            "that tells them apart, such as mse"
        )


def _double(answer: Any) -> Any:
    return mapped(answer, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


@contextmanager
def _halved(layer: nn.Module) -> Iterator[None]:
    """Inside the block every second weight is zero; without all of them a layer that normalises would answer NaN."""
    weight = weight_of(layer)
    values = weight.clone()
    weight.mul_(torch.arange(weight.numel(), device=weight.device).view(weight.shape) % 2)
    try:
        yield
    finally:
        weight.copy_(values)
