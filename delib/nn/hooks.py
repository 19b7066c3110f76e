"""TODO"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from delib.nn.layers import WEIGHT_LAYERS
from delib.nn.trace import Trace


@contextmanager
def replayed(network: nn.Module, chain: Sequence[str], output: Tensor | None) -> Iterator[None]:
    """Inside the block the modules of ``chain`` do nothing, and the last of them answers ``output``."""
    modules = [network.get_submodule(name) for name in chain]
    for module in modules:
        module.forward = lambda x: x
    if modules:
        modules[-1].forward = lambda _: output
    try:
        yield
    finally:
        for module in modules:
            del module.forward  # the class's method shows again


@contextmanager
def watched(network: nn.Module, names: Sequence[str], stop: bool = False) -> Iterator[dict[str, Tensor]]:
    """The outputs of the named modules, filled in by the forward passes made inside the block.

    With ``stop`` a pass ends at the first of them, by raising ``_Stop``.
    """
    outputs: dict[str, Tensor] = {}

    def left(name: str, output: Tensor) -> None:
        outputs[name] = output
        if stop:
            raise _Stop

    hooks = [
        network.get_submodule(name).register_forward_hook(lambda _, a, y, name=name: left(name, y)) for name in names
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def modules_before(network: nn.Module, layer: str, example: Tensor) -> list[str]:
    """The leaf modules that ``network(example)`` runs before the named layer, in that order: what ``distil`` may freeze
    if they form a chain."""
    ran: list[str] = []
    leaves = {name: module for name, module in network.named_modules() if not any(module.children())}
    hooks = [m.register_forward_pre_hook(lambda *_, name=name: ran.append(name)) for name, m in leaves.items()]
    try:
        network(example)
    finally:
        for hook in hooks:
            hook.remove()
    return ran[: ran.index(layer)]


class _Stop(Exception):
    """A forward pass has gone far enough."""


class Cut(nn.Module):
    """A network up to the first call of one of its modules: its output is the answer, and nothing runs after it.

    Raises ValueError if the module is not called.
    """

    def __init__(self, network: nn.Module, end: nn.Module) -> None:
        super().__init__()
        self.network, self.end = network, end

    def forward(self, inputs: Tensor) -> Any:
        def stop(_: nn.Module, args: Any, output: Any) -> None:
            raise _Reached(output)

        hook = self.end.register_forward_hook(stop)
        try:
            self.network(inputs)
        except _Reached as reached:
            return reached.output
        finally:
            hook.remove()
        raise ValueError("the module to stop at is never called by the network's forward pass")


class _Reached(BaseException):
    """Not an error, so that no network takes it for one."""

    def __init__(self, output: Any) -> None:
        self.output = output


def end(network: nn.Module, layer: nn.Module, inputs: Tensor, layers: int | None) -> str:
    """The name of the weight layer at whose outputs a divergence ``layers`` further on than ``layer`` is measured.

    Only weight layers that depend on ``layer`` count, in the order in which the network calls them; 0 is the layer
    itself. '' stands for the whole network: where there are not as many, or ``layers`` is None.
    """
    if layers is None:
        return ""
    behind = [m for m in dict.fromkeys(Trace(network, layer, inputs).behind) if isinstance(m, WEIGHT_LAYERS)]
    names = {module: name for name, module in network.named_modules()}
    return names[behind[layers]] if layers < len(behind) else ""


def up_to(network: nn.Module, name: str) -> nn.Module:
    """The network up to the module of that name; for '' the network itself."""
    return Cut(network, network.get_submodule(name)) if name else network
