"""Signals before any training: what is measured, and that each fault that is built in is found where it is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import timm
import torch
from torch import nn

from timm_ghn_init.cli import main
from timm_ghn_init.lab.analysis import signals
from timm_ghn_init.lab.analysis.signal import follow, verdict
from timm_ghn_init.lab.images.datasets import some_images
from timm_ghn_init.recipe.postprocessing import list_layers

DEPTH, WIDTH = 12, 64


def chain(gain: float, act: Callable[[], nn.Module] = nn.Identity, bias: float = 0.0) -> nn.Module:
    """Blocks of a linear layer, each of which changes the size of what it is given by a factor, and a classifier."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(WIDTH, WIDTH), act()) for _ in range(DEPTH)]
    model = nn.Sequential(nn.Flatten(), *blocks, nn.Linear(WIDTH, 10))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.orthogonal_(module.weight, gain)
            nn.init.constant_(module.bias, bias)
    return model


def noise(n: int = 32) -> torch.Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def said(model: nn.Module) -> str:
    return verdict(follow(model, noise()), [name for name, _ in list_layers(model)])


def test_numbers_are_those_of_the_layers() -> None:
    model = chain(0.5)
    row = follow(model, noise())
    expected = [0.5 ** (i + 1) for i in range(DEPTH)]
    assert row["activation"][:DEPTH] == pytest.approx(expected, rel=0.05)
    ratios = [after / before for before, after in zip(row["gradient"], row["gradient"][1:DEPTH], strict=False)]
    assert ratios == pytest.approx([2.0] * (DEPTH - 1), rel=0.01)
    weight = model[1][0].weight
    assert weight.grad is not None
    assert row["weight_gradient"][0] == pytest.approx((weight.grad.norm() / weight.norm()).item())
    assert row["dead"] == [None] * (DEPTH + 1)
    assert row["between"] > 0
    assert row["logits"] > 0


def test_sound_signals_are_called_sound() -> None:
    assert said(chain(1.0)) == (
        "activations end 1 times as large as they began, gradients end 1 times as large as they began"
    )


def test_what_vanishes_and_explodes_is_found_at_its_place() -> None:
    """To within two layers, which count as one place: 0.3 ** 6 and 4 ** 5 are beyond a thousandfold."""
    assert said(chain(0.3)) == "activations vanish from 9.0 on; gradients vanish from 5.0 back to the input"
    assert said(chain(4.0)) == "activations explode from 6.0 on; gradients explode from 8.0 back to the input"
    broken = chain(1.0)
    nn.init.constant_(broken[3][0].weight, float("nan"))
    assert "activations are not finite from 3.0 on" in said(broken)


def test_dead_units_are_counted_however_the_activation_is_called() -> None:
    class Functional(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.relu(x)

    for act in (nn.ReLU, Functional, lambda: nn.ReLU(inplace=True)):
        model = chain(1.0, act)
        with torch.no_grad():
            model[2][0].bias[: WIDTH * 3 // 4] = -100.0
            model[3][0].bias[:] = 1.0  # so that a quarter of a layer is enough for the next
        dead = follow(model, noise())["dead"][1]
        assert dead == pytest.approx(0.75, abs=0.05)  # a few of the others may never be reached
        assert f"{dead:.0%} of the units behind 2.0 are dead" in said(model)
    convolution = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    with torch.no_grad():
        convolution[0].bias[0] = -100.0
    assert follow(convolution, noise())["dead"][0] == 0.25


def test_logits_that_do_not_depend_on_the_image() -> None:
    model = chain(1.0)
    with torch.no_grad():
        model[-1].weight *= 1e-3
        model[-1].bias.normal_()
    assert "logits hardly depend on the image" in said(model)


def test_branches_that_begin_at_zero_are_no_fault() -> None:
    """timm's ResNets begin with blocks that add nothing, so their insides get no gradient."""
    model = timm.create_model("test_resnet")
    nn.init.zeros_(model.layer1[0].bn2.weight)
    row = follow(model, torch.randn(2, 3, 64, 64))
    assert 0 in row["gradient"]
    assert "vanish" not in verdict(row, [name for name, _ in list_layers(model)])


def test_networks_without_logits() -> None:
    model = timm.create_model("test_resnet", features_only=True)
    row = follow(model, torch.randn(2, 3, 64, 64))
    assert row["logits"] is None
    assert all(v is not None for v in row["gradient"])


def test_sources_are_compared_and_nothing_else_changes() -> None:
    state = torch.random.get_rng_state()
    data = signals(
        lambda pretrained: timm.create_model("test_resnet"), ["rand", "ghn2-fashion", "timm"], torch.randn(2, 3, 64, 64)
    )
    assert [row["init"] for row in data["inits"]] == ["rand", "ghn2-fashion", "timm"]
    assert all(len(row["activation"]) == len(data["layers"]) for row in data["inits"])
    json.dumps(data, allow_nan=False)
    torch.random.set_rng_state(state)


@pytest.mark.parametrize("data", ["noise", "folder"])
def test_command(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    if data == "folder":
        image = pytest.importorskip("PIL.Image")
        for name in ("a", "b"):
            (tmp_path / "images" / "test" / name).mkdir(parents=True)
            (tmp_path / "images" / "train" / name).mkdir(parents=True)
            for part in ("train", "test"):
                image.new("RGB", (20, 20), (200, 10, 10)).save(tmp_path / "images" / part / name / "1.png")
        data = str(tmp_path / "images")
    argv = [
        "analyze",
        "signal",
        "test_resnet",
        *["--source", "rand", "orth", "--img-size", "64", "--batch-size", "2", "-q"],
    ]
    assert main([*argv, "--data", data, "-o", str(tmp_path / "s.svg")]) == 0
    out = capsys.readouterr().out
    assert "rand" in out
    saved = json.loads((tmp_path / "s.json").read_text())
    assert saved["images"] == [2, 3, 64, 64]
    texts = {t.text for t in ElementTree.parse(tmp_path / "s.svg").iter("{http://www.w3.org/2000/svg}text")}
    assert {"rand", "orth", "Dead units", "Gradient std"} <= texts


def test_sources_that_cannot_be_had_are_said_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from timm_ghn_init.checkpoints.formats import CheckpointError
    from timm_ghn_init.lab.analysis import inits

    def load(source: Any) -> None:
        raise CheckpointError("no network")

    monkeypatch.setattr(inits, "load_ghn", load)
    argv = ["analyze", "correlations", "test_resnet", "-o", str(tmp_path / "c.json"), "--source"]
    assert main([*argv, "rand", "ghn3-t", "orth"]) == 1
    err = capsys.readouterr().err
    assert "warning: ghn3-t is left out: no network\n" in err
    assert err.index("left out") < err.index("initialised by rand")
    assert [row["init"] for row in json.loads((tmp_path / "c.json").read_text())["inits"]] == ["rand", "orth"]
    assert main([*argv, "ghn3-t"]) == 2
    assert "no network" in capsys.readouterr().err


def test_layers_that_never_run_as_modules() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(64, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x.flatten(1), self.a.weight)

    with pytest.raises(ValueError, match="Functional: none of its 1 layers was called as a module"):
        follow(Functional(), noise())


def test_no_more_images_than_there_are() -> None:
    pytest.importorskip("sklearn")
    assert len(some_images("digits", 900, 8)) == 797
