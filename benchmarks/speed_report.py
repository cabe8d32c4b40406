"""The measurements of `bench_speed.py` as Markdown: ratios, memory, growth; milliseconds on a GPU only."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

Record = dict[str, Any]

MEGABYTE = 1e6


def render(documents: Sequence[Record]) -> str:
    """One document from what one or several runs measured."""
    blocks = [block for document in documents for block in document_blocks(document)]
    return "\n\n".join(blocks) + "\n"


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
    yield f"### Ratios, {device.upper()}" if any(ratios for _, ratios in rows) else "### Models"
    yield table(
        ("model", "parameters", "nodes", "L of layers"),
        rows,
        lambda r: [name_of(r), f"{r['params'] / 1e6:.1f} M", str(r["nodes"]), f"{r['layer']} of {r['layers']}"],
        lambda s: spread(s, 1, 2),
    )
    if any("peer" in r for r in records):
        yield agreement(records)
    if device == "cuda":
        yield "### Milliseconds, CUDA"
        yield table(
            ("model",), [(r, r["seconds"]) for r in records], lambda r: [name_of(r)], lambda s: spread(s, 1e3, 1)
        )
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
    yield f"### Growth with the {s['over']}: times as long as {name_of(s['models'][0])}"
    least = s["models"][0]["seconds"]
    rows = [
        (
            r,
            {
                stage: r["seconds"][stage]["median"] / least[stage]["median"]
                for stage in stages
                if stage in r["seconds"]
            },
        )
        for r in s["models"]
    ]
    yield table(
        ("model", "nodes", "parameters"),
        rows,
        lambda r: [name_of(r), str(r["nodes"]), f"{r['params'] / 1e6:.1f} M"],
        lambda times: f"{times:.2f}",
    )
    if s["growth"]:
        exponents = [
            f"{stage} {e['all']:.2f} ({e['larger half']:.2f} over the larger half)" for stage, e in s["growth"].items()
        ]
        yield f"Exponent of growth with the {s['over']}: " + ", ".join(exponents) + "."


def import_line(record: Record) -> str:
    share = record["timm_ghn_init"]["median"] / record["timm"]["median"]
    early = ", ".join(record["not yet"]) or "none of scipy, matplotlib and huggingface_hub"
    return (
        f"`import timm_ghn_init` after `import timm` takes {share:.3f} times as long as `import timm`, for "
        f"{record['modules']} more modules, among them {early} (without those that timm itself imports)."
    )


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
