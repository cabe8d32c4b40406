"""A network's primitive graph: model -> Graph. Knows torch.nn, nothing of hypernetworks or timm."""

from .graph import KINDS, PRIMITIVES, Dialect, Graph, Node, Place, Role, Target
from .trace import TraceError, model_name, trace, trace_supported
from .unsupported import refuse_unsupported

__all__ = [
    "KINDS",
    "PRIMITIVES",
    "Dialect",
    "Graph",
    "Node",
    "Place",
    "Role",
    "Target",
    "TraceError",
    "model_name",
    "refuse_unsupported",
    "trace",
    "trace_supported",
]
