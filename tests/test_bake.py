"""`push` and `bake`: what they leave behind, go on from, and say."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hub_server import Fault, HubServer
from processes import cli, torchrun
from timm_models import LOCAL_DIR

from timm_ghn_init.cli import bake, main, models
from timm_ghn_init.report import InitReport
from timm_ghn_init.weights.card import model_card
from timm_ghn_init.weights.files import read_about

MODELS = "test_resnet,test_vit?,test_convnext"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], ghn_file: Path) -> Run:
    """Run a command with the seeded GHN: status, stdout, stderr."""

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([*map(str, argv), "--source", f"file:{ghn_file}-orth"])
        except SystemExit as error:  # argparse
            status = int(error.code or 0)
        return status, *capsys.readouterr()

    return run


def rows(stdout: str) -> dict[str, tuple[str, str]]:
    """architecture -> (what became of it, where or why not)"""
    lines = [re.split(r"  +", line, maxsplit=2) for line in stdout.splitlines()[1:]]
    return {name: (state, where) for name, state, where in lines}


def states(stdout: str) -> dict[str, str]:
    return {name: state for name, (state, _) in rows(stdout).items()}


# -- push --------------------------------------------------------------------------------------------------------------


def test_push(hub: HubServer, run: Run) -> None:
    options = ("--repo", "me/x", "--num-classes", 10, "--model-kwargs", "act_layer=silu", "--seed", 3, "--private")
    status, stdout, _ = run("push", "test_resnet", *options)
    (commit,) = list(hub.repos["me/x"].commits.values())[1:]
    assert (status, stdout) == (0, f"{hub.url}/me/x/commit/{commit.sha}\n")
    assert hub.repos["me/x"].private
    loaded = timm.create_model("hf-hub:me/x", pretrained=True)
    assert loaded.num_classes == 10
    assert "SiLU" in str(loaded)
    card = hub.files("me/x")["README.md"].decode()
    assert "| seed of timm's own initialisation | 3 |" in card
    assert "act\\_layer='silu'" in card


def test_push_elsewhere(hub: HubServer, run: Run) -> None:
    hub.put("me/x", {"a": b"a"})
    assert run("push", "test_resnet", "--repo", "me/x", "--create-pr")[1] == f"{hub.url}/me/x/discussions/1\n"
    assert run("push", "test_resnet", "--repo", "me/x", "--revision", "mine")[0] == 0
    assert set(hub.files("me/x")) == {"a"}
    assert "config.json" in hub.files("me/x", "mine")
    status, _, stderr = run("push", "test_resnet", "--repo", "me/x", "--revision", "mine", "--create-pr")
    assert (status, stderr.count("\n")) == (2, 1)


def test_push_can_be_found(hub: HubServer, run: Run, ghn_file: Path) -> None:
    """Under the name that `?hub=` looks for."""
    run("bake", "--models", "test_resnet", "--hub", "me")
    (repo,) = hub.repos
    hub.repos.clear()
    run("push", "test_resnet", "--repo", repo)
    timm.create_model("test_resnet", pretrained=f"file:{ghn_file}-orth?hub=me")
    assert hub.count("GET /cdn") == 1


@pytest.mark.parametrize(
    ("repo", "token", "says"),
    [
        ("me/x", "hf_refused", "401.*Log in again"),
        ("you/x", "hf_mytoken", "403.*rights"),
        ("me/a/b", "hf_mytoken", "me/a/b"),
    ],
)
def test_push_refused(
    repo: str, token: str, says: str, hub: HubServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    status, stdout, stderr = run("push", "test_resnet", "--repo", repo, "-q")
    assert (status, stdout) == (2, "")
    assert re.fullmatch(rf"timm-ghn-init: error: Nothing was pushed to {repo} .*{says}.*\n", stderr), stderr
    assert not hub.repos


@pytest.mark.parametrize("offline", [False, True])
def test_push_where_there_is_no_hub(offline: bool, hub: HubServer, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told before the work, with a way out that can be gone."""
    import socket

    def unknown(*args: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: pytest.fail("it has begun"))
    for command in (("push", "test_resnet", "--repo", "me/x"), ("bake", "--models", "test_resnet", "--hub", "me")):
        status, stdout, stderr = run(*command)
        assert (status, stdout, stderr.count("\n")) == (2, "", 1)
        assert ("unset it" if offline else "hf upload me/") in stderr
    assert not hub.repos


# -- bake --------------------------------------------------------------------------------------------------------------


@LOCAL_DIR
def test_bake_into_folders(run: Run, tmp_path: Path, ghn_file: Path) -> None:
    out = tmp_path / "new" / "out"
    status, stdout, _ = run(
        "bake", "--models", "test_resnet,test_convnext*,test_resnet", "--out", out, "--num-classes", 7
    )
    assert status == 0
    found = {name: Path(where) for name, (state, where) in rows(stdout).items() if state == "baked"}
    assert set(found) >= {"test_resnet", "test_convnext", "test_convnext2"}
    assert {p.parent for p in found.values()} == {out}
    assert {p.name for p in out.iterdir()} == {p.name for p in found.values()}
    for name, folder in found.items():
        loaded = timm.create_model(f"local-dir:{folder}", pretrained=True)
        expected = timm.create_model(name, pretrained=f"file:{ghn_file}-orth", num_classes=7)
        assert loaded.state_dict().keys() == expected.state_dict().keys()
        assert loaded.num_classes == 7
        for n in expected.ghn_report.predicted:  # a new classifier is drawn anew each time
            assert torch.equal(loaded.get_parameter(n), expected.get_parameter(n)), (name, n)


def test_bake_goes_on(run: Run, tmp_path: Path) -> None:
    """What is there and whole stays as it is; anything else is made again."""
    command = ("bake", "--models", "test_resnet,test_vit,test_convnext", "--out", tmp_path)
    folders = {name: Path(where) for name, (_, where) in rows(run(*command)[1]).items()}
    before = {name: (f / "model.safetensors").read_bytes() for name, f in folders.items()}
    untouched = (folders["test_resnet"] / "model.safetensors").stat().st_mtime_ns
    weights = folders["test_vit"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    (folders["test_convnext"] / "config.json").unlink()
    assert states(run(*command)[1]) == {
        "test_resnet": "was there",
        "test_vit": "baked",
        "test_convnext": "baked",
    }
    assert {name: (f / "model.safetensors").read_bytes() for name, f in folders.items()} == before
    assert (folders["test_resnet"] / "model.safetensors").stat().st_mtime_ns == untouched
    assert set(tmp_path.iterdir()) == set(folders.values())


def test_bake_to_the_hub(hub: HubServer, run: Run, ghn_file: Path) -> None:
    command = ("bake", "--models", "test_resnet,test_vit", "--hub", "me")
    assert set(states(run(*command)[1]).values()) == {"baked"}
    assert hub.count("PUT /lfs") == 2
    assert set(states(run(*command)[1]).values()) == {"was there"}
    assert hub.count("PUT /lfs") == 2
    assert hub.count("GET /cdn") == 0  # the key is enough
    timm.create_model("test_vit", pretrained=f"file:{ghn_file}-orth?hub=me")
    assert hub.count("GET /cdn") == 1


def test_one_failure_does_not_stop_the_rest(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = models.build_initialised

    def fails(args: Any, source: Any) -> Any:
        if args.arch == "test_resnet":
            raise MemoryError("no memory\nfor this")
        return make(args, source)

    monkeypatch.setattr(bake, "build_initialised", fails)
    command = ("bake", "--models", "test_resnet,test_vit", "--out", tmp_path)
    status, stdout, stderr = run(*command)
    assert status == 1
    assert rows(stdout)["test_resnet"] == ("failed", "MemoryError: no memory for this")
    assert states(stdout)["test_vit"] == "baked"
    assert "error: test_resnet: no memory for this" in stderr
    assert "Traceback" not in stderr
    monkeypatch.undo()
    status, stdout, _ = run(*command)
    assert (status, states(stdout)) == (0, {"test_resnet": "baked", "test_vit": "was there"})


def test_failures_of_the_hub(hub: HubServer, run: Run) -> None:
    hub.faults = [Fault("HEAD .*test_resnet", status=500, times=100)]
    status, stdout, _ = run("bake", "--models", "test_resnet,test_vit", "--hub", "me")
    assert status == 1
    state, why = rows(stdout)["test_resnet"]
    assert (state, "500" in why) == ("failed", True)
    assert states(stdout)["test_vit"] == "baked"


def test_shards(run: Run, tmp_path: Path) -> None:
    command = ("bake", "--models", "test_resnet,test_vit", "--out", tmp_path)
    parts = [states(run(*command, "--shard", f"{i}/3")[1]) for i in (1, 2, 3)]
    assert [list(part) for part in parts] == [["test_resnet"], ["test_vit"], []]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3"])
def test_shards_that_cannot_be(shard: str, run: Run, tmp_path: Path) -> None:
    status, _, stderr = run("bake", "--models", "test_vit", "--out", tmp_path, f"--shard={shard}")
    assert (status, stderr.count("\n")) == (2, 1)
    assert "I/N" in stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--models", "test_resnat", "--out", "x"), "matches 'test_resnat'. Did you mean test_resnet"),
        (("--models", ",", "--out", "x"), "names no architecture"),
        (("--models", "test_vit"), "--out --hub"),
        (("--models", "test_vit", "--out", "x", "--hub", "me"), "not allowed with"),
        (("--models", "test_vit", "--hub", "../me"), "organisation"),
        (("--models", "test_vit", "--out", "{file}"), "File exists"),
    ],
)
def test_mistakes(options: tuple[str, ...], says: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, stdout, stderr = run("bake", *(o.format(file=tmp_path / "file") for o in options))
    assert (status, stdout, stderr.count("\n")) == (2, "", 1)
    assert says in stderr
    assert len(list(tmp_path.iterdir())) == 1


def test_no_token(hub: HubServer, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    status, _, stderr = run("bake", "--models", "test_vit", "--hub", "me")
    assert status == 2
    assert "hf auth login" in stderr
    assert not hub.requests


def test_ranks_share_the_list(tmp_path: Path, ghn_file: Path) -> None:
    """Under torchrun; the failure of one model is everybody's exit status, after everybody's work."""
    options = ["--models", "test_resnet,test_vit,test_convnext", "--out", str(tmp_path / "out")]
    options += ["--source", f"file:{ghn_file}", "--model-kwargs", "output_stride=16"]  # test_vit has no such option
    ranks = torchrun(cli, "bake", *options)
    assert [status for status, *_ in ranks] == [1, 1]
    lines = [line.split() for _, stdout, _ in ranks for line in stdout.splitlines()]
    table = {line[0]: line[1] for line in lines if line and line[0].startswith("test_")}
    baked = dict.fromkeys(("test_resnet", "test_convnext"), "baked")
    assert table == {**baked, "test_vit": "failed"}, ranks
    assert len([line for line in lines if line and line[0] == "test_resnet"]) == 1
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_folder_says_where_it_comes_from(run: Run, tmp_path: Path, ghn_file: Path) -> None:
    run("bake", "--models", "test_vit", "--out", tmp_path)
    (folder,) = tmp_path.iterdir()
    about = read_about(folder / "model.safetensors")
    assert about["source"] == f"file:{ghn_file}-orth"
    assert about["architecture"] == "test_vit"
    assert about["seed"] == 0
    config = json.loads((folder / "config.json").read_text())
    assert config["timm_ghn_init"] == {"key": about["key"], "digest": about["digest"]}


# -- model cards -------------------------------------------------------------------------------------------------------


def test_hostile_names_stay_in_their_place() -> None:
    from huggingface_hub import ModelCard

    evil = 'x`"|\n---\nlicense: evil\n---\n# Head\n<script>alert(1)</script>[a](http://b) ${{ c }} \x1b[31m'
    report = InitReport(
        evil, "file:a|b.pt-orth", evil, 1, 2, {evil: evil}, {evil + "2": evil}, {evil: 1, evil + "2": 2}, 3
    )
    about = {
        "ghn": {"name": evil, "sha256": evil, "origin": evil},
        "architecture": evil,
        "options": {evil: evil},
        "num_classes": 5,
        "seed": evil,
        "device": evil,
        "versions": {evil: evil},
        "key": evil,
    }
    text = model_card(report, about, evil)
    card = ModelCard(text)
    assert card.data.to_dict() == {
        "license": "unknown",
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["timm", "timm-ghn-init", "parameter-prediction"],
    }
    assert [line for line in text.splitlines() if line.startswith("---")] == ["---", "---"]
    assert [line.split()[0] for line in text.splitlines() if line.startswith("#")] == ["#", "##", "##", "##"]
    assert not re.search(r"(?<!\\)[<\[]", re.sub(r"`[^`]*`|```.*?```|\[Pretraining", "", text, flags=re.DOTALL))
    assert "\x1b" not in text
    code = text.split("```python\n")[1].split("\n```")[0]
    compile(code, "card", "exec")
    for line in text.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (3, 4), line


def test_card_of_a_known_ghn() -> None:
    report = InitReport(
        "resnet50",
        "ghn2-orth",
        "cpu",
        9,
        8,
        {"a": "weight", "b": "weight"},
        {"c": "why"},
        {"a": 3, "b": 4, "c": 1},
        37,
        ("a",),
        0,
    )
    about = {
        "ghn": {"name": "ghn2", "sha256": "ab12"},
        "architecture": "resnet50",
        "options": {},
        "num_classes": 0,
        "seed": None,
        "device": "cpu",
        "versions": {"timm": "1.0"},
    }
    text = model_card(report, about, "me/x")
    for line in (
        "license: mit",
        "pipeline_tag: image-feature-extraction",
        "| GHN | ghn2, sha256 ab12 |",
        "| papers | Parameter Prediction for Unseen Deep Architectures, arXiv:2110.13100 |",
        "| post-processed | 1 layers from layer 37 on |",
        "| predicted: weight | 2 | 7 |",
        "| timm's own initialisation: why | 1 | 1 |",
        "| predicted in all | 2 | 87.50% |",
    ):
        assert line in text.splitlines(), line
    assert "timm's own initialisation |" not in text
