"""Read a pickle without running anything that it says, in bounded memory and time.

A pickle is a program, and unpickling runs it. Here its instructions are interpreted by a machine that knows the few
that a dictionary of tensors needs (`INSTRUCTIONS`). What a name stands for is said by who reads the file: stand-ins of
ours, see `stand_ins`. Nothing is ever imported or called for a name. Any other instruction or name ends the reading.

What the machine keeps is bounded: instructions, and so objects; their nesting; bytes of text; the length of a number.
Large blocks of bytes are not read but noted, so a tensor takes memory when it is asked for and not before.
"""

import os
import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import numpy as np

MOST_INSTRUCTIONS = 2**18  # the largest GHN-3 has 12,000, with the state of an optimiser 40,000
MOST_TEXT = 2**24  # bytes of strings, and of bytes that are kept in memory
DEEPEST = 100  # dictionaries, lists and tuples within each other
LONGEST_NUMBER = 32  # bytes; random generators have some of 16
_LONGEST_NAME = 256
_LARGEST_KEY = 2**20
_LARGE = 4096  # bytes that are left in the file, if it is one


@dataclass(frozen=True)
class Block:
    """Bytes that were left in a file, or in memory."""

    place: Path | bytes
    offset: int
    size: int

    def read(self, start: int, count: int) -> "np.ndarray":
        """Some of them, fewer where it ends, as a new array."""
        import numpy as np  # late: not everybody who asks for a GHN reads one

        count = max(0, min(count, self.size - start))
        if isinstance(self.place, bytes):
            return np.frombuffer(self.place, np.uint8, count, self.offset + start).copy()
        return np.fromfile(self.place, np.uint8, count, offset=self.offset + start)


class Stream:
    """A pickle's bytes, as the machine asks for them.

    Args:
        file: open, at the pickle's beginning.
        place: the file's path, or its content.
    """

    def __init__(self, file: BinaryIO, place: Path | bytes) -> None:
        self.file, self.place, self.left = file, place, MOST_TEXT
        position = file.tell()
        self.end = file.seek(0, os.SEEK_END)
        file.seek(position)

    def take(self, n: int) -> bytes:
        """The next n bytes."""
        self._check(n)
        self.left -= n
        if self.left < 0:
            raise UnpicklingError(f"more than {MOST_TEXT >> 20} MiB of it are no tensors")
        return self.file.read(n)

    def line(self) -> str:
        """A name, to the end of its line."""
        line = self.file.readline(_LONGEST_NAME)
        if not line.endswith(b"\n"):
            raise UnpicklingError(f"a name has no end within {_LONGEST_NAME} bytes")
        self.left -= len(line)
        return line[:-1].decode()

    def skip(self, n: int) -> Block:
        """The next n bytes, which stay where they are."""
        self._check(n)
        position = self.file.tell()
        self.file.seek(n, os.SEEK_CUR)
        return Block(self.place, position, n)

    def _check(self, n: int) -> None:
        if self.file.tell() + n > self.end:
            raise UnpicklingError(f"damaged, it ends early: {n} bytes should follow")


class Machine:
    """A stack, marks on it where the items of a tuple, list or dictionary begin, and a memo: as in every unpickler.

    Args:
        stream: the pickle.
        names: what a name of a module stands for; raises UnpicklingError for all that is not admitted.
        instructions: by name.
    """

    def __init__(
        self,
        stream: Stream,
        names: Callable[[str, str], Any],
        instructions: "Mapping[str, Instruction] | None" = None,
    ) -> None:
        self.stream, self.names = stream, names
        self.instructions = INSTRUCTIONS if instructions is None else instructions
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.depths: dict[int, int] = {}  # by the id of what has something in it

    def run(self) -> Any:
        """What was pickled.

        Raises:
            UnpicklingError: it holds something that is not admitted or beyond the bounds, or is damaged.
        """
        position = 0
        try:
            for _ in range(MOST_INSTRUCTIONS):
                position = self.stream.file.tell()
                name = _NAME_OF_CODE.get(self.stream.take(1))
                if name == "STOP":
                    return self.stack.pop()
                if name is None:
                    raise ValueError("an unknown instruction")
                if name not in self.instructions:
                    raise UnpicklingError(f"the instruction {name} is not admitted")
                self.instructions[name](self)
            raise UnpicklingError(f"it has more than {MOST_INSTRUCTIONS} instructions")
        except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
            raise UnpicklingError(f"damaged near position {position}: {error}") from error
        except UnpicklingError as error:
            raise UnpicklingError(f"at position {position}: {error}") from error

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

    def nest(self, target: Any, items: list[Any]) -> None:
        """Note that items are in a target now."""
        depth = 1 + max((self.depths.get(id(item), 0) for item in items), default=-1)
        if depth > DEEPEST:
            raise UnpicklingError(f"it is nested more than {DEEPEST} deep")
        if depth > self.depths.get(id(target), 0):
            self.depths[id(target)] = depth

    def push_tuple(self, items: list[Any]) -> None:
        self.stack.append(tuple(items))
        self.nest(self.stack[-1], items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Inert):
            return
        for key, value in zip(items[::2], items[1::2], strict=True):
            # The hash of a nested tuple can take forever, and so can a dictionary of numbers that were chosen for it.
            plain = type(key) is str or (type(key) is int and 0 <= key < _LARGEST_KEY)
            if type(target) is not dict or not plain:
                raise UnpicklingError("a dictionary's keys must be strings or small numbers")
            target[key] = value
        self.nest(target, items)

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Inert):
            return
        if type(target) is not list:
            raise UnpicklingError("items are added to something that is no list")
        target.extend(items)
        self.nest(target, items)

    def name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise UnpicklingError("something that is no name is not admitted")
        self.stack.append(self.names(module, name))

    def reduce(self) -> None:
        """A "call": of one of our stand-ins, or refused."""
        name, arguments = self.pop(2)
        if not isinstance(name, Inert | Name) or type(arguments) is not tuple:
            raise UnpicklingError(f"a call of {getattr(name, 'text', type(name).__name__)} is not admitted")
        self.stack.append(name.reduce(*arguments))

    def new(self) -> None:
        name, arguments = self.pop(2)
        if not isinstance(name, Inert | Name) or type(arguments) is not tuple:
            raise UnpicklingError(f"an instance of {getattr(name, 'text', type(name).__name__)} is not admitted")
        self.stack.append(name.new(*arguments))

    def build(self) -> None:
        """An object's state. Of ours, two have one: those that describe an array."""
        target, state = self.pop(2)
        if hasattr(target, "set_state"):
            target = target.set_state(state, self.stream)
        elif type(target) is not dict:  # of an ordered dict: `_metadata`, which only says versions of modules
            raise UnpicklingError(f"a state for {getattr(target, 'text', type(target).__name__)} is not admitted")
        self.stack.append(target)


class Name:
    """An admitted name, and what takes the place of a call and of an instance.

    Args:
        text: as people write it.
        reduce: makes what a call would; None: it is not called.
        new: makes what takes the place of an instance, which has no arguments.
    """

    def __init__(
        self, text: str, reduce: Callable[..., Any] | None = None, new: Callable[[], Any] | None = None
    ) -> None:
        self.text, self._reduce, self._new = text, reduce, new

    def reduce(self, *arguments: Any) -> Any:
        if self._reduce is None:
            raise UnpicklingError(f"a call of {self.text} is not admitted")
        return self._reduce(*arguments)

    def new(self, *arguments: Any) -> Any:
        if self._new is None or arguments:
            raise UnpicklingError(f"an instance of {self.text} is not admitted")
        return self._new()


class Inert:
    """Something that is passed over, with all that it is made of."""

    def __init__(self, text: str) -> None:
        self.text = text

    def reduce(self, *arguments: Any) -> "Inert":
        return self

    new = reduce

    def set_state(self, state: Any, stream: Stream) -> "Inert":
        return self

    def __repr__(self) -> str:
        return f"<{self.text}>"


Instruction = Callable[[Machine], None]
_Argument = Callable[[Stream], Any]


# Arguments of instructions, as they are read.


def _number(n: int, signed: bool = False) -> _Argument:
    return lambda stream: int.from_bytes(stream.take(n), "little", signed=signed)


def _long(stream: Stream) -> int:
    n = _number(1)(stream)
    if n > LONGEST_NUMBER:
        raise UnpicklingError(f"a number of {n} bytes")
    return int.from_bytes(stream.take(n), "little", signed=True)


def _text(n: int) -> _Argument:
    return lambda stream: str(stream.take(_number(n)(stream)), "utf-8", "surrogatepass")


def _bytes(n: int) -> _Argument:
    def read(stream: Stream) -> bytes | Block:
        size = _number(n)(stream)
        large = size >= _LARGE and isinstance(stream.place, Path)
        return stream.skip(size) if large else stream.take(size)

    return read


# Instructions, made of what they do.


def _push(read: _Argument) -> Instruction:
    return lambda m: m.stack.append(read(m.stream))


def _ignore(n: int) -> Instruction:
    def ignore(machine: Machine) -> None:
        machine.stream.take(n)

    return ignore


def _recall(read: _Argument) -> Instruction:
    return lambda m: m.stack.append(m.memo[read(m.stream)])


def _remember(read: _Argument | None) -> Instruction:
    def remember(machine: Machine) -> None:
        key = len(machine.memo) if read is None else read(machine.stream)
        machine.memo[key] = machine.stack[-1]

    return remember


INSTRUCTIONS: dict[str, Instruction] = {
    "PROTO": _ignore(1),
    "FRAME": _ignore(8),
    "NONE": _push(lambda _: None),
    "NEWTRUE": _push(lambda _: True),
    "NEWFALSE": _push(lambda _: False),
    "BININT1": _push(_number(1)),
    "BININT2": _push(_number(2)),
    "BININT": _push(_number(4, signed=True)),
    "LONG1": _push(_long),
    "BINFLOAT": _push(lambda stream: struct.unpack(">d", stream.take(8))[0]),
    "SHORT_BINUNICODE": _push(_text(1)),
    "BINUNICODE": _push(_text(4)),
    "BINUNICODE8": _push(_text(8)),
    "SHORT_BINBYTES": _push(_bytes(1)),
    "BINBYTES": _push(_bytes(4)),
    "BINBYTES8": _push(_bytes(8)),
    "EMPTY_TUPLE": _push(lambda _: ()),
    "EMPTY_LIST": _push(lambda _: []),
    "EMPTY_DICT": _push(lambda _: {}),
    "MARK": lambda m: m.marks.append(len(m.stack)),
    "TUPLE": lambda m: m.push_tuple(m.pop_to_mark()),
    "TUPLE1": lambda m: m.push_tuple(m.pop(1)),
    "TUPLE2": lambda m: m.push_tuple(m.pop(2)),
    "TUPLE3": lambda m: m.push_tuple(m.pop(3)),
    "APPEND": lambda m: m.extend(m.pop(1)),
    "APPENDS": lambda m: m.extend(m.pop_to_mark()),
    "SETITEM": lambda m: m.set_items(m.pop(2)),
    "SETITEMS": lambda m: m.set_items(m.pop_to_mark()),
    "BINGET": _recall(_number(1)),
    "LONG_BINGET": _recall(_number(4)),
    "BINPUT": _remember(_number(1)),
    "LONG_BINPUT": _remember(_number(4)),
    "MEMOIZE": _remember(None),
    "GLOBAL": lambda m: m.name(m.stream.line(), m.stream.line()),
    "STACK_GLOBAL": lambda m: m.name(*m.pop(2)),
    "REDUCE": lambda m: m.reduce(),
    "NEWOBJ": lambda m: m.new(),
    "BUILD": lambda m: m.build(),
}

_NAME_OF_CODE = {op.code.encode("latin-1"): op.name for op in pickletools.opcodes}
