"""How long it takes to initialise a sharded model, and how much memory on each rank, against the number of ranks.

    python benchmarks/bench_sharded.py --markdown sharded.md                    both tables below
    python benchmarks/bench_sharded.py --models vit_tiny_patch16_224 --worlds 1 2 --repeat 1 --paper ""

Ranks are processes on this machine that talk over gloo, with one thread each; PyTorch and timm are imported once, and
ranks are forks. All sizes of worlds take turns within each repetition. A figure is the median over the repetitions of
the slowest (largest) rank, with the smallest and the largest. Times are ratios.

The second table is arithmetic for a model that does not fit here: its graph and its layers are real, read on the meta
device, and so are the bytes that each rank would send; seconds follow from what was measured here (trace, embed,
decode) and from the speeds that are given as arguments.
"""

import argparse
import ctypes
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from timm_ghn_init import init_model, load_ghn, parse_source, save_ghn, trace
from timm_ghn_init.ghn import GHN
from timm_ghn_init.recipe.offer import Resolved, predicted
from timm_ghn_init.recipe.plan import auto_layer, make_plan
from timm_ghn_init.recipe.postprocessing import list_layers, process_weight, to_process
from timm_ghn_init.sharded import place as sharded_place
from timm_ghn_init.sharded import post
from timm_ghn_init.sharded.blocks import shard_blocks
from timm_ghn_init.sharded.meeting import Meeting
from timm_ghn_init.sharded.post import owners

CONFIG = {"max_shape": (64, 64, 16, 16), "num_classes": 1000, "weight_norm": True, "ve": True, "layernorm": True}
Record = dict[str, Any]
_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


# -- measuring -------------------------------------------------------------------------------------------------------


def measure(model: str, source: str, rank: int, world: int, store: Path, out: Path) -> None:
    """One rank: build on the meta device, shard, initialise, and write down what it took."""
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(minutes=10)
    )
    mesh = init_device_mesh("cpu", (world,))
    with torch.device("meta"):
        built = timm.create_model(model)
    shard_blocks(built, mesh=mesh)
    process_weight(torch.randn(512, 512), "warm up", 3e-5, True, 0)  # LAPACK's own pages
    sent, extra = count_bytes(), count_memory()
    dist.barrier()
    start = time.perf_counter()
    report = init_model(built, source)
    seconds = time.perf_counter() - start
    own = sum(p.to_local().nbytes for p in built.parameters()) + sum(b.nbytes for b in built.buffers())
    record = {"seconds": seconds, "extra": extra(), "own": own, "sent": sent(), "stages": report.seconds}
    out.write_text(json.dumps(record))
    dist.barrier()
    dist.destroy_process_group()


def memory(key: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024


def count_memory() -> Callable[[], int]:
    """From here on, by how much memory rises above its start in post-processing."""
    rise, run = [0], post.postprocess_parts

    def measured(*args: Any) -> None:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 17)  # what is freed goes back at once: memory in use is counted, no more
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
        before = memory("VmRSS")
        run(*args)
        rise[0] = memory("VmHWM") - before

    sharded_place.postprocess_parts = measured  # type: ignore[attr-defined]
    return lambda: rise[0]


def count_bytes() -> Callable[[], int]:
    """From here on, what this rank sends to the others in post-processing."""
    total, send = [0], Meeting.broadcast

    def counted(meeting: Meeting, tensors: list[torch.Tensor], owner: int, about: str) -> None:
        if owner == meeting.rank and len(meeting.members) > 1 and about != "the GHN":
            total[0] += sum(tensor.nbytes for tensor in tensors)
        send(meeting, tensors, owner, about)

    Meeting.broadcast = counted  # type: ignore[assignment,method-assign]
    return lambda: total[0]


def run_world(model: str, source: str, world: int, folder: Path) -> list[Record]:
    """All ranks of a world, each a fork."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        outs = [Path(place) / f"{rank}.json" for rank in range(world)]
        children = []
        for rank, out in enumerate(outs):
            child = os.fork()
            if not child:
                status = 1
                try:
                    measure(model, source, rank, world, Path(place) / "store", out)
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(status)
            children.append(child)
        failed = [child for child in children if os.waitpid(child, 0)[1]]
        if failed:
            raise RuntimeError(f"{model} on {world} ranks: {len(failed)} failed")
        return [json.loads(out.read_text()) for out in outs]


def measured_table(models: list[str], source: str, worlds: list[int], repeat: int, folder: Path) -> str:
    lines = [
        "| model | ranks | time / time on the fewest ranks | share of post-processing | extra memory there, MB "
        "| two largest layers, MB | own parameters, MB | sent, MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for model in models:
        runs: dict[int, list[list[Record]]] = {world: [] for world in worlds}
        for _ in range(repeat):
            for world in worlds:
                runs[world].append(run_world(model, source, world, folder))
        layers = largest_layers(model)
        fewest = [max(r["seconds"] for r in ranks) for ranks in runs[worlds[0]]]
        for world, repetitions in runs.items():
            seconds = [max(r["seconds"] for r in ranks) for ranks in repetitions]
            post = [max(r["stages"].get("postprocess", 0) for r in ranks) for ranks in repetitions]
            cells = [
                figure([a / b for a, b in zip(seconds, fewest, strict=True)], 2),
                figure([a / b for a, b in zip(post, seconds, strict=True)], 2),
                figure([max(r["extra"] for r in ranks) / 1e6 for ranks in repetitions], 1),
                f"{layers / 1e6:.1f}",
                f"{max(r['own'] for r in repetitions[0]) / 1e6:.1f}",
                f"{max(r['sent'] for r in repetitions[0]) / 1e6:.1f}",
            ]
            lines.append(f"| {model} | {world} | {' | '.join(cells)} |")
    return "\n".join(lines)


def largest_layers(model: str) -> int:
    """Bytes of the two largest layers that are post-processed, in float32."""
    with torch.device("meta"):
        built = timm.create_model(model)
    targets = to_process(built, auto_layer(model, len(list_layers(built))))
    return sum(sorted(4 * t.weight.numel() for t in targets)[-2:])


def figure(values: list[float], digits: int) -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


# -- on paper --------------------------------------------------------------------------------------------------------


def paper_table(model: str, source: str, ranks: list[int], args: argparse.Namespace) -> str:
    with torch.device("meta"):
        built = timm.create_model(model)
    asked, ghn = parse_source(source), load_ghn(source)
    start = time.perf_counter()
    with torch.no_grad():
        graph = trace(built, None, ghn.dialect)
        plan = make_plan(built, model, predicted(graph, ghn.num_classes, asked), Resolved(asked, asked, ghn), None)
        ghn.decode(graph, ghn.embed(graph), plan.names)
    everywhere = time.perf_counter() - start
    rate = args.tflops * 1e12 if args.tflops else measured_rate()
    total = sum(p.numel() for p in built.parameters()) * args.bytes
    link, write = args.link * 1e9, args.memory * 1e9
    where = "as given" if args.tflops else "of one core here, measured"
    lines = [
        f"{model}: {total / args.bytes / 1e9:.2f} B parameters of {args.bytes} bytes, {len(plan.changed)} layers to "
        f"post-process. Trace, embed and decode on every rank: {everywhere:.2f} s, measured here. Post-processing at "
        f"{rate / 1e12:.3g} TFLOP/s ({where}), links of {args.link:g} GB/s for each rank, writes at {args.memory:g} "
        "GB/s. A rank sends each layer that it computes to all others.",
        "",
        "| ranks | own parameters, GB | write, s | post-processing: compute, s | send, GB | receive, GB | send and "
        "receive, s | extra memory, GB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    sizes = {layer.name: layer.weight.numel() * args.bytes for layer in plan.changed}
    for world in ranks:
        compute, sent = [0.0] * world, [0.0] * world
        for one_round in owners(plan.changed, world):
            for owner, layer in one_round.items():
                compute[owner] += operations(layer.weight) / rate
                sent[owner] += sizes[layer.name]
        # the results wait until all are computed; besides, one layer of its own, in float32, and one of another rank
        total_sent = sum(sizes.values())
        largest = max(sizes.values()) + max(layer.weight.numel() * 4 for layer in plan.changed)
        extra = total_sent / world + largest
        cells = (
            total / world / 1e9,
            total / world / write,
            max(compute),
            max(sent) / 1e9,
            (total_sent - min(sent)) / 1e9,
            total_sent / link,
            extra / 1e9,
        )
        lines.append(f"| {world} | " + " | ".join(f"{c:.3g}" for c in cells) + " |")
    return "\n".join(lines)


def operations(weight: torch.Tensor) -> float:
    """Floating-point operations of Householder QR with an explicit Q."""
    rows, columns = sorted((weight.shape[0], math.prod(weight.shape[1:])), reverse=True)
    return 4 * rows * columns**2 - 4 / 3 * columns**3


def measured_rate(size: int = 1024) -> float:
    """Operations per second of one thread here, noise and all, on a layer of a ViT of this width."""
    weight = torch.randn(size, 4 * size)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        process_weight(weight, "weight", 3e-5, True, 0)
        seconds.append(time.perf_counter() - start)
    return operations(weight) / statistics.median(seconds)


def make_ghn(folder: Path) -> str:
    """A GHN-2 with made-up weights, which change no timing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ghn = GHN(**CONFIG, hid=32)  # type: ignore[arg-type]
    for module in ghn.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    path = folder / "ghn.safetensors"
    save_ghn(ghn, path)
    return str(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vit_base_patch16_224", "convnext_small"])
    parser.add_argument("--worlds", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--source", help="default: a GHN-2 with made-up weights, and post-processing")
    parser.add_argument("--paper", default="vit_7b_patch16_dinov3", help='the model on paper; "" for none')
    parser.add_argument("--ranks", nargs="+", type=int, default=[8, 64], help="on paper")
    parser.add_argument("--tflops", type=float, help="of post-processing on paper; default: one core here, measured")
    parser.add_argument("--link", type=float, default=50.0, help="GB/s in and out of a rank, on paper")
    parser.add_argument("--memory", type=float, default=1000.0, help="GB/s that a rank writes, on paper")
    parser.add_argument("--bytes", type=int, default=4, help="of a parameter, on paper")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file; default: stdout")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        source = args.source or f"file:{make_ghn(folder)}-orth"
        load = os.getloadavg()[0]
        parts = [
            f"{os.cpu_count()} cores, load average {load:.2f} at the start; Python {platform.python_version()}, timm "
            f"{timm.__version__}, torch {torch.__version__}; {args.repeat} repetitions, one thread for each rank.",
            measured_table(args.models, source, args.worlds, args.repeat, folder),
        ]
        if args.paper:
            parts.append(paper_table(args.paper, source, args.ranks, args))
    text = "\n\n".join(parts) + "\n"
    if args.markdown:
        args.markdown.write_text(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
