"""Batch-norm folding and its reverse: in evaluation mode a norm is one scale and one shift per channel."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from delib.nn.hooks import watched_calls
from delib.nn.layers import WEIGHT_LAYERS


@torch.no_grad()
def norm_pairs(network: nn.Module, example: Tensor) -> dict[str, str]:
    """The weight layers whose output goes straight into a batch norm, each with that norm's name, found by a pass."""
    names: dict[nn.Module, str] = {
        m: name for name, m in network.named_modules() if isinstance(m, (*WEIGHT_LAYERS, _BatchNorm))
    }
    with watched_calls(names) as calls:  # holds the outputs, so that no other tensor takes their identity
        network(example)
    made: dict[int, str] = {}
    pairs: dict[str, str] = {}
    for module, entered, output in calls:
        if not isinstance(module, _BatchNorm):
            made[id(output)] = names[module]
        elif id(entered) in made:
            pairs[made[id(entered)]] = names[module]
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

    A norm keeps the shift alone; its mean is 0, its variance 1 less its epsilon, its scale 1: constants, which take
    almost no bytes in a file.
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
