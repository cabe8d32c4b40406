"""Which layers are taken for the classifier: those that yield logits, wherever they are and whatever else comes out."""

import dataclasses
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timm_ghn_init.graph import trace

SIZE = (3, 8, 8)
Make = Callable[[], nn.Module]
L, K = {"l.weight", "l.bias"}, {"k.weight", "k.bias"}


class Net(nn.Module):
    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def fc(i: int = 4, o: int = 5) -> nn.Linear:
    return nn.Linear(i, o)


def on_vectors(run: Callable[..., Any], **parts: Callable[[], Any]) -> Make:
    """() -> a network: a convolution, a ReLU, the mean, and what is run on the vectors (B, 4)."""

    def whole(m: Any, x: Tensor) -> Any:
        return run(m, m.c(x).relu().mean((2, 3)))

    return lambda: Net(whole, c=nn.Conv2d(3, 4, 3), **{name: make() for name, make in parts.items()})


def on_tokens(run: Callable[..., Any], **parts: Callable[[], Any]) -> Make:
    """() -> a network: 4 x 4 patches of 4 channels, and what is run on them (B, 16, 4)."""

    def whole(m: Any, x: Tensor) -> Any:
        return run(m, m.c(x).flatten(2).mT)

    return lambda: Net(whole, c=nn.Conv2d(3, 4, 2, 2), **{name: make() for name, make in parts.items()})


def heads(model: nn.Module, **kwargs: Any) -> set[str]:
    return {t.param for t in trace(model, SIZE, **kwargs).targets.values() if t.classifier}


Two = namedtuple("Two", "logits feature")


@dataclasses.dataclass
class Result:
    prediction: Tensor
    other: Any = None


class ModelOutput(OrderedDict):
    """As transformers has it: a dict whose entries are attributes as well."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


def both(wrap: Callable[[Tensor, Tensor], Any]) -> Make:
    """Logits, and the vector that they come from."""
    return on_vectors(lambda m, y: wrap(m.l(y), y), l=fc)


def two(wrap: Callable[..., Any], k: Callable[[], nn.Linear] = fc) -> Make:
    """The outputs of two heads."""
    return on_vectors(lambda m, y: wrap(m.l(y), m.k(y)), l=fc, k=k)


ONE_OF_SEVERAL: dict[str, Make] = {
    "tuple": both(lambda a, y: (a, y)),
    "the other way round": both(lambda a, y: [y, a]),
    "dict": both(lambda a, y: {"out": a, "feature": y}),
    "namedtuple": both(Two),
    "dataclass": both(Result),
    "ModelOutput": both(lambda a, y: ModelOutput(logits=a, hidden_states=(y, y))),
    "nested": both(lambda a, y: {"a": {"b": (a, None)}, "c": [y]}),
    "probabilities as well": both(lambda a, y: (a, a.softmax(1), a.argmax(1))),
    "maps of features": on_vectors(lambda m, y: (m.l(y), [y[..., None, None]]), l=fc),
    "a feature from a layer": on_vectors(lambda m, y: (m.l(z := m.k(y)), z), k=lambda: fc(4, 4), l=fc),
    "an embedding by its name": two(lambda a, b: {"y": a, "image_embeds": b}),
    "logits by their name": two(lambda a, b: {"logits": a, "b": b}),
    "an activated feature": two(lambda a, b: (a, b.tanh())),
    "a loss": on_vectors(lambda m, y: (m.l(y), m.k(y).square().mean()), l=fc, k=fc),
    "boxes of another number": two(lambda a, b: (a, b.view(-1, 1).repeat(3, 1))),
}


@pytest.mark.parametrize("make", ONE_OF_SEVERAL.values(), ids=ONE_OF_SEVERAL)
def test_one_of_several_outputs(make: Make) -> None:
    assert heads(make()) == L


SEVERAL: dict[str, Make] = {
    "tuple": two(lambda a, b: (a, b)),
    "of different widths": two(lambda a, b: (a, b), k=lambda: fc(4, 7)),
    "dict": two(lambda a, b: {"student": a, "teacher": b}),
    "dict of logits": two(lambda a, b: {"logits": {"age": a, "sex": b}}),
    "dataclass": two(Result),
    "teacher without a gradient": two(lambda a, b: (a, b.detach())),
    "summed": two(lambda a, b: a + b),
    "averaged": two(lambda a, b: (a + b) / 2),
    "stacked and averaged": two(lambda a, b: torch.stack((a, b)).mean(0)),
    "joined": two(lambda a, b: torch.cat((a, b), 1)),
    "weighted by the input": two(lambda a, b: a * b.sigmoid()),
}


@pytest.mark.parametrize("make", SEVERAL.values(), ids=SEVERAL)
def test_several_heads(make: Make) -> None:
    assert heads(make()) == L | K


@pytest.mark.parametrize("container", [nn.ModuleList, lambda m: nn.ModuleDict({"a": m[0], "b": m[1]})])
def test_heads_in_a_container(container: Callable[[list[nn.Module]], Any]) -> None:
    def run(m: Any, y: Tensor) -> list[Tensor]:
        return [head(y) for head in (m.heads.values() if isinstance(m.heads, nn.ModuleDict) else m.heads)]

    model = on_vectors(run, heads=lambda: container([fc(), fc(4, 3)]))()
    assert heads(model) == {name for name, _ in model.named_parameters() if name.startswith("heads")}


SPELLINGS: dict[str, Make] = {
    "mean over patches": on_tokens(lambda m, t: m.l(t).mean(1), l=fc),
    "pooled over patches": on_tokens(lambda m, t: F.adaptive_avg_pool1d(m.l(t).mT, 1).flatten(1), l=fc),
    "largest of patches": on_tokens(lambda m, t: m.l(t).amax(1), l=fc),
    "mean over a map": on_vectors(lambda m, y: m.l(y[:, None, None].repeat(1, 3, 3, 1)).mean((1, 2)), l=fc),
    "mean over time": on_vectors(lambda m, y: m.l(y).view(2, -1, 5).mean(1), l=fc),
    "mean over time, time first": on_tokens(lambda m, t: m.l(t.transpose(0, 1)).mean(0), l=fc),
    "weighted by attention to patches": on_tokens(
        lambda m, t: (m.l(t) * m.w(t).softmax(1)).sum(1), l=fc, w=lambda: fc(4, 1)
    ),
    "softmax": on_vectors(lambda m, y: m.l(y).softmax(1), l=fc),
    "softmax written out": on_vectors(lambda m, y: (e := m.l(y).exp()) / e.sum(1, keepdim=True), l=fc),
    "sigmoid": on_vectors(lambda m, y: m.l(y).sigmoid(), l=fc),
    "temperature": on_vectors(lambda m, y: m.l(y) / 0.1, l=fc),
    "learned scale": on_vectors(lambda m, y: m.l(y) * m.s.exp(), l=fc, s=lambda: nn.Parameter(torch.ones(1))),
    "dropout before, squeeze after": on_vectors(lambda m, y: m.l(F.dropout(y))[:, None].squeeze(1), l=fc),
    "twice, flipped": on_vectors(lambda m, y: (m.l(y) + m.l(y.flip(1))) / 2, l=fc),
    "hidden layer first": on_vectors(lambda m, y: m.l(m.k(y).relu()), l=fc, k=lambda: fc(4, 4)),
    "norm and hidden layer": on_vectors(
        lambda m, y: m.l(m.n(m.k(y)).relu()), l=fc, k=lambda: fc(4, 4), n=lambda: nn.BatchNorm1d(4)
    ),
    "cosines": on_vectors(lambda m, y: 9 * F.linear(F.normalize(y), F.normalize(m.l.weight)) + m.l.bias, l=fc),
}


@pytest.mark.parametrize("make", SPELLINGS.values(), ids=SPELLINGS)
def test_spellings_of_a_head(make: Make) -> None:
    assert heads(make()) == L


def unit(x: Tensor) -> Tensor:
    return torch.where(x == 0, torch.zeros_like(x), x / x.norm(dim=1, keepdim=True))


HEADLESS: dict[str, Make] = {
    "convolution, then pooling": on_vectors(lambda m, y: y),
    "activated features": on_vectors(lambda m, y: m.l(y).relu(), l=fc),
    "activated and pooled": on_tokens(lambda m, t: F.gelu(m.l(t)).mean(1), l=fc),
    "activated and summed": on_vectors(lambda m, y: m.l(y).relu() + m.k(y), l=fc, k=fc),
    "residual": on_vectors(lambda m, y: y + m.l(y), l=lambda: fc(4, 4)),
    "class token of a residual": on_tokens(lambda m, t: (t + m.l(t))[:, 0], l=lambda: fc(4, 4)),
    "an embedding by its name": on_vectors(lambda m, y: {"image_embeds": m.l(y)}, l=fc),
    "of length one": on_vectors(lambda m, y: F.normalize(m.l(y)), l=fc),
    "of length one, unless it is zero": on_vectors(lambda m, y: unit(m.l(y)), l=fc),
    "normalised by its neighbours": on_vectors(
        lambda m, y: F.local_response_norm(m.l(y)[..., None], 8, 8.0, 0.5, 0.0).flatten(1), l=fc
    ),
    "normalised without a weight": on_vectors(lambda m, y: F.layer_norm(m.l(y), (5,)), l=fc),
    "pooler": on_tokens(lambda m, t: {"last": t, "pooler_output": m.l(t[:, 0]).tanh()}, l=lambda: fc(4, 4)),
    "maps": lambda: Net(lambda m, x: [m.c(x)], c=nn.Conv2d(3, 4, 3)),
    "logits of every patch": on_tokens(lambda m, t: m.l(t), l=fc),
    "image and text compared": on_vectors(lambda m, y: F.normalize(m.l(y)) @ F.normalize(m.k(y)).mT, l=fc, k=fc),
}


@pytest.mark.parametrize("make", HEADLESS.values(), ids=HEADLESS)
def test_without_a_head(make: Make) -> None:
    assert heads(make()) == set()


# -- declared --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return timm.create_model("test_resnet", num_classes=7)


def test_a_replaced_head_of_several_layers() -> None:
    model: Any = timm.create_model("test_resnet")
    model.fc = nn.Sequential(nn.Dropout(), nn.Linear(model.num_features, 16), nn.BatchNorm1d(16), nn.ReLU(), fc(16, 5))
    assert heads(model) == {"fc.4.weight", "fc.4.bias"}
    assert heads(model, classifier=["fc"]) == {"fc.4.weight", "fc.4.bias"}
    graph = trace(model, SIZE)
    assert {"fc.1.weight", "fc.1.bias", "fc.2.weight"} <= set(graph.targets)


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, nn.Sequential, torch.optim.swa_utils.AveragedModel], ids=lambda wrap: wrap.__name__
)
def test_wrappers_have_the_head_of_the_model_in_them(wrap: Callable[[nn.Module], nn.Module], resnet: nn.Module) -> None:
    assert {name.rpartition("fc.")[2] for name in heads(wrap(resnet))} == {"weight", "bias"}
    assert heads(wrap(timm.create_model("test_resnet", num_classes=0))) == set()


def test_a_backbone_with_its_own_head_beside_it() -> None:
    backbone = timm.create_model("test_resnet", num_classes=0)
    model = Net(lambda m, x: m.h(m.b(x)), b=backbone, h=fc(backbone.num_features))
    assert heads(model) == {"h.weight", "h.bias"}


def test_backbones_have_no_head() -> None:
    for kwargs in {"num_classes": 0}, {"features_only": True}:
        assert heads(timm.create_model("test_resnet", **kwargs)) == set()
