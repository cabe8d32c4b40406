"""The transfer benchmark runs and writes what it promises, on a toy. How good any initialisation is, is not tested."""

import importlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from timm_ghn_init.lab.finetune.results import read
from timm_ghn_init.lab.images import DatasetError
from timm_ghn_init.lab.images.datasets import load

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


@pytest.fixture
def transfer(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    module = importlib.import_module("transfer")
    monkeypatch.setattr(module, "MODELS", ("test_resnet",))
    monkeypatch.setattr(module, "LABELS", (20,))
    monkeypatch.setattr(module, "EPOCHS", {"test_resnet": {20: 2}})
    monkeypatch.setattr(module, "LEARNING_RATES", {"sgd": (0.1, 0.01)})
    monkeypatch.setattr(module, "WIDEST", 5.0)  # no more than these
    monkeypatch.setattr(module, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(module.logging, "disable", lambda *_: None)  # what a worker may do, but not to other tests
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)


class InThisProcess:
    """Another one would not see what is patched."""

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> "InThisProcess":
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, function: Any, *arguments: Any) -> Any:
        from concurrent.futures import Future

        future: Future[None] = Future()
        future.set_result(function(*arguments))
        return future


def test_it_runs_once_and_writes_table_and_plot(transfer: ModuleType, tmp_path: Path, ghn_file: Path) -> None:
    runs, text, plot = (tmp_path / name for name in ("r.jsonl", "t.md", "t.svg"))
    arguments = ["--ghn", f"file:{ghn_file}", "--seeds", "2", "--json", str(runs), "--inits", "rand"]
    transfer.main([*arguments, "--markdown", str(text)])
    assert "| data | network | labels | epochs | RAND |" in text.read_text()
    assert len(read(runs)) == 2 + 2  # learning rates, then seeds
    transfer.main([*arguments, "ghn-orth", "--markdown", str(text), "--plot", str(plot)])
    records = read(runs)
    assert len(records) == 2 * (2 + 2)
    final = [r for r in records if r["trial"]["stage"] == "final"]
    for init in ("rand", f"file:{ghn_file}-orth"):
        own = [r["trial"] for r in final if r["trial"]["init"] == init]
        assert sorted((t["labels"], t["seed"], t["epochs"]) for t in own) == [(20, 0, 2), (20, 1, 2)]
        assert len({t["lr"] for t in own}) == 1
    differ = ("init", "seed", "lr", "ghn")  # the budget and all else are the same for all
    assert len({json.dumps({n: v for n, v in r["trial"].items() if n not in differ}) for r in final}) == 1
    first = [r["test_accuracy"] for r in final if r["trial"]["init"] == "rand"]
    assert f"| digits | test_resnet | 20 | 2 | {100 * sum(first) / 2:.1f} ± " in text.read_text()
    assert "RAND</text>" in plot.read_text() and "GHN-ORTH</text>" in plot.read_text()
    transfer.main([*arguments, "ghn-orth"])
    assert read(runs) == records


@pytest.mark.parametrize(
    ("upper", "lower", "expected"),
    [
        ((0.9, 0.01), (0.8, 0.02), "yes"),
        ((0.9, 0.01), (0.89, 0.02), "within"),
        ((0.8, 0.01), (0.9, 0.02), "**below**"),
        ((0.9, None), (0.8, None), ""),
        (None, (0.8, 0.1), ""),
    ],
)
def test_verdicts_are_computed(transfer: ModuleType, upper: Any, lower: Any, expected: str) -> None:
    assert transfer.verdict(upper, lower) == expected


def finished(trial: Any, accuracy: float, curve: tuple[float, ...] = ()) -> dict[str, Any]:
    return {"validation_accuracy": accuracy, "validation_loss": 1.0, "curves": {"validation_accuracy": list(curve)}}


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (0.03, [0.01, 0.03, 0.1]),
        (0.1, [0.01, 0.03, 0.1, 0.3]),
        (0.003, [0.001, 0.003, 0.01, 0.03, 0.1]),
        (1e9, [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]),  # there is an end to it
    ],
)
def test_the_best_learning_rate_lies_inside_of_those_tried(best: float, tried: list[float]) -> None:
    module = benchmark()
    plan = module.Widening(
        module.trials(module.Group("digits", "resnet18", 100, 1, "rand"), "ghn2"), (0.1, 0.03, 0.01), 2
    )
    results: dict[str, Any] = {}
    while todo := plan(results):
        trial = todo[0]
        results[trial.key] = finished(trial, 1 - abs(math.log(trial.lr / best)))
    assert plan.tried(results) == tried
    final = plan.final(results)
    assert [(t.seed, t.stage) for t in final] == [(0, "final"), (1, "final")]
    assert final[0].lr == (best if best < 1e9 else 30.0)


def test_the_value_of_layer_scales_is_chosen_with_the_learning_rate() -> None:
    """The grid of rates is widened where the best value is, and nowhere else."""
    module = benchmark()
    trials = module.trials(module.Group("digits", "convnext_atto", 100, 1, "orth"), "ghn2")
    assert [t.init for t in trials] == [f"orth?layer_scale={v}" for v in ("keep", "0.3", "1.0")]
    plan = module.Widening(trials, (0.003, 0.001), 2)
    results: dict[str, Any] = {}
    while todo := plan(results):
        accuracy = 1 - abs(math.log(todo[0].lr / 0.01)) / 10
        results[todo[0].key] = finished(todo[0], accuracy if "0.3" in todo[0].init else accuracy / 2)
    assert [(t.init, t.lr) for t in plan.final(results)] == [("orth?layer_scale=0.3", 0.01)] * 2
    assert plan.tried(results) == [0.001, 0.003, 0.01, 0.03]
    assert len(results) == 2 * 2 + 4 + 2


def test_epochs_to_a_given_accuracy() -> None:
    module = benchmark()
    rand, orth, ghn = (module.Group("digits", "resnet18", 100, 1, init) for init in ("rand", "orth", "ghn"))
    found = {
        rand: [finished(None, 0.8, (0.1, 0.4, 0.6)), finished(None, 0.8, (0.1, 0.6, 1.0))],  # ends with 0.8
        orth: [finished(None, 0.7, (0.1, 0.73, 0.7))],
        ghn: [finished(None, 0.7, (0.7, 0.7, 0.71))],
    }
    assert [module.epochs_to_target(g, found) for g in (rand, orth, ghn)] == ["3 of 3", "2 of 3", "never"]


def test_the_better_of_rand_and_orth() -> None:
    module = benchmark()
    rand, orth, ghn = (module.Group("digits", "resnet18", 100, 1, init) for init in ("rand", "orth", "ghn-orth"))
    scores = {rand: (0.8, 0.01), orth: (0.7, 0.2), ghn: (0.82, 0.01)}
    assert module.verdicts([rand.row], scores).splitlines()[-1].endswith("| within |  | yes |")
    assert module.verdicts([rand.row], {rand: (0.8, 0.01), ghn: (0.82, 0.01)}).splitlines()[-1].endswith("|  |  |  |")


def benchmark() -> Any:
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    try:
        return importlib.import_module("transfer")
    finally:
        sys.path.pop(0)


def test_protocol_is_complete() -> None:
    """Every network has epochs for every number of labels, and learning rates."""
    module = benchmark()
    for model in module.MODELS:
        assert set(module.EPOCHS[model]) == set(module.LABELS)
        rates = module.LEARNING_RATES[module.optimizer(model)]
        assert len(set(rates)) == len(rates) >= 2
    groups = [module.Group("digits", m, n, 1, "rand") for m in module.MODELS for n in module.LABELS]
    keys = [trial.key for group in groups for trial in module.trials(group, "ghn2-fashion")]
    assert len(set(keys)) == len(keys)


@pytest.mark.usefixtures("transfer")
def test_letters_are_drawn_from_fonts_and_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fonts = Path(pytest.importorskip("matplotlib").get_data_path(), "fonts", "ttf")
    with pytest.raises(DatasetError, match=r"benchmarks/letters.py FONTS -o .*letters, in a checkout"):
        load("letters", 32, tmp_path)
    importlib.import_module("letters").main([str(fonts), "-o", str(tmp_path / "letters")])
    data = load("letters", 32, tmp_path)
    used, of_all = map(int, re.findall(r"(\d+) of (\d+) fonts", capsys.readouterr().out)[0])
    assert 20 < used < of_all  # some have no letters, or the same sign for all
    assert len(data.train) + len(data.test) == 10 * used and data.train.images.shape[1:] == (3, 32, 32)
    assert data.classes == tuple("ABCDEFGHIJ") and not data.flip
    assert data.train.labels.bincount().unique().numel() == 1
    ink = [data.train.images[data.train.labels == label].float().mean() for label in range(10)]
    assert ink[8] < ink[7]  # an I takes less than an H
