"""The graph is a property of the architecture, however a model is spelled, run or stored. Tracing leaves no trace."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import config as timm_config
from timm_models import on_meta, skip_unless_known
from torch import Tensor, nn

from timm_ghn_init.graph import Graph, TraceError, trace

# Small models that differ in what they are made of.
MODELS = (
    "test_vit",
    "test_convnext",
    "test_efficientnet",
    "test_nfnet",
    "test_resnet",
    "test_coatnet",
    "levit_128s",
    "efficientformer_l1",
    "edgenext_xx_small",
    "seresnet18",
)
ATTENTION = (
    "test_vit",
    "test_vit_relpos",
    "test_maxvit",
    "beit_base_patch16_224",
    "cait_xxs24_224",
    "convit_tiny",
    "deit_tiny_distilled_patch16_224",
    "gcvit_xxtiny",
    "hiera_tiny_224",
    "mobilevit_xxs",
    "mvitv2_tiny",
    "nest_tiny",
    "pvt_v2_b0",
    "samvit_base_patch16_224",
    "swin_tiny_patch4_window7_224",
    "tiny_vit_5m_224",
    "twins_svt_small",
    "vit_tiny_patch16_dinov3_qkvb",
    "volo_d1_224",
)


def build(name: str, device: str = "meta", **kwargs: Any) -> nn.Module:
    if device == "meta":
        return on_meta(name, **kwargs)
    skip_unless_known(name)
    with torch.device(device):
        return timm.create_model(name, **kwargs)


@cache
def graph_of(name: str) -> Graph:
    """Of the architecture as it is, on meta."""
    return trace(build(name))


def assert_same(a: Graph, b: Graph) -> None:
    assert a.nodes == b.nodes
    assert a.edges.tolist() == b.edges.tolist()
    assert a.targets == b.targets
    assert a.skipped == b.skipped


# -- one architecture, one graph -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTENTION)
def test_fused_or_unfused_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []
    for fused in (0, 2):  # what `timm.layers.set_fused_attn` sets
        monkeypatch.setattr(timm_config, "_USE_FUSED_ATTN", fused)
        graphs.append(trace(build(name)))
    assert_same(*graphs)
    assert any(n.primitive == "msa" for n in graphs[0].nodes)


VARIANTS: dict[str, dict[str, Any]] = {
    "dropout": {"drop_rate": 0.3},
    "drop path": {"drop_path_rate": 0.3},
    "scriptable": {"scriptable": True},
    "exportable": {"exportable": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", MODELS)
def test_how_it_is_created(name: str, variant: str) -> None:
    assert_same(graph_of(name), trace(build(name, **VARIANTS[variant])))


STATES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "train": lambda m: m.train(),
    "eval": lambda m: m.eval(),
    "frozen": lambda m: m.requires_grad_(False),
    "channels last": lambda m: m.to(memory_format=torch.channels_last),
    "bfloat16": lambda m: m.bfloat16(),
    "half": lambda m: m.half(),
    "double": lambda m: m.double(),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", MODELS)
def test_how_it_is_kept(name: str, state: str) -> None:
    assert_same(graph_of(name), trace(STATES[state](build(name))))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("name", MODELS)
def test_where_it_is(name: str, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = build(name, device)
    assert_same(graph_of(name), trace(model))
    assert all(p.device.type == device for p in model.parameters())


@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet", "test_nfnet", "test_resnet", "seresnet18"])
def test_input_size(name: str) -> None:
    a, b = trace(build(name), 160), trace(build(name), (96, 224))
    assert (a.input_size, b.input_size) == ((3, 160, 160), (3, 96, 224))
    assert_same(a, b)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "swin_tiny_patch4_window7_224"])
def test_parts_of_it(name: str) -> None:
    """A feature extractor, a headless model, one with other classes and channels: what they share is the same."""
    whole, headless, features = (
        trace(build(name, **kwargs)) for kwargs in ({}, {"num_classes": 0}, {"features_only": True})
    )
    other = trace(build(name, num_classes=10, in_chans=1))
    classifiers = [[t for t in g.targets.values() if t.classifier] for g in (whole, headless, features, other)]
    assert [[t.shape[0] for t in found] for found in classifiers] == [[1000, 1000], [], [], [10, 10]]
    assert other.input_size == (1, *whole.input_size[1:])
    assert other.edges.tolist() == whole.edges.tolist()
    assert [n.primitive for n in other.nodes] == [n.primitive for n in whole.nodes]
    assert headless.nodes == whole.nodes[: len(headless.nodes)]
    assert [n.primitive for n in features.nodes] == [n.primitive for n in whole.nodes[: len(features.nodes)]]


@pytest.mark.parametrize("name", MODELS)
def test_again(name: str) -> None:
    model = build(name)
    assert_same(trace(model), trace(model))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_under_any_grad_mode(mode: Any) -> None:
    model = build("test_vit", "cpu")
    with mode():
        assert_same(trace(model), graph_of("test_vit"))


def test_under_autocast_and_default_device() -> None:
    model, expected = build("test_vit", "cpu"), graph_of("test_vit")
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(trace(model), expected)
    with torch.device("meta"):
        assert_same(trace(model), expected)


class Modules(nn.Module):
    """A small residual network with attention, in modules ..."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.pool = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.MaxPool2d(2)
        self.ln, self.qkv, self.drop, self.proj = nn.LayerNorm(8), nn.Linear(8, 24), nn.Dropout(0.1), nn.Linear(8, 8)
        self.avg, self.act, self.flat, self.fc = nn.AdaptiveAvgPool1d(1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.norm(self.conv(x)))).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.ln(x)).chunk(3, -1)
        x = x + self.drop(self.proj(F.scaled_dot_product_attention(q, k, v)))
        return self.fc(self.flat(self.avg(x.transpose(1, 2))))


class Functions(Modules):
    """... and the same in functions, with the attention written out."""

    def forward(self, x: Tensor) -> Tensor:
        n: Any = self.norm
        x = F.conv2d(x, self.conv.weight, None, padding=1)
        x += self.conv.bias.view(-1, 1, 1)
        x = F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias, self.training)
        x = torch.max_pool2d(torch.relu_(x), 2).flatten(2).permute(0, 2, 1)
        y = F.layer_norm(x, (8,), self.ln.weight, self.ln.bias)
        q, k, v = torch.addmm(self.qkv.bias, y.flatten(0, 1), self.qkv.weight.t()).view(-1, 16, 3, 8).unbind(2)
        y = torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)) * 8**-0.5, -1), v)
        y = torch.einsum("blc,oc->blo", y, self.proj.weight) + self.proj.bias
        x = torch.add(x, F.dropout(y, 0.1, self.training)).mean(1)
        return torch.matmul(x, self.fc.weight.T) + self.fc.bias


def test_functions_or_modules() -> None:
    assert_same(trace(Modules(), (3, 8, 8)), trace(Functions(), (3, 8, 8)))


# -- tracing leaves no trace -----------------------------------------------------------------------------------------


def snapshot(model: nn.Module) -> Any:
    """All there is to a model: tensors by identity, version and bits; what its modules hold, containers included."""
    tensors: dict[str, Tensor] = dict((*model.named_parameters(), *model.named_buffers()))
    return (
        {name: (id(t), t._version, t.requires_grad, t.dtype, t.device) for name, t in tensors.items()},
        {name: bytes(t.detach().contiguous().view(torch.uint8).numpy()) for name, t in tensors.items() if t.dim()},
        {name: held(vars(module)) for name, module in model.named_modules()},
    )


def held(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: held(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [type(value), *map(held, value)]
    return id(value)


def surroundings() -> Any:
    return (
        torch.get_rng_state().tolist(),
        random.getstate(),
        [x.tolist() if isinstance(x, np.ndarray) else x for x in np.random.get_state()],
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
    )


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Asserts that neither the model nor the global state is another after the block."""
    before, around = snapshot(model), surroundings()
    yield
    assert surroundings() == around
    for now, then in zip(snapshot(model), before, strict=True):
        assert now == then


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_nfnet", "test_resnet", "test_coatnet"])
def test_model_is_untouched(name: str, training: bool) -> None:
    model = build(name, "cpu").train(training)
    next(m for m in model.modules() if not list(m.children())).train(not training)  # as when a batch norm is frozen
    with untouched(model):
        graph = trace(model)
        trace(model, dialect="ghn3")
    x = torch.randn(2, *graph.input_size)
    fresh = build(name, "cpu")
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(x), fresh.eval()(x))


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("name", ["levit_128s", "efficientformer_l1"])
def test_caches_are_untouched(name: str, warm: bool) -> None:
    """These models keep their attention biases, by device, once they have run in eval mode."""
    model = build(name, "cpu").eval()
    caches = [m.attention_bias_cache for m in model.modules() if hasattr(m, "attention_bias_cache")]
    assert caches
    if warm:
        with torch.no_grad():
            model(torch.zeros(1, 3, 224, 224))
    with untouched(model):
        trace(model)
    assert all(bool(cache) == warm for cache in caches)


class Awkward(nn.Module):
    """Counts its calls, caches in nested containers, hooks, replaces a buffer and draws random numbers."""

    def __init__(self, fails: bool = False, needs_values: bool = False) -> None:
        super().__init__()
        self.fails, self.needs_values = fails, needs_values
        self.conv = nn.Conv2d(3, 4, 1)
        self.calls = 0
        self.history: list[int] = []
        self.cache: dict[str, Any] = {"by size": {}, "log": [[]]}
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(3))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.history.append(self.calls)
        self.cache["by size"][x.shape] = x
        self.cache["log"][0].append(x)
        self.seen += 1
        self.scratch = torch.ones(5)
        self.last_input = x
        self.register_buffer("new", torch.ones(1))
        self.conv.register_forward_hook(lambda *a: None)
        self.conv.train()
        noise = torch.rand(4, 1, 1, device=x.device)
        if self.needs_values and noise.sum().item() < 0:
            return x
        if self.fails:
            raise RuntimeError("out of order")
        return self.conv(x) + noise


@pytest.mark.parametrize("needs_values", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_awkward_model_is_untouched(fails: bool, needs_values: bool) -> None:
    model = Awkward(fails, needs_values)
    outcome = pytest.raises(TraceError, match=r"Awkward: .*out of order") if fails else nullcontext()
    with untouched(model), outcome:
        trace(model, (3, 8, 8))


def test_hooks_of_the_user_are_kept_and_called() -> None:
    calls: list[int] = []
    model: Any = build("test_vit", "cpu")
    model.blocks[0].register_forward_hook(lambda *a: calls.append(1))
    model.register_forward_pre_hook(lambda *a: calls.append(2))
    trace(model)
    assert sorted(set(calls)) == [1, 2]
    assert len(model.blocks[0]._forward_hooks) == len(model._forward_pre_hooks) == 1


def test_tied_parameters_stay_tied() -> None:
    model: Any = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    model[1].weight = model[0].weight
    trace(model, (4, 8, 8))
    assert model[1].weight is model[0].weight
