"""RAND and ORTH: what is drawn, what is left alone, and the door they come through."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from timm_ghn_init import GHN, init_model
from timm_ghn_init.cli import main
from timm_ghn_init.recipe.postprocessing import list_layers


def as_matrix(weight: torch.Tensor) -> torch.Tensor:
    """The tall matrix of Section 3."""
    flat = weight.detach().flatten(1)
    return flat.T if flat.shape[0] < flat.shape[1] else flat


def is_orthonormal(weight: torch.Tensor) -> bool:
    q = as_matrix(weight)
    return torch.allclose(q.T @ q, torch.eye(q.shape[1]), atol=1e-5)


def test_rand_is_he_initialisation() -> None:
    model = timm.create_model("resnet18", pretrained="rand")
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            expected = math.sqrt(2 / (module.out_channels * math.prod(module.kernel_size)))
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05), name
            assert abs(module.weight.mean().item()) < expected / 10
        if isinstance(module, nn.BatchNorm2d):  # timm starts the last one of each block at 0
            assert torch.equal(module.weight, torch.ones_like(module.weight)), name
            assert not module.bias.any(), name


def test_rand_is_normal() -> None:
    model = nn.Sequential(nn.Conv2d(64, 100, 3), nn.Linear(4, 4))
    init_model(model, "rand")
    drawn = model[0].weight.detach().abs() / math.sqrt(2 / 900)
    assert [(drawn < n).float().mean().item() for n in (1, 2)] == pytest.approx([0.6827, 0.9545], abs=0.01)


def test_fan_out_of_grouped_convolutions_and_biases() -> None:
    model = nn.Sequential(nn.Conv2d(64, 64, 7, groups=64), nn.Flatten(), nn.Linear(64, 500), nn.Linear(500, 5))
    last = model[3].bias.clone()
    init_model(model, "rand")
    assert model[0].weight.std().item() == pytest.approx(math.sqrt(2 / 49), rel=0.05)
    assert model[2].weight.std().item() == pytest.approx(math.sqrt(2 / 500), rel=0.05)
    assert not model[0].bias.any() and not model[2].bias.any()
    assert torch.equal(model[3].bias, last)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit"])
def test_orth_is_orthonormal_in_every_layer_but_the_last(name: str) -> None:
    plain = timm.create_model(name)
    model = timm.create_model(name, pretrained="orth")
    layers = list_layers(model)
    assert all(is_orthonormal(module.weight) for _, module in layers[:-1])
    torch.testing.assert_close(layers[-1][1].weight.std(), plain.get_parameter(layers[-1][0]).std(), rtol=0.1, atol=0)


class Equalised(nn.Module):
    """A layer that multiplies its weight, its input or its output by a constant."""

    def __init__(self, c: int, k: int, place: str) -> None:
        super().__init__()
        self.weight, self.place = nn.Parameter(torch.randn(k, c, 3, 3)), place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        by = {"weight": 1.0, "input": 1.0, "output": 1.0, self.place: 0.25}
        return nn.functional.conv2d(x * by["input"], self.weight * by["weight"], padding=1) * by["output"]


@pytest.mark.parametrize("source", ["rand", "orth", "rand+orth?only=3.*"])
@pytest.mark.parametrize("place", ["weight", "input", "output"])
def test_equalised_learning_rate(source: str, place: str) -> None:
    """The layer computes with the baseline's values."""

    def net(conv: Callable[..., nn.Module]) -> nn.Module:
        body = [nn.Conv2d(3, 8, 3), conv(8, 16), nn.ReLU(), conv(16, 24)]
        return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5))

    plain = net(lambda c, k: nn.Conv2d(c, k, 3, padding=1, bias=False))
    scaled = net(lambda c, k: Equalised(c, k, place))
    for model in (plain, scaled):
        init_model(model, source, input_size=8, seed=4)
    assert torch.equal(scaled[0].weight, plain[0].weight)
    assert all(torch.equal(scaled[i].weight / 4, plain[i].weight) for i in (1, 3))


def test_orth_is_equation_2_applied_to_rand() -> None:
    model = timm.create_model("test_convnext", pretrained="orth?seed=5")
    drawn = timm.create_model("test_convnext", pretrained="rand?seed=5")
    for name, module in list_layers(model)[:-1]:
        q, r = torch.linalg.qr(as_matrix(drawn.get_parameter(name)))
        assert torch.allclose(as_matrix(module.weight), q * r.diagonal().sign(), atol=1e-4), name


def test_orth_from_a_layer_on() -> None:
    model = timm.create_model("test_resnet", pretrained="orth?layer=8")
    whole, drawn = (timm.create_model("test_resnet", pretrained=source) for source in ("orth", "rand"))
    for number, (name, module) in enumerate(list_layers(model)[:-1], start=1):
        expected = (drawn if number < 8 else whole).get_parameter(name)
        assert torch.equal(module.weight, expected), name


def test_three_spellings_agree_and_the_config_says_what_was_used() -> None:
    models = [
        timm.create_model("test_resnet", pretrained="orth?layer=3"),
        timm.create_model("test_resnet.orth?layer=3", pretrained=True),
        timm.create_model("test_resnet", pretrained=True, pretrained_cfg="orth?layer=3"),
    ]
    config = models[0].pretrained_cfg
    assert config["source"] == "orth?layer=3"
    assert config["paper_ids"] == "arXiv:1312.6120"
    assert "no GHN" in config["description"]
    assert timm.get_pretrained_cfg("test_resnet.rand").tag == "rand"
    weights = [list(model.state_dict().items())[:-2] for model in models]  # but for the classifier, which timm draws
    for others in weights[1:]:
        assert all(torch.equal(x, y) for (_, x), (_, y) in zip(weights[0], others, strict=True))


def test_values_depend_on_the_seed_and_on_nothing_else() -> None:
    def weights(source: str, threads: int = 1, **options: int) -> torch.Tensor:
        model = timm.create_model("test_resnet")
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            init_model(model, source, **options)
        finally:
            torch.set_num_threads(before)
        return nn.utils.parameters_to_vector([m.weight for _, m in list_layers(model)[:-1]])

    first = weights("orth")
    assert torch.equal(first, weights("orth", threads=3))
    assert torch.equal(first, weights("orth?seed=0"))
    assert not torch.equal(first, weights("orth?seed=1"))
    assert torch.equal(weights("orth", seed=1), weights("orth?seed=1"))
    assert torch.equal(weights("orth?seed=1", seed=2), weights("orth?seed=2"))


def test_what_is_left_and_the_report() -> None:
    model = timm.create_model("test_convnext", num_classes=10).bfloat16()
    gamma, head = model.stages[0].blocks[0].gamma.clone(), model.head.fc.weight.clone()
    state, identity = torch.get_rng_state(), [id(p) for p in model.parameters()]
    report = init_model(model, "orth?layer=3", seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert [id(p) for p in model.parameters()] == identity
    assert torch.equal(model.stages[0].blocks[0].gamma, gamma)
    assert torch.equal(model.head.fc.weight, head)
    assert report.source == "orth?layer=3"
    assert (report.layer, report.seed, report.nodes) == (3, 4, 0)
    assert len(report.postprocessed) == len(list_layers(model)) - 3
    assert set(report.predicted) | set(report.skipped) == {n for n, _ in model.named_parameters()}
    assert not set(report.predicted) & set(report.skipped)
    assert report.predicted["stem.0.weight"] == "weight"
    assert report.skipped["head.fc.weight"] == "last layer"
    assert json.loads(json.dumps(report.to_dict()))["coverage"] == report.coverage > 0.9
    assert "initialised by orth?layer=3" in str(report)
    assert "orthogonal: " in str(report) and "predicted" not in str(report)


@pytest.mark.parametrize("source", ["rand", "orth"])
@pytest.mark.parametrize(
    "wrap", [torch.nn.utils.weight_norm, torch.nn.utils.parametrizations.weight_norm, torch.nn.utils.spectral_norm]
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_a_weight_that_is_computed_from_other_tensors_is_the_one_that_is_drawn(wrap: Any, source: str) -> None:
    def build(wrap: Any) -> nn.Sequential:
        return nn.Sequential(wrap(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2))

    plain, model = build(lambda layer: layer), build(wrap)
    init_model(plain, source)
    report = init_model(model, source)
    expected = plain[0].weight
    if wrap is torch.nn.utils.spectral_norm:
        expected = expected / torch.linalg.matrix_norm(expected.flatten(1), 2)
    torch.testing.assert_close(model[0].weight, expected, atol=1e-5, rtol=0)
    assert not model[0].bias.any()
    last = {"3.weight", "3.bias"}
    assert set(report.predicted) | last == {n for n, _ in model.named_parameters()}
    assert set(report.skipped) == last


def test_a_weight_shared_with_the_last_layer_stays() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[2].weight
    before = model[2].weight.clone()
    report = init_model(model, "rand")
    assert torch.equal(model[2].weight, before)
    assert "2.weight" not in report.predicted and "1.weight" not in report.predicted
    assert report.predicted["0.weight"] == "weight"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("orth?layer=99", r"layer=99 is not a layer of ResNet: give a whole number from 1 to \d+"),
        ("orth?beta=0", "orth has no key beta, only layer, seed"),
        ("rand?layer=2", "rand has no key layer, only seed"),
        ("rand-orth", "Did you mean orth"),
    ],
)
def test_what_cannot_be_is_an_error_before_anything_is_written(source: str, message: str) -> None:
    model = timm.create_model("test_resnet")
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=message):
        init_model(model, source)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_a_ghn_for_a_baseline_is_an_error(seeded_ghn2: GHN) -> None:
    with pytest.raises(ValueError, match="without a GHN"):
        init_model(timm.create_model("test_resnet"), "rand", ghn=seeded_ghn2)
    with pytest.raises(ValueError, match="no layer"):
        init_model(nn.BatchNorm2d(3), "orth")


@pytest.mark.parametrize("source", ["rand", "orth"])
def test_on_the_meta_device(source: str) -> None:
    """Memory for all, the source's values for its layers, and the model's own for the rest."""
    with torch.device("meta"):
        model = timm.create_model("test_vit")
    report = init_model(model, source, device="cpu")
    expected = timm.create_model("test_vit")
    init_model(expected, source)
    assert all(torch.equal(model.get_parameter(n), expected.get_parameter(n)) for n in report.predicted)
    assert not any(t.is_meta for t in model.state_dict().values())
    assert set(report.own) == {n for n, _ in model.named_parameters()} - set(report.predicted)
    assert not report.unset


def test_where_the_initialisations_of_torch_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some libraries switch `torch.nn.init` off while they build a model."""
    expected, model = timm.create_model("test_resnet"), timm.create_model("test_resnet")
    init_model(expected, "rand")
    for name in [n for n in vars(nn.init) if n.endswith("_") and not n.startswith("_")]:
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)
    report = init_model(model, "rand")
    assert all(torch.equal(model.get_parameter(n), expected.get_parameter(n)) for n in report.predicted)


def test_ghn_default_names_a_ghn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIMM_GHN_DEFAULT", "rand")
    with pytest.raises(ValueError, match="TIMM_GHN_DEFAULT=rand"):
        init_model(timm.create_model("test_resnet"), "ghn")


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors import safe_open

    output = tmp_path / "w.safetensors"
    assert main(["predict", "test_resnet", "--source", "orth?layer=2", "-o", str(output)]) == 0
    with safe_open(output, "pt") as file:
        provenance = json.loads(file.metadata()["timm_ghn_init"])
    assert provenance["ghn"] is None
    assert provenance["source"] == "orth?layer=2"
    capsys.readouterr()
    assert main(["list"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines() if line} > {"rand", "orth", "ghn2"}
    assert main(["inspect", "test_resnet", "--source", "rand"]) == 0
    assert "conv1.0.weight" in capsys.readouterr().out
    assert main(["fetch", "orth"]) == 2
    assert "nothing to fetch" in capsys.readouterr().err
