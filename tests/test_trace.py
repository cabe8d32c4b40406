"""One rule of the tracer each: small hand-written modules and the exact graph that they must give, see `nets.py`."""

import dataclasses
import logging
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import SIZE, Make, Net, assert_graph, conv, linear, param, tokens
from scipy.sparse import csr_array
from scipy.sparse.csgraph import shortest_path
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from timm_ghn_init.ghn import GHN
from timm_ghn_init.graph import Graph, Node, TraceError, trace


def parametrized(cases: dict[str, tuple[Any, ...]]) -> Any:
    width = len(next(iter(cases.values())))
    return pytest.mark.parametrize(
        ["make", "chains", "extra"][:width], [pytest.param(*case, id=name) for name, case in cases.items()]
    )


# -- layers ----------------------------------------------------------------------------------------------------------


class Standardised(nn.Conv2d):
    """A weight-standardised convolution, written out."""

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) * torch.rsqrt(var + 1e-5), self.bias)


class StandardisedByBatchNorm(nn.Conv2d):
    """The same with the operator of a batch norm, and a learned gain."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.gain = param(self.out_channels, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight.reshape(1, len(self.weight), -1), None, None, self.gain.view(-1), None, True)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias)


class Experts(nn.Module):
    """A conditional convolution: the input mixes four kernels, and four biases, into one for each image."""

    kernel_size, groups, in_channels, out_channels = (3, 3), 1, 8, 5

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = param(4, 5 * 8 * 9), param(4, 5)

    def forward(self, x: Tensor, routing: Tensor) -> Tensor:
        b, c, h, w = x.shape
        weight = (routing @ self.weight).view(b * 5, 8, 3, 3)
        bias = (routing @ self.bias).view(b * 5)
        return F.conv2d(x.reshape(1, b * c, h, w), weight, bias, groups=b).view(b, 5, h - 2, w - 2)


def tied() -> nn.Module:
    first, second = linear(), linear()
    second.weight = first.weight
    return Net(lambda m, x: m.b(F.relu(m.a(tokens(x)))), a=first, b=second)


LAYER = "input > conv l.weight"
BIASED = "input > conv l.weight > bias l.bias"
LAYERS: dict[str, tuple[Make, str]] = {
    "conv": (lambda: Net(lambda m, x: m.l(x), l=conv(kernel=3, bias=True)), BIASED),
    "F.conv": (
        lambda: Net(lambda m, x: F.conv2d(x, m.w, m.b), w=param(5, 8, 3, 3), b=param(5)),
        "input > conv w > bias b",
    ),
    "conv1d": (lambda: Net(lambda m, x: m.l(x.flatten(2)), l=nn.Conv1d(8, 5, 3)), BIASED),
    "conv3d": (lambda: Net(lambda m, x: m.l(x[:, :, None]), l=nn.Conv3d(8, 5, (1, 3, 3))), BIASED),
    "transposed": (lambda: Net(lambda m, x: m.l(x), l=nn.ConvTranspose2d(8, 5, 3)), BIASED),
    "grouped": (lambda: Net(lambda m, x: m.l(x), l=conv(groups=2)), "input > sep_conv l.weight"),
    "depthwise": (lambda: Net(lambda m, x: m.l(x), l=conv(groups=8)), "input > sep_conv l.weight"),
    "grouped, dilated": (lambda: Net(lambda m, x: m.l(x), l=conv(groups=2, dilation=2)), "input > dil_conv l.weight"),
    "grouped, dilated one way": (
        lambda: Net(lambda m, x: m.l(x), l=conv(groups=2, dilation=(1, 2))),
        "input > sep_conv l.weight",
    ),
    "dilated": (lambda: Net(lambda m, x: m.l(x), l=conv(dilation=2)), LAYER),
    "linear on (B, C)": (lambda: Net(lambda m, x: m.l(x.flatten(1)), l=linear(128, 5, bias=True)), BIASED),
    "linear on (B, L, C)": (lambda: Net(lambda m, x: m.l(tokens(x)), l=linear(bias=True)), BIASED),
    "linear on (B, H, W, C)": (lambda: Net(lambda m, x: m.l(x.permute(0, 2, 3, 1)), l=linear(bias=True)), BIASED),
    "linear without bias": (lambda: Net(lambda m, x: m.l(tokens(x)), l=linear()), LAYER),
    "x @ w": (lambda: Net(lambda m, x: tokens(x) @ m.w, w=param(8, 5)), "input > conv w"),
    "einsum": (lambda: Net(lambda m, x: torch.einsum("bchw,oc->bohw", x, m.w), w=param(5, 8)), "input > conv w"),
    "token mixing": (lambda: Net(lambda m, x: m.w @ tokens(x), w=param(5, 16)), "input > conv w"),
    "bias added to linear": (
        lambda: Net(lambda m, x: m.l(tokens(x)) + m.b, l=linear(), b=param(8)),
        "input > conv l.weight > bias b",
    ),
    "bias added to conv": (
        lambda: Net(lambda m, x: m.b.view(1, -1, 1, 1) + m.l(x), l=conv(), b=param(8)),
        "input > conv l.weight > bias b",
    ),
    "bias added in place": (
        lambda: Net(lambda m, x: m.l(x).add_(m.b), l=conv(), b=param(1, 8, 1, 1)),
        "input > conv l.weight > bias b",
    ),
    "standardised": (lambda: Net(lambda m, x: m.l(x), l=Standardised(8, 5, 3)), BIASED),
    "standardised by batch norm": (lambda: Net(lambda m, x: m.l(x), l=StandardisedByBatchNorm(8, 5, 3)), BIASED),
    "weight norm": (
        lambda: Net(lambda m, x: m.l(tokens(x)), l=weight_norm(linear())),
        "input > conv l.parametrizations.weight.original1",
    ),
    "spectral norm": (
        lambda: Net(lambda m, x: m.l(x), l=spectral_norm(conv())),
        "input > conv l.parametrizations.weight.original",
    ),
    "called twice": (
        lambda: Net(lambda m, x: m.l(F.relu(m.l(tokens(x)))), l=linear(bias=True)),
        "input > conv l.weight > bias l.bias > conv l.weight#2 > bias l.bias#2",
    ),
    "tied": (tied, "input > conv a.weight > conv a.weight#2"),
    "mixed kernel sizes": (
        lambda: Net(lambda m, x: torch.cat((m.a(x[:, :4]), m.b(x[:, 4:])), 1), a=conv(4, 4), b=conv(4, 4, 3)),
        "input > conv a.weight > concat; input > conv b.weight > concat",
    ),
    "experts": (
        lambda: Net(lambda m, x: m.l(x, m.r(x.mean((2, 3))).sigmoid()), l=Experts(), r=linear(8, 4)),
        "input > glob_avg > conv r.weight > conv l.weight > bias l.bias; input > conv l.weight",
    ),
    "LSTM": (
        lambda: Net(lambda m, x: m.l(tokens(x))[0], l=nn.LSTM(8, 6, batch_first=True)),
        "input > conv l.weight_ih_l0 > bias l.bias_ih_l0 > conv l.weight_hh_l0 > bias l.bias_hh_l0",
    ),
    "LSTM, bidirectional": (
        lambda: Net(lambda m, x: m.l(tokens(x))[0], l=nn.LSTM(8, 6, batch_first=True, bidirectional=True, bias=False)),
        "input > conv l.weight_ih_l0 > conv l.weight_hh_l0 > concat;"
        "input > conv l.weight_ih_l0_reverse > conv l.weight_hh_l0_reverse > concat",
    ),
    "LSTM, projected": (
        lambda: Net(lambda m, x: m.l(tokens(x))[1][0], l=nn.LSTM(8, 6, proj_size=3, bias=False)),
        "input > conv l.weight_ih_l0 > conv l.weight_hh_l0 > conv l.weight_hr_l0",
    ),
    "GRU of two layers": (
        lambda: Net(lambda m, x: m.l(tokens(x))[0], l=nn.GRU(8, 6, 2, bias=False)),
        "input > conv l.weight_ih_l0 > conv l.weight_hh_l0 > conv l.weight_ih_l1 > conv l.weight_hh_l1",
    ),
    "LSTM cell": (
        lambda: Net(lambda m, x: m.l(x.mean((2, 3)))[0], l=nn.LSTMCell(8, 6, bias=False)),
        "input > glob_avg > conv l.weight_ih > sum; input > conv l.weight_hh > sum",
    ),
}


@parametrized(LAYERS)
def test_layers(make: Make, chains: str, seeded_ghn2: GHN) -> None:
    model = make()
    graph = trace(model, SIZE)
    assert_graph(graph, chains)
    parameters = dict(model.named_parameters())
    for name, predicted in seeded_ghn2.predict(graph).items():
        assert predicted.shape == parameters[name].shape
        assert predicted.isfinite().all()
        assert predicted.std() > 0, name


def test_experts_are_predicted_as_the_kernel_that_they_make(seeded_ghn2: GHN) -> None:
    graph = trace(Net(lambda m, x: m.l(x, m.r(x.mean((2, 3)))), l=Experts(), r=linear(8, 4)), SIZE)
    assert graph.targets["l.weight"].kernel == (5, 8, 3, 3)
    assert next(n.shape for n in graph.nodes if n.param == "l.weight") == (5, 8, 3, 3)
    assert next(n.shape for n in graph.nodes if n.param == "l.bias") == (5,)
    predicted = seeded_ghn2.predict(graph)
    for name in ("l.weight", "l.bias"):
        assert all(torch.equal(expert, predicted[name][0]) for expert in predicted[name])


def test_vectors_in_any_shape_are_the_same_vector(seeded_ghn2: GHN) -> None:
    def model(*shape: int) -> nn.Module:
        return Net(lambda m, x: m.l(x) + m.b.reshape(-1, 1, 1), l=conv(), b=param(*shape))

    flat, broadcast = trace(model(8), SIZE), trace(model(1, 8, 1, 1), SIZE)
    assert flat.nodes == broadcast.nodes
    a, b = seeded_ghn2.predict(flat)["b"], seeded_ghn2.predict(broadcast)["b"]
    assert torch.equal(a.view(1, 8, 1, 1), b)


def test_what_is_folded_into_a_weight_has_a_reason() -> None:
    graph = trace(Net(lambda m, x: m.l(x), l=StandardisedByBatchNorm(8, 5, 3)), SIZE)
    assert set(graph.skipped) == {"l.gain"}
    assert "folded into a weight" in graph.skipped["l.gain"]


def test_biases_joined_before_use_are_parts_of_one_node() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return F.linear(tokens(x), m.qkv.weight, torch.cat((m.q, torch.zeros(8, device=x.device), m.v)))

    graph = trace(Net(run, qkv=linear(8, 24), q=param(8), v=param(8)), SIZE)
    assert_graph(graph, "input > conv qkv.weight > bias q")
    assert graph.nodes[2] == Node("bias", "q", (24,))
    assert (graph.targets["q"].node, graph.targets["q"].offset) == (2, 0)
    assert (graph.targets["v"].node, graph.targets["v"].offset) == (2, 16)


def test_parts_are_cut_from_one_prediction(seeded_ghn2: GHN) -> None:
    def joined(m: Any, x: Tensor) -> Tensor:
        return F.linear(tokens(x), torch.cat((m.a, m.b)))

    parts = seeded_ghn2.predict(trace(Net(joined, a=param(16, 8), b=param(8, 8)), SIZE))
    whole = seeded_ghn2.predict(trace(Net(lambda m, x: F.linear(tokens(x), m.w), w=param(24, 8)), SIZE))["w"]
    assert torch.allclose(torch.cat((parts["a"], parts["b"])), whole)


# -- norms and pooling -----------------------------------------------------------------------------------------------


class HandWrittenRMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = param(8)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


def norm_of(function: Callable[..., Tensor], **parameters: Callable[[], Any]) -> Make:
    """A function of (the module, features), which normalises with parameters of any name, after a convolution."""
    return lambda: Net(
        lambda m, x: m.n(m.c(x)), c=conv(), n=Net(function, **{name: make() for name, make in parameters.items()})
    )


def centred(x: Tensor, dims: Any) -> Tensor:
    return (x - x.mean(dims, keepdim=True)) / (x.var(dims, keepdim=True) + 1e-6).sqrt()


def rms(x: Tensor) -> Tensor:
    return torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6)


def vector(*shape: int) -> Callable[[], nn.Parameter]:
    return lambda: param(*shape or (8, 1, 1))


def annotated(m: Any, x: Tensor) -> Tensor:
    """The scale multiplies before the division, and the deviation is taken of what is not centred yet."""
    return m.a_2 * (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-6) + m.b_2


def folded(m: Any, x: Tensor) -> Tensor:
    var, mean = torch.var_mean(x, 1, keepdim=True)
    scale = m.g / torch.sqrt(var + 1e-6)
    return x * scale + (m.b - mean * scale)


def by_einsum_of_squares(m: Any, x: Tensor) -> Tensor:
    return x / torch.einsum("bchw,bchw->bhw", x, x).sqrt()[:, None] * m.g


def in_groups(m: Any, x: Tensor) -> Tensor:
    return centred(x.reshape(x.shape[0], 2, -1), -1).view(x.shape) * m.g + m.b


def filter_response(m: Any, x: Tensor) -> Tensor:
    return torch.maximum(x * torch.rsqrt(x.square().mean((2, 3), keepdim=True)) * m.g + m.b, m.tau)


def evolved(m: Any, x: Tensor) -> Tensor:
    """EvoNorm S0."""
    deviation = x.view(x.shape[0], 2, -1).var(-1, keepdim=True).sqrt().expand(-1, -1, 64).reshape(x.shape)
    return x * torch.sigmoid(m.v * x) / deviation * m.g + m.b


def response(m: Any, x: Tensor) -> Tensor:
    size = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)
    return x + torch.addcmul(m.b, m.g, x * (size / size.mean(1, keepdim=True)))


class RunningStatistics(nn.Module):
    """A batch norm that is written out, as a shift and a scale of every channel or in four steps."""

    def __init__(self, fold: bool) -> None:
        super().__init__()
        self.fold, self.g, self.b = fold, param(8), param(8)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        if self.fold:
            scale = self.g * (self.var + 1e-5).rsqrt()
            return x * scale + (self.b - self.mean * scale)
        return (x - self.mean) / torch.sqrt(self.var + 1e-5) * self.g + self.b


class GRN(nn.Module):
    """Global response normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.beta = param(1, 1, 1, 8), param(1, 1, 1, 8)

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(p=2, dim=(1, 2), keepdim=True)
        return self.gamma * (x * size / (size.mean(-1, keepdim=True) + 1e-6)) + self.beta + x


def after_conv(function: Callable[[Tensor], Tensor]) -> Make:
    return lambda: Net(lambda m, x: function(m.c(x)), c=conv())


def normed(norm: Callable[[], nn.Module], channels_last: bool = False) -> Make:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.c(x)
        return m.n(x.permute(0, 2, 3, 1) if channels_last else x)

    return lambda: Net(run, c=conv(), n=norm())


C = "input > conv c.weight"
NORMS: dict[str, tuple[Make, str, set[str]]] = {
    "batch norm": (normed(lambda: nn.BatchNorm2d(8)), f"{C} > bn n.weight", {"n.weight", "n.bias"}),
    "without statistics": (
        normed(lambda: nn.BatchNorm2d(8, track_running_stats=False)),
        f"{C} > bn n.weight",
        {"n.weight", "n.bias"},
    ),
    "layer norm": (normed(lambda: nn.LayerNorm(8), True), f"{C} > ln n.weight", {"n.weight", "n.bias"}),
    "layer norm over all": (normed(lambda: nn.LayerNorm(SIZE)), f"{C} > ln n.weight", {"n.weight", "n.bias"}),
    "layer norm, no bias": (normed(lambda: nn.LayerNorm(8, bias=False), True), f"{C} > ln n.weight", {"n.weight"}),
    "group norm": (normed(lambda: nn.GroupNorm(2, 8)), f"{C} > ln n.weight", {"n.weight", "n.bias"}),
    "RMS norm": (normed(lambda: nn.RMSNorm(8), True), f"{C} > ln n.weight", {"n.weight"}),
    "hand-written RMS norm": (normed(HandWrittenRMSNorm, True), f"{C} > ln n.weight", {"n.weight"}),
    "GRN": (normed(GRN, True), f"{C} > ln n.gamma", {"n.gamma", "n.beta"}),
    "without a weight": (normed(lambda: nn.GroupNorm(2, 8, affine=False)), C, set()),
    "F.layer_norm": (
        lambda: Net(lambda m, x: F.layer_norm(tokens(m.c(x)), (8,), m.w, m.b), c=conv(), w=param(8), b=param(8)),
        f"{C} > ln w",
        {"w", "b"},
    ),
}


GAIN, AFFINE = {"n.g"}, {"n.g", "n.b"}
LN = f"{C} > ln n.g"
NORMS |= {
    "LN, g and b": (norm_of(lambda m, x: centred(x, 1) * m.g + m.b, g=vector(), b=vector()), LN, AFFINE),
    "LN, weight inside": (norm_of(annotated, a_2=vector(), b_2=vector()), f"{C} > ln n.a_2", {"n.a_2", "n.b_2"}),
    "LN, folded": (norm_of(folded, g=vector(), b=vector()), LN, AFFINE),
    "LN, addcmul": (norm_of(lambda m, x: torch.addcmul(m.b, m.g, centred(x, 1)), g=vector(), b=vector()), LN, AFFINE),
    "LN without a weight, then one": (
        norm_of(lambda m, x: F.layer_norm(x, (4, 4)) * m.g + m.b, g=vector(4, 4), b=vector(4, 4)),
        LN,
        AFFINE,
    ),
    "RMS, rsqrt": (norm_of(lambda m, x: x * rms(x) * m.g, g=vector()), LN, GAIN),
    "RMS, weight first": (norm_of(lambda m, x: x * (m.g * rms(x)), g=vector()), LN, GAIN),
    "RMS, 1 + g": (norm_of(lambda m, x: (x.double() * rms(x.double())).float() * (1 + m.g), g=vector()), LN, GAIN),
    "RMS, exp g": (norm_of(lambda m, x: x / x.norm(dim=1, keepdim=True) * m.g.exp(), g=vector()), LN, GAIN),
    "RMS, einsum": (norm_of(by_einsum_of_squares, g=vector()), LN, GAIN),
    "F.normalize": (norm_of(lambda m, x: F.normalize(x) * 8**0.5 * m.g, g=vector()), LN, GAIN),
    "F.rms_norm": (norm_of(lambda m, x: F.rms_norm(tokens(x), (8,), m.g) + m.b, g=vector(8), b=vector(8)), LN, AFFINE),
    "GN, written out": (norm_of(in_groups, g=vector(), b=vector()), LN, AFFINE),
    "GN without a weight, then one": (
        norm_of(lambda m, x: F.group_norm(x, 2) * m.g + m.b, g=vector(), b=vector()),
        LN,
        AFFINE,
    ),
    "IN, written out": (norm_of(lambda m, x: centred(x, (2, 3)) * m.g + m.b, g=vector(), b=vector()), LN, AFFINE),
    "BN, batch statistics": (
        norm_of(lambda m, x: centred(x, (0, 2, 3)) * m.g + m.b, g=vector(), b=vector()),
        f"{C} > bn n.g",
        AFFINE,
    ),
    "BN, running statistics": (normed(lambda: RunningStatistics(False)), f"{C} > bn n.g", AFFINE),
    "BN, running statistics folded": (normed(lambda: RunningStatistics(True)), f"{C} > bn n.g", AFFINE),
    "GRN by another name": (norm_of(response, g=vector(), b=vector()), LN, AFFINE),
    "after pooling": (
        norm_of(lambda m, x: F.rms_norm(x.mean((2, 3)), (8,), m.g), g=vector(8)),
        f"{C} > glob_avg > ln n.g",
        GAIN,
    ),
    "RMS, bounded, in place": (
        norm_of(
            lambda m, x: x.clone().div_(torch.max(x.norm(dim=1, keepdim=True), x.new_full((1,), 1e-6))).mul_(m.g),
            g=vector(),
        ),
        LN,
        GAIN,
    ),
    "around it a residual": (
        norm_of(lambda m, x: x + centred(x, 1) * m.g, g=vector()),
        f"{LN} > sum; conv c.weight > sum",
        GAIN,
    ),
    "two in a row": (
        norm_of(lambda m, x: F.normalize(F.normalize(x) * m.g) * m.h, g=vector(), h=vector()),
        f"{LN} > ln n.h",
        {"n.g", "n.h"},
    ),
}


@parametrized(NORMS)
def test_norms(make: Make, chains: str, extra: set[str], seeded_ghn2: GHN) -> None:
    """The weight has a node, the bias shares it."""
    graph = trace(make(), SIZE)
    assert_graph(graph, chains)
    assert set(graph.targets) == {"c.weight"} | extra
    assert not graph.skipped
    assert {graph.nodes[graph.targets[name].node].primitive for name in extra} <= {"ln", "bn"}
    assert all(seeded_ghn2.predict(graph)[name].std() > 0 for name in extra)


NO_NORMS: dict[str, tuple[Make, dict[str, str]]] = {
    "FRN's threshold": (norm_of(filter_response, g=vector(), b=vector(), tau=vector()), {"n.tau": "maximum"}),
    "EvoNorm's slope": (norm_of(evolved, g=vector(), b=vector(), v=vector()), {"n.v": "learned scale"}),
    "called a norm": (
        normed(lambda: type("LayerNorm2d", (Net,), {})(lambda m, x: x + F.gelu(x) * m.weight, weight=param(8, 1, 1))),
        {"n.weight": "learned scale"},
    ),
    "a scalar": (norm_of(lambda m, x: F.normalize(x) * m.g, g=vector(1)), {"n.g": "learned scale"}),
    "a temperature": (
        norm_of(lambda m, x: F.normalize(x.view(-1, 2, 4, 16), dim=2) * m.g, g=vector(2, 1, 1)),
        {"n.g": "learned scale"},
    ),
    "a layer scale": (norm_of(lambda m, x: F.relu(centred(x, 1)) * m.g, g=vector()), {"n.g": "learned scale"}),
    "a gate": (norm_of(lambda m, x: x * x.mean(1, keepdim=True).sigmoid() * m.g, g=vector()), {"n.g": "learned scale"}),
}


@parametrized(NO_NORMS)
def test_what_normalises_nothing_is_no_norm(make: Make, chains: dict[str, str]) -> None:
    """A scale is a norm's weight if it follows the division by statistics, and reaches over what was normalised."""
    graph, reasons = trace(make(), SIZE), chains
    assert graph.skipped.keys() == reasons.keys()
    assert all(reason in graph.skipped[name] for name, reason in reasons.items())
    assert [n.param for n in graph.nodes if n.primitive in ("ln", "bn")] == (["n.g"] if "n.b" in graph.targets else [])


POOLS: dict[str, tuple[Make, str]] = {
    "max": (after_conv(lambda x: F.max_pool2d(x, 3, 2, 1)), f"{C} > max_pool 3x3"),
    "avg, not square": (after_conv(lambda x: F.avg_pool2d(x, (1, 2))), f"{C} > avg_pool 1x2"),
    "1-D": (after_conv(lambda x: F.avg_pool1d(x.flatten(2), 2)), f"{C} > avg_pool 1x2"),
    "adaptive": (after_conv(lambda x: F.adaptive_avg_pool2d(x, 1)), f"{C} > glob_avg"),
    "adaptive to a grid": (after_conv(lambda x: F.adaptive_avg_pool2d(x, 2)), f"{C} > glob_avg"),
    "adaptive max is none": (after_conv(lambda x: F.adaptive_max_pool2d(x, 1)), C),
    "mean of NCHW": (after_conv(lambda x: x.mean((2, 3))), f"{C} > glob_avg"),
    "mean of NCHW, kept": (after_conv(lambda x: x.mean([-1, -2], keepdim=True)), f"{C} > glob_avg"),
    "mean of NHWC": (after_conv(lambda x: x.permute(0, 2, 3, 1).mean((1, 2))), f"{C} > glob_avg"),
    "mean of NLC": (after_conv(lambda x: tokens(x).mean(1)), f"{C} > glob_avg"),
    "mean of NLC, kept": (after_conv(lambda x: tokens(x).mean(dim=1, keepdim=True)), f"{C} > glob_avg"),
    "mean of NLC, some tokens": (after_conv(lambda x: tokens(x)[:, 1:].mean(1)), f"{C} > glob_avg"),
    "mean of NCL": (after_conv(lambda x: x.flatten(2).mean(-1)), f"{C} > glob_avg"),
    "channel mean of NCHW": (after_conv(lambda x: x.mean(1, keepdim=True)), C),
    "channel mean of NHWC": (after_conv(lambda x: x.permute(0, 2, 3, 1).mean(-1)), C),
    "channel mean of NLC": (after_conv(lambda x: tokens(x).mean(-1)), C),
    "channel mean of NCL": (after_conv(lambda x: x.flatten(2).mean(1)), C),
    "mean over rows only": (after_conv(lambda x: x.mean(2)), C),
}


@parametrized(POOLS)
def test_pooling(make: Make, chains: str) -> None:
    assert_graph(trace(make(), SIZE), chains)


# -- sums, concatenations, writes ------------------------------------------------------------------------------------


def joined(function: Callable[[Tensor, Tensor], Tensor]) -> Make:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return function(y, m.b(y))

    return lambda: Net(run, a=conv(), b=conv())


def write_through_a_view(a: Tensor, b: Tensor) -> Tensor:
    out = torch.empty_like(a)
    out.view(a.shape[0], 8, 16).copy_(b.flatten(2))
    return F.relu_(out)


def augmented(a: Tensor, b: Tensor) -> Tensor:
    b += a
    return b


def out_argument(a: Tensor, b: Tensor) -> Tensor:
    out = torch.empty_like(a)
    torch.add(a, b, out=out)
    return out


def gated_and_stacked(a: Tensor, b: Tensor) -> Tensor:
    """Selective kernels: the branches are weighted and summed."""
    return (torch.stack((a, b), 1) * b.mean((1, 2, 3)).view(-1, 1, 1, 1, 1).softmax(1)).sum(1)


TWO = "input > conv a.weight > conv b.weight"
SUM = f"{TWO} > sum; conv a.weight > sum"
JOINS: dict[str, tuple[Make, str]] = {
    "residual": (joined(lambda a, b: a + b), f"{TWO} > sum; conv a.weight > sum"),
    "add_": (joined(lambda a, b: b.add_(a)), f"{TWO} > sum; conv a.weight > sum"),
    "+=": (joined(augmented), f"{TWO} > sum; conv a.weight > sum"),
    "out=": (joined(out_argument), f"{TWO} > sum; conv a.weight > sum"),
    "sum()": (joined(lambda a, b: sum([a, b])), f"{TWO} > sum; conv a.weight > sum"),
    "sum with itself": (joined(lambda a, b: b + F.relu(b)), TWO),
    "sum with a constant": (joined(lambda a, b: b + 1), TWO),
    "concat": (joined(lambda a, b: torch.cat((a, b), 1)), f"{TWO} > concat; conv a.weight > concat"),
    "stack": (joined(lambda a, b: torch.stack((a, b))), f"{TWO} > concat; conv a.weight > concat"),
    "concat with itself": (joined(lambda a, b: torch.cat((b, b.relu()), 1)), TWO),
    "concat, two joined before": (
        joined(lambda a, b: torch.cat((a * 2, b, a.relu()), 1)),
        f"{TWO} > concat; conv a.weight > concat",
    ),
    "difference": (joined(lambda a, b: a - b), SUM),
    "rsub": (joined(lambda a, b: torch.rsub(b, a)), SUM),
    "sub_": (joined(lambda a, b: b.sub_(a, alpha=0.5)), SUM),
    "several differences": (joined(lambda a, b: a + a - b), SUM),
    "lerp": (joined(lambda a, b: torch.lerp(a, b, 0.3)), SUM),
    "lerp, tensor": (joined(lambda a, b: a.lerp_(b, torch.full((1,), 0.3, device=a.device))), SUM),
    "lerp, written out": (joined(lambda a, b: a + 0.3 * (b - a)), SUM),
    "addcmul": (joined(lambda a, b: torch.addcmul(a, b, torch.ones(8, 1, 1, device=a.device))), SUM),
    "addcdiv": (joined(lambda a, b: torch.addcdiv(a, b, torch.ones(8, 1, 1, device=a.device))), SUM),
    "baddbmm": (
        joined(lambda a, b: torch.baddbmm(b.flatten(2), torch.eye(8, device=a.device).repeat(2, 1, 1), a.flatten(2))),
        SUM,
    ),
    "stack, summed": (joined(lambda a, b: torch.stack((a, b)).sum(0)), SUM),
    "stack, averaged": (joined(lambda a, b: torch.stack((a, b), -1).mean(-1)), SUM),
    "stack, permuted and summed": (joined(lambda a, b: torch.stack((a, b)).permute(1, 0, 2, 3, 4).sum(1)), SUM),
    "stack, weighted by einsum": (
        joined(lambda a, b: torch.einsum("n,nbchw->bchw", torch.ones(2, device=a.device), torch.stack((a, b)))),
        SUM,
    ),
    "stack, gated and summed": (joined(gated_and_stacked), SUM),
    "stack, the largest of each": (joined(lambda a, b: torch.stack((a, b)).amax(0)), SUM.replace("sum", "concat")),
    "concat, unfolded and summed": (joined(lambda a, b: torch.cat((a, b), 1).unflatten(1, (2, 8)).sum(1)), SUM),
    "writes through a view": (joined(write_through_a_view), TWO),
    "product of two": (joined(lambda a, b: a * b), TWO),
}


@parametrized(JOINS)
def test_joins(make: Make, chains: str) -> None:
    assert_graph(trace(make(), SIZE), chains)


def test_a_learned_weight_of_two_normalised_terms_is_no_norm() -> None:
    model = Net(lambda m, x: F.normalize(m.a(x)).lerp(F.normalize(m.b(x)), m.w), a=conv(), b=conv(), w=param(8, 1, 1))
    graph = trace(model, SIZE)
    assert_graph(graph, "input > conv a.weight > sum; input > conv b.weight > sum")
    assert "learned scale" in graph.skipped["w"]


def test_features_that_two_forms_of_one_vector_have_scaled() -> None:
    """What is known of the two is compared, and the vectors with it."""

    def run(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.b(torch.cat([y * m.w.cos(), y * m.w.sin()], 1))

    graph = trace(Net(run, a=conv(), b=conv(16), w=param(8, 1, 1)), SIZE)
    assert {"a.weight", "b.weight"} <= graph.targets.keys()
    assert "learned scale" in graph.skipped["w"]


def test_what_is_written_into_slices_reaches_the_reader() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        out = torch.zeros(len(x), 16, 4, 4, device=x.device)
        out[:, :8] = m.a(x)
        out[:, 8:] = m.b(x)
        return m.c(out)

    graph = trace(Net(run, a=conv(), b=conv(), c=conv(16)), SIZE)
    assert_graph(graph, "input > conv a.weight > conv c.weight; input > conv b.weight > conv c.weight")


# -- attention -------------------------------------------------------------------------------------------------------

Attend = Callable[[Any, Tensor, Tensor, Tensor], Tensor]
INDEX = torch.arange(256).view(16, 16) % 49


def attention(attend: Attend, **parts: Any) -> Make:
    """One projection to q, k, v of two heads, `attend`, an output projection."""

    def run(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.qkv(tokens(x)).reshape(-1, 16, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        return m.proj(attend(m, q, k, v).transpose(1, 2).reshape(-1, 16, 8))

    return lambda: Net(run, qkv=linear(8, 24), proj=linear(), **{name: make() for name, make in parts.items()})


def fused(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def written_out(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.dropout((q * 0.5 @ k.transpose(-2, -1)).softmax(-1), 0.1, m.training) @ v


def batched(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    scores = torch.baddbmm(torch.zeros(len(q), 16, 16, device=q.device), q, k.transpose(-2, -1), beta=0)
    return torch.bmm(F.softmax(scores.float(), -1).type_as(v), v).unflatten(0, (-1, 2))


def masked(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    causal = torch.ones(16, 16, device=q.device).triu(1).bool()
    return (q @ k.transpose(-2, -1)).masked_fill(causal, -torch.inf).softmax(-1) @ v


def by_einsum(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bhnm,bhmc->bhnc", torch.einsum("bhnc,bhmc->bhnm", q, k).softmax(-1), v)


def cross_covariance(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = F.normalize(q, dim=-2), F.normalize(k, dim=-2)
    return ((q.transpose(-2, -1) @ k * m.temperature).softmax(-1) @ v.transpose(-2, -1)).transpose(-2, -1)


def talking_heads(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = m.before((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1))
    return m.after(scores.softmax(2)).permute(0, 3, 1, 2) @ v


def indexed_bias(m: Any) -> Tensor:
    return m.table[INDEX.to(m.table.device).view(-1)].view(16, 16, 2).permute(2, 0, 1)


def relative_bias(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) + indexed_bias(m)).softmax(-1) @ v


def relative_bias_fused(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=indexed_bias(m))


def relative_product(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) + q @ m.table.t()).softmax(-1) @ v


def relative_product_fused(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=q @ m.table.t())


def relative_product_indexed(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    table = torch.einsum("bhnc,nmc->bhnm", q, m.table[INDEX.to(q.device)])
    return (q @ k.transpose(-2, -1) + table).softmax(-1) @ v


def bias_by_mlp(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    bias = m.mlp(INDEX.to(q).unsqueeze(-1)).permute(2, 0, 1)
    return (q @ k.transpose(-2, -1) + bias).softmax(-1) @ v


def exp_over_sum(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-2, -1)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True) @ v


def divided_afterwards(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.transpose(-2, -1)).exp()
    return weights @ v / weights.sum(-1, keepdim=True)


def by_log_sum_exp(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-2, -1)
    return (scores - scores.logsumexp(-1, keepdim=True)).exp() @ v


def written_out_for_keys(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k = k.exp()
    return q.log_softmax(-1).exp() @ ((k / k.sum(-2, keepdim=True)).transpose(-2, -1) @ v)


def mixed_and_normed(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bhnm,hg->bnmg", (q @ k.transpose(-2, -1)).softmax(-1), m.mix)
    return m.norm(weights).permute(0, 3, 1, 2) @ v


def linear_attention(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = F.elu(q) + 1, F.elu(k) + 1
    return torch.einsum("bhnc,bhcd,bhn->bhnd", q, k.transpose(-2, -1) @ v, 1 / (q * k.sum(2, keepdim=True)).sum(-1))


def by_sigmoid(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) + q @ m.table.t()).sigmoid() @ v


def normalised_per_head(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return fused(m, F.normalize(q, dim=-1) * m.gain, F.normalize(k, dim=-1) * m.temperature, v)


ATTEND = "input > conv qkv.weight > msa > conv proj.weight"
RELATIVE = {"table": "relative-position table"}
ATTENTION: dict[str, tuple[Make, str, dict[str, str]]] = {
    "fused": (attention(fused), ATTEND, {}),
    "written out": (attention(written_out), ATTEND, {}),
    "baddbmm": (attention(batched), ATTEND, {}),
    "masked": (attention(masked), ATTEND, {}),
    "einsum": (attention(by_einsum), ATTEND, {}),
    "cross-covariance": (
        attention(cross_covariance, temperature=lambda: param(2, 1, 1)),
        ATTEND,
        {"temperature": "learned scale"},
    ),
    "talking heads": (
        attention(talking_heads, before=lambda: linear(2, 2, bias=True), after=lambda: linear(2, 2, bias=True)),
        f"{ATTEND}; conv qkv.weight > conv before.weight > bias before.bias > conv after.weight;"
        "conv after.weight > bias after.bias > msa",
        {},
    ),
    "two softmaxes": (
        attention(lambda m, q, k, v: q.softmax(-1) @ (k.softmax(-2).transpose(-2, -1) @ v)),
        ATTEND,
        {},
    ),
    "no softmax": (
        attention(lambda m, q, k, v: F.relu(q) @ (F.relu(k).transpose(-2, -1) @ v)),
        "input > conv qkv.weight > conv proj.weight",
        {},
    ),
    "exp over sum": (attention(exp_over_sum), ATTEND, {}),
    "powers of two": (
        attention(lambda m, q, k, v: F.normalize(2 ** (q @ k.transpose(-2, -1)), 1, -1) @ v),
        ATTEND,
        {},
    ),
    "exp, divided afterwards": (attention(divided_afterwards), ATTEND, {}),
    "exp less logsumexp": (attention(by_log_sum_exp), ATTEND, {}),
    "two softmaxes, written out": (attention(written_out_for_keys), ATTEND, {}),
    "mixed and normed": (
        attention(mixed_and_normed, mix=lambda: param(2, 2), norm=lambda: nn.LayerNorm(2)),
        f"{ATTEND}; conv qkv.weight > conv mix > ln norm.weight > msa",
        {},
    ),
    "normalised per head": (
        attention(normalised_per_head, gain=lambda: param(2, 1, 4), temperature=lambda: param(2, 1, 1)),
        f"{ATTEND}; conv qkv.weight > ln gain > msa",
        {"temperature": "learned scale"},
    ),
    "with a residual": (
        attention(lambda m, q, k, v: fused(m, q, k, v) + v),
        "input > conv qkv.weight > msa > sum > conv proj.weight; conv qkv.weight > sum",
        {},
    ),
    "relative bias": (attention(relative_bias, table=lambda: param(49, 2)), ATTEND, RELATIVE),
    "relative bias, fused": (attention(relative_bias_fused, table=lambda: param(49, 2)), ATTEND, RELATIVE),
    "relative product": (attention(relative_product, table=lambda: param(16, 4)), ATTEND, RELATIVE),
    "relative product, fused": (attention(relative_product_fused, table=lambda: param(16, 4)), ATTEND, RELATIVE),
    "relative product, indexed": (attention(relative_product_indexed, table=lambda: param(49, 4)), ATTEND, RELATIVE),
    "rows of a codebook": (
        lambda: Net(
            lambda m, x: m.out((t := tokens(m.c(x))) + (t @ m.codes.T).softmax(-1) @ m.codes),
            **{"c": conv(), "codes": param(5, 8), "out": linear()},
        ),
        "input > conv c.weight > conv out.weight",
        {"codes": "rows that attention looks up"},
    ),
    "two memories": (
        lambda: Net(
            lambda m, x: m.out((tokens(x) @ m.keys.T).softmax(-1) @ m.values),
            **{"keys": param(5, 8), "values": param(5, 8), "out": linear()},
        ),
        "input > conv keys > conv values > conv out.weight",
        {},
    ),
    "bias by an MLP": (
        attention(bias_by_mlp, mlp=lambda: nn.Sequential(linear(1, 5), nn.ReLU(), linear(5, 2))),
        f"{ATTEND}; input > conv mlp.0.weight > conv mlp.2.weight > msa",
        {},
    ),
}


@parametrized(ATTENTION)
def test_attention(make: Make, chains: str, extra: dict[str, str]) -> None:
    graph = trace(make(), SIZE)
    assert_graph(graph, chains)
    assert set(graph.skipped) == set(extra)
    assert all(reason in graph.skipped[name] for name, reason in extra.items())


WITHOUT_SOFTMAX: dict[str, Attend] = {
    "sigmoid": by_sigmoid,
    "ReLU": lambda m, q, k, v: (q @ k.transpose(-2, -1)).relu() / 16 @ v,
    "sigmoid, renormalised": lambda m, q, k, v: F.normalize((q @ k.transpose(-2, -1)).sigmoid(), 1, -1) @ v,
    "sigmoid, heads mixed": lambda m, q, k, v: (
        m.mix((q @ k.transpose(-2, -1)).sigmoid().permute(0, 2, 3, 1)).permute(0, 3, 1, 2) @ v
    ),
    "linear": linear_attention,
    "cross-covariance": lambda m, q, k, v: v @ (q.transpose(-2, -1) @ k).relu(),
}


@pytest.mark.parametrize("attend", WITHOUT_SOFTMAX.values(), ids=WITHOUT_SOFTMAX)
def test_attention_without_a_softmax_ends_at_its_projection(attend: Attend) -> None:
    """Two blocks: there is no `msa`; biases, residual sums and the classifier are what they are elsewhere."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = tokens(x)
        for block in (m.first, m.second):
            q, k, v = block.qkv(x).reshape(-1, 16, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
            x = x + block.proj(attend(m, q, k, v).transpose(1, 2).reshape(-1, 16, 8)).relu()
        return m.head(x.mean(1))

    def block() -> nn.Module:
        return Net(abs, qkv=linear(8, 24, bias=True), proj=linear(bias=True))

    mix, table = linear(2, 2, bias=True), param(16, 4)
    graph = trace(Net(run, first=block(), second=block(), head=linear(8, 5, bias=True), mix=mix, table=table), SIZE)
    assert sum(n.primitive == "msa" for n in graph.nodes) == 0
    assert sum(n.primitive == "sum" for n in graph.nodes) == 2
    assert {n for n in graph.skipped if "mix" not in n} == {"table"}
    assert {"head.weight", "head.bias"} == heads(graph)


@pytest.mark.parametrize("classes", [5, 16])
def test_a_product_of_features_with_themselves_is_no_attention(classes: int) -> None:
    """Bilinear pooling."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.c(x).flatten(2)
        x = m.f((x @ x.transpose(1, 2)).flatten(1))
        return m.head(x + m.g(x))

    model = Net(run, c=conv(8, 4), f=linear(16, 8, True), g=linear(bias=True), head=linear(8, classes, True))
    assert_graph(
        trace(model, SIZE),
        "input > conv c.weight > conv f.weight > bias f.bias > conv g.weight > bias g.bias > sum;"
        "bias f.bias > sum > conv head.weight > bias head.bias",
    )


def test_a_matrix_made_of_the_input_leaves_a_residual() -> None:
    """Not all that looks like scores at first is: here features are multiplied with a matrix of their own."""
    model = Net(lambda m, x: tokens(x) + tokens(x) @ m.w(x.mean((2, 3))).view(-1, 8, 8), w=linear(8, 64))
    assert_graph(trace(model, SIZE), "input > glob_avg > conv w.weight > sum; input > sum")


def multihead(run: Callable[..., Tensor], **kwargs: Any) -> nn.Module:
    return Net(run, a=nn.MultiheadAttention(8, 2, batch_first=True, **kwargs))


OUT = "msa > conv a.out_proj.weight > bias a.out_proj.bias"


@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention_is_one_projection(need_weights: bool) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        x = tokens(x)
        return m.a(x, x, x, need_weights=need_weights)[0]

    assert_graph(trace(multihead(run), SIZE), f"input > conv a.in_proj_weight > bias a.in_proj_bias > {OUT}")


def test_multihead_attention_across_inputs() -> None:
    def run(m: Any, x: Tensor, y: Tensor) -> Tensor:
        y = tokens(y)
        return m.a(tokens(x), y, y, need_weights=False)[0]

    graph = trace(multihead(run), [(8, 4, 4), (8, 2, 2)])
    assert_graph(
        graph,
        f"input > conv a.in_proj_weight > bias a.in_proj_bias > {OUT};"
        "input > conv a.in_proj_weight#2 > bias a.in_proj_bias#2 > msa",
    )
    assert graph.targets["a.in_proj_weight"].node == 1  # used in two layers: predicted from the first


def test_multihead_attention_with_separate_weights() -> None:
    def run(m: Any, x: Tensor, y: Tensor) -> Tensor:
        return m.a(tokens(x), tokens(y), tokens(y), need_weights=False)[0]

    graph = trace(multihead(run, kdim=3, vdim=3), [(8, 4, 4), (3, 2, 2)])
    assert {n.param for n in graph.nodes if n.primitive == "conv"} == {
        "a.q_proj_weight",
        "a.k_proj_weight",
        "a.v_proj_weight",
        "a.out_proj.weight",
    }
    assert sum(n.primitive == "msa" for n in graph.nodes) == 1


def test_class_attention_and_class_token() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        x = torch.cat((m.token.expand(len(x), -1, -1), tokens(x)), 1)
        return m.p(F.scaled_dot_product_attention(m.q(x[:, :1]), m.k(x), m.v(x)))

    graph = trace(Net(run, q=linear(), k=linear(), v=linear(), p=linear(), token=param(1, 1, 8)), SIZE)
    assert_graph(
        graph, "input > conv q.weight > msa > conv p.weight; input > conv k.weight > msa; input > conv v.weight > msa"
    )
    assert "token" in graph.skipped["token"]


def test_learned_query_goes_through_its_layer() -> None:
    """The layer is predicted though no input reaches it; it hangs on the input, as GHNs know one source only."""

    def run(m: Any, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(m.q(m.query).expand(len(x), -1, -1), m.k(tokens(x)), tokens(x))

    graph = trace(Net(run, q=linear(), k=linear(), query=param(1, 1, 8)), SIZE)
    assert_graph(graph, "input > msa; input > conv q.weight > msa; input > conv k.weight > msa")
    assert set(graph.skipped) == {"query"}


# -- position embeddings ---------------------------------------------------------------------------------------------


def positions(run: Callable[..., Tensor], *shape: int, token: bool = False) -> Make:
    """Patches of 2 x 2, a position embedding, a linear layer."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.l(run(m, m.p(x)))

    extra = {"token": param(1, 1, 6)} if token else {}
    return lambda: Net(forward, p=nn.Conv2d(8, 6, 2, 2, bias=False), l=linear(6), pos=param(*shape), **extra)


def with_token(m: Any, x: Tensor) -> Tensor:
    return torch.cat((m.token.expand(len(x), -1, -1), x), 1)


def token_then_positions(m: Any, x: Tensor) -> Tensor:
    return with_token(m, tokens(x)) + m.pos


def positions_then_token(m: Any, x: Tensor) -> Tensor:
    return with_token(m, tokens(x) + m.pos)


def positions_in_slices(m: Any, x: Tensor) -> Tensor:
    token = (m.token + m.pos[:, :1]).expand(len(x), -1, -1)
    return torch.cat((token, tokens(x) + m.pos[:, 1:]), 1)


def interpolated(m: Any, x: Tensor) -> Tensor:
    grid = m.pos.reshape(1, 5, 5, 6).permute(0, 3, 1, 2)
    return tokens(x) + tokens(F.interpolate(grid, x.shape[-2:]))


POSITIONS: dict[str, tuple[Make, str, tuple[int, int]]] = {
    "tokens": (positions(lambda m, x: tokens(x) + m.pos, 1, 4, 6), "tokens", (2, 2)),
    "tokens, no batch": (positions(lambda m, x: tokens(x) + m.pos, 4, 6), "tokens", (2, 2)),
    "tokens in place": (positions(lambda m, x: tokens(x).add_(m.pos), 1, 4, 6), "tokens", (2, 2)),
    "class token first": (positions(token_then_positions, 1, 5, 6, token=True), "tokens", (2, 2)),
    "class token last": (positions(positions_then_token, 1, 4, 6, token=True), "tokens", (2, 2)),
    "class token apart": (positions(positions_in_slices, 1, 5, 6, token=True), "tokens", (2, 2)),
    "interpolated": (positions(interpolated, 1, 25, 6), "tokens", (5, 5)),
    "chw": (positions(lambda m, x: tokens(x + m.pos), 1, 6, 2, 2), "chw", (2, 2)),
    "chw, no batch": (positions(lambda m, x: tokens(x + m.pos), 6, 2, 2), "chw", (2, 2)),
    "hwc": (positions(lambda m, x: x.permute(0, 2, 3, 1) + m.pos, 1, 2, 2, 6), "hwc", (2, 2)),
}


@parametrized(POSITIONS)
def test_positions(make: Make, chains: str, extra: tuple[int, int], seeded_ghn2: GHN) -> None:
    layout, grid = chains, extra
    model = make()
    graph = trace(model, SIZE)
    assert_graph(graph, "input > conv p.weight > sum > conv l.weight; pos_enc pos > sum")
    target = graph.targets["pos"]
    assert (target.role, target.layout, target.grid) == ("pos_enc", layout, grid)
    parameters = dict(model.named_parameters())
    assert set(graph.skipped) == {"token"} & set(parameters)
    assert seeded_ghn2.predict(graph)["pos"].shape == parameters["pos"].shape


def test_positions_on_a_grid_that_is_not_square() -> None:
    make = positions(token_then_positions, 1, 1 + 2 * 8, 6, token=True)
    assert trace(make(), (8, 4, 16)).targets["pos"].grid == (2, 8)


def test_what_is_read_and_used_has_the_reason_of_its_use() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        m.seen = m.k > 0
        return m.c(x).pow(m.k)

    graph = trace(Net(run, c=conv(), k=param(1)), SIZE)
    assert graph.skipped == {"k": "an operand of pow"}


def test_layer_scale_and_scalars_have_reasons() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return (x + m.gamma * m.c(x)) * m.scale.exp()

    graph = trace(Net(run, c=conv(), gamma=param(8, 1, 1), scale=param(1)), SIZE)
    assert_graph(graph, f"{C} > sum; input > sum")
    assert all("learned scale" in graph.skipped[name] for name in ("gamma", "scale"))


# -- gates -----------------------------------------------------------------------------------------------------------


def gate(function: Callable[[Any, Tensor], Tensor]) -> Make:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.after(function(m, m.before(x)))

    return lambda: Net(run, before=conv(), a=conv(8, 2), b=conv(2, 8), after=conv())


def squeeze(m: Any, x: Tensor) -> Tensor:
    return m.b(F.relu(m.a(x))).sigmoid()


GATES: dict[str, Make] = {
    "mean": gate(lambda m, x: x * squeeze(m, x.mean((2, 3), keepdim=True))),
    "adaptive pool, mul_": gate(lambda m, x: x.mul_(squeeze(m, F.adaptive_avg_pool2d(x, 1)))),
    "gate first": gate(lambda m, x: squeeze(m, F.adaptive_avg_pool2d(x, 1)) * x),
}


@pytest.mark.parametrize("make", GATES.values(), ids=GATES)
def test_gate_in_both_dialects(make: Make) -> None:
    branch = "conv a.weight > conv b.weight"
    assert_graph(
        trace(make(), SIZE),
        f"input > conv before.weight > conv after.weight; conv before.weight > glob_avg > {branch} > conv after.weight",
    )
    assert_graph(
        trace(make(), SIZE, "ghn3"),
        f"input > conv before.weight > cse > conv after.weight; conv before.weight > {branch} > cse",
    )


@pytest.mark.parametrize(
    "function",
    [lambda m, x: x * squeeze(m, x), lambda m, x: x * x.mean(1, keepdim=True).sigmoid() + 0 * squeeze(m, x)],
    ids=["spatial", "of the channel mean"],
)
def test_a_gate_that_pools_nothing_is_none(function: Callable[[Any, Tensor], Tensor]) -> None:
    graphs = [trace(gate(function)(), SIZE, dialect) for dialect in ("ghn2", "ghn3")]
    assert graphs[0].nodes == graphs[1].nodes
    assert not any(n.primitive in ("cse", "glob_avg") for n in graphs[0].nodes)


# -- inputs and outputs ----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Output:
    a: Any
    b: Any


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda a, b: (a, b),
        lambda a, b: [a, [b]],
        lambda a, b: {"a": a, "b": (b, None, 3)},
        Pair,
        Output,
        lambda a, b: [Output(a, Output(b, None))],
    ],
    ids=["tuple", "list", "dict", "namedtuple", "dataclass", "nested"],
)
def test_outputs(wrap: Callable[[Tensor, Tensor], Any]) -> None:
    graph = trace(Net(lambda m, x: wrap(m.a(x), m.b(x)), a=conv(), b=conv()), SIZE)
    assert_graph(graph, "input > conv a.weight; input > conv b.weight")


def test_two_inputs_and_sizes() -> None:
    graph = trace(Net(lambda m, x, y: m.a(x) + m.b(y), a=conv(3), b=conv(5)), [(3, 8, 16), (5, 8, 16)])
    assert_graph(graph, "input > conv a.weight > sum; input > conv b.weight > sum")


@pytest.mark.parametrize(
    ("given", "seen"), [(16, (8, 16, 16)), ((16, 24), (8, 16, 24)), ((8, 16, 24), (8, 16, 24)), (None, (8, 224, 224))]
)
def test_input_size(given: Any, seen: tuple[int, ...]) -> None:
    """Channels are those of the first convolution where they are not given."""
    assert trace(nn.Sequential(conv()), given).input_size == seen


@pytest.mark.parametrize("size", ["224", 224.0, (), (0, 8), (3, 8.0, 8), (1, 2, 3, 4, 5)])
def test_bad_input_size(size: Any) -> None:
    with pytest.raises(ValueError, match="input_size must be"):
        trace(nn.Sequential(conv()), size)


def only_32(m: Any, x: Tensor) -> Tensor:
    if x.shape[-1] != 32:
        raise AssertionError("32 pixels or nothing")
    return m.c(x)


def test_another_size_is_tried_where_none_is_given() -> None:
    assert trace(Net(only_32, c=conv())).input_size == (8, 32, 32)


def test_a_refused_size_names_model_and_way_out() -> None:
    with pytest.raises(TraceError, match=r"^Net: .*Pass input_size=.*8x64x64.*32 pixels or nothing"):
        trace(Net(only_32, c=conv()), 64)


def test_real_values_are_had_on_the_cpu(caplog: pytest.LogCaptureFixture) -> None:
    model = Net(lambda m, x: m.c(x) if m.c(x).sum().item() == 0 else x, c=conv())
    with caplog.at_level(logging.INFO):
        graph = trace(model, SIZE)
    assert_graph(graph, C)
    assert "Net: the forward pass needs real values" in caplog.text
    assert "traced on the CPU" in caplog.text


def test_no_parameters() -> None:
    with pytest.raises(TraceError, match="Identity has no parameters"):
        trace(nn.Identity())


def test_nested_tensors_are_refused() -> None:
    model = Net(lambda m, x: torch.nested.nested_tensor(list(m.c(x)), layout=torch.strided), c=conv())
    with pytest.raises(ValueError, match=r"Net: .* nested tensors .* Nothing was changed"):
        trace(model, SIZE)
    assert not model.c.weight.is_meta


def test_nothing_recognised() -> None:
    with pytest.raises(TraceError, match="Net: none of its 1 parameters was recognised"):
        trace(Net(lambda m, x: x * m.scale, scale=param(1)), SIZE)


def test_what_eval_mode_does_not_use_is_said_so() -> None:
    model = Net(lambda m, x: (m.c(x), m.aux(x)) if m.training else m.c(x), c=conv(), aux=conv())
    graph = trace(model.train(), SIZE)
    assert_graph(graph, C)
    assert graph.skipped == {"aux.weight": "not used by the forward pass in eval mode"}
    assert model.training


def test_what_is_an_output_itself_is_said_so() -> None:
    """As CLIP has its scale."""
    graph = trace(Net(lambda m, x: (m.c(x), m.scale.exp()), c=conv(), scale=param(1)), SIZE)
    assert graph.skipped == {"scale": "an output of the model by itself (the scale of logits, say)"}


def test_what_does_not_reach_the_output_is_not_used() -> None:
    graph = trace(Net(lambda m, x: (m.b(x), m.c(x))[1], b=conv(), c=conv()), SIZE)
    assert_graph(graph, C)
    assert set(graph.skipped) == {"b.weight"}


# -- classifiers -----------------------------------------------------------------------------------------------------


def heads(graph: Graph) -> set[str]:
    return {t.param for t in graph.targets.values() if t.classifier}


def pooled(run: Callable[..., Any], **parts: Any) -> Make:
    return lambda: Net(lambda m, x: run(m, m.c(x).mean((2, 3))), c=conv(), **{k: make() for k, make in parts.items()})


def fc() -> nn.Linear:
    return linear(8, 5, bias=True)


def conv_then_pool(m: Any, x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(F.relu(m.l(x)), 1).flatten(1)


CLASSIFIERS: dict[str, tuple[Make, set[str]]] = {
    "linear": (pooled(lambda m, x: m.l(x), l=fc), {"l.weight", "l.bias"}),
    "convolution": (
        pooled(lambda m, x: m.l(x[:, :, None, None]).flatten(1), l=lambda: conv(8, 5, bias=True)),
        {"l.weight", "l.bias"},
    ),
    "then softmax": (pooled(lambda m, x: m.l(x).log_softmax(1), l=fc), {"l.weight", "l.bias"}),
    "then a scale": (pooled(lambda m, x: m.l(x) * m.s, l=fc, s=lambda: param(1)), {"l.weight", "l.bias"}),
    "two, averaged": (
        pooled(lambda m, x: (m.l(x) + m.k(x)) / 2, l=fc, k=fc),
        {"l.weight", "l.bias", "k.weight", "k.bias"},
    ),
    "the last of two": (pooled(lambda m, x: m.k(m.l(x)), l=fc, k=lambda: linear(5, 4)), {"k.weight"}),
    "convolution, then pooling": (lambda: Net(conv_then_pool, l=conv(8, 5, bias=True)), set()),
    "two, joined": (
        pooled(lambda m, x: torch.cat([m.l(x), m.k(x)], 1), l=fc, k=lambda: linear(8, 4)),
        {"l.weight", "l.bias", "k.weight"},
    ),
    "some for each position": (lambda: Net(lambda m, x: m.l(m.c(x)).flatten(1), c=conv(), l=conv(8, 5)), set()),
    "averaged over its channels": (
        lambda: Net(lambda m, x: m.l(m.c(x)).flatten(1).mean(1, keepdim=True), c=conv(), l=conv(8, 5)),
        set(),
    ),
    "a norm comes last": (pooled(lambda m, x: m.n(m.l(x)), l=fc, n=lambda: nn.LayerNorm(5)), set()),
    "features, no logits": (lambda: Net(lambda m, x: m.l(x), l=conv()), set()),
}


@pytest.mark.parametrize(("make", "expected"), CLASSIFIERS.values(), ids=CLASSIFIERS)
def test_classifier_by_its_place(make: Make, expected: set[str]) -> None:
    assert heads(trace(make(), SIZE)) == expected


def test_classifier_by_get_classifier() -> None:
    class Distilled(Net):
        def get_classifier(self) -> Any:
            return self.l, self.k

    model = Distilled(lambda m, x: (m.l(x.mean((2, 3))), m.k(x.mean((2, 3)))), l=fc(), k=fc())
    assert heads(trace(model, SIZE)) == {"l.weight", "l.bias", "k.weight", "k.bias"}


def test_classifier_that_is_not_there() -> None:
    class Headless(Net):
        def get_classifier(self) -> Any:
            return self.head

    graph = trace(Headless(lambda m, x: m.head(m.l(x.mean((2, 3)))), l=fc(), head=nn.Identity()), SIZE)
    assert not heads(graph)


def test_classifier_by_name() -> None:
    model = pooled(lambda m, x: m.k(m.l(x)), l=fc, k=lambda: linear(5, 4))()
    assert heads(trace(model, SIZE, classifier=["l"])) == {"l.weight", "l.bias"}


# -- distances -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cutoff", [1, 3, 50])
@pytest.mark.parametrize("seed", range(4))
def test_distances(seed: int, cutoff: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 120))
    matrix = np.triu(rng.random((n, n)) < 1.5 / n, 1)
    matrix |= np.eye(n, k=1, dtype=bool) & (rng.random(n) < 0.9)
    graph = Graph(tuple(Node("conv", "", None) for _ in range(n)), np.argwhere(matrix), {}, {})
    expected = shortest_path(csr_array(matrix.astype(float)), unweighted=True)
    expected[expected > cutoff] = 0
    assert np.array_equal(graph.distances(cutoff), expected)


def test_distances_without_edges() -> None:
    graph = Graph((Node("input", "", None),), np.empty((0, 2), dtype=np.int64), {}, {})
    assert graph.distances().tolist() == [[0]]


def test_a_norm_whose_weight_is_its_bias() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 10))
    model[1].bias = model[1].weight
    graph = trace(model, (3, 3, 3))
    assert graph.targets["1.weight"].role == "norm"
    assert [node.primitive for node in graph.nodes].count("bn") == 1
