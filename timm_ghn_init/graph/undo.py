"""Undoes the writes of a forward pass: attributes, containers, objects and memory.

All that hangs on the modules is looked at before and after, and only what differs is touched, with the methods of the
built-in types themselves: a container that refuses to be written to and has not changed is none of our business.
"""

import gc
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from functools import _lru_cache_wrapper, partial
from operator import is_
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

LARGEST_ARRAY = 2**24  # bytes of a NumPy array that is kept


class Undo:
    """The state of modules, and of what they hold, to be brought back.

    Attributes:
        hidden: modules that others hold in a list, say, and have not registered.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.hidden: list[nn.Module] = []
        self._empty: list[Any] = []  # most of a module's containers are, and need no copy
        self._saved: list[tuple[_Kind, Any, Any]] = []
        self._memory: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._made: set[int] = set()
        classes = {c for cls in {type(m) for m in modules} for c in cls.__mro__ if not _is_foreign(c)}
        self._misses = {f: f.cache_info().misses for f in _cached_functions(classes)}
        self._saved += [(_CLASS, c, _own(c)) for c in classes]
        own = [value for _, _, content in self._saved for value in content.values()]
        self._look_at([*own, *modules], {id(m) for m in modules})

    def _look_at(self, things: list[Any], known: set[int]) -> None:
        # Objects that hooks hold belong to the user, who wants to find the notes that the hooks made.
        held_by = [vars(m).get(name) for m in things if isinstance(m, nn.Module) for name in _HOOKS]
        seen = {id(hook) for hooks in held_by if hooks for hook in hooks.values()}
        kinds: dict[type, tuple[_Kind, ...]] = {}
        while things:
            thing = things.pop()
            if id(thing) in seen:
                continue
            cls = type(thing)
            seen.add(id(thing))
            if cls not in kinds:
                kinds[cls] = _kinds(cls)
            if isinstance(thing, nn.Module) and id(thing) not in known:
                self.hidden.append(thing)
            for kind in kinds[cls]:
                content = kind.content(thing)
                self._saved.append((kind, thing, content))
                for held in kind.held(content):
                    cls = type(held)
                    if cls in _PLAIN and not held:
                        self._empty.append(held)
                    elif cls not in _ATOMS and not (cls is tuple and _ATOMS.issuperset(map(type, held))):
                        things.append(held)

    def made(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        """Note memory that an operation has newly made, so that nobody else's values are in it."""
        given = {t.untyped_storage()._cdata for t in inputs}
        self._made.update({t.untyped_storage()._cdata for t in outputs} - given)

    def keep(self, tensor: Tensor) -> None:
        """Keep the values of memory that is about to be written to, unless it is new: it may be the model's."""
        if not tensor.is_meta:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._made and storage._cdata not in self._memory:
                self._memory[storage._cdata] = (storage, storage.clone())

    def __call__(self) -> None:
        """Put everything back, whatever one of the things raises; the first error is raised in the end."""
        errors = []
        for thing in self._empty:
            if thing:
                thing.clear()
        for kind, thing, content in self._saved:
            try:
                if kind.differs(kind.content(thing), content):
                    kind.put_back(thing, content)
            except Exception as error:
                errors.append(error)
        for storage, values in self._memory.values():
            storage.copy_(values)
        for function, misses in self._misses.items():
            if function.cache_info().misses != misses:
                function.cache_clear()  # of what has no values
        if errors:
            raise errors[0]


def _cached_functions(classes: Iterable[type]) -> set[Any]:
    """Functions with a cache of their own: methods, and those in the files of the classes."""
    files = {str(c.__module__) for c in classes} & sys.modules.keys()
    spaces = [vars(space) for space in (*classes, *map(sys.modules.get, files))]
    return {f for space in spaces for f in space.values() if isinstance(f, _lru_cache_wrapper)}


# -- kinds of things ---------------------------------------------------------------------------------------------------


class _Kind(NamedTuple):
    """One kind of thing that a forward pass may write to, or that holds others."""

    content: Callable[[Any], Any]  # a copy of what it holds
    held: Callable[[Any], Iterable[Any]]  # what else to look at, given that
    differs: Callable[[Any, Any], bool]  # of two copies
    put_back: Callable[[Any, Any], object]


def _items_differ(a: Any, b: Any) -> bool:
    return not (len(a) == len(b) and all(map(is_, a, b)))


def _entries_differ(a: dict[Any, Any], b: dict[Any, Any]) -> bool:
    return _items_differ(a, b) or _items_differ(a.values(), b.values())


def _items(content: Callable[[Any], Any], put_back: Callable[[Any, Any], object]) -> _Kind:
    return _Kind(content, iter, _items_differ, put_back)


def _entries(content: Callable[[Any], dict[Any, Any]], put_back: Callable[[Any, Any], object]) -> _Kind:
    return _Kind(content, dict.values, _entries_differ, put_back)


def _values(content: Any, differs: Callable[[Any, Any], bool], put_back: Callable[[Any, Any], object]) -> _Kind:
    return _Kind(content, lambda content: (), differs, put_back)


def _fixed(held: Callable[[Any], Iterable[Any]]) -> _Kind:
    """Holds others and does not itself change."""
    return _Kind(held, iter, lambda a, b: False, lambda thing, content: None)


def _refill(clear: Any, fill: Any) -> Callable[[Any, Any], None]:
    def put_back(thing: Any, content: Any) -> None:
        clear(thing)
        fill(thing, content)

    return put_back


def _set_entries(thing: Any, content: dict[Any, Any]) -> None:
    for key, value in content.items():
        OrderedDict.__setitem__(thing, key, value)


def _attributes(thing: Any) -> dict[str, Any]:
    return object.__getattribute__(thing, "__dict__")


def _set_class_attributes(cls: type, content: dict[str, Any]) -> None:
    for name in _own(cls).keys() - content.keys():
        type.__delattr__(cls, name)
    for name, value in content.items():
        if vars(cls).get(name) is not value:
            type.__setattr__(cls, name, value)


def _own(cls: type) -> dict[str, Any]:
    """The attributes of a class besides its methods and what Python keeps there."""
    skipped = (types.FunctionType, classmethod, staticmethod, property, types.MemberDescriptorType)
    return {k: v for k, v in vars(cls).items() if not (k.startswith("__") or isinstance(v, skipped))}


def _function_holds(f: types.FunctionType) -> tuple[Any, ...]:
    return () if _is_foreign(f) else (f.__dict__, f.__closure__, f.__defaults__, f.__kwdefaults__)


def _cell(cell: types.CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # not bound yet
        return ()


def _fill_cell(cell: types.CellType, content: tuple[Any, ...]) -> None:
    if content:
        cell.cell_contents = content[0]
    else:
        del cell.cell_contents


def _array(array: np.ndarray) -> np.ndarray | None:
    return array.copy() if array.flags.writeable and array.nbytes <= LARGEST_ARRAY else None


def _slots_of(cls: type) -> list[Any]:
    spaces = [vars(c) for c in cls.__mro__ if "__slots__" in vars(c)]
    return [d for space in spaces for d in space.values() if isinstance(d, types.MemberDescriptorType)]


def _slots(descriptors: list[Any]) -> _Kind:
    def content(thing: Any) -> list[Any]:
        values = []
        for d in descriptors:
            try:
                values.append(d.__get__(thing))
            except AttributeError:
                values.append(_MISSING)
        return values

    def put_back(thing: Any, values: list[Any]) -> None:
        for d, now, before in zip(descriptors, content(thing), values, strict=True):
            if before is not _MISSING:
                d.__set__(thing, before)
            elif now is not _MISSING:
                d.__delete__(thing)

    return _items(content, put_back)


_MISSING = object()
_HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith("_hooks"))
_ATOMS = {type(None), bool, int, float, complex, str, bytes, type(...), types.BuiltinFunctionType, types.ModuleType}
_ATOMS |= {Tensor, nn.Parameter, torch.Size, torch.dtype, torch.device, type(_MISSING)}
_PLAIN = {dict, OrderedDict, list, set}

# The first that fits counts.
_BUILT_IN: dict[type, _Kind] = {
    OrderedDict: _entries(lambda d: dict(OrderedDict.items(d)), _refill(OrderedDict.clear, _set_entries)),
    dict: _entries(lambda d: dict(dict.items(d)), _refill(dict.clear, dict.update)),
    list: _items(list.copy, lambda v, items: list.__setitem__(v, slice(None), items)),
    deque: _items(lambda v: list(deque.__iter__(v)), _refill(deque.clear, deque.extend)),
    types.CellType: _items(_cell, _fill_cell),
    set: _Kind(lambda v: frozenset(set.__iter__(v)), iter, frozenset.__ne__, _refill(set.clear, set.update)),
    bytearray: _values(bytes, bytes.__ne__, lambda v, old: bytearray.__setitem__(v, slice(None), old)),
    np.ndarray: _values(_array, lambda a, b: not np.array_equal(a, b), np.copyto),
    torch.Generator: _values(torch.Generator.get_state, lambda a, b: not a.equal(b), torch.Generator.set_state),
    tuple: _fixed(tuple.__iter__),
    frozenset: _fixed(frozenset.__iter__),
    types.MappingProxyType: _fixed(gc.get_referents),
    types.FunctionType: _fixed(_function_holds),
    types.MethodType: _fixed(lambda m: (m.__self__, m.__func__)),
    partial: _fixed(lambda p: (p.func, p.args, p.keywords)),
}
_ATTRIBUTES = _entries(
    lambda v: _attributes(v).copy(), lambda v, old: _refill(dict.clear, dict.update)(_attributes(v), old)
)
_CLASS = _entries(_own, _set_class_attributes)

# Only these modules of the standard library and PyTorch define things that belong to the model alone. A logger, a lock,
# a stream or a process group is shared by the whole process.
_CONTAINERS = frozenset(("builtins", "collections", "types", "weakref", "functools"))


def _kinds(cls: type) -> tuple[_Kind, ...]:
    """How to look at things of this class."""
    if issubclass(cls, (Tensor, type, types.ModuleType)):
        return ()
    found = [kind for base, kind in _BUILT_IN.items() if issubclass(cls, base)][:1]
    if issubclass(cls, nn.Module) or not _is_foreign(cls) or cls.__module__ in _CONTAINERS:
        found += [_ATTRIBUTES] if cls.__dictoffset__ else []
        found += [_slots(descriptors)] if (descriptors := _slots_of(cls)) else []
    return tuple(found)


def _is_foreign(defined: Any) -> bool:
    """Whether a class or function belongs to the standard library or to PyTorch."""
    package = str(defined.__module__).partition(".")[0]
    return package == "torch" or package in sys.stdlib_module_names
