"""The table of initialisations: built in, registered by the user, or by packages that are installed.

A row is a name, its keys, and a function from a model to values. The function of a GHN is `PREDICTION`, which the
recipe computes itself; `rand`, `orth` and all others yield the values. `register_source` adds a row.

Packages name theirs in the entry-point group `GROUP`. They are looked for when a name is not in the table, or when all
sources are listed, and imported when they are used.
"""

import hashlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from .utils.checks import FINITE, FLAG, InputError, Kind, shown, whole
from .version import __version__

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

F = TypeVar("F", bound=Callable[..., Any] | str)

GROUP = "timm_ghn_init.sources"
PREDICTION = "timm_ghn_init.recipe.offer:predicted"  # the function of a source that a GHN predicts
SHARED = ("seed", "layer_scale", "only", "skip", "cache")  # keys of every source
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_RESERVED = re.compile(r"ghn(?![a-z])|ghnorth|mlp-cifar")  # what begins like a GHN's name and is none is a mistake
_TAKEN = (*SHARED, "layer", "beta", "orth", "classifier", "hub", "push")
_KINDS: dict[type, Kind] = {
    bool: Kind("0 or 1", FLAG.valid, FLAG.parse),
    int: whole(-(2**63)),
    float: FINITE,
    str: Kind("text without &", lambda value: isinstance(value, str) and value != "" and "&" not in value),
}


@dataclass(frozen=True)
class Initialisation:
    """A row of the table.

    Attributes:
        name: as in a source string.
        function: gives the values (see `register_source`), or "module:name", where it is found when it is needed.
        keys: of its own -> what their values may be.
        defaults: of those that the function does not have itself.
        description: one line for lists.
        paper: title.
        arxiv: identifier of the paper.
        orthogonal: whether its weights are made orthogonal afterwards, from the layer on that its key `layer` names.
        effective: whether its values are those that layers compute with.
    """

    name: str
    function: Callable[..., Any] | str
    keys: Mapping[str, Kind] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    paper: str = ""
    arxiv: str = ""
    orthogonal: bool = False
    effective: bool = False

    @property
    def shared(self) -> tuple[str, ...]:
        """Its keys that other sources have too."""
        return ("layer",) * self.orthogonal + SHARED

    @property
    def digest(self) -> str:
        """sha256, in hex, of the code that the function comes from, so that results of other code are told apart."""
        if isinstance(self.function, str):
            return hashlib.sha256(f"{self.function} {__version__}".encode()).hexdigest()
        try:
            code = inspect.getsource(inspect.getmodule(self.function) or self.function)
        except (OSError, TypeError):  # typed into an interpreter, or compiled
            code = repr(getattr(self.function, "__code__", self.function))
        return hashlib.sha256(code.encode()).hexdigest()

    def load(self) -> Callable[..., Any]:
        """Its function."""
        if not isinstance(self.function, str):
            return self.function
        module, _, name = self.function.partition(":")
        return getattr(import_module(module), name)  # type: ignore[no-any-return]


_table: dict[str, Initialisation] = {}


def register_source(
    name: str,
    function: Callable[..., Any] | str | None = None,
    *,
    keys: Mapping[str, Any] | None = None,
    description: str = "",
    paper: str = "",
    arxiv: str = "",
    orthogonal: bool = False,
    effective: bool = False,
    replace: bool = False,
) -> Any:
    """Add an initialisation, which has a name in source strings and tags from then on. Also a decorator.

    Args:
        name: lower-case words with "-" between them.
        function: called with the model, which it must not change, the seed, and its own keys by name; yields pairs of a
            parameter's name and its value, a tensor of the parameter's shape. Text instead of a tensor is the reason
            why that parameter has no value. Random numbers without a generator start from the seed. A
            parameter called `graph` gets the model's `Graph`. Default: `register_source` is used as a decorator.
        keys: name of a key -> its default (a number, text, True or False) or its type (bool, int, float, str), or a
            `Kind`. Default: the keyword-only parameters of the function, by their defaults or annotations.
        description: one line for lists. Default: the first line of the function's docstring.
        paper, arxiv: title and identifier of a paper.
        orthogonal: have the weights made orthogonal afterwards, as in arXiv 2207.10049, Eq. (2), but for the last
            layer; the source then has the key `layer`.
        effective: the values are those that layers compute with: a parameter that its layer multiplies by a constant
            (equalised learning rate) gets its value divided by that.
        replace: take the place of an earlier registration of this name, in a notebook for instance.

    Returns:
        The function.

    Raises:
        ValueError: the name is taken or cannot be one, or a key is shared by all sources or has no type.

    Example:
        >>> @register_source("small")
        ... def small(model, seed, *, std: float = 0.01):
        ...     for name, p in model.named_parameters():
        ...         yield name, std * torch.randn(p.shape)
        >>> init_model(model, "small?std=0.1")
    """

    def add(given: F) -> F:
        if not callable(given) and not isinstance(given, str):
            raise InputError(f"register_source({shown(name)}): {shown(given)} is no function.")
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name.endswith("-orth"):
            raise InputError(f"register_source: {shown(name)} must be lower-case words with - between them, not -orth.")
        taken = name in _table and not (replace and callable(_table[name].function))
        if taken or (given != PREDICTION and _RESERVED.match(name)):
            raise InputError(f"register_source: the name {name} is taken. Choose another one.")
        own = keys if keys is not None else _defaults(given) if callable(given) else {}
        kinds = {key: _kind(name, key, value) for key, value in own.items()}
        passed = {key: value for key, value in (keys or {}).items() if not isinstance(value, (type, Kind))}
        about = description or (inspect.getdoc(given) or "").partition("\n")[0] * callable(given)
        _table[name] = Initialisation(name, given, kinds, passed, about, paper, arxiv, orthogonal, effective)
        return given

    return add if function is None else add(function)


def find(name: str) -> Initialisation | None:
    """The row of this name, from an installed package if need be; None if there is none."""
    if name not in _table and name in _installed():
        point = _installed()[name]
        try:
            function = point.load()  # which may register it
            if name not in _table:
                register_source(name, function)
        except Exception as error:
            raise InputError(
                f"The source {name} of the package {point.dist.name if point.dist else point.value} cannot be loaded: "
                f"{type(error).__name__}: {error}"
            ) from error
    return _table.get(name)


def is_known(name: str) -> bool:
    """Whether there is a row of this name. Nothing is imported for it."""
    return name in _table or name in _installed()


def names() -> list[str]:
    """The names of all rows, those of installed packages last. Nothing is imported for it."""
    return [*_table, *(n for n in _installed() if n not in _table)]


@lru_cache(maxsize=1)
def _installed() -> "dict[str, EntryPoint]":
    from importlib.metadata import entry_points  # takes longer to import than all else here

    return {point.name: point for point in entry_points(group=GROUP) if _NAME.fullmatch(point.name)}


def _defaults(function: Any) -> dict[str, Any]:
    """The keyword-only parameters of a function -> their defaults, or where these are None, their types."""
    own = {n: p for n, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY and n != "graph"}
    return {n: p.annotation if p.default in (None, p.empty) else p.default for n, p in own.items()}


def _kind(name: str, key: str, given: Any) -> Kind:
    """The allowed values of a source's own key."""
    if key in _TAKEN:
        raise InputError(f"register_source({name!r}): the key {key} has a meaning for all sources already.")
    if isinstance(given, Kind):
        return given
    by_name = {kind.__name__: kind for kind in _KINDS}
    wanted = given if isinstance(given, type) else by_name.get(given, str) if isinstance(given, str) else type(given)
    if wanted not in _KINDS:
        raise InputError(f"register_source({name!r}): {key} needs a default or a type: bool, int, float or str.")
    return _KINDS[wanted]
