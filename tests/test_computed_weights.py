"""Weights that are computed before use: masked, scaled by the input, normalised, adapted; and what is left of them."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import SIZE, Make, Net, assert_graph, conv, linear, param, tokens
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision.ops import DeformConv2d, deform_conv2d

from timm_ghn_init.ghn import GHN
from timm_ghn_init.graph import Graph, trace


def frozen(*shape: int) -> nn.Parameter:
    """A mask: zeros and ones that are not trained."""
    values = torch.arange(torch.Size(shape).numel()) % 2
    return nn.Parameter(values.float().reshape(shape), requires_grad=False)


def zero(layer: Any) -> Any:
    nn.init.zeros_(layer.weight)
    return layer


def predicted(graph: Graph, ghn: GHN, model: nn.Module) -> set[str]:
    """Names of what is predicted, each in the parameter's shape."""
    predictions = ghn.predict(graph)
    for name, p in model.named_parameters():
        assert name not in predictions or predictions[name].shape == p.shape
    return set(predictions)


# -- masks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("weight", "mask"), ("a", "z"), ("z", "a")], ids="-".join)
@pytest.mark.parametrize("trained", [True, False], ids=["", "all frozen"])
def test_a_mask_is_left_and_what_it_masks_is_predicted(names: tuple[str, str], trained: bool) -> None:
    weight, mask = names
    model = Net(
        lambda m, x: F.linear(tokens(x), getattr(m, weight) * (1 - getattr(m, mask))),
        **{weight: nn.Parameter(torch.randn(8, 8), requires_grad=trained), mask: frozen(8, 8)},
    )
    graph = trace(model, SIZE)
    assert_graph(graph, f"input > conv {weight}")
    assert graph.skipped.keys() == {mask}


# -- made for each image -----------------------------------------------------------------------------------------------


def modulated(m: Any, x: Tensor) -> Tensor:
    """StyleGAN 2: the kernel's input channels are scaled for each image, its output channels are normalised."""
    b, c, h, w = x.shape
    kernel = m.w * m.style(x.mean((2, 3))).view(b, 1, c, 1, 1)
    kernel = kernel * torch.rsqrt(kernel.square().sum((2, 3, 4), keepdim=True) + 1e-8)
    return F.conv2d(x.reshape(1, b * c, h, w), kernel.view(b * 5, c, 3, 3), groups=b).view(b, 5, h - 2, w - 2) + m.b


def modulated_linear(m: Any, x: Tensor) -> Tensor:
    return torch.einsum("bni,boi->bno", tokens(x), m.w * m.style(x.mean((2, 3)))[:, None])


def mixed(m: Any, x: Tensor) -> Tensor:
    """Depthwise kernels, mixed from three experts."""
    b, c, h, w = x.shape
    kernel = (m.style(x.mean((2, 3))).softmax(-1).view(b, 3, 1, 1, 1, 1) * m.w).sum(1)
    return F.conv2d(x.reshape(1, b * c, h, w), kernel.view(b * c, 1, 3, 3), groups=b * c).view(b, c, h - 2, w - 2)


STYLE = "input > glob_avg > conv style.weight"
MADE: dict[str, tuple[Make, str, tuple[int, ...]]] = {
    "modulated": (
        lambda: Net(modulated, style=linear(), w=param(5, 8, 3, 3), b=param(5, 1, 1)),
        f"{STYLE} > conv w > bias b; input > conv w",
        (5, 8, 3, 3),
    ),
    "modulated linear": (
        lambda: Net(modulated_linear, style=linear(), w=param(5, 8)),
        f"{STYLE} > conv w; input > conv w",
        (5, 8),
    ),
    "depthwise experts": (
        lambda: Net(mixed, style=linear(8, 3), w=param(3, 8, 1, 3, 3)),
        f"{STYLE} > sep_conv w; input > sep_conv w",
        (8, 1, 3, 3),
    ),
}


@pytest.mark.parametrize(("make", "chains", "kernel"), MADE.values(), ids=MADE)
def test_a_kernel_that_the_input_scales_is_a_kernel(
    make: Make, chains: str, kernel: tuple[int, ...], seeded_ghn2: GHN
) -> None:
    model = make()
    graph = trace(model, SIZE)
    assert_graph(graph, chains)
    assert next(n.shape for n in graph.nodes if n.param == "w") == kernel
    assert predicted(graph, seeded_ghn2, model) == {n for n, _ in model.named_parameters()}


# -- layers of other kinds ---------------------------------------------------------------------------------------------


OTHERS: dict[str, tuple[Make, str]] = {
    "deformable": (
        lambda: Net(lambda m, x: m.l(x, m.o(x)), l=DeformConv2d(8, 5, 3), o=nn.Conv2d(8, 18, 3)),
        "input > conv o.weight > bias o.bias > conv l.weight > bias l.bias; input > conv l.weight",
    ),
    "deformable, with a mask and groups": (
        lambda: Net(
            lambda m, x: deform_conv2d(x, m.o(x), m.w, m.b, padding=1, mask=m.k(x).sigmoid()),
            o=conv(8, 18), k=conv(8, 9), w=param(8, 4, 3, 3), b=param(8),
        ),
        "input > conv o.weight > sep_conv w > bias b; input > conv k.weight > sep_conv w; input > sep_conv w",
    ),
    "bilinear": (
        lambda: Net(lambda m, x: m.l(m.k(tokens(x)), tokens(x)), k=linear(8, 3), l=nn.Bilinear(3, 8, 5)),
        "input > conv k.weight > conv l.weight > bias l.bias; input > conv l.weight",
    ),
    "channels first": (
        lambda: Net(lambda m, x: m.w @ x.flatten(2) + m.b, w=param(5, 8), b=param(5, 1)),
        "input > conv w > bias b",
    ),
    "channels first, baddbmm": (
        lambda: Net(lambda m, x: torch.baddbmm(m.b, m.w.expand(2, -1, -1), x.flatten(2)), w=param(5, 8), b=param(5, 1)),
        "input > conv w > bias b",
    ),
    "a product of weights": (
        lambda: Net(lambda m, x: F.linear(tokens(x), m.l.weight @ m.k.weight), k=linear(8, 3), l=linear(3, 5)),
        "input > conv k.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "chains"), OTHERS.values(), ids=OTHERS)
def test_other_kinds_of_layers(make: Make, chains: str, seeded_ghn2: GHN) -> None:
    model = make()
    graph = trace(model, SIZE)
    assert_graph(graph, chains)
    assert predicted(graph, seeded_ghn2, model) == set(graph.targets)


# -- spectral norms ----------------------------------------------------------------------------------------------------


class OwnSpectralNorm(nn.Conv2d):
    """Singular vectors as frozen parameters, estimated with the weight and its transpose."""

    def __init__(self) -> None:
        super().__init__(8, 5, 3)
        self.u, self.v = frozen(5), frozen(72)

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.weight.view(5, -1)
        u = F.normalize(matrix.mv(F.normalize(matrix.t().mv(self.u), dim=0)), dim=0)
        return F.conv2d(x, self.weight / u.dot(matrix.mv(self.v)), self.bias)


class SpectralNormOfABuffer(nn.Linear):
    """One step of power iteration from a buffer, by matrix products."""

    def __init__(self) -> None:
        super().__init__(8, 5)
        self.register_buffer("u", torch.ones(1, 5))

    def forward(self, x: Tensor) -> Tensor:
        v = F.normalize(self.u @ self.weight, dim=-1)
        return F.linear(tokens(x), self.weight / (self.u @ self.weight @ v.T), self.bias)


SPECTRAL: dict[str, tuple[Make, str]] = {
    "hook": (lambda: Net(lambda m, x: m.l(x), l=nn.utils.spectral_norm(nn.Conv2d(8, 5, 3))), "l.weight_orig"),
    "hook, transposed": (
        lambda: Net(lambda m, x: m.l(x), l=nn.utils.spectral_norm(nn.ConvTranspose2d(8, 5, 3))),
        "l.weight_orig",
    ),
    "parametrization": (
        lambda: Net(lambda m, x: m.l(x), l=parametrizations.spectral_norm(nn.Conv2d(8, 5, 3))),
        "l.parametrizations.weight.original",
    ),
    "own": (lambda: Net(lambda m, x: m.l(x), l=OwnSpectralNorm()), "l.weight"),
    "of a buffer": (lambda: Net(lambda m, x: m.l(x), l=SpectralNormOfABuffer()), "l.weight"),
}


@pytest.mark.parametrize(("make", "weight"), SPECTRAL.values(), ids=SPECTRAL)
def test_a_weight_divided_by_its_spectral_norm_is_a_weight(make: Make, weight: str) -> None:
    graph = trace(make(), SIZE)
    assert_graph(graph, f"input > conv {weight} > bias l.bias")
    assert not any("not used" in reason for reason in graph.skipped.values())


# -- low-rank adapters -------------------------------------------------------------------------------------------------


class Adapted(nn.Module):
    """A layer and low-rank adapters of it, scaled."""

    def __init__(self, base: nn.Module, *adapters: tuple[nn.Module, nn.Module]) -> None:
        super().__init__()
        self.base = base
        self.down = nn.ModuleList(down for down, _ in adapters)
        self.up = nn.ModuleList(up for _, up in adapters)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        for down, up in zip(self.down, self.up, strict=True):
            y = y + 0.5 * up(F.dropout(down(x), 0.1, self.training))
        return y


ADAPTED: dict[str, tuple[Make, str]] = {
    "linear": (lambda: Adapted(linear(128, 8, True), (linear(128, 2), zero(linear(2, 8)))), "bias base.bias"),
    "the first factor is zero": (lambda: Adapted(linear(128, 8), (zero(linear(128, 2)), linear(2, 8))), ""),
    "two": (lambda: Adapted(linear(128, 8), *((linear(128, 2), zero(linear(2, 8))) for _ in range(2))), ""),
    "convolution": (lambda: Adapted(conv(8, 8, 3), (conv(8, 2, 3), zero(conv(2, 8)))), ""),
}


@pytest.mark.parametrize(("make", "bias"), ADAPTED.values(), ids=ADAPTED)
def test_an_adapter_that_adds_nothing_is_not_there(make: Make, bias: str) -> None:
    layer = make()
    model = Net(lambda m, x: m.l(x if isinstance(m.l.base, nn.Conv2d) else x.flatten(1)), l=layer)
    graph = trace(model, SIZE)
    assert_graph(graph, "input > conv l.base.weight" + bias.replace("bias base", " > bias l.base"))
    assert all(
        "adapter that adds nothing" in graph.skipped[name] for name, _ in model.named_parameters() if "base" not in name
    )


def test_an_adapter_that_adds_something_and_a_branch_that_is_none() -> None:
    trained = Net(lambda m, x: m.l(x), l=Adapted(conv(), (conv(8, 2), conv(2, 8))))
    with pytest.raises(
        ValueError, match=r"l\.down\.0\.weight belongs to an adapter .* Initialise before adding adapters"
    ):
        trace(trained, SIZE)
    bottleneck = Net(lambda m, x: x + m.up(m.down(x).relu()), down=conv(8, 2), up=zero(conv(2, 8)))
    assert_graph(trace(bottleneck, SIZE), "input > conv down.weight > conv up.weight > sum; input > sum")


def test_an_adapter_inside_the_weight() -> None:
    model = Net(
        lambda m, x: F.linear(tokens(x), m.l.weight + m.b @ m.a),
        l=linear(),
        a=param(2, 8),
        b=nn.Parameter(torch.zeros(8, 2)),
    )
    graph = trace(model, SIZE)
    assert_graph(graph, "input > conv l.weight")
    assert all("folded into a weight" in graph.skipped[name] for name in ("a", "b"))


# -- what is left, and why ---------------------------------------------------------------------------------------------


def test_complex_weights_are_left() -> None:
    model = Net(
        lambda m, x: torch.fft.irfft2(torch.einsum("bixy,ioxy->boxy", torch.fft.rfft2(m.c(x)), m.w)),
        c=conv(),
        w=nn.Parameter(torch.randn(8, 8, 4, 3, dtype=torch.cfloat)),
    )
    graph = trace(model, SIZE)
    assert_graph(graph, "input > conv c.weight")
    assert "complex64 values" in graph.skipped["w"]


def test_complex_weights_of_two_parameters_are_left() -> None:
    model = Net(
        lambda m, x: torch.fft.irfft2(torch.fft.rfft2(m.c(x)) @ torch.complex(m.re, m.im)),
        c=conv(),
        re=param(3, 3),
        im=param(3, 3),
    )
    graph = trace(model, SIZE)
    assert_graph(graph, "input > conv c.weight")
    assert all("complex" in graph.skipped[name] for name in ("re", "im"))


def test_a_learned_exponent_has_a_reason() -> None:
    graph = trace(Net(lambda m, x: m.c(x).relu().pow(m.p).mean((2, 3)).pow(1 / m.p), c=conv(), p=param(1)), SIZE)
    assert graph.skipped == {"p": "an operand of pow"}


def ranked(m: Any, x: Tensor) -> Tensor:
    t = tokens(m.c(x))
    return t.gather(1, m.rank(m.hidden(t).relu()).topk(4, 1).indices.expand(-1, -1, 8))


def masked(m: Any, x: Tensor) -> Tensor:
    return m.c(x) * (m.rank(tokens(x)).mean((1, 2)) > m.threshold).view(-1, 1, 1, 1)


def asked(m: Any, x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(m.n(m.query).expand(2, -1, -1), tokens(m.c(x)), tokens(x))


REASONS: dict[str, tuple[Make, dict[str, str]]] = {
    "indices": (
        lambda: Net(ranked, c=conv(), hidden=linear(8, 3), rank=linear(3, 1)),
        {"hidden.weight": "decides on an index", "rank.weight": "decides on an index"},
    ),
    "a mask": (
        lambda: Net(masked, c=conv(), rank=linear(8, 1), threshold=param(1)),
        {"rank.weight": "decides on an index or a mask", "threshold": "operand of gt"},
    ),
    "a query behind a norm": (
        lambda: Net(asked, c=conv(), n=nn.LayerNorm(8), query=param(1, 4, 8)),
        {"query": "goes through a norm"},
    ),
    "a decision": (
        lambda: Net(lambda m, x: m.c(x) if m.rank(tokens(x)).sum().item() >= 0 else x, c=conv(), rank=linear(8, 1)),
        {"rank.weight": "decides on"},
    ),
    "thrown away": (
        lambda: Net(lambda m, x: (m.rank(tokens(x)), m.c(x))[1], c=conv(), rank=linear(8, 1)),
        {"rank.weight": "not used"},
    ),
}


@pytest.mark.parametrize(("make", "reasons"), REASONS.values(), ids=REASONS)
def test_reasons_are_true(make: Make, reasons: dict[str, str]) -> None:
    skipped = trace(make(), SIZE).skipped
    assert skipped.keys() == reasons.keys()
    assert all(reason in skipped[name] for name, reason in reasons.items())
