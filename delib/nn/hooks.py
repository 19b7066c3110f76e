"""Looking into forward passes: what modules receive and return, passes that stop early, modules that are skipped."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from delib.nn.fingerprint import fingerprint
from delib.nn.layers import WEIGHT_LAYERS
from delib.nn.trace import Trace, forwards_replaced, mapped


class Passed(NamedTuple):
    """One call of a module: its first positional argument (None if it has none) and what it returned."""

    module: nn.Module
    input: Any
    output: Any


class _Stop(BaseException):
    """The pass has gone far enough. Not an ``Exception``, so that no network takes it for an error of its own."""


@contextmanager
def _hooked(modules: Iterable[nn.Module], note: Callable[..., Any]) -> Iterator[None]:
    """Inside the block ``note`` sees every call of the modules; the block ends without an error where it stops."""
    hooks = [module.register_forward_hook(note) for module in modules]
    try:
        yield
    except _Stop:
        pass
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def watched_calls(
    modules: Iterable[nn.Module], most: float = math.inf, *, apart: bool = False
) -> Iterator[list[Passed]]:
    """The calls of ``modules`` by the forward passes made inside the block, in order of their ends.

    The block ends without an error at the ``most``-th call: what the network has left to do is not done. Tensors are
    not detached: under ``torch.no_grad`` they carry no graph, elsewhere derivatives can be taken with respect to them.
    With ``apart`` the network goes on with copies, so that what it does to an output in place is not seen.
    """
    seen: list[Passed] = []

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        entered = args[0] if args else None
        seen.append(Passed(module, mapped(entered, torch.clone) if apart else entered, output))
        if len(seen) >= most:
            raise _Stop
        return mapped(output, torch.clone) if apart else output

    with _hooked(modules, note):
        yield seen


def calls(network: nn.Module, layer: nn.Module, inputs: Tensor, most: float = math.inf) -> list[tuple[Tensor, Tensor]]:
    """The (input, output) pairs of ``layer`` while the network runs on ``inputs``, up to its ``most``-th call."""
    with watched_calls([layer], most, apart=most > 1) as seen:
        network(inputs)
    return [(call.input, call.output) for call in seen]


@torch.no_grad()
def never_called(network: nn.Module, names: Iterable[str], inputs: Tensor) -> list[str]:
    """Those of the named modules that ``network(inputs)`` does not call: it uses them otherwise, or not at all."""
    modules = {network.get_submodule(name): name for name in names}
    with watched_calls(modules) as seen:
        network(inputs)
    called = {call.module for call in seen}
    return [name for module, name in modules.items() if module not in called]


@contextmanager
def watched(network: nn.Module, names: Sequence[str], stop: bool = False) -> Iterator[dict[str, Tensor]]:
    """The latest outputs of the named modules, filled in by the forward passes made inside the block.

    With ``stop`` the block ends, without an error, at the first of them.
    """
    outputs: dict[str, Tensor] = {}
    modules = {network.get_submodule(name): name for name in names}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        outputs[modules[module]] = output
        if stop:
            raise _Stop

    with _hooked(modules, note):
        yield outputs


def replayed(network: nn.Module, chain: Sequence[str], output: Any) -> AbstractContextManager[None]:
    """Inside the block the modules of ``chain`` compute nothing, and the last of them returns ``output``."""
    modules = [network.get_submodule(name) for name in chain]
    # What works in place between them is to spoil a copy.
    forwards: dict[nn.Module, Callable[..., Any]] = {module: lambda x, *_, **__: x for module in modules}
    forwards |= {module: lambda x, *_, **__: mapped(x, torch.clone) for module in modules[:1]}
    return forwards_replaced(forwards | {module: lambda *_, **__: output for module in modules[-1:]})


@torch.no_grad()
def first_chain(network: nn.Module, layers: Iterable[str], example: Tensor) -> tuple[list[str], list[str]]:
    """The network's first modules that hold no weight layers but ``layers`` and form a chain, and those of ``layers``
    in them: ``distill`` may freeze these modules.

    Each takes what the one before returned, and nothing else does: with the last one's output replayed the network
    answers ``example`` alike. The modules are as large as they can be; there may be none.
    """
    own = {network.get_submodule(name): name for name in layers}
    names = {module: name for name, module in network.named_modules() if module is not network}
    free = [m for m in names if all(part in own for part in m.modules() if isinstance(part, WEIGHT_LAYERS))]
    with watched_calls(free) as seen:
        answer = fingerprint(network(example))
    chain: list[nn.Module] = []
    current, after = example, 0
    while taking := [i for i, call in enumerate(seen) if i >= after and call.input is current]:
        # The first, or the largest module that it is the beginning of: where modules work in place, others follow that
        # take the same tensor.
        last = next(i for i in reversed(taking) if seen[taking[0]].module in set(seen[i].module.modules()))
        call, after = seen[last], last + 1
        chain.append(call.module)
        current = call.output
    found = [names[module] for module in chain]
    if not (alone := partial(_stands_alone, network, found, example, answer))(len(found)):
        # Where a chain stands alone its beginnings do, too: halving finds the longest.
        found = found[: bisect_left(range(1, len(found)), True, key=lambda many: not alone(many))]
    return found, [own[part] for module in chain[: len(found)] for part in module.modules() if part in own]


def _stands_alone(network: nn.Module, chain: Sequence[str], example: Tensor, answer: str, many: int) -> bool:
    """Whether the network's answer to ``example``, of that fingerprint, is the same with the first modules of the chain
    replayed, so ``many``, also if what they saw last were other inputs."""
    chain = chain[:many]
    if not chain:
        return True
    with watched(network, chain[-1:], stop=True) as outputs:
        network(example)
    network(example.flip(0))
    try:
        with replayed(network, chain, outputs[chain[-1]]):
            return fingerprint(network(example)) == answer
    except Exception:  # of shapes that do not fit, for one, as inside the chain nothing is computed
        return False


class Cut(nn.Module):
    """A network up to the first call of one of its modules: its output is the answer, and nothing runs after it.

    Raises ValueError if the module is not called.
    """

    def __init__(self, network: nn.Module, end: nn.Module) -> None:
        super().__init__()
        self.network, self.end = network, end

    def forward(self, inputs: Tensor) -> Any:
        with watched_calls([self.end], most=1) as seen:
            self.network(inputs)
        if not seen:
            raise ValueError("the module to stop at is never called by the network's forward pass")
        return seen[0].output


class Entered(nn.Module):
    """A network whose first modules have run: for ``inputs`` it goes on from what they gave, for others it is whole.

    ``chain`` are these modules, as of ``first_chain``. What they hold must not change.
    """

    def __init__(self, network: nn.Module, chain: Sequence[str], inputs: Tensor) -> None:
        super().__init__()
        self.network, self.chain, self.inputs = network, chain, inputs
        with watched(network, chain[-1:], stop=True) as outputs:
            network(inputs)
        self.output = outputs[chain[-1]]

    def get_submodule(self, target: str) -> nn.Module:
        """The network's: its modules go by their own names here, too."""
        return self.network.get_submodule(target)

    def forward(self, inputs: Tensor) -> Any:
        if inputs is not self.inputs:
            return self.network(inputs)
        # The network may work on it in place.
        with replayed(self.network, self.chain, mapped(self.output, torch.clone)):
            return self.network(inputs)


def end(network: nn.Module, layer: nn.Module, inputs: Tensor, layers: int | None) -> str:
    """The name of the weight layer at whose outputs a divergence ``layers`` further on than ``layer`` is measured.

    Only weight layers that depend on ``layer`` count, in the order in which the network calls them; 0 is the layer
    itself. '' stands for the whole network: where there are not as many, or ``layers`` is None.
    """
    if layers is None:
        return ""
    names = {module: name for name, module in network.named_modules()}
    if layers == 0:
        return names[layer]  # without a pass through all of the network
    behind = [m for m in dict.fromkeys(Trace(network, layer, inputs).behind) if isinstance(m, WEIGHT_LAYERS)]
    return names[behind[layers]] if layers < len(behind) else ""


def up_to(network: nn.Module, name: str) -> nn.Module:
    """The network up to the module of that name; for '' the network itself."""
    return Cut(network, network.get_submodule(name)) if name else network
