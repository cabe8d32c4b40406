"""The transfer benchmark runs and writes what it promises, on a toy. How good any initialisation is, is not tested."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from timm_ghn_init.finetune.results import read

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


@pytest.fixture
def transfer(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    module = importlib.import_module("transfer")
    monkeypatch.setattr(module, "MODELS", ("test_resnet",))
    monkeypatch.setattr(module, "LABELS", (20, 40))
    monkeypatch.setattr(module, "EPOCHS", {"test_resnet": {20: 2, 40: 1}})
    monkeypatch.setattr(module, "LEARNING_RATES", {"sgd": (0.1, 0.01)})
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
    assert "| network | labels | RAND |" in text.read_text()
    assert len(read(runs)) == 2 + 2 * 2
    transfer.main([*arguments, "ghn-orth", "--markdown", str(text), "--plot", str(plot)])
    records = read(runs)
    assert len(records) == 2 * (2 + 2 * 2)  # learning rates, then seeds for each number of labels
    final = [r for r in records if r["trial"]["stage"] == "final"]
    for init in ("rand", f"file:{ghn_file}-orth"):
        own = [r["trial"] for r in final if r["trial"]["init"] == init]
        assert sorted((t["labels"], t["seed"], t["epochs"]) for t in own) == [
            (20, 0, 2),
            (20, 1, 2),
            (40, 0, 1),
            (40, 1, 1),
        ]
        assert len({t["lr"] for t in own}) == 1
    differ = ("init", "seed", "lr", "labels", "epochs", "ghn")  # the budget and all else are the same for all
    assert len({json.dumps({n: v for n, v in r["trial"].items() if n not in differ}) for r in final}) == 1
    mean = sum(r["test_accuracy"] for r in final[:2]) / 2
    assert [final[0]["trial"]["init"], final[0]["trial"]["labels"]] == ["rand", 20]
    assert f"| test_resnet | 20 | {100 * mean:.1f} ± " in text.read_text()
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


def test_protocol_is_complete() -> None:
    """Every network has epochs for every number of labels, and learning rates."""
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    try:
        module = importlib.import_module("transfer")
    finally:
        sys.path.pop(0)
    for model in module.MODELS:
        assert set(module.EPOCHS[model]) == set(module.LABELS)
        trials = module.candidates(model, "rand", "ghn2-formula")
        assert [t.lr for t in trials] == list(module.learning_rates(model))
        assert len({t.key for t in trials}) == 4
