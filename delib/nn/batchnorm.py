"""Batch-norm folding and its reverse: in evaluation mode a norm is one scale and one shift per channel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from delib.nn.layers import WEIGHT_LAYERS, bias_of, copied, own_tensors, put_tensors, weight_of
from delib.nn.trace import READERS, agree, forwards_replaced, mapped, tensors_in


class _Output(Tensor):
    """What a ``layer`` returned; ``takers`` are the norms that it went into, with None for any other use."""

    layer: nn.Module
    takers: list[nn.Module | None]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        if tensors_in(result) or getattr(func, "__name__", "") in READERS:  # not just its shape, device and the like
            for output in _outputs((args, kwargs)):
                output.takers.append(None)
        return result


def _outputs(value: Any) -> list[_Output]:
    return [tensor for tensor in tensors_in(value) if isinstance(tensor, _Output)]


@torch.no_grad()
def norm_pairs(network: nn.Module, example: Tensor) -> dict[str, str]:
    """The weight layers whose output goes into a batch norm and nowhere else, each with that norm's name.

    Found by the data flow of one pass in evaluation mode. Layer and norm are called once, the layer shares no weight,
    the norm has running statistics. The network's answer to ``example`` [n, ...] with the pairs folded is compared with
    its own: where they differ by more than rounding, as with a norm that does more than its class says, only those
    pairs are returned whose folding alone changes nothing.
    """
    network = copied(network)
    names = {module: name for name, module in network.named_modules()}
    holders = Counter(p.data_ptr() for m in network.modules() for p in m._parameters.values() if p is not None)
    made, answer = _watched_pass(network, names, example)
    calls = Counter(output.layer for output in made)
    entered = Counter(norm for output in made for norm in output.takers)
    pairs = {}
    for output in made:
        norm = output.takers[0] if len(output.takers) == 1 else None
        once = calls[output.layer] == entered[norm] == holders[weight_of(output.layer).data_ptr()] == 1
        if isinstance(norm, _BatchNorm) and once and _folds(output, norm):
            pairs[names[output.layer]] = names[norm]
    if agree(folded(network, pairs)(example), answer):
        return pairs
    return {name: norm for name, norm in pairs.items() if agree(folded(network, {name: norm})(example), answer)}


def _watched_pass(network: nn.Module, modules: Iterable[nn.Module], example: Tensor) -> tuple[list[_Output], Any]:
    """The outputs of all calls of weight layers, and the network's answer."""
    made: list[_Output] = []
    norms: list[nn.Module] = []

    def layer_forward(layer: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> _Output:
            output = forward(*args, **kwargs).as_subclass(_Output)
            output.layer, output.takers = layer, []
            made.append(output)
            return output

        return called

    def norm_forward(norm: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def called(x: Tensor) -> Any:
            for output in _outputs(x):
                output.takers.append(norm)
            norms.append(norm)
            return forward(x.as_subclass(Tensor))

        return called

    patches: dict[nn.Module, Callable[..., Any]] = {}
    patches |= {m: layer_forward(m, m.forward) for m in modules if isinstance(m, WEIGHT_LAYERS)}
    patches |= {m: norm_forward(m, m.forward) for m in modules if isinstance(m, _BatchNorm)}
    with forwards_replaced(patches):
        answer = network(example)
    for output in _outputs(answer):
        output.takers.append(None)
    several = {norm for norm, count in Counter(norms).items() if count > 1}
    for output in made:
        output.takers += [None for norm in output.takers if norm in several]
    return made, mapped(answer, lambda tensor: tensor.as_subclass(Tensor))


def _folds(output: _Output, norm: _BatchNorm) -> bool:
    """Whether the norm's channels are the layer's outputs, and its statistics constants."""
    axes = 2 if isinstance(output.layer, nn.Linear) else weight_of(output.layer).dim()
    return output.dim() == axes and norm.num_features == output.shape[1] and norm.running_mean is not None


def folded(network: nn.Module, pairs: Mapping[str, str]) -> nn.Module:
    """A copy in evaluation mode that computes the same with each pair's norm folded into its layer's weight and bias.

    The norm's place is taken by ``nn.Identity``, so that every module keeps its name.
    """
    network = copied(network)
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

    A norm keeps the shift alone, one without a scale and shift of its own in its mean; the mean is else 0, the variance
    1 less its epsilon, the scale 1: constants, which take almost no bytes in a file.
    """
    state, result = own_tensors(network), copied(like)
    for name, norm_name in pairs.items():
        norm = result.get_submodule(norm_name)
        assert isinstance(norm, _BatchNorm)
        bias = state.pop(f"{name}.bias")
        if bias_of(result.get_submodule(name)) is not None:
            state[f"{name}.bias"] = torch.zeros_like(bias)
        if norm.affine:
            state[f"{norm_name}.weight"] = torch.ones_like(bias)
            state[f"{norm_name}.bias"] = bias
        state[f"{norm_name}.running_mean"] = torch.zeros_like(bias) if norm.affine else -bias
        state[f"{norm_name}.running_var"] = torch.full_like(bias, 1 - norm.eps)
        state[f"{norm_name}.num_batches_tracked"] = torch.zeros((), dtype=torch.long)
    put_tensors(result, state)
    return result
