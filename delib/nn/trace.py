"""What in a network depends on one layer, and what of the rest that needs: a forward pass, every tensor's origin known.

The calls of leaf modules (those without children) are the units. Between them a network may do with tensors what it
likes (skips, routes, slices): a subclass of Tensor carries along which calls' outputs went into each. The layer's
weight is such a tensor too, so that its use without a call, or under another name, is seen.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

# Functions whose results tell values to Python, which may go another way because of them.
READERS = {"item", "tolist", "numpy", "__array__", "__bool__", "__int__", "__float__", "__index__", "__contains__"}
READERS |= {"equal", "allclose", "is_nonzero", "nonzero", "unique", "masked_select"}
TOLERANCE = 1e-4  # of the largest value: rounding in float32 stays far below
# What is not searched for tensors, and how deep the rest is.
DEEPEST = 8
PLAIN = (bool, int, float, complex, str, bytes, type, nn.Module, FunctionType, ModuleType, torch.dtype, torch.device)


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
        replaced = forwards_replaced({m: self._watched(m, m.forward, whole) for m in leaves})
        with replaced, _marked_parameters(self.network, self.layer, {self._touch: None}):
            self._settle(_origin(self.network(inputs)))

    def _watched(self, module: nn.Module, forward: Callable[..., Any], whole: bool) -> Callable[..., Any]:
        calls = self.calls[module] = []

        def watched(*args: Any, **kwargs: Any) -> Any:
            origin = _origin((*args, *kwargs.values()))
            args, kwargs = mapped(args, _plain), mapped(kwargs, _plain)
            if module is self.layer and not self.reached:
                self.reached, self.site_inputs = True, args[0].clone()
            output = forward(*args, **kwargs)
            origin |= _origin(output)  # of the layer's weight, where the module shares it
            call = Call()
            calls.append(call)
            if module is self.layer or self._touch in origin or (whole and self.reached):
                call.runs = True
                self.behind.append(module)
                self._settle(origin)
                return _traced(output, {self._touch: None})
            value = mapped(output, torch.clone)  # the network may work on the output in place
            call.value = mapped(output, _form)
            if whole:
                _need({call: value})
            return _traced(output, {call: value})

        return watched

    def _settle(self, origin: Origin) -> None:
        """Keep the outputs that something which runs again, or the network's answer, is made of."""
        _need({call: value for call, value in origin.items() if call is not self._touch})


@contextmanager
def _marked_parameters(network: nn.Module, layer: nn.Module, origin: Origin) -> Iterator[None]:
    """Inside the block the layer's weight and bias have that origin, wherever a module of the network holds them."""
    own = {parameter.data_ptr() for parameter in layer.parameters(recurse=False)}
    marked = []
    for module in network.modules():
        for name, held in module._parameters.items():
            if held is not None and held.data_ptr() in own:
                marked.append((module, name))
                # What lies in the instance's own dictionary is found before its parameters.
                vars(module)[name] = _traced(held.detach(), origin)
    try:
        yield
    finally:
        for module, name in marked:
            del vars(module)[name]


@contextmanager
def forwards_replaced(forwards: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Inside the block the modules' ``forward`` are the functions given; after it, what they were.

    Torch's transformer layers call their parts meanwhile, instead of one fused function that takes their weights.
    """
    own = {module: vars(module).get("forward") for module in forwards}
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    for module, forward in forwards.items():
        vars(module)["forward"] = forward  # past Module.__setattr__, whose checks take longer than a layer's replay
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, before in own.items():
            if before is None:
                del vars(module)["forward"]  # the class's method shows again
            else:
                vars(module)["forward"] = before


def mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """``value`` with every tensor in it changed: in tuples, lists, dicts, and the attributes of other objects.

    What holds no tensor that changes stays the same object.
    """
    return change(value) if isinstance(value, Tensor) else _mapped(value, change, ())


def _mapped(value: Any, change: Callable[[Tensor], Any], within: tuple[int, ...]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if value is None or isinstance(value, PLAIN) or id(value) in within or len(within) > DEEPEST:
        return value
    within = (*within, id(value))
    if isinstance(value, tuple | list):
        items = [_mapped(item, change, within) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    held = dict(value) if isinstance(value, dict) else _attributes(value)
    changed = {key: _mapped(item, change, within) for key, item in held.items()}
    changed = {key: item for key, item in changed.items() if item is not held[key]}
    if not changed:
        return value
    result = copy.copy(value)
    for key, item in changed.items():
        if isinstance(value, dict):
            result[key] = item
        else:
            object.__setattr__(result, key, item)  # frozen dataclasses too
    return result


def _attributes(value: Any) -> dict[str, Any]:
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value) if hasattr(value, field.name)}
    return dict(getattr(value, "__dict__", {}))


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in a network's output, in their order, wherever ``mapped`` finds them."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    mapped(value, note)
    return found


def agree(ours: Any, theirs: Any, tolerance: float = TOLERANCE) -> bool:
    """Whether two answers hold the same tensors, to ``tolerance`` of the largest value of each."""
    one, other = ([tensor.detach().double() for tensor in tensors_in(answer)] for answer in (ours, theirs))
    if [tensor.shape for tensor in one] != [tensor.shape for tensor in other]:
        return False
    for a, b in zip(one, other, strict=True):
        most = float(b.nan_to_num(0, 0, 0).abs().max()) if b.numel() else 0.0
        if not torch.allclose(a, b, rtol=0, atol=tolerance * most, equal_nan=True):
            return False
    return True


def _tensors(value: Any) -> list[_Traced]:
    return [tensor for tensor in tensors_in(value) if isinstance(tensor, _Traced)]


def _origin(value: Any) -> Origin:
    return {call: output for tensor in _tensors(value) for call, output in tensor.origin.items()}


def _put_origin(value: Any, origin: Origin) -> Any:
    for tensor in _tensors(value):
        tensor.origin = origin
    return value


def _need(origin: Origin) -> None:
    for call, value in origin.items():
        call.needed, call.value = True, value


def _traced(value: Any, origin: Origin) -> Any:
    """``value`` with its tensors of that origin."""

    def traced(tensor: Tensor) -> Tensor:
        known = tensor.as_subclass(_Traced)
        known.origin = origin
        return known

    return mapped(value, traced)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Tensor) if isinstance(tensor, _Traced) else tensor


def _form(tensor: Tensor) -> Tensor:
    """A tensor of the same shape, type and device that takes no memory."""
    return tensor.new_empty(()).expand(tensor.shape)
