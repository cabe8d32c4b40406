"""The sources are known to timm as soon as it is imported, and not before: importing timm takes seconds."""

import sys
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec
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


class WhenImported:
    """On `sys.meta_path`: calls `act` whenever a module has been imported, which is left to the other finders.

    Nothing that `act` raises keeps the module from being imported; it is said.
    """

    def __init__(self, name: str, act: Callable[[], object]) -> None:
        self.name, self.act = name, act
        self._thread = threading.local()  # .asking: whether the other finders are being asked

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.name or getattr(self._thread, "asking", False):
            return None
        self._thread.asking = True  # of them, others may do as we do
        try:
            finders = [find for f in sys.meta_path if f is not self and (find := getattr(f, "find_spec", None))]
            spec = next((spec for find in finders if (spec := find(name, path, target))), None)
        finally:
            self._thread.asking = False
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader, self._done)  # type: ignore[assignment]  # as much of one as it takes
        return spec

    def _done(self) -> None:
        try:
            self.act()
        except Exception as error:
            _logger.warning("%s is imported, but not told of timm_ghn_init's sources: %r", self.name, error)


class _Loader:
    """Another loader, and what is to be done afterwards."""

    def __init__(self, original: Any, done: Callable[[], None]) -> None:
        self.original, self.done = original, done

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.original.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self.original  # whoever asks later finds what would have been there without us
        module.__loader__ = self.original
        self.original.exec_module(module)
        self.done()


_timm = WhenImported("timm.models", register)  # whose import registers all architectures
