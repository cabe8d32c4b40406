"""`inspect`: the graph of an architecture in numbers."""

import argparse
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from ..sources import DEFAULT
from .arguments import Command, add_architecture
from .messages import table
from .models import trace_model

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..graph import Graph


def add(command: Command) -> None:
    sub = command("inspect", inspect)
    add_architecture(sub)
    sub.add_argument("--source", default=DEFAULT, help="whose graph: GHN-3's differs (default: %(default)s)")
    sub.add_argument("--json", action="store_true", help="for programs")


def inspect(args: argparse.Namespace) -> int:
    """Print the graph's statistics and which parameters are predicted, without a checkpoint."""
    statistics = _statistics(args.arch, *trace_model(args))
    print(json.dumps(statistics, indent=2) if args.json else _as_text(statistics))
    return 0


def _statistics(arch: str, model: "nn.Module", graph: "Graph") -> dict[str, Any]:
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    return {
        "architecture": arch,
        "input_size": list(graph.input_size),
        "nodes": len(graph.nodes),
        "edges": len(graph.edges),
        "virtual_edges": int((graph.distances() > 1).sum()),
        "primitives": dict(Counter(node.primitive for node in graph.nodes).most_common()),
        "tensors": len(sizes),
        "tensors_predicted": len(graph.targets),
        "values": sum(sizes.values()),
        "values_predicted": sum(sizes[name] for name in graph.targets),
        "parameters": [_parameter(name, p, graph) for name, p in model.named_parameters()],
    }


def _parameter(name: str, parameter: "Tensor", graph: "Graph") -> dict[str, Any]:
    """Whether a parameter is predicted, as what, and why not; the classifier only with as many classes as the GHN's."""
    target = graph.targets.get(name)
    return {
        "name": name,
        "shape": list(parameter.shape),
        "predicted": target is not None,
        "role": target.role if target else None,
        "classifier": bool(target and target.classifier),
        "reason": graph.skipped.get(name),
    }


def _as_text(s: dict[str, Any]) -> str:
    rows = []
    for p in s["parameters"]:
        role = f"{p['role']} (classifier)" if p["classifier"] else p["role"]
        rows.append((p["name"], "x".join(map(str, p["shape"])) or "scalar", role or "-", p["reason"] or ""))
    share = s["values_predicted"] / max(1, s["values"])
    return "\n".join(
        (
            f"{s['architecture']}, input {'x'.join(map(str, s['input_size']))}",
            f"{s['nodes']} nodes, {s['edges']} edges, {s['virtual_edges']} virtual edges (paths of 2 to 50 edges)",
            "",
            table(("primitive", "nodes"), s["primitives"].items()),
            "",
            table(("parameter", "shape", "predicted as", "why not"), rows),
            "",
            f"{s['tensors_predicted']} of {s['tensors']} parameters are predicted, {share:.2%} of {s['values']:,} "
            "values; the classifier only by a GHN for the same number of classes.",
        )
    )
