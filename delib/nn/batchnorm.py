"""Batch norms folded into the layers before them, and back: a network at rest needs one shift a channel, no more."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from delib.nn.layers import WEIGHT_LAYERS


@torch.no_grad()
def norm_pairs(network: nn.Module, example: Tensor) -> dict[str, str]:
    """The weight layers whose output goes straight into a batch norm, each with the norm's name (found by a pass)."""
    made: dict[int, tuple[str, Tensor]] = {}
    pairs: dict[str, str] = {}
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, WEIGHT_LAYERS):
            hooks.append(module.register_forward_hook(lambda _, a, y, name=name: made.update({id(y): (name, y)})))
        elif isinstance(module, _BatchNorm):

            def entered(_: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                if id(args[0]) in made:
                    pairs[made[id(args[0])][0]] = name

            hooks.append(module.register_forward_pre_hook(entered))
    try:
        network(example)
    finally:
        for hook in hooks:
            hook.remove()
    return pairs


def folded(network: nn.Module, pairs: Mapping[str, str]) -> nn.Module:
    """A copy in evaluation mode that computes the same with each pair's norm folded into its layer's weight and bias.

    The norm's place is taken by ``nn.Identity``, so that every module keeps its name.
    """
    network = copy.deepcopy(network).eval()
    for name, norm_name in pairs.items():
        layer, norm = network.get_submodule(name), network.get_submodule(norm_name)
        assert isinstance(norm, _BatchNorm)
        if isinstance(layer, nn.Linear):
            network.set_submodule(name, fuse_linear_bn_eval(layer, norm))
        elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            network.set_submodule(name, fuse_conv_bn_eval(layer, norm))
        network.set_submodule(norm_name, nn.Identity())
    return network


@torch.no_grad()
def unfolded(network: nn.Module, like: nn.Module, pairs: Mapping[str, str]) -> nn.Module:
    """A copy of ``like``, norms and all, that computes what the ``folded`` network does.

    A norm keeps the shift alone; its mean is 0, its variance 1 less its epsilon, its scale 1: constants, which cost
    next to nothing in a file.
    """
    state = dict(network.state_dict())
    result = copy.deepcopy(like).eval()
    for name, norm_name in pairs.items():
        norm = result.get_submodule(norm_name)
        assert isinstance(norm, _BatchNorm)
        bias = state[f"{name}.bias"]
        if getattr(result.get_submodule(name), "bias", None) is None:
            del state[f"{name}.bias"]
        else:
            state[f"{name}.bias"] = torch.zeros_like(bias)
        state[f"{norm_name}.weight"] = torch.ones_like(bias)
        state[f"{norm_name}.bias"] = bias
        state[f"{norm_name}.running_mean"] = torch.zeros_like(bias)
        state[f"{norm_name}.running_var"] = torch.full_like(bias, 1 - norm.eps)
        state[f"{norm_name}.num_batches_tracked"] = torch.zeros((), dtype=torch.long)
    result.load_state_dict(state)
    return result
