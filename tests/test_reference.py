"""Live against the reference packages, on models that the recorded parity data do not cover. Skipped without them."""

import contextlib
import io
from typing import Any

import pytest
from test_parity import build
from torch import nn

from timm_ghn_init.ghn import GHN
from timm_ghn_init.graph import trace

pytestmark = pytest.mark.reference

GHN2_MODELS = [
    "resnet34",
    "wide_resnet50_2",
    "resnext50_32x4d",
    "regnet_x_400mf",
    "vgg13",
    "densenet169",
    "convnext_small",
]
GHN3_MODELS = ["resnet34", "regnet_y_400mf", "shufflenet_v2_x1_0", "mnasnet1_0", "swin_s", "convnext_small"]


def reference(package: str, module: str) -> Any:
    return pytest.importorskip(module, reason=f"{package} is not installed, see requirements-reference.txt")


def nan_filled(name: str) -> nn.Module:
    model = build_real(name).eval()
    for p in model.parameters():
        p.data.fill_(float("nan"))
    return model


def build_real(name: str) -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    return models.get_model(name, weights=None)


def compare(ghn: GHN, name: str, model: nn.Module) -> None:
    """All that the reference has predicted into `model`, against ours."""
    theirs = {n: p.detach() for n, p in model.named_parameters() if not p.isnan().any()}
    ours = ghn.predict(trace(build(name) if "regnet" not in name else build_real(name), 224, ghn.dialect))
    assert ours.keys() == theirs.keys()
    for n, expected in theirs.items():
        assert (ours[n] - expected).abs().max() <= 1e-4 * expected.abs().max(), n


@pytest.mark.parametrize("name", GHN2_MODELS)
def test_ghn2(name: str, seeded_ghn2: GHN) -> None:
    peer = reference("ppuda", "ppuda.ghn.nn").GHN(**seeded_ghn2.config).eval()
    peer.load_state_dict(seeded_ghn2.state_dict())
    model = nan_filled(name)
    with contextlib.redirect_stdout(io.StringIO()):
        peer(model, bn_train=False)
    compare(seeded_ghn2, name, model)


@pytest.mark.parametrize("name", GHN3_MODELS)
def test_ghn3(name: str, seeded_ghn3: GHN) -> None:
    config = {k: v for k, v in seeded_ghn3.config.items() if k not in ("hypernet", "decoder")}
    peer = reference("ghn3", "ghn3.nn").GHN3(**config, debug_level=0).eval()
    peer.load_state_dict(seeded_ghn3.state_dict())
    model = nan_filled(name)
    with contextlib.redirect_stdout(io.StringIO()):
        peer(model)
    compare(seeded_ghn3, name, model)
