"""Read a joblib pickle of tensors without running anything that it says.

GHN-3's files are `joblib.dump`s of a state dict. A pickle is a program, and unpickling runs it. Here its instructions
are read with `pickletools` and interpreted by a machine that knows the few that a dictionary of tensors needs
(`_INSTRUCTIONS`) and the few names that it refers to (`_NAMES`). None of these names is imported or called: they stand
for the functions below. Any other instruction or name ends the reading. joblib itself is not needed.

Large blocks of bytes are not read but noted as (offset, size) in the file, so a tensor takes memory when it is asked
for and not before.
"""

import io
import math
import os
import pickletools
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

_LARGE = 2**20  # pickle's own frames are an order of magnitude smaller
_MAX_UNPACKED = 2**33
_PACKED = {
    b"\x78": "zlib",
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ": "xz",
    b"\x5d\x00": "lzma",
    b"\x04\x22M\x18": "lz4",
}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor whose shape is known and whose values are read when `load()` is called, each time anew."""

    shape: tuple[int, ...]
    load: Callable[[], "Tensor"]


@contextmanager
def read_joblib(path: Path) -> Iterator[Any]:
    """Open a joblib file; yields what was dumped, with a `LazyTensor` for every tensor and array.

    Args:
        path: the file, plain or packed with zlib or gzip (it is unpacked into a temporary file, then).

    Raises:
        UnpicklingError: the file holds anything but tensors, arrays, dictionaries, lists, tuples and plain values, or
            is damaged.
    """
    with open(path, "rb") as start:
        head = start.read(8)
    packing = next((name for magic, name in _PACKED.items() if head.startswith(magic)), None)
    if packing is None:
        yield _run(path)
    elif packing in ("zlib", "gzip"):
        with tempfile.TemporaryDirectory() as folder:
            yield _run(_unpack(path, Path(folder) / "unpacked"))
    else:
        raise UnpicklingError(f"it is packed with {packing}, which is not read: dump it again with zlib or unpacked")


def _unpack(path: Path, target: Path) -> Path:
    unpacker = zlib.decompressobj(wbits=47)  # zlib or gzip, by the header
    try:
        with open(path, "rb") as packed, open(target, "wb") as out:
            while chunk := packed.read(_LARGE):
                while chunk:
                    out.write(unpacker.decompress(chunk, _LARGE))
                    chunk = unpacker.unconsumed_tail
                    if out.tell() > _MAX_UNPACKED:
                        raise UnpicklingError(f"it unpacks to more than {_MAX_UNPACKED >> 30} GiB")
            out.write(unpacker.flush())
    except zlib.error as error:
        raise UnpicklingError(f"it cannot be unpacked: {error}") from error
    if not unpacker.eof:
        raise UnpicklingError("its packed data end early")
    return target


def _run(path: Path) -> Any:
    with open(path, "rb") as file:
        return _Machine(file, path).run()


@dataclass(frozen=True)
class _Block:
    """Bytes that were left in the file."""

    path: Path
    offset: int
    size: int

    def __len__(self) -> int:
        return self.size


class _File:
    """The file as `pickletools` reads it; a large piece comes as a `_Block`, and is skipped."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path
        self.size = os.fstat(file.fileno()).st_size
        self.tell, self.readline = file.tell, file.readline

    def read(self, n: int) -> Any:
        return self.skip(n) if n >= _LARGE else self.file.read(n)

    def skip(self, n: int) -> _Block:
        offset = self.tell()
        if offset + n > self.size:
            raise UnpicklingError(f"it ends early: {n} bytes should follow at position {offset}")
        self.file.seek(n, os.SEEK_CUR)
        return _Block(self.path, offset, n)


class _Machine:
    """A stack, marks on it where the items of a tuple, list or dictionary begin, and a memo: as in every unpickler."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file = _File(file, path)
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        position = 0
        try:
            for instruction, argument, at in pickletools.genops(self.file):  # type: ignore[arg-type]
                position = at or 0
                if instruction.name == "STOP":
                    return self.stack.pop()
                if instruction.name not in _INSTRUCTIONS:
                    raise UnpicklingError(f"the instruction {instruction.name} is not admitted")
                _INSTRUCTIONS[instruction.name](self, argument)
        except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
            raise UnpicklingError(f"damaged near position {position}: {error}") from error
        except UnpicklingError as error:
            raise UnpicklingError(f"at position {position}: {error}") from error
        raise UnpicklingError("it ends early")  # pragma: no cover (genops raises first)

    def pop_to_mark(self) -> list[Any]:
        at = self.marks.pop()
        items = self.stack[at:]
        del self.stack[at:]
        return items

    def pop(self, n: int) -> list[Any]:
        if n > len(self.stack):
            raise UnpicklingError("the stack is empty")
        items = self.stack[len(self.stack) - n :]
        del self.stack[len(self.stack) - n :]
        return items

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Only strings: the hash of a nested tuple can take forever.
            if type(target) is not dict or type(key) is not str:
                raise UnpicklingError("a dictionary's keys must be strings")
            target[key] = value

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise UnpicklingError("items are added to something that is no list")
        self.stack[-1].extend(items)

    def name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str or (module, name) not in _NAMES:
            shown = f"{module}.{name}" if type(module) is type(name) is str else "something that is no name"
            raise UnpicklingError(f"{shown} is not admitted")
        self.stack.append(_NAMES[module, name])

    def reduce(self) -> None:
        """A "call": of one of our stand-ins, or refused."""
        name, arguments = self.pop(2)
        if not isinstance(name, _Name) or name.reduce is None or type(arguments) is not tuple:
            raise UnpicklingError(f"a call of {getattr(name, 'text', type(name).__name__)} is not admitted")
        self.stack.append(name.reduce(*arguments))

    def new(self) -> None:
        name, arguments = self.pop(2)
        if name is not _ARRAY or type(arguments) is not tuple or arguments:
            raise UnpicklingError(f"an instance of {getattr(name, 'text', type(name).__name__)} is not admitted")
        self.stack.append(_Array())

    def build(self) -> None:
        """An object's state. Ours have none, but for the two that describe an array."""
        target, state = self.pop(2)
        if isinstance(target, _Array):
            target = target.read(state, self.file)
        elif isinstance(target, _DType):
            target.set_order(state)
        elif type(target) is not dict:  # of an ordered dict: `_metadata`, which only says versions of modules
            raise UnpicklingError(f"a state for {type(target).__name__} is not admitted")
        self.stack.append(target)


_Instruction = Callable[[_Machine, Any], None]


def _push(make: Callable[[Any], Any]) -> _Instruction:
    return lambda machine, argument: machine.stack.append(make(argument))


def _collect(n: int | None, make: Callable[[list[Any]], Any]) -> _Instruction:
    """Replace the last n items, or all since the mark, by one thing made of them."""
    return lambda m, _: m.stack.append(make(m.pop_to_mark() if n is None else m.pop(n)))


def _memoize(machine: _Machine, key: int | None) -> None:
    machine.memo[len(machine.memo) if key is None else key] = machine.stack[-1]


def _ignore(machine: _Machine, argument: Any) -> None:
    pass


_INSTRUCTIONS: dict[str, _Instruction] = {
    **dict.fromkeys(("PROTO", "FRAME"), _ignore),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _push(lambda value: value)),
    **dict.fromkeys(("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"), _push(lambda value: value)),
    **dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"), _push(lambda value: value)),
    "NONE": _push(lambda _: None),
    "NEWTRUE": _push(lambda _: True),
    "NEWFALSE": _push(lambda _: False),
    "EMPTY_TUPLE": _push(lambda _: ()),
    "EMPTY_LIST": _push(lambda _: []),
    "EMPTY_DICT": _push(lambda _: {}),
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "TUPLE": _collect(None, tuple),
    "TUPLE1": _collect(1, tuple),
    "TUPLE2": _collect(2, tuple),
    "TUPLE3": _collect(3, tuple),
    "APPEND": lambda m, _: m.extend(m.pop(1)),
    "APPENDS": lambda m, _: m.extend(m.pop_to_mark()),
    "SETITEM": lambda m, _: m.set_items(m.pop(2)),
    "SETITEMS": lambda m, _: m.set_items(m.pop_to_mark()),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda m, key: m.stack.append(m.memo[key])),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _memoize),
    "GLOBAL": lambda m, argument: m.name(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.name(*m.pop(2)),
    "REDUCE": lambda m, _: m.reduce(),
    "NEWOBJ": lambda m, _: m.new(),
    "BUILD": lambda m, _: m.build(),
}


# What the admitted names stand for.


def _ints(values: Any) -> tuple[int, ...]:
    if type(values) is not tuple or any(type(v) is not int or v < 0 for v in values):
        raise UnpicklingError("a shape must be a tuple of whole numbers")
    return values


@dataclass(frozen=True)
class _Storage:
    """`torch.storage._load_from_bytes`: a storage, as bytes that `torch.save` wrote."""

    data: bytes | _Block

    def load(self) -> "Tensor":
        import torch

        if isinstance(self.data, _Block):
            with open(self.data.path, "rb") as file:
                file.seek(self.data.offset)
                storage = torch.load(file, map_location="cpu", weights_only=True)
        else:
            storage = torch.load(io.BytesIO(self.data), map_location="cpu", weights_only=True)
        if not isinstance(storage, torch.storage.TypedStorage):
            raise UnpicklingError(f"a storage holds {type(storage).__name__}")
        return torch.empty(0, dtype=storage.dtype).set_(storage)


def _storage(data: Any) -> _Storage:
    if not isinstance(data, bytes | _Block):
        raise UnpicklingError("a storage must be bytes")
    return _Storage(data)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> LazyTensor:
    """`torch._utils._rebuild_tensor_v2`; what follows the stride concerns autograd."""
    if not isinstance(storage, _Storage):
        raise UnpicklingError("a tensor must have a storage")
    shape, strides, (start,) = _ints(size), _ints(stride), _ints((offset,))
    # as_strided() checks that all of the view lies inside of the storage
    return LazyTensor(shape, lambda: storage.load().as_strided(shape, strides, start))


def _parameter(tensor: Any, *_: Any) -> LazyTensor:
    if not isinstance(tensor, LazyTensor):
        raise UnpicklingError("a parameter must be a tensor")
    return tensor


class _DType:
    """`numpy.dtype`, of plain numbers."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        if type(code) is not str or code not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"):
            raise UnpicklingError("an array must be of plain numbers")
        self.value = np.dtype(code)

    def set_order(self, state: Any) -> None:
        if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", ">", "=", "|"):
            raise UnpicklingError("a dtype has no byte order")
        self.value = self.value.newbyteorder(state[1])


class _Array:
    """`joblib.numpy_pickle.NumpyArrayWrapper`: its state describes an array, whose bytes follow in the file."""

    def read(self, state: Any, file: _File) -> LazyTensor:
        if type(state) is not dict or not isinstance(state.get("dtype"), _DType):
            raise UnpicklingError("an array has no dtype")
        shape, dtype = _ints(state.get("shape")), state["dtype"].value
        order = state.get("order")
        if order not in ("C", "F"):
            raise UnpicklingError("an array's order must be C or F")
        if state.get("numpy_array_alignment_bytes") is not None:  # since joblib 1.2: one byte, and as many to skip
            file.skip(file.read(1)[0])
        block = file.skip(math.prod(shape) * dtype.itemsize)
        return LazyTensor(shape, lambda: _load_array(block, dtype, shape, order))


def _load_array(block: _Block, dtype: np.dtype, shape: tuple[int, ...], order: Any) -> "Tensor":
    import torch

    flat = np.fromfile(block.path, dtype, math.prod(shape), offset=block.offset)
    return torch.from_numpy(flat.astype(dtype.newbyteorder("="), copy=False).reshape(shape, order=order))


@dataclass(frozen=True)
class _Name:
    """An admitted name, and what a call of it gives."""

    text: str
    reduce: Callable[..., Any] | None


_ARRAY = _Name("joblib's NumpyArrayWrapper", None)
_NDARRAY = _Name("numpy.ndarray", None)

_NAMES: dict[tuple[str, str], _Name] = {
    ("collections", "OrderedDict"): _Name("OrderedDict", lambda: {}),
    ("torch._utils", "_rebuild_tensor_v2"): _Name("_rebuild_tensor_v2", _tensor),
    ("torch._utils", "_rebuild_parameter"): _Name("_rebuild_parameter", _parameter),
    ("torch.storage", "_load_from_bytes"): _Name("_load_from_bytes", _storage),
    ("numpy", "dtype"): _Name("numpy.dtype", _DType),
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "memmap"): _NDARRAY,
    ("joblib.numpy_pickle", "NumpyArrayWrapper"): _ARRAY,
}
