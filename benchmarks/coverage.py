"""How much of every architecture can be predicted: sweeps timm, and torchvision's classifiers, and reports.

    python benchmarks/coverage.py --jobs 2 --markdown benchmarks/results/coverage.md   all of timm, on meta
    python benchmarks/coverage.py --filter "vit_*" "resnet*" --dialect ghn3  some of them, for GHN-3
    python benchmarks/coverage.py --real --markdown benchmarks/results/coverage.md     the smallest of each module

Each result is one line of the JSON file. What stands there already is not measured again unless the code that it
depends on, timm or torch has changed since, so a sweep can be interrupted. The Markdown is written from the whole file:
both dialects, torchvision and `--real` come together in one report.
"""

import argparse
import hashlib
import inspect
import json
import logging
import multiprocessing
import os
import platform
import statistics
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from fnmatch import fnmatch
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, cast

import timm
import torch
from timm.models._registry import _model_to_module
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

import timm_ghn_init
from timm_ghn_init.checkpoints.load import load_ghn
from timm_ghn_init.ghn import GHN
from timm_ghn_init.graph import Dialect, Graph, trace
from timm_ghn_init.graph.isolate import isolated
from timm_ghn_init.graph.modules import is_layer
from timm_ghn_init.recipe import assign

PACKAGE = Path(timm_ghn_init.__file__).parent
CONFIG = {"max_shape": (64, 64, 16, 16), "num_classes": 1000, "weight_norm": True, "ve": True, "layernorm": True}
CONFIGS: dict[str, dict[str, Any]] = {
    "ghn2": {**CONFIG, "hid": 32},
    "ghn3": {**CONFIG, "hypernet": "graphormer", "hid": 64, "heads": 8, "layers": 3},
}
SHARE, ARCHITECTURES, SECONDS = 0.99, 0.98, 600  # the targets

Record = dict[str, Any]


class Task(NamedTuple):
    """One measurement: what is built and what is done with it."""

    kind: str  # "meta" or "real"
    library: str  # "timm" or "torchvision"
    name: str
    dialect: str
    ghn: str | None = None  # a checkpoint, for "real"
    max_params: float = float("inf")  # millions, for "real"

    def key(self) -> tuple[str, ...]:
        return (self.kind, self.library, self.name, self.dialect, self.ghn or "")


# -- architectures ---------------------------------------------------------------------------------------------------


def architectures(library: str) -> dict[str, str]:
    """Every architecture with the module that defines it."""
    if library == "timm":
        return {name: _model_to_module[name] for name in timm.list_models()}
    from torchvision import models

    names = models.list_models(module=models)
    return {name: models.get_model_builder(name).__module__.rpartition(".")[2] for name in names}


def build(library: str, name: str) -> nn.Module:
    """The model with its library's own initialisation, on the default device."""
    if library == "timm":
        return timm.create_model(name)
    from torchvision import models

    # Their initialisation draws from SciPy's truncated normal, one value at a time.
    slow = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return models.get_model(name, weights=None, **slow)


def build_on_meta(library: str, name: str) -> nn.Module:
    try:
        with torch.device("meta"):
            return build(library, name)
    except Exception:  # constructors that need values, e.g. linspace().tolist()
        return build(library, name)


# -- on meta ---------------------------------------------------------------------------------------------------------


def on_meta(task: Task) -> Record:
    """Build and trace; what is predicted, what is not and why."""
    start = time.perf_counter()
    model = build_on_meta(task.library, task.name)
    built = time.perf_counter()
    graph = trace(model, dialect=cast(Dialect, task.dialect))
    traced = time.perf_counter()
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    unpredicted: dict[str, dict[str, int]] = defaultdict(dict)  # reason -> {parameter: values}
    for name, reason in graph.skipped.items():
        unpredicted[reason][name] = sizes[name]
    return {
        "input_size": list(graph.input_size),
        "nodes": len(graph.nodes),
        "edges": len(graph.edges),
        "tensors": len(sizes),
        "values": sum(sizes.values()),
        "predicted_tensors": len(graph.targets),
        "predicted_values": sum(target.numel for target in graph.targets.values()),
        "unpredicted": unpredicted,
        "violations": missed_layers(model, graph),
        "seconds": {"build": built - start, "trace": traced - built},
    }


def missed_layers(model: nn.Module, graph: Graph) -> list[str]:
    """Weights of convolutions and linear layers, by class, that the forward uses and the graph does not predict.

    What the forward uses is asked of autograd, which knows nothing of our recording.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    weights = [
        names[id(p)]
        for module in model.modules()
        if is_layer(module)
        for own, p in module._parameters.items()
        if p is not None and "weight" in own and p.dim() > 1
    ]
    missed = [name for name in dict.fromkeys(weights) if name in graph.skipped]
    return sorted(set(missed) & used(model, graph.input_size)) if missed else []


def used(model: nn.Module, size: tuple[int, ...]) -> set[str]:
    """Parameters that the outputs depend on, by autograd."""
    parameters, outputs = differentiable(model, size)
    seen: set[Any] = set()
    stack: list[Any] = [t.grad_fn for t in outputs if t.grad_fn is not None]
    leaves = set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        stack.extend(after for after, _ in node.next_functions if after is not None)
    return {name for name, p in parameters.items() if id(p) in leaves}


def differentiable(model: nn.Module, size: tuple[int, ...]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Stand-ins of the parameters, requiring gradients, and the outputs of one forward pass on meta, in eval mode."""
    with isolated(list(model.modules()), dict(model.named_parameters()), "meta") as isolation:
        parameters = isolation.parameters
        for p in parameters.values():
            p.requires_grad_(p.is_floating_point())
        output = model(torch.zeros((2, *size), device="meta"))
    return parameters, [t for t in tree_leaves(output) if isinstance(t, Tensor)]


# -- in memory -------------------------------------------------------------------------------------------------------


@cache
def hypernetwork(dialect: str, path: str | None) -> GHN:
    """The GHN from a file or, without one, with seeded weights that keep the scale of what goes through them."""
    if path is not None:
        return load_ghn(Path(path))
    ghn = GHN(**CONFIGS[dialect])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in ghn.parameters():
            if p.dim() > 1:
                p.normal_(std=(2 / p[0].numel()) ** 0.5, generator=generator)
            else:
                p.add_(torch.randn(p.shape, generator=generator), alpha=0.1)
    return ghn.eval().requires_grad_(False)


@torch.no_grad()
def in_memory(task: Task) -> Record:
    """Predict into real memory; what is wrong with the predictions, or with the logits of the model that has them."""
    torch.manual_seed(0)
    model = build(task.library, task.name).eval()
    parameters = dict(model.named_parameters())
    values = sum(p.numel() for p in parameters.values())
    if values > task.max_params * 1e6:
        return {"values": values, "left_out": f"more than {task.max_params:g} M parameters"}
    ghn = hypernetwork(task.dialect, task.ghn)
    start = time.perf_counter()
    graph = trace(model, dialect=ghn.dialect)
    tiles = ghn.decode(graph, ghn.embed(graph))
    before = {name: parameters[name].clone() for name in graph.skipped}
    for name, target in graph.targets.items():
        if target.role != "pos_enc":  # of which rows of class tokens are left alone
            parameters[name].fill_(torch.nan)  # so that what is not written shows
    assign.write(dict(model.named_parameters()), tiles)
    written = time.perf_counter()
    faults = [fault for name in graph.targets for fault in faults_of(name, parameters[name], graph.targets[name].shape)]
    faults += [f"{name}: changed" for name, p in before.items() if not torch.equal(p, parameters[name])]
    x = torch.randn(2, *graph.input_size)
    finite_untrained = finite(model(x))
    for module in model.modules():
        # Running statistics of 0 and 1 normalise nothing; those of the batch are what training starts with.
        module.train(isinstance(module, nn.modules.batchnorm._BatchNorm))
    if not finite(model(x)):
        faults.append("an output is not finite")
    return {
        "values": values,
        "predicted_tensors": len(graph.targets),
        "faults": faults,
        "finite_untrained": finite_untrained,
        "seconds": {"predict": written - start, "forward": time.perf_counter() - written},
    }


def finite(output: Any) -> bool:
    return all(bool(t.isfinite().all()) for t in tree_leaves(output) if isinstance(t, Tensor))


def faults_of(name: str, p: Tensor, shape: tuple[int, ...]) -> Iterator[str]:
    if tuple(p.shape) != shape:
        yield f"{name}: shape {tuple(p.shape)} instead of {shape}"
    if not p.isfinite().all():
        yield f"{name}: not finite"
    elif p.numel() > 1 and p.min() == p.max():
        yield f"{name}: all values are {p.flatten()[0]:g}"


# -- the sweep -------------------------------------------------------------------------------------------------------

MEASURES: dict[str, Callable[[Task], Record]] = {"meta": on_meta, "real": in_memory}
DEPENDS_ON = {"meta": ("graph/**/*.py",), "real": ("graph/**/*.py", "ghn/*.py", "recipe/assign.py")}


def measure(task: Task) -> Record:
    start = time.process_time()
    try:
        result = MEASURES[task.kind](task)
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {error}"[:2000]}
    return {"key": task.key(), "cpu_seconds": time.process_time() - start, **result}


def prepare_worker() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)


@cache
def stamp(kind: str) -> str:
    """Changes whenever a measurement might: with our code, how it is measured, timm, torch."""
    versions = f"{timm.__version__} {torch.__version__}"
    digest = hashlib.sha256(f"{versions} {inspect.getsource(MEASURES[kind])}".encode())
    for pattern in DEPENDS_ON[kind]:
        for file in sorted(PACKAGE.glob(pattern)):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def read(path: Path) -> dict[tuple[str, ...], Record]:
    """Valid measurements by key, and runs. The last line may be broken off by an interruption."""
    records: dict[tuple[str, ...], Record] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record["stamp"] == stamp(record["key"][0]):
            records[tuple(record["key"])] = record
    return records


def sweep(tasks: list[Task], jobs: int, path: Path) -> None:
    """Measure what is not in the file yet, and note how long that took."""
    done = read(path)
    todo = [task for task in tasks if "left_out" in done.get(task.key(), {"left_out": "so far"})]
    if not todo:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    start, load, measured = time.perf_counter(), os.getloadavg()[0], 0
    with path.open("a") as file:
        try:
            for record in measure_all(todo, jobs):
                append(file, record)
                measured += 1
        except BrokenProcessPool:
            raise SystemExit(
                f"A process was killed, most likely for want of memory. {measured} of {len(todo)} models are measured; "
                "the same command goes on from there, with fewer --jobs if need be."
            ) from None
        finally:
            run = (todo[0].kind, "run", todo[0].library, todo[0].dialect, f"{time.time():.0f}")
            seconds = time.perf_counter() - start
            append(file, {"key": run, "models": measured, "jobs": jobs, "seconds": seconds, "load_before": load})


def measure_all(todo: list[Task], jobs: int) -> Iterator[Record]:
    with (
        ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), prepare_worker) as pool,
        tqdm(total=len(todo), disable=None, unit=" models") as bar,
    ):
        for future in as_completed([pool.submit(measure, task) for task in todo]):
            record = future.result()
            bar.set_postfix_str(record["key"][2])
            bar.update()
            yield record


def append(file: Any, record: Record) -> None:
    file.write(json.dumps({"stamp": stamp(record["key"][0]), **record}) + "\n")
    file.flush()


def select(args: argparse.Namespace, path: Path) -> list[Task]:
    library = "torchvision" if args.torchvision else "timm"
    kind = "real" if args.real else "meta"
    modules = architectures(library)
    names: Iterable[str] = modules
    if args.filter:
        names = [name for name in modules if any(fnmatch(name, pattern) for pattern in args.filter)]
        if not names:
            raise SystemExit(f"No {library} architecture matches {' '.join(args.filter)}.")
    elif args.real:
        names = smallest(modules, read(path), library)
    extra = (args.ghn, args.max_params) if args.real else ()
    return [Task(kind, library, name, args.dialect, *extra) for name in names]


def smallest(modules: dict[str, str], records: dict[tuple[str, ...], Record], library: str) -> list[str]:
    """The architecture with the fewest parameters of every module, as the sweep on meta has counted them."""
    sizes = {key[2]: r["values"] for key, r in records.items() if key[:2] == ("meta", library) and "values" in r}
    best: dict[str, str] = {}
    for name in sorted(sizes, key=sizes.__getitem__):
        best.setdefault(modules[name], name)
    missing = set(modules.values()) - set(best)
    if missing:
        raise SystemExit(
            f"Which is the smallest model of {', '.join(sorted(missing)[:5])} ... is not known yet: "
            "run the sweep without --real first, or choose with --filter."
        )
    return sorted(best.values())


# -- the report ------------------------------------------------------------------------------------------------------


def report(records: dict[tuple[str, ...], Record]) -> str:
    lines = [
        "# Coverage",
        "",
        "Written by `benchmarks/coverage.py`; run it again instead of editing this file.",
        "",
        *machine(),
    ]
    for library in ("timm", "torchvision"):
        for dialect in CONFIGS:
            measured = [r for key, r in records.items() if key[0] == "meta" and key[1:4:2] == (library, dialect)]
            if measured:
                runs = [r for key, r in records.items() if key[:4] == ("meta", "run", library, dialect)]
                lines += section(library, dialect, measured, runs)
    real = [r for key, r in records.items() if key[0] == "real" and key[1] != "run"]
    return "\n".join(lines + (real_section(real) if real else [])) + "\n"


def machine() -> list[str]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((x.split(":")[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")), cpu)
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "timm", "torchvision"))
    return [f"{versions}, Python {platform.python_version()}; {os.cpu_count()} cores, {cpu}.", ""]


def section(library: str, dialect: str, measured: list[Record], runs: list[Record]) -> list[str]:
    modules = architectures(library)
    good = [r for r in measured if "error" not in r]
    reasons = numbered_reasons(good)
    lines = [f"## {library}, graphs for {dialect.upper().replace('GHN', 'GHN-')}", ""]
    lines += targets(measured, good, runs, len(modules))
    head = ("module", "models", "built", "predicted, min", "mean", "nodes, min", "median", "max", "CPU seconds", "rest")
    lines += ["", f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 2)}---|"]
    groups: dict[str, list[Record]] = defaultdict(list)
    for r in measured:
        groups[modules[r["key"][2]]].append(r)
    lines += [row(module, groups[module], reasons) for module in sorted(groups)]
    lines += ["", "Predicted: share of the parameter values. The rest, with the number of models and of values:", ""]
    for reason, number in reasons.items():
        having = [r["unpredicted"][reason] for r in good if reason in r["unpredicted"]]
        values = sum(sum(parameters.values()) for parameters in having)
        lines.append(f"{number}. {reason}: {len(having)} models, {values:,} values, e.g. `{next(iter(having[0]))}`")
    return [*lines, "", *failures(measured, good)]


def numbered_reasons(good: list[Record]) -> dict[str, int]:
    count: Counter[str] = Counter()
    for r in good:
        count.update({reason: sum(parameters.values()) for reason, parameters in r["unpredicted"].items()})
    return {reason: number for number, (reason, _) in enumerate(count.most_common(), 1)}


def share(r: Record) -> float:
    return r["predicted_values"] / r["values"]


def targets(measured: list[Record], good: list[Record], runs: list[Record], registered: int) -> list[str]:
    enough = sum(share(r) >= SHARE for r in good) / len(measured)
    missed = sum(len(r["violations"]) for r in good)
    wall, jobs = sum(r["seconds"] for r in runs), max((r["jobs"] for r in runs), default=0)
    load = max((r["load_before"] for r in runs), default=0)
    timed = sum(r["models"] for r in runs)  # the models of a run that was killed are measured, their time is not
    all_timed = "" if timed >= len(measured) else f" for {timed} of {len(measured)}"
    traces = sorted(r["seconds"]["trace"] for r in good)
    nodes = sorted(r["nodes"] for r in good)
    return [
        "| check | target | result |",
        "|---|---:|---:|",
        f"| architectures that build a graph | {registered} of {registered} | {len(good)} of {len(measured)} tried |",
        f"| architectures with {SHARE:.0%} of their values predicted | {ARCHITECTURES:.0%} | {enough:.2%} |",
        f"| convolution and linear weights that are used and not predicted | 0 | {missed} |",
        f"| the sweep, {jobs} processes | {SECONDS} s | {wall:.0f} s{all_timed} |",
        "",
        f"One trace on meta takes {statistics.median(traces):.2f} s (median), {traces[int(0.95 * len(traces))]:.2f} s "
        f"(95th percentile), {traces[-1]:.1f} s (longest). Graphs have {nodes[0]} to {nodes[-1]} nodes, median "
        f"{statistics.median(nodes):.0f}.",
        f"The sweep took {sum(r['cpu_seconds'] for r in measured):.0f} s of CPU time; the load average of the machine "
        f"before it was {load:.1f}.",
    ]


def row(module: str, group: list[Record], reasons: dict[str, int]) -> str:
    good = [r for r in group if "error" not in r]
    if not good:
        return f"| {module} | {len(group)} | 0 |" + " |" * 7
    shares, nodes = [share(r) for r in good], [r["nodes"] for r in good]
    found = sorted({reasons[reason] for r in good for reason in r["unpredicted"]})
    cells = [
        module,
        len(group),
        len(good),
        f"{min(shares):.2%}",
        f"{statistics.mean(shares):.2%}",
        min(nodes),
        f"{statistics.median(nodes):.0f}",
        max(nodes),
        f"{sum(r['cpu_seconds'] for r in group):.1f}",
        ", ".join(map(str, found)),
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def failures(measured: list[Record], good: list[Record]) -> list[str]:
    """Architectures below a target, by name."""
    lines = [f"* {r['key'][2]} fails: {r['error']}" for r in measured if "error" in r]
    for r in sorted(good, key=share):
        if share(r) < SHARE:
            lines.append(f"* {r['key'][2]}: {share(r):.2%}; {_most(r)}")
        lines += [f"* {r['key'][2]}: `{name}` is used and not predicted" for name in r["violations"]]
    return ["Below target:", "", *lines, ""] if lines else []


def _most(r: Record) -> str:
    """The reasons for which most values are not predicted."""
    if not r["unpredicted"]:
        return "rows of a position embedding that are not used"  # of a parameter that is predicted
    reason, parameters = max(r["unpredicted"].items(), key=lambda item: sum(item[1].values()))
    return f"`{max(parameters, key=parameters.__getitem__)}` is {reason}"


def real_section(real: list[Record]) -> list[str]:
    done = [r for r in real if "left_out" not in r]
    clean = [r for r in done if not r.get("faults") and "error" not in r]
    lines = [
        "## In memory",
        "",
        f"{len(clean)} of {len(done)} predictions are clean: every predicted parameter is written completely, finite "
        "and not constant, the others are bit for bit what they were, and one forward pass, batch norms on the "
        "statistics of the batch, gives finite outputs. With the running statistics of batch norms that have seen no "
        f"data (mean 0, variance 1) it does for {sum(r['finite_untrained'] for r in clean)}.",
        f"Traced, predicted and written in {sum(r['seconds']['predict'] for r in clean):.0f} s.",
        "",
    ]
    for r in sorted(done, key=lambda r: r["key"]):
        faults = r.get("faults", [r["error"]] if "error" in r else [])
        if faults:
            lines.append(f"* {r['key'][2]} ({r['key'][3]}): {len(faults)} faults, {faults[0]}")
    for (library, dialect, ghn), count in sorted(Counter((r["key"][1], *r["key"][3:]) for r in done).items()):
        lines.append(f"* {count} models of {library}, {dialect}, {ghn or 'seeded weights'}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filter", nargs="+", metavar="PATTERN", help="architectures; default: all")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/coverage.jsonl"), help="default: %(default)s")
    parser.add_argument("--markdown", type=Path, help="where to write the report")
    parser.add_argument("--dialect", choices=list(CONFIGS), default="ghn2", help="of the graphs (default: %(default)s)")
    parser.add_argument("--real", action="store_true", help="predict into real memory and run the model")
    parser.add_argument("--ghn", help="checkpoint for --real; default: seeded weights")
    parser.add_argument("--max-params", type=float, default=500, help="millions, for --real (default: %(default)s)")
    parser.add_argument("--torchvision", action="store_true", help="torchvision's classifiers instead of timm's models")
    args = parser.parse_args()
    sweep(select(args, args.json), args.jobs, args.json)
    text = report(read(args.json))
    if args.markdown is not None:
        args.markdown.parent.mkdir(parents=True, exist_ok=True)
        args.markdown.write_text(text)
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
