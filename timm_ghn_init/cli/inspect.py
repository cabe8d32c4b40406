"""`inspect`: the graph of an architecture in numbers."""

import argparse
from collections import Counter
from typing import TYPE_CHECKING, Any

from ..report import percentage
from ..sources import DEFAULT
from .arguments import Command, add_architecture, add_patterns, add_source, read_source
from .messages import mistakes, table
from .models import Reads, build, read_ghn, trace_model
from .results import show

if TYPE_CHECKING:
    from torch import nn

    from ..graph import Graph
    from ..report import InitReport


def add(command: Command) -> None:
    sub = command("inspect", inspect, "inspect convnext_base --source ghn2 --num-classes 10")
    add_architecture(sub)
    add_source(sub, DEFAULT)
    add_patterns(sub)


def inspect(args: argparse.Namespace) -> int:
    """Print the graph's statistics and which parameters are predicted, without a checkpoint.

    The parameters that a source without a GHN initialises.
    """
    source = read_source(args)
    if source.initialisation or source.plus:
        from ..initialize import init_model

        with mistakes(ValueError):
            report = init_model(build(args)[0], source, input_size=args.img_size)
        show(args, report.to_dict(), lambda: _of_values(report))
        return 0
    ghn = read_ghn(str(source))
    statistics = _statistics(args.arch, ghn, *trace_model(args, ghn.dialect))
    show(args, statistics, lambda: _as_text(statistics))
    return 0


def _of_values(report: "InitReport") -> str:
    rows = [
        (name, f"{size:,}", report.predicted.get(name, "-"), report.parts.get(name, ""), report.skipped.get(name, ""))
        for name, size in report.sizes.items()
    ]
    return f"{report}\n\n{table(('parameter', 'values', 'initialised as', 'by', 'why not'), rows)}"


def _statistics(arch: str, ghn: Reads, model: "nn.Module", graph: "Graph") -> dict[str, Any]:
    from ..recipe.offer import predicted
    from ..recipe.plan import kept_parameters

    sizes = {name: p.numel() for name, p in model.named_parameters()}
    offer = predicted(graph, ghn.num_classes, ghn.source)
    with mistakes(ValueError):
        kept = kept_parameters(model, arch, ghn.source.only, ghn.source.skip, {})
    names, skipped = [n for n in offer.roles if n not in kept], {**offer.skipped, **kept}
    parameters = []
    for name, parameter in model.named_parameters():
        target = None if name in skipped else graph.targets.get(name)
        parameters.append(
            {
                "name": name,
                "shape": list(parameter.shape),
                "predicted": target is not None,
                "role": target.role if target else None,
                "classifier": bool(target and target.classifier),
                "reason": skipped.get(name),
            }
        )
    return {
        "architecture": arch,
        "source": str(ghn.source),
        "because": ghn.why or None,
        "num_classes": ghn.num_classes,
        "input_size": list(graph.input_size),
        "nodes": len(graph.nodes),
        "edges": len(graph.edges),
        "virtual_edges": int((graph.distances() > 1).sum()),
        "primitives": dict(Counter(node.primitive for node in graph.nodes).most_common()),
        "tensors": len(sizes),
        "tensors_predicted": len(names),
        "values": sum(sizes.values()),
        "values_predicted": sum(sizes[name] for name in names),
        "parameters": parameters,
    }


def _as_text(s: dict[str, Any]) -> str:
    rows = []
    for p in s["parameters"]:
        role = f"{p['role']} (classifier)" if p["classifier"] else p["role"]
        rows.append((p["name"], "x".join(map(str, p["shape"])) or "scalar", role or "-", p["reason"] or ""))
    share = percentage(s["values_predicted"] / max(1, s["values"]))
    default = f" ghn is {s['source']} here: {s['because']}." if s["because"] else ""
    return (
        f"{s['architecture']}, input {'x'.join(map(str, s['input_size']))}\n"
        f"{s['nodes']} nodes, {s['edges']} edges, {s['virtual_edges']} virtual edges (paths of 2 to 50 edges)\n\n"
        f"{table(('primitive', 'nodes'), s['primitives'].items())}\n\n"
        f"{table(('parameter', 'shape', 'predicted as', 'why not'), rows)}\n\n"
        f"{s['tensors_predicted']} of {s['tensors']} parameters are predicted by {s['source']}, {share} of "
        f"{s['values']:,} values.{default}"
    )
