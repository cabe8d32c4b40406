"""What a forward pass may do: wrappers, compiled code, functions as operands, decisions, scaled weights, adapters."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops.map import map as mapped
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

from timm_ghn_init import GHN, init_model
from timm_ghn_init.graph import Graph, trace
from timm_ghn_init.graph.neutral import neutral_adapters


class Two(nn.Module):
    """Two layers, used by a function, and a head."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.head, self.function = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self, x))


def primitives(graph: Graph) -> list[str]:
    return [node.primitive for node in graph.nodes]


def spike(x: Tensor) -> Tensor:
    return (x > 0).float()


FUNCTIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "cond": lambda m, x: torch.cond(x.sum() > 0, lambda y: m.a(y), lambda y: m.b(y), (x,)),
    "while_loop": lambda m, x: while_loop(
        lambda i, y: i < 3, lambda i, y: (i + 1, m.b(m.a(y))), (torch.zeros((), dtype=torch.int64), x)
    )[1],
    "scan": lambda m, x: scan(lambda c, y: (m.a(c) + y, m.b(c)), x[0], x, dim=0)[1],
    "inference mode": lambda m, x: torch.inference_mode()(lambda y: m.b(m.a(y)))(x),
    "map": lambda m, x: mapped(lambda y: m.b(m.a(y)), x),
    "compiled function": lambda m, x: torch.compile(lambda y: m.b(m.a(y)), fullgraph=True, backend="eager")(x),
    "spikes": lambda m, x: m.b(spike(m.a(x))),
    "one-hot": lambda m, x: m.b(F.one_hot(m.a(x).argmax(-1), 8).float()),
    "integers": lambda m, x: m.b(m.a(x).int().float()),
    "two Python numbers": lambda m, x: m.b(m.a(x)) * torch.div(3, 2) + torch.add(2, 3),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_layer_is_found(name: str) -> None:
    graph = trace(Two(FUNCTIONS[name]), (8,))
    assert len(graph.targets) == 6, graph.skipped


def test_convolutions_in_branches() -> None:
    """Functions of `cond` hold operators such as `conv2d`, which consist of others."""
    model = Two(lambda m, x: torch.cond(x.sum() > 0, lambda y: m.a(y).relu(), lambda y: m.b(y), (x,)).mean((2, 3)))
    model.a, model.b = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)  # type: ignore[assignment]
    graph = trace(model, (3, 16, 16))
    assert len(graph.targets) == 6, graph.skipped


def test_module_compiled_in_place() -> None:
    model = Two(lambda m, x: m.b(m.a(x)))
    expected = primitives(trace(model, (8,)))
    model.compile(fullgraph=True, backend="eager")
    assert primitives(trace(model, (8,))) == expected


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_packed_sequences(kind: type[nn.RNNBase]) -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = kind(8, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            out, _ = self.rnn(pack_padded_sequence(x, [4, 2], batch_first=True))
            return self.head(pad_packed_sequence(out, batch_first=True)[0].mean(1))

    assert len(trace(Packed(), example_inputs=torch.zeros(2, 4, 8)).targets) == 6


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x,), lambda x: {"x": x}], ids=["bare", "tuple", "dict"])
def test_packed_sequences_as_inputs(wrap: Callable[[Any], Any]) -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(8, 8), nn.Linear(8, 3)

        def forward(self, x: Any) -> Tensor:
            return self.head(self.rnn(x)[1][-1])

    packed = pack_sequence([torch.zeros(2, 8), torch.zeros(4, 8)], enforce_sorted=False)
    assert len(trace(Packed(), example_inputs=wrap(packed)).targets) == 6


def test_output_that_is_a_gradient() -> None:
    class Score(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.energy = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1))

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                return torch.autograd.grad(self.energy(x).sum(), x)[0]

    graph = trace(Score(), (2,))
    assert {"energy.0.weight", "energy.0.bias", "energy.2.weight"} <= graph.targets.keys()
    assert not any(target.classifier for target in graph.targets.values())


def test_heads_of_a_list_of_dicts() -> None:
    class Items(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.five, self.seven = nn.Conv2d(3, 8, 3), nn.Linear(8, 5), nn.Linear(8, 7)

        def forward(self, batch: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
            found = [F.relu(self.c(item["image"][None])).mean((2, 3)) for item in batch]
            return [{"a": self.five(z), "b": self.seven(z)[0]} for z in found]

    graph = trace(Items(), example_inputs=([{"image": torch.zeros(3, 8, 8)}, {"image": torch.zeros(3, 9, 9)}],))
    heads = {name for name, target in graph.targets.items() if target.classifier}
    assert heads == {"five.weight", "five.bias", "seven.weight", "seven.bias"}


def test_hundreds_of_heads_that_are_summed() -> None:
    heads = nn.ModuleList(nn.Linear(4, 2) for _ in range(400))
    model = Two(lambda m, x: x)
    model.head = nn.Identity()  # type: ignore[assignment]
    model.heads = heads
    model.function = lambda m, x: sum((head(x[:, :4]) for head in m.heads[1:]), m.heads[0](x[:, :4]))
    graph = trace(model, (8,))
    assert sum(target.classifier for target in graph.targets.values()) == 800


def test_experts_that_zeros_do_not_reach() -> None:
    def route(m: Any, x: Tensor) -> Tensor:
        index = (x.sum(-1) > 0).long()
        out = torch.zeros_like(x)
        for k, expert in enumerate((m.a, m.b)):
            if (index == k).any():
                out[index == k] = expert(x[index == k])
        return out

    assert len(trace(Two(route), example_inputs=torch.tensor([[1.0] * 8, [-1.0] * 8])).targets) == 6
    assert len(trace(Two(route), (64, 8)).targets) == 6
    graph = trace(Two(route), example_inputs=torch.ones(2, 8))
    assert "example_inputs" in graph.skipped["a.weight"]


class Around(nn.Module):
    """No wrapper, whatever its child is called."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return x + self.module(x)


def test_a_child_called_module_makes_no_wrapper(seeded_ghn2: GHN) -> None:
    inner = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    report = init_model(Around(inner), "ghn2", ghn=seeded_ghn2, input_size=(8,))
    assert "module.0.weight" in report.predicted
    assert "sum" in primitives(trace(Around(inner), (8,)))


class Equal(nn.Module):
    """A layer that multiplies weight, input or output by a constant."""

    def __init__(self, compute: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.zeros(8))
        self.register_buffer("scale", torch.tensor(0.125))
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


SCALED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "weight": lambda m, x: F.linear(x, m.weight * 0.125, m.bias),
    "weight, by a buffer": lambda m, x: F.linear(x, m.weight * m.scale, m.bias),
    "weight and bias": lambda m, x: F.linear(x, m.weight / 8, m.bias * 2),
    "input": lambda m, x: F.linear(x * m.scale, m.weight, m.bias),
    "output": lambda m, x: F.linear(x, m.weight) * 0.125 + m.bias,
    "output with its bias": lambda m, x: F.linear(x, m.weight, m.bias) * 0.125,
}


@pytest.mark.parametrize("source", ["ghn2", "ghn2-orth?layer=1"])
@pytest.mark.parametrize("name", SCALED)
def test_a_scaled_layer_computes_with_the_prediction(name: str, source: str, seeded_ghn2: GHN) -> None:
    def initialised(compute: Callable[[Any, Tensor], Tensor]) -> nn.Module:
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), Equal(compute), nn.ReLU(), nn.Linear(8, 3))
        torch.manual_seed(0)
        model[4].reset_parameters()  # type: ignore[operator]
        init_model(model, source, ghn=seeded_ghn2, input_size=(8,))
        return model

    x = torch.randn(4, 8)
    plain, scaled = initialised(lambda m, y: F.linear(y, m.weight, m.bias)), initialised(SCALED[name])
    torch.testing.assert_close(scaled(x), plain(x), rtol=1e-5, atol=1e-6)


class Adapter(nn.Module):
    def __init__(self, compute: Callable[[Any, Tensor], Tensor], zero: bool = True) -> None:
        super().__init__()
        self.base, self.down, self.up = nn.Linear(8, 8), nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)
        self.m, self.q, self.compute = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8, 8)), compute
        nn.init.zeros_(self.up.weight) if zero else None

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


def delta(m: Any) -> Tensor:
    return m.base.weight + m.up.weight @ m.down.weight


def rotation(m: Any) -> Tensor:
    skew, eye = m.q - m.q.T, torch.eye(8)
    return torch.linalg.solve(eye + skew, eye - skew)


REFUSED: dict[str, Callable[[], nn.Module]] = {
    "PiSSA": lambda: Adapter(lambda m, x: m.base(x) + m.up(m.down(x)), zero=False),
    "folded": lambda: Adapter(lambda m, x: F.linear(x, delta(m)), zero=False),
    "DoRA": lambda: Adapter(lambda m, x: F.linear(x, delta(m) * (m.m / delta(m).norm(dim=1))[:, None])),
    "product": lambda: Adapter(lambda m, x: m.base(x) + F.linear(x, m.up.weight @ m.down.weight)),
    "OFT": lambda: Adapter(lambda m, x: m.base(x @ rotation(m))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_adapters_that_change_a_layer_are_refused(name: str) -> None:
    model = nn.Sequential(REFUSED[name](), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match="Initialise before adding adapters"):
        trace(model, (8,))


def test_an_adapter_that_adds_nothing_is_left(seeded_ghn2: GHN) -> None:
    model = nn.Sequential(Adapter(lambda m, x: m.base(x) + m.up(m.down(x))), nn.ReLU(), nn.Linear(8, 3))
    report = init_model(model, "ghn2-orth?layer=1", ghn=seeded_ghn2, input_size=(8,))
    assert report.postprocessed == ("0.base.weight",)
    assert not model[0].up.weight.any()  # type: ignore[union-attr]


class Vera(nn.Module):
    """Two fixed random matrices, scaled by vectors that are learned."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.d, self.b = base, nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(base.out_features))
        self.register_buffer("first", torch.randn(2, base.in_features))
        self.register_buffer("second", torch.randn(base.out_features, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b * F.linear(self.d * F.linear(x, self.first), self.second)


class Bottleneck(nn.Module):
    """After a layer, with biases and an activation (arXiv 1902.00751)."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(base.out_features, 2), nn.Linear(2, base.out_features)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.base(x)
        return x + self.up(F.gelu(self.down(x)))


class OfALayer(nn.Linear):
    """A layer that is its own base, with a small matrix between two fixed ones."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features)
        self.core = nn.Parameter(torch.zeros(2, 2))
        self.register_buffer("first", torch.randn(base.in_features, 2))
        self.register_buffer("second", torch.randn(2, base.out_features))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.first @ self.core @ self.second


class Renormalised(OfALayer):
    """Adds nothing to the weight that it has, but would add something to another."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base)
        self.norm = self.weight.norm().item()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (self.norm / self.weight.norm())


def network_around(wrap: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    first, layer, head = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 3)
    return nn.Sequential(first, nn.ReLU(), wrap(layer), nn.ReLU(), head)


@pytest.mark.parametrize("wrap", [Vera, Bottleneck, OfALayer])
def test_a_network_with_adapters_computes_what_it_does_without(wrap: Any, seeded_ghn2: GHN) -> None:
    plain, adapted, x = network_around(lambda layer: layer), network_around(wrap), torch.randn(4, 8)
    init_model(plain, "ghn2", ghn=seeded_ghn2, input_size=(8,))
    report = init_model(adapted, "ghn2", ghn=seeded_ghn2, input_size=(8,))
    torch.testing.assert_close(adapted(x), plain(x))
    left = {name for name, reason in report.skipped.items() if "adapter that adds nothing" in reason}
    names = dict(plain.named_parameters()).keys()
    assert left == {n for n, _ in adapted.named_parameters() if n.replace("base.", "") not in names} != set()


def test_what_depends_on_the_weight_is_no_neutral_adapter() -> None:
    model = network_around(Renormalised)
    assert not neutral_adapters(list(model.named_modules()))
    assert neutral_adapters(list(network_around(OfALayer).named_modules()))[0].names == ["2.core"]


class Wrong(nn.Module):
    def __init__(self, inverse: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inverse = inverse

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x)

    def right_inverse(self, y: Tensor) -> Tensor:
        return self.inverse(y)


def raises(y: Tensor) -> Tensor:
    raise KeyError("no")


@pytest.mark.parametrize("inverse", [raises, lambda y: torch.log(torch.expm1(y)), lambda y: y.abs()])
def test_a_right_inverse_that_does_not_hold_is_an_error(inverse: Any, seeded_ghn2: GHN) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    parametrize.register_parametrization(model[0], "weight", Wrong(lambda y: y), unsafe=True)
    model[0].parametrizations.weight[0].inverse = inverse  # type: ignore[union-attr, index]
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=r"0\.weight: the right_inverse"):
        init_model(model, "ghn2", ghn=seeded_ghn2, input_size=(8,))
    assert all(map(torch.equal, before, model.parameters()))


def test_fake_tensors_are_refused() -> None:
    with FakeTensorMode():
        model = nn.Sequential(nn.Linear(8, 3))
        with pytest.raises(ValueError, match="fake"):
            trace(model, (8,))
    with pytest.raises(ValueError, match="fake"):
        trace(model, (8,))


def test_a_layer_without_outputs_is_left(seeded_ghn2: GHN) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 0))
    report = init_model(model, "ghn2", ghn=seeded_ghn2, input_size=(8,))
    assert set(report.predicted) == {"0.weight"}
    assert "zero" in report.skipped["2.weight"]
