"""Training a GHN: sampled networks, images, the loop and its resumption."""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from processes import torchrun

from timm_ghn_init import load_ghn, save_ghn, trace
from timm_ghn_init.cli import main
from timm_ghn_init.ghn import GHN
from timm_ghn_init.lab.images.batches import _mean_and_std, open_images
from timm_ghn_init.lab.training import evaluate as evaluation
from timm_ghn_init.lab.training import loop
from timm_ghn_init.lab.training.evaluate import Score, evaluate, summary
from timm_ghn_init.lab.training.loop import TrainConfig, Trainer, TrainingError
from timm_ghn_init.lab.training.networks import FAMILIES, MAX_MACS, Network, as_network, macs, network, sample

TINY = {"max_shape": [8, 8, 3, 3], "weight_norm": True, "ve": True, "layernorm": True, "hid": 8}
CONFIG = TrainConfig(data="digits", steps=6, networks=2, batch_size=8, pool=6, max_macs=5e6, warmup=2, ghn=TINY)


# -- networks ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_of_each() -> list[Network]:
    """The first network of every family."""
    found: dict[str, Network] = {}
    for index in range(sum(family.share for family in FAMILIES.values())):
        kind, module = sample("train", 0, index)
        if kind not in found:
            found[kind] = as_network(kind, module)
    assert found.keys() == FAMILIES.keys()
    return list(found.values())


def shapes(module: torch.nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, p.shape) for name, p in module.named_parameters()]


def test_a_network_is_a_function_of_split_seed_and_index() -> None:
    assert shapes(sample("train", 0, 20)[1]) == shapes(sample("train", 0, 20)[1])
    drawn = [[shapes(sample(*key, i)[1]) for i in range(16, 20)] for key in (("train", 0), ("train", 1), ("test", 0))]
    for i, a in enumerate(drawn):
        assert all(a[j] != b[j] for b in drawn[i + 1 :] for j in range(4))


def test_the_primitives_that_occur(one_of_each: list[Network]) -> None:
    """All of the vocabulary but `cse`, which GHN-2's graphs never hold."""
    found = {node.primitive for net in one_of_each for node in net.graph.nodes}
    vocabulary = {"max_pool", "avg_pool", "sep_conv", "conv", "msa", "sum", "concat", "input", "bias", "bn", "ln"}
    assert found == vocabulary | {"pos_enc", "glob_avg", "dil_conv"}


def test_networks_are_small_and_predicted_but_for_the_class_token(one_of_each: list[Network]) -> None:
    for net in one_of_each:
        assert macs(net.module) <= MAX_MACS
        assert {p.device.type for p in net.module.parameters()} == {"meta"}
        assert set(net.fixed) <= {"cls_token"}
        assert net.graph.targets.keys() | net.fixed.keys() == dict(net.module.named_parameters()).keys()
        assert sum(target.classifier for target in net.graph.targets.values()) == 2
    assert any(net.fixed for net in one_of_each)


def test_what_a_network_costs() -> None:
    """Each weight of a layer once for each position of its output."""
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), torch.nn.ReLU(), torch.nn.Flatten()
    )
    net.append(torch.nn.Linear(4 * 16 * 16, 5))
    assert macs(net.to("meta")) == 3 * 9 * 4 * 16 * 16 + 4 * 16 * 16 * 5


def test_networks_run_with_predicted_parameters(one_of_each: list[Network], seeded_ghn2: GHN) -> None:
    for net in one_of_each:
        out = net(seeded_ghn2.predict(net.graph), torch.randn(2, 3, 32, 32))
        assert out.shape == (2, 10) and out.isfinite().all(), net.kind


def test_layer_scales_have_no_effect() -> None:
    """They are not predicted; timm's begin at 1e-6, which would hide the blocks."""
    with torch.device("meta"):
        model = timm.create_model("convnext_atto")
    net = as_network("convnext_atto", model)
    assert len(net.fixed) == 12 and all((value == 1).all() for value in net.fixed.values())


# -- predict_many ------------------------------------------------------------------------------------------------------


def test_predict_many_is_predict(seeded_ghn2: GHN, seeded_ghn3: GHN) -> None:
    for ghn in (seeded_ghn2, seeded_ghn3):
        graphs = [trace(sample("train", 0, i, ghn.num_classes)[1], 32, ghn.dialect) for i in (0, 6, 12, 20)]
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
    graphs = [network("train", 0, i, 4, 5e6).graph for i in (0, 8, 14)]

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
    graphs = [network("train", 0, i, 4, 5e6).graph for i in (7, 20)]

    def loss() -> torch.Tensor:
        return sum_of_sines(ghn.predict_many(graphs))

    parameters = list(ghn.parameters())
    for group in (parameters[i::5] for i in range(5)):
        gradients = torch.autograd.grad(loss(), group)
        directions = [torch.randn_like(p) for p in group]
        values = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                for p, direction in zip(group, directions, strict=True):
                    p += step * direction
                values.append(loss().item())
        expected = sum((g * d).sum().item() for g, d in zip(gradients, directions, strict=True))
        assert expected == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)


# -- images ------------------------------------------------------------------------------------------------------------


def test_digits_are_shifted_in_training_only() -> None:
    images = open_images("digits")
    x, _ = images.batch(0, 0, 16)
    again, _ = images.batch(0, 0, 16)
    assert np.array_equal(x, again) and images.num_classes == 10
    held, labels = images.batch(0, 0, 797, train=False)
    assert np.array_equal(labels, images.dataset.test.labels.numpy())
    assert np.array_equal(images.batch(1, 0, 4, train=False)[0], held[:4])


def picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 20), (shade, shade, shade)).save(path)


# -- the loop ----------------------------------------------------------------------------------------------------------


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


def test_training_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One network and one batch of images over and over: the loss falls well below that of guessing."""
    monkeypatch.setattr(loop, "_LOGGED", 20)
    config = replace(CONFIG, steps=60, networks=1, pool=1, batch_size=16, lr=1e-2, label_smoothing=0.0)
    trainer = Trainer(config, tmp_path)
    batch = next(trainer._batches())
    monkeypatch.setattr(trainer, "_batches", lambda: iter([batch] * 60))
    trainer.run()
    log = rows(tmp_path)
    assert [int(r["step"]) for r in log] == [20, 40, 60]
    assert float(log[-1]["loss"]) < 0.7 * np.log(10)
    assert load_ghn(tmp_path / "ghn.safetensors").num_classes == 10


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


def test_a_trainer_leaves_the_random_numbers_of_the_program(tmp_path: Path) -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = Trainer(CONFIG, tmp_path / "first").ghn.state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    for name, value in Trainer(CONFIG, tmp_path / "second").ghn.state_dict().items():
        assert torch.equal(value, first[name]), name


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
    with pytest.raises(TrainingError, match=r"cannot be the start.*'hid': 8"):
        Trainer(replace(CONFIG, ghn={**TINY, "hid": 12}, start=f"file:{ghn}"), tmp_path / "third")


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
    trainer.run(time_budget=0.5)
    assert 1 <= trainer.state.step < 10_000
    assert trainer._lr(0.5) == pytest.approx(0, abs=1e-9)
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
    ghn = GHN(num_classes=10, **{**TINY, "max_shape": (8, 8, 3, 3)}).eval()
    images, state = open_images("digits"), torch.get_rng_state()
    scores = evaluate(ghn, images, networks=8, timm_models=("test_resnet", "test_vit"), progress=False)
    assert scores == evaluate(ghn, images, networks=8, timm_models=("test_resnet", "test_vit"), progress=False)
    assert torch.equal(torch.get_rng_state(), state)  # the program's own random numbers are as without
    assert Counter(s.group.split(":")[0] for s in scores) == {"test": 8, "timm": 2}
    assert abs(np.mean([s.predicted for s in scores]) - 0.1) < 0.06


def test_evaluation_wants_the_same_classes() -> None:
    ghn = GHN(num_classes=4, **{**TINY, "max_shape": (8, 8, 3, 3)})
    with pytest.raises(ValueError, match="4 classes, digits has 10"):
        evaluate(ghn, open_images("digits"))


def test_summary_gives_every_network_the_same_weight() -> None:
    scores = [Score("test: resnet", "0", 0.5), Score("test: resnet", "1", 0.7), Score("test: vit", "2", 0.0)]
    assert {name: (n, round(p, 6)) for name, n, p in summary([*scores, Score("timm", "resnet18", 0.3)])} == {
        "test": (3, 0.4),
        "test: resnet": (2, 0.6),
        "test: vit": (1, 0.0),
        "timm: resnet18": (1, 0.3),
    }


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("few_images")
def test_train_and_evaluate_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(evaluate.__wrapped__.__kwdefaults__, "timm_models", ("test_resnet", "test_vit"))
    options = [
        "--data",
        "digits",
        "--networks",
        "1",
        "--batch-size",
        "8",
        "--pool",
        "2",
        "--max-macs",
        "5e6",
        "--hid",
        "8",
    ]
    assert main(["train-ghn", "-o", str(tmp_path / "run"), "--steps", "2", *options]) == 0
    ghn = capsys.readouterr().out.strip()
    assert ghn == str(tmp_path / "run" / "ghn.safetensors")
    assert main(["eval-ghn", ghn, "--networks", "8", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["chance"] == 0.1 and len(result["scores"]) == 8 + 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train-ghn", "--data", "nowhere"], "no data set or folder 'nowhere'"),
        (["train-ghn", "--time-budget", "soon"], "is not a time such as 90m"),
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


def test_images_by_formula_need_no_files() -> None:
    images = open_images("formula", num_classes=4)
    assert images.num_classes == 4
    batch, labels = images.batch(1, 2, 16)
    again, others = images.batch(1, 2, 16)[0], images.batch(1, 3, 16)[0]
    held_out = images.batch(1, 2, 16, train=False)[0]
    assert batch.shape == (16, 3, 32, 32) and batch.dtype == torch.float32 and set(labels.tolist()) <= set(range(4))
    assert torch.equal(batch, again) and not torch.equal(batch, others) and not torch.equal(batch, held_out)


def test_mean_and_deviation_of_a_data_set() -> None:
    pixels = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels[:, 2] = 0  # no blue
    mean, deviation = _mean_and_std(pixels)
    expected = pixels.double().transpose(0, 1).flatten(1) / 255
    torch.testing.assert_close(mean, expected.mean(1).float())
    torch.testing.assert_close(deviation[:2], expected.std(1, correction=0)[:2].float())
    assert deviation[2] == 1
