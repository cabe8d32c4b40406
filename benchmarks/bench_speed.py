"""How long an initialisation takes and how much memory, against the reference implementations and against floors.

    python benchmarks/bench_speed.py --markdown speed.md --json speed.json          the table, the memory, the import
    python benchmarks/bench_speed.py --quick                                        two small models, once
    python benchmarks/bench_speed.py --sweep nodes params                           how each stage grows
    python benchmarks/bench_speed.py --ghn ghn3-t --models tv:resnet50 tv:convnext_tiny
    python benchmarks/bench_speed.py --report speed.json sweeps.json ghn3.json      one document from several runs

All contenders take turns within each repetition, in one process, after a round that is not counted. A figure is the
median over the repetitions, with the smallest and the largest; a ratio is taken within each repetition first. Models
are timm's; "tv:NAME" is torchvision's, and on those the reference implementation takes part where it is importable.
The GHN has made-up weights (the rule of tests/parity/README.md) unless a file is named: they do not change the timings.
"""

import argparse
import copy
import ctypes
import gc
import json
import logging
import math
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import timm
import torch
from peer import PEERS, Peer, load_peer
from speed_report import render
from torch import Tensor, nn

import timm_ghn_init
from timm_ghn_init import Source, init_model, load_ghn, save_ghn, trace
from timm_ghn_init.ghn import GHN
from timm_ghn_init.recipe import assign
from timm_ghn_init.recipe.plan import auto_layer
from timm_ghn_init.recipe.postprocessing import list_layers

_logger = logging.getLogger("bench_speed")

Seconds = dict[str, float]
Contender = Callable[[], Seconds]
Record = dict[str, Any]
T = TypeVar("T")

_CONFIG = {"max_shape": (64, 64, 16, 16), "num_classes": 1000, "weight_norm": True, "ve": True, "layernorm": True}
CONFIGS: dict[str, dict[str, Any]] = {
    "ghn2": {**_CONFIG, "hid": 32},
    "ghn3-t": {**_CONFIG, "hypernet": "graphormer", "hid": 64, "heads": 8, "layers": 3},
    "ghn3-xl": {**_CONFIG, "hypernet": "graphormer", "hid": 384, "heads": 16, "layers": 24},
}
MODELS = [
    "resnet50",
    "convnext_base",
    "efficientnetv2_l",
    "vit_base_patch16_224",
    "vit_large_patch16_224",
    "vit_giant_patch14_clip_224",
    "resnet152",
    "swin_base_patch4_window7_224",
    "densenet201",
    "tv:resnet50",
    "tv:convnext_base",
]
QUICK_MODELS = ["resnet18", "vit_tiny_patch16_224"]
# "chain:B" is B residual blocks in a row, for graphs larger than any architecture's.
SWEEPS = {
    "nodes": [
        *("resnet18", "resnet50", "resnet152", "efficientnet_b0", "efficientnet_b7", "densenet201", "nasnetalarge"),
        *("chain:10", "chain:40", "chain:120", "chain:240", "chain:400", "chain:600"),
    ],
    "params": [
        *("mobilenetv3_small_050", "vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224"),
        *("vit_large_patch16_224", "vit_huge_patch14_clip_224", "vit_giant_patch14_clip_224"),
        *("convnext_atto", "convnext_nano", "convnext_small", "convnext_base", "convnext_xlarge", "convnext_xxlarge"),
    ],
}
SWEEP_POST = 250e6  # parameters up to which the sweep post-processes: beyond, QR alone takes minutes on a CPU
STAGES = ("trace", "embed", "decode + write", "post-process")
PARTS = ("predict", "post", "create", "memory", "import")

# name -> what is divided by what, each a sum of figures
RATIOS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "trace / forward on meta": (("trace",), ("forward on meta",)),
    "decode + write / fill_": (("decode + write",), ("fill_",)),
    "post-process / bare QR": (("post-process",), ("bare QR",)),
    "post-process / noise + QR": (("post-process",), ("noise + QR",)),
    "create_model with GHN / without": (("create_model with GHN",), ("create_model",)),
    "create_model with GHN-orth / without": (("create_model with GHN-orth",), ("create_model",)),
    "create_model with GHN-orth / bare QR + prediction": (
        ("create_model with GHN-orth",),
        ("bare QR", "graph + prediction"),
    ),
    "peer / ours, graph + prediction": (("peer graph", "peer predict"), ("graph + prediction",)),
    "peer / ours, post-process": (("peer post-process",), ("post-process",)),
    "ours / GHN-2": (("graph + prediction",), ("GHN-2 graph + prediction",)),
    "write / device copy": (("copy",), ("write",)),
}


# -- models and hypernetworks ----------------------------------------------------------------------------------------


class Chain(nn.Module):
    """Residual blocks of two convolutions in a row: five nodes each."""

    def __init__(self, blocks: int, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=16)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
            )
            for _ in range(blocks)
        )
        self.fc = nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = (x + block(x)).relu()
        return self.fc(x.mean((2, 3)))


def build(name: str) -> nn.Module:
    """A model by its name here, with its library's own initialisation."""
    library, _, rest = name.rpartition(":")
    if library == "chain":
        return Chain(int(rest))
    if library == "tv":
        from torchvision import models

        return models.get_model(rest, weights=None)
    return timm.create_model(name)


def seed_weights(ghn: GHN) -> GHN:
    """Fill a GHN by the rule of tests/parity/README.md: every tensor from its own name."""
    for name, tensor in ghn.state_dict().items():
        values = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        if "embed" in name:
            scale, offset = 1.0, 0.0
        elif tensor.dim() >= 2:
            scale, offset = math.sqrt(2 / tensor[0].numel()), 0.0
        else:
            scale, offset = 0.1, float(name.endswith(("ln.weight", "ln1.weight", "ln2.weight")))
        tensor.copy_(values.mul_(scale).add_(offset))
    return ghn


def make_ghn(kind: str, folder: Path) -> Path:
    """A checkpoint with made-up weights."""
    path = folder / f"{kind}.safetensors"
    save_ghn(seed_weights(GHN(**CONFIGS[kind])), path)
    return path


# -- timing ----------------------------------------------------------------------------------------------------------


class Clock:
    """Collects seconds by figure; on CUDA each piece of work is timed from idle to idle."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: Seconds = {}
        self.device = device

    def __call__(self, figure: str, work: Callable[[], T]) -> T:
        self._synchronise()
        start = time.perf_counter()
        result = work()
        self._synchronise()
        self.seconds[figure] = time.perf_counter() - start
        return result

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def take_turns(contenders: Sequence[Contender], repeats: int) -> dict[str, list[float]]:
    """Run all contenders one after the other, `repeats` times and once before that counts. Figure -> all its runs."""
    runs: dict[str, list[float]] = {}
    for repetition in range(repeats + 1):
        for contender in contenders:
            gc.collect()  # so that nobody pays for the garbage of another
            for figure, seconds in contender().items():
                if repetition:
                    runs.setdefault(figure, []).append(seconds)
    return runs


def summary(runs: Sequence[float]) -> dict[str, Any]:
    return {"median": statistics.median(runs), "min": min(runs), "max": max(runs), "runs": list(runs)}


def ratios(runs: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Those of RATIOS whose figures were all measured."""
    found = {}
    for name, sides in RATIOS.items():
        if all(figure in runs for side in sides for figure in side):
            over, under = (np.sum([runs[figure] for figure in side], axis=0) for side in sides)
            found[name] = summary((over / under).tolist())
    return found


# -- contenders ------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """One model on one device with the GHN that predicts for it."""

    name: str
    model: nn.Module
    ghn: GHN
    path: Path  #: the GHN's file
    layer: int  #: first layer to post-process
    device: torch.device

    def source(self, **options: Any) -> Source:
        return Source(f"file:{self.path}", layer=self.layer, **options)

    def init(self, **options: Any) -> Any:
        """`init_model` as a user calls it."""
        return init_model(self.model, self.source(**options), ghn=self.ghn, device=self.device, progress=False)


def make_case(name: str, path: Path, device: torch.device, layer: int | None = None) -> Case:
    model = build(name).to(device)
    architecture = name.rpartition(":")[2]
    layer = layer or auto_layer(architecture, len(list_layers(model)))
    return Case(name, model, load_ghn(path, device), path, layer, device)


def contenders(case: Case, parts: Sequence[str], peer: Peer | None, other: GHN | None) -> Iterator[Contender]:
    """Whoever takes turns on one model, ours and the floors, in the order of a repetition."""
    if "predict" in parts:
        yield lambda: our_stages(case)
        yield lambda: our_prediction(case, "graph + prediction")
        yield lambda: fill(case)
        skeleton = copy.deepcopy(case.model).to("meta").eval()
        yield lambda: forward_on_meta(case, skeleton)
        if other is not None:
            rival = case._replace(ghn=other)
            yield lambda: our_prediction(rival, "GHN-2 graph + prediction")
        if case.device.type == "cuda":
            yield lambda: device_copy(case)
    if "post" in parts:
        matrices = processed_matrices(case)
        yield lambda: our_total(case)
        yield lambda: bare_qr(case, matrices)
        yield lambda: noise_and_qr(case, matrices)
    if "create" in parts and case.device.type == "cpu":
        yield lambda: create(case.name)
        if ":" not in case.name:
            yield lambda: create_with_ghn(case, "create_model with GHN", "")
            if "post" in parts:
                yield lambda: create_with_ghn(case, "create_model with GHN-orth", "-orth")
    if peer is not None:
        untouched = build(case.name)
        yield lambda: run_peer(peer, untouched, case.layer, parts)


def our_stages(case: Case) -> Seconds:
    """The stages of a prediction; `check_finite` counts with decoding and writing, which it sits between."""
    clock = Clock(case.device)
    with torch.no_grad():
        graph = clock("trace", lambda: trace(case.model, dialect=case.ghn.dialect))
        z = clock("embed", lambda: case.ghn.embed(graph))
        tiles = clock("decode", lambda: case.ghn.decode(graph, z))
        clock("check", lambda: assign.check_finite(tiles, case.name))
        clock("write", lambda: assign.write(dict(case.model.named_parameters()), tiles))
    s = clock.seconds
    return {**s, "decode + write": s["decode"] + s["check"] + s["write"]}


def our_prediction(case: Case, figure: str) -> Seconds:
    clock = Clock(case.device)
    clock(figure, case.init)
    return clock.seconds


def our_total(case: Case) -> Seconds:
    clock = Clock(case.device)
    report = clock("total", lambda: case.init(orth=True))
    past_the_trace = clock.seconds["total"] - report.seconds["trace"]
    return {**clock.seconds, "post-process": report.seconds["postprocess"], "past the trace": past_the_trace}


def fill(case: Case) -> Seconds:
    clock = Clock(case.device)

    @torch.no_grad()
    def work() -> None:
        for parameter in case.model.parameters():
            parameter.fill_(0.1)

    clock("fill_", work)
    return clock.seconds


@torch.no_grad()
def forward_on_meta(case: Case, skeleton: nn.Module) -> Seconds:
    """One forward pass without data by PyTorch itself, nothing recorded: what reading a graph off it begins with."""
    clock = Clock(torch.device("cpu"))
    images = torch.empty(2, *trace(case.model).input_size, device="meta")
    clock("forward on meta", lambda: skeleton(images))
    return clock.seconds


def device_copy(case: Case) -> Seconds:
    """One plain copy of as many bytes as the prediction writes."""
    clock = Clock(case.device)
    source = torch.zeros(sum(p.numel() for p in case.model.parameters()), device=case.device)
    target = torch.empty_like(source)
    clock("copy", lambda: target.copy_(source))
    return clock.seconds


def processed_matrices(case: Case) -> list[Tensor]:
    """The matrices that Eq. (2) is applied to: the predicted weights of the processed layers with their noise, tall."""
    report = case.init(orth=True, orthogonal=False)
    matrices = []
    for name in report.postprocessed:
        weight = case.model.get_parameter(name).detach().clone()
        matrix = weight.reshape(len(weight), -1)
        matrices.append(matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T)
    return matrices


def bare_qr(case: Case, matrices: Sequence[Tensor]) -> Seconds:
    clock = Clock(case.device)

    def work() -> None:
        for matrix in matrices:
            torch.linalg.qr(matrix)

    clock("bare QR", work)
    return clock.seconds


def noise_and_qr(case: Case, matrices: Sequence[Tensor]) -> Seconds:
    """The plain way through Eq. (1) and (2), one matrix after the other; the scale of the noise is not computed."""
    clock = Clock(case.device)

    def work() -> None:
        for matrix in matrices:
            torch.linalg.qr(matrix + 1e-5 * torch.randn_like(matrix))

    clock("noise + QR", work)
    return clock.seconds


def create(name: str) -> Seconds:
    clock = Clock(torch.device("cpu"))
    clock("create_model", lambda: build(name))
    return clock.seconds


def create_with_ghn(case: Case, figure: str, suffix: str) -> Seconds:
    clock = Clock(torch.device("cpu"))
    source: Any = f"file:{case.path}{suffix}"  # timm says bool; the package makes it mean more
    clock(figure, lambda: timm.create_model(case.name, pretrained=source))
    return clock.seconds


def run_peer(peer: Peer, untouched: nn.Module, layer: int, parts: Sequence[str]) -> Seconds:
    model, clock = copy.deepcopy(untouched), Clock(torch.device("cpu"))
    graph = clock("peer graph", lambda: peer.graph(model))
    clock("peer predict", lambda: peer.predict(model, graph))
    if "post" in parts:
        clock("peer post-process", lambda: peer.postprocess(model, layer))
    return clock.seconds


def peer_agreement(case: Case, peer: Peer) -> float:
    """Largest difference between the peer's prediction and ours, in units of the parameter's largest value."""
    case.init()
    theirs = build(case.name)
    peer.predict(theirs, peer.graph(theirs))
    pairs = zip(theirs.parameters(), case.model.parameters(), strict=True)
    return max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs)


# -- memory ----------------------------------------------------------------------------------------------------------


def peak_memory(name: str, path: Path, orth: bool, device: str, threads: int) -> dict[str, Any]:
    """Peak memory of `init_model` above what the process held before, for its first call and for a later one.

    The model, initialised, and the GHN are in memory before. Meant for a fresh process.
    """
    torch.set_num_threads(threads)
    case = make_case(name, path, torch.device(device))
    bytes_: dict[str, int] = {}
    method = ""
    for call in ("first", "later"):
        gc.collect()
        _trim_heap()
        method = _restart_peak()
        before = _resident(method == "VmHWM")
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
            bytes_[f"{call}, CUDA"] = -torch.cuda.memory_allocated()
        case.init(orth=orth)
        bytes_[call] = _peak(method == "VmHWM") - before
        if device != "cpu":
            bytes_[f"{call}, CUDA"] += torch.cuda.max_memory_allocated()
    return {"bytes": bytes_, "method": method}


def _trim_heap() -> None:
    """Give back freed memory, so that it does not hide a later peak."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        _logger.info("no malloc_trim here")


def _restart_peak() -> str:
    """Let the kernel's peak of resident memory start again; where it cannot, `ru_maxrss` counts from the start."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return "ru_maxrss"
    return "VmHWM"


def _resident(from_proc: bool) -> int:
    return _proc_status("VmRSS") if from_proc else _max_rss()


def _peak(from_proc: bool) -> int:
    return _proc_status("VmHWM") if from_proc else _max_rss()


def _proc_status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def _max_rss() -> int:
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024


def measure_memory(case: Case) -> Record:
    """Without and with post-processing, each in a process of its own."""
    found: Record = {}
    for figure, orth in (("graph + prediction", False), ("total", True)):
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            arguments = (case.name, case.path, orth, str(case.device), torch.get_num_threads())
            found[figure] = pool.submit(peak_memory, *arguments).result()
    return found


# -- import ----------------------------------------------------------------------------------------------------------

_IMPORT = """
import json, sys, time
start = time.perf_counter()
import timm
middle = time.perf_counter()
before = set(sys.modules)
import timm_ghn_init
end = time.perf_counter()
print(json.dumps([middle - start, end - middle, sorted(set(sys.modules) - before)]))
"""
_NOT_YET = ("scipy", "matplotlib", "huggingface_hub")


def measure_import(repeats: int) -> Record:
    """Fresh processes that import timm, then the package: each is its own comparison, whatever the machine does."""
    package = str(Path(timm_ghn_init.__file__).parents[1])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    results = []
    for _ in range(repeats + 1):
        command = [sys.executable, "-c", _IMPORT]
        done = subprocess.run(command, capture_output=True, check=True, env={**os.environ, "PYTHONPATH": path})
        results.append(json.loads(done.stdout))
    ours, counted = results[0][2], results[1:]
    return {
        "timm": summary([r[0] for r in counted]),
        "timm_ghn_init": summary([r[1] for r in counted]),
        "modules": len(ours),
        "not yet": [m for m in _NOT_YET if any(o.partition(".")[0] == m for o in ours)],
    }


# -- one model, one sweep, everything --------------------------------------------------------------------------------


def describe(case: Case) -> Record:
    graph = trace(case.model, dialect=case.ghn.dialect)
    layers = [case.model.get_parameter(name) for name, _ in list_layers(case.model)]
    return {
        "model": case.name,
        "device": str(case.device),
        "params": sum(p.numel() for p in case.model.parameters()),
        "nodes": len(graph.nodes),
        "layers": len(layers),
        "layer": case.layer,
        "largest_layer": max(4 * weight.numel() for weight in layers),
    }


def measure(case: Case, parts: Sequence[str], peer: Peer | None, other: GHN | None, repeats: int) -> Record:
    record = describe(case)
    if peer is not None:
        record["peer"] = peer.name
        record["peer_agrees_to"] = peer_agreement(case, peer)
    runs = take_turns(list(contenders(case, parts, peer, other)), repeats)
    record["seconds"] = {figure: summary(s) for figure, s in runs.items()}
    record["ratios"] = ratios(runs)
    if "memory" in parts:
        record["memory"] = measure_memory(case)
    return record


def sweep(kind: str, path: Path, repeats: int, models: Sequence[str], parts: Sequence[str]) -> Record:
    """Stages over architectures; by parameters with post-processing (up to SWEEP_POST), by nodes it says nothing."""
    records = []
    for name in models:
        _logger.info("sweep over %s: %s", kind, name)
        case = make_case(name, path, torch.device("cpu"))
        post = kind == "params" and sum(p.numel() for p in case.model.parameters()) <= SWEEP_POST
        chosen = [p for p in parts if p == "predict" or (p == "post" and post)]
        records.append(measure(case, chosen, None, None, repeats))
    records.sort(key=lambda r: r[kind])
    return {"over": kind, "models": records, "growth": growth(records, kind)}


def growth(records: Sequence[Record], kind: str) -> Record:
    """Stage -> exponent b of seconds = a * size^b, least squares of the logarithms: over all, over the larger half."""
    found: Record = {}
    for stage in STAGES:
        points = [(r[kind], r["seconds"][stage]["median"]) for r in records if stage in r["seconds"]]
        if len(points) >= 4:
            found[stage] = {"all": exponent(points), "larger half": exponent(points[len(points) // 2 :])}
    return found


def exponent(points: Sequence[tuple[float, float]]) -> float:
    size, seconds = np.log(np.array(points)).T
    return float(np.polyfit(size, seconds, 1)[0])


def machine() -> Record:
    packages = {}
    for package in ("timm", "torch", "torchvision", "numpy", *PEERS):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "packages": packages,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        return f"{facts['model name']} (family {facts['cpu family']}, model {facts['model']})"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", metavar="NAME", help="timm names, or tv:NAME for torchvision's")
    parser.add_argument("--sweep", nargs="+", choices=SWEEPS, default=[], help="measure growth instead of the table")
    parser.add_argument("--ghn", choices=CONFIGS, default="ghn2", help="which GHN")
    parser.add_argument("--source", metavar="file:PATH", help="the GHN's weights; default: made up")
    parser.add_argument("--peer", choices=PEERS, help="default: the one that goes with the GHN")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument("--layer", type=int, help="first layer to post-process; default: the package's choice")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of PyTorch; default: its own")
    parser.add_argument("--quick", action="store_true", help="two small models, one repetition")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="default: standard output")
    parser.add_argument("--report", nargs="+", type=Path, metavar="JSON", help="measure nothing, render these")
    args = parser.parse_args(argv)
    if args.quick:
        args.repeats = 1
        args.models = args.models or QUICK_MODELS
    if args.repeats < 1:
        parser.error("--repeats must be at least 1")
    if args.source and not args.source.startswith("file:"):
        parser.error("--source must be file:PATH")
    return args


def find_peer(args: argparse.Namespace, ghn: GHN, notes: list[str]) -> Peer | None:
    if args.no_peer:
        return None
    name = args.peer or ("ppuda" if args.ghn == "ghn2" else "ghn3")
    try:
        return load_peer(name, ghn)
    except ImportError as error:
        notes.append(f"Without {name}, which is not importable here ({error}).")
        return None


def run_table(args: argparse.Namespace, path: Path, folder: Path, notes: list[str]) -> Iterator[Record]:
    names = args.models or MODELS
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if len(devices) == 1:
        notes.append("No CUDA device here: everything that needs one was skipped.")
    peer = find_peer(args, load_ghn(path), notes) if any(n.startswith("tv:") for n in names) else None
    other = make_ghn("ghn2", folder) if args.ghn != "ghn2" else None
    for name in names:
        for device in devices:
            _logger.info("%s on %s", name, device)
            case = make_case(name, path, torch.device(device), args.layer)
            takes_part = peer if name.startswith("tv:") and device == "cpu" else None
            rival = load_ghn(other, device) if other else None
            yield measure(case, args.parts, takes_part, rival, args.repeats)


def run(args: argparse.Namespace) -> Record:
    """Everything that the command line asks for, as what goes into the JSON file."""
    if args.threads:
        torch.set_num_threads(args.threads)
    notes: list[str] = []
    document: Record = {"machine": machine(), "ghn": args.ghn, "repeats": args.repeats, "notes": notes}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = Path(args.source.removeprefix("file:")) if args.source else make_ghn(args.ghn, folder)
        if args.sweep:
            document["sweeps"] = [
                sweep(kind, path, args.repeats, args.models or SWEEPS[kind], args.parts) for kind in args.sweep
            ]
        else:
            document["models"] = []
            for record in run_table(args, path, folder, notes):
                document["models"].append(record)
                save(args, document)  # a run takes a while, and may be stopped
            if "import" in args.parts:
                document["import"] = measure_import(args.repeats)
    save(args, document)
    return document


def save(args: argparse.Namespace, document: Record) -> None:
    if args.json:
        args.json.write_text(json.dumps(document, indent=1))


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    logging.basicConfig(level=logging.WARNING)
    _logger.setLevel(logging.INFO)
    warnings.simplefilter("ignore")  # the peers' use of PyTorch is not news
    documents = [json.loads(path.read_text()) for path in args.report] if args.report else [run(args)]
    text = render(documents)
    if args.markdown:
        args.markdown.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
