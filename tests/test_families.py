"""The smallest models of modules of the installed timm: their graphs, and what of them can be predicted."""

import copy
import importlib.util
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models._registry import _model_to_module
from torch import Tensor, nn

from timm_ghn_init import init_model
from timm_ghn_init.ghn import GHN
from timm_ghn_init.graph import PRIMITIVES, Graph, trace
from timm_ghn_init.recipe import assign, postprocessing
from timm_ghn_init.recipe.place import Place
from timm_ghn_init.recipe.postprocessing import list_layers

# Module -> its architecture with the fewest parameters in timm 1.0.31, as counted by benchmarks/coverage.py.
SMALLEST: dict[str, str] = json.loads((Path(__file__).parent / "smallest_models.json").read_text())
# Small ones that need different rules between them. benchmarks/coverage.py walks all of timm.
WALKED = frozenset(
    (
        *("byobnet", "cait", "convnext", "crossvit", "deit", "densenet", "edgenext", "efficientnet", "eva", "hrnet"),
        *("ghostnet", "levit", "mambaout", "maxxvit", "mlp_mixer", "mobilevit", "nfnet", "repvit", "resnest", "resnet"),
        *("sequencer", "sknet", "starnet", "swin_transformer_v2_cr", "tiny_vit", "vision_transformer", "xcit"),
        "vision_transformer_relpos",
    )
)


def families() -> dict[str, str]:
    """Modules of the installed timm; those we have not met yet are taken by the first architecture they list."""
    listed: dict[str, list[str]] = defaultdict(list)
    for name in timm.list_models():
        module = _model_to_module[name]
        if module in WALKED or module not in SMALLEST:
            listed[module].append(name)
    return {m: SMALLEST[m] if SMALLEST.get(m) in names else names[0] for m, names in sorted(listed.items())}


def build(name: str) -> nn.Module:
    try:
        with torch.device("meta"):
            return timm.create_model(name)
    except Exception:  # its constructor needs values
        return timm.create_model(name)


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_benchmark", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=families().values(), ids=list(families()))
def case(request: pytest.FixtureRequest) -> Iterator[tuple[nn.Module, Graph]]:
    """Built once for all tests of this file; pytest runs them model by model."""
    model = build(request.param)
    yield model, trace(model)


Case = tuple[nn.Module, Graph]


@pytest.fixture(scope="module")
def tiny_ghn() -> GHN:
    return GHN(max_shape=(16, 16, 4, 4), num_classes=1000, weight_norm=True, layernorm=True, hid=8).eval()


def test_the_list_is_of_this_timm() -> None:
    """Modules are walked by the architecture that was chosen, as far as timm still has it."""
    if timm.__version__ == "1.0.31":
        assert set(SMALLEST) == {_model_to_module[name] for name in timm.list_models()}
        assert families() == {module: SMALLEST[module] for module in WALKED}


def test_nodes_are_in_topological_order(case: Case) -> None:
    _, graph = case
    assert graph.nodes[0].primitive == "input"
    assert {n.primitive for n in graph.nodes} <= set(PRIMITIVES)
    assert (graph.edges[:, 0] < graph.edges[:, 1]).all()
    assert graph.edges.max() < len(graph.nodes)
    assert len({tuple(e) for e in graph.edges.tolist()}) == len(graph.edges)


def test_everything_comes_from_the_input(case: Case) -> None:
    _, graph = case
    reached = np.zeros(len(graph.nodes), dtype=bool)
    reached[0] = True
    for u, v in sorted(graph.edges.tolist(), key=lambda edge: edge[1]):
        reached[v] |= reached[u]
    unreached = {n.primitive for n, r in zip(graph.nodes, reached, strict=True) if not r}
    assert unreached <= {"pos_enc"}


def test_everything_leads_to_an_output(case: Case, coverage: ModuleType) -> None:
    """Dead ends are outputs, and a model has no more of those than tensors it returns."""
    model, graph = case
    ends = set(range(len(graph.nodes))) - set(graph.edges[:, 0].tolist())
    if len(ends) > 1:
        assert len(ends) <= len(coverage.differentiable(model, graph.input_size)[1])
    assert ends
    assert not any(graph.nodes[end].primitive in ("input", "pos_enc") for end in ends)


def test_every_parameter_is_predicted_or_has_a_reason(case: Case) -> None:
    model, graph = case
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert set(graph.targets) | set(graph.skipped) == set(shapes)
    assert not set(graph.targets) & set(graph.skipped)
    assert all(graph.skipped.values())
    for name, target in graph.targets.items():
        assert target.param == name
        assert target.shape == shapes[name]
        assert 0 < target.node < len(graph.nodes)
        node = graph.nodes[target.node]
        assert node.param in graph.targets, "a node stands for a parameter that is predicted from it"
        assert graph.targets[node.param].node == target.node
        assert _matches(node.primitive, target.role), (name, node)


def _matches(primitive: str, role: str) -> bool:
    wanted = {"weight": ("conv", "sep_conv", "dil_conv"), "norm": ("bn", "ln"), "pos_enc": ("pos_enc",)}
    return primitive in wanted.get(role, ("bias", "bn", "ln"))  # the bias of a norm shares its node


def test_every_layer_that_is_used_is_predicted(case: Case, coverage: ModuleType) -> None:
    assert coverage.missed_layers(*case) == []


def test_almost_all_values_are_predicted(case: Case, request: pytest.FixtureRequest) -> None:
    model, graph = case
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    share = sum(target.numel for target in graph.targets.values()) / sum(sizes.values())
    assert share >= (0.99 if request.node.callspec.id in SMALLEST else 0.9)


def test_from_the_meta_device(case: Case, tiny_ghn: GHN, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is predicted, set by the model's own initialisation, or said to be set by nothing."""
    on_meta, graph = case
    if not any(t.is_meta for t in on_meta.parameters()):
        pytest.skip("its constructor needs values")
    model = copy.deepcopy(on_meta)
    monkeypatch.setattr(Place, "trace", lambda *args: graph)
    monkeypatch.setattr(assign, "write", lambda *args: None)  # what is predicted takes no memory then
    report = init_model(model, "ghn2", ghn=tiny_ghn, device="cpu")
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert not any(t.is_meta for t in tensors.values())
    made = {name for name, t in (*on_meta.named_parameters(), *on_meta.named_buffers()) if not t.is_meta}
    assert set(tensors) == {*report.predicted, *report.own, *report.unset, *made}
    assert not any(t.is_floating_point() and t.isnan().any() for n, t in tensors.items() if n in report.own)


def test_the_report_is_true(case: Case, tiny_ghn: GHN, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bits before and after, name by name. Eq. (1) and (2) themselves are left out: here it matters where they act."""
    on_meta, graph = case
    model = copy.deepcopy(on_meta).bfloat16().to_empty(device="cpu")
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for p in parameters.values():
            p.fill_(7)
    monkeypatch.setattr(Place, "trace", lambda *args: graph)
    monkeypatch.setattr(postprocessing, "process_weight", lambda columns, *args: float(columns.fill_(3).numel() > 0))
    report = init_model(model, "ghn2-orth?layer=auto", ghn=tiny_ghn)

    kept = {name for name, p in parameters.items() if p.numel() and (p == 7).all()}
    processed = {name for name, p in parameters.items() if p.dim() > 1 and p.numel() and (p == 3).all()}
    assert processed == set(report.postprocessed) <= set(report.predicted)
    assert kept == set(report.skipped) == set(parameters) - set(report.predicted)
    heads = {target.param for target in graph.targets.values() if target.classifier}
    assert not heads & processed
    assert [n for n, _ in list_layers(model)[(report.layer or 1) - 1 :] if n in report.postprocessed] == list(
        report.postprocessed
    )


# -- the sweep itself ------------------------------------------------------------------------------------------------


class Filter(nn.Module):
    """A kind of parameter that no rule knows: a filter in the frequency domain."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.filter = nn.Parameter(torch.ones(8, 5, 2))
        self.head = nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(self.conv(x)) * torch.view_as_complex(self.filter)
        return self.head(torch.fft.irfft2(spectrum))


def test_an_unknown_kind_of_parameter_is_reported() -> None:
    graph = trace(Filter(), (3, 8, 8))
    assert set(graph.skipped) == {"filter"}
    assert graph.skipped["filter"]
    assert [n.param for n in graph.nodes[1:]] == ["conv.weight", "conv.bias", "head.weight", "head.bias"]
    assert graph.edges.tolist() == [[0, 1], [1, 2], [2, 3], [3, 4]]


def test_a_missed_layer_is_a_violation(coverage: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found missing is asked of autograd: an unused layer is none, a used one that the graph leaves out is."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.forgotten, self.unused = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.forgotten(self.used(x.mean((2, 3))))

    model = Model()
    graph = trace(model, (3, 8, 8))
    assert coverage.missed_layers(model, graph) == []
    graph.skipped["forgotten.weight"] = "no reason"
    assert coverage.missed_layers(model, graph) == ["forgotten.weight"]


@pytest.mark.parametrize("dialect", ["ghn2", "ghn3"])
def test_sweep_measures_and_reports(coverage: ModuleType, dialect: str, tmp_path: Path) -> None:
    names = ("test_vit", "test_nfnet")
    tasks = [coverage.Task(kind, "timm", name, dialect) for kind in ("meta", "real") for name in names]
    file = tmp_path / "results.jsonl"
    with file.open("w") as lines:
        for task in tasks:
            coverage.append(lines, coverage.measure(task))
        lines.write('{"broken off')
    records: dict[Any, Any] = coverage.read(file)
    assert set(records) == {task.key() for task in tasks}
    for key, record in records.items():
        assert "error" not in record, record
        assert record.get("faults", []) == [] and record.get("violations", []) == [], key
    text = coverage.report(records)
    assert "| architectures that build a graph |" in text and "| 2 of 2 tried |" in text
    assert "2 of 2 predictions are clean" in text


def test_sweep_reports_faults(coverage: ModuleType) -> None:
    flat, broken = torch.zeros(3), torch.tensor([1.0, torch.nan])
    assert list(coverage.faults_of("a", flat, (3,))) == ["a: all values are 0"]
    assert list(coverage.faults_of("b", broken, (2,))) == ["b: not finite"]
    assert list(coverage.faults_of("c", torch.arange(3.0), (1, 3))) == ["c: shape (3,) instead of (1, 3)"]
    failed = coverage.measure(coverage.Task("meta", "timm", "no_such_model", "ghn2"))
    assert "no_such_model" in failed["error"]
