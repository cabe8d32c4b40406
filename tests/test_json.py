"""`--json`: of every command, its results as one JSON value, alone on stdout."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import timm

from timm_ghn_init import init_model
from timm_ghn_init.cli import commands, main
from timm_ghn_init.cli.results import plain
from timm_ghn_init.integration import enabling
from timm_ghn_init.lab.finetune import plans

TRAIN = "--data digits --steps 1 --networks 1 --batch-size 2 --pool 2 --hid 8 --max-macs 5e6 --device cpu"
TRIAL = "--epochs 1 --labels 10 --validation 10 -b 5 --workers 0 --img-size 32 --device cpu"

# A command with GHN and FOLDER, and keys of what it finds (of a row, where that is a list).
COMMANDS = {
    "predict test_resnet --source GHN -o FOLDER/x.safetensors": {"output", "report"},
    "inspect test_resnet --source GHN": {"nodes", "parameters", "source", "values_predicted"},
    "graph test_resnet -o FOLDER/x.svg": {"output", "nodes", "edges"},
    "list": {"source", "cached", "licence", "paper", "description"},
    "fetch --source ghn2-fashion": {"path"},
    "analyze correlations test_resnet --source rand": {"layers", "inits", "versions", "files"},
    "analyze signal test_resnet --source rand --img-size 64 -o FOLDER/s.json": {"inits", "layers", "files"},
    "analyze embed test_resnet --source GHN --reference timm:test_vit* --size 3": {"points", "variance", "files"},
    "compare rand orth --arch test_resnet": {"equal", "distance", "tensors"},
    f"finetune test_resnet --source rand --seeds 1 -o FOLDER/r.jsonl {TRIAL}": {"trial", "seeds", "test_accuracy"},
    f"tune test_resnet --source GHN-orth --seeds 1 --lr 0.01 -o FOLDER/t.json {TRIAL}": {"source", "curve", "compared"},
    "report FOLDER/r.jsonl -o FOLDER/r.html": {"output"},
    f"train-ghn {TRAIN} -o FOLDER/run": {"ghn", "step", "seconds"},
    "cache": {"key", "path", "size", "used", "model", "source", "device"},
    "cache info": {"folder", "files", "bytes", "most", "always"},
    "cache info KEY": {"path", "model", "parameters"},
    "cache prune": {"removed", "bytes"},
    "cache clear": {"removed", "bytes"},
    "push test_resnet --source GHN --repo me/x": {"url", "report"},
    "bake --models test_resnet --source GHN --out FOLDER/baked": {"architecture", "state", "where"},
    "enable --status": {"enabled", "files"},
    "disable": {"enabled", "removed"},
    "doctor": {"versions", "broken"},
    "completion bash": {"shell", "script"},
}
NEEDS = {"finetune": ["sklearn"], "tune": ["sklearn"], "report": ["sklearn", "jinja2"], "completion": ["shtab"]}
ELSEWHERE = {"eval-ghn"}  # in test_training.py, which has what it needs


def test_every_command_is_tried() -> None:
    assert {command.split()[0] for command in COMMANDS} | ELSEWHERE == set(commands())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json")


def trained(trial: Any, **options: Any) -> dict[str, Any]:
    """What a run of finetune returns, of one that did not take place."""
    scores = {f"{part}_accuracy": 0.5 for part in ("validation", "test")}
    about = {"kind": "run", "key": trial.key, "trial": asdict(trial), "seconds": {"train": 1.0}, "stem": {}}
    return {**about, **scores, "images": {"train": 10}, "validation_loss": 1.0}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command.split()[:2]))
@pytest.mark.usefixtures("hub")
def test_json(command: str, folder: Path, ghn_file: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in NEEDS.get(command.split()[0], ()):
        pytest.importorskip(library)
    monkeypatch.setattr(enabling, "_folders", lambda: [folder])  # not those of who runs the tests
    monkeypatch.setenv("TIMM_GHN_HOME", str(folder / "home"))
    key, keys = "", COMMANDS[command]
    if command.startswith("tune"):
        monkeypatch.setattr(plans, "run", trained)  # dozens of runs
    if command.startswith("cache"):
        init_model(timm.create_model("test_resnet"), f"file:{ghn_file}-orth", cache=True)
        (kept,) = (folder / "home" / "weights").glob("*.safetensors")
        key = kept.name[:12]
    for name, value in {"GHN": ghn_file, "FOLDER": folder, "KEY": key}.items():
        command = command.replace(name, str(value))
    status = main([*command.split(), "--json"])
    stdout, stderr = capsys.readouterr()
    found = json.loads(stdout, parse_constant=pytest.fail)
    assert status in (0, 1), stderr
    row = found[0] if isinstance(found, list) else found
    assert keys <= set(row)
    for name in {"output", "path"} & set(row):
        assert Path(row[name]).exists()


def test_what_else_is_printed_goes_to_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, ghn_file: Path
) -> None:
    create: Callable[..., Any] = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *args, **options: print("chatter") or create(*args, **options))
    assert main(["inspect", "test_resnet", "--source", str(ghn_file), "--json"]) == 0
    stdout, stderr = capsys.readouterr()
    assert json.loads(stdout)["architecture"] == "test_resnet"
    assert "chatter" in stderr


def test_a_mistake_prints_no_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "test_resnt", "--json"]) == 2
    stdout, stderr = capsys.readouterr()
    assert stdout == "" and stderr.count("\n") == 1


def test_pictures_need_a_place_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", "signal", "test_resnet"]) == 2
    assert "add --json" in capsys.readouterr().err


def test_what_json_does_not_know() -> None:
    value = {1: [float("nan"), float("inf"), 0.5], "p": Path("a/b"), "t": (True, None), "s": frozenset({"x"})}
    assert plain(value) == {"1": [None, None, 0.5], "p": "a/b", "t": [True, None], "s": ["x"]}
