"""Graph HyperNetworks: Graph -> embeddings -> parameter tensors. Knows shapes and weights, nothing of timm."""

from typing import TYPE_CHECKING, Any

from .facts import Facts

if TYPE_CHECKING:
    from .model import GHN
    from .tiles import Tile

__all__ = ["GHN", "Facts", "Tile"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import PyTorch only if it is needed: `timm-ghn-init list` reads facts and no weights."""
        from importlib import import_module

        if name not in ("GHN", "Tile"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = import_module(".model" if name == "GHN" else ".tiles", __name__)
        return globals().setdefault(name, getattr(module, name))
