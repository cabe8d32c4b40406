"""Weights that are computed from other tensors: the layer computes with the prediction."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from timm_ghn_init import InitReport, init_model, postprocess
from timm_ghn_init.ghn import GHN
from timm_ghn_init.recipe.postprocessing import list_layers

Wrap = Callable[[nn.Module], nn.Module]
LAYERS = (0, 2, 4, 7, 9)


class LowRank(nn.Module):
    """An adapter whose second factor is zero: it adds nothing yet."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(4, weight[0].numel()))
        self.b = nn.Parameter(torch.zeros(len(weight), 4))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.b @ self.a).view(weight.shape)


class Scaled(nn.Module):
    """A user's own, with an inverse."""

    def forward(self, weight: Tensor) -> Tensor:
        return 4 * weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / 4


def low_rank(layer: nn.Module) -> nn.Module:
    assert isinstance(layer.weight, Tensor)
    return parametrize.register_parametrization(layer, "weight", LowRank(layer.weight))


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


EXACT: dict[str, Wrap] = {
    "weight norm": parametrizations.weight_norm,
    "weight norm of columns": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "weight norm as a hook": old_weight_norm,
    "scaled": lambda layer: parametrize.register_parametrization(layer, "weight", Scaled()),
    "scaled twice": lambda layer: EXACT["scaled"](EXACT["scaled"](layer)),
}
SPECTRAL: dict[str, Wrap] = {
    "spectral norm": parametrizations.spectral_norm,
    "spectral norm as a hook": nn.utils.spectral_norm,
    "spectral norm of weight norm": lambda layer: parametrizations.spectral_norm(parametrizations.weight_norm(layer)),
}


def network(wrap: Wrap = lambda layer: layer) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 12),
        nn.ReLU(),
        nn.Linear(12, 10),
    )
    for i in LAYERS:
        model[i] = wrap(model[i])
    return model.eval()


def initialised(wrap: Wrap, source: str, ghn: GHN) -> tuple[nn.Sequential, InitReport]:
    """A model; what its report says is held against the bits before and after."""
    model = network(wrap)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    report = init_model(model, source, ghn=ghn, input_size=24)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(report.predicted) == before.keys() - set(report.skipped)
    assert set(report.postprocessed) <= changed
    return model, report


@pytest.mark.parametrize("source", ["ghn2", "ghn2-orth?layer=1", "ghn2-orth"])
@pytest.mark.parametrize("kind", EXACT)
def test_the_weight_is_that_of_the_plain_model(kind: str, source: str, seeded_ghn2: GHN) -> None:
    plain, report = initialised(lambda layer: layer, source, seeded_ghn2)
    model, same = initialised(EXACT[kind], source, seeded_ghn2)
    for i in LAYERS[:-1]:
        torch.testing.assert_close(model[i].weight, plain[i].weight, rtol=0, atol=1e-6)
    assert (report.layer, len(report.postprocessed)) == (same.layer, len(same.postprocessed))
    x = torch.randn(2, 3, 24, 24)
    torch.testing.assert_close(model[:-1](x), plain[:-1](x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("source", ["ghn2", "ghn2-orth?layer=1"])
@pytest.mark.parametrize("kind", SPECTRAL)
def test_the_singular_vectors_are_those_of_the_new_weight(kind: str, source: str, seeded_ghn2: GHN) -> None:
    plain, _ = initialised(lambda layer: layer, source, seeded_ghn2)
    model, _ = initialised(SPECTRAL[kind], source, seeded_ghn2)
    for i in LAYERS[:-1]:
        matrix = plain[i].weight.detach()
        matrix = (matrix.transpose(0, 1) if i == 4 else matrix).flatten(1)
        expected = plain[i].weight / torch.linalg.matrix_norm(matrix, 2)
        torch.testing.assert_close(model[i].weight, expected, rtol=0, atol=1e-5)


def test_an_adapter_adds_nothing_still(seeded_ghn2: GHN, caplog: pytest.LogCaptureFixture) -> None:
    plain, _ = initialised(lambda layer: layer, "ghn2", seeded_ghn2)
    model, report = initialised(low_rank, "ghn2-orth?layer=1", seeded_ghn2)
    for i in LAYERS[:-1]:
        torch.testing.assert_close(model[i].weight, plain[i].weight)
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith(".b"))
    assert report.postprocessed == ()
    assert "0.parametrizations.weight.original" in caplog.text and "right_inverse" in caplog.text


@pytest.mark.parametrize("kind", [*EXACT, *SPECTRAL])
def test_layers_are_numbered_like_plain_ones(kind: str) -> None:
    model = network({**EXACT, **SPECTRAL}[kind])
    layers = list_layers(model)
    assert [module for _, module in layers] == [model[i] for i in LAYERS]
    assert {name for name, _ in layers} <= {name for name, _ in model.named_parameters()}


def test_post_processing_alone_takes_the_weight_as_it_is() -> None:
    plain, model = network(), network(parametrizations.weight_norm)
    postprocess(plain, layer=2)
    done = postprocess(model, layer=2)
    assert [result.name for result in done] == [f"{i}.parametrizations.weight.original1" for i in (2, 4, 7)]
    for i in LAYERS:
        torch.testing.assert_close(model[i].weight, plain[i].weight, rtol=0, atol=1e-6)


def test_nothing_is_kept(seeded_ghn2: GHN, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models with the same parameters may need other values in them."""
    monkeypatch.setenv("TIMM_GHN_HOME", str(tmp_path))
    for kind in ("scaled", "scaled twice"):
        model = network(EXACT[kind])
        report = init_model(model, "ghn2-orth", ghn=seeded_ghn2, input_size=24, cache=True)
        assert (report.cached, report.key) == (False, "")
