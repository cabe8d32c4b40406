"""Initialise any timm architecture with parameters predicted by a Graph HyperNetwork.

>>> import timm, timm_ghn_init
>>> model = timm.create_model("convnext_base", pretrained="ghn-orth")
"""

from typing import TYPE_CHECKING, Any

from .integration.public_paths import provide
from .integration.registration import register, unregister
from .registry import register_source
from .sources import Source, list_sources, parse_source

if TYPE_CHECKING:
    from .checkpoints.load import CheckpointError, fetch, load_ghn, save_ghn
    from .ghn import GHN
    from .graph import Graph, TraceError, trace
    from .initialize import init_model
    from .integration.create import create_sharded
    from .recipe.postprocessing import postprocess
    from .report import InitReport
    from .sharded.save import save_sharded
    from .weights.hub import HubError
    from .weights.push import push_model

from .version import __version__

# Loaded on first use, so that importing the package costs next to nothing.
_LAZY = {
    "CheckpointError": "checkpoints.load",
    "fetch": "checkpoints.load",
    "load_ghn": "checkpoints.load",
    "save_ghn": "checkpoints.load",
    "GHN": "ghn",
    "Graph": "graph",
    "HubError": "weights.hub",
    "TraceError": "graph",
    "trace": "graph",
    "init_model": "initialize",
    "postprocess": "recipe.postprocessing",
    "push_model": "weights.push",
    "InitReport": "report",
    "create_sharded": "integration.create",
    "save_sharded": "sharded.save",
}

__all__ = [
    "GHN",
    "CheckpointError",
    "Graph",
    "HubError",
    "InitReport",
    "Source",
    "TraceError",
    "__version__",
    "create_sharded",
    "fetch",
    "init_model",
    "list_sources",
    "load_ghn",
    "parse_source",
    "postprocess",
    "push_model",
    "register",
    "register_source",
    "save_ghn",
    "save_sharded",
    "trace",
    "unregister",
]


if not TYPE_CHECKING:  # which would take any name for one of these

    def __getattr__(name: str) -> Any:
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(f".{_LAZY[name]}", __name__), name)
        if name == "trace":
            import_module(".lab.draw", __name__)  # so that graphs draw themselves in notebooks
        return value


def __dir__() -> list[str]:
    return sorted(__all__)


provide()
register()
