"""The reference implementations, where they are importable, behind one interface: oracles to run, never to copy."""

import contextlib
import importlib
import io
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from timm_ghn_init.ghn import GHN

PEERS = ("ppuda", "ghn3")


class Peer(NamedTuple):
    """A reference implementation that holds the weights of one of our GHNs."""

    name: str
    graph: Callable[[nn.Module], Any]
    predict: Callable[[nn.Module, Any], Any]  #: in place; (model, what `graph` returned)
    postprocess: Callable[[nn.Module, int], Any]  #: in place; (model, first layer)


def load_peer(name: str, ghn: GHN) -> Peer:
    """Build the GHN of a reference implementation, on the CPU, with the weights of ours.

    Args:
        name: "ppuda" (GHN-1, GHN-2) or "ghn3" (GHN-3).
        ghn: of the kind that this package has.

    Raises:
        ImportError: the package, or something that it needs, is not installed.
    """
    theirs = _ppuda(ghn) if name == "ppuda" else _ghn3(ghn)
    theirs.load_state_dict(ghn.state_dict())
    # Not `ghn3.nn`, the attribute: their star imports put torch.nn there.
    graphs = importlib.import_module("ppuda.deepnets1m.graph" if name == "ppuda" else "ghn3.graph")
    batch = {} if name == "ppuda" else {"dense": True}
    init = importlib.import_module("ppuda.utils.init").init

    def graph(model: nn.Module) -> Any:
        found = graphs.GraphBatch([graphs.Graph(model, ve_cutoff=50)], **batch)
        found.to_device("cpu")
        return found

    return Peer(
        name,
        _silent(graph),
        _silent(lambda model, graph: theirs(model, graphs=graph)),
        _silent(lambda model, layer: init(model, orth=True, beta=3e-5, layer=layer)),
    )


def _ppuda(ghn: GHN) -> nn.Module:
    return importlib.import_module("ppuda.ghn.nn").GHN(**ghn.config, debug_level=0).eval()


def _ghn3(ghn: GHN) -> nn.Module:
    config = {key: value for key, value in ghn.config.items() if key not in ("hypernet", "decoder")}
    return importlib.import_module("ghn3.nn").GHN3(**config, debug_level=0).eval()


def _silent(function: Callable[..., Any]) -> Callable[..., Any]:
    def quiet(*args: Any) -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            return function(*args)

    return quiet
