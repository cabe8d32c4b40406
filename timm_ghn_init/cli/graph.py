"""`inspect` and `graph`: the graph of an architecture in numbers and as a picture."""

import argparse
from argparse import BooleanOptionalAction
from collections import Counter
from typing import TYPE_CHECKING, Any

from ..report import percentage
from ..sources import DEFAULT
from .arguments import ARCHITECTURE, PATTERNS, command, one_source, opt, output, read_source
from .files import output_path
from .messages import mistakes, table
from .models import build, read_ghn, trace_model
from .results import show

if TYPE_CHECKING:
    from ..report import InitReport


@command("inspect convnext_base --source ghn2 --num-classes 10", *ARCHITECTURE, one_source(DEFAULT), *PATTERNS)
def inspect(args: argparse.Namespace) -> int:
    """Print the graph's statistics and which parameters are predicted, without a checkpoint.

    The parameters that a source without a GHN initialises.
    """
    source = read_source(args)
    if source.initialisation or source.plus:
        from ..initialize import init_model

        with mistakes(ValueError):  # of a registered initialisation
            report = init_model(build(args)[0], source, input_size=args.img_size)
        show(args, report.to_dict(), lambda: _of_values(report))
        return 0
    statistics = _statistics(args, str(source))
    show(args, statistics, lambda: _as_text(statistics))
    return 0


def _of_values(report: "InitReport") -> str:
    rows = [
        (name, f"{size:,}", report.predicted.get(name), report.parts.get(name, ""), report.skipped.get(name, ""))
        for name, size in report.sizes.items()
    ]
    return f"{report}\n\n{table(('parameter', 'values', 'initialised as', 'by', 'why not'), rows)}"


def _statistics(args: argparse.Namespace, source: str) -> dict[str, Any]:
    from ..recipe.offer import predicted
    from ..recipe.plan import kept_parameters

    resolved, why, ghn = read_ghn(source)
    model, graph = trace_model(args, ghn.dialect)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    offer = predicted(graph, ghn.num_classes, resolved)
    skipped = {**offer.skipped, **kept_parameters(model, args.arch, resolved.only, resolved.skip, {})}
    parameters = []
    for name, parameter in model.named_parameters():
        target = None if name in skipped else graph.targets.get(name)
        about = {"role": target.role if target else None, "classifier": bool(target and target.classifier)}
        facts = {"name": name, "shape": list(parameter.shape), "predicted": target is not None}
        parameters.append({**facts, **about, "reason": skipped.get(name)})
    names = [n for n in offer.roles if n not in skipped]
    return {
        "architecture": args.arch,
        "source": str(resolved),
        "because": why or None,
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
        rows.append((p["name"], "x".join(map(str, p["shape"])) or "scalar", role, p["reason"] or ""))
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


@command(
    "graph resnet18 -o resnet18.svg",
    *ARCHITECTURE,
    one_source(DEFAULT, "the GHN that reads the graph: GHN-3 reads another one than GHN-2"),
    output("FILE.svg|png|pdf", "the picture"),
    opt("--labels", "primitive and shape next to each node (default: up to 200 nodes)", action=BooleanOptionalAction),
    opt("--fold", "draw rows of equal blocks once (default: above 200 nodes)", action=BooleanOptionalAction),
)
def graph(args: argparse.Namespace) -> int:
    """Draw the primitive graph of an architecture; no checkpoint is needed."""
    from ..lab.draw import FORMATS, MOST_LABELLED_NODES, draw

    output = output_path(args.output, FORMATS)
    _, traced = trace_model(args, read_ghn(args.source)[2].dialect)
    folded = len(traced.nodes) > MOST_LABELLED_NODES if args.fold is None else args.fold
    draw(traced, output, title=args.arch, labels=args.labels, folded=folded)
    show(args, {"output": output, "nodes": len(traced.nodes), "edges": len(traced.edges)}, str(output))
    return 0
