"""The paper's experiments as commands: that each is complete, and that ours and the paper's numbers stay apart."""

import importlib
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest

from timm_ghn_init.cli import main
from timm_ghn_init.lab.finetune import Trial
from timm_ghn_init.lab.finetune.search import PRESETS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.paper.__main__")


@pytest.mark.parametrize("options", [[], ["--arch", "test_resnet", "vit_tiny_patch16_224", "--ghn", "ghn3-t"]])
def test_every_item_is_made_of_commands_that_exist(
    paper: ModuleType, options: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for item in paper.ITEMS:
        assert paper.main([item, "--dry-run", "--out", str(tmp_path / "out"), *options]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if line]
        assert lines
        for line in lines:
            with pytest.raises(SystemExit):  # all that is wrong with the command is what is added here
                main([*shlex.split(line.removeprefix("$ timm-ghn-init ")), "--no-such-option"])
            assert "error: unrecognized arguments: --no-such-option" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_readme_lists_every_item(paper: ModuleType) -> None:
    text = (ROOT / "benchmarks/paper/README.md").read_text()
    assert set(re.findall(r"benchmarks\.paper (\w+)", text)) == set(paper.ITEMS)
    for thing in ("Figure 1", "Figure 2", "Figure 3", "Figure 4", "Figure 5", "Table 1", "Table 2", "Section 5"):
        assert f"| {thing} |" in text


def test_presets_are_those_of_the_paper(paper: ModuleType) -> None:
    table = paper.NUMBERS["table2"]
    for arch, batch_size in table["batch_size"].items():
        assert table[arch].keys() == paper.NUMBERS["table1"][arch].keys()
        for init, (*row, _, _) in table[arch].items():
            preset = PRESETS[f"{arch}/{init}"]
            assert [preset[n] for n in ("opt", "epochs", "lr", "weight_decay", "image_size")] == row
            assert preset["batch_size"] == batch_size


@pytest.fixture
def finished(paper: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Pretend that commands run, and that finetune writes a run of each."""

    def run(command: list[str], out: Path) -> int:
        arch, init = command[1], command[command.index("--source") + 1]
        trial = Trial(arch, init)
        record = {"kind": "run", "key": trial.key, "trial": asdict(trial), "test_accuracy": 0.25, "seconds": {}}
        record["images"] = {"train": 7}
        with (out / "runs.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        return 0

    monkeypatch.setattr(paper, "_run", run)
    return lambda item: None


@pytest.mark.usefixtures("finished")
def test_ours_beside_the_papers(paper: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert paper.main(["table1", "--arch", "resnet50", "test_vit", "--ghn", "file:a-b.pt", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("architecture"))
    assert "PAPER: CIFAR-10" in lines[header]
    rows = {tuple(re.split(r" {2,}", line)[:2]): re.split(r" {2,}", line)[2:] for line in lines[header + 1 :]}
    assert rows["resnet50", "file:a-b.pt-orth"] == ["25.0", "digits, 7 labels, 1 seeds", "65.6 ± 0.2"]
    assert rows["resnet50", "pretrained"][-1] == "88.7 ± 0.2"
    assert rows["test_vit", "rand"][-1] == "-"
    assert len(rows) == 10


@pytest.mark.usefixtures("finished")
def test_ablations_beside_the_papers(paper: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert paper.main(["ablations", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for init, theirs in (("ghn2-orth?beta=0", "65.0"), ("ghn2-orth?orth=0", "61.4"), ("orth?layer=37", "60.2")):
        assert re.search(rf"{re.escape(init)} .* {theirs} ± ", out)


def test_figure2_at_toy_size(paper: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert paper.main(["figure2", "--arch", "test_resnet", "--inits", "rand,orth", "--out", str(tmp_path)]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"figure2_test_resnet.svg", "figure2_test_resnet.json"}


def test_accuracies_become_the_colours_of_figure5(
    paper: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluated(command: list[str]) -> int:
        print(json.dumps({"scores": [{"name": "test 0", "predicted": 0.5}, {"name": "deep 1", "predicted": 0.25}]}))
        return 0

    monkeypatch.setattr(paper, "timm_ghn_init", evaluated)
    assert paper.main(["accuracies", "--out", str(tmp_path)]) == 0
    rows = (tmp_path / "accuracies.csv").read_text().splitlines()
    assert rows == ["name,accuracy with predicted parameters", "test 0,0.5", "deep 1,0.25"]
    assert paper.main(["figure5", "--dry-run", "--out", str(tmp_path)]) == 0
    assert "--values" in capsys.readouterr().out
