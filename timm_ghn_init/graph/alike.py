"""Which modules of a model are alike: they do the same to the same, with parameters of their own.

Told by what they are and hold, and only where that tells with certainty. Modules of other packages than those below,
with hooks, with a forward or a function of their own, with shared or frozen parameters, or with anything among their
attributes that is not a plain value are like no other.
"""

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from enum import Enum
from functools import partial
from itertools import islice
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

# What their modules do depends on nothing but inputs, attributes and tensors; everybody else's may count its calls.
PACKAGES = frozenset(("torch", "torchvision", "timm"))
# What of theirs is of no consequence in eval mode, by class.
_FOR_TRAINING = {
    **dict.fromkeys(("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "StochasticDepth"), frozenset(("p",))),
    "DropPath": frozenset(("drop_prob", "scale_by_keep")),
}
# Looked into apart, or of saving, loading and backward passes.
_HELD = frozenset(
    (
        *("_parameters", "_buffers", "_modules"),
        *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
        *("_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook", "_non_persistent_buffers_set"),
    )
)
_HOOKS = frozenset(name for name, held in vars(nn.Module()).items() if isinstance(held, dict)) - _HELD
_ATOMS = frozenset(
    (type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device, torch.memory_format)
)
_GLOBAL = nn.modules.module  # where hooks are that all modules have
_LARGEST = 2**16  # bytes of a buffer that is compared


class Unlike(Exception):
    """There is something about a module that may make it another's unlike."""


def alike(modules: Sequence[nn.Module], originals: Mapping[int, Tensor]) -> Iterator[tuple[nn.Module, int]]:
    """Blocks that are alike and lie side by side, each with the number of its kind.

    Others are seldom called with the same. What is inside of a block that is yielded is not looked at.

    Args:
        modules: all modules of a model, itself first, in eval mode.
        originals: of parameters and buffers, by id of what stands in for them.
    """
    if _GLOBAL._global_forward_hooks or _GLOBAL._global_forward_pre_hooks:
        return
    kinds = _Kinds(modules, originals)
    parents = [modules[0]]
    while parents:
        looks = [(child, _look(child)) for child in parents.pop().children()]
        seen = Counter(look for _, look in looks)
        found = [(child, kinds.of(child) if look and seen[look] > 1 else None) for child, look in looks]
        counts = Counter(kind for _, kind in found)
        for child, kind in found:
            if kind is not None and counts[kind] > 1:
                yield child, kind
            else:
                parents.append(child)


def _look(module: nn.Module) -> tuple[type, Any] | None:
    """What is told at once, and is equal for modules that are alike: the class and the shape of the first parameter.

    None for a single layer, which is recorded as fast as told.
    """
    layers = list(islice((m._parameters for m in module.modules() if m._parameters), 2))
    return (type(module), getattr(next(iter(layers[0].values())), "shape", None)) if len(layers) == 2 else None


class _Kinds:
    """The kind of each module: a number that is equal for modules that are alike, None for one that is like no other.

    Attributes:
        known: by id of the module.
    """

    def __init__(self, modules: Sequence[nn.Module], originals: Mapping[int, Tensor]) -> None:
        self.known: dict[int, int | None] = {}
        self._originals = originals
        owners = Counter(id(p) for m in modules for p in m._parameters.values() if p is not None)
        parents = Counter(id(child) for m in modules for child in m._modules.values() if child is not None)
        self._shared = {key for counts in (owners, parents) for key, n in counts.items() if n > 1}
        self._classes: dict[type, bool] = {}
        self._numbers: dict[Hashable, int] = {}

    def of(self, module: nn.Module) -> int | None:
        if id(module) not in self.known:
            try:
                self.known[id(module)] = self._numbers.setdefault(self._content(module), len(self._numbers))
            except Unlike:
                self.known[id(module)] = None
        return self.known[id(module)]

    def _content(self, module: nn.Module) -> Hashable:
        cls = type(module)
        if cls not in self._classes:
            self._classes[cls] = _is_known(cls)
        held = vars(module)
        if not self._classes[cls] or id(module) in self._shared or "forward" in held:
            raise Unlike
        skipped = _HELD if module.training else _HELD | _FOR_TRAINING.get(cls.__name__, _HELD)
        return (
            cls,
            tuple([self._parameter(name, p) for name, p in held["_parameters"].items()]),
            tuple([self._buffer(module, name, b) for name, b in held["_buffers"].items()]),
            tuple([(name, self._child(m)) for name, m in held["_modules"].items()]),
            tuple([(k, plain(v)) for k, v in held.items() if k not in skipped and not (k in _HOOKS and not v)]),
        )

    def _parameter(self, name: str, p: Tensor | None) -> Hashable:
        if p is None:
            return name
        original = self._originals[id(p)]
        if id(p) in self._shared or type(original) is not nn.Parameter or not original.requires_grad:
            raise Unlike
        return name, p.shape, p.stride(), p.dtype

    def _buffer(self, module: nn.Module, name: str, b: Tensor | None) -> Hashable:
        if b is None:
            return name
        known = name, b.shape, b.stride(), b.dtype
        if isinstance(module, nn.modules.batchnorm._NormBase):
            return known
        original = self._originals.get(id(b), b)
        if original.is_meta:
            return known
        if original.device.type != "cpu" or original.nbytes > _LARGEST:
            raise Unlike
        return *known, original.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()

    def _child(self, module: nn.Module | None) -> int | None:
        if module is None:
            return None
        kind = self.of(module)
        if kind is None:
            raise Unlike
        return kind


def _is_known(cls: type) -> bool:
    """Whether a class and its bases are of known packages, with the methods that they came with."""
    for base in cls.__mro__:
        if base is nn.Module or base is object:
            continue
        functions = [f for f in vars(base).values() if isinstance(f, FunctionType)]
        if not all(_is_of_packages(thing) for thing in (base, *functions)):
            return False
    return True


def _is_of_packages(thing: Any) -> bool:
    return str(thing.__module__).partition(".")[0] in PACKAGES


def plain(value: Any) -> Hashable:
    """Equal for equal plain values of the same type. What is empty may be there to be filled.

    Raises:
        Unlike: it is none.
    """
    cls = type(value)
    if cls in _ATOMS:
        return cls, value
    if cls is tuple or (cls is list and value):
        return cls, tuple([plain(v) for v in value])
    if cls is dict and value:
        return cls, tuple([(plain(k), plain(v)) for k, v in value.items()])
    if cls is partial and not value.__dict__:
        return cls, plain(value.func), plain(value.args), plain(value.keywords)
    if cls is BuiltinFunctionType or isinstance(value, Enum) or (isinstance(value, type) and _is_of_packages(value)):
        return value
    if cls is FunctionType and value.__closure__ is None and _is_of_packages(value):
        return value
    raise Unlike
