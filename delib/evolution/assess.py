"""Assessment: zero a candidate set tentatively, run the network, measure its divergence from the teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from delib.nn.divergence import Divergence
from delib.nn.layers import weight_of
from delib.nn.trace import Call, Trace, forwards_replaced


class Suffix:
    """A network as far as it depends on one layer, for inputs that stay the same: the rest is computed once.

    Works for any module graph (branches, skips, shared modules), see ``Trace``: every call of a leaf module that does
    not depend on the layer gives again what it gave, also where it comes after the layer; all others are computed.
    Calling the suffix gives exactly what ``network(inputs)`` would. Held in memory are the layer's own inputs,
    ``site_inputs``, and those outputs alone that something computed is made of.

    Use as a context manager: the network is patched meanwhile.
    """

    def __init__(self, network: nn.Module, layer: nn.Module, inputs: Tensor) -> None:
        self.network, self.layer, self.inputs = network, layer, inputs

    def __enter__(self) -> Self:
        trace = Trace(self.network, self.layer, self.inputs)
        if not trace.reached:
            raise ValueError("the layer to assess is never called by the network's forward pass")
        self.site_inputs = trace.site_inputs
        # Modules that always run are left alone: with a network of many layers patching them all takes its time.
        self._calls = {m: calls for m, calls in trace.calls.items() if not all(call.runs for call in calls)}
        return self

    @torch.no_grad()
    def __call__(self) -> Any:
        again = {module: _replay(module.forward, iter(calls)) for module, calls in self._calls.items()}
        with forwards_replaced(again):
            return self.network(self.inputs)

    def __exit__(self, *_: object) -> None:
        self._calls.clear()


def _replay(forward: Callable[..., Any], calls: Iterator[Call]) -> Callable[..., Any]:
    def replayed(*args: Any, **kwargs: Any) -> Any:
        call = next(calls, None)
        return forward(*args, **kwargs) if call is None or call.runs else call.again()

    return replayed


@contextmanager
def zeroed(tensor: Tensor, places: Tensor) -> Iterator[None]:
    """``tensor[places]`` is zero inside the block and has its values back after it; ``places`` are indices [n]."""
    values = tensor[places]
    tensor[places] = 0
    try:
        yield
    finally:
        tensor[places] = values


def tentatively_zeroed(layer: nn.Module, candidate: Tensor) -> AbstractContextManager[None]:
    """The weights at flat indices ``candidate`` are zero inside the block and have their values back after it."""
    return zeroed(weight_of(layer).view(-1), candidate)


def assess(suffix: Suffix, candidates: Iterable[Tensor], teacher_outputs: Any, divergence: Divergence) -> Tensor:
    """The divergence from the teacher that each candidate set would cause, [population].

    A candidate [size] holds flat indices into the weight of ``suffix.layer``.
    """
    divergences = []
    for candidate in candidates:
        with tentatively_zeroed(suffix.layer, candidate):
            divergences.append(divergence(suffix(), teacher_outputs).reshape(()))
    return torch.stack(divergences)
