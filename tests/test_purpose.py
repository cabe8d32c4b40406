"""What a constructor set on purpose is kept, with a reason; what it drew at random is not."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from nets import Net, conv
from torch import Tensor, nn

from timm_ghn_init import TraceError, init_model
from timm_ghn_init.own_init.deferred import DeferredInit
from timm_ghn_init.own_init.values import set_values
from timm_ghn_init.recipe import purpose, unnormed, unusual
from timm_ghn_init.recipe.purpose import find_purpose

SOURCE = "ghn2-fashion-orth"
SOURCES = ("ghn2-fashion", SOURCE, "rand", "orth")


def reason(values: Tensor, role: str, fan_in: int = 64) -> str | None:
    """Why a parameter with these values is kept."""
    module = nn.Module()
    name = "bias" if role == "bias" else "weight"
    if role == "bias":
        module.weight = nn.Parameter(torch.randn(len(values), fan_in))
    module.register_parameter(name, nn.Parameter(values))
    return find_purpose(module, {name: role}, {name: values}).kept.get(name)


def drawn(init: Callable[[Tensor], object], *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(0)
    values = torch.zeros(shape)
    init(values)
    return values.to(dtype)


DRAWS: dict[str, Callable[[Tensor], object]] = {
    "kaiming": nn.init.kaiming_uniform_,
    "xavier": nn.init.xavier_normal_,
    "truncated": lambda t: nn.init.trunc_normal_(t, std=0.02),
    "orthogonal": nn.init.orthogonal_,
    "tiny": lambda t: nn.init.normal_(t, std=1e-6),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(6, 6), (8, 3, 1, 1), (1, 64), (64, 1, 3, 3), (200, 300), (32, 16, 7, 7), (4, 2)])
@pytest.mark.parametrize("init", DRAWS)
def test_weights_that_are_drawn(init: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if (init, dtype) != ("tiny", torch.float16):  # of which half precision makes zeros
        assert reason(drawn(DRAWS[init], *shape, dtype=dtype), "weight") is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 2, 3, 16, 1000, 5000])
def test_biases_that_are_drawn(count: int, dtype: torch.dtype) -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.empty(count).uniform_(-1 / 8, 1 / 8, generator=generator).to(dtype)
        assert reason(uniform, "bias") is None
        assert reason(torch.empty(count).normal_(std=0.02, generator=generator).to(dtype), "bias") is None


def test_ordinary_constants() -> None:
    assert reason(torch.zeros(16), "bias") is None
    assert reason(torch.ones(16), "norm") is None
    assert reason(torch.zeros(16), "norm") is None
    assert reason(torch.zeros(1, 16, 8), "pos_enc") is None


def hadamard(n: int) -> Tensor:
    return torch.ones(1, 1) if n == 1 else torch.kron(hadamard(n // 2), torch.tensor([[1.0, 1], [1, -1]]))


def sines(rows: int, columns: int) -> Tensor:
    angles = torch.arange(float(rows))[:, None] / 10000 ** (torch.arange(0, columns, 2) / columns)
    return torch.cat([angles.sin(), angles.cos()], 1)


def masked(t: Tensor) -> Tensor:
    return t * (torch.arange(t.numel()).view(t.shape) % 3 != 0)


SET: dict[str, tuple[Tensor, str, str]] = {
    "zero": (torch.zeros(16, 8, 3, 3), "weight", unusual.ZERO),
    "average": (torch.full((8, 1, 3, 3), 1 / 9), "weight", unusual.TABLE),
    "identity": (torch.eye(32), "weight", unusual.TABLE),
    "dirac": (nn.init.dirac_(torch.empty(32, 32, 3, 3)), "weight", unusual.TABLE),
    "permutation": (torch.eye(64)[torch.arange(63, -1, -1)], "weight", unusual.TABLE),
    "sparse": (torch.eye(64)[torch.arange(63, -1, -1)] * (torch.arange(64) > 60), "weight", unusual.TABLE),
    "signs": (hadamard(32) / 32**0.5, "weight", unusual.TABLE),
    "bins": (torch.arange(16.0).view(1, 16, 1, 1), "weight", unusual.TABLE),
    "copies": (torch.randn(8, 1, 16, 3).expand(8, 4, 16, 3).reshape(32, 16, 3), "weight", unusual.TABLE),
    "mask": (masked(torch.randn(64, 64)), "weight", unusual.TABLE),
    "sines": (sines(64, 32)[None], "pos_enc", unusual.TABLE),
    "sines as a weight": (sines(64, 32), "weight", unusual.TABLE),
    "prior": (torch.full((80,), -4.6), "bias", unusual.CONSTANT),
    "prior of one class": (torch.full((1,), -4.6), "bias", unusual.CONSTANT),
    "slice": (torch.cat([torch.zeros(32), torch.ones(32), torch.zeros(64)]), "bias", unusual.CONSTANT),
    "slice of a draw": (torch.cat([torch.zeros(10), torch.randn(30)]), "bias", unusual.CONSTANT),
    "classes": (torch.tensor([-4.6, 0.0, -4.6, 0.0]), "bias", unusual.CONSTANT),
    "steps": (torch.linspace(-4, 4, 9), "bias", unusual.TABLE),
    "around a prior": (torch.randn(64).mul(0.3).sub(4), "bias", unusual.CONSTANT),
    "gain": (torch.full((16,), 0.1), "norm", unusual.CONSTANT),
}


@pytest.mark.parametrize("name", SET)
def test_values_that_are_set(name: str) -> None:
    values, role, expected = SET[name]
    torch.manual_seed(0)
    assert reason(values, role) == expected
    if name not in ("slice of a draw", "copies"):
        assert reason(values.bfloat16(), role) == expected


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def two_layers() -> Net:
    """A classifier of three layers, the second of which has something to be kept."""
    layers = {"a": conv(3, 8), "b": conv(8, 8, bias=True), "fc": nn.Linear(8, 5)}
    return Net(lambda m, x: m.fc(pooled(F.relu(m.b(F.relu(m.a(x)))))), **layers)


@pytest.mark.parametrize("source", SOURCES)
def test_frozen_parameters(source: str) -> None:
    """Whatever the source; and `only=` asks for them."""
    model = two_layers()
    model.b.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    report = init_model(model, source, input_size=16)
    assert report.skipped["b.weight"] == purpose.FROZEN and report.skipped["b.bias"] == purpose.OF_A_KEPT_LAYER
    assert torch.equal(model.b.weight, before["b.weight"]) and torch.equal(model.b.bias, before["b.bias"])
    assert "a.weight" in report.predicted and not torch.equal(model.a.weight, before["a.weight"])
    assert "b.weight" in init_model(model, source, input_size=16, only="b.*").predicted


def test_asked_for_by_name() -> None:
    """A pattern asks for frozen parameters only; a name for whatever the values are."""
    for only, expected in (("b.*", False), ("b.weight", True)):
        model = two_layers()
        nn.init.zeros_(model.b.weight)
        if expected:
            assert "b.weight" in init_model(model, SOURCE, input_size=16, only=only).predicted
        else:
            with pytest.raises(TraceError, match="set to zero by the constructor"):
                init_model(model, SOURCE, input_size=16, only=only)


def test_everything_frozen_is_an_error() -> None:
    model = two_layers().requires_grad_(False)
    with pytest.raises(TraceError, match=r"frozen by the model.*only="):
        init_model(model, SOURCE, input_size=16)


def test_a_second_time() -> None:
    """Predictions repeat, and are nobody's purpose."""
    model = timm.create_model("test_resnet")
    first = init_model(model, "ghn2-fashion")
    second = init_model(nn.Sequential(model), "ghn2-fashion")
    assert {f"0.{n}" for n in first.predicted} == set(second.predicted)


def test_norms_that_start_at_zero() -> None:
    model = timm.create_model("resnet18", num_classes=10)
    report = init_model(model, SOURCE)
    assert report.notes == ("8 norm weights that started at zero (branches that were off) are initialised as well",)
    assert report.notes[0] in str(report) and model.layer1[0].bn2.weight.any()


class Zeroed(nn.Module):
    """Its own initialisation sets a prior and a layer of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3), nn.Linear(32, 20)
        self.init_weights()

    def init_weights(self) -> None:
        nn.init.kaiming_normal_(self.a.weight)
        nn.init.zeros_(self.b.weight)
        nn.init.constant_(self.fc.bias, -4.6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((self.a(x).relu()[..., 1:-1, 1:-1] + self.b(self.a(x).relu())).mean((2, 3)))


def test_without_values_the_models_own_initialisation_is_asked() -> None:
    report = init_model(Zeroed(), SOURCE, input_size=16)
    assert report.skipped["b.weight"] == unusual.ZERO
    with torch.device("meta"):
        model = Zeroed()
    on_meta = init_model(model, SOURCE, input_size=16, device="cpu")
    assert on_meta.skipped == report.skipped and not model.b.weight.any()


class Around(nn.Module):
    """Its `reset_parameters` follows that of the layers inside, as in its constructor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3, padding=1), nn.Linear(32, 20)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.b.weight)
        nn.init.constant_(self.fc.bias, -4.6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.fc((x + self.b(x)).mean((2, 3)))


@pytest.mark.parametrize("source", [SOURCE, "rand", "orth"])
def test_a_module_is_reset_after_those_inside_of_it(source: str) -> None:
    expected = init_model(Around(), source, input_size=16).skipped
    assert expected["b.weight"] == unusual.ZERO
    with torch.device("meta"):
        model, emptied = Around(), Around()
    assert init_model(model, source, input_size=16, device="cpu").skipped == expected
    emptied.to_empty(device="cpu")
    assert init_model(emptied, source, input_size=16, init_rest=True).skipped == expected
    for made in (model, emptied):
        assert not made.b.weight.any() and (source != SOURCE or (made.fc.bias == -4.6).all())


def test_while_draws_are_put_off() -> None:
    """What is only drawn is not read; what is set afterwards is."""
    with DeferredInit(0) as deferred:
        model = Zeroed()
        nn.init.ones_(model.a.bias.data[:8])
        deferred.close()
        known = set_values(model, [n for n, _ in model.named_parameters()], deferred.is_drawn)
        assert set(known) == {"a.bias", "b.weight", "fc.bias"}
        assert (known["a.bias"][:8] == 1).all() and not known["b.weight"].any() and known["fc.bias"][0] == -4.6
    gates = timm.create_model("gmlp_ti16_224.ghn2-fashion", pretrained=True, img_size=32, num_classes=10)
    assert all((p == 1).all() for n, p in gates.named_parameters() if n.endswith("gate.proj.bias"))


# -- heads -----------------------------------------------------------------------------------------------------------


class Detector(nn.Module):
    """Two outputs for each cell, behind a layer without a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU())
        self.neck, self.classes, self.boxes = (nn.Conv2d(64, n, 3, 1, 1) for n in (64, 20, 4))
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.constant_(self.classes.bias, -math.log(99))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.neck(self.body(x)).relu()
        return {"classes": self.classes(x), "boxes": self.boxes(x)}


@pytest.mark.parametrize("source", SOURCES)
def test_a_detector_trains(source: str) -> None:
    """Its first loss is as large as that of its own start, and ten steps stay finite."""
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def loss(model: nn.Module) -> Tensor:
        classes, boxes = model.train()(x).values()
        return F.binary_cross_entropy_with_logits(classes, torch.zeros_like(classes)) * 100 + boxes.square().mean()

    torch.manual_seed(0)
    model = Detector()
    own = loss(model).item()
    report = init_model(model, source, input_size=32)
    assert report.skipped["neck.weight"] == purpose.HEAD and "boxes.weight" in report.skipped
    assert "body.0.weight" in report.predicted
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(10):
        losses.append(loss(model))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[0].item() < 3 * own and losses[-1].item() < losses[0].item()


def test_a_classifier_has_no_such_head() -> None:
    """Neither do features."""
    for options in ({}, {"num_classes": 0}, {"features_only": True}):
        report = init_model(timm.create_model("test_nfnet", **options), "rand")
        assert purpose.HEAD not in report.skipped.values()
    features = init_model(timm.create_model("test_convnext", features_only=True), SOURCE)
    assert unnormed.BIAS not in features.skipped.values() and not features.notes
    squeezenet_like = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 5, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    for model in (two_layers(), squeezenet_like):
        assert purpose.HEAD not in init_model(model, SOURCE, input_size=16).skipped.values()


def test_without_a_norm_the_last_layer_is_the_head() -> None:
    model = Net(lambda m, x: m.c(m.b(m.a(x).relu()).relu()), a=conv(3), b=conv(), c=conv())
    report = init_model(model, SOURCE, input_size=16)
    assert report.skipped == {"c.weight": purpose.HEAD} and set(report.predicted) == {"a.weight", "b.weight"}


@pytest.mark.parametrize("source", ["ghn2-fashion", f"{SOURCE}?layer=3"])
def test_a_network_without_norms_keeps_its_size(source: str) -> None:
    """A residual network for super-resolution, in which errors of size multiply."""

    def build() -> nn.Module:
        torch.manual_seed(0)
        blocks = nn.ModuleList(nn.Sequential(conv(64, 64, 3, bias=True), nn.ReLU(), conv(64, 64, 3)) for _ in range(8))

        def forward(m: Any, x: Tensor) -> Tensor:
            x = m.stem(x)
            for block in m.blocks:
                x = x + block(x)
            return F.pixel_shuffle(m.tail(x), 2)

        return Net(forward, stem=conv(3, 64, 3), blocks=blocks, tail=conv(64, 12, 3))

    x = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    model, own = build(), build()(x).std()
    report = init_model(model, source, input_size=12)
    assert "blocks.7.2.weight" in report.predicted and report.skipped["tail.weight"] == purpose.HEAD
    assert report.skipped["blocks.0.0.bias"] == unnormed.BIAS and "17 predicted weights" in report.notes[0]
    assert own / 2 < model(x).std() < 2 * own
    for name, weight in model.named_parameters():
        if name in report.predicted:
            amplification = torch.linalg.matrix_norm(weight.flatten(1), 2)
            assert amplification.item() == pytest.approx(math.sqrt(len(weight) / (3 * weight[0].numel())), rel=1e-3)


def test_weights_that_a_later_source_replaces_are_not_reported_as_scaled() -> None:
    model = Net(lambda m, x: m.c(m.b(m.a(x).relu()).relu()), a=conv(3), b=conv(), c=conv())
    assert init_model(model, "ghn2-fashion", input_size=16).notes[0].startswith("2 predicted weights")
    assert not init_model(model, "ghn2-fashion+rand", input_size=16).notes


def test_a_classifier_without_norms_is_predicted_whole() -> None:
    """Classifiers get the values of the reference implementation."""
    layers = {"stem": conv(3, 16, 3, bias=True), "a": conv(16, 16, 3, bias=True), "fc": nn.Linear(16, 10)}
    report = init_model(Net(lambda m, x: m.fc(pooled((y := m.stem(x)) + m.a(y))), **layers), SOURCE, input_size=16)
    assert not report.skipped and not report.notes


def test_outputs_before_and_behind_a_norm() -> None:
    """The head of the second is no head of the first, to which the input gets without a norm (SSD)."""
    layers = {"a": conv(3), "b": conv(), "norm": nn.BatchNorm2d(8), "c": conv(), "d": conv()}
    model = Net(lambda m, x: (m.c(m.norm(m.a(x))), m.d(m.b(m.a(x)).relu())), **layers)
    report = init_model(model, SOURCE, input_size=16)
    assert set(report.predicted) == {"a.weight", "b.weight", "norm.weight", "norm.bias"}


# -- norms that norm nothing -----------------------------------------------------------------------------------------


def test_frozen_batch_norms(caplog: pytest.LogCaptureFixture) -> None:
    frozen = timm.layers.freeze_batch_norm_2d(timm.create_model("test_resnet"))
    partly = timm.create_model("test_resnet")
    partly.bn = nn.BatchNorm2d(3).eval()
    for model in (frozen, partly):
        caplog.clear()
        init_model(model, SOURCE)
        (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
        assert "batch norms are frozen" in record.getMessage()
    caplog.clear()
    report = init_model(timm.create_model("test_resnet").eval(), SOURCE)
    assert not [r for r in caplog.records if r.levelname == "WARNING"] and "eval mode" in report.notes[-1]


# -- the same network inside another module --------------------------------------------------------------------------


@pytest.mark.parametrize("source", [f"{SOURCE}?layer=2", "rand"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: Net(lambda m, x: m.net(x), net=net),
        lambda net: nn.Sequential(nn.Identity(), nn.Sequential(net)),
        lambda net: nn.DataParallel(Net(lambda m, x: m.net(x), net=net, copy=net)),
    ],
)
def test_the_same_values_inside_a_wrapper(wrap: Callable[[nn.Module], nn.Module], source: str) -> None:
    alone = timm.create_model("test_resnet")
    inside = copy.deepcopy(alone)
    whole = wrap(inside)
    init_model(alone, source)
    init_model(whole, source)
    for name, p in alone.named_parameters():
        assert torch.equal(p, inside.get_parameter(name)), name
    assert inside.pretrained_cfg["source"] == source
