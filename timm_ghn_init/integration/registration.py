"""The sources are known to timm as soon as it is imported, and not before: importing timm takes seconds."""

import sys
from collections.abc import Callable
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from ..utils.text import logger

_logger = logger(__name__)


def register() -> None:
    """Make the sources known to timm: now, or where timm is not imported yet, as soon as it is.

    Importing the package does so; calling it again changes nothing.
    """
    if _timm not in sys.meta_path:
        sys.meta_path.insert(0, _timm)
    if "timm" in sys.modules:  # it may be on its way, in another thread
        from . import timm_hooks

        timm_hooks.register()


def unregister() -> None:
    """Put timm back as it was before `register`. Calling it again changes nothing."""
    if _timm in sys.meta_path:
        sys.meta_path.remove(_timm)
    if "timm" in sys.modules:
        from . import timm_hooks

        timm_hooks.unregister()


class WhenImported(MetaPathFinder):
    """Calls `act` whenever a module has been imported. A fault in `act` is logged and does not stop the import."""

    def __init__(self, name: str, act: Callable[[], object]) -> None:
        self.name, self.act = name, act

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == self.name else None
        loader: Any = spec and spec.loader
        if hasattr(loader, "exec_module"):
            loader.exec_module = partial(self._load, loader.exec_module)
        return spec

    def _load(self, load: Callable[[ModuleType], None], module: ModuleType) -> None:
        load(module)
        try:
            self.act()
        except Exception as error:
            _logger.warning("%s is imported, but not told of timm_ghn_init's sources: %r", self.name, error)


_timm = WhenImported("timm.models", register)  # whose import registers all architectures
