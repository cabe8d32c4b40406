"""Models that nobody here wrote: what is initialised of them, and whether what is said of the rest is true.

    pip install '.[zoos]'
    python benchmarks/zoos.py                                        all that is installed
    python benchmarks/zoos.py --zoos pytorchcv monai                 some of it
    python benchmarks/zoos.py --zoos monai --models UNet VNet --again     some models, once more

`zoo_models.py` says what is in a zoo and how it is built, offline and without weights. A model counts as tried if it
runs in plain PyTorch. Its parameters count as used if they got a gradient in a forward and backward pass that knows
nothing of our trace. Each result is one line of a JSON file: a run that was interrupted goes on from there, and the
page is written from the whole file. Models run a few at a time in processes of their own, with bounds of memory and
time.
"""

import argparse
import copy
import json
import logging
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from zoo_models import ZOOS, Zoo

from timm_ghn_init import TraceError, init_model
from timm_ghn_init.checkpoints.load import load_ghn, resolve_default
from timm_ghn_init.recipe import purpose, unusual
from timm_ghn_init.sources import SHIPPED, parse_source

MODELS, INITIALISED, SHARE, WHOLE = 350, 0.99, 0.97, 0.99  # the targets
GIGABYTES, SECONDS, AT_ONCE, VALUES = 4, 120, 40, 160_000_000  # the bounds
# Classes that hold the parameters of a convolution, a linear layer or a norm, whoever wrote them.
LAYER = re.compile(r"(.*(Conv(Transpose)?[123]d|Norm([123]d)?)|Conv1D|.*Linear|Bilinear|MultiheadAttention)")

# Why layers are kept that a GHN could predict: they count neither as predicted nor as missed.
KEPT = {purpose.FROZEN, unusual.ZERO, unusual.CONSTANT, unusual.TABLE, purpose.OF_A_KEPT_LAYER, purpose.HEAD}

Record = dict[str, Any]


# -- the judge -------------------------------------------------------------------------------------------------------


class Judgement(NamedTuple):
    """The parameters that a gradient reaches, by autograd."""

    used: set[str]  # parameters that got a gradient
    device: str  # on which they got it


def call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def judge(model: nn.Module, inputs: Any) -> Judgement:
    """Which parameters get a gradient: on meta, which costs nothing, or on the CPU where the model reads values.

    Raises:
        Exception: what the model's own code raises.
    """
    try:
        return Judgement(gradients(on_meta(model), moved(inputs, "meta")), "meta")
    except Exception:
        pass
    try:
        return Judgement(gradients(model, inputs), "cpu")
    except RuntimeError:  # written in place to what the backward pass needs
        with torch.autograd.graph.allow_mutation_on_saved_tensors():
            return Judgement(gradients(model, inputs), "cpu")


def on_meta(model: nn.Module) -> nn.Module:
    """A copy without values."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        stand_in = torch.empty_like(tensor, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(stand_in, tensor.requires_grad) if is_parameter else stand_in
    return copy.deepcopy(model, memo)


def moved(thing: Any, device: str) -> Any:
    if isinstance(thing, Tensor):
        return thing.to(device)
    if isinstance(thing, Mapping):
        return {key: moved(value, device) for key, value in thing.items()}
    return type(thing)(moved(value, device) for value in thing) if isinstance(thing, (list, tuple)) else thing


def gradients(model: nn.Module, inputs: Any) -> set[str]:
    """Names of the parameters that get one in eval mode. None is kept: what is asked is whether there was one."""
    seen: set[str] = set()

    def hook(name: str) -> Callable[[Tensor], None]:
        def note(parameter: Tensor) -> None:
            seen.add(name)
            parameter.grad = None

        return note

    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]  # masks are not
    hooks = [p.register_post_accumulate_grad_hook(hook(name)) for name, p in trained]
    try:
        with torch.enable_grad():
            outputs = [t for t in tensors(call(model.eval(), inputs)) if t.requires_grad]
        torch.autograd.backward(outputs, [torch.ones_like(t) for t in outputs])
    finally:
        for handle in hooks:
            handle.remove()
    return seen


def tensors(thing: Any, depth: int = 6) -> list[Tensor]:
    """Those in an output, whatever holds them."""
    if isinstance(thing, Tensor):
        return [thing]
    if not depth or isinstance(thing, (nn.Module, str, type)):
        return []
    if isinstance(thing, Mapping):
        parts: Iterable[Any] = thing.values()
    elif isinstance(thing, (list, tuple, set)):
        parts = thing
    else:
        parts = getattr(thing, "__dict__", {}).values()
    return [t for part in parts for t in tensors(part, depth - 1)]


def layer_parameters(model: nn.Module) -> set[str]:
    """Names of what convolutions, linear layers and norms hold, parametrised weights included."""
    names = {id(p): name for name, p in model.named_parameters()}
    held = set()
    for module in model.modules():
        if any(LAYER.fullmatch(cls.__name__) for cls in type(module).__mro__):
            own = [p for p in module._parameters.values() if p is not None]
            parametrised = getattr(module, "parametrizations", None)
            own += list(parametrised.parameters()) if isinstance(parametrised, nn.Module) else []
            held.update(names[id(p)] for p in own if id(p) in names)
    return held


# -- one model -------------------------------------------------------------------------------------------------------


def measure(zoo: Zoo, name: str) -> Record:
    """Build it, ask autograd, initialise it, and compare."""
    try:
        model, inputs = zoo.build(name)
    except Exception as error:
        return {"outcome": "not built", "why": said(error)}
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    record: Record = {"class": type(model).__name__, "values": sum(sizes.values())}
    if sum(sizes.values()) > VALUES:
        return {**record, "outcome": "not built", "why": f"more than {VALUES // 10**6} M parameters"}
    try:
        used, device = judge(model, inputs)
    except Exception as error:
        return {**record, "outcome": "does not run", "why": said(error)}
    if not used:
        return {**record, "outcome": "does not run", "why": "no parameter gets a gradient"}
    layers = layer_parameters(model) & used
    record |= {"judge": device, "used": sum(sizes[n] for n in used), "layers": sum(sizes[n] for n in layers)}
    return record | initialised(model, inputs, sizes, used, layers)


def initialised(model: nn.Module, inputs: Any, sizes: dict[str, int], used: set[str], layers: set[str]) -> Record:
    """The report of `init_model`, without example inputs if the model takes one tensor."""
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    start, told = time.perf_counter(), not isinstance(inputs, Tensor)
    ghn = load_ghn(resolve_default(parse_source(SHIPPED)))
    try:
        try:
            report = init_model(model, SHIPPED, ghn=ghn, progress=False, example_inputs=inputs if told else None)
        except TraceError:
            if told:
                raise
            told = True
            report = init_model(model, SHIPPED, ghn=ghn, progress=False, example_inputs=inputs)
    except ValueError as error:
        return {"outcome": "refused", "why": said(error)}
    except Exception as error:
        return {"outcome": "failed", "why": said(error)}
    seconds = time.perf_counter() - start
    layers = {n for n in layers if report.skipped.get(n) not in KEPT}
    missed: dict[str, list[str]] = defaultdict(list)
    for n in layers - report.predicted.keys():
        missed[report.skipped[n]].append(n)
    after = dict(model.named_parameters())
    faults = [f"{n}: changed, and reported as left" for n in report.skipped if not same(after[n], before[n])]
    faults += [
        f"{n}: {why}, and overwritten" for n, why in meant(model, before).items() if not same(after[n], before[n])
    ]
    faults += [f"{n}: not finite" for n in report.predicted if not after[n].isfinite().all()]
    return {
        "outcome": "initialised",
        "told": told,
        "nodes": report.nodes,
        "predicted_used": sum(sizes[n] for n in used & report.predicted.keys()),
        "layers": sum(sizes[n] for n in layers),
        "predicted_layers": sum(sizes[n] for n in layers & report.predicted.keys()),
        "missed": {why: [sum(sizes[n] for n in names), sorted(names)[:4]] for why, names in missed.items()},
        "skipped": reasons(report.skipped, sizes, used),
        "faults": faults,
        "seconds": seconds,
    }


def meant(model: nn.Module, before: Mapping[str, Tensor]) -> dict[str, str]:
    """Parameters that a constructor certainly set on purpose, found without the package's own rule."""
    found = {}
    for name, p in model.named_parameters():
        values = before[name]
        if not p.requires_grad and p.is_floating_point():
            found[name] = "frozen"
        elif name.endswith("weight") and values.dim() > 1 and values.numel() > max(values.shape) and not values.any():
            found[name] = "zero"
        elif (
            name.endswith("bias")
            and values.numel() > 1
            and values.flatten()[0]
            and (values == values.flatten()[0]).all()
        ):
            found[name] = "constant"
    return found


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


def reasons(skipped: Mapping[str, str], sizes: Mapping[str, int], used: set[str]) -> dict[str, list[int]]:
    """Reason -> how many values were left, and how many of these are used."""
    counted: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, why in skipped.items():
        counted[why][0] += sizes[name]
        counted[why][1] += sizes[name] * (name in used)
    return dict(counted)


def said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:600]


# -- many models -----------------------------------------------------------------------------------------------------


class TimeIsUp(BaseException):  # so that no model takes it for one of its own errors
    """A model took longer than it may."""


def work(zoo: Zoo, names: Iterable[str], path: Path) -> None:
    """Measure some models in this process, which is given no more memory than it may have."""
    bound = GIGABYTES << 30
    resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)

    def up(*_: Any) -> None:
        raise TimeIsUp

    signal.signal(signal.SIGPROF, up)
    for name in names:
        torch.manual_seed(0)
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            record = measure(zoo, name)
        except TimeIsUp:
            record = {"outcome": "failed", "why": f"longer than {SECONDS} s of CPU time"}
        except Exception as error:
            record = {"outcome": "failed", "why": said(error)}
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        append(path, {"zoo": zoo.package, "model": name, **record, "cpu_seconds": time.process_time() - start})


def append(path: Path, record: Record) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def read(path: Path) -> dict[tuple[str, str], Record]:
    """The last record of each model. A line may be broken off by an interruption."""
    records = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        records[record["zoo"], record["model"]] = record
    return records


def sweep(zoo: Zoo, names: list[str], path: Path) -> None:
    """Measure these models in processes of their own; one that brings its process down is noted, and the rest go on."""
    started = path.stat().st_size if path.exists() else 0
    while names:
        batch, names = names[:AT_ONCE], names[AT_ONCE:]
        command = [sys.executable, __file__, "--json", str(path), "--zoos", zoo.package, "--work", "--models", *batch]
        status = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode
        lines = path.read_text()[started:].splitlines() if path.exists() else []
        done = {json.loads(line)["model"] for line in lines}
        left = [name for name in batch if name not in done]
        if left:
            append(path, {"zoo": zoo.package, "model": left[0], "outcome": "failed", "why": f"process ended: {status}"})
        names = left[1:] + names
        print(f"{zoo.package}: {len(done)} done, {len(names)} to go", flush=True)


# -- the page --------------------------------------------------------------------------------------------------------


def page(records: Iterable[Record], versions: Mapping[str, str], missing: Iterable[str]) -> str:
    """The documentation's page."""
    by_zoo: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_zoo[record["zoo"]].append(record)
    lines = [
        "# Other people's models",
        "",
        "Written by `benchmarks/zoos.py`; run it again instead of editing this file.",
        "",
        "Models that nobody here wrote are built without weights, in a small configuration where they are large, and",
        f"initialised by `{SHIPPED}`. *Tried* is what is built and runs in plain PyTorch. A parameter is *used* if it",
        "got a gradient in a forward and backward pass of PyTorch in eval mode, without this package. *Layers* are",
        f"convolutions, linear layers and norms, known by their classes; *whole* is a model of which {WHOLE:.0%} of",
        "the used values of layers are predicted.",
        "",
        "```sh",
        "pip install '.[zoos]'",
        "python benchmarks/zoos.py --markdown benchmarks/results/zoos.md",
        "```",
        "",
        f"torch {torch.__version__}, Python {platform.python_version()}.",
        "",
        *verdict([r for rs in by_zoo.values() for r in rs]),
        "",
        "| zoo | version | tried | initialised | whole | used values of layers predicted | used values predicted | "
        "refused | failed | not tried |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        *(row(zoo, versions.get(zoo, ""), by_zoo[zoo]) for zoo in sorted(by_zoo)),
        *(row("all", "", [r for rs in by_zoo.values() for r in rs]) for _ in (1,)),
        "",
    ]
    lines += [f"Not installed, so left out: {', '.join(missing)}.", ""] if missing else []
    everything = [r for zoo in sorted(by_zoo) for r in sorted(by_zoo[zoo], key=lambda r: str(r["model"]))]
    for title, rows in (("What was refused or failed", refusals(everything)), ("What falls short", short(everything))):
        lines += [f"## {title}", "", *(rows or ["Nothing."]), ""]
    lines += ["## Why values are left", "", *left(everything), ""]
    lines += ["## What was not tried", "", *not_tried(everything), ""]
    return "\n".join(lines)


def tried(records: Iterable[Record]) -> list[Record]:
    return [r for r in records if r["outcome"] in ("initialised", "refused", "failed")]


def good(record: Record) -> bool:
    return not record["faults"] and record["predicted_layers"] >= WHOLE * record["layers"]


def percent(part: float, whole: float) -> str:
    return f"{int(10_000 * part / whole + 1e-9) / 100:.2f}%" if whole else ""


def verdict(records: list[Record]) -> list[str]:
    """The targets and what was reached."""
    of = tried(records)
    done = [r for r in of if r["outcome"] == "initialised"]
    answered = len(done) + sum(r["outcome"] == "refused" for r in of)
    whole = sum(map(good, done))
    return [
        "| check | target | result |",
        "|---|---:|---:|",
        f"| models tried | {MODELS} | {len(of)} |",
        f"| initialised, or refused with a true reason | {INITIALISED:.0%} | {percent(answered, len(of))} |",
        f"| of the initialised: at least {WHOLE:.0%} of the used values of layers predicted | {SHARE:.0%} | "
        f"{percent(whole, len(done))} |",
    ]


def row(zoo: str, release: str, records: list[Record]) -> str:
    of = tried(records)
    done = [r for r in of if r["outcome"] == "initialised"]
    count = Counter(r["outcome"] for r in of)
    sums = {key: sum(r[key] for r in done) for key in ("layers", "predicted_layers", "used", "predicted_used")}
    return (
        f"| {zoo} | {release} | {len(of)} | {len(done)} | {sum(map(good, done))} | "
        f"{percent(sums['predicted_layers'], sums['layers'])} | {percent(sums['predicted_used'], sums['used'])} | "
        f"{count['refused']} | {count['failed']} | {len(records) - len(of)} |"
    )


def refusals(records: list[Record]) -> list[str]:
    return [f"* {r['zoo']} {r['model']}, {r['outcome']}: {r['why']}" for r in tried(records) if "why" in r]


def short(records: list[Record]) -> list[str]:
    lines = []
    for r in records:
        if r["outcome"] == "initialised" and not good(r):
            missed = "; ".join(f"{n:,} values: {why} ({', '.join(e)})" for why, (n, e) in r["missed"].items())
            lines.append(
                f"* {r['zoo']} {r['model']}: {percent(r['predicted_layers'], r['layers'])}. "
                + " ".join([missed, *r["faults"][:2]])
            )
    return lines


def left(records: list[Record]) -> list[str]:
    models: Counter[str] = Counter()
    values: Counter[str] = Counter()
    used: Counter[str] = Counter()
    for r in records:
        for why, (all_of_it, of_used) in r.get("skipped", {}).items():
            models[why] += 1
            values[why] += all_of_it
            used[why] += of_used
    rows = [f"| {why} | {models[why]} | {values[why]:,} | {used[why]:,} |" for why, _ in models.most_common()]
    return ["| reason in the report | models | values | of these used |", "|---|---:|---:|---:|", *rows]


def not_tried(records: list[Record]) -> list[str]:
    rest = [r for r in records if r["outcome"] in ("not built", "does not run")]
    return [f"* {r['zoo']} {r['model']}, {r['outcome']}: {r['why'][:160]}" for r in rest] or ["Nothing."]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoos", nargs="+", metavar="PACKAGE", choices=list(ZOOS), default=list(ZOOS))
    parser.add_argument("--models", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--again", action="store_true", help="also what has been measured already")
    parser.add_argument("--json", type=Path, default=Path("zoos.jsonl"), help="results, one a line (%(default)s)")
    parser.add_argument("--markdown", type=Path, help="write the page here")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    os.environ |= {"HF_HUB_OFFLINE": "1", "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}  # nothing is fetched
    zoos = [ZOOS[package] for package in options.zoos]
    if options.work:
        work(zoos[0], options.models, options.json)
        return
    missing = [zoo.package for zoo in zoos if find_spec(zoo.module) is None]
    for zoo in zoos:
        if zoo.package in missing:
            print(f"{zoo.package} is not installed")
            continue
        done = () if options.again else {model for package, model in read(options.json) if package == zoo.package}
        names = [n for n in zoo.names() if n not in done and (not options.models or n in options.models)]
        sweep(zoo, names, options.json)
    text = page(read(options.json).values(), releases(zoos), missing)
    print("\n".join(verdict(list(read(options.json).values()))))
    if options.markdown:
        options.markdown.write_text(text)


def releases(zoos: Iterable[Zoo]) -> dict[str, str]:
    found = {}
    for zoo in zoos:
        try:
            found[zoo.package] = version(zoo.package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
