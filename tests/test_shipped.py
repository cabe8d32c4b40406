"""The GHN that ships: small, documented, worth something, and what `ghn` falls back to without a network."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open

from timm_ghn_init import load_ghn
from timm_ghn_init.checkpoints import load as checkpoints
from timm_ghn_init.cli import main
from timm_ghn_init.lab.images.batches import open_images
from timm_ghn_init.lab.training import evaluate as evaluation
from timm_ghn_init.sources import KNOWN, SHIPPED

FILE = KNOWN[SHIPPED].local_path
IMAGES = Path(__file__).parent / "fashion_mnist"
PAGE = Path(__file__).parents[1] / "benchmarks" / "results" / "shipped-ghn.md"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A new machine without a network."""
    monkeypatch.setenv("TIMM_GHN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TIMM_GHN_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("TIMM_GHN_DEFAULT", raising=False)
    monkeypatch.setattr(checkpoints, "_failed", {})


@pytest.fixture(scope="module")
def metadata() -> dict[str, str]:
    assert FILE is not None
    with safe_open(FILE, "pt") as file:
        return file.metadata()


def test_it_is_a_small_ghn2(metadata: dict[str, str]) -> None:
    assert FILE is not None and FILE.stat().st_size < 10e6
    ghn = load_ghn(SHIPPED)
    assert ghn.dialect == "ghn2" and ghn.config["hid"] == 32 and ghn.config["ve"]
    assert metadata["license"] == "apache-2.0"
    assert " train-ghn " in metadata["command"]
    training = json.loads(metadata["training"])
    assert training["data"] == "fashion-mnist" and ghn.num_classes == 10
    assert not any(part.startswith(("/", "~")) for part in metadata["command"].split())  # no path of a machine
    last = int(metadata["log"].splitlines()[-1].split(",")[0])  # the log has a line for every 50 steps
    assert abs(last - training["step"]) < 50


def test_the_page_tells_what_the_file_holds(metadata: dict[str, str]) -> None:
    scores = [evaluation.Score(**s) for s in json.loads(metadata["evaluation"])]
    text = PAGE.read_text()
    for name, n, predicted in evaluation.summary(scores):
        assert f"| {name} | {n} | {predicted:.3f} |" in text
    assert metadata["command"] in text


def test_it_is_worth_what_its_metadata_say(monkeypatch: pytest.MonkeyPatch, metadata: dict[str, str]) -> None:
    """Some of the recorded accuracies, measured again on fewer images."""
    monkeypatch.setattr(evaluation, "BATCHES", 1)
    ghn = load_ghn(SHIPPED)
    scores = evaluation.evaluate(ghn, open_images("fashion-mnist", folder=IMAGES), networks=14, timm_models=())
    recorded = {s["name"]: s["predicted"] for s in json.loads(metadata["evaluation"])}
    ours = [s for s in scores if s.name.startswith("test ")]
    assert np.mean([s.predicted for s in ours]) == pytest.approx(np.mean([recorded[s.name] for s in ours]), abs=0.04)
    assert np.mean([s.predicted for s in ours]) > 0.25  # chance is 0.1


@pytest.mark.usefixtures("offline")
def test_ghn_falls_back_to_it_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "timm_ghn_init"):
        torch.manual_seed(0)
        model = timm.create_model("resnet18", pretrained="ghn-orth")
        torch.manual_seed(0)
        again = timm.create_model("resnet18", pretrained="ghn-orth")
    assert [r.message.count(SHIPPED) for r in caplog.records] == [1]
    assert model.pretrained_cfg["source"] == f"{SHIPPED}-orth"
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
        assert a.isfinite().all(), name


@pytest.mark.usefixtures("offline")
def test_predict_without_a_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "resnet18.safetensors"
    assert main(["predict", "resnet18", "--source", "ghn-orth", "-o", str(out)]) == 0
    assert SHIPPED in capsys.readouterr().err
    loaded = timm.create_model("resnet18", checkpoint_path=str(out))
    assert all(p.isfinite().all() for p in loaded.parameters())
