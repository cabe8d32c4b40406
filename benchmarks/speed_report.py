"""What `bench_speed.py` measured, as Markdown: ratios, milliseconds, memory, growth, targets. Verdicts are computed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

Record = dict[str, Any]
Value = tuple[float, str]  # a number and where it was measured

MEGABYTE = 1e6
CONVNEXT_BASE = 88_500_000  # parameters: "convnext_base and larger"


# -- targets -------------------------------------------------------------------------------------------------------


class Goal(NamedTuple):
    """A promise: the worst of the values must stay on the right side of the limit."""

    what: str
    values: Callable[[Sequence[Record]], Iterable[Value]]
    limit: float
    unit: str = "x"
    at_least: bool = False

    def worst(self, documents: Sequence[Record]) -> Value | None:
        return (min if self.at_least else max)(self.values(documents), default=None)

    def is_met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


def models(
    documents: Sequence[Record], ghn: str = "ghn2", names: Sequence[str] = (), device: str = "cpu"
) -> Iterator[Record]:
    for document in documents:
        for record in document.get("models", ()) if document["ghn"] == ghn else ():
            if record["device"].startswith(device) and (not names or record["model"] in names):
                yield record


def ratio(name: str, *names: str, ghn: str = "ghn2", device: str = "cpu", least_params: int = 0) -> Any:
    def values(documents: Sequence[Record]) -> Iterator[Value]:
        for r in models(documents, ghn, names, device):
            if name in r["ratios"] and r["params"] >= least_params:
                yield r["ratios"][name]["median"], r["model"]

    return values


def seconds(figure: str, *names: str, ghn: str = "ghn2", device: str = "cpu") -> Any:
    def values(documents: Sequence[Record]) -> Iterator[Value]:
        for r in models(documents, ghn, names, device):
            if figure in r["seconds"]:
                yield r["seconds"][figure]["median"], r["model"]

    return values


def embed_per_300_nodes(documents: Sequence[Record]) -> Iterator[Value]:
    """Graphs of fewer than 300 nodes have the 20 ms to themselves."""
    for r in models(documents):
        if "embed" in r["seconds"]:
            yield 1e3 * r["seconds"]["embed"]["median"] / max(r["nodes"] / 300, 1), r["model"]


def sweeps(documents: Sequence[Record], over: str) -> Iterator[Record]:
    for document in documents:
        yield from (s for s in document.get("sweeps", ()) if s["over"] == over and document["ghn"] == "ghn2")


def embed_growth(documents: Sequence[Record]) -> Iterator[Value]:
    for s in sweeps(documents, "nodes"):
        for where, exponent in s["growth"].get("embed", {}).items():
            yield exponent, where


def embed_of_3000_nodes(documents: Sequence[Record]) -> Iterator[Value]:
    for s in sweeps(documents, "nodes"):
        for r in s["models"]:
            if r["nodes"] >= 3000:
                yield r["seconds"]["embed"]["median"], f"{r['model']}, {r['nodes']} nodes"


def trace_of_a_further_block(documents: Sequence[Record]) -> Iterator[Value]:
    """Between the two longest chains of blocks that are alike."""
    for s in sweeps(documents, "nodes"):
        chains = sorted(
            (int(r["model"].removeprefix("chain:")), r["seconds"]["trace"]["median"])
            for r in s["models"]
            if r["model"].startswith("chain:")
        )
        if len(chains) > 1:
            (fewer, before), (more, after) = chains[-2:]
            yield 1e6 * (after - before) / (more - fewer), f"chain:{fewer} to chain:{more}"


def memory_without(documents: Sequence[Record]) -> Iterator[Value]:
    for r in models(documents):
        if r["nodes"] <= 1000:
            for call, value in r.get("memory", {}).get("graph + prediction", {}).get("bytes", {}).items():
                yield value / MEGABYTE, f"{r['model']}, {call} call"


def memory_with_post_processing(documents: Sequence[Record]) -> Iterator[Value]:
    """Of later calls: the first one in a process also maps PyTorch's and LAPACK's code, whatever the model."""
    for r in models(documents):
        found = r.get("memory", {}).get("total", {}).get("bytes", {})
        if "later" in found:
            yield found["later"] / r["largest_layer"], r["model"]


def import_time(documents: Sequence[Record]) -> Iterator[Value]:
    for d in documents:
        if "import" in d:
            yield 1e3 * d["import"]["timm_ghn_init"]["median"], "after `import timm`"


def import_early(documents: Sequence[Record]) -> Iterator[Value]:
    for d in documents:
        if "import" in d:
            yield len(d["import"]["not yet"]), ", ".join(d["import"]["not yet"]) or "none"


TRACE = "trace / forward on meta"
PEER, PEER_POST = "peer / ours, graph + prediction", "peer / ours, post-process"
CREATE = "create_model with GHN / without"
TARGETS = [
    Goal("trace / forward on meta, convnext_base", ratio(TRACE, "convnext_base"), 0.12),
    Goal("trace / forward on meta, vit_large", ratio(TRACE, "vit_large_patch16_224"), 0.10),
    Goal("trace / forward on meta, resnet152", ratio(TRACE, "resnet152"), 0.15),
    Goal("trace of a further block that is like the others", trace_of_a_further_block, 20, "microseconds"),
    Goal(
        "graph + prediction, torchvision convnext_base, against ppuda", ratio(PEER, "tv:convnext_base"), 12, "x", True
    ),
    Goal("graph + prediction, torchvision resnet50, against ppuda", ratio(PEER, "tv:resnet50"), 8, "x", True),
    Goal(
        "decode + write / fill_, convnext_base and larger",
        ratio("decode + write / fill_", least_params=CONVNEXT_BASE),
        2,
    ),
    Goal("embed, per 300 nodes", embed_per_300_nodes, 20, "ms"),
    Goal("embed, exponent of its growth with the nodes", embed_growth, 2, ""),
    Goal("embed, 3000 nodes", embed_of_3000_nodes, 0.25, "s"),
    Goal("post-process / bare QR", ratio("post-process / bare QR"), 1.2),
    Goal(
        "post-process, torchvision convnext_base, against ppuda", ratio(PEER_POST, "tv:convnext_base"), 2.5, "x", True
    ),
    Goal("create_model with GHN / without, convnext_base", ratio(CREATE, "convnext_base"), 1),
    Goal("create_model with GHN / without, densenet201", ratio(CREATE, "densenet201"), 1),
    Goal(
        "create_model with GHN-orth / bare QR + prediction, convnext_base",
        ratio("create_model with GHN-orth / bare QR + prediction", "convnext_base"),
        1,
    ),
    Goal("peak memory without post-processing, up to 1000 nodes", memory_without, 128, "MB"),
    Goal("peak memory with it / largest layer, warmed up", memory_with_post_processing, 3),
    Goal("import timm_ghn_init above import timm", import_time, 50, "ms"),
    Goal("scipy, matplotlib, Hub code imported before they are needed", import_early, 0, ""),
    Goal(
        "GHN-3 T: graph + prediction, torchvision resnet50 and convnext_tiny, against ghn3",
        ratio(PEER, "tv:resnet50", "tv:convnext_tiny", ghn="ghn3-t"),
        8,
        "x",
        True,
    ),
    Goal("GHN-3 T: graph + prediction / GHN-2", ratio("ours / GHN-2", ghn="ghn3-t"), 1.3),
    Goal(
        "GHN-3 XL: graph + prediction, convnext_base",
        seconds("graph + prediction", "convnext_base", ghn="ghn3-xl"),
        3,
        "s",
    ),
    Goal("CUDA: total, convnext_base", seconds("total", "convnext_base", device="cuda"), 0.35, "s"),
    Goal("CUDA: past the trace, convnext_base", seconds("past the trace", "convnext_base", device="cuda"), 0.15, "s"),
    Goal("CUDA: post-process / bare QR", ratio("post-process / bare QR", "convnext_base", device="cuda"), 0.25),
    Goal(
        "CUDA: write, share of the copy rate",
        ratio("write / device copy", "convnext_base", device="cuda"),
        0.5,
        "x",
        True,
    ),
    Goal("CUDA: total, vit_giant", seconds("total", "vit_giant_patch14_clip_224", device="cuda"), 1, "s"),
]


# -- Markdown --------------------------------------------------------------------------------------------------------


def render(documents: Sequence[Record]) -> str:
    """One document from what one or several runs measured."""
    blocks = [block for document in documents for block in document_blocks(document)]
    return "\n\n".join([*blocks, *targets(documents)]) + "\n"


def document_blocks(document: Record) -> Iterator[str]:
    yield f"## {title(document)}"
    yield machine(document)
    for device in ("cpu", "cuda"):
        records = [r for r in document.get("models", ()) if r["device"].startswith(device)]
        if records:
            yield from model_tables(records, device)
    for s in document.get("sweeps", ()):
        yield from sweep_tables(s)
    if "import" in document:
        yield import_line(document["import"])


def title(document: Record) -> str:
    kinds = [s["over"] for s in document.get("sweeps", ())]
    return f"{document['ghn']}, growth over {' and '.join(kinds)}" if kinds else f"{document['ghn']}, models"


def machine(document: Record) -> str:
    m = document["machine"]
    packages = ", ".join(f"{name} {number}" for name, number in m["packages"].items())
    facts = [
        f"{m['cpu']}, {m['cores']} cores, {m['threads']} threads, load average {m['load']:.2f} at the start",
        f"Python {m['python']}, {packages}",
        f"median of {document['repeats']} (smallest to largest)",
    ]
    if m["gpu"]:
        facts.append(m["gpu"])
    return "; ".join(facts) + ". " + " ".join(document["notes"])


def model_tables(records: Sequence[Record], device: str) -> Iterator[str]:
    rows = [(r, r["ratios"]) for r in records]
    yield f"### Ratios, {device.upper()}"
    yield table(
        ("model", "parameters", "nodes", "L of layers"),
        rows,
        lambda r: [name_of(r), f"{r['params'] / 1e6:.1f} M", str(r["nodes"]), f"{r['layer']} of {r['layers']}"],
        lambda s: spread(s, 1, 2),
    )
    if any("peer" in r for r in records):
        yield agreement(records)
    hidden = {"decode", "check", *({"write", "past the trace"} if device == "cpu" else set())}
    shown = [(r, {f: s for f, s in r["seconds"].items() if f not in hidden}) for r in records]
    if any(s for _, s in shown):
        yield f"### Milliseconds, {device.upper()}"
        yield table(("model",), shown, lambda r: [name_of(r)], lambda s: spread(s, 1e3, 1))
    if any("memory" in r for r in records):
        yield f"### Peak memory above the model, {device.upper()}"
        yield memory_table(records)


def agreement(records: Sequence[Record]) -> str:
    peer = next(r["peer"] for r in records if "peer" in r)
    worst = max(r["peer_agrees_to"] for r in records if "peer" in r)
    return f"The peer is {peer} with the same weights; what it predicts is ours to {worst:.0e} of the largest value."


def name_of(record: Record) -> str:
    return record["model"].replace("tv:", "torchvision ")


def memory_table(records: Sequence[Record]) -> str:
    methods = {m["method"] for r in records for m in r.get("memory", {}).values()}
    rows = []
    for r in records:
        values = {
            f"{figure}, {call} call": value
            for figure, memory in r.get("memory", {}).items()
            for call, value in memory["bytes"].items()
        }
        rows.append((r, values))
    lines = table(
        ("model", "largest layer"),
        rows,
        lambda r: [name_of(r), f"{r['largest_layer'] / MEGABYTE:.1f} MB"],
        lambda value: f"{value / MEGABYTE:.1f} MB",
    )
    return f"{lines}\n\nBy {', '.join(sorted(methods))}, a fresh process for each; the GHN itself was loaded before."


def sweep_tables(s: Record) -> Iterator[str]:
    stages = list(s["growth"]) or ["trace", "embed", "decode + write", "post-process"]
    yield f"### Milliseconds by {s['over']}"
    rows = [(r, {stage: r["seconds"][stage] for stage in stages if stage in r["seconds"]}) for r in s["models"]]
    yield table(
        ("model", "nodes", "parameters"),
        rows,
        lambda r: [name_of(r), str(r["nodes"]), f"{r['params'] / 1e6:.1f} M"],
        lambda x: spread(x, 1e3, 1),
    )
    if s["growth"]:
        exponents = [
            f"{stage} {e['all']:.2f} ({e['larger half']:.2f} over the larger half)" for stage, e in s["growth"].items()
        ]
        yield f"Exponent of growth with the {s['over']}: " + ", ".join(exponents) + "."


def import_line(record: Record) -> str:
    timm, ours = (spread(record[key], 1e3, 0) for key in ("timm", "timm_ghn_init"))
    early = ", ".join(record["not yet"]) or "none of scipy, matplotlib and huggingface_hub"
    return (
        f"`import timm` takes {timm} ms; `import timm_ghn_init` after it {ours} ms, for {record['modules']} more "
        f"modules, among them {early} (what timm itself imports does not count)."
    )


def targets(documents: Sequence[Record]) -> Iterator[str]:
    """The targets that this run measured; the others are listed as not measured."""
    lines, missing = ["| what | target | result | worst | |", "|---|---|---|---|---|"], []
    for target in TARGETS:
        worst = target.worst(documents)
        if worst is None:
            missing.append(target.what)
            continue
        value, where = worst
        verdict = "met" if target.is_met(value) else "**missed**"
        limit = f"{'at least' if target.at_least else 'at most'} {target.limit:g} {target.unit}".rstrip()
        lines.append(f"| {target.what} | {limit} | {value:.3g} {target.unit} | {where} | {verdict} |")
    yield "## Targets"
    if len(lines) > 2:
        yield "\n".join(lines)
    if missing:
        yield "Not measured here: " + "; ".join(missing) + "."


def table(
    head: Sequence[str],
    rows: Sequence[tuple[Record, dict[str, Any]]],
    first: Callable[[Record], list[str]],
    cell: Callable[[Any], str],
) -> str:
    """Columns `head` from `first`, then one for every key that occurs; empty where a row has no value."""
    keys = list(dict.fromkeys(key for _, values in rows for key in values))
    lines = [[*head, *keys], ["---"] * (len(head) + len(keys))]
    lines += [[*first(r), *(cell(values[k]) if k in values else "" for k in keys)] for r, values in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(s: dict[str, float], factor: float, digits: int) -> str:
    median, low, high = (f"{factor * s[key]:.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({low} to {high})"
