"""The same architecture, the same bits: whatever is around it, whatever PyTorch is set to, wherever the GHN lies."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
from timm.utils import ModelEmaV2, ModelEmaV3
from timm_models import on_meta
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from timm_ghn_init import InitReport, init_model, load_ghn, parse_source, postprocess, trace
from timm_ghn_init.ghn import GHN
from timm_ghn_init.recipe.exact import exact
from timm_ghn_init.recipe.offer import Resolved, predicted
from timm_ghn_init.recipe.plan import make_plan
from timm_ghn_init.sources import KNOWN, SHIPPED

SOURCE = "ghn2-orth?layer=2"


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=10)


@pytest.fixture(scope="module")
def expected(seeded_ghn2: GHN) -> tuple[dict[str, Tensor], InitReport]:
    model = resnet()
    report = init_model(model, SOURCE, ghn=seeded_ghn2)
    return {n: p.detach().clone() for n, p in model.named_parameters()}, report


def assert_same(model: nn.Module, expected: dict[str, Tensor]) -> None:
    found = list(model.parameters())
    assert len(found) == len(expected)
    assert [n for (n, a), b in zip(expected.items(), found, strict=True) if not torch.equal(a, b)] == []


def in_part(model: Any) -> nn.Module:
    model.layer2 = torch.compile(model.layer2)
    return model


@contextmanager
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "DDP": nn.parallel.DistributedDataParallel,
    "compiled": torch.compile,
    "compiled in part": in_part,
    "averaged": AveragedModel,
    "EMA": ModelEmaV2,
    "EMA, third version": ModelEmaV3,
    "compiled and parallel": lambda model: nn.DataParallel(torch.compile(model)),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers(
    name: str, expected: tuple[dict[str, Tensor], InitReport], seeded_ghn2: GHN, tmp_path: Path, monkeypatch: Any
) -> None:
    """Its names are those in the model that was given; key, noise and layer are those of the model inside."""
    monkeypatch.setenv("TIMM_GHN_HOME", str(tmp_path))
    parameters, bare = expected
    init_model(resnet(), SOURCE, ghn=seeded_ghn2, cache=True)
    with process_group():
        model = WRAPPERS[name](resnet())
        modules = list(model.modules())
        report = init_model(model, SOURCE, ghn=seeded_ghn2, cache=True)
        assert_same(model, parameters)
        assert list(model.modules()) == modules
        names = {n for n, _ in model.named_parameters()}
    assert report.cached and (report.model, report.layer) == (bare.model, bare.layer)
    assert set(report.predicted) | set(report.skipped) == set(report.sizes) == names
    assert set(report.postprocessed) <= set(report.predicted)
    assert len(report.postprocessed) == len(bare.postprocessed)


def test_post_processing_of_a_wrapped_model() -> None:
    model, wrapped = resnet(), nn.DataParallel(resnet())
    done = postprocess(model, layer=3)
    assert [r.name for r in postprocess(wrapped, layer=3)] == [f"module.{r.name}" for r in done]
    assert_same(wrapped, dict(model.named_parameters()))


@contextmanager
def setting(change: Callable[[Any], object], now: Any, before: Any) -> Iterator[None]:
    change(now)
    try:
        yield
    finally:
        change(before)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "no gradients": torch.no_grad,
    "float64 by default": lambda: setting(torch.set_default_dtype, torch.float64, torch.float32),
    "another device by default": lambda: torch.device("meta"),
    "products of bfloat16": lambda: setting(torch.set_float32_matmul_precision, "medium", "highest"),
    "deterministic": lambda: setting(torch.use_deterministic_algorithms, True, False),
    "one thread": lambda: setting(torch.set_num_threads, 1, torch.get_num_threads()),
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
}


@pytest.mark.parametrize("source", [SOURCE, "orth"])
@pytest.mark.parametrize("mode", MODES)
def test_modes(mode: str, source: str, seeded_ghn2: GHN) -> None:
    """And what was set is set afterwards."""
    ghn = seeded_ghn2 if source == SOURCE else None
    model, other = resnet(), resnet()
    init_model(model, source, ghn=ghn)
    with MODES[mode]():
        before = (torch.is_inference_mode_enabled(), torch.get_default_dtype(), torch.get_default_device())
        init_model(other, source, ghn=ghn)
        assert before == (torch.is_inference_mode_enabled(), torch.get_default_dtype(), torch.get_default_device())
    assert_same(other, dict(model.named_parameters()))


@pytest.mark.parametrize("source", [SHIPPED, "rand", "orth", f"{SHIPPED}-orth"])
def test_a_model_that_lives_in_inference_mode(source: str) -> None:
    model = timm.create_model("test_resnet", num_classes=10)
    init_model(model, source)
    with torch.inference_mode():
        torch.manual_seed(0)
        inside = timm.create_model("test_resnet", pretrained=source, num_classes=10)
    report = init_model(resnet(), source)
    for name in report.predicted:
        assert torch.equal(inside.get_parameter(name), model.get_parameter(name)), name


def test_the_file_of_the_shipped_ghn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIMM_GHN_HOME", str(tmp_path))
    path = KNOWN[SHIPPED].local_path
    models = [resnet(), resnet()]
    sources = (f"{SHIPPED}-orth?cache=1", f"file:{path}-orth?cache=1")
    reports = [init_model(model, source) for model, source in zip(models, sources, strict=True)]
    assert_same(models[1], dict(models[0].named_parameters()))
    assert reports[0].key == reports[1].key and reports[1].cached
    assert reports[0].layer == reports[1].layer


# -- where post-processing begins --------------------------------------------------------------------------------------


def begins(model: nn.Module, depth: float | None = None) -> tuple[int, list[str]]:
    """L, and the weights from there on."""
    source, ghn = parse_source(f"{SHIPPED}-orth"), load_ghn(SHIPPED)
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(ghn, "depth", depth)
        plan = make_plan(model, "", predicted(trace(model), 1000, source), Resolved(source, source, ghn), None)
    return plan.layer, [layer.name for layer in plan.changed]


@pytest.mark.parametrize(("name", "layer"), [("resnet50", 37), ("convnext_base", 94)])
def test_the_authors_architectures_are_known_by_their_graph(name: str, layer: int) -> None:
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        models = [
            getattr(torchvision.models, name)(num_classes=7),
            on_meta(name),
            on_meta(name, num_classes=0, in_chans=1),
            on_meta(name, features_only=True),
        ]
        assert [begins(model)[0] for model in models] == [layer] * 4
        assert begins(timm.create_model({"resnet50": "resnext50_32x4d"}.get(name, "convnext_small")))[0] != layer


@pytest.mark.parametrize("name", ["convnext_atto", "test_vit", "deit_tiny_distilled_patch16_224", "resnet18"])
def test_a_backbone_does_not_depend_on_its_head(name: str) -> None:
    whole, backbone = on_meta(name), on_meta(name, num_classes=0)
    assert begins(whole) == begins(backbone)
    assert begins(whole, 0.5) == begins(backbone, 0.5)


def test_the_last_convolution_of_squeezenet_is_its_classifier() -> None:
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        model = torchvision.models.squeezenet1_1()
    assert begins(model, 0.0)[1][-1] == "features.12.expand3x3.weight"


def test_threads_leave_the_settings_of_the_process() -> None:
    """One thread begins, another one begins and goes on when the first has ended."""
    matmul: Any = torch.backends.mkldnn.matmul
    inside, ended = threading.Event(), threading.Event()

    def second() -> None:
        with exact(torch.device("cpu")):
            inside.set()
            ended.wait(10)
            assert matmul.fp32_precision == "ieee"

    with setting(torch.set_float32_matmul_precision, "medium", "highest"):
        before = matmul.fp32_precision, torch.backends.cuda.matmul.allow_tf32
        with ThreadPoolExecutor(1) as pool:
            with exact(torch.device("cpu")):
                running = pool.submit(second)
                assert inside.wait(10)
            ended.set()
            running.result()
        assert (matmul.fp32_precision, torch.backends.cuda.matmul.allow_tf32) == before == ("bf16", True)
