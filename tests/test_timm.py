"""The sources inside timm: every spelling, every option of create_model, and everything else as before."""

import copy
import functools
import io
import json
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm
import torch
from timm import create_model, model_entrypoint  # on purpose by name
from timm.models import _builder, build_model_with_cfg
from timm_models import LOCAL_DIR, READS_VALUES

import timm_ghn_init
from timm_ghn_init import GHN, save_ghn, trace

ARCH = "test_resnet"  # small, with a classifier of 1000 classes
VIT = "test_vit"
build = functools.partial(build_model_with_cfg)  # as others may hold on to it


@pytest.fixture(autouse=True)
def default_ghn(ghn_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ghn` is the seeded GHN, so that plain source names work without a network."""
    monkeypatch.setenv("TIMM_GHN_DEFAULT", f"file:{ghn_file}")


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Whether all is equal but classifiers that are drawn anew each time."""
    x, y = a.state_dict(), b.state_dict()
    skipped = a.ghn_report.skipped if hasattr(a, "ghn_report") else {}
    new = {n for n, reason in skipped.items() if reason.startswith("classifier")}
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x.keys() - new)


def predicted_by_hand(name: str, source: str = "ghn", **kwargs: object) -> torch.nn.Module:
    model = create_model(name, **kwargs)
    timm_ghn_init.init_model(model, source)
    return model


def test_three_spellings_agree() -> None:
    expected = predicted_by_hand(ARCH, "ghn-orth")
    assert same(create_model(ARCH, pretrained="ghn-orth"), expected)
    assert same(create_model(f"{ARCH}.ghn-orth", pretrained=True), expected)
    assert same(create_model(ARCH, pretrained=True, pretrained_cfg="ghn-orth"), expected)
    assert not same(create_model(ARCH, pretrained="ghn"), expected)


def ours(source: str) -> dict[str, object]:
    """A config that names a source."""
    return timm.get_pretrained_cfg(f"{ARCH}.{source}").to_dict()


@contextmanager
def registered(name: str, entrypoint: Callable[..., torch.nn.Module]) -> Iterator[None]:
    """An architecture of somebody else."""
    timm.models._registry._model_entrypoints[name] = entrypoint
    try:
        yield
    finally:
        del timm.models._registry._model_entrypoints[name]


@pytest.fixture(scope="module")
def whole(ghn_file: Path) -> torch.nn.Module:
    return predicted_by_hand(ARCH, f"file:{ghn_file}-orth")


@pytest.mark.parametrize(
    "create",
    [
        lambda: timm.models.test_resnet(pretrained="ghn-orth"),
        lambda: timm.models.test_resnet("ghn-orth"),
        lambda: timm.models.test_resnet(pretrained=timm_ghn_init.parse_source("ghn-orth")),
        lambda: timm.models.test_resnet(pretrained=True, pretrained_cfg="ghn-orth"),
        functools.partial(timm.models.test_resnet, pretrained="ghn-orth"),
        lambda: model_entrypoint(ARCH)(pretrained="ghn-orth"),
        lambda: model_entrypoint(ARCH)("ghn-orth"),
        lambda: timm.models.model_entrypoint(f"{ARCH}.ghn-orth")(pretrained=True),
        lambda: timm.models._registry._model_entrypoints[ARCH](pretrained="ghn-orth"),
        lambda: timm.models.create_model(ARCH, pretrained="ghn-orth"),
    ],
)
def test_doors_beside_create_model(create: Callable[[], torch.nn.Module], whole: torch.nn.Module) -> None:
    assert same(create(), whole)


def test_doors_without_a_source_are_as_before() -> None:
    assert model_entrypoint(ARCH).__wrapped__ is timm.models.test_resnet
    assert not timm.models.test_resnet().pretrained_cfg.get("source")
    assert timm.models.test_resnet(pretrained="ghn", features_only=True).pretrained_cfg["source"].startswith("file:")
    with pytest.raises(ValueError, match="ghn2-orth"):
        timm.models.test_resnet(pretrained="ghn2-ort")


def test_a_path_as_a_tag(ghn_file: Path, whole: torch.nn.Module) -> None:
    assert same(create_model(f"{ARCH}.file:{ghn_file}-orth", pretrained=True), whole)
    with pytest.raises((RuntimeError, ValueError)):
        create_model(f"some/path.file:{ghn_file}", pretrained=True)


def test_an_architecture_that_timm_asks_for_its_config_before(ghn_file: Path) -> None:
    """Inception asks whether its weights have a second head, and passes the answer on."""
    model = timm.models.inception_v3(pretrained="rand")
    assert model.pretrained_cfg["source"] == "rand"


def test_names_with_keys_and_underscores() -> None:
    expected = predicted_by_hand(ARCH, "ghn-orth?layer=3&seed=7")
    assert same(create_model(ARCH, pretrained="ghn_orth?layer=3&seed=7"), expected)
    assert same(create_model(f"{ARCH}.ghn-orth?seed=7&layer=3", pretrained=True), expected)


@pytest.mark.parametrize(
    "create",
    [
        lambda: create_model(f"{ARCH}.ghn2-orth"),
        lambda: create_model(ARCH, pretrained_cfg="ghn2-orth"),
        lambda: create_model(ARCH, pretrained_cfg=ours("ghn2-orth")),
        lambda: create_model(ARCH, pretrained_cfg_overlay={"source": "ghn2-orth"}),
        lambda: timm.models.test_resnet(pretrained_cfg="ghn2-orth"),
        lambda: create_model(f"{ARCH}.ghn2-orth", features_only=True),
    ],
)
def test_named_but_not_applied(create: Callable[[], torch.nn.Module], caplog: pytest.LogCaptureFixture) -> None:
    """The weights are random: one warning tells how to get others, and the config does not name the source."""
    torch.manual_seed(0)
    plain = create_model(ARCH)
    torch.manual_seed(0)
    with caplog.at_level("WARNING", "timm_ghn_init"):
        model = create()
    (record,) = caplog.records
    assert "ghn2-orth was named but not applied" in record.getMessage()
    assert "pretrained=True" in record.getMessage() and "init_model" in record.getMessage()
    assert "ghn2-orth" not in (model.pretrained_cfg.get("source"), model.pretrained_cfg.get("tag"))
    assert not hasattr(model, "ghn_report")
    assert model.pretrained_cfg["mean"] == plain.pretrained_cfg["mean"]
    first = next(p for n, p in plain.named_parameters() if n.startswith("conv1"))
    assert torch.equal(next(model.parameters()), first)


def test_timm_is_imported_first(ghn_file: Path) -> None:
    """The other order is that of `test_registration`."""
    code = """from timm import create_model
import timm, timm_ghn_init
for model in (
    create_model("test_resnet", pretrained="ghn-orth"),
    create_model("test_resnet.ghn-orth", pretrained=True),
    create_model("test_resnet", pretrained=True, pretrained_cfg="ghn-orth"),
):
    print(model.pretrained_cfg["source"])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [f"file:{ghn_file}-orth"] * 3


def test_config_says_what_was_used(ghn_file: Path) -> None:
    model = create_model(ARCH, pretrained="ghn-orth")
    config, usual = model.pretrained_cfg, create_model(ARCH).pretrained_cfg
    assert config["source"] == f"file:{ghn_file}-orth"
    assert config["paper_name"].startswith("Pretraining a Neural Network")
    for key in ("input_size", "mean", "std", "interpolation", "first_conv", "classifier", "num_classes"):
        assert config[key] == usual[key], key
    assert not any(config.get(key) for key in ("url", "file", "hf_hub_id"))
    assert model.default_cfg is model.pretrained_cfg


def test_config_of_a_named_ghn() -> None:
    config = timm.get_pretrained_cfg("convnext_base.ghn2-orth")
    assert config.source == "ghn2-orth"
    assert config.license == "mit"
    assert config.architecture == "convnext_base"
    assert not config.has_weights
    plain = timm.get_pretrained_cfg("convnext_base.ghn2")
    assert plain.paper_name.startswith("Parameter Prediction")


@pytest.mark.parametrize(
    "kwargs",
    [
        {"num_classes": 10},
        {"num_classes": 0},
        {"in_chans": 1},
        {"in_chans": 5},
        {"global_pool": "avgmax"},
        {"drop_path_rate": 0.1, "drop_rate": 0.1},
        {"pretrained_cfg_overlay": {"mean": (0.5, 0.5, 0.5)}},
        {"scriptable": True},
        {"exportable": True},
    ],
    ids=str,
)
def test_options_of_create_model(kwargs: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = create_model(ARCH, pretrained="ghn", **kwargs)
    torch.manual_seed(0)
    assert same(model, predicted_by_hand(ARCH, **kwargs))
    channels = int(str(kwargs.get("in_chans", 3)))
    assert model.eval()(torch.zeros(1, channels, 64, 64)).isfinite().all()
    if "pretrained_cfg_overlay" in kwargs:
        assert model.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)


def test_other_number_of_classes_keeps_timms_classifier() -> None:
    plain = create_model(ARCH, num_classes=10)
    model = create_model(ARCH, pretrained="ghn", num_classes=10)
    torch.testing.assert_close(model.fc.weight.std(), plain.fc.weight.std(), rtol=0.1, atol=0)
    assert not torch.equal(model.conv1[0].weight, plain.conv1[0].weight)


def test_features_only() -> None:
    model = create_model(ARCH, pretrained="ghn", features_only=True, out_indices=(1, 3))
    whole = create_model(ARCH, pretrained="ghn")
    assert len(model(torch.zeros(1, 3, 64, 64))) == 2
    assert torch.equal(model.state_dict()["layer1.0.conv1.weight"], whole.layer1[0].conv1.weight)
    assert str(model.pretrained_cfg["source"]).startswith("file:")


@pytest.mark.parametrize("size", [96, (64, 128)])
def test_img_size(size: int | tuple[int, int]) -> None:
    if isinstance(size, tuple) and READS_VALUES:
        pytest.skip(f"this model of timm {timm.__version__} takes no such size in its own forward pass")
    model, by_hand = create_model(VIT, pretrained="ghn", img_size=size), predicted_by_hand(VIT, img_size=size)
    for name in model.ghn_report.predicted:
        if name != "pos_embed":  # the class token's row is drawn
            assert torch.equal(model.get_parameter(name), by_hand.get_parameter(name)), name
    h, w = (size, size) if isinstance(size, int) else size
    assert model.eval()(torch.zeros(1, 3, h, w)).isfinite().all()


def test_checkpoint_path_is_loaded_afterwards(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    other = create_model(ARCH)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    model = create_model(ARCH, pretrained="ghn", checkpoint_path=str(tmp_path / "other.safetensors"))
    assert same(model, other)


def test_deprecated_name() -> None:
    with pytest.warns(UserWarning, match="deprecated model name"):
        model = create_model("tv_resnet50", pretrained="ghn?classifier=0")
    assert model.pretrained_cfg["architecture"] == "resnet50"
    assert str(model.pretrained_cfg["source"]).startswith("file:")


def test_another_tag_lends_its_data_config() -> None:
    model = create_model("resnet18.a1_in1k", pretrained="ghn")
    usual = timm.get_pretrained_cfg("resnet18.a1_in1k")
    assert model.pretrained_cfg["crop_pct"] == usual.crop_pct
    assert str(model.pretrained_cfg["source"]).startswith("file:")


@LOCAL_DIR
def test_a_place_lends_its_data_config(tmp_path: Path) -> None:
    """A name that is a place says what weights there are, and a source which ones to take."""
    config = {"architecture": ARCH, "num_classes": 7, "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "num_classes": 7}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = create_model(f"local-dir:{tmp_path}", pretrained="ghn")
    torch.manual_seed(0)
    assert same(model, predicted_by_hand(ARCH, num_classes=7))
    assert tuple(model.pretrained_cfg["mean"]) == (0.1, 0.2, 0.3)
    assert str(model.pretrained_cfg["source"]).startswith("file:")


def test_config_of_ours_can_be_passed_on() -> None:
    first = create_model(ARCH, pretrained="ghn")
    again = create_model(ARCH, pretrained=True, pretrained_cfg=first.pretrained_cfg)
    assert same(first, again)


def test_slip_of_the_pen_is_an_error() -> None:
    with pytest.raises(ValueError, match="ghn2-orth"):
        create_model(ARCH, pretrained="ghn2-ort")
    with pytest.raises(ValueError, match="layer"):
        create_model(f"{ARCH}.ghn-orth?layr=3", pretrained=True)
    for other in ({"pretrained_cfg": "ghn2"}, {"pretrained_cfg": {"source": "ghn2"}}):
        with pytest.raises(ValueError, match=f"{ARCH}.*disagree"):
            create_model(ARCH, pretrained="ghn1", **other)
        with pytest.raises(ValueError, match=f"{ARCH}.*disagree"):
            timm.models.test_resnet(pretrained="ghn1", **other)
    with pytest.raises(ValueError, match="disagree"):
        create_model(f"{ARCH}.ghn2", pretrained="ghn1")
    with pytest.raises(ValueError, match="disagree"):
        create_model(ARCH, pretrained="ghn1", pretrained_cfg_overlay={"source": "ghn2"})


def create_from(config: type, **fields: object) -> dict[str, object]:
    """One of our configs, with more in it."""
    return {"pretrained": True, "pretrained_cfg": config(**{**ours("ghn-orth"), **fields})}


@pytest.mark.parametrize("door", [functools.partial(create_model, ARCH), timm.models.test_resnet])
@pytest.mark.parametrize("key", ["file", "state_dict", "url", "hf_hub_id"])
def test_other_weights_beside_a_source_are_an_error(door: Callable[..., torch.nn.Module], key: str) -> None:
    """Also timm's `--pretrained-path FILE`, and a config that was passed on: neither is silently ignored."""
    more = {key: {"conv1.0.weight": torch.zeros(1)} if key == "state_dict" else "https://x/y.safetensors"}
    usual = timm.get_pretrained_cfg(ARCH).to_dict()
    for spelling in (
        {"pretrained": "ghn-orth", "pretrained_cfg_overlay": more},
        {"pretrained": True, "pretrained_cfg": "ghn-orth", "pretrained_cfg_overlay": more},
        {**create_from(dict), "pretrained_cfg_overlay": more},
        create_from(dict, **more),
        create_from(timm.models.PretrainedCfg, **more),
        {"pretrained": "ghn-orth", "pretrained_cfg": {**usual, **more}},
    ):
        with pytest.raises(ValueError, match=rf"{ARCH}: .*'{key}'.*'ghn-orth'"):
            door(**spelling)


@pytest.mark.parametrize("spelling", [{"pretrained": "ghn-orth"}, {"pretrained": True, "pretrained_cfg": "ghn-orth"}])
def test_the_overlay_of_a_source(spelling: dict[str, object]) -> None:
    model = create_model(ARCH, **spelling, pretrained_cfg_overlay={"mean": (0.1, 0.2, 0.3)})
    assert str(model.pretrained_cfg["source"]).startswith("file:")


@pytest.mark.parametrize("load", ["load_pretrained", "load_custom_pretrained"])
def test_loaders_take_a_config_of_ours(load: str, whole: torch.nn.Module) -> None:
    config = ours("ghn-orth")
    model = create_model(ARCH)
    getattr(timm.models, load, getattr(_builder, load))(model, config)
    assert same(model, whole)
    assert config["source"].startswith("file:")
    with pytest.raises(ValueError, match=f"{ARCH}: .*'state_dict'"):
        _builder.load_pretrained(model, {**config, "state_dict": whole.state_dict()})


def test_everything_else_is_as_before(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Invalid pretrained tag"):
        create_model(f"{ARCH}.no_such_tag", pretrained=True)
    from safetensors.torch import save_file

    weights = create_model(ARCH)
    save_file(weights.state_dict(), tmp_path / "w.safetensors")
    overlay = {"file": str(tmp_path / "w.safetensors")}
    assert same(create_model(ARCH, pretrained=True, pretrained_cfg_overlay=overlay), weights)
    assert same(create_model(ARCH, pretrained="yes", pretrained_cfg_overlay=overlay), weights)


@pytest.mark.parametrize("tag", ["ghn-orth", "ghn2-fashion-orth", "ghn2?layer=3", "rand", "file:/a.b/c.pt-orth"])
def test_every_tag_is_known(tag: str) -> None:
    """Libraries ask before they create a model: are there weights, how are images to be prepared?"""
    name = f"{ARCH}.{tag}"
    assert timm.models.is_model_pretrained(name)
    data = timm.data.resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    assert data == timm.data.resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(ARCH).to_dict())
    assert timm.models.get_pretrained_cfg_value(name, "source") == tag


def test_unknown_tags_stay_unknown() -> None:
    assert not timm.is_model_pretrained(f"{ARCH}.ghn2-ort")
    assert not timm.is_model_pretrained("no_such_model.ghn2")
    assert timm.get_pretrained_cfg("no_such_model.ghn2") is None
    with pytest.raises(RuntimeError, match="Invalid pretrained tag"):
        timm.get_pretrained_cfg(f"{ARCH}.no_such_tag")


def test_tags_are_listed_where_a_filter_asks_for_them() -> None:
    names = timm.list_models("convnext_base.ghn*", pretrained=True)
    assert {"convnext_base.ghn", "convnext_base.ghn2", "convnext_base.ghn-orth"} <= set(names)
    assert timm.list_models(["convnext_base.*2-orth"], pretrained=True) == ["convnext_base.ghn2-orth"]
    assert not [n for n in timm.list_models(pretrained=True) if ".ghn" in n]
    assert not [n for n in timm.list_models("convnext_base.*", pretrained=True) if ".ghn" in n]
    assert "convnext_base.ghn2-orth" not in timm.list_models("convnext_base*")


def test_functions_are_pickled_as_timms_own() -> None:
    function = pickle.loads(pickle.dumps(model_entrypoint(ARCH)))
    assert function is timm.models.test_resnet
    tagged = pickle.loads(pickle.dumps(model_entrypoint(f"{ARCH}.rand")))
    assert tagged(pretrained=True).pretrained_cfg["source"] == "rand"
    for name in ("create_model", "list_models", "is_model_pretrained"):
        assert pickle.loads(pickle.dumps(getattr(timm, name))) is getattr(timm, name)


@pytest.mark.parametrize("path", ["weights/ghn.pt", Path("ghn"), "net.safetensors", "/tmp/x"])
def test_a_path_is_not_taken_for_a_yes(path: object) -> None:
    """timm loads its own weights for any text."""
    for create in (functools.partial(create_model, ARCH), timm.models.test_resnet):
        with pytest.raises(ValueError, match=rf"{ARCH}: .*file:.*checkpoint_path"):
            create(pretrained=path)


def test_on_the_meta_device() -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=rf"{ARCH}: .*init_model.*device='cpu'"):
        create_model(f"{ARCH}.rand", pretrained=True)


def hooks() -> set[tuple[str, str]]:
    """Where something of ours hangs: modules, and names in them."""
    modules = [m for m in sys.modules.values() if isinstance(m, ModuleType)]
    ours = ((m.__name__, name) for m in modules for name, value in list(vars(m).items()) if is_hook(value))
    return set(ours)


def is_hook(value: object) -> bool:
    return "_timm_ghn_init_original" in getattr(value, "__dict__", {}) if callable(value) else False


def test_register_and_unregister_are_idempotent() -> None:
    wrapped = hooks()
    assert {("timm", "model_entrypoint"), ("timm.models", "model_entrypoint"), (__name__, "model_entrypoint")} < wrapped
    timm_ghn_init.register()
    assert hooks() == wrapped
    listed = timm.list_models(f"{ARCH}.ghn*", pretrained=True)
    try:
        timm_ghn_init.unregister()
        timm_ghn_init.unregister()
        assert not hooks()
        assert not timm.list_models(f"{ARCH}.ghn*", pretrained=True)
        assert not timm.is_model_pretrained(f"{ARCH}.ghn2")
        with pytest.raises(RuntimeError, match="Invalid pretrained tag"):
            create_model(f"{ARCH}.ghn2", pretrained=True)
    finally:
        timm_ghn_init.register()
    assert hooks() == wrapped
    assert timm.list_models(f"{ARCH}.ghn*", pretrained=True) == listed


def test_an_architecture_that_bypasses_timms_loader_is_an_error() -> None:
    def entrypoint(pretrained: bool = False, **kwargs: object) -> torch.nn.Module:
        return torch.nn.Linear(3, 3)

    def with_a_part(pretrained: bool = False, **kwargs: object) -> torch.nn.Module:
        return torch.nn.Sequential(timm.models.test_resnet(pretrained="rand"), torch.nn.Linear(1000, 2))

    with registered("with_a_part", with_a_part), pytest.raises(RuntimeError, match=r"with_a_part.*init_model"):
        create_model("with_a_part", pretrained="ghn")
    with registered("bypass", entrypoint):
        for create in (functools.partial(create_model, "bypass"), model_entrypoint("bypass")):
            with pytest.raises(RuntimeError, match=r"bypass.*init_model"):
                create(pretrained="ghn")
            assert isinstance(create(), torch.nn.Linear)


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_vit", "test_convnext", "test_nfnet", "resnest14d", "xcit_nano_12_p8_224"]
)
@pytest.mark.parametrize("classes", [1000, 7])
def test_the_same_model_every_time(name: str, classes: int) -> None:
    """What is not predicted comes from the source's seed, but for a new classifier: the global generator draws it."""

    def made(pretrained: object, seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        return create_model(name, pretrained=pretrained, num_classes=classes)

    model, once_more = made("ghn", 5), made("ghn", 5)
    again, other = made("ghn", 6), made("ghn?seed=3", 5)
    heads = {f"{n}" for m in [model] for n, p in m.named_parameters() if any(p is q for q in head_of(m))}
    for n, p in model.named_parameters():
        if n in heads and classes == 7:
            assert torch.equal(p, once_more.get_parameter(n)), n
            assert not (p.any() and torch.equal(p, again.get_parameter(n))), n
        else:
            assert torch.equal(p, again.get_parameter(n)), n
    drawn = {n for n, p in model.named_parameters() if not torch.equal(p, other.get_parameter(n))}
    assert drawn <= set(model.ghn_report.skipped) | {"pos_embed"}
    assert name != "test_vit" or "cls_token" in drawn


def head_of(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return list(model.get_classifier().parameters())


def test_two_threads() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        models = list(pool.map(lambda name: create_model(name, pretrained="ghn"), [ARCH, VIT, ARCH, VIT]))
    assert same(models[0], models[2])


def test_ghn3_through_the_same_door(seeded_ghn3: GHN, tmp_path: Path) -> None:
    save_ghn(seeded_ghn3, tmp_path / "ghn3.safetensors")
    source = f"file:{tmp_path}/ghn3.safetensors"
    model = create_model("seresnet50", pretrained=f"{source}-orth?layer=40", num_classes=10)
    expected = seeded_ghn3.predict(trace(model, dialect="ghn3"))
    for name in ("conv1.weight", "layer1.0.se.fc1.weight", "bn1.bias"):
        torch.testing.assert_close(model.get_parameter(name).data, expected[name])
    assert timm.get_pretrained_cfg("resnet18.ghn3-xl-orth").tag == "ghn3-xl-orth"


def test_module_code_is_untouched() -> None:
    """The wrappers keep name and docstring of what they wrap."""
    assert _builder.load_pretrained.__name__ == "load_pretrained"
    assert textwrap.dedent(_builder.load_pretrained.__doc__ or "").strip().startswith("Load pretrained checkpoint")


class NeedsValues(torch.nn.Module):
    """Its forward reads a parameter's values, so it cannot be traced without memory."""

    def __init__(self, num_classes: int = 1000, **kwargs: object) -> None:
        super().__init__()
        self.conv, self.fc = torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(8, num_classes)
        self.pretrained_cfg: dict[str, object] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert 0 < self.conv.weight.abs().max().item() < 1
        return self.fc(self.conv(x).mean((2, 3)))


def test_a_forward_that_reads_values_finds_them(caplog: pytest.LogCaptureFixture) -> None:
    def entrypoint(pretrained: bool = False, **kwargs: object) -> torch.nn.Module:
        return _builder.build_model_with_cfg(NeedsValues, "needs_values", pretrained, **kwargs)

    with registered("needs_values", entrypoint):
        torch.manual_seed(0)
        expected = predicted_by_hand("needs_values", num_classes=7)
        torch.manual_seed(0)
        with caplog.at_level("INFO", logger="timm_ghn_init"):
            model = create_model("needs_values", pretrained="ghn", num_classes=7)
    assert same(model, expected)
    assert "needs real values" in caplog.text


def test_what_is_predicted_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what keeps its values is carried out: here, the classifier."""
    from timm_ghn_init.own_init.deferred import DeferredInit

    carried_out: list[int] = []
    original = DeferredInit._carry_out
    monkeypatch.setattr(
        DeferredInit, "_carry_out", lambda self, keys, *o: (carried_out.extend(keys), original(self, keys, *o))
    )
    create_model(ARCH, pretrained="ghn", num_classes=7)
    assert len(carried_out) == 2  # fc.weight, fc.bias


def saved(p: torch.Tensor) -> torch.Tensor:
    file = io.BytesIO()
    torch.save(p.detach(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def in_a_thread(p: torch.Tensor) -> torch.Tensor:
    found: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: found.append(p.detach().clone()))
    thread.start()
    thread.join()
    return found[0]


def seeded(p: torch.Tensor) -> torch.Tensor:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(3)
        return torch.empty_like(p).normal_() + p.detach()


READS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "numpy": lambda p: torch.from_numpy(p.detach().numpy().copy()),
    "asarray": lambda p: torch.from_numpy(np.asarray(p.detach()).copy()),
    "dlpack": lambda p: torch.from_numpy(np.from_dlpack(p.detach()).copy()),
    "tolist": lambda p: torch.tensor(p.tolist()),
    "item": lambda p: torch.full_like(p, p[0, 0].item()),
    "storage": lambda p: torch.tensor(list(p.untyped_storage())[: p.numel()], dtype=torch.float).view_as(p),
    "deepcopy": lambda p: copy.deepcopy(p).detach(),
    "deepcopy of a plain tensor": lambda p: copy.deepcopy(p.detach()),
    "save": saved,
    "thread": in_a_thread,
    "seed": seeded,
}


class Reader(torch.nn.Module):
    """Its constructor computes values of one parameter from another's."""

    def __init__(self, read: str, num_classes: int = 1000, **kwargs: object) -> None:
        super().__init__()
        self.conv, self.fc = torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(8, num_classes)
        torch.nn.init.normal_(self.fc.weight)
        self.fc.weight.data = READS[read](self.fc.weight) + 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).mean((2, 3)))


@pytest.mark.parametrize("read", READS)
def test_constructors_read_what_timm_would_have_drawn(read: str) -> None:
    def entrypoint(pretrained: bool = False, **kwargs: object) -> torch.nn.Module:
        return build(functools.partial(Reader, read), "reader", pretrained, **kwargs)

    with registered("reader", entrypoint):
        made = []
        for pretrained, create in (
            (False, create_model),
            ("ghn", create_model),
            ("ghn", lambda _, **kw: entrypoint(**kw)),
        ):
            torch.manual_seed(0)
            made.append((create("reader", pretrained=pretrained, num_classes=7), torch.get_rng_state()))
    (plain, state), *others = made
    for model, its_state in others:
        assert torch.equal(model.fc.weight, plain.fc.weight)
        assert torch.equal(model.fc.bias, plain.fc.bias)
        assert not torch.equal(model.conv.weight, plain.conv.weight)
        assert torch.equal(its_state, state)


def test_somebody_elses_class_in_one_of_timms_constructors() -> None:
    class Act(torch.nn.ReLU):
        def __init__(self, inplace: bool = False) -> None:
            super().__init__()
            self.slope = torch.nn.Parameter(torch.empty(20).uniform_())
            self.slope.data = torch.from_numpy(self.slope.detach().numpy() * 2)

    torch.manual_seed(0)
    expected = create_model(ARCH, act_layer=Act)
    torch.manual_seed(0)
    model = create_model(ARCH, act_layer=Act, pretrained="ghn")
    for name, p in expected.named_parameters():
        if name.endswith("slope"):
            assert torch.equal(p, model.get_parameter(name))
