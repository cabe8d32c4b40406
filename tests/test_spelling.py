"""The graph is a property of the architecture, not of how its code is spelled: timm's and torchvision's agree."""

from collections import Counter

import numpy as np
import pytest
import timm
import torch
from timm_models import on_meta

from timm_ghn_init.ghn import GHN
from timm_ghn_init.graph import Graph, trace

models = pytest.importorskip("torchvision.models")

# timm's name -> torchvision's, where both are the same architecture ...
PAIRS = {
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "resnext50_32x4d": "resnext50_32x4d",
    "wide_resnet50_2": "wide_resnet50_2",
    "densenet121": "densenet121",
    "inception_v3": "inception_v3",
    "mobilenetv2_100": "mobilenet_v2",
    "mobilenetv3_large_100": "mobilenet_v3_large",
    "mnasnet_100": "mnasnet1_0",
    "efficientnet_b0": "efficientnet_b0",
    "tf_efficientnetv2_s": "efficientnet_v2_s",
    "regnetx_008": "regnet_x_800mf",
    "regnety_008_tv": "regnet_y_800mf",
    "convnext_tiny": "convnext_tiny",
    "convnext_base": "convnext_base",
    "swin_tiny_patch4_window7_224": "swin_t",
    "vit_base_patch16_224": "vit_b_16",
    "swinv2_tiny_window8_256": "swin_v2_t",
}
# ... and whose parameters also come in the same order
SAME_ORDER = (
    "resnet18",
    "resnet50",
    "densenet121",
    "mobilenetv2_100",
    "mobilenetv3_large_100",
    "efficientnet_b0",
    "convnext_tiny",
    "convnext_base",
)


def build(name: str, library: str) -> torch.nn.Module:
    if library == "timm":
        return on_meta(name)
    kwargs = {"init_weights": False} if name == "inception_v3" else {}
    return models.get_model(name, weights=None, **kwargs)


def traced(ours: str) -> tuple[Graph, Graph]:
    size = timm.get_pretrained_cfg_value(ours, "input_size")
    return trace(build(ours, "timm"), size), trace(build(PAIRS[ours], "torchvision"), size)


def squeezed(shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """A linear layer may be spelled as a 1 x 1 convolution."""
    return tuple(s for s in shape or () if s > 1)


def order(graph: Graph) -> list[int]:
    """Nodes in an order that depends on the architecture only: by primitive, shape and all distances."""
    d = graph.distances(10_000)
    key = [
        (n.primitive, squeezed(n.shape), tuple(sorted(d[i])), tuple(sorted(d[:, i]))) for i, n in enumerate(graph.nodes)
    ]
    return sorted(range(len(key)), key=key.__getitem__)


@pytest.mark.parametrize("ours", PAIRS)
def test_same_graph(ours: str, seeded_ghn2: GHN) -> None:
    g, h = traced(ours)
    i, j = order(g), order(h)
    for a, b in zip(i, j, strict=True):
        assert g.nodes[a].primitive == h.nodes[b].primitive
        assert squeezed(g.nodes[a].shape) == squeezed(h.nodes[b].shape)
    assert len(g.edges) == len(h.edges)
    z, w = seeded_ghn2.embed(g)[i].numpy(), seeded_ghn2.embed(h)[j].numpy()
    assert np.abs(z - w).max() < 1e-4


@pytest.mark.parametrize("ours", SAME_ORDER)
def test_same_predictions(ours: str, seeded_ghn2: GHN) -> None:
    g, h = traced(ours)
    p, q = seeded_ghn2.predict(g), seeded_ghn2.predict(h)
    assert len(p) == len(q)
    for (a, x), (b, y) in zip(p.items(), q.items(), strict=True):
        assert x.numel() == y.numel(), (a, b)
        assert (x.flatten() - y.flatten()).abs().max() <= 1e-4 * y.abs().max(), (a, b)


def test_maxvit_differs_in_its_pooling_only() -> None:
    """torchvision's MaxViT-T pools 3 x 3 where timm's pools 2 x 2, and has no bias in its classifier."""
    g = trace(build("maxvit_tiny_tf_224", "timm"))
    h = trace(build("maxvit_t", "torchvision"))
    p, q = (Counter(n.primitive for n in x.nodes) for x in (g, h))
    assert p - q == Counter(bias=1)
    assert q - p == Counter(conv=1)
    assert p["msa"] == 22
    assert len(g.edges) == len(h.edges)
