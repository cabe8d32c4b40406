"""Few-shot fine-tuning: the protocol's parts, runs, and runs that several processes share."""

import gzip
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from timm_ghn_init.cli import main
from timm_ghn_init.lab.finetune import Each, Runs, Trial, Tuned, plans, run, summary, train, work
from timm_ghn_init.lab.finetune.build import adapt_stem, build
from timm_ghn_init.lab.finetune.data import few, load
from timm_ghn_init.lab.finetune.loaders import InMemory
from timm_ghn_init.lab.finetune.protocol import settled
from timm_ghn_init.lab.finetune.results import read
from timm_ghn_init.lab.finetune.search import GRID, PRESETS, grid, sample
from timm_ghn_init.lab.finetune.tuning import Tuning, layers_at
from timm_ghn_init.lab.images import datasets
from timm_ghn_init.lab.images.datasets import DatasetError
from timm_ghn_init.sources import parse_source

pytest.importorskip("sklearn")

# Small: a tenth of a second on an idle core.
TINY = Trial(
    "test_resnet", "rand", labels=40, validation=20, image_size=16, epochs=2, batch_size=20, lr=0.02, keep_stem=True
)


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two runs have the same results, to the bit."""

    def results(record: dict[str, Any]) -> Any:
        curves = {name: curve for name, curve in record["curves"].items() if name != "seconds"}
        return curves, record["test_loss"], record["test_accuracy"], record["key"]

    return results(a) == results(b)


# -- the protocol ----------------------------------------------------------------------------------------------------


def test_presets_are_trials_of_the_papers_protocol() -> None:
    for name, preset in PRESETS.items():
        arch, _, init = name.partition("/")
        trial = Trial(arch, **preset)
        assert trial.labels == 1000 and trial.batch_size == {"resnet50": 96, "convnext_base": 48}[arch]
        assert trial.init.startswith(init.replace("ghn", "ghn2"))


def test_a_key_is_what_decides_the_result() -> None:
    assert replace(TINY, stage="search").key == TINY.key
    assert len({replace(TINY, **{n: v}).key for n, v in (("seed", 1), ("lr", 0.1), ("ghn", "x"), ("amp", True))}) == 4
    assert replace(TINY, lr=1).key == replace(TINY, lr=1.0).key
    assert Trial("resnet18", "rand").key == "dbb8ecc602d87106"  # stays, or results on disk lose their names


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0.0},
        {"lr": float("nan")},
        {"weight_decay": float("inf")},
        {"epochs": 0},
        {"opt": "adam"},
        {"seed": -1},
        {"drop_path": 1.0},
        {"validation": -1},
        {"stage": "x"},
        {"epochs": 1.5},
        {"lr": "0.1"},
        {"amp": 1},
        {"validation": 0.5},
    ],
    ids=str,
)
def test_values_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(TINY, **wrong)


def test_the_initialisation_is_spelled_out(ghn_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from timm_ghn_init.checkpoints.load import sha256

    monkeypatch.setenv("TIMM_GHN_DEFAULT", f"file:{ghn_file}")
    trial = settled(Trial("resnet18", f"file:{ghn_file}_orth?beta=0.00003"))
    assert trial.init == f"file:{ghn_file}-orth"
    assert trial.ghn == sha256(ghn_file)
    assert settled(trial) == trial
    assert settled(Trial("resnet18", "orth?layer=auto")).init == "orth"
    assert settled(Trial("resnet18", "pretrained")).ghn == ""
    with pytest.raises(ValueError, match="Unknown initialisation 'foo'"):
        settled(Trial("resnet18", "foo"))


# -- data ------------------------------------------------------------------------------------------------------------


def test_few_takes_as_many_of_each_class() -> None:
    classes = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2, 1])
    assert few(classes, 6).tolist() == [0, 1, 4, 5, 6, 7]
    assert few(classes, 4).tolist() == [0, 1, 4, 6]
    assert few(classes, 10).tolist() == list(range(10))


def test_digits_are_cut_without_overlap_and_the_same_for_every_run() -> None:
    data = load(replace(TINY, labels=100, validation=200))
    parts = [data.train, data.validation, data.test]
    assert [len(p) for p in parts] == [100, 200, 1497]
    assert data.classes == 10
    for part in parts[:2]:
        assert part.classes.bincount().tolist() == [len(part) // 10] * 10
    digits = datasets.load("digits")
    everything = torch.cat([digits.train.images, digits.test.images]).flatten(1).tolist()
    assert sorted(torch.cat([part.images for part in parts]).flatten(1).tolist()) == sorted(everything)
    again = load(replace(TINY, labels=1000, validation=200, seed=3))
    assert torch.equal(again.validation.images, data.validation.images)
    assert not torch.equal(load(replace(TINY, validation=200, data_seed=1)).validation.images, data.validation.images)
    assert len(load(replace(TINY, labels=1000, validation=None)).test) == 597


def test_more_labels_than_there_are() -> None:
    with pytest.raises(ValueError, match="1797 images to choose from: 1700 labels and 100 for validation"):
        load(replace(TINY, labels=1700, validation=100))
    with pytest.raises(ValueError, match="no images are left to test on"):
        load(replace(TINY, labels=0, validation=100))


def test_cifar10_is_cut_as_in_the_authors_code(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.arange(60, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    part = datasets.Split(images, torch.arange(60) % 10)
    monkeypatch.setattr(datasets, "load", lambda *_: datasets.Dataset("cifar10", part, part, tuple("0123456789"), True))
    from timm_ghn_init.lab.finetune import data as module

    module._read.cache_clear()
    try:
        data = load(replace(TINY, data="cifar10", labels=20, validation=15))
        assert data.train.images[:, 0, 0, 0].tolist() == list(range(20))
        assert data.validation.images[:, 0, 0, 0].tolist() == list(range(45, 60))
        assert len(data.test) == 60
        assert data.train.flip
        other = load(replace(TINY, data="cifar10", labels=20, validation=15, data_seed=1))
        assert not torch.equal(other.train.images, data.train.images)
    finally:
        module._read.cache_clear()


def small_images(n: int, flip: bool = False, size: int = 32) -> InMemory:
    images = torch.randint(1, 255, (n, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    mean, std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1) / 255
    return InMemory(images, torch.arange(n), size, mean, std, 4, flip)


def test_batches_are_of_one_size_and_hold_every_image_once() -> None:
    sizes, seen = [], []
    for x, y in small_images(97).batches(96, training=True):
        assert x.shape == (len(y), 3, 32, 32)
        sizes.append(len(y))
        seen += y.tolist()
    assert sizes == [49, 48]
    assert sorted(seen) == list(range(97)) != seen


@pytest.mark.parametrize("flip", [False, True])
def test_training_images_are_shifted_over_black(flip: bool) -> None:
    data = small_images(300, flip)
    padded = nn.functional.pad(data.images, [4] * 4)
    places, mirrored = set(), 0
    for x, y in data.batches(300, training=True):
        for image, i in zip(x.round().to(torch.uint8), y.tolist(), strict=True):
            candidates = [image, image.flip(2)][: 1 + flip]
            found = [
                (dy, dx, m)
                for m, candidate in enumerate(candidates)
                for dy in range(9)
                for dx in range(9)
                if torch.equal(padded[i, :, dy : dy + 32, dx : dx + 32], candidate)
            ]
            assert len(found) == 1
            places.add(found[0][:2])
            mirrored += found[0][2]
    assert len(places) > 70
    assert (100 < mirrored < 200) if flip else mirrored == 0


def test_images_to_test_on_are_as_they_are_but_for_their_size() -> None:
    data = small_images(5)
    assert torch.equal(torch.cat([x for x, _ in data.batches(2, training=False)]).round().byte(), data.images)
    assert next(small_images(5, size=64).batches(5, training=False))[0].shape == (5, 3, 64, 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of coloured images, in two parts."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for part, n in (("train", 12), ("val", 4)):
        for channel, name in enumerate(("red", "green", "blue")):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = draw.integers(0, 100, (40, 48, 3), dtype=np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(tmp_path / "images" / part / name / f"{i}.png")
    return tmp_path / "images"


def test_a_folder_of_images(folder: Path) -> None:
    trial = replace(
        TINY, image_size=32, data=str(folder), labels=24, validation=6, epochs=6, opt="adamw", lr=0.01, batch_size=9
    )
    result = run(trial, device="cpu", workers=0, progress=False)
    assert result["images"] == {"train": 24, "validation": 6, "test": 12}
    assert result["classes"] == 3
    assert result["test_accuracy"] > 0.8  # colours are easy: they are read, and with their classes
    data = load(trial, workers=0)
    assert [len(y) for _, y in data.train.batches(9, training=True)] == [8, 8, 8]
    alone = load(replace(trial, data=str(folder / "train"), labels=9), workers=0)
    assert [len(alone.train), len(alone.validation), len(alone.test)] == [9, 6, 7]


def test_an_image_that_cannot_be_read_ends_the_work_before_it_begins(folder: Path) -> None:
    trial = replace(TINY, data=str(folder), labels=24, validation=6)
    os.truncate(folder / "val" / "red" / "2.png", 40)
    with pytest.raises(DatasetError, match=r"val/red/2\.png cannot be read"):
        load(trial, workers=0)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no data set or folder.*digits, cifar10"):
        load(replace(TINY, data=str(tmp_path / "nowhere")))
    with pytest.raises(DatasetError, match="holds no folders of images"):
        load(replace(TINY, data=str(tmp_path)))


def test_what_is_written_anew_is_another_run(folder: Path, ghn_file: Path, tmp_path: Path) -> None:
    """The key depends on the contents of a GHN's file and of a folder of images, not on where they are or when."""
    ghn = tmp_path / "ghn.safetensors"
    ghn.write_bytes(ghn_file.read_bytes())
    trial = replace(TINY, init=f"file:{ghn}", data=str(folder), labels=6, validation=3, epochs=1, image_size=16)
    first = run(trial, device="cpu", workers=0, progress=False)
    assert first["trial"]["ghn"] == hashlib.sha256(ghn.read_bytes()).hexdigest()
    os.utime(ghn, (1, 1))
    os.utime(folder / "val" / "red" / "2.png", (1, 1))
    assert settled(trial).key == first["key"]

    changed = load_file(ghn)
    save_file({**changed, (name := next(iter(changed))): changed[name] * 2}, ghn, safe_open(ghn, "pt").metadata())
    other = run(trial, device="cpu", workers=0, progress=False)
    assert other["key"] != first["key"]
    assert other["trial"]["ghn"] == hashlib.sha256(ghn.read_bytes()).hexdigest() != first["trial"]["ghn"]
    with pytest.raises(ValueError, match=r"ghn\.safetensors has changed"):
        run(Trial(**first["trial"]), device="cpu", workers=0, progress=False)

    shutil.copy(folder / "val" / "green" / "2.png", folder / "val" / "red" / "2.png")
    assert settled(trial).key not in (first["key"], other["key"])
    os.rename(folder / "val" / "red" / "2.png", folder / "val" / "red" / "9.png")
    assert len({settled(trial).key, first["key"], other["key"]}) == 3
    with pytest.raises(ValueError, match="images has changed"):
        run(Trial(**other["trial"]), device="cpu", workers=0, progress=False)


FASHION = Path(__file__).parent / "fashion_mnist"  # 200 images to train on and 400 to test on


def test_other_files_of_a_named_data_set_are_another_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published files, and missing ones, leave keys as they are; other files in --data-dir are part of the key."""
    data = tmp_path / "data"
    trial = replace(TINY, data="fashion-mnist", epochs=1)
    monkeypatch.setattr(datasets, "FASHION_MNIST", tmp_path / "nowhere")
    assert settled(trial, data).folder == ""  # nothing is there yet

    shutil.copytree(FASHION, data)
    first = settled(trial, data)
    assert first.folder and first.key != replace(first, folder="").key
    packed = data / "t10k-labels-idx1-ubyte.gz"
    plain = gzip.decompress(packed.read_bytes())
    packed.unlink()
    packed.with_suffix("").write_bytes(plain)
    assert settled(trial, data) == first  # the same contents
    with monkeypatch.context() as patch:
        patch.setitem(datasets._USUAL, "fashion-mnist", first.folder)
        assert settled(trial, data).folder == ""

    command = ["finetune", "test_resnet", "--source", "rand", "--seeds", "1", "-o", str(tmp_path / "r.jsonl"), *OPTIONS]
    command += ["--data", "fashion-mnist", "--data-dir", str(data)]
    assert main(command) == 0 and main(command) == 0
    packed.with_suffix("").write_bytes(plain[:-1] + bytes([(plain[-1] + 1) % 10]))
    assert main(command) == 0
    records = read(tmp_path / "r.jsonl")
    assert [r["trial"]["folder"] == first.folder for r in records] == [True, False]
    assert records[0]["test_loss"] != records[1]["test_loss"]
    with pytest.raises(ValueError, match="fashion-mnist has changed"):
        run(Trial(**records[0]["trial"]), data_dir=data, device="cpu", progress=False)
    with pytest.raises(ValueError, match="use settled"):
        work(Each(trial, 1), Runs(tmp_path / "r.jsonl"), data_dir=data)


# -- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "size"),
    [
        ("resnet18", {"conv1": "7x7/2 -> 3x3/1", "maxpool": "removed"}, 32),
        ("resnet18d", {"conv1.0": "3x3/2 -> 3x3/1", "maxpool": "removed"}, 32),
        ("convnext_atto", {"stem.0": "4x4/4 -> 4x4/1"}, 29),
        ("convnext_atto_ols", {"stem.0": "3x3/2 -> 3x3/1", "stem.1": "3x3/2 -> 3x3/1"}, 32),
    ],
)
def test_stems_keep_the_resolution(name: str, changes: dict[str, str], size: int) -> None:
    model = timm.create_model(name, features_only=False)
    before = {n: p.clone() for n, p in model.named_parameters()}
    assert adapt_stem(model) == changes
    first = {}
    block = model.layer1 if hasattr(model, "layer1") else model.stages[0]
    block.register_forward_pre_hook(lambda _, args: first.update(shape=args[0].shape))
    with torch.no_grad():
        assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)
    assert first["shape"][2:] == (size, size)
    for n, p in model.named_parameters():
        expected = before[n][:, :, 2:5, 2:5] if n == "conv1.weight" and name == "resnet18" else before[n]
        assert torch.equal(p, expected), n
    assert adapt_stem(model) == {}


def test_other_stems_are_left() -> None:
    assert adapt_stem(timm.create_model("test_vit")) == {}
    model, facts = build(Trial("test_vit", "rand", image_size=32), 10)
    assert facts["stem"] == {}
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_a_ghn_sees_the_network_that_will_be_trained(ghn_file: Path) -> None:
    trial = Trial("resnet18", f"file:{ghn_file}", keep_stem=True)
    kept, kept_facts = build(trial, 10)
    model, facts = build(replace(trial, keep_stem=False), 10)
    assert kept.conv1.weight.shape[2:] == (7, 7) and model.conv1.weight.shape[2:] == (3, 3)
    assert facts["report"]["nodes"] == kept_facts["report"]["nodes"] - 1  # the max pooling
    large, large_facts = build(replace(trial, keep_stem=False, image_size=64), 10)
    assert large_facts["stem"] == {} and large.conv1.weight.shape[2:] == (7, 7)


def test_trained_weights_are_loaded_before_the_stem_is_adapted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    weights = timm.create_model("resnet18")
    save_file(weights.state_dict(), tmp_path / "w.safetensors")
    config = timm.get_pretrained_cfg("resnet18", allow_unregistered=False)
    local = replace(config, file=str(tmp_path / "w.safetensors"), hf_hub_id=None, url="")
    registry = timm.models._registry._model_pretrained_cfgs
    monkeypatch.setitem(registry, "resnet18", local)
    monkeypatch.setitem(registry, f"resnet18.{config.tag}", local)
    model, facts = build(Trial("resnet18", "pretrained"), 10)
    assert torch.equal(model.conv1.weight, weights.conv1.weight[:, :, 2:5, 2:5])
    assert torch.equal(model.layer4[1].conv2.weight, weights.layer4[1].conv2.weight)
    assert model.fc.weight.shape == (10, 512)
    assert "report" not in facts


# -- a run -----------------------------------------------------------------------------------------------------------


def test_it_learns_and_says_all_about_it() -> None:
    trial = replace(TINY, labels=400, validation=100, epochs=4, opt="adamw", lr=0.01, sched_on_updates=True)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    result = run(trial, device="cpu", progress=False)
    assert result["test_accuracy"] > 0.8
    assert states[0] == random.getstate() and states[1] == np.random.get_state()[1].tolist()
    assert torch.equal(states[2], torch.get_rng_state())
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    curves = result["curves"]
    assert all(len(curve) == 4 for curve in curves.values())
    assert curves["train_loss"][0] > curves["train_loss"][-1]
    assert curves["train_accuracy"][-1] > curves["train_accuracy"][0]
    assert result["validation_accuracy"] == curves["validation_accuracy"][-1]
    assert curves["lr"][0] > curves["lr"][-1] > 0
    assert result["images"] == {"train": 400, "validation": 100, "test": 1297}
    assert result["report"]["source"] == "rand" and result["report"]["seed"] == trial.seed
    assert result["versions"].keys() >= {"timm-ghn-init", "timm", "torch", "python"}
    assert result["trial"]["arch"] == "test_resnet" and result["command"] and not result["diverged"]


def test_the_schedule_is_the_authors() -> None:
    curve = run(replace(TINY, epochs=4), device="cpu", progress=False)["curves"]["lr"]
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD([nn.Parameter(torch.zeros(1))], TINY.lr), 4)
    expected = []
    for _ in range(4):
        expected.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    assert curve == pytest.approx(expected)


def test_all_layers_are_trained_and_decayed_without_nesterov() -> None:
    data = load(TINY)
    for opt, kind in (("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)):
        model, _ = build(TINY, data.classes)
        optimizer = train._Session(replace(TINY, opt=opt), model, data).optimizer
        assert type(optimizer) is kind
        assert {g["weight_decay"] for g in optimizer.param_groups} == {TINY.weight_decay}
        assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))
        assert not any(g.get("nesterov") for g in optimizer.param_groups)


def test_seeds_differ_and_repeat() -> None:
    first = run(TINY, device="cpu", progress=False)
    assert same(first, run(TINY, device="cpu", progress=False))
    assert (
        first["curves"]["train_loss"]
        != run(replace(TINY, seed=1), device="cpu", progress=False)["curves"]["train_loss"]
    )


def test_a_run_that_diverges_ends() -> None:
    result = run(replace(TINY, lr=1e30, clip_grad=0.0, epochs=5), device="cpu", progress=False)
    assert result["diverged"]
    assert len(result["curves"]["train_loss"]) < 5 and result["curves"]["train_loss"][-1] is None
    json.dumps(result, allow_nan=False)


def test_bfloat16_and_moving_average() -> None:
    gentle = replace(
        TINY, image_size=32, lr=0.002
    )  # larger steps make a twentieth of the loss out of how bfloat16 is rounded
    plain = run(gentle, device="cpu", progress=False)
    low = run(replace(gentle, amp=True), device="cpu", progress=False)
    assert low["curves"]["train_loss"] != plain["curves"]["train_loss"]
    assert low["curves"]["train_loss"] == pytest.approx(plain["curves"]["train_loss"], rel=0.02)
    averaged = run(replace(gentle, ema_decay=0.9), device="cpu", progress=False)
    assert averaged["curves"]["train_loss"] == plain["curves"]["train_loss"]
    assert averaged["test_loss"] != plain["test_loss"]


def test_unknown_architecture() -> None:
    with pytest.raises(ValueError, match="Unknown architecture 'nope'"):
        run(replace(TINY, arch="nope"), device="cpu")


# -- results ---------------------------------------------------------------------------------------------------------


def record(trial: Trial, accuracy: float, loss: float = 1.0, seconds: float = 1.0) -> dict[str, Any]:
    """A finished run that was not run."""
    from dataclasses import asdict

    scores = {"validation_accuracy": accuracy, "validation_loss": loss, "test_accuracy": accuracy}
    return {"kind": "run", "key": trial.key, "trial": asdict(trial), "seconds": {"train": seconds}, **scores}


def test_a_finished_trial_is_not_run_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def counted(trial: Trial, **_: Any) -> dict[str, Any]:
        started.append(trial.seed)
        return record(trial, 0.5)

    monkeypatch.setattr(plans, "run", counted)
    runs = Runs(tmp_path / "r.jsonl")
    work(Each(TINY, 2), runs)
    work(Each(TINY, 3), Runs(tmp_path / "r.jsonl"))
    assert started == [0, 1, 2]
    assert len(read(runs.path)) == 3
    assert not (tmp_path / "r.jsonl.unfinished").exists()


def test_trials_of_a_plan_are_settled(tmp_path: Path, ghn_file: Path) -> None:
    with pytest.raises(ValueError, match=r"digits: use settled\(trial, data_dir\)"):
        work(lambda results: [replace(TINY, init=f"file:{ghn_file}")], Runs(tmp_path / "r.jsonl"))


def test_a_line_that_was_cut_off_costs_that_line_only(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    runs = Runs(path)
    trials = [replace(TINY, seed=s) for s in range(3)]
    runs.append(record(trials[0], 0.5))
    with path.open("a") as file:
        file.write(json.dumps(record(trials[1], 0.5))[:50])
    assert Runs(path).finished().keys() == {trials[0].key}
    runs.append(record(trials[2], 0.5))
    assert Runs(path).finished().keys() == runs.finished().keys() == {trials[0].key, trials[2].key}


def test_a_run_that_another_process_does_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "run", lambda trial, **_: record(trial, 0.5))
    path = tmp_path / "r.jsonl"
    plan = Each(TINY, 3)
    other = Runs(path)
    with other.claim(plan.trials[0].key) as ours:
        assert ours
        worker = threading.Thread(target=work, args=(plan, Runs(path)), kwargs={"poll": 0.01})
        worker.start()
        while len(other.finished()) < 2:
            time.sleep(0.01)
        worker.join(0.2)
        assert worker.is_alive()
        assert other.finished().keys() == {t.key for t in plan.trials[1:]}
        other.append(record(plan.trials[0], 0.5))
    worker.join(10)
    assert not worker.is_alive()
    assert len(read(path)) == 3


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "r.jsonl")
    with runs.claim("x") as ours:
        assert ours
    path = str(tmp_path / "r.jsonl.unfinished" / "x.lock")
    code = f"import filelock; lock = filelock.FileLock({path!r}); lock.acquire(); print(flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "\n"
    with runs.claim("x") as ours:
        assert not ours
    process.kill()
    process.wait()
    with runs.claim("x") as ours:
        assert ours


def test_summary() -> None:
    trials = [replace(TINY, seed=s) for s in range(3)]
    records = [record(t, a) for t, a in zip(trials, (0.2, 0.4, 0.6), strict=True)]
    records += [record(replace(TINY, init="orth"), 0.9), record(replace(TINY, stage="search", seed=9), 0.0)]
    rows = summary([*records, {"kind": "other"}])
    assert [(r["trial"]["init"], r["seeds"]) for r in rows] == [("rand", [0, 1, 2]), ("orth", [0])]
    assert rows[0]["test_accuracy"] == pytest.approx((0.4, 0.2))
    assert rows[1]["test_accuracy"] == (0.9, None)


# -- choosing hyper-parameters ---------------------------------------------------------------------------------------


def test_the_grid_is_the_papers() -> None:
    trials = grid(Trial("resnet50", "rand"))
    assert len(trials) == (5 + 4) * 4 * 5 * 2
    assert {t.lr for t in trials if t.opt == "sgd"} == {0.025, 0.01, 0.005, 0.0025, 0.001}
    assert {t.lr for t in trials if t.opt == "adamw"} == {0.004, 0.001, 0.0004, 0.0001}
    assert GRID["weight_decay"] == (0.0001, 0.001, 0.01, 0.05, 0.1)
    assert {t.epochs for t in trials} == {50, 100, 200, 300} and {t.image_size for t in trials} == {224, 32}
    for name, preset in PRESETS.items():
        if name.startswith("resnet50"):
            chosen = [t for t in trials if all(getattr(t, n) == preset[n] for n in (*GRID, "lr"))]
            assert len(chosen) == 1, name


def test_axes_of_the_grid_can_be_given(ghn_file: Path) -> None:
    small = {"opt": ["sgd"], "epochs": [1], "weight_decay": [0.0], "image_size": [32], "lr": [0.1, 0.2]}
    assert [t.lr for t in grid(TINY, small)] == [0.1, 0.2]
    layers = {**small, "lr": [0.1], "layer": [1, 5], "beta": [0.0, 0.5]}
    found = [t.init for t in grid(replace(TINY, init=f"file:{ghn_file}-orth"), layers)]
    assert found == [f"file:{ghn_file}-orth?layer={n}&beta={b}" for n in (1, 5) for b in (0.0, 0.5)]
    assert [t.init for t in grid(replace(TINY, init="orth"), layers)] == ["orth?layer=1", "orth?layer=5"]
    assert [t.init for t in grid(TINY, layers)] == ["rand"]
    with pytest.raises(ValueError, match="no hyper-parameter 'foo'"):
        grid(TINY, {"foo": [1]})
    everything = grid(TINY)
    assert sample(everything, 5) == sample(everything, 7)[:5] != everything[:5]
    assert set(sample(everything, None)) == set(everything)


def play(plan: Any, score: Any) -> tuple[dict[str, Any], list[Trial]]:
    """Run a plan to its end without training; the order of its runs."""
    results: dict[str, Any] = {}
    order = []
    while todo := plan(results):
        assert todo[0].key not in results
        results[todo[0].key] = record(todo[0], *score(todo[0]))
        order.append(todo[0])
    return results, order


def test_the_best_on_the_validation_images_is_run_with_all_seeds() -> None:
    candidates = [replace(TINY, lr=lr) for lr in (0.1, 0.2, 0.3, 0.4)]
    scores = {0.1: (0.5, 0.9), 0.2: (0.7, 0.8), 0.3: (0.7, 0.6), 0.4: (0.1, 0.1)}
    plan = Tuned(candidates, 3)  # one round
    assert plan.final({}) == []
    results, order = play(plan, lambda t: scores[t.lr])
    assert [(t.stage, t.lr) for t in order[:4]] == [("search", lr) for lr in (0.1, 0.2, 0.3, 0.4)]
    assert [(t.stage, t.lr, t.seed) for t in order[4:]] == [("final", 0.3, s) for s in range(3)]
    assert plan.final(results) == order[4:]
    assert not {t.seed for t in order[:4]} & {0, 1, 2}
    with pytest.raises(ValueError, match="validation images"):
        Tuned([replace(TINY, validation=0)], 1)


def test_successive_halving() -> None:
    candidates = [replace(TINY, lr=lr / 100, epochs=27) for lr in range(1, 28)]
    _, order = play(Tuned(candidates, 2, rounds=4), lambda t: (t.lr,))
    search, final = [t for t in order if t.stage == "search"], [t for t in order if t.stage == "final"]
    assert [sum(t.epochs == e for t in search) for e in (1, 3, 9, 27)] == [27, 9, 3, 1]
    assert {t.lr for t in search if t.epochs == 9} == {0.27, 0.26, 0.25}
    assert [(t.lr, t.epochs, t.seed) for t in final] == [(0.27, 27, 0), (0.27, 27, 1)]


def test_successive_halving_within_a_budget() -> None:
    candidates = [replace(TINY, lr=lr / 100, epochs=9) for lr in range(1, 28)]
    plan = Tuned(candidates, 1, rounds=4, seconds=30.0)  # three rounds of ten seconds each
    results, order = play(plan, lambda t: (t.lr, 1.0, float(t.epochs)))
    search = [t for t in order if t.stage == "search"]
    assert [sum(t.epochs == e for t in search) for e in (1, 3, 9)] == [10, 4, 2]
    assert {t.lr for t in search} == {lr / 100 for lr in range(1, 11)}
    assert plan.final(results)[0].lr == 0.1
    one = Tuned(candidates, 1, rounds=4, seconds=1e-9)
    assert [t.epochs for t in play(one, lambda t: (t.lr,))[1]] == [1, 3, 9, 9]


def tuning(**options: Any) -> Tuning:
    trial = settled(replace(TINY, init="ghn2-fashion-orth", labels=2880, batch_size=96, epochs=9))
    return Tuning(trial, 16, **options)


def score_of_layers(trial: Trial) -> tuple[float, ...]:
    """Best: learning rate 0.1 for all, L = 5, the larger noise."""
    source = parse_source(trial.init)
    layer = 11 if source.layer == "auto" else source.layer
    accuracy = 0.9 - abs(trial.lr - 0.1) - 0.01 * abs(layer - 5) + 0.001 * (source.beta > 1e-3)
    return (accuracy, 1.0, 1.0)


def test_l_and_beta_are_tuned() -> None:
    plan = tuning(seeds=2)
    results, order = play(plan, score_of_layers)
    assert parse_source(plan.choice(results).init) == parse_source("ghn2-fashion-orth?layer=5&beta=0.003")
    final = plan.final(results)
    assert {title: trials[0].init for title, trials in final.items()} == {
        "RAND": "rand",
        "ORTH": "orth",
        "chosen": "ghn2-fashion-orth?layer=5&beta=0.003",
    }
    assert {t.lr for trials in final.values() for t in trials} == {0.1}
    assert order[-6:] == [t for trials in final.values() for t in trials]
    assert {t.stage for t in order[:-6]} == {"search"}
    first = [p for p in plan.curve(results) if p["epochs"] == 1]  # three rounds: 1, 3 and 9 epochs
    assert [p["layer"] for p in first if p["beta"] == 3e-5] == [1, 3, 5, 7, 9, 11, 13, 15]
    assert max(first, key=lambda p: p["accuracy"])["layer"] == 5


def test_tuning_within_a_budget() -> None:
    """An epoch of a second, and a second to begin: as many epochs as leave time for all seeds."""
    plan = tuning(seeds=2, seconds=120.0, fixed_epochs=False)
    results, order = play(plan, lambda t: (*score_of_layers(t)[:2], float(t.epochs)))
    assert order[0] == plan.probe and order[0].epochs == 1
    spent = sum(sum(record["seconds"].values()) for record in results.values())
    assert plan.epochs(results) > 1 and 60 < spent < 150
    short = tuning(seeds=1, seconds=1e-3, fixed_epochs=False)
    assert len(play(short, score_of_layers)[1]) == 3 + 1 + 3  # a run of each at least; the probe is ORTH's


def test_layers_at_depths() -> None:
    assert layers_at((0.0, 0.25, 0.75), 54) == [1, 14, 41]
    assert layers_at((0.0, 0.1, 0.2), 2) == [1]


# -- the command -----------------------------------------------------------------------------------------------------

SMALL = {
    "--labels": "40",
    "--validation": "20",
    "--epochs": "1",
    "-b": "20",
    "--lr": "0.02",
    "--img-size": "16",
    "--device": "cpu",
}
OPTIONS = [*(text for pair in SMALL.items() for text in pair), "--keep-stem"]


def test_command(tmp_path: Path, ghn_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("TIMM_GHN_DEFAULT", f"file:{ghn_file}")
    output = tmp_path / "runs.jsonl"
    command = ["finetune", "test_resnet", "--seeds", "2", "-o", str(output), *OPTIONS]
    assert main(command) == 0
    printed = capsys.readouterr()
    inits = ["rand", "orth", f"file:{ghn_file}", f"file:{ghn_file}-orth"]
    assert [line.split()[0] for line in printed.out.splitlines()[3:]] == inits
    assert "stem: as it is" in printed.out
    records = read(output)
    assert [(r["trial"]["init"], r["trial"]["seed"]) for r in records] == [(i, s) for i in inits for s in (0, 1)]
    assert all(r["trial"]["epochs"] == 1 and r["trial"]["labels"] == 40 for r in records)
    assert main(command) == 0
    assert capsys.readouterr().out == printed.out
    assert read(output) == records


def test_command_with_a_search_and_a_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "runs.jsonl"
    command = ["finetune", "test_resnet", "--preset", "resnet50/orth", "--seeds", "1", "-o", str(output), *OPTIONS]
    command += ["--opt", "sgd", "--search", "grid", "--grid", "weight_decay=0.1,0.01", "layer=2,3"]
    assert main(command) == 0
    records = read(output)
    assert {r["trial"]["init"] for r in records} == {"orth?layer=2", "orth?layer=3"}
    assert [r["trial"]["stage"] for r in records] == ["search"] * 4 + ["final"]
    assert {r["trial"]["batch_size"] for r in records} == {20}
    best = max(records[:4], key=lambda r: (r["validation_accuracy"], -r["validation_loss"]))
    assert records[4]["trial"]["weight_decay"] == best["trial"]["weight_decay"]
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "foo"], "Unknown initialisation 'foo'"),
        (["--source", "orth?layer=999"], "layer=999 is not a layer"),
        (["--preset", "resnet50/foo"], "Unknown preset"),
        (["--data", "nowhere"], "no data set or folder 'nowhere'"),
        (["--labels", "1790"], "too many"),
        (["--lr", "-1"], "lr must be above 0"),
        (["--trials", "3"], "--trials needs --search"),
        (["--search", "random", "--grid", "foo=1"], "no hyper-parameter 'foo'"),
        (["--search", "random", "--grid", "lr"], "is not NAME=A,B"),
        (["--search", "grid", "--time-budget", "9"], "needs --search halving"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_mistakes(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "runs.jsonl"
    assert main(["finetune", "test_resnet", "--source", "rand", "-o", str(output), *OPTIONS, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert read(output) == []


def test_tune(tmp_path: Path, ghn_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    source, picture = f"file:{ghn_file}-orth", tmp_path / "curve.svg"
    command = ["tune", "test_resnet", "--source", source, "--time-budget", "0.001", "--seeds", "1", "-o", str(picture)]
    assert main([*command, *OPTIONS]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == f"{source}?layer=5"  # the only L that the time was enough for
    data = json.loads(picture.with_suffix(".json").read_text())
    assert [row["title"] for row in data["compared"]] == ["RAND", "ORTH", "chosen"]
    assert [(p["layer"], p["beta"]) for p in data["curve"]] == [(5, 3e-5)]
    runs = read(picture.with_suffix(".jsonl"))
    test = next(r["test_accuracy"] for r in runs if r["trial"]["stage"] == "final" and r["trial"]["init"] == "orth")
    assert data["compared"][1]["test"] == [test, None] and f"{100 * test:.1f}" in printed
    assert "first post-processed layer (of 16)" in picture.read_text()
    assert main([*command, *OPTIONS]) == 0 and read(picture.with_suffix(".jsonl")) == runs
    assert main(["tune", "test_resnet", "--source", "ghn2", "-o", str(picture)]) == 2
    assert "no L to tune" in capsys.readouterr().err


def test_the_first_rank_prints_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "runs.jsonl"
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert main(["finetune", "test_resnet", "--source", "rand", "--seeds", "1", "-o", str(output), *OPTIONS]) == 0
        assert ("initialisation" in capsys.readouterr().out) == (rank == "0")
    assert len(read(output)) == 1
