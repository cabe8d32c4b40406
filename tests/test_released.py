"""The check of the released GHNs, against a server of ours: it finds agreement, disagreement and what is missing."""

import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import GHN2_CONFIG, seed_weights
from file_server import serving

from timm_ghn_init.checkpoints.load import git_blob_id
from timm_ghn_init.ghn import GHN
from timm_ghn_init.lab.images import datasets
from timm_ghn_init.sources import KNOWN

pytest.importorskip("torchvision")


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The benchmark, as if GHNs of ours were the released ones; `ghn1-cifar10` has other bytes than it should."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    module = importlib.import_module("released")
    file = tmp_path / "served.pt"
    ghn = seed_weights(GHN(**{**GHN2_CONFIG, "num_classes": 10}))
    torch.save({"state_dict": ghn.state_dict(), "config": ghn.config}, file)
    for name in ("ghn2", "ghn2-cifar10"):
        monkeypatch.setitem(KNOWN, name, replace(KNOWN[name], blob=git_blob_id(file)))
    monkeypatch.setenv("TIMM_GHN_HOME", str(tmp_path / "home"))
    with serving(file.read_bytes()) as server:
        monkeypatch.setenv("TIMM_GHN_ENDPOINT", server.url)
        yield module


def test_agreement_and_disagreement(released: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    norm = released._norm("ghn2", "squeezenet1_1")
    monkeypatch.setattr(released, "NORMS", {"ghn2": {"squeezenet1_1": norm + 0.009}})
    assert released.main(["--checks", "norms"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[-1] == "yes"
    monkeypatch.setattr(released, "NORMS", {"ghn2": {"squeezenet1_1": norm + 0.011}})
    assert released.main(["--checks", "norms"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].split()[-1] == "NO"


def test_what_cannot_be_had_is_no_agreement(released: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(released, "NORMS", {"ghn1-cifar10": {"squeezenet1_1": 1.0}})
    assert released.main(["--checks", "norms"]) == 1
    assert "not measured: ghn1-cifar10" in capsys.readouterr().out.splitlines()[-1]


def test_accuracy_of_predicted_parameters(released: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """All of the test images count, the last batch as well."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 32, 32), generator=draw).to(torch.uint8)
    part = datasets.Split(images, torch.arange(6))
    data = datasets.Dataset("cifar10", part, part, tuple("0123456789"), True)
    monkeypatch.setattr(datasets, "load", lambda *_: data)
    monkeypatch.setattr(released, "BATCH", 4)
    monkeypatch.setattr(released, "ACCURACIES", {"ghn2-cifar10": 100 * released._accuracy("ghn2-cifar10", "", "cpu")})
    assert released.main(["--checks", "cifar10"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("resnet50 by ghn2-cifar10, CIFAR-10 %") and line.endswith("yes")


def test_rows_of_the_papers_table_by_their_names(released: Any) -> None:
    inits = ("rand", "orth", "ghn2", "ghn2-orth?layer=37", "pretrained")
    assert [released._title(init) for init in inits] == list(released.NUMBERS["table1"]["resnet50"])
