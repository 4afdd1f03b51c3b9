"""The tensors of a TorchScript archive, read without running code from it.

OpenAI publishes CLIP in such archives. ``torch.jit.load`` runs the archive's own code
(``__setstate__``), which can write any file. Here the archive's pickle is interpreted instead, and
all that it can make is modules, plain values, and tensors of the archive's own records.
"""

from __future__ import annotations

import math
import os
import pickletools
import zipfile
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

_DTYPES = {
    "Bool": torch.bool,
    "Byte": torch.uint8,
    "Char": torch.int8,
    "Short": torch.int16,
    "Int": torch.int32,
    "Long": torch.int64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Float": torch.float32,
    "Double": torch.float64,
}
_EMPTY = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_MAX_PICKLE = 2**23  # bytes; a CLIP's has some 10,000


class Refused(ValueError):
    """The archive is damaged, or is not made of modules, tensors and plain values alone."""


@dataclass(eq=False)
class Module:
    """A module of the archive; ``attributes`` are its tensors, submodules and plain values."""

    kind: str  # the last part of its class's name
    attributes: dict[str, Any] = field(default_factory=dict)


class _Name(NamedTuple):
    """A class or function that the pickle names. It is never looked up."""

    name: str


def is_torchscript(path: str | os.PathLike) -> bool:
    """Whether the file is a zip archive with TorchScript's own records."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(_in_root(name, "constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _in_root(name: str, file: str) -> bool:
    return name.partition("/")[2] == file


def read_torchscript(path: str | os.PathLike) -> dict[str, Module]:
    """The modules of an archive by their dotted names; the outermost one's is "".

    Raises:
        Refused: see there.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            outermost = _Interpreter(archive, os.path.getsize(path)).run()
    except Refused:
        raise
    except Exception as error:  # damaged bytes can raise anything
        raise Refused(f"it is damaged ({type(error).__name__}: {error})") from error
    return _by_name(outermost)


def tensors(modules: dict[str, Module]) -> dict[str, Tensor]:
    """Parameters and buffers by their dotted names, as in a state dict."""
    return {
        _dotted(prefix, name): value
        for prefix, module in modules.items()
        for name, value in module.attributes.items()
        if isinstance(value, Tensor)
    }


def _by_name(outermost) -> dict[str, Module]:
    if not isinstance(outermost, Module):
        raise Refused("it holds no module")
    modules: dict[str, Module] = {}
    todo, visited = [("", outermost)], {id(outermost.attributes)}
    while todo:
        prefix, module = todo.pop()
        modules[prefix] = module
        for name, value in reversed(module.attributes.items()):
            if isinstance(value, Module):
                if id(value.attributes) in visited:  # a cycle would never end
                    raise Refused(f"its module {_dotted(prefix, name)} stands in several places")
                visited.add(id(value.attributes))
                todo.append((_dotted(prefix, name), value))
    return modules


def _dotted(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


class _Interpreter:
    """Runs ``data.pkl`` on a stack: a few opcodes of protocol 2, and a few functions by name."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        roots = [name for name in archive.namelist() if _in_root(name, "data.pkl")]
        if len(roots) != 1:
            raise Refused("it has no single data.pkl")
        self.archive = archive
        self.root = roots[0].removesuffix("data.pkl")
        self.room = {"storages": size, "tensors": size}  # bytes left: at most the file's size
        self.storages: dict[str, Tensor] = {}  # (N,)
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self):
        if self.archive.getinfo(f"{self.root}data.pkl").file_size > _MAX_PICKLE:
            raise Refused("its data.pkl is larger than that of a CLIP")
        for opcode, value, _ in pickletools.genops(self.record("data.pkl")):
            self.step(opcode.name, value)
        return self.stack.pop()

    def record(self, name: str) -> bytes:
        info = self.archive.getinfo(self.root + name)
        if info.compress_type != zipfile.ZIP_STORED:
            raise Refused(f"its record {name} is compressed, which TorchScript's are not")
        return self.archive.read(info)

    def step(self, opcode: str, value) -> None:
        stack = self.stack
        match opcode:
            case "PROTO" | "STOP":
                pass
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(value)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append(_CONSTANTS[opcode])
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                stack.append(_EMPTY[opcode]())
            case "GLOBAL":
                stack.append(_Name(value.replace(" ", ".")))
            case "BINPUT" | "LONG_BINPUT":
                self.memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[value])
            case "MARK":
                self.marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(self.above_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self.pop(int(opcode[-1]))))
            case "APPEND":
                self.extend(self.pop(1))
            case "APPENDS":
                self.extend(self.above_mark())
            case "SETITEM":
                self.update(self.pop(2))
            case "SETITEMS":
                self.update(self.above_mark())
            case "NEWOBJ":
                name, _ = self.pop(2)
                stack.append(Module(_named(name).rpartition(".")[2]))
            case "BUILD":
                self.build(*self.pop(1))
            case "REDUCE":
                stack.append(self.call(*self.pop(2)))
            case "BINPERSID":
                stack.append(self.storage(*self.pop(1)))
            case _:
                raise Refused(
                    f"its data.pkl has the opcode {opcode}, which TorchScript does not use"
                )

    # -- the stack

    def pop(self, count: int) -> list:
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def above_mark(self) -> list:
        return (
            self.pop(len(self.stack) - mark) if (mark := self.marks.pop()) < len(self.stack) else []
        )

    def top(self, kind: type):
        if type(self.stack[-1]) is not kind:
            raise Refused(
                f"its data.pkl fills a {type(self.stack[-1]).__name__} as a {kind.__name__}"
            )
        return self.stack[-1]

    def extend(self, items: list) -> None:
        self.top(list).extend(items)

    def update(self, items: list) -> None:
        if not all(isinstance(key, str) for key in items[::2]):
            raise Refused("its data.pkl has a key that is no text")
        self.top(dict).update(zip(items[::2], items[1::2]))

    # -- the objects that it makes

    def build(self, state) -> None:
        module = self.top(Module)
        if not isinstance(state, dict):
            raise Refused(f"its {module.kind} is restored by code, which is never run")
        module.attributes = state

    def call(self, function, arguments: tuple):
        name = _named(function)
        if name == "torch._utils._rebuild_tensor_v2":
            return self.tensor(*arguments[:4])
        if name == "collections.OrderedDict":
            return {}
        if name.startswith("torch.jit._pickle."):  # a list or dict, and the type of its items
            return arguments[0]
        raise Refused(f"it asks for {name}, which is never called")

    def storage(self, identity: tuple) -> Tensor:
        """The values of a record, (N,); ``identity`` is ("storage", type, key, device, N)."""
        tag, kind, key, _, count = identity
        dtype = _DTYPES.get(_named(kind).removeprefix("torch.").removesuffix("Storage"))
        if tag != "storage" or dtype is None:
            raise Refused(f"it asks for a {tag} of {kind}, which no CLIP has")
        if key not in self.storages:
            raw = bytearray(self.record(f"data/{key}") if count else b"")
            if len(raw) != count * dtype.itemsize:
                raise Refused(f"its record data/{key} has {len(raw)} bytes for {count} of {dtype}")
            self.spend("storages", len(raw))
            values = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
            self.storages[key] = values
        return self.storages[key]

    def tensor(self, values: Tensor, offset: int, size: tuple, stride: tuple) -> Tensor:
        self.spend("tensors", math.prod(size) * values.itemsize)
        return torch.as_strided(values, size, stride, offset)  # which checks the bounds

    def spend(self, budget: str, nbytes: int) -> None:
        self.room[budget] -= nbytes
        if nbytes < 0 or self.room[budget] < 0:
            raise Refused(f"its {budget} are larger than the file")


def _named(value) -> str:
    if not isinstance(value, _Name):
        raise Refused("its data.pkl calls something else than a name")
    return value.name
