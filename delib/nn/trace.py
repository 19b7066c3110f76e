"""What in a network depends on one layer, and what of the rest that needs: a forward pass, every tensor's origin known.

The calls of leaf modules (those without children) are the units. Between them a network may do with tensors what it
likes (skips, routes, slices): a subclass of Tensor carries along which calls' outputs went into each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Functions whose results tell values to Python, which may go another way because of them.
READERS = {"item", "tolist", "numpy", "__array__", "__bool__", "__int__", "__float__", "__index__", "__contains__"}
READERS |= {"equal", "allclose", "is_nonzero", "nonzero", "unique", "masked_select"}


class Call:
    """One call of a leaf module. It ``runs`` again whenever the layer changes, or gives again what it gave:
    ``value`` if that is ``needed``, and something of the same form if it only goes where nothing runs."""

    def __init__(self) -> None:
        self.runs = self.needed = False
        self.value: Any = None

    def again(self) -> Any:
        """What the call returned, fresh memory each time: the network may work on it in place."""
        return mapped(self.value, torch.clone if self.needed else torch.empty_like)


Origin = dict[Call, Any]  # the calls whose outputs went into a tensor, without another call between, and those outputs


class _Traced(Tensor):
    """A tensor that knows its origin."""

    origin: Origin

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = super().__torch_function__(func, types, args, kwargs)
        origin = _origin((args, kwargs))
        name = getattr(func, "__name__", "")
        written = args[0] if name == "__setitem__" else result
        _put_origin(written, origin)
        in_place = name.endswith("_") and not name.endswith("__")  # may be a view of a tensor that will not hear of it
        into_plain = (name.startswith("__i") or name == "__setitem__") and not isinstance(args[0], cls)
        if name in READERS or in_place or into_plain or "out" in kwargs:
            _need(origin)
        return result


class Trace:
    """The calls of a network's leaf modules in one forward pass, as seen from ``layer``.

    ``calls`` lists each module's in their order, ``reached`` says whether the layer was among them, ``site_inputs``
    are its inputs, ``behind`` lists the modules that depend on it in the order of their calls, the layer first.

    Exact for any network whose course does not depend on chance, if what its modules change in place is used through
    what they return. Where the course, or memory from outside, depends on the layer's values, all that comes after the
    layer counts as depending on it.
    """

    def __init__(self, network: nn.Module, layer: nn.Module, inputs: Tensor) -> None:
        self.network, self.layer = network, layer
        self._trace(inputs, whole=False)
        if self._touch.needed:
            self._trace(inputs, whole=True)

    @torch.no_grad()
    def _trace(self, inputs: Tensor, whole: bool) -> None:
        self.calls: dict[nn.Module, list[Call]] = {}
        self.behind: list[nn.Module] = []
        self.reached, self.site_inputs = False, inputs
        self._touch = Call()  # stands for the layer in the origin of all that depends on it
        leaves = [m for m in self.network.modules() if m is self.layer or not any(m.children())]
        with forwards_replaced({m: self._watched(m, m.forward, whole) for m in leaves}):
            self._settle(_origin(self.network(inputs)))

    def _watched(self, module: nn.Module, forward: Callable[..., Any], whole: bool) -> Callable[..., Any]:
        calls = self.calls[module] = []

        def watched(*args: Any, **kwargs: Any) -> Any:
            origin = _origin((args, kwargs))
            args, kwargs = mapped(args, _plain), mapped(kwargs, _plain)
            if module is self.layer and not self.reached:
                self.reached, self.site_inputs = True, args[0].clone()
            output = forward(*args, **kwargs)
            call = Call()
            calls.append(call)
            if module is self.layer or self._touch in origin or (whole and self.reached):
                call.runs = True
                self.behind.append(module)
                self._settle(origin)
                return _put_origin(mapped(output, _traced), {self._touch: None})
            value = mapped(output, torch.clone)  # the network may work on the output in place
            call.value = mapped(output, _form)
            if whole:
                _need({call: value})
            return _put_origin(mapped(output, _traced), {call: value})

        return watched

    def _settle(self, origin: Origin) -> None:
        """Keep the outputs that something which runs again, or the network's answer, is made of."""
        _need({call: value for call, value in origin.items() if call is not self._touch})


@contextmanager
def forwards_replaced(forwards: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Inside the block the modules' ``forward`` are the functions given; after it, what they were."""
    own = {module: vars(module).get("forward") for module in forwards}
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module, before in own.items():
            del module.forward  # the class's method shows again
            if before is not None:
                module.forward = before


def mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """``value`` with every tensor in it, in tuples, lists and dicts, changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return type(value)((key, mapped(item, change)) for key, item in value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(item, change) for item in value))
    if isinstance(value, tuple | list):
        return type(value)([mapped(item, change) for item in value])
    return value


def _tensors(value: Any) -> list[_Traced]:
    found: list[_Traced] = []
    mapped(value, lambda tensor: found.append(tensor) if isinstance(tensor, _Traced) else None)
    return found


def _origin(value: Any) -> Origin:
    return {call: output for tensor in _tensors(value) for call, output in tensor.origin.items()}


def _put_origin(value: Any, origin: Origin) -> Any:
    for tensor in _tensors(value):
        tensor.origin = origin
    return value


def _need(origin: Origin) -> None:
    for call, value in origin.items():
        call.needed, call.value = True, value


def _traced(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(_Traced)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Tensor)


def _form(tensor: Tensor) -> Tensor:
    """A tensor of the same shape, type and device that takes no memory."""
    return tensor.new_empty(()).expand(tensor.shape)
