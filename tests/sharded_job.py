"""What the ranks of test_sharded.py do.

Each rank is a fork of a process that has imported PyTorch and timm. A check runs on all ranks of a world, one after the
other, and what it raises is written to FOLDER/WORLD/RANK.json by its name.
"""

import json
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

try:
    from torch.distributed.fsdp import FSDPModule, fully_shard
except ImportError:  # before PyTorch 2.6
    from torch.distributed._composable.fsdp import FSDPModule, fully_shard

import timm_ghn_init
from timm_ghn_init import CheckpointError, TraceError, init_model, initialize, load_ghn, save_ghn
from timm_ghn_init.checkpoints.load import shared_ghn
from timm_ghn_init.recipe import postprocessing
from timm_ghn_init.sharded import place as sharded_place
from timm_ghn_init.sharded.layout import local
from timm_ghn_init.weights import files as weights

VIT = {"depth": 3, "img_size": 32, "patch_size": 8}
fork = multiprocessing.get_context("fork")
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "convnext": ("test_convnext", {"num_classes": 10}),
    "vit": ("vit_tiny_patch16_224", {**VIT, "num_classes": 5}),
    "vit-1000": ("vit_tiny_patch16_224", VIT),
    "resnet": ("test_resnet", {"num_classes": 10}),
}
SIZES = {"convnext": 32, "vit": None, "vit-1000": None, "resnet": 32}
ORTH = "file:{ghn}-orth?layer=2"
NO_LAYER = ("ghn-orth", "file:{own}-orth")  # the layer follows from the depth in the GHN's file
PLAIN = "file:{ghn}"


class Tied(nn.Module):
    """Two layers with one weight, one that nothing predicts, and 5 rows for a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.two.weight = self.one.weight
        self.unused = nn.Linear(6, 9)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.two(self.one(self.stem(x).mean((2, 3))).relu()))


class Purposeful(nn.Module):
    """A layer of zeros and a prior that only the constructor sets."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.zero, self.head = nn.Conv2d(3, 20, 3), nn.Conv2d(20, 20, 1), nn.Linear(20, 5)
        nn.init.zeros_(self.zero.weight)
        nn.init.constant_(self.stem.bias, 3.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head((x + self.zero(x)).mean((2, 3)).relu())


def build(kind: str, device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    with torch.device(device):
        if kind in ("tied", "purposeful"):
            return Tied() if kind == "tied" else Purposeful()
        name, options = MODELS[kind]
        return timm.create_model(name, **options)


def source_of(ghn: str, text: str) -> str:
    return text.format(ghn=ghn, own=f"{ghn}-own.safetensors")


def place(model: nn.Module, mesh: DeviceMesh, placements: list[Any]) -> nn.Module:
    """Each parameter as a DTensor; what has too few dimensions for a shard is replicated."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for key, p in module._parameters.items():
            if p is not None:
                if id(p) not in made:
                    fitting = [x if x.is_replicate() or x.dim < p.dim() else Replicate() for x in placements]
                    made[id(p)] = nn.Parameter(distribute_tensor(p.detach(), mesh, fitting, src_data_rank=None))
                module._parameters[key] = made[id(p)]
    return model


def shard_fully(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    for name in ("blocks", "stages", "layer1", "layer3"):
        for block in getattr(model, name, ()):
            fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    tensors = {**dict(model.named_buffers()), **model.state_dict()}
    return {n: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone() for n, t in tensors.items()}


def same(model: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    found = whole(model)
    assert found.keys() == expected.keys()
    different = [n for n, t in found.items() if not torch.equal(t, expected[n].to(t.dtype))]
    assert not different, different


class Job:
    """What checks need: the world, the GHN's path and a folder that all ranks see."""

    def __init__(self, ghn: str, folder: Path, rank: int, world: int) -> None:
        self.ghn, self.folder, self.rank, self.world = ghn, folder, rank, world

    @cached_property
    def mesh(self) -> DeviceMesh:
        return init_device_mesh("cpu", (abs(self.world),))

    @cached_property
    def mesh_2d(self) -> DeviceMesh:
        return init_device_mesh("cpu", (2, self.world // 2), mesh_dim_names=("replicate", "shard"))

    def expected(self, name: str) -> dict[str, torch.Tensor]:
        return torch.load(self.folder / f"{name}.pt")

    def init(self, model: nn.Module, kind: str, source: str = ORTH, **options: Any) -> Any:
        torch.manual_seed(self.rank)  # no rank's own state has a part in it
        before = torch.get_rng_state()
        report = init_model(
            model, source_of(self.ghn, source), input_size=SIZES.get(kind, 32), seed=3, timeout=60, **options
        )
        assert torch.equal(before, torch.get_rng_state())
        return report


CHECKS: dict[str, tuple[tuple[int, ...], Callable[[Job], None]]] = {}  # name -> worlds, check; -2 ends with a death


def check(*worlds: int, name: str = "") -> Callable[[Callable[[Job], None]], Callable[[Job], None]]:
    def add(function: Callable[[Job], None]) -> Callable[[Job], None]:
        CHECKS[name or function.__name__] = (worlds, function)
        return function

    return add


def reference(job: Job) -> None:
    """Unsharded models, each in a file."""
    for kind in (*MODELS, "tied"):
        model = build(kind)
        report = job.init(model, kind)
        assert set(report.postprocessed) <= set(report.predicted)
        assert kind != "tied" or torch.equal(model.unused.weight, build(kind).unused.weight)
        torch.save(whole(model), job.folder / f"{kind}.pt")
    model = build("vit")
    job.init(model, "vit", PLAIN)
    torch.save(whole(model), job.folder / "vit-plain.pt")
    model = build("vit").bfloat16()
    job.init(model, "vit")
    torch.save(whole(model), job.folder / "vit-bf16.pt")
    for kind in ("vit-1000", "resnet"):
        model = build(kind, "meta")
        report = job.init(model, kind)
        assert not report.unset, report.unset
        torch.save(whole(model), job.folder / f"{kind}-meta.pt")
    own = load_ghn(job.ghn)
    own.depth = 0.2
    save_ghn(own, source_of(job.ghn, "{own}"))
    for i, source in enumerate(NO_LAYER):
        model = build("vit-1000")
        report = job.init(model, "vit-1000", source)
        torch.save({**whole(model), "layer": torch.tensor(report.layer)}, job.folder / f"no-layer-{i}.pt")
    model = timm.create_model("test_convnext", pretrained=source_of(job.ghn, f"{ORTH}&seed=3"), num_classes=10)
    torch.save(whole(model), job.folder / "convnext-created.pt")


def placed(kind: str, placements: Callable[[Job], tuple[DeviceMesh, list[Any]]]) -> Callable[[Job], None]:
    def run(job: Job) -> None:
        model = place(build(kind), *placements(job))
        identities = {n: id(p) for n, p in model.named_parameters()}
        job.init(model, kind)
        assert identities == {n: id(p) for n, p in model.named_parameters()}
        same(model, job.expected(kind))

    return run


_PLACEMENTS: dict[str, tuple[tuple[int, ...], Callable[[Job], tuple[DeviceMesh, list[Any]]]]] = {
    "Shard(0)": ((1, 2), lambda job: (job.mesh, [Shard(0)])),
    "Shard(1)": ((2,), lambda job: (job.mesh, [Shard(1)])),
    "Replicate": ((2,), lambda job: (job.mesh, [Replicate()])),
    "HSDP": ((4,), lambda job: (job.mesh_2d, [Replicate(), Shard(0)])),
    "Shard(0), Shard(1)": ((4,), lambda job: (job.mesh_2d, [Shard(0), Shard(1)])),
    "Shard(0), Shard(0)": ((4,), lambda job: (job.mesh_2d, [Shard(0), Shard(0)])),
}
for _name, (_worlds, _placement) in _PLACEMENTS.items():
    check(*_worlds, name=f"vit {_name}")(placed("vit", _placement))
check(2, name="resnet Shard(0)")(placed("resnet", _PLACEMENTS["Shard(0)"][1]))
check(4, name="convnext Shard(0), Shard(1)")(placed("convnext", _PLACEMENTS["Shard(0), Shard(1)"][1]))
check(4, name="tied Shard(0)")(placed("tied", _PLACEMENTS["Shard(0)"][1]))


@check(2)
def without_post_processing(job: Job) -> None:
    model = place(build("vit"), job.mesh, [Shard(0)])
    job.init(model, "vit", PLAIN)
    same(model, job.expected("vit-plain"))


@check(2)
def bfloat16(job: Job) -> None:
    model = place(build("vit").bfloat16(), job.mesh, [Shard(0)])
    job.init(model, "vit")
    same(model, job.expected("vit-bf16"))


@check(1, 2)
def fsdp(job: Job) -> None:
    """Also between two forward passes, the first of which leaves whole parameters in the root."""
    model = shard_fully(build("vit"), job.mesh)
    x = torch.ones(2, 3, 32, 32)
    model(x)
    job.init(model, "vit")
    expected = job.expected("vit")
    plain = build("vit")
    plain.load_state_dict(expected)
    torch.testing.assert_close(model(x), plain(x))
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()
    same(model, expected)


@check(2)
def meta_fsdp(job: Job) -> None:
    with torch.device("meta"):
        model = shard_fully(build("vit-1000", "meta"), job.mesh)
    report = job.init(model, "vit-1000")
    assert "cls_token" in report.own and not report.unset
    same(model, job.expected("vit-1000-meta"))
    model(torch.ones(2, 3, 32, 32)).sum().backward()


@check(2)
def meta_after_to_empty(job: Job) -> None:
    model = shard_fully(build("resnet", "meta"), job.mesh)
    model.to_empty(device="cpu")
    job.init(model, "resnet", init_rest=True)
    same(model, job.expected("resnet-meta"))


@check(4)
def meta_hsdp(job: Job) -> None:
    model = shard_fully(build("resnet", "meta"), job.mesh_2d)
    job.init(model, "resnet")
    same(model, job.expected("resnet-meta"))


@check(2)
def create_and_save(job: Job) -> None:
    """Layer scale, which only the constructor knows, included; and the file is that of the unsharded model."""
    ghn, path = source_of(job.ghn, ORTH), job.folder / f"{job.world}.safetensors"
    options = {"fully_shard_kwargs": {"reshard_after_forward": True}, "seed": 3, "timeout": 60}
    model = timm_ghn_init.create_sharded("test_convnext", ghn, job.mesh, num_classes=10, **options)
    assert isinstance(model.stages[2].blocks[1], FSDPModule) and isinstance(model, FSDPModule)
    assert not model.ghn_report.unset and "stages.0.blocks.0.gamma" not in model.ghn_report.predicted
    expected = job.expected("convnext-created")
    head = {n: t for n, t in whole(model).items() if n.startswith("head.fc")}  # timm's is a new one each time
    assert head["head.fc.weight"].std() > 0
    expected |= head
    same(model, expected)
    timm_ghn_init.save_sharded(model, path, model.ghn_report, options={"num_classes": 10}, timeout=60)
    tensors, about = weights.read(path)  # verifies the digest
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(t, expected[n]) for n, t in tensors.items())
    assert about["source"] == ghn and about["options"] == {"num_classes": 10}
    plain = timm.create_model("test_convnext", num_classes=10, checkpoint_path=str(path))
    assert torch.equal(plain.head.fc.weight, expected["head.fc.weight"])


@check(2)
def orth_without_a_layer(job: Job) -> None:
    """All ranks know the depth that the GHN's file carries."""
    name, options = MODELS["vit-1000"]
    layers = set()
    for i, text in enumerate(NO_LAYER):
        expected, source = job.expected(f"no-layer-{i}"), source_of(job.ghn, text)
        layer = int(expected.pop("layer"))
        model = shard_fully(build("vit-1000"), job.mesh)
        assert job.init(model, "vit-1000", source).layer == layer
        same(model, expected)
        made = timm_ghn_init.create_sharded(name, source, job.mesh, seed=3, timeout=60, **options)
        assert made.ghn_report.layer == layer
        found = whole(made)
        different = [n for n in made.ghn_report.postprocessed if not torch.equal(found[n], expected[n])]
        assert not different, different
        layers.add(layer)
    assert len(layers) == len(NO_LAYER)


@check(2, 4)
def values_set_on_purpose(job: Job) -> None:
    """They are read where they are, and all ranks agree, also one without a row."""
    for placement in (Shard(0), Shard(1)):
        plain, model = build("purposeful"), place(build("purposeful"), job.mesh, [placement])
        expected, report = job.init(plain, "purposeful"), job.init(model, "purposeful")
        assert report.skipped == expected.skipped and {"zero.weight", "stem.bias"} <= set(report.skipped)
        same(model, whole(plain))


@check(2)
def distributed_checkpoint(job: Job) -> None:
    """Saved with PyTorch's own means, read into a model that is sharded otherwise."""
    model = shard_fully(build("vit"), job.mesh)
    job.init(model, "vit")
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=str(job.folder / "dcp"))
    other = place(build("vit"), job.mesh, [Shard(1)])
    state = {"model": other.state_dict()}
    dcp.load(state, checkpoint_id=str(job.folder / "dcp"))
    other.load_state_dict(state["model"])
    same(other, job.expected("vit"))


@check(2)
def file_that_cannot_be_written(job: Job) -> None:
    model = place(build("tied"), job.mesh, [Shard(0)])
    folder = job.folder / "nowhere"
    kind, text = ((FileNotFoundError, "nowhere"), (RuntimeError, "rank 0 failed"))[job.rank]
    fails(lambda: timm_ghn_init.save_sharded(model, folder / "x.safetensors", timeout=20), kind, text)


def fails(work: Callable[[], object], kind: type[BaseException], *texts: str) -> None:
    try:
        work()
    except kind as error:
        assert all(text in str(error) for text in texts), str(error)
    else:
        raise AssertionError(f"{kind.__name__} was to be raised")


def refused(model: nn.Module, work: Callable[[], object], kind: type[BaseException], *texts: str) -> None:
    """An error, and nothing was written."""
    before = {n: local(p).clone() if isinstance(p, DTensor) else p.clone() for n, p in model.named_parameters()}
    fails(work, kind, *texts)
    for n, p in model.named_parameters():
        assert torch.equal(local(p) if isinstance(p, DTensor) else p, before[n]), n


@check(2)
def half_sharded(job: Job) -> None:
    model = place(build("tied"), job.mesh, [Shard(0)])
    model.head = nn.Linear(6, 5)
    refused(model, lambda: job.init(model, "tied"), ValueError, "Tied: head.weight", "half sharded")


@check(2)
def partial_placement(job: Job) -> None:
    model = place(build("tied"), job.mesh, [Shard(0)])
    model.head.bias = nn.Parameter(DTensor.from_local(torch.ones(5), job.mesh, [Partial()]))
    refused(model, lambda: job.init(model, "tied"), ValueError, "Tied: head.bias", "Shard or Replicate")


@check(4)
def two_meshes(job: Job) -> None:
    model = place(build("tied"), job.mesh, [Shard(0)])
    model.head = place(nn.Linear(6, 5), job.mesh_2d, [Shard(0), Replicate()])
    refused(model, lambda: job.init(model, "tied"), ValueError, "Tied: head.weight", "one mesh")


@check(2)
def what_sharded_models_cannot_have(job: Job) -> None:
    model = place(build("tied"), job.mesh, [Shard(0)])
    for source, text in (
        ("orth", "before sharding"),
        (PLAIN + "+mimetic", "before sharding"),
        (PLAIN + "?cache=1", "cache="),
        (PLAIN + "?hub=me", "hub="),
    ):
        refused(model, lambda source=source: job.init(model, "tied", source), ValueError, "Tied", text)
    refused(model, lambda: job.init(model, "tied", PLAIN, cache=True), ValueError, "save_sharded")


@check(4)
def ranks_that_differ(job: Job) -> None:
    model = place(build("tied"), job.mesh, [Shard(0)])
    source, last = source_of(job.ghn, ORTH), job.world - 1
    seed = 1 if job.rank == last else 0
    texts = (f"rank {last} and rank 0 differ in seed: 1 and 0", "Nothing was written")
    refused(model, lambda: init_model(model, source, input_size=32, seed=seed, timeout=20), RuntimeError, *texts)
    asked = source if job.rank != last else source_of(job.ghn, PLAIN)
    refused(model, lambda: init_model(model, asked, input_size=32, timeout=20), RuntimeError, "differ in source")
    other = place(build("tied"), job.mesh, [Shard(0) if job.rank != last else Replicate()])
    refused(other, lambda: job.init(other, "tied"), RuntimeError, f"rank {last}", "placements")


@check(2)
def a_source_that_is_not_there(job: Job) -> None:
    model = place(build("tied"), job.mesh, [Shard(0)])
    kind, text = ((CheckpointError, "nowhere.pt"), (RuntimeError, "rank 0 failed (rank 0 fetches file:"))[job.rank]
    refused(model, lambda: job.init(model, "tied", "file:/nowhere.pt"), kind, text)


@check(2)
def a_source_that_only_rank_0_has(job: Job) -> None:
    model = place(build("tied"), job.mesh, [Shard(0)])
    if job.rank != 0:
        initialize.shared_ghn = None  # type: ignore[assignment]
    try:
        job.init(model, "tied")
    finally:
        initialize.shared_ghn = shared_ghn
    same(model, job.expected("tied"))


@check(2)
def a_rank_that_fails_before(job: Job) -> None:
    model = place(build("tied"), job.mesh, [Shard(0)])
    if job.rank == 1:
        model.forward = lambda x: 1 / 0  # type: ignore[method-assign]
        fails(lambda: job.init(model, "tied"), TraceError, "ZeroDivisionError")
    else:
        refused(model, lambda: job.init(model, "tied"), RuntimeError, "rank 1 failed", "ZeroDivisionError")


@check(2)
def a_rank_with_other_arguments(job: Job) -> None:
    """The other one is told of what fails before there is anything to wait for."""
    model, start = place(build("tied"), job.mesh, [Shard(0)]), time.monotonic()
    if job.rank == 1:
        fails(lambda: init_model(model, source_of(job.ghn, ORTH), device="meta"), ValueError, "device must be")
        fails(lambda: init_model(model, "nonsense"), ValueError, "nonsense")
    else:
        refused(model, lambda: job.init(model, "tied"), RuntimeError, "rank 1 failed", "device must be")
        refused(model, lambda: job.init(model, "tied"), RuntimeError, "rank 1 failed", "nonsense")
    assert time.monotonic() - start < 20


@check(2)
def a_rank_without_memory_for_the_ghn(job: Job) -> None:
    model = place(build("tied"), job.mesh, [Shard(0)])
    empty = sharded_place._empty

    def fail(*args: Any) -> Any:
        raise MemoryError("full")

    if job.rank == 1:
        sharded_place._empty = fail
        fails(lambda: job.init(model, "tied"), MemoryError, "full")
        sharded_place._empty = empty
    else:
        refused(model, lambda: job.init(model, "tied"), RuntimeError, "rank 1 failed (memory for the GHN)", "full")
    job.init(model, "tied")  # nothing is under way that would be taken for this
    same(model, job.expected("tied"))


@check(2)
def a_rank_that_fails_to_compute(job: Job) -> None:
    model = place(build("vit"), job.mesh, [Shard(0)])
    with failing_at("blocks.2.mlp.fc1.weight", MemoryError("full")):
        texts = ("blocks.2.mlp.fc1.weight", "MemoryError: full", "Nothing was written")
        refused(model, lambda: job.init(model, "vit"), RuntimeError, *texts)


@check(-2)
def a_rank_that_comes_late(job: Job) -> None:
    model = place(build("tied"), job.mesh, [Shard(0)])
    if job.rank == 1:
        time.sleep(2)
    texts = ("rank 1 did not come within 1 s", "rank 0 fetches file:")
    if job.rank == 1:
        texts = ("rank 0 failed", *texts)
    source = source_of(job.ghn, ORTH)
    refused(model, lambda: init_model(model, source, input_size=32, timeout=1), RuntimeError, *texts)


@check(-2)
def a_rank_that_dies(job: Job) -> None:
    model = place(build("vit"), job.mesh, [Shard(0)])
    start = time.monotonic()
    if job.rank == 1:
        with failing_at("", None):
            job.init(model, "vit")
    refused(model, lambda: job.init(model, "vit"), RuntimeError, "vit_tiny_patch16_224: blocks.", "rank 1", "gone")
    assert time.monotonic() - start < 30


@contextmanager
def failing_at(name: str, error: Exception | None) -> Iterator[None]:
    """Whoever post-processes a weight of this name raises the error; None is the end of the process."""

    process_weight = postprocessing.process_weight

    def fail(columns: torch.Tensor, which: str, *args: Any) -> float:
        if error is None:
            os._exit(0)
        if which == name:
            raise error
        return process_weight(columns, which, *args)

    postprocessing.process_weight = fail  # type: ignore[assignment]
    try:
        yield
    finally:
        postprocessing.process_weight = process_weight


def on_ranks(ghn: str, folder: Path, worlds: Sequence[int]) -> None:
    os.environ["TIMM_GHN_ENDPOINT"] = "http://127.0.0.1:9"  # nobody listens there: "ghn" is the shipped GHN
    reference(Job(ghn, folder, 0, 1))
    for world in worlds:
        (folder / str(world)).mkdir()
        store = str(folder / f"store-{world}")
        jobs = [Job(ghn, folder, rank, world) for rank in range(abs(world))]
        children = [fork.Process(target=run, args=(job, store)) for job in jobs]
        for child in children:
            child.start()
        for child in children:
            child.join()


def run(job: Job, store: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=job.rank, world_size=abs(job.world), timeout=timedelta(seconds=60)
    )
    results = {}
    for name, (worlds, function) in CHECKS.items():
        if job.world in worlds:
            try:
                function(job)
                results[name] = ""
            except Exception:
                results[name] = traceback.format_exc()
            (job.folder / str(job.world) / f"{job.rank}.json").write_text(json.dumps(results))
            if job.world > 0:
                dist.barrier()
    dist.destroy_process_group()
