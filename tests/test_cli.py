"""The command line: what it writes and prints, and that a mistake is one line and status 2."""

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from timm_models import LOCAL_DIR, READS_VALUES, on_meta
from torch import nn

import timm_ghn_init
from timm_ghn_init.checkpoints import load as checkpoints
from timm_ghn_init.cli import GROUPS, _parser, commands, main
from timm_ghn_init.sources import KNOWN


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command: status, stdout, stderr."""

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([str(a) for a in argv])
        except SystemExit as error:  # argparse
            status = int(error.code or 0)
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def no_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for a checkpoint fails."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a checkpoint was asked for")

    for name in ("fetch", "load_ghn", "resolve_default"):
        monkeypatch.setattr(checkpoints, name, refuse)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache, and a mirror that nobody serves."""
    monkeypatch.setenv("TIMM_GHN_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TIMM_GHN_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("TIMM_GHN_DEFAULT", raising=False)


# -- predict -----------------------------------------------------------------------------------------------------------


def metadata(path: Path) -> dict:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["timm_ghn_init"])


def test_predict_writes_what_timm_loads(run: Callable, ghn_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "resnet18.safetensors"
    source = f"file:{ghn_file}"
    status, stdout, _ = run("predict", "resnet18", "--source", source, "-o", out)
    assert (status, stdout) == (0, f"{out}\n")
    loaded = timm.create_model("resnet18", checkpoint_path=str(out))
    expected = timm.create_model("resnet18", pretrained=source)
    assert loaded.state_dict().keys() == load_file(out).keys()
    (plain_file := tmp_path / "plain").touch()
    assert out.stat().st_mode == plain_file.stat().st_mode  # so that whoever may read other files may read this one
    for (name, a), b in zip(loaded.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@LOCAL_DIR
@pytest.mark.parametrize("exists", [False, True])
def test_predict_writes_a_folder_that_timm_loads(run: Callable, ghn_file: Path, tmp_path: Path, exists: bool) -> None:
    """Weights and config in timm's format; what else is in the folder stays. It needs nothing of ours to load."""
    out = tmp_path / "model"
    if exists:
        out.mkdir()
        for name in ("model.safetensors", "README.md"):
            (out / name).write_text("old")
    source, options = f"file:{ghn_file}-orth", {"num_classes": 7, "in_chans": 1, "img_size": 96}
    argv = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    status, stdout, _ = run("predict", "vit_tiny_patch16_224", "--source", source, *argv, "-o", f"{out}/")
    assert (status, stdout) == (0, f"{out}\n")
    assert {p.name for p in out.iterdir()} == {"model.safetensors", "config.json"} | (
        {"README.md"} if exists else set()
    )
    assert list(tmp_path.iterdir()) == [out]

    timm_ghn_init.unregister()
    try:
        loaded = timm.create_model(f"local-dir:{out}", pretrained=True)
    finally:
        timm_ghn_init.register()
    torch.manual_seed(0)
    expected = timm.create_model("vit_tiny_patch16_224", **options)
    timm_ghn_init.init_model(expected, source, seed=0)
    for (name, a), b in zip(loaded.state_dict().items(), expected.state_dict().values(), strict=True):
        drawn = name.startswith(("cls_token", "pos_embed", "head."))  # at least in part
        assert drawn or torch.equal(a, b), name
    assert metadata(out / "model.safetensors")["source"] == source
    config = json.loads((out / "config.json").read_text())
    assert (config["architecture"], config["num_classes"]) == ("vit_tiny_patch16_224", 7)
    assert "num_classes" not in config["model_args"]  # transformers would pass it twice
    said = config["pretrained_cfg"]
    assert said["description"] == f"Parameters predicted by {ghn_file.name}, post-processed (GHN-orth)"
    assert said["paper_ids"] == "arXiv:2207.10049"
    assert not said.keys() & {"hf_hub_id", "url", "license"}  # those of weights that timm knows
    assert str(ghn_file.parent) not in str(said)


@LOCAL_DIR
def test_predict_into_a_folder_of_another_size_model(run: Callable, ghn_file: Path, tmp_path: Path) -> None:
    """An input size that only the graph took is no argument of the model."""
    argv = ("--source", f"file:{ghn_file}", "--img-size", 96, "-o", f"{tmp_path}/m/")
    assert run("predict", "resnet18", *argv)[0] == 0
    assert "img_size" not in json.loads((tmp_path / "m" / "config.json").read_text()).get("model_args", {})
    timm.create_model(f"local-dir:{tmp_path}/m", pretrained=True)


def test_predict_same_command_same_bytes(run: Callable, ghn_file: Path, tmp_path: Path) -> None:
    """Also with noise, another classifier and the global random state in between."""
    files = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(3)
        files.append(tmp_path / f"{name}.safetensors")
        source = f"file:{ghn_file}-orth?layer=18"
        arguments = ("--source", source, "--num-classes", 10, "--seed", seed, "-o", files[-1])
        assert run("predict", "resnet18", *arguments)[0] == 0
    a, _, c = (load_file(f) for f in files)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not torch.equal(a["layer4.1.conv2.weight"], c["layer4.1.conv2.weight"])  # noise
    assert not torch.equal(a["fc.weight"], c["fc.weight"])  # timm's own initialisation
    assert torch.equal(a["layer1.0.conv1.weight"], c["layer1.0.conv1.weight"])
    assert metadata(files[0])["seed"] == 1


def test_predict_seed_of_the_source(run: Callable, ghn_file: Path, tmp_path: Path) -> None:
    """`--seed` wins over the source's, which wins over 0."""
    seeds = {}
    for name, query, option in (("a", "&seed=7", ()), ("b", "", ("--seed", 7)), ("c", "&seed=3", ("--seed", 7))):
        out = tmp_path / f"{name}.safetensors"
        run("predict", "resnet18", "--source", f"file:{ghn_file}-orth?layer=20{query}", *option, "-o", out)
        seeds[name] = load_file(out)["layer4.1.conv2.weight"]
        assert metadata(out)["seed"] == 7
    assert torch.equal(seeds["a"], seeds["b"])
    assert torch.equal(seeds["a"], seeds["c"])


def test_predict_provenance(run: Callable, ghn_file: Path, tmp_path: Path) -> None:
    import hashlib

    out = tmp_path / "m.safetensors"
    options = ("--num-classes", 10, "--in-chans", 1, "--model-kwargs", "drop_rate=0.5", "global_pool=max")
    assert run("predict", "resnet18", "--source", f"file:{ghn_file}", *options, "-o", out)[0] == 0
    said = metadata(out)
    assert said["architecture"] == "resnet18"
    assert said["source"] == f"file:{ghn_file}"
    assert said["ghn"]["sha256"] == hashlib.sha256(ghn_file.read_bytes()).hexdigest()
    assert (said["num_classes"], said["seed"]) == (10, 0)
    assert said["options"] == {"num_classes": 10, "in_chans": 1, "drop_rate": 0.5, "global_pool": "max"}
    assert said["versions"]["timm"] == timm.__version__
    assert 0.9 < said["coverage"] < 1
    assert set(said["skipped"]) == {"fc.weight", "fc.bias"}
    tensors = load_file(out)
    assert set(said["predicted"]) | set(said["skipped"]) < set(tensors)  # buffers are there as well
    assert tensors["conv1.weight"].shape[1] == 1
    assert tensors["fc.weight"].shape[0] == 10
    timm.create_model("resnet18", checkpoint_path=str(out), num_classes=10, in_chans=1)


def test_predict_img_size(run: Callable, ghn_file: Path, tmp_path: Path) -> None:
    """A model built for one size is built for this one; any other takes it for the graph alone."""
    for arch, name, shape in (
        ("vit_tiny_patch16_224", "pos_embed", (1, 37, 192)),
        ("resnet18", "conv1.weight", (64, 3, 7, 7)),
    ):
        out = tmp_path / f"{arch}.safetensors"
        assert run("predict", arch, "--source", f"file:{ghn_file}", "--img-size", 96, "-o", out)[0] == 0
        assert load_file(out)[name].shape == shape


def test_predict_quiet_and_verbose(run: Callable, ghn_file: Path, tmp_path: Path) -> None:
    arguments = ("predict", "resnet18", "--source", f"file:{ghn_file}", "-o", tmp_path / "m.safetensors")
    assert run(*arguments, "-q")[2] == ""
    assert "62 of 62 parameters" in run(*arguments)[2]


@pytest.mark.parametrize("exists", [False, True])
def test_a_failed_write_leaves_the_old_folder(
    run: Callable, ghn_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    out = tmp_path / "model"
    if exists:
        out.mkdir()
        (out / "model.safetensors").write_text("old")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("timm.models._hub.save_config_for_hf", full)
    result = run("predict", "resnet18", "--source", f"file:{ghn_file}", "-q", "-o", f"{out}/")
    assert_mistake(result, "model cannot be written: .*No space left")
    assert [p.name for p in tmp_path.rglob("*")] == (["model", "model.safetensors"] if exists else [])
    assert not exists or (out / "model.safetensors").read_text() == "old"


def test_a_failed_write_leaves_the_old_file(
    run: Callable, ghn_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m.safetensors"
    out.write_text("old")

    def full(path: Path, tensors: object, about: object) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("timm_ghn_init.cli.predict.save", full)
    status, stdout, stderr = run("predict", "resnet18", "--source", f"file:{ghn_file}", "-q", "-o", out)
    assert (status, stdout) == (2, "")
    assert re.fullmatch(r"timm-ghn-init: error: .*m\.safetensors cannot be written: .*No space left.*\n", stderr)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    assert out.read_text() == "old"


# -- inspect -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_checkpoint")
def test_inspect_json(run: Callable) -> None:
    status, stdout, stderr = run("inspect", "convnext_tiny", "--json")
    assert (status, stderr) == (0, "")
    said = json.loads(stdout)
    model = timm.create_model("convnext_tiny")
    graph = timm_ghn_init.trace(model)
    assert (said["nodes"], said["edges"]) == (len(graph.nodes), len(graph.edges))
    assert said["virtual_edges"] == (graph.distances() >= 2).sum()
    assert said["primitives"]["sum"] == sum(n.primitive == "sum" for n in graph.nodes)
    assert said["input_size"] == [3, 224, 224]
    shapes = {n: list(p.shape) for n, p in model.named_parameters()}
    assert {p["name"]: p["shape"] for p in said["parameters"]} == shapes
    assert {p["name"] for p in said["parameters"] if p["predicted"]} == set(graph.targets)
    assert {p["name"]: p["reason"] for p in said["parameters"] if p["reason"]} == graph.skipped
    assert all(p["reason"] for p in said["parameters"] if not p["predicted"])
    assert {p["name"] for p in said["parameters"] if p["classifier"]} == {"head.fc.weight", "head.fc.bias"}
    assert said["values"] == sum(p.numel() for p in model.parameters())
    assert said["values_predicted"] == sum(model.get_parameter(n).numel() for n in graph.targets)


@pytest.mark.usefixtures("no_checkpoint")
def test_inspect_text(run: Callable) -> None:
    status, stdout, stderr = run("inspect", "convnext_tiny", "--num-classes", 7, "--in-chans", 1)
    assert (status, stderr) == (0, "")
    lines = stdout.splitlines()
    assert lines[0] == "convnext_tiny, input 1x224x224"
    assert re.match(r"161 nodes, 178 edges, \d+ virtual edges", lines[1])
    assert [line.split() for line in lines if line.startswith("stem.0.weight ")] == [
        ["stem.0.weight", "96x1x4x4", "weight"]
    ]
    [scale] = [line for line in lines if line.startswith("stages.0.blocks.0.gamma")]
    reason = timm_ghn_init.trace(timm.create_model("convnext_tiny")).skipped["stages.0.blocks.0.gamma"]
    assert scale.split()[:3] == ["stages.0.blocks.0.gamma", "96", "-"]
    assert scale.endswith(reason)
    assert any(line.split()[:2] == ["head.fc.weight", "7x768"] for line in lines)


@pytest.mark.usefixtures("no_checkpoint")
def test_inspect_and_graph_take_no_memory(run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of a billion parameters, and none of them anywhere but on meta."""
    on_meta("vit_tiny_patch16_224")  # skips where no such model can be
    create, made = timm.create_model, []
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: made.append(create(*a, **k)) or made[-1])
    assert run("inspect", "vit_giant_patch14_clip_224", "--json")[0] == 0
    assert run("graph", "vit_giant_patch14_clip_224", "-o", tmp_path / "g.svg")[0] == 0
    assert len(made) == 2
    assert all(p.is_meta for model in made for p in model.parameters())


@pytest.mark.usefixtures("no_checkpoint")
def test_inspect_draws_the_graph_that_the_ghn_reads(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def gates(*options: str) -> int:
        status, stdout, _ = run("inspect", "seresnet18", "--json", *options)
        assert status == 0
        return json.loads(stdout)["primitives"].get("cse", 0)

    assert gates() == gates("--source", "ghn2-orth") == 0
    assert gates("--source", "ghn3-t") == 8
    monkeypatch.setenv("TIMM_GHN_DEFAULT", "ghn3-xl")
    assert gates() == 8


class NeedsValues(nn.Module):
    """Its constructor and its forward look at numbers."""

    def __init__(self, num_classes: int = 10, in_chans: int = 3, **_: object) -> None:
        super().__init__()
        width = int(torch.tensor([8.0]).sum().item())
        self.conv, self.fc = nn.Conv2d(in_chans, width, 3), nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


@pytest.mark.usefixtures("no_checkpoint")
def test_inspect_a_model_that_needs_values(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    entrypoint = timm.models._registry._model_entrypoints
    monkeypatch.setitem(
        entrypoint, "needs_values", lambda pretrained=False, **k: NeedsValues(num_classes=k.get("num_classes", 10))
    )
    status, stdout, _ = run("inspect", "needs_values", "--num-classes", 4, "--json")
    assert status == 0
    assert [p["shape"] for p in json.loads(stdout)["parameters"]] == [[8, 3, 3, 3], [8], [4, 8], [4]]


@pytest.mark.parametrize("source", ["ghn2-fashion", "ghn2-fashion-orth?classifier=0", "{ghn}"])
@pytest.mark.parametrize("classes", [100, 10])
def test_inspect_says_what_the_source_will_do(run: Callable, ghn_file: Path, source: str, classes: int) -> None:
    """A GHN has a number of classes, by which it predicts a classifier or leaves it."""
    source = source.format(ghn=f"file:{ghn_file}")
    found = json.loads(run("inspect", "test_resnet", "--source", source, "--num-classes", classes, "--json")[1])
    report = timm_ghn_init.init_model(timm.create_model("test_resnet", num_classes=classes), source)
    assert {p["name"]: p["role"] for p in found["parameters"] if p["predicted"]} == report.predicted
    assert {p["name"]: p["reason"] for p in found["parameters"] if not p["predicted"]} == report.skipped
    assert found["values_predicted"] / found["values"] == report.coverage
    assert (found["source"], found["tensors_predicted"]) == (source, len(report.predicted))


def test_inspect_never_rounds_up_to_all(run: Callable) -> None:
    """10 of 20 million values are left."""
    options = ("--num-classes", 1, "--source", "ghn2-fashion")
    last = run("inspect", "wide_resnet50_2", *options)[1].splitlines()[-1]
    assert last.startswith("159 of 161 parameters are predicted by ghn2-fashion, 99.99% of ")


# -- options -----------------------------------------------------------------------------------------------------------


PARSERS = _parser()[1]


@pytest.mark.parametrize("name", PARSERS)
def test_help(name: str, run: Callable) -> None:
    """Every option has a description and its default; the example is one that the command takes."""
    parser = PARSERS[name]
    for action in parser._actions:
        assert action.help and len(action.help) > 5, action
        if action.option_strings and action.nargs != 0 and not isinstance(action, argparse.BooleanOptionalAction):
            assert action.required or re.search(r"default|required|repeatable", action.help)
    status, stdout, _ = run(*name.split(), "--help")
    example = stdout.partition("\nexample:\n")[2].split()
    assert (status, example[0]) == (0, "timm-ghn-init")
    assert _parser()[0].parse_args([word.strip("'") for word in example[1:]]).run


def test_help_lists_the_commands_in_groups(run: Callable) -> None:
    status, stdout, _ = run("--help")
    assert status == 0
    assert re.findall(r"^(\w.*):$", stdout, re.MULTILINE) == [*GROUPS, "options"]
    listed = [line.strip().split("  ")[0] for line in stdout.partition("options:")[0].splitlines() if line[:2] == "  "]
    assert listed == list(PARSERS)
    assert max(map(len, stdout.splitlines())) <= 120


def test_sources_are_read_in_one_manner(ghn_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path with and without file:."""
    parse = _parser()[0].parse_args
    monkeypatch.chdir(ghn_file.parent)
    several = parse(["finetune", "x", "-o", "y", "--source", "rand", "orth", ghn_file.name, "timm"])
    assert several.source == ["rand", "orth", f"file:{ghn_file.name}", "timm"]
    for text, source in {
        f"{ghn_file}-orth?layer=3": f"file:{ghn_file}-orth?layer=3",
        "nowhere.pt": "file:nowhere.pt",
        "file:nowhere.pt": "file:nowhere.pt",
        "ghn2-orth?beta=0.5": "ghn2-orth?beta=0.5",
        "gnh2": "gnh2",
    }.items():
        for command in ("predict x -o y", "inspect x", "fetch", "eval-ghn", "tune x -o y"):
            assert parse([*command.split(), "--source", text]).source == source


def test_a_source_that_is_missing_or_named_twice(run: Callable) -> None:
    for command in ("fetch", "eval-ghn"):
        assert_mistake(run(command), "--source source is required")
        assert_mistake(run(command, "ghn2", "--source", "ghn1"), "--source")


# -- graph, list, fetch ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_checkpoint")
def test_graph(run: Callable, tmp_path: Path) -> None:
    out = tmp_path / "g.svg"
    status, stdout, stderr = run("graph", "resnet18", "--num-classes", 7, "-o", out)
    assert (status, stdout, stderr) == (0, f"{out}\n", "")
    text = out.read_text()
    assert "resnet18" in text
    assert "7\N{MULTIPLICATION SIGN}512" in text
    ElementTree.fromstring(text.encode())


def test_graph_png_without_matplotlib(run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [m for m in sys.modules if m.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert_mistake(run("graph", "resnet18", "-o", tmp_path / "g.png"), r"extra \[plot\]")


def test_list(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "is_cached", lambda name: name == "ghn1")
    status, stdout, stderr = run("list")
    assert (status, stderr) == (0, "")
    rows = {line.split()[0]: line.split() for line in stdout.splitlines() if line}
    assert rows["ghn2"][1:4] == ["no", "mit", "arXiv:2110.13100"]
    assert rows["ghn1"][1] == "yes"
    assert {"ghn", "ghn2-cifar10", "mlp-cifar10", "ghn3-xl", "file:PATH"} <= set(rows)


def test_fetch_prints_the_path(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(checkpoints, "fetch", lambda source: asked.append(source) or Path("/cache/x.safetensors"))
    assert run("fetch", "ghn2")[:2] == (0, "/cache/x.safetensors\n")
    assert asked == ["ghn2"]


# -- mistakes ----------------------------------------------------------------------------------------------------------


def assert_mistake(result: tuple[int, str, str], pattern: str) -> None:
    status, stdout, stderr = result
    assert (status, stdout) == (2, "")
    assert re.fullmatch(r"timm-ghn-init: error: .*\n", stderr), stderr  # one line
    assert re.search(pattern, stderr), stderr
    assert stderr[:-1].isprintable()


PREDICT = ("predict", "resnet18", "-o", "{tmp}/m.safetensors", "--source")
MISTAKES = {
    "no command": ((), "COMMAND"),
    "unknown command": (("predcit", "resnet18"), "predcit"),
    "unknown option": (("inspect", "resnet18", "--jsn"), "--jsn"),
    "unknown architecture": (("inspect", "resnet81"), r"'resnet81'.*resnet18"),
    "unknown architecture, graph": (("graph", "convnext_bse", "-o", "{tmp}/g.svg"), "convnext_base"),
    "unknown architecture, predict": (("predict", "convnext_bse", "-o", "{tmp}/m.safetensors"), "convnext_base"),
    "a path": (("inspect", "/etc/passwd"), "Unknown architecture"),
    "hostile": (("inspect", "a\nb\x1b[31m%s{}"), "Unknown architecture"),
    "hostile path": (
        ("predict", "resnet18", "--source", "file:{ghn}", "-o", "{tmp}/\x1b[31m\nx/m.safetensors"),
        "folder",
    ),
    "unknown tag": (("inspect", "resnet50.nonsense"), r"'nonsense'.*a1_in1k"),
    "unknown source": ((*PREDICT, "ghn2-ort"), r"'ghn2-ort'.*ghn2-orth"),
    "unknown key": ((*PREDICT, "ghn2?layr=3"), "layer"),
    "bad value": ((*PREDICT, "ghn2-orth?beta=-1"), "beta"),
    "source without a file": ((*PREDICT, "file:{tmp}/none.safetensors"), "none.safetensors"),
    "source is no GHN": ((*PREDICT, "file:{tmp}/text.pt"), "text.pt"),
    "layer beyond the last": ((*PREDICT, "file:{ghn}-orth?layer=500"), "500"),
    "no folder": (("predict", "resnet18", "--source", "file:{ghn}", "-o", "{tmp}/no/m.safetensors"), "{tmp}/no"),
    "output is a folder": (("predict", "resnet18", "--source", "file:{ghn}", "-o", "{tmp}/d.safetensors"), "folder"),
    "folder is a file": (("predict", "resnet18", "--source", "file:{ghn}", "-o", "{tmp}/text.pt/"), "is a file"),
    "no folder for the folder": (("predict", "resnet18", "--source", "file:{ghn}", "-o", "{tmp}/no/m/"), "{tmp}/no"),
    "folder without a slash": (("predict", "resnet18", "--source", "file:{ghn}", "-o", "{tmp}"), "/ for a folder"),
    "wrong suffix": (("predict", "resnet18", "--source", "file:{ghn}", "-o", "{tmp}/m.pth"), r"\.safetensors"),
    "graph, no folder": (("graph", "resnet18", "-o", "{tmp}/no/g.svg"), "{tmp}/no"),
    "graph, wrong suffix": (("graph", "resnet18", "-o", "{tmp}/g.eps"), r"\.svg or \.png or \.pdf"),
    "negative seed": (("predict", "resnet18", "--seed", "-1", "-o", "{tmp}/m.safetensors"), "--seed"),
    "no number": (("inspect", "resnet18", "--num-classes", "ten"), "--num-classes.*ten"),
    "no channels": (("inspect", "resnet18", "--in-chans", "0"), "--in-chans"),
    "bad keyword": (("inspect", "resnet18", "--model-kwargs", "wdth=2"), "wdth"),
    "no keyword": (("inspect", "resnet18", "--model-kwargs", "width"), "key=value"),
    "size refused": (
        ("inspect", "vit_tiny_patch16_224", "--model-kwargs", "dynamic_img_size=False", "img_size=8"),
        "vit",
    ),
    "unknown device": ((*PREDICT, "file:{ghn}", "--device", "quantum"), "device must be.*quantum"),
    "nothing to fetch": (("fetch", "ghn9"), "ghn9.*ghn2"),
}


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(run: Callable, ghn_file: Path, tmp_path: Path, name: str) -> None:
    if name == "size refused" and READS_VALUES:
        pytest.skip(f"timm {timm.__version__} refuses no size")
    (tmp_path / "d.safetensors").mkdir()
    (tmp_path / "text.pt").write_text("hello")
    argv, pattern = MISTAKES[name]

    def fill(text: str) -> str:
        return text.replace("{tmp}", str(tmp_path)).replace("{ghn}", str(ghn_file))

    before = sorted(tmp_path.rglob("*"))
    assert_mistake(run(*map(fill, argv)), fill(pattern))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    "argv", [("fetch", "ghn2"), ("predict", "resnet18", "--source", "ghn2", "-o", "{tmp}/m.safetensors")]
)
def test_a_checkpoint_out_of_reach(run: Callable, tmp_path: Path, argv: tuple[str, ...]) -> None:
    assert_mistake(run(*(a.replace("{tmp}", str(tmp_path)) for a in argv)), "ghn2_imagenet.pt")


def test_other_errors_propagate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug is not dressed up as a mistake of the user."""

    def broken(*args: object, **kwargs: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(timm, "create_model", broken)
    with pytest.raises(KeyError, match="a bug"):
        main(["inspect", "resnet18"])


def test_logging_is_left_as_it_was(run: Callable) -> None:
    import logging

    loggers = [logging.getLogger(name) for name in ("timm_ghn_init", "timm")]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    run("inspect", "resnet18", "-v")
    assert [(logger.level, list(logger.handlers)) for logger in loggers] == before


# -- the process -------------------------------------------------------------------------------------------------------


def test_version(run: Callable) -> None:
    assert run("--version")[:2] == (0, f"timm-ghn-init {timm_ghn_init.__version__}\n")


def test_as_a_module_into_a_closed_pipe() -> None:
    """`timm-ghn-init list | head` prints no error."""
    process = subprocess.Popen(
        [sys.executable, "-m", "timm_ghn_init", "list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(timeout=120) == 0
    process.stderr.close()


def test_known_names_are_listed_once(run: Callable) -> None:
    first = [line.split()[0] for line in run("list")[1].splitlines() if line]
    for name in KNOWN:
        assert first.count(name) <= 1


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_commands_and_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert {"correlations", "--num-classes", "--time-budget", *commands()} <= set(re.findall(r"[\w-]+", script))


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("shtab")
    main(["completion", "bash"])
    (tmp_path / "complete.sh").write_text(capsys.readouterr().out)
    (tmp_path / "runs.jsonl").touch()
    words = {"timm-ghn-init pre": {"predict"}, "timm-ghn-init predict r --num-c": {"--num-classes"}}
    words |= {"timm-ghn-init report ru": {"runs.jsonl"}, "timm-ghn-init predict --source mim": {"mimetic"}}
    for line, expected in words.items():
        given = line.split()
        ask = (
            f"source complete.sh; COMP_WORDS=({line}); COMP_CWORD={len(given) - 1}; "
            f'_shtab_timm_ghn_init {given[0]} {given[-1]}; printf "%s\\n" "${{COMPREPLY[@]}}"'
        )
        out = subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        assert set(out.split()) == expected
