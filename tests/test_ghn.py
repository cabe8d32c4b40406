"""The hypernetworks on their own: released keys, gradients, decoding of every kind of parameter."""

import numpy as np
import pytest
import torch
from conftest import GHN2_CONFIG, GHN3_CONFIG, seed_weights
from torch import Tensor, nn

from timm_ghn_init.ghn import GHN
from timm_ghn_init.ghn.shape_encoder import ShapeEncoder
from timm_ghn_init.graph import Graph, Node, trace

GHN2_SHAPES = {
    "ln.weight": (32,),
    "ln.bias": (32,),
    "embed.weight": (15, 32),
    "shape_enc.embed_spatial.weight": (11, 8),
    "shape_enc.embed_channel.weight": (392, 8),
    "gnn.mlp.fc.0.weight": (16, 32),
    "gnn.mlp.fc.0.bias": (16,),
    "gnn.mlp.fc.2.weight": (32, 16),
    "gnn.mlp.fc.2.bias": (32,),
    "gnn.mlp_ve.fc.0.weight": (16, 32),
    "gnn.mlp_ve.fc.0.bias": (16,),
    "gnn.mlp_ve.fc.2.weight": (32, 16),
    "gnn.mlp_ve.fc.2.bias": (32,),
    "gnn.gru.weight_ih": (96, 32),
    "gnn.gru.weight_hh": (96, 32),
    "gnn.gru.bias_ih": (96,),
    "gnn.gru.bias_hh": (96,),
    "decoder.fc.0.weight": (32768, 32),
    "decoder.fc.0.bias": (32768,),
    "decoder.conv.0.weight": (256, 128, 1, 1),
    "decoder.conv.0.bias": (256,),
    "decoder.conv.2.weight": (4096, 256, 1, 1),
    "decoder.conv.2.bias": (4096,),
    "decoder.class_layer_predictor.1.weight": (1000, 64, 1, 1),
    "decoder.class_layer_predictor.1.bias": (1000,),
    "decoder_1d.fc.0.weight": (64, 32),
    "decoder_1d.fc.0.bias": (64,),
    "decoder_1d.fc.2.weight": (128, 64),
    "decoder_1d.fc.2.bias": (128,),
    "bias_class.1.weight": (1000, 64),
    "bias_class.1.bias": (1000,),
}


def shapes(ghn: GHN) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in ghn.state_dict().items()}


def test_released_keys_of_ghn2(seeded_ghn2: GHN) -> None:
    assert shapes(seeded_ghn2) == GHN2_SHAPES
    assert sum(p.numel() for p in seeded_ghn2.parameters()) == 2_319_720
    assert seeded_ghn2.config == GHN2_CONFIG


def test_released_keys_of_ghn3(seeded_ghn3: GHN) -> None:
    found = shapes(seeded_ghn3)
    assert found["gnn.0.centrality_embed_in.weight"] == (101, 64)
    assert found["gnn.0.input_dist_embed.weight"] == (1001, 64)
    assert found["gnn.0.attn.edge_embed.embed.weight"] == (257, 64)
    assert found["gnn.0.attn.proj_e.2.weight"] == (8, 64)
    assert found["gnn.2.attn.to_qkv.weight"] == (192, 64)
    assert found["gnn.2.ff.net.3.weight"] == (64, 256)
    assert found["decoder.conv.2.weight"] == (4096, 512)
    assert not [n for n in found if "edge_embed" in n and not n.startswith("gnn.0.")]
    assert sum(p.numel() for p in seeded_ghn3.parameters()) == 6_906_632


def test_cifar_vocabularies() -> None:
    assert len(ShapeEncoder(32, 10, (64, 64, 11, 11)).spatial) + 1 == 9
    assert shapes(GHN((64, 64, 11, 11), 10))["decoder.fc.0.weight"] == (4 * 32 * 121, 32)


@pytest.mark.parametrize(
    ("size", "entry"),
    [(2, 1), (4, 8), (7, 8), (12, 8), (20, 16), (44, 40), (72, 64), (73, 80), (4111, 4096), (9000, 8192)],
)
def test_channel_vocabulary(size: int, entry: int) -> None:
    encoder = ShapeEncoder(32, 1000, (64, 64, 16, 16))
    row = encoder.indices((Node("conv", "w", (size, 3, 1, 1)),))[0, 0]
    assert encoder.channels[row] == entry


@pytest.mark.parametrize(("size", "entry"), [(1, 1), (2, 3), (4, 3), (6, 5), (12, 11), (14, 14), (16, 16), (31, 16)])
def test_spatial_vocabulary(size: int, entry: int) -> None:
    encoder = ShapeEncoder(32, 1000, (64, 64, 16, 16))
    row = encoder.indices((Node("conv", "w", (8, 8, size, size)),))[0, 2]
    assert encoder.spatial[row] == entry


def test_nodes_without_a_shape_have_a_row_of_their_own() -> None:
    encoder = ShapeEncoder(32, 1000, (64, 64, 16, 16))
    index = encoder.indices((Node("sum", "", None),))[0]
    assert index.tolist() == [391, 391, 10, 10]


class Everything(nn.Module):
    """One parameter of every kind and awkward size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 100, 20, stride=20)  # a kernel larger than the decoder's 16
        self.wide = nn.Conv2d(100, 70, (1, 5), padding=(0, 2))
        self.norm = nn.BatchNorm2d(70)
        self.depthwise = nn.Conv2d(70, 70, 3, padding=1, groups=70)
        self.pos = nn.Parameter(torch.zeros(1, 20 * 20, 70))
        self.block = nn.Linear(70, 130)
        self.time = nn.Conv1d(130, 33, 3, padding=1)
        self.space = nn.Conv3d(33, 8, 3, padding=1)
        self.head = nn.Linear(8, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.norm(self.wide(self.stem(x))))
        x = self.block(x.flatten(2).transpose(1, 2) + self.pos)
        x = self.time(x.transpose(1, 2)).unflatten(2, (20, 20)).unsqueeze(2)
        return self.head(self.space(x).mean((2, 3, 4)))


@pytest.fixture(scope="module")
def everything() -> Graph:
    return trace(Everything(), 400)


@pytest.mark.parametrize("which", ["ghn2", "ghn3"])
def test_every_kind_of_parameter(which: str, seeded_ghn2: GHN, seeded_ghn3: GHN) -> None:
    ghn = {"ghn2": seeded_ghn2, "ghn3": seeded_ghn3}[which]
    graph = trace(Everything(), 400, ghn.dialect)
    assert not graph.skipped
    predicted = ghn.predict(graph)
    for name, p in Everything().named_parameters():
        assert predicted[name].shape == p.shape
        assert predicted[name].isfinite().all()
        assert predicted[name].std() > 0, name


def test_tiling(everything: Graph, seeded_ghn2: GHN) -> None:
    """p[k, c] = block[k mod 64, c mod 64]."""
    w = seeded_ghn2.predict(everything)["block.weight"]
    assert torch.equal(w[64:128, :64], w[:64, :64])
    assert torch.equal(w[128:, :64], w[:2, :64])
    assert torch.equal(w[:, 64:], w[:, :6])
    b = seeded_ghn2.predict(everything)["block.bias"]
    assert torch.equal(b[64:], b.repeat(2)[: 130 - 64])


def test_fan_in_counts_the_whole_tensor(everything: Graph, seeded_ghn2: GHN) -> None:
    unscaled = seed_weights(GHN(**{**GHN2_CONFIG, "weight_norm": False}))
    ours, raw = seeded_ghn2.predict(everything), unscaled.predict(everything)
    for name, beta, fan_in in [
        ("block.weight", 2, 70),
        ("wide.weight", 1, 500),  # wider than high
        ("depthwise.weight", 1, 9),  # one input channel
        ("time.weight", 2, 390),
        ("head.weight", 2, 8),
    ]:
        torch.testing.assert_close(ours[name], raw[name] * (beta / fan_in) ** 0.5)
    torch.testing.assert_close(ours["pos"], raw["pos"])  # a position embedding of 11 x 11 or more
    torch.testing.assert_close(ours["norm.weight"], 2 * torch.sigmoid(raw["norm.weight"] / 2))
    torch.testing.assert_close(ours["norm.bias"], torch.tanh(raw["norm.bias"] / 5))


def test_names(everything: Graph, seeded_ghn2: GHN) -> None:
    some = seeded_ghn2.predict(everything, ["block.bias", "norm.weight"])
    assert list(some) == ["block.bias", "norm.weight"]
    with pytest.raises(KeyError, match=r"block.gain.*no parameter of that name"):
        seeded_ghn2.predict(everything, ["block.gain"])


def test_dialects_do_not_mix(everything: Graph, seeded_ghn3: GHN) -> None:
    with pytest.raises(ValueError, match="ghn3"):
        seeded_ghn3.embed(everything)


@pytest.mark.parametrize(
    "config",
    [
        {"ve": True, "layernorm": True},
        {"ve": False},
        {"hypernet": "mlp"},
        {"decoder": "mlp", "max_shape": (16, 16, 3, 3)},
        {"hypernet": "graphormer", "hid": 64, "layernorm": True},
    ],
    ids=str,
)
def test_variants_and_their_gradients(config: dict[str, object]) -> None:
    """With gradients or without, the values are the same; and every part of the GHN takes part."""
    ghn = GHN(**{"max_shape": (64, 64, 11, 11), "num_classes": 10, "weight_norm": True, **config})
    seed_weights(ghn).requires_grad_(True)
    net = nn.Sequential(
        nn.Conv2d(3, 20, 3), nn.BatchNorm2d(20), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 10)
    )
    graph = trace(net, 32, ghn.dialect)
    z = ghn.embed(graph)
    with torch.no_grad():
        torch.testing.assert_close(ghn.embed(graph), z.detach(), rtol=1e-4, atol=1e-5)
    predicted = ghn.predict(graph)
    sum(p.square().sum() for p in predicted.values()).backward()
    unused = [n for n, p in ghn.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unused


def test_wrong_config() -> None:
    with pytest.raises(ValueError, match="hypernet"):
        GHN((64, 64, 16, 16), 10, hypernet="rnn")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="decoder"):
        GHN((64, 64, 16, 16), 10, decoder="linear")  # type: ignore[arg-type]


def test_order_of_nodes_does_not_matter(seeded_ghn2: GHN, seeded_ghn3: GHN) -> None:
    """Two branches in either order."""
    nodes = [("conv", (8, 3, 3, 3)), ("bn", (8,)), ("sep_conv", (8, 1, 5, 5))]
    one = Graph(
        (Node("input", "", None), *(Node(p, p, s) for p, s in nodes), Node("sum", "", None)),
        np.array([(0, 1), (1, 2), (0, 3), (2, 4), (3, 4)]),
        {},
        {},
    )
    order = [0, 3, 1, 2, 4]
    other = Graph(
        tuple(one.nodes[i] for i in order),
        np.array([(order.index(u), order.index(v)) for u, v in one.edges.tolist()]),
        {},
        {},
    )
    z, w = seeded_ghn2.embed(one), seeded_ghn2.embed(other)
    torch.testing.assert_close(z[order], w, rtol=1e-5, atol=1e-5)


def test_ghn3_config_is_that_of_the_parity_data(seeded_ghn3: GHN) -> None:
    assert seeded_ghn3.config == GHN3_CONFIG
    assert seeded_ghn3.dialect == "ghn3"
