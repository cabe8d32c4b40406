"""Training a GHN: sampled networks, images by formula, the loop and its resumption."""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from processes import torchrun
from torch.func import functional_call

from timm_ghn_init import load_ghn, save_ghn, trace
from timm_ghn_init.cli import main
from timm_ghn_init.ghn import GHN
from timm_ghn_init.lab.images.batches import DatasetImages, open_images
from timm_ghn_init.lab.images.datasets import DatasetError, load
from timm_ghn_init.lab.images.formula import FormulaImages
from timm_ghn_init.lab.training import evaluate as evaluation
from timm_ghn_init.lab.training.evaluate import Score, evaluate, summary
from timm_ghn_init.lab.training.loop import TrainConfig, Trainer, TrainingError, _adamw
from timm_ghn_init.lab.training.networks import KINDS, MAX_MACS, SPLITS, Network, Record, build, network, sample, within

TINY = {"max_shape": [8, 8, 3, 3], "weight_norm": True, "ve": True, "layernorm": True, "hid": 8}
CONFIG = TrainConfig(num_classes=4, steps=6, networks=2, batch_size=8, pool=6, max_macs=3e5, warmup=2, ghn=TINY)


# -- networks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_a_network_is_its_record(split: str) -> None:
    for index in range(len(KINDS)):
        record = sample(split, 0, index)
        assert record == sample(split, 0, index)
        assert record == Record.from_json(json.loads(json.dumps(record.to_json())))
        assert record.kind == KINDS[index]


def test_splits_and_seeds_differ() -> None:
    drawn = [[sample(split, seed, i) for i in range(16)] for split in ("train", "test") for seed in (0, 1)]
    for i, a in enumerate(drawn):
        for b in drawn[i + 1 :]:
            assert sum(x == y for x, y in zip(a, b, strict=True)) < 4


def test_unknown_split() -> None:
    with pytest.raises(ValueError, match=r"validation.*train, test"):
        sample("validation", 0, 0)


def test_unusual_splits_are_unusual() -> None:
    train = [sample("train", 0, i) for i in range(64)]
    deep, wide, without = ([sample(split, 0, i) for i in range(16)] for split in ("deep", "wide", "nonorm"))
    assert max(sum(r.depths) for r in train) < max(sum(r.depths) for r in deep)
    assert min(sum(r.depths) / len(r.depths) for r in deep) >= 5
    assert max(max(r.widths) for r in train) <= 128 <= min(min(r.widths) for r in wide)
    assert {r.style.norm for r in without} == {"none"}
    assert {r.kind for r in train if r.style.norm == "none"} <= {"plain"}


def test_networks_for_training_are_also_drawn_like_those_in_use() -> None:
    """ConvNeXt's layer scale, a long third stage, ResNet's stem; and held-out networks have none of the first two."""
    train, test = ([sample(split, 0, i) for i in range(48)] for split in ("train", "test"))
    assert {r.style.scale for r in train if r.kind == "convnext"} == {1.0, 1e-6}
    assert {r.style.scale for r in test} == {r.style.scale for r in train if r.kind != "convnext"} == {1.0}
    assert max(max(r.depths[2:], default=0) for r in train) > 3 == max(max(r.depths[2:], default=0) for r in test)
    assert any(r.stem == (7, 2) and r.stem_pool for r in train)


def test_a_layer_scale_hides_a_block() -> None:
    record = next(r for i in range(999) if (r := sample("train", 0, i)).style.scale != 1 and r.style.norm == "ln")
    net = Network(record, 4)
    x = torch.randn(2, 3, 32, 32)
    before = net(x)
    for name, parameter in net.named_parameters():
        if ".fc" in name:
            torch.nn.init.normal_(parameter)
    assert torch.allclose(net(x), before, atol=1e-3)


def test_every_network_mixes_pixels() -> None:
    """A network of 1 x 1 kernels sees no more than its stem does."""
    assert {sample("train", 0, i).style.kernel for i in range(64)} == {3, 5, 7}


def test_the_primitives_that_occur() -> None:
    """All of the vocabulary but `cse`, which GHN-2's graphs never hold."""
    found: Counter[str] = Counter()
    for index in range(64):
        found.update(node.primitive for node in network("train", 0, index, 10)[1].nodes)
    vocabulary = {"max_pool", "avg_pool", "sep_conv", "dil_conv", "conv", "msa", "sum", "concat", "input", "bias", "bn"}
    assert vocabulary | {"ln", "pos_enc", "glob_avg"} == set(found)


def test_networks_are_small_and_wholly_predicted() -> None:
    for index in range(24):
        net, graph = network("train", 0, index, 10)
        assert within(net.record, MAX_MACS)
        assert set(graph.targets) == dict(net.named_parameters()).keys()
        assert not list(net.buffers())
        assert graph.targets["fc.weight"].classifier


@pytest.mark.parametrize("split", SPLITS)
def test_what_a_network_costs(split: str) -> None:
    """Of every part, its parameters times the pixels of what it really puts out."""
    for index in range(len(KINDS)):
        record = sample(split, 1, index)
        net, total = build(record, 10), 0
        x = torch.empty(2, 3, 32, 32, device="meta")
        for part in (net.stem, *net.stages):
            x = part(x)
            total += x.shape[2] * x.shape[3] * sum(p.numel() for p in part.parameters())
        assert within(record, total) and not within(record, total - 1)


def test_a_network_runs_with_predicted_parameters(seeded_ghn2: GHN) -> None:
    for index in range(len(KINDS)):
        net, graph = network("train", 0, index, seeded_ghn2.num_classes)
        out = functional_call(net, seeded_ghn2.predict(graph), (torch.randn(2, 3, 32, 32),))
        assert out.shape == (2, seeded_ghn2.num_classes)
        assert out.isfinite().all()


# -- predict_many ------------------------------------------------------------------------------------------------------


def test_predict_many_is_predict(seeded_ghn2: GHN, seeded_ghn3: GHN) -> None:
    for ghn in (seeded_ghn2, seeded_ghn3):
        graphs = [trace(build(sample("train", 0, i), ghn.num_classes), 32, ghn.dialect) for i in range(4)]
        with torch.no_grad():
            for graph, many in zip(graphs, ghn.predict_many(graphs), strict=True):
                one = ghn.predict(graph)
                assert one.keys() == many.keys()
                for name, value in one.items():
                    torch.testing.assert_close(many[name], value, rtol=1e-4, atol=1e-5)


def sum_of_sines(predictions: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    return torch.stack([p.sin().sum() for prediction in predictions for p in prediction.values()]).sum()


def test_gradients_of_predict_many() -> None:
    """Of a batch of graphs they are the sum of those of each graph; so padding leaks nothing."""
    torch.manual_seed(0)
    ghn = GHN(num_classes=4, **{**TINY, "max_shape": (8, 8, 3, 3)}).double().train()
    graphs = [network("train", 0, i, 4, 3e5)[1] for i in range(3)]

    def loss(batch: list) -> torch.Tensor:
        return sum_of_sines(ghn.predict_many(batch))

    parameters = [p for name, p in ghn.named_parameters() if not name.startswith("bias_class.0")]
    together = torch.autograd.grad(loss(graphs), parameters, allow_unused=True)
    apart = [torch.autograd.grad(loss([g]), parameters, allow_unused=True) for g in graphs]
    for whole, *parts in zip(together, *apart, strict=True):
        expected = sum(p for p in parts if p is not None)
        if whole is None:
            assert all(p is None for p in parts)
        else:
            torch.testing.assert_close(whole, expected, rtol=1e-8, atol=1e-10)


def test_a_gradient_agrees_with_differences() -> None:
    torch.manual_seed(0)
    ghn = GHN(num_classes=4, **{**TINY, "max_shape": (8, 8, 3, 3)}).double().train()
    graphs = [network("train", 0, i, 4, 3e5)[1] for i in (0, 5)]

    def loss() -> torch.Tensor:
        return sum_of_sines(ghn.predict_many(graphs))

    for p in ghn.parameters():
        (gradient,) = torch.autograd.grad(loss(), [p])
        direction = torch.randn_like(p)
        with torch.no_grad():
            p += 1e-6 * direction
            above = loss()
            p -= 2e-6 * direction
            below = loss()
            p += 1e-6 * direction
        assert (gradient * direction).sum().item() == pytest.approx(((above - below) / 2e-6).item(), rel=1e-4)


# -- images ------------------------------------------------------------------------------------------------------------


def test_formula_images_are_reproducible_and_differ() -> None:
    images = FormulaImages(20)
    x, y = images.batch(0, 0, 32)
    again, labels = FormulaImages(20).batch(0, 0, 32)
    assert np.array_equal(x, again) and np.array_equal(y, labels)
    assert x.shape == (32, 3, 32, 32) and x.dtype == np.float32 and np.abs(x).max() < 6
    for other in (images.batch(0, 1, 32), images.batch(1, 0, 32), images.batch(0, 0, 32, train=False)):
        assert not np.array_equal(x, other[0])
    assert set(np.concatenate([images.batch(0, i, 64)[1] for i in range(8)])) == set(range(20))


def test_fewer_classes_are_the_first_of_more() -> None:
    few, many = FormulaImages(8), FormulaImages(16)
    for a, b in zip(few._formulas, many._formulas, strict=False):
        assert all(np.array_equal(*pair) for pair in zip(a, b, strict=True))


def test_the_classes_can_be_told_apart_by_shape() -> None:
    """A linear probe on grey values, far above chance: what a class is does not only lie in its colour."""
    images = FormulaImages(8)
    x, y = (np.concatenate(p) for p in zip(*(images.batch(0, i, 500) for i in range(6)), strict=True))
    held, labels = images.batch(0, 0, 500, train=False)
    grey, held_grey = (np.abs(np.fft.rfft2(v.mean(1))).reshape(len(v), -1) for v in (x, held))
    grey, held_grey = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (grey, held_grey))
    means = np.stack([grey[y == c].mean(0) for c in range(8)])
    assert ((held_grey @ means.T).argmax(1) == labels).mean() > 0.4


def test_digits_are_shifted_in_training_only() -> None:
    images = open_images("digits")
    x, _ = images.batch(0, 0, 16)
    again, _ = images.batch(0, 0, 16)
    assert np.array_equal(x, again) and images.num_classes == 10
    held, labels = images.batch(0, 0, 797, train=False)
    assert isinstance(images, DatasetImages)
    assert np.array_equal(labels, images.dataset.test.labels.numpy())
    assert np.array_equal(images.batch(1, 0, 4, train=False)[0], held[:4])


def picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 20), (shade, shade, shade)).save(path)


def test_a_folder_of_images(tmp_path: Path) -> None:
    for i in range(10):
        picture(tmp_path / "a" / f"{i}.png", 10)
        picture(tmp_path / "b" / "more" / f"{i}.jpg", 200)
    (tmp_path / "b" / "notes.txt").write_text("no image")
    data = load(str(tmp_path), 16)
    assert data.classes == ("a", "b") and (len(data.train), len(data.test)) == (16, 4)
    assert data.train.images.shape == (16, 3, 16, 16)
    assert data.train.images[data.train.labels == 0].unique().tolist() == [10]


@pytest.mark.parametrize("held_out", ["test", "validation", "val"])
def test_a_folder_with_a_part_to_test_on(tmp_path: Path, held_out: str) -> None:
    for part, n in (("train", 3), (held_out, 2)):
        for label in "ab":
            for i in range(n):
                picture(tmp_path / part / label / f"{i}.png", i)
    data = load(str(tmp_path))
    assert (len(data.train), len(data.test)) == (6, 4)


def test_no_data(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"imagenet.*digits, cifar10"):
        load("imagenet")
    with pytest.raises(DatasetError, match="no images"):
        load(str(tmp_path))
    picture(tmp_path / "a" / "0.png", 0)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "0.png").write_bytes(b"not a picture")
    with pytest.raises(DatasetError, match=r"0\.png cannot be read"):
        load(str(tmp_path))


# -- the loop ----------------------------------------------------------------------------------------------------------


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


def test_training_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One network and one batch of images over and over: the loss falls well below that of guessing."""
    config = replace(CONFIG, steps=100, networks=1, pool=1, batch_size=16, lr=1e-2, label_smoothing=0.0)
    trainer = Trainer(config, tmp_path)
    batch = next(trainer._batches())
    monkeypatch.setattr(trainer, "_batches", lambda: iter([batch] * 100))
    trainer.run()
    log = rows(tmp_path)
    assert [int(r["step"]) for r in log] == [50, 100]
    assert float(log[-1]["loss"]) < 0.7 * np.log(4)
    assert load_ghn(tmp_path / "ghn.safetensors").num_classes == 4


def test_resumed_training_ends_where_uninterrupted_training_does(tmp_path: Path) -> None:
    whole = Trainer(CONFIG, tmp_path / "whole")
    whole.run()
    first = Trainer(CONFIG, tmp_path / "parts")
    first.config = replace(CONFIG, steps=2)  # as if it had been stopped there
    first._lr = lambda budget: Trainer._lr(whole_schedule(first), budget)  # type: ignore[method-assign]
    first.run()
    first.config = CONFIG
    first.save()
    second = Trainer(CONFIG, tmp_path / "parts", resume=True)
    assert second.state.step == 2
    second.run()
    for (name, a), b in zip(whole.ghn.state_dict().items(), second.ghn.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def whole_schedule(trainer: Trainer) -> Trainer:
    """The trainer with the learning rate of the whole run."""
    trainer.config = CONFIG
    return trainer


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    trainer = Trainer(CONFIG, tmp_path)
    trainer.save()
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(TrainingError, match="--resume"):
        Trainer(CONFIG, tmp_path)
    with pytest.raises(TrainingError, match=r"lr = 0\.001, not 0\.5"):
        Trainer(replace(CONFIG, lr=0.5), tmp_path, resume=True)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_run_can_begin_from_another_ghn(tmp_path: Path) -> None:
    Trainer(replace(CONFIG, steps=1), tmp_path / "first").run()
    ghn = tmp_path / "first" / "ghn.safetensors"
    second = Trainer(replace(CONFIG, start=f"file:{ghn}", seed=1), tmp_path / "second")
    begun = load_ghn(ghn).state_dict()
    assert all(torch.equal(value, begun[name]) for name, value in second.ghn.state_dict().items())
    assert all(p.requires_grad for p in second.ghn.parameters())
    assert json.loads(second.metadata()["training"])["start"] == "ghn.safetensors"
    with pytest.raises(TrainingError, match=r"cannot be gone on from.*num_classes': 4"):
        Trainer(replace(CONFIG, num_classes=5, start=f"file:{ghn}"), tmp_path / "third")


def test_a_ghn_says_nothing_of_the_machine_it_was_trained_on(tmp_path: Path) -> None:
    for label in "ab":
        for i in range(5):
            picture(tmp_path / "clothes" / label / f"{i}.png", i)
    Trainer(replace(CONFIG, data=str(tmp_path / "clothes"), steps=1), tmp_path / "run").run()
    content = (tmp_path / "run" / "ghn.safetensors").read_bytes()
    assert b"clothes" in content
    assert str(tmp_path).encode() not in content


def test_time_budget_stops_and_the_learning_rate_falls(tmp_path: Path) -> None:
    trainer = Trainer(replace(CONFIG, steps=10_000), tmp_path)
    trainer.run(time_budget=2.0)
    assert 1 <= trainer.state.step < 10_000
    assert trainer._lr(2.0) == pytest.approx(0, abs=1e-9)
    assert trainer._lr(None) > 0


def test_a_step_that_is_not_finite_is_skipped(tmp_path: Path) -> None:
    trainer = Trainer(CONFIG, tmp_path)
    batch = next(trainer._batches())
    batch[0][1].fill_(float("nan"))
    before = {name: p.clone() for name, p in trainer.ghn.state_dict().items()}
    assert trainer._step(batch) is None
    assert trainer.state.skipped_steps == 1
    assert all(torch.equal(p, before[name]) for name, p in trainer.ghn.state_dict().items())


def test_training_that_never_is_finite_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(replace(CONFIG, steps=100), tmp_path)
    monkeypatch.setattr(trainer, "_step", lambda batch: None)
    with pytest.raises(TrainingError, match="lower --lr"):
        trainer.run()


def test_workers_change_nothing(tmp_path: Path) -> None:
    runs = [Trainer(replace(CONFIG, steps=2), tmp_path / str(workers), workers=workers) for workers in (0, 1)]
    for trainer in runs:
        trainer.run()
    for a, b in zip(runs[0].ghn.parameters(), runs[1].ghn.parameters(), strict=True):
        assert torch.equal(a, b)


def trained(folder: Path) -> dict[str, np.ndarray]:
    trainer = Trainer(replace(CONFIG, steps=2), folder, device="cpu")
    trainer.run()
    return {name: p.detach().numpy() for name, p in trainer.ghn.named_parameters()}


def test_two_processes_train_one_ghn(tmp_path: Path) -> None:
    """Two processes with two networks each follow the gradient of one process with the same four."""
    a, b = torchrun(trained, tmp_path / "two")
    one = Trainer(replace(CONFIG, steps=2, networks=4), tmp_path / "one", device="cpu")
    one.run()
    for name, p in one.ghn.named_parameters():
        assert np.array_equal(a[name], b[name])
        ours = torch.from_numpy(a[name])
        torch.testing.assert_close(ours, p.data, rtol=1e-3, atol=1e-4)  # Adam makes steps of 1e-3 of mere rounding


# -- evaluation --------------------------------------------------------------------------------------------------------


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "BATCH", 25)
    monkeypatch.setattr(evaluation, "BATCHES", 2)


@pytest.mark.usefixtures("few_images")
def test_evaluation_is_reproducible_and_near_chance_without_training() -> None:
    torch.manual_seed(0)
    ghn = GHN(num_classes=4, **{**TINY, "max_shape": (8, 8, 3, 3)}).eval()
    scores = evaluate(ghn, FormulaImages(4), networks=4, timm_models=("test_resnet",), progress=False)
    assert scores == evaluate(ghn, FormulaImages(4), networks=4, timm_models=("test_resnet",), progress=False)
    assert Counter(s.group.split(":")[0] for s in scores) == {"test": 4, "deep": 2, "wide": 2, "nonorm": 2, "timm": 1}
    assert abs(np.mean([s.random for s in scores]) - 0.25) < 0.12


def test_evaluation_wants_the_same_classes() -> None:
    ghn = GHN(num_classes=4, **{**TINY, "max_shape": (8, 8, 3, 3)})
    with pytest.raises(ValueError, match="4 classes, formula has 5"):
        evaluate(ghn, FormulaImages(5))


def test_summary_weighs_every_network_alike() -> None:
    scores = [
        Score("test: plain", "0", 0.5, 0.1),
        Score("test: plain", "1", 0.7, 0.1),
        Score("test: vit", "2", 0.0, 0.1),
    ]
    assert {name: (n, round(p, 6)) for name, n, p, _ in summary(scores)} == {
        "test": (3, 0.4),
        "test, convolutional": (2, 0.6),
        "test: plain": (2, 0.6),
        "test: vit": (1, 0.0),
    }


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("few_images")
def test_train_and_evaluate_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--classes",
        "4",
        "--networks",
        "1",
        "--batch-size",
        "8",
        "--pool",
        "2",
        "--max-macs",
        "3e5",
        "--hid",
        "8",
    ]
    assert main(["train-ghn", "-o", str(tmp_path / "run"), "--steps", "2", *options]) == 0
    ghn = capsys.readouterr().out.strip()
    assert ghn == str(tmp_path / "run" / "ghn.safetensors")
    assert main(["eval-ghn", ghn, "--networks", "8", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["chance"] == 0.25 and len(result["scores"]) == 8 + 9 + 6


def test_where_there_is_no_fused_optimiser_the_plain_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the CPU before PyTorch 2.4; one step has the same result, but for rounding."""

    def step() -> torch.Tensor:
        p = torch.nn.Parameter(torch.arange(4.0))
        p.grad = torch.ones(4)
        optimizer = _adamw([p], 0.1, 0.01)
        optimizer.step()
        fused.append(bool(optimizer.defaults["fused"]))
        return p.detach()

    class Unfused(torch.optim.AdamW):
        def __init__(self, *args: Any, fused: bool | None = None, **kwargs: Any) -> None:
            if fused:
                raise RuntimeError("`fused=True` requires all the params to be on another device")
            super().__init__(*args, **kwargs)

    fused: list[bool] = []
    expected = step()
    monkeypatch.setattr(torch.optim, "AdamW", Unfused)
    torch.testing.assert_close(step(), expected)
    assert fused == [True, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train-ghn", "--data", "nowhere"], "no data set or folder 'nowhere'"),
        (["train-ghn", "--time-budget", "soon"], "no time such as 90m"),
        (["eval-ghn", "nothing.safetensors"], "nothing.safetensors: no such file"),
        (["eval-ghn", "ghn2-ort"], "Did you mean ghn2-orth"),
    ],
)
def test_mistakes(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run: Callable[[list[str]], int] = main
    if arguments[0] == "train-ghn":
        arguments = [*arguments, "-o", str(tmp_path)]
    try:
        status = run(arguments)
    except SystemExit as error:
        status = int(str(error.code))
    captured = capsys.readouterr()
    assert status == 2
    assert re.fullmatch(r"timm-ghn-init: error: .*\n", captured.err) and message in captured.err


@pytest.mark.parametrize(("data", "said"), [(None, "nothing"), ("photos\x1b[2J", "photos")])
def test_images_that_a_ghn_was_trained_on_and_that_have_no_name(
    data: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ghn, file = GHN(num_classes=4, **{**TINY, "max_shape": (8, 8, 3, 3)}), tmp_path / "ghn.safetensors"
    ghn.trained_on = data
    save_ghn(ghn, file)
    assert load_ghn(file).trained_on == data
    assert main(["eval-ghn", str(file)]) == 2
    error = capsys.readouterr().err
    assert said in error and "--data" in error and "\x1b" not in error
