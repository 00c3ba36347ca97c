"""PyTorch's older file of tensors (no ZIP archive), read without PyTorch and without unpickling.

Such a file holds five pickled values (a magic number, a version, what machine wrote it, the
tensors, the names of their storages), then the numbers of every storage. A pickle is a program for
a stack machine that may call any function by its name. The machine here calls nothing: it knows the
instructions and the four names that a file of tensors needs, and gives up at any other.
"""

from __future__ import annotations

import enum
import hashlib
import io
import math
import os
import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from medseq_tf.errors import InputError, printable

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001
LARGEST = 2**28
"""Bytes of a file, and of its tensors."""
MOST_INSTRUCTIONS = 2**20
"""Of all that is pickled in a file; one of 300 tensors has some 12,000."""
MOST_AXES = 8


class _Name(enum.Enum):
    """What a file of tensors may name; none of it is ever called."""

    DICTIONARY = "collections OrderedDict"
    TENSOR = "torch._utils _rebuild_tensor_v2"
    FLOATS = "torch FloatStorage"
    INTEGERS = "torch LongStorage"


DTYPES: dict[_Name, np.dtype[Any]] = {
    _Name.FLOATS: np.dtype("<f4"),
    _Name.INTEGERS: np.dtype("<i8"),
}


@dataclass(frozen=True)
class _Storage:
    key: str
    kind: _Name
    count: int


@dataclass(frozen=True)
class _Tensor:
    """A tensor as the file describes it: a view of a storage, counted in numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Refused(ValueError):
    """The reason why a file is not read."""


def read_torch_file(path: str | os.PathLike, sha256: str | None = None) -> dict[str, np.ndarray]:
    """Return the tensors of a `state_dict` by name.

    Args:
        path: a file of `torch.save` in the format from before PyTorch 1.6, of float32 and int64.
        sha256: what the file's SHA-256 has to be; checked before anything is read of it.

    Raises:
        InputError: the file is missing, another one, damaged, or holds anything but tensors.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:  # a path with a NUL is no path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{printable(path)}: cannot be read: {reason}") from None
    if len(content) > LARGEST:
        raise InputError(f"{path}: is larger than {LARGEST:,} bytes, as no file of weights here is")
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise InputError(
            f"{path}: is not the file it should be: its SHA-256 is {found}, expected {sha256}"
        )
    try:
        return _tensors(io.BytesIO(content))
    except _Refused as error:
        reason = printable(error)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, MemoryError):
        reason = "damaged, cut short or of another kind"
    raise InputError(f"{path}: is no file of PyTorch tensors that can be read ({reason})")


def _refuse(reason: str) -> NoReturn:
    raise _Refused(reason)


def _tensors(file: io.BytesIO) -> dict[str, np.ndarray]:
    machine = _Machine(file)
    if machine.next_value() != MAGIC or machine.next_value() != VERSION:
        _refuse("it does not begin as one of PyTorch's older format")
    if machine.next_value().get("little_endian") is not True:
        _refuse("written on a machine of another byte order")
    described, keys = machine.next_value(), machine.next_value()
    if not isinstance(described, dict) or not isinstance(keys, list):
        _refuse("holds no dictionary of tensors")
    others = [name for name, value in described.items() if not isinstance(value, _Tensor)]
    if others:
        _refuse(f"{others[0][:60]} in it is no tensor")
    if sorted(_of_type(str, key) for key in keys) != sorted(machine.storages):
        _refuse("its storages are not those that its tensors lie in")
    numbers = {key: _numbers(file, machine.storages[key]) for key in keys}
    if file.read(1):
        _refuse("there is something after its last storage")
    if sum(_bytes(tensor) for tensor in described.values()) > LARGEST:
        _refuse(f"its tensors take more than {LARGEST:,} bytes")
    return {name: _array(tensor, numbers) for name, tensor in described.items()}


def _numbers(file: io.BytesIO, storage: _Storage) -> np.ndarray:
    dtype = DTYPES[storage.kind]
    count = int.from_bytes(file.read(8), "little", signed=True)
    numbers = file.read(storage.count * dtype.itemsize)
    if count != storage.count or len(numbers) != count * dtype.itemsize:
        _refuse("a storage is not as long as it is said to be")
    return np.frombuffer(numbers, dtype=dtype)


def _bytes(tensor: _Tensor) -> int:
    return math.prod(tensor.shape) * DTYPES[tensor.storage.kind].itemsize


def _array(tensor: _Tensor, numbers: dict[str, np.ndarray]) -> np.ndarray:
    """Return a tensor's numbers, gathered by their places, which NumPy keeps to the storage."""
    places = np.array(tensor.offset)
    for size, stride in zip(tensor.shape, tensor.strides, strict=True):
        places = places[..., None] + np.arange(size) * stride
    return np.asarray(numbers[tensor.storage.key][places])


# --------------------------------------------------------------------------- the machine


class _Machine:
    """Runs the pickles of a file one after the other, of which it knows what tensors need."""

    def __init__(self, file: io.BytesIO):
        self.file = file
        self.left = MOST_INSTRUCTIONS
        self.storages: dict[str, _Storage] = {}

    def next_value(self) -> Any:
        """Run the next pickle and return its value."""
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        for name, argument in self._instructions():
            if name in _VALUES:
                self.stack.append(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _STEPS:
                _STEPS[name](self, argument)
            else:
                _refuse(f"the instruction {name}, which a file of tensors has no use for")
        (value,) = self.stack
        return value

    def _instructions(self) -> Iterator[tuple[str, Any]]:
        """Yield name and argument of every instruction up to the one that ends the pickle."""
        for code, argument, _ in pickletools.genops(self.file):
            self.left -= 1
            if self.left < 0:
                _refuse(f"more than {MOST_INSTRUCTIONS:,} instructions")
            if code.name == "STOP":
                return
            yield code.name, argument

    def protocol(self, version: int) -> None:
        if version != 2:
            _refuse(f"pickle's protocol {version}, expected 2")

    def new_list(self, _: None) -> None:
        self.stack.append([])

    def new_dictionary(self, _: None) -> None:
        self.stack.append({})

    def mark(self, _: None) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def tuple_since_mark(self, _: None) -> None:
        items = tuple(self.since_mark())
        self.stack.append(items)

    def tuple_of(self, count: int) -> None:
        items = [self.stack.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def put(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def get(self, place: int) -> None:
        self.stack.append(self.memo[place])

    def append(self, items: list[Any]) -> None:
        _of_type(list, self.stack[-1]).extend(items)

    def set_items(self, items: list[Any]) -> None:
        keys = [_of_type(str, key) for key in items[::2]]
        _of_type(dict, self.stack[-1]).update(zip(keys, items[1::2], strict=True))

    def name(self, argument: str) -> None:
        known = {name.value: name for name in _Name}
        if argument not in known:
            _refuse(f"it names {argument[:60]}, which a file of tensors has no use for")
        self.stack.append(known[argument])

    def storage(self, _: None) -> None:
        """Take the description of a storage off the stack, put the storage there."""
        kind_of_object, kind, key, _where, count, view = self.stack.pop()
        is_kind = isinstance(kind, _Name) and kind in DTYPES
        if kind_of_object != "storage" or not is_kind or view is not None:
            _refuse("a storage of another kind")
        storage = _Storage(_of_type(str, key), kind, _size(count))
        if self.storages.setdefault(key, storage) != storage:
            _refuse("two storages of one name")
        self.stack.append(storage)

    def make(self, _: None) -> None:
        """Take a name and arguments off the stack, put there what they describe."""
        arguments, name = self.stack.pop(), self.stack.pop()
        if name is _Name.DICTIONARY and arguments == ():
            self.stack.append({})
        elif name is _Name.TENSOR:
            self.stack.append(_tensor(*arguments))
        else:
            _refuse("it makes something else than tensors")

    def set_attributes(self, _: None) -> None:
        """Drop the attributes of a dictionary: the versions of PyTorch's layers."""
        _of_type(dict, self.stack.pop())
        _of_type(dict, self.stack[-1])


_VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE")
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.protocol,
    "EMPTY_LIST": _Machine.new_list,
    "EMPTY_DICT": _Machine.new_dictionary,
    "MARK": _Machine.mark,
    "TUPLE": _Machine.tuple_since_mark,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "GLOBAL": _Machine.name,
    "BINPERSID": _Machine.storage,
    "REDUCE": _Machine.make,
    "BUILD": _Machine.set_attributes,
}


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """Return a tensor that lies in its storage; whether it has a gradient is of no use here."""
    sizes = tuple(map(_size, _of_type(tuple, shape)))
    steps = tuple(map(_size, _of_type(tuple, strides)))
    if len(sizes) > MOST_AXES or len(sizes) != len(steps):
        _refuse("a tensor of impossible axes")
    storage = _of_type(_Storage, storage)
    last = _size(offset) + sum((n - 1) * step for n, step in zip(sizes, steps, strict=True))
    count = math.prod(sizes)
    if not 0 < count <= storage.count or last >= storage.count:
        _refuse("a tensor that reaches beyond its storage")
    return _Tensor(storage, offset, sizes, steps)


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
        _refuse("a size that is none")
    return value


def _of_type(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        _refuse(f"something else stands where a {kind.__name__.strip('_').lower()} is expected")
    return value
