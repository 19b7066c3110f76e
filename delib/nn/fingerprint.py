"""One hash of all that a long step's result depends on: networks, tensors, settings, functions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

LARGE = 1 << 20  # bytes; tensors that take more are hashed once, as calibration inputs are shared by many steps
SIMPLE = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, Path)

_known = WeakTensorKeyDictionary()


def fingerprint(*facts: Any) -> str:
    """Hexadecimal hash of ``facts``, the same in every process.

    A network counts by its modules' descriptions and its tensors; a function by its name, its code and what it closes
    over, and, where it was written in a notebook or script, by the global values that it names; all else by what pickle
    would keep of it. What none of this can look into counts by its type alone.
    """
    total = hashlib.blake2b(digest_size=16)
    for part in _parts(facts, ()):
        total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()


def _parts(value: Any, above: tuple[int, ...]) -> Iterator[bytes]:
    """What is hashed of a value; ``above`` are the objects that hold it, which are not gone into again."""
    yield type(value).__qualname__.encode()
    if isinstance(value, SIMPLE):
        yield repr(value).encode()
    elif isinstance(value, Tensor):
        yield _tensor(value)
    elif isinstance(value, type | BuiltinFunctionType | ModuleType):
        yield f"{getattr(value, '__module__', '')}.{value.__name__}".encode()
    elif isinstance(value, set | frozenset):
        yield from sorted(fingerprint(element).encode() for element in value)
    elif id(value) not in above:
        for part in _inner(value):
            yield from _parts(part, (*above, id(value)))


def _inner(value: Any) -> list[Any]:
    """The values that one consists of."""
    match value:
        case list() | tuple():
            return list(value)
        case Mapping():
            return [part for item in value.items() for part in item]
        case np.ndarray():
            return [str(value.dtype), value.shape, value.tobytes()]
        case nn.Module():
            return [repr(value), *value.named_parameters(), *value.named_buffers()]
        case MethodType():
            return [value.__self__, value.__func__]
        case FunctionType():
            return _of_function(value)
        case CodeType():
            return [value.co_code, value.co_names, value.co_varnames, value.co_consts]
    try:
        # What pickle would rebuild it from: a function, its arguments, the state, and iterators over what it holds.
        rebuilt = value.__reduce_ex__(4)
    except Exception:  # each type that cannot be pickled says so in its own way
        return []
    return [rebuilt] if isinstance(rebuilt, str) else [*rebuilt[:3], *map(list, filter(None, rebuilt[3:5]))]


def _of_function(function: FunctionType) -> list[Any]:
    cells = [cell.cell_contents for cell in function.__closure__ or () if not _is_empty(cell)]
    parts = [function.__qualname__, function.__code__, function.__defaults__, function.__kwdefaults__, cells]
    if function.__module__ == "__main__":
        named = {name: function.__globals__.get(name) for name in _names(function.__code__)}
        parts.append({name: found for name, found in named.items() if not isinstance(found, ModuleType)})
    return parts


def _is_empty(cell: Any) -> bool:
    try:
        return cell.cell_contents is cell
    except ValueError:
        return True


def _names(code: CodeType) -> list[str]:
    """Names that a function, or one defined in it, looks up outside."""
    inner = [name for part in code.co_consts if isinstance(part, CodeType) for name in _names(part)]
    return sorted({*code.co_names, *inner})


def _tensor(tensor: Tensor) -> bytes:
    if isinstance(tensor, nn.Parameter) or tensor.is_inference() or tensor.nbytes < LARGE:
        return _read(tensor)
    state = (tensor._version, tensor.data_ptr(), tensor.shape, tensor.dtype)  # PyTorch counts changes in place
    if tensor not in _known or _known[tensor][0] != state:
        _known[tensor] = state, _read(tensor)
    found: bytes = _known[tensor][1]
    return found


def _read(tensor: Tensor) -> bytes:
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    found = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    found.update(values.numpy().data)
    return found.digest()
