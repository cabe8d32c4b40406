"""The short import paths of what is in `lab/`: `timm_ghn_init.finetune` is the module `timm_ghn_init.lab.finetune`.

The folder groups what uses the core; users need not know about it. Both paths give the same module objects.
"""

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_PACKAGE = __name__.partition(".")[0]
NAMES = ("analysis", "draw", "finetune", "images", "training")


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != _PACKAGE or name.partition(".")[0] not in NAMES:
            return None
        return ModuleSpec(fullname, _Loader(f"{_PACKAGE}.lab.{name}"))


class _Loader(Loader):
    def __init__(self, name: str) -> None:
        self._name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the module keeps its own name: nothing is executed twice


def provide() -> None:
    """Make the short paths importable. Calling it again changes nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())  # before the one that would load a file again under its short name
