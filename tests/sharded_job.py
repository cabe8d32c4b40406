"""What the ranks of test_sharded.py do: python sharded_job.py GHN FOLDER WORLD...

PyTorch and timm are imported once, then each rank is a fork. A check runs on all ranks of a world, one after the other,
and what it raises is written to FOLDER/WORLD/RANK.json by its name.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from timm_ghn_init import init_model

VIT = {"depth": 3, "img_size": 32, "patch_size": 8}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "convnext": ("convnext_atto", {"num_classes": 10}),
    "vit": ("vit_tiny_patch16_224", {**VIT, "num_classes": 5}),
    "vit-1000": ("vit_tiny_patch16_224", VIT),
    "resnet18": ("resnet18", {"num_classes": 10}),
}
SIZES = {"convnext": 32, "vit": None, "vit-1000": None, "resnet18": 32}
ORTH = "file:{ghn}-orth?layer=2"
PLAIN = "file:{ghn}"


class Tied(nn.Module):
    """Two layers with one weight, and 5 rows for a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.two.weight = self.one.weight
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.two(self.one(self.stem(x).mean((2, 3))).relu()))


def build(kind: str, device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    with torch.device(device):
        if kind == "tied":
            return Tied()
        name, options = MODELS[kind]
        return timm.create_model(name, **options)


def source_of(ghn: str, text: str) -> str:
    return text.format(ghn=ghn)


def place(model: nn.Module, mesh: DeviceMesh, placements: list[Any]) -> nn.Module:
    """Each parameter as a DTensor; what has too few dimensions for a shard is replicated."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for key, p in module._parameters.items():
            if p is not None:
                if id(p) not in made:
                    fitting = [x if x.is_replicate() or x.dim < p.dim() else Replicate() for x in placements]
                    made[id(p)] = nn.Parameter(distribute_tensor(p.detach(), mesh, fitting))
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

    def mesh(self) -> DeviceMesh:
        return init_device_mesh("cpu", (self.world,))

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


CHECKS: dict[str, tuple[tuple[int, ...], Callable[[Job], None]]] = {}  # name -> sizes of worlds, check


def check(*worlds: int, name: str = "") -> Callable[[Callable[[Job], None]], Callable[[Job], None]]:
    def add(function: Callable[[Job], None]) -> Callable[[Job], None]:
        CHECKS[name or function.__name__] = (worlds, function)
        return function

    return add


def reference(job: Job) -> None:
    """Unsharded models, each in a file."""
    for kind in (*MODELS, "tied"):
        model = build(kind)
        job.init(model, kind)
        torch.save(whole(model), job.folder / f"{kind}.pt")
    model = build("vit")
    job.init(model, "vit", PLAIN)
    torch.save(whole(model), job.folder / "vit-plain.pt")
    model = build("vit").bfloat16()
    job.init(model, "vit")
    torch.save(whole(model), job.folder / "vit-bf16.pt")
    for kind in ("vit-1000", "resnet18"):
        model = build(kind, "meta")
        report = job.init(model, kind)
        assert not report.unset, report.unset
        torch.save(whole(model), job.folder / f"{kind}-meta.pt")


def placed(kind: str, placements: Callable[[Job], tuple[DeviceMesh, list[Any]]]) -> Callable[[Job], None]:
    def run(job: Job) -> None:
        model = place(build(kind), *placements(job))
        identities = {n: id(p) for n, p in model.named_parameters()}
        job.init(model, kind)
        assert identities == {n: id(p) for n, p in model.named_parameters()}
        same(model, job.expected(kind))

    return run


_PLACEMENTS: dict[str, tuple[tuple[int, ...], Callable[[Job], tuple[DeviceMesh, list[Any]]]]] = {
    "Shard(0)": ((1, 2, 4), lambda job: (job.mesh(), [Shard(0)])),
    "Shard(1)": ((2, 4), lambda job: (job.mesh(), [Shard(1)])),
    "Replicate": ((2,), lambda job: (job.mesh(), [Replicate()])),
    "HSDP": ((4,), lambda job: (job.mesh_2d(), [Replicate(), Shard(0)])),
    "Shard(0), Shard(1)": ((4,), lambda job: (job.mesh_2d(), [Shard(0), Shard(1)])),
    "Shard(0), Shard(0)": ((4,), lambda job: (job.mesh_2d(), [Shard(0), Shard(0)])),
}
for _name, (_worlds, _placement) in _PLACEMENTS.items():
    check(*_worlds, name=f"vit {_name}")(placed("vit", _placement))
for _kind in ("convnext", "resnet18"):
    check(2, 4, name=f"{_kind} Shard(0)")(placed(_kind, _PLACEMENTS["Shard(0)"][1]))
check(4, name="convnext Shard(0), Shard(1)")(placed("convnext", _PLACEMENTS["Shard(0), Shard(1)"][1]))
check(2, 4, name="tied Shard(0)")(placed("tied", _PLACEMENTS["Shard(0)"][1]))


@check(2)
def without_post_processing(job: Job) -> None:
    model = place(build("vit"), job.mesh(), [Shard(0)])
    job.init(model, "vit", PLAIN)
    same(model, job.expected("vit-plain"))


@check(2)
def bfloat16(job: Job) -> None:
    model = place(build("vit").bfloat16(), job.mesh(), [Shard(0)])
    job.init(model, "vit")
    same(model, job.expected("vit-bf16"))


@check(1, 2, 4)
def fsdp(job: Job) -> None:
    """Also between two forward passes, the first of which leaves whole parameters in the root."""
    model = shard_fully(build("vit"), job.mesh())
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


@check(2, 4)
def meta_fsdp(job: Job) -> None:
    with torch.device("meta"):
        model = shard_fully(build("vit-1000", "meta"), job.mesh())
    report = job.init(model, "vit-1000")
    assert "cls_token" in report.own and not report.unset
    same(model, job.expected("vit-1000-meta"))
    model(torch.ones(2, 3, 32, 32)).sum().backward()


@check(2)
def meta_after_to_empty(job: Job) -> None:
    model = shard_fully(build("resnet18", "meta"), job.mesh())
    model.to_empty(device="cpu")
    job.init(model, "resnet18", init_rest=True)
    same(model, job.expected("resnet18-meta"))


@check(4)
def meta_hsdp(job: Job) -> None:
    model = shard_fully(build("resnet18", "meta"), job.mesh_2d())
    job.init(model, "resnet18")
    same(model, job.expected("resnet18-meta"))


def main(ghn: str, folder: Path, worlds: list[int]) -> int:
    status = launch(lambda: reference(Job(ghn, folder, 0, 1)))
    assert status == 0, "the reference failed"
    for world in worlds:
        (folder / str(world)).mkdir()
        store = str(folder / f"store-{world}")
        jobs = [Job(ghn, folder, rank, world) for rank in range(world)]
        children = [fork(partial(run, job, store)) for job in jobs]
        for child in children:
            os.waitpid(child, 0)
    return 0


def run(job: Job, store: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=job.rank, world_size=job.world, timeout=timedelta(seconds=60)
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
            dist.barrier()
    dist.destroy_process_group()


def fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def launch(work: Callable[[], None]) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), [int(w) for w in sys.argv[3:]]))
