"""Pickled PyTorch checkpoints, read without running anything: tensors and containers as they are, all else inert.

A checkpoint that holds a whole network names the classes of its modules; loaded in the usual way it imports and calls
whatever it names. Here the pickle's opcodes are interpreted one by one. No class or function is looked up or called:
what the pickle asks to be made becomes a ``Stub``, which remembers the name and what it was given.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAX_PICKLE = 1 << 20  # bytes: the pickles of YOLOv5 and YOLOv7 take a seventh of it at most
MAX_DEPTH = 32  # modules within modules
MAX_AXES = 8
STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
TENSOR, PARAMETER, ORDERED = (
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "collections.OrderedDict",
)


# What zipfile, pickletools, torch and the code below raise on files that are something else, or lie.
BROKEN = (zipfile.BadZipFile, OSError, ValueError, TypeError, AttributeError, LookupError, RuntimeError, OverflowError)


@dataclass(slots=True)
class Stub:
    """Something that a pickle asked for: ``kind`` is its dotted name, ``args`` what it was to be made from, and
    ``state`` what it was given afterwards. None of it was imported or called."""

    kind: str
    args: Any = None
    state: Any = None

    def get(self, name: str) -> Any:
        """The attribute of that name; None where it has none."""
        return self.state.get(name) if isinstance(self.state, dict) else None


class Checkpoint:
    """A checkpoint file ``{"model": network, ...}`` as ``torch.save`` writes it. Nothing in it is run.

    ``network`` is the stub of its module, ``kind`` the dotted name of the class that it was pickled from. Raises
    ValueError, in one line, for a file that is no such checkpoint or is not one that could be honest.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._read()
        except BROKEN as error:
            reason = " ".join(f"{error}".split())[:150] or type(error).__name__
            raise ValueError(f"{self.path}: no checkpoint that can be read safely ({reason})") from None

    @property
    def kind(self) -> str:
        return self.network.kind

    def state(self) -> dict[str, Tensor]:
        """The network's tensors as its state dict would name them; they share the memory of the file's content.

        Raises ValueError, in one line, where one of them lies beyond its storage, or modules contain one another.
        """
        try:
            return {name: self._tensor(stub) for name, stub in _tensor_stubs(self.network)}
        except BROKEN as error:
            raise ValueError(
                f"{self.path}: a tensor that cannot be read ({' '.join(f'{error}'.split())[:150]})"
            ) from None

    def _read(self) -> None:
        self._storages: dict[str, bytearray] = {}
        with zipfile.ZipFile(self.path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            (pickled,) = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1] or ["none"]
            if pickled not in entries:
                raise ValueError("it holds no data.pkl")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
                raise ValueError("it is compressed, as no checkpoint is")
            if sum(entry.file_size for entry in entries.values()) > self.path.stat().st_size:
                raise ValueError("its entries overlap")
            if entries[pickled].file_size > MAX_PICKLE:
                raise ValueError(f"its pickle is larger than {MAX_PICKLE} bytes")
            self._folder = pickled.removesuffix("data.pkl")
            if f"{self._folder}byteorder" in entries and archive.read(f"{self._folder}byteorder") != b"little":
                raise ValueError("its bytes are in another order")
            root = unpickled(archive.read(pickled))
        found = (root.get("ema") or root.get("model")) if isinstance(root, dict) else None
        if not isinstance(found, Stub) or not isinstance(found.get("_modules"), dict):
            raise ValueError("it holds no network under 'model'")
        self.network = found

    def _tensor(self, stub: Stub) -> Tensor:
        """The tensor that a stub stands for: a view of its storage, within its bounds."""
        storage, offset, size, stride, *_ = stub.args
        mark, of, key, _, count = storage.args
        if storage.kind != "storage" or mark != "storage" or of.kind not in STORAGES or not isinstance(key, str):
            raise ValueError("a storage of an unknown kind")
        kind = STORAGES[of.kind]
        if not all(isinstance(n, int) and 0 <= n < 1 << 40 for n in (offset, count, *size, *stride)):
            raise ValueError("sizes are no numbers")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        many = math.prod(size)
        if len(size) > MAX_AXES or many > count or (many and last >= count):
            raise ValueError("beyond its storage")
        content = self._content(key)
        if len(content) != count * kind.itemsize:
            raise ValueError("a storage of another size than said")
        if not many:
            return torch.zeros(size, dtype=kind)
        return torch.frombuffer(content, dtype=kind).as_strided(size, stride, offset)

    def _content(self, key: str) -> bytearray:
        if key not in self._storages:
            with zipfile.ZipFile(self.path) as archive:
                self._storages[key] = bytearray(archive.read(f"{self._folder}data/{key}"))
        return self._storages[key]


def _tensor_stubs(network: Stub) -> Iterator[tuple[str, Stub]]:
    """Names and stubs of a network's tensors, parameters before buffers, modules in their order.

    A module held under several names is passed once, as no network here shares any that has tensors.
    """
    waiting, seen = [("", network, 0)], {id(network)}
    while waiting:
        prefix, module, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"modules are nested deeper than {MAX_DEPTH}")
        for name, held in [*_named(module, "_parameters"), *_named(module, "_buffers")]:
            stub = held.args[0] if isinstance(held, Stub) and held.kind == PARAMETER else held
            if isinstance(stub, Stub) and stub.kind == TENSOR:
                yield f"{prefix}{name}", stub
            elif held is not None:
                raise ValueError("a parameter that is no tensor")
        for name, child in reversed(_named(module, "_modules")):
            if isinstance(child, Stub) and id(child) not in seen:
                seen.add(id(child))
                waiting.append((f"{prefix}{name}.", child, depth + 1))


def _named(module: Stub, key: str) -> list[tuple[str, Any]]:
    held = module.get(key)
    return [(str(name)[:100], value) for name, value in held.items()] if isinstance(held, dict) else []


def unpickled(data: bytes) -> Any:
    """What a pickle holds: numbers, texts, tuples, lists and dicts as they are, everything else as ``Stub``.

    Raises ValueError on a broken pickle, and on opcodes that checkpoints do not use.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return machine.pop()
            machine.run(opcode.name, argument)
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"a broken pickle: {type(error).__name__}") from None
    raise ValueError("a pickle without an end")


class _Machine:
    """The stack and the memo of pickle's machine (PEP 307, 3154), with operations that build and never call."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, opcode: str, argument: Any) -> None:
        if opcode in VALUES:
            self.stack.append(argument)
        elif opcode in CONSTANTS:
            self.stack.append(CONSTANTS[opcode]())
        elif opcode in PUTS:
            self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
        elif opcode in GETS:
            self.stack.append(self.memo[argument])
        elif opcode in OPERATIONS:
            OPERATIONS[opcode](self, argument)
        elif opcode not in IGNORED:
            raise ValueError(f"opcode {opcode}, which no checkpoint needs")

    def pop(self, count: int = 1) -> Any:
        """The topmost value, or a list of as many."""
        if count > len(self.stack):
            raise IndexError
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values[0] if count == 1 else values

    def to_mark(self) -> list[Any]:
        """All values since the last mark."""
        values, self.stack = self.stack, self.marks.pop()
        return values

    def mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def named(self, argument: str) -> None:
        self.stack.append(Stub(argument.replace(" ", ".")))

    def named_on_stack(self, _: Any) -> None:
        module, name = self.pop(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no text")
        self.stack.append(Stub(f"{module}.{name}"))

    def made(self, _: Any) -> None:
        """REDUCE and NEWOBJ: what a class or function would make of its arguments, if it were called."""
        of, args = self.pop(2)
        kind = of.kind if isinstance(of, Stub) else "unknown"
        self.stack.append({} if kind == ORDERED and not args else Stub(kind, args))

    def built(self, _: Any) -> None:
        state = self.pop()
        if isinstance(self.stack[-1], Stub):
            self.stack[-1].state = state

    def tuple_of(self, count: int | None) -> None:
        values = self.to_mark() if count is None else [self.pop()] if count == 1 else self.pop(count)
        self.stack.append(tuple(values))

    def extended(self, values: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)

    def filled(self, values: list[Any]) -> None:
        """Keys are texts and numbers alone: to hash others, such as tuples within tuples, is work for their author."""
        if not isinstance(self.stack[-1], dict):
            return
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str | int | float):
                raise ValueError(f"a key of type {type(key).__name__}")
            self.stack[-1][key] = value


# Of each of these opcodes the argument is the value.
VALUES = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING"}
VALUES |= {"SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
VALUES |= {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
PUTS, GETS, IGNORED = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"GET", "BINGET", "LONG_BINGET"}, {"PROTO", "FRAME"}
OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "GLOBAL": _Machine.named,
    "STACK_GLOBAL": _Machine.named_on_stack,
    "REDUCE": _Machine.made,
    "NEWOBJ": _Machine.made,
    "BUILD": _Machine.built,
    "BINPERSID": lambda machine, _: machine.stack.append(Stub("storage", machine.pop())),
    "TUPLE": lambda machine, _: machine.tuple_of(None),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": lambda machine, _: machine.extended([machine.pop()]),
    "APPENDS": lambda machine, _: machine.extended(machine.to_mark()),
    "SETITEM": lambda machine, _: machine.filled(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.filled(machine.to_mark()),
}
