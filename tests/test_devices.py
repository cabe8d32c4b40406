"""On a GPU nothing is on the wrong device, and the CPU waits for it a few times, however deep the model is.

Without a GPU: a CUDA build of PyTorch makes tensors on "cuda" that have no values (`FakeTensorMode`), tells the devices
of what is computed from them, and refuses what mixes devices.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.distributed as dist
from conftest import GHN2_CONFIG, GHN3_CONFIG
from packaging.version import Version
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn.utils.parametrizations import weight_norm
from torch.utils._python_dispatch import TorchDispatchMode

from timm_ghn_init import init_model, initialize, save_ghn
from timm_ghn_init.ghn import GHN, Tile
from timm_ghn_init.graph import Target, unsupported
from timm_ghn_init.lab.finetune.data import Data
from timm_ghn_init.lab.finetune.loaders import InMemory
from timm_ghn_init.lab.finetune.protocol import Trial
from timm_ghn_init.lab.finetune.train import _Session
from timm_ghn_init.lab.training.loop import TrainConfig, Trainer
from timm_ghn_init.recipe import assign, baselines, finished, noise
from timm_ghn_init.recipe import place as recipe_place
from timm_ghn_init.recipe.plan import Plan
from timm_ghn_init.recipe.postprocessing import compute_device
from timm_ghn_init.sharded.meeting import Meeting
from timm_ghn_init.sharded.place import Sharded
from timm_ghn_init.weights import cache, files

pytestmark = [
    pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="needs a build of PyTorch with CUDA"),
    pytest.mark.skipif(
        Version(torch.__version__) < Version("2.14"), reason="PyTorch 2.5 asks the driver, 2.14 does not"
    ),
]

CUDA = torch.device("cuda:0")
SMALL = {"max_shape": (16, 16, 3, 3), "num_classes": 1000, "hid": 8}
TINY = {"max_shape": (8, 8, 3, 3), "hid": 8}
CONFIG = TrainConfig(
    data="digits",
    steps=6,
    networks=2,
    batch_size=8,
    pool=6,
    max_macs=5e6,
    warmup=2,
    ghn={"max_shape": (8, 8, 3, 3), "hid": 8},
)
KINDS = {
    "ghn1": {**GHN2_CONFIG, **SMALL, "ve": False, "layernorm": False},
    "ghn2": {**GHN2_CONFIG, **SMALL},
    "mlp": {**GHN2_CONFIG, **SMALL, "hypernet": "mlp", "decoder": "mlp", "ve": False},
    "ghn3": {**GHN3_CONFIG, **SMALL},
}


class _Watch(TorchDispatchMode):
    """Counts what makes the CPU wait for the GPU."""

    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func is aten._local_scalar_dense.default:
            self.seen["looks"] += args[0].device.type == "cuda"
            return {torch.bool: True}.get(args[0].dtype, 1.0)
        if func is aten.equal.default:
            self.seen["looks"] += args[0].device.type == "cuda"
            return True
        result = func(*args, **(kwargs or {}))
        if func in (aten._to_copy.default, aten.copy_.default) and not result.is_cuda:
            self.seen["copies"] += any(isinstance(t, torch.Tensor) and t.is_cuda for t in args)
        return result


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often the CPU waited: "looks" at values, "copies" to the CPU, "ends" of stages that are timed."""
    seen: Counter[str] = Counter()

    def values(tensor: torch.Tensor, **_: Any) -> np.ndarray:
        return np.ones(tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))

    def tolist(tensor: torch.Tensor) -> Any:
        seen["looks"] += tensor.is_cuda
        return values(tensor).tolist()

    def generator(seed: int, name: str, device: Any = "cpu") -> torch.Generator | None:
        return None if torch.device(device).type == "cuda" else torch.Generator(device)  # only a GPU has one of its own

    monkeypatch.setattr(unsupported, "refuse_fake", lambda *_: None)
    monkeypatch.setattr(FakeTensor, "numpy", values, raising=False)
    monkeypatch.setattr(FakeTensor, "tolist", tolist, raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: seen.update(["ends"]))
    monkeypatch.setattr(noise, "seeded_generator", generator)
    monkeypatch.setattr(baselines, "seeded_generator", generator)
    for place in ("timm_ghn_init.initialize", "timm_ghn_init.graph.trace"):  # fake tensors are refused otherwise
        monkeypatch.setattr(sys.modules[place], "refuse_unsupported", lambda *_: None)
    for kind in (recipe_place.Place, Sharded):  # and have no values in which a purpose could be seen
        monkeypatch.setattr(kind, "values", lambda *_: {})
    with FakeTensorMode(allow_non_fake_inputs=True), _Watch(seen):
        yield seen


def on_cuda(kind: str) -> GHN:
    with CUDA:
        return GHN(**KINDS[kind]).eval().requires_grad_(False)


def chain(depth: int, device: str | torch.device, dtype: torch.dtype = torch.float32, plain: bool = False) -> nn.Module:
    """Layers of three shapes, one of them computed from other tensors unless `plain`, and a classifier."""
    like: Any = {"device": device, "dtype": dtype}
    blocks = [
        nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, **like), nn.BatchNorm2d(16, **like), nn.Conv2d(16, 16, 1, **like))
        for _ in range(depth)
    ]
    head = nn.Linear(16, 1000, **like)
    stem = nn.Conv2d(3, 16, 3, **like)
    stem = stem if plain else weight_norm(stem)
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


@pytest.mark.parametrize(
    ("kind", "where", "dtype"),
    [
        *((kind, where, torch.float32) for kind in KINDS for where in ("cpu", "cuda:0")),
        *(("ghn2", "cuda:0", dtype) for dtype in (torch.bfloat16, torch.float16)),
    ],
)
def test_predictions_are_made_on_the_gpu(kind: str, where: str, dtype: torch.dtype, seen: Counter[str]) -> None:
    ghn, waits = on_cuda(kind), []
    for depth in (1, 3):
        model = chain(
            depth, where, dtype, plain=where != "cpu"
        )  # whether a parametrisation gives a weight is looked at
        seen.clear()
        report = init_model(model, "ghn2-orth?layer=1", ghn=ghn, device=CUDA, input_size=32)
        assert report.device == "cuda:0"
        assert {(str(p.device), p.dtype) for p in model.parameters()} == {(where, dtype)}
        assert len(report.predicted) == len(list(model.parameters()))
        assert len(report.postprocessed) == 1 + 2 * depth
        waits.append(dict(seen))
        if where == "cpu":  # what was post-processed is as large as the weight
            waits[-1]["copies"] -= len(report.postprocessed)
    assert waits[0] == waits[1]  # however deep
    assert waits[0]["looks"] == 2  # whether predictions are finite; all that post-processing has to know


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_other_devices_get_what_the_cpu_has_computed(device: str, seen: Counter[str]) -> None:
    """As far as this mode knows these devices: it can bring tensors there, and nothing more."""
    model = nn.Linear(16, 16)
    model.weight = nn.Parameter(torch.empty(16, 16, device=device))
    assert str(compute_device(model, None)) == "cpu"
    tile = Tile(torch.zeros(16, 16), Target("weight", (16, 16), 0, "weight"))
    assert assign.brought({"weight": model.weight.device}, {"weight": tile})["weight"].block.device.type == device


@pytest.mark.parametrize("source", ["rand", "orth"])
def test_baselines(source: str, seen: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []
    for depth in (1, 3):
        model = chain(depth, CUDA, plain=True)
        seen.clear()
        report = init_model(model, source)
        assert {p.device for p in model.parameters()} == {CUDA}
        assert report.predicted
        waits.append(dict(seen))
    assert waits[0] == waits[1]
    assert waits[0].get("looks", 0) == (source == "orth")


def test_create_model_predicts_on_a_gpu_for_a_model_on_the_cpu(
    seen: Counter[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(recipe_place, "compute_device", lambda model, device: CUDA)
    asked = []

    def load_ghn(source: Any, device: torch.device) -> GHN:  # a file has values, which this mode cannot read
        asked.append(device)
        return on_cuda("ghn2")

    monkeypatch.setattr(initialize, "shared_ghn", load_ghn)
    model = timm.create_model("test_resnet", pretrained="ghn2-fashion-orth", num_classes=7)
    assert {str(p.device) for p in model.parameters()} == {"cpu"}
    assert "on cuda:0" in caplog.text
    assert asked == [CUDA]


def test_cached_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Written by the CPU, because a file needs values, under a name that the GPU's would have."""
    monkeypatch.setenv("TIMM_GHN_HOME", str(tmp_path))
    monkeypatch.setattr(finished, "arithmetic", lambda device: "here")
    monkeypatch.setattr(Plan, "key", lambda *_: "key")
    options: dict[str, Any] = {"input_size": 32, "cache": True}
    file = tmp_path / "ghn.safetensors"
    save_ghn(GHN(**KINDS["ghn2"]), file)
    assert not init_model(chain(1, "cpu", plain=True), f"file:{file}-orth?layer=1", **options).cached
    seen = request.getfixturevalue("seen")

    def read(path: Path) -> Any:
        with unset_fake_temporarily():
            return files.read(path)

    monkeypatch.setattr(cache, "read", read)
    monkeypatch.setattr(initialize, "shared_ghn", lambda *_: on_cuda("ghn2"))
    model = chain(1, CUDA, plain=True)
    seen.clear()
    report = init_model(model, f"file:{file}-orth?layer=1", **options)
    assert report.cached and report.device == "cuda:0"
    assert {p.device for p in model.parameters()} == {CUDA}
    assert not seen["looks"]


@pytest.fixture
def mesh(monkeypatch: pytest.MonkeyPatch) -> Iterator[DeviceMesh]:
    """Two GPUs, of which this process has the first. What the other one says is taken to be the same."""
    monkeypatch.setattr(torch.cuda, "set_device", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(Meeting, "__call__", lambda meeting, topic, work: [json.loads(json.dumps(work()))] * 2)
    monkeypatch.setattr(Meeting, "_wait_for", lambda meeting, transfer, about: transfer.wait())  # fakes never complete
    dist.init_process_group("fake", store=dist.HashStore(), rank=0, world_size=2)
    mesh = DeviceMesh("cuda", [0, 1])
    monkeypatch.setattr(DeviceMesh, "mesh", np.array([0, 1]))  # a tensor would have no values here
    yield mesh
    dist.destroy_process_group()


@pytest.mark.parametrize("own", [True, False])
def test_sharded_models(own: bool, mesh: DeviceMesh, seen: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initialize, "shared_ghn", lambda *_: on_cuda("ghn2"))
    waits = []
    for depth in (1, 3):
        model = chain(depth, CUDA, plain=True)
        for module in model.modules():
            for name, p in module._parameters.items():
                half = p.detach()[: len(p) // 2]
                module._parameters[name] = nn.Parameter(DTensor.from_local(half, mesh, [Shard(0)], run_check=False))
        seen.clear()
        report = init_model(model, "ghn2-orth?layer=1", ghn=on_cuda("ghn2") if own else None, input_size=32)
        assert report.device == "cuda:0"
        assert {str(p.to_local().device) for p in model.parameters()} == {"cuda:0"}
        assert len(report.postprocessed) == 1 + 2 * depth
        waits.append(dict(seen))
        waits[-1]["looks"] -= len(report.postprocessed) // 2  # in each round, which waits for the other GPU too
    assert waits[0] == waits[1]
    assert waits[0]["looks"] == 1  # whether predictions are finite


@pytest.fixture
def no_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch begins a backward pass by asking the driver for the device: the one step that cannot be tried here."""

    def backward(loss: torch.Tensor) -> None:
        assert loss.is_cuda and loss.requires_grad

    monkeypatch.setattr(torch.Tensor, "backward", backward)


@pytest.mark.usefixtures("no_backward")
def test_a_step_of_training(seen: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Module, "to", lambda module, *_: module)  # all is made on the GPU here
    with CUDA:
        trainer = Trainer(CONFIG, tmp_path, device=CUDA)
    images, labels = torch.empty(8, 3, 32, 32), torch.zeros(8, dtype=torch.int64)
    seen.clear()
    assert trainer._step([(0, images, labels)]) is not None
    assert {str(p.device) for p in trainer.ghn.parameters()} == {str(p.grad.device) for p in trainer.ghn.parameters()}
    assert seen["looks"] == 1


@pytest.mark.usefixtures("no_backward")
def test_an_epoch_of_finetuning(seen: Counter[str]) -> None:
    with CUDA:
        images, labels = torch.zeros(40, 3, 32, 32, dtype=torch.uint8), torch.zeros(40, dtype=torch.int64)
        model = timm.create_model("test_resnet", num_classes=4)
        part = InMemory(images, labels, 32, *torch.zeros(2, 3, 1, 1), 2, False)
    waits = []
    for batch_size in (20, 10):
        trial = Trial("test_resnet", "rand", batch_size=batch_size, epochs=1, amp=True)
        session = _Session(trial, model, Data(4, part, part, part))
        seen.clear()
        session.train(False)
        waits.append(seen["looks"])
    assert waits[0] == waits[1]  # of an epoch, however many batches it has
