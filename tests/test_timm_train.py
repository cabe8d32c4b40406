"""timm's own train.py, which is in its repository and not in its wheel, unchanged: TIMM_TRAIN_SCRIPT names it.

With a learning rate that is 0 in float32 (it takes 0 itself for none given) the checkpoint that it saves holds the
parameters that it started from.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

SCRIPT = os.environ.get("TIMM_TRAIN_SCRIPT", "")
pytestmark = pytest.mark.skipif(
    not SCRIPT, reason="TIMM_TRAIN_SCRIPT is not set: it names the train.py of a checkout of timm's repository"
)

ARCH = "convnext_atto"
PYTHON = (sys.executable,)
RUNNER = (sys.executable, "-m", "timm_ghn_init")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
OPTIONS = (
    *("--img-size", "64", "--num-classes", "1000", "-b", "4", "-j", "1", "--no-prefetcher", "--device", "cpu"),
    *("--epochs", "1", "--warmup-epochs", "0", "--lr", "1e-60", "--experiment", "run"),
)

# The script hands DistributedDataParallel a list of its device, which that refuses on a CPU. Its own option
# --device-modules imports this.
DDP_ON_CPU = """
from torch.nn.parallel import DistributedDataParallel

original = DistributedDataParallel.__init__

def init(self, module, device_ids=None, **kwargs):
    original(self, module, **kwargs)

DistributedDataParallel.__init__ = init
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of a few images, as `ImageFolder` reads them."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "validation"):
        for label in ("circle", "square"):
            (folder / split / label).mkdir(parents=True)
            for i in range(8):
                pixels = torch.randint(256, (72, 72, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / split / label / f"{i}.png")
    return folder


@pytest.fixture
def train(images: Path, ghn_file: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run a command with options of train.py; the checkpoint of its last epoch."""
    (tmp_path / "ddp_on_cpu.py").write_text(DDP_ON_CPU)
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))

    def train(command: tuple[str, ...], *options: object) -> dict[str, Any]:
        argv = [*command, "--data-dir", images, *OPTIONS, "--output", tmp_path, *options]
        done = subprocess.run(
            [*map(str, argv)],
            cwd=tmp_path,
            env={**os.environ, "TIMM_GHN_DEFAULT": f"file:{ghn_file}", "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        last = max(tmp_path.glob("run*/last.pth.tar"), key=lambda path: path.stat().st_mtime)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(last, weights_only=True)

    return train


@pytest.fixture(scope="module")
def predicted(ghn_file: Path) -> torch.nn.Module:
    return timm.create_model(ARCH, pretrained=f"file:{ghn_file}-orth")


@pytest.fixture(scope="module")
def written(ghn_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the command line writes: a file and a folder."""
    from timm_ghn_init.cli import main

    folder = tmp_path_factory.mktemp("written")
    places = {"file": f"{folder}/weights.safetensors", "folder": f"{folder}/model/"}
    for place in places.values():
        assert main(["predict", ARCH, "--source", f"file:{ghn_file}-orth", "-q", "-o", place]) == 0
    return places


def assert_starts_from(checkpoint: dict[str, Any], model: torch.nn.Module, but: tuple[str, ...] = ()) -> None:
    for name, parameter in model.named_parameters():
        assert torch.equal(checkpoint[name], parameter) == (name not in but), name


# Command, its options and those of its parameters that do not come from the file: timm drops the classifier of a
# --pretrained-path, which it takes for one of other classes. What GHN-2 does not predict is drawn anew.
HEAD = ("head.fc.weight", "head.fc.bias")
CASES = {
    "tag": (RUNNER, ("--model", f"{ARCH}.ghn-orth", "--pretrained")),
    "pretrained_cfg": (RUNNER, ("--model", ARCH, "--pretrained", "--model-kwargs", "pretrained_cfg=ghn-orth")),
    "initial-checkpoint": (PYTHON, ("--model", ARCH, "--initial-checkpoint", "{file}")),
    "pretrained-path": (PYTHON, ("--model", ARCH, "--pretrained", "--pretrained-path", "{file}")),
    "local-dir": (PYTHON, ("--model", "local-dir:{folder}", "--pretrained")),
}


@pytest.mark.parametrize("name", CASES)
def test_ways_in(train: Callable, predicted: torch.nn.Module, written: dict[str, str], name: str) -> None:
    command, options = CASES[name]
    checkpoint = train((*command, SCRIPT), *(option.format(**written) for option in options))
    assert_starts_from(checkpoint["state_dict"], predicted, but=HEAD if name == "pretrained-path" else ())


def test_two_ranks(train: Callable, predicted: torch.nn.Module) -> None:
    """With gloo, on CPUs."""
    options = ("--grad-accum-steps", 2, "--model-ema", "--device-modules", "ddp_on_cpu")
    command = (*TORCHRUN, "-m", "timm_ghn_init", SCRIPT)
    checkpoint = train(command, "--model", f"{ARCH}.ghn-orth", "--pretrained", *options)
    assert checkpoint["args"].world_size == 2
    assert_starts_from(checkpoint["state_dict"], predicted)
    assert_starts_from(checkpoint["state_dict_ema"], predicted)


def test_resume(train: Callable, predicted: torch.nn.Module, tmp_path: Path) -> None:
    """What was trained goes on, and is not predicted again. (The optimizer's state would bring its learning rate.)"""
    model = ("--model", f"{ARCH}.ghn-orth", "--pretrained", "--model-ema")
    first = train((*RUNNER, SCRIPT), *model, "--lr", 1e-3)
    [last] = tmp_path.glob("run/last.pth.tar")
    again = train((*RUNNER, SCRIPT), *model, "--resume", last, "--no-resume-opt", "--epochs", 2)
    assert (first["epoch"], again["epoch"]) == (0, 1)
    for name, _ in predicted.named_parameters():
        assert torch.equal(again["state_dict"][name], first["state_dict"][name]), name
    assert not torch.equal(again["state_dict"][name], predicted.get_parameter(name))


def test_torchcompile(train: Callable, predicted: torch.nn.Module) -> None:
    checkpoint = train((*RUNNER, SCRIPT), "--model", f"{ARCH}.ghn-orth", "--pretrained", "--torchcompile", "aot_eager")
    assert_starts_from(checkpoint["state_dict"], predicted)
