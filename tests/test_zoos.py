"""The benchmark of other people's models: what it counts as used, as a layer, as tried, and what its page says."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def zoos(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("zoos")


class OwnNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x / x.pow(2).mean(1, keepdim=True).sqrt() * self.g


class Net(nn.Module):
    def __init__(self, read: Callable[[Tensor], Any] = lambda x: None) -> None:
        super().__init__()
        self.read = read
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3), OwnNorm(), weight_norm(nn.Conv2d(8, 4, 3))
        self.scale, self.frozen = nn.Parameter(torch.ones(4, 1, 1)), nn.Conv2d(4, 4, 1).requires_grad_(False)
        self.unused, self.picks = nn.Linear(2, 2), nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.read(x)
        chosen = self.picks(x).argmax(1, keepdim=True)
        return self.frozen(self.b(self.norm(self.a(x)).gather(1, chosen.expand(-1, 8, -1, -1))) * self.scale)


USED = {"a.weight", "a.bias", "norm.g", "scale", "b.bias"} | {f"b.parametrizations.weight.original{i}" for i in (0, 1)}

BODY = {"a.weight", "a.bias", "norm.g"}  # without the head


def test_what_is_certainly_meant(zoos: ModuleType) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Linear(8, 4))
    nn.init.zeros_(model[2].weight)
    nn.init.constant_(model[3].bias, -4)
    model[0].weight.requires_grad_(False)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    assert zoos.meant(model, before) == {"0.weight": "frozen", "2.weight": "zero", "3.bias": "constant"}


@pytest.mark.parametrize(("read", "device"), [(lambda x: None, "meta"), (lambda x: x.sum().item(), "cpu")])
def test_used_is_what_gets_a_gradient(zoos: ModuleType, read: Callable[[Tensor], Any], device: str) -> None:
    """Not a frozen layer, one that chooses an index, or one that is not called."""
    model = Net(read)
    if Version(torch.__version__) < Version("2.14"):  # 2.5 cannot go back through this model without values
        device = "cpu"
    assert zoos.judge(model, torch.rand(2, 3, 8, 8)) == (USED, device)
    assert all(p.grad is None and not p.is_meta for p in model.parameters())


def test_a_backward_pass_through_what_was_overwritten(zoos: ModuleType) -> None:
    class Overwriting(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).sigmoid()
            y.mul_(2)
            return y

    assert zoos.judge(Overwriting(), torch.rand(2, 3, 8, 8)) == ({"a.weight", "a.bias"}, "cpu")


def test_layers_by_class(zoos: ModuleType) -> None:
    layers = zoos.layer_parameters(Net())
    assert layers >= USED - {"scale"} and "unused.weight" in layers and "scale" not in layers


def zoo_of(zoos: ModuleType, **builds: Callable[[], Any]) -> Any:
    return zoos.Zoo("some-zoo", "some_zoo", lambda: builds, lambda name: builds[name]())


def raises(error: Exception) -> Any:
    raise error


class Nested(Net):
    def forward(self, x: Tensor) -> Tensor:
        torch.nested.nested_tensor(list(x))
        return self.a(x)


class Failing(Net):
    """Runs for autograd, and not when it is recorded."""

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if torch.is_grad_enabled() else raises(RuntimeError("no"))


def test_outcomes_and_page(zoos: ModuleType, tmp_path: Path) -> None:
    def x() -> Tensor:
        return torch.rand(2, 3, 32, 32)

    zoo = zoo_of(
        zoos,
        good=lambda: (Net(), x()),
        keyword=lambda: (Net(), {"x": x()}),
        nested=lambda: (Nested(), x()),
        failing=lambda: (Failing(), x()),
        absent=lambda: raises(ImportError("no such package")),
        broken=lambda: (Net(), torch.rand(2, 5, 32, 32)),
    )
    records = [{"zoo": zoo.package, "model": name, **zoos.measure(zoo, name)} for name in zoo.names()]
    outcome = {r["model"]: r["outcome"] for r in records}
    assert outcome == {
        "good": "initialised",
        "keyword": "initialised",
        "nested": "refused",
        "failing": "failed",
        "absent": "not built",
        "broken": "does not run",
    }
    good, keyword, nested = records[:3]
    assert (good["told"], keyword["told"]) == (False, True)
    assert good["layers"] == good["predicted_layers"] == sum(Net().get_parameter(n).numel() for n in BODY)
    assert good["used"] == sum(Net().get_parameter(n).numel() for n in USED)
    assert good["predicted_used"] == good["layers"]
    assert good["faults"] == [] and "nested tensors" in nested["why"]

    file = tmp_path / "zoos.jsonl"
    older = {**good, "outcome": "failed", "why": "an older run"}
    file.write_text("".join(json.dumps(r) + "\n" for r in (older, *records)) + '{"zoo": "some-zoo", "mo')
    read = zoos.read(file).values()
    assert list(read) == records

    text = zoos.page(read, {"some-zoo": "1.2"}, ["other-zoo"])
    assert "| some-zoo | 1.2 | 4 | 2 | 2 | 100.00% |" in text
    assert "| models tried | 350 | 4 |" in text and "| 99% | 75.00% |" in text and "| 97% | 100.00% |" in text
    assert "some-zoo failing, failed" in text and "some-zoo absent, not built" in text and "other-zoo" in text


def test_a_model_that_falls_short_is_named(zoos: ModuleType) -> None:
    record = {"zoo": "z", "model": "m", "outcome": "initialised", "faults": [], "layers": 1000, "used": 1000}
    record |= {
        "predicted_layers": 989,
        "predicted_used": 989,
        "missed": {"a reason": [11, ["a.weight"]]},
        "skipped": {},
    }
    text = zoos.page([record], {}, [])
    assert "z m: 98.90%. 11 values: a reason (a.weight)" in text
    assert "| 97% | 0.00% |" in text
    assert not zoos.good({**record, "predicted_layers": 1000, "faults": ["a.weight: not finite"]})
