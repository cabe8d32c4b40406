"""Finished weights on a Hub of our own: pushed, loaded by timm, found by their key, and never in the way."""

import base64
import copy
import functools
import hashlib
import json
import logging
import pickle
import re
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hub_server import Fault, HubServer, Repo, set_constants
from huggingface_hub import constants
from torch import Tensor, nn

from timm_ghn_init import GHN, init_model
from timm_ghn_init.checkpoints.load import fetch
from timm_ghn_init.weights.files import digest, read, save
from timm_ghn_init.weights.hub import WEIGHTS, HubError
from timm_ghn_init.weights.push import push_finished, push_model

ARCH = "test_resnet"
FILES = {"config.json", "model.safetensors", "README.md"}


@pytest.fixture
def source(ghn_file: Path) -> str:
    return f"file:{ghn_file}-orth"


def create(source: str, arch: str = ARCH, **kwargs: Any) -> nn.Module:
    """Always with the same random numbers for what is not predicted."""
    torch.manual_seed(1)
    return timm.create_model(arch, pretrained=source, **kwargs)


def same(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith("timm_ghn_init") and r.levelno >= 30]


@functools.cache
def expected(source: str) -> nn.Module:
    """What `create` gives without the Hub; not to be changed."""
    return create(source)


_PUSHED: dict[str, tuple[str, Repo, dict[str, bytes]]] = {}


def pushed(hub: HubServer, source: str) -> str:
    """Have weights on the Hub, pushed once and for all; their repository."""
    if source not in _PUSHED:
        create(f"{source}?hub=me&push=1")
        (repo,) = hub.repos
        _PUSHED[source] = repo, copy.deepcopy(hub.repos[repo]), dict(hub.objects)
    repo, content, objects = _PUSHED[source]
    hub.repos[repo] = copy.deepcopy(content)
    hub.objects.update(objects)
    return repo


def unplug(monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, "http://127.0.0.1:9")


# -- pushing -----------------------------------------------------------------------------------------------------------


def test_round_trip(hub: HubServer, source: str, tmp_path: Path) -> None:
    """Bit for bit. The file is a plain state dict, so that loading it takes timm alone."""
    model = timm.create_model("convnext_atto")
    report = init_model(model, source)
    url = push_model(model, "me/start", report)
    assert url.startswith(f"{hub.url}/me/start/commit/")
    assert set(hub.files("me/start")) == {*FILES, ".gitattributes"}
    assert len(hub.repos["me/start"].commits) == 2  # the first is the Hub's own
    assert same(timm.create_model("hf-hub:me/start", pretrained=True), model)
    (tmp_path / "x.safetensors").write_bytes(hub.files("me/start")[WEIGHTS])
    plain = timm.create_model("convnext_atto", checkpoint_path=tmp_path / "x.safetensors")
    assert same(plain, model)


@pytest.mark.parametrize(
    ("arch", "options"),
    [("test_vit", {"num_classes": 10, "in_chans": 1, "img_size": 96}), (ARCH, {"num_classes": 0, "act_layer": "silu"})],
)
def test_timm_builds_what_was_pushed(arch: str, options: dict[str, Any], hub: HubServer, source: str) -> None:
    model = timm.create_model(arch, **options)
    push_model(model, "me/x", init_model(model, source), options=options)
    loaded = timm.create_model("hf-hub:me/x", pretrained=True)
    assert same(loaded, model)
    assert str(loaded) == str(model)


def test_config_and_card_say_where_the_weights_come_from(hub: HubServer, source: str, ghn_file: Path) -> None:
    """Nothing is left of the weights that timm has for the architecture, nor of this machine."""
    from huggingface_hub import ModelCard

    model = timm.create_model("convnext_atto")  # timm has weights for it, with a paper, a licence and an origin
    push_model(model, "me/start", init_model(model, source))
    files = hub.files("me/start")
    config = json.loads(files["config.json"])
    assert config["pretrained_cfg"]["paper_ids"] == "arXiv:2207.10049"
    assert not {"license", "origin_url", "tag", "url", "hf_hub_id"} & set(config["pretrained_cfg"])
    assert config["timm_ghn_init"]["digest"] == digest(model.state_dict())
    card = ModelCard(files["README.md"].decode())
    assert card.data.library_name == "timm"
    assert card.data.license == "unknown"  # of the user's own GHN
    assert 'timm.create_model("hf-hub:me/start", pretrained=True)' in card.text
    assert hashlib.sha256(ghn_file.read_bytes()).hexdigest() in card.text
    for name in FILES:
        assert str(ghn_file.parent).encode() not in files[name], name
        assert ghn_file.name.encode() in files[name].replace(b"\\", b""), name


def test_same_push_twice_is_one_commit(hub: HubServer, source: str) -> None:
    model = timm.create_model(ARCH)
    report = init_model(model, source)
    push_model(model, "me/x", report)
    push_model(model, "me/x", report)
    assert len(hub.repos["me/x"].commits) == 2


def test_private(hub: HubServer, source: str) -> None:
    model = timm.create_model(ARCH)
    report = init_model(model, source)
    push_model(model, "me/hidden", report, private=True)
    assert hub.repos["me/hidden"].private
    assert same(timm.create_model("hf-hub:me/hidden", pretrained=True), model)
    hub.put("me/open", {"a": b"a"})
    with pytest.raises(HubError, match="me/open is there already, and public"):
        push_model(model, "me/open", report, private=True)
    assert set(hub.files("me/open")) == {"a"}


def test_create_pr_needs_no_right_to_write(hub: HubServer, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("me/x", {"a": b"a"})
    hub.tokens["hf_stranger"] = {"stranger"}
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    model = timm.create_model(ARCH)
    report = init_model(model, source)
    with pytest.raises(HubError, match=r"me/x \(403: .*use a token that has it"):
        push_model(model, "me/x", report)
    assert push_model(model, "me/x", report, create_pr=True) == f"{hub.url}/me/x/discussions/1"
    assert set(hub.files("me/x")) == {"a"}
    assert set(hub.files("me/x", "refs/pr/1")) == {"a", *FILES}
    assert same(timm.create_model("hf-hub:me/x@refs/pr/1", pretrained=True), model)


def test_revision(hub: HubServer, source: str) -> None:
    hub.put("me/x", {"a": b"a"})
    model = timm.create_model(ARCH)
    push_model(model, "me/x", init_model(model, source), revision="mine")
    assert set(hub.files("me/x")) == {"a"}
    assert b"hf-hub:me/x@mine" in hub.files("me/x", "mine")["README.md"]
    assert same(timm.create_model("hf-hub:me/x@mine", pretrained=True), model)
    with pytest.raises(ValueError, match="pull request"):
        push_model(model, "me/x", init_model(model, source), revision="mine", create_pr=True)


def test_what_cannot_be_pushed_touches_nothing(hub: HubServer, source: str, caplog: pytest.LogCaptureFixture) -> None:
    own = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    with pytest.raises(ValueError, match="Sequential is not a model"):
        push_model(own, "me/x", init_model(own, source))
    model = timm.create_model(ARCH)
    with pytest.raises((ValueError, TypeError), match=r"act_layer|serializable"):
        push_model(model, "me/x", init_model(model, source), options={"act_layer": nn.ReLU})
    with pytest.raises(HubError, match="me/a/b"):
        push_model(model, "me/a/b", init_model(model, source))
    create(f"{source}?hub=me&push=1", features_only=True)
    assert any("features_only is not pushed" in w for w in warnings_in(caplog))
    init_model(own, f"{source}?hub=me&push=1")
    assert any("Sequential is initialised, but not pushed" in w for w in warnings_in(caplog))
    assert not hub.repos


def test_upload_that_is_cut(hub: HubServer, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is sent again at once; versions of `huggingface_hub` that give up say so."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    model = timm.create_model(ARCH)
    report = init_model(model, source)
    hub.faults = [Fault("PUT /lfs", cut=100_000)]
    try:
        push_model(model, "me/x", report)
    except HubError:
        assert set(hub.files("me/x")) == {".gitattributes"}
        push_model(model, "me/x", report)
    assert hub.count("PUT /lfs") == 2
    assert same(timm.create_model("hf-hub:me/x", pretrained=True), model)


def test_upload_that_never_succeeds_leaves_the_repository_as_it_was(
    hub: HubServer, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.put("me/x", {"a": b"a"})
    model = timm.create_model(ARCH)
    report = init_model(model, source)
    hub.faults = [Fault("PUT /lfs", cut=100_000, times=100)]
    with pytest.raises(HubError, match="Nothing was pushed to me/x"):
        push_model(model, "me/x", report)
    assert set(hub.files("me/x")) == {"a"}


def test_somebody_else_pushes_at_the_same_time(hub: HubServer, source: str) -> None:
    """Nothing is mixed with what came in between."""
    model = timm.create_model(ARCH)
    report = init_model(model, source)
    hub.put("me/x", {"a": b"a"})
    hub.faults = [Fault("POST .*/commit/", act=lambda: hub.put("me/x", {"b": b"b"}))]
    with pytest.raises(HubError, match="Push again"):
        push_model(model, "me/x", report)
    assert set(hub.files("me/x")) == {"a", "b"}
    push_model(model, "me/x", report)
    assert set(hub.files("me/x")) == {"a", "b", *FILES}


# -- looking for weights -----------------------------------------------------------------------------------------------


def test_found(hub: HubServer, source: str, caplog: pytest.LogCaptureFixture) -> None:
    """Pushed once, downloaded once, and the same model with and without the Hub."""
    caplog.set_level(logging.INFO, logger="timm_ghn_init")
    expected = create(source, "test_vit")  # it has a class token, which no file is to replace
    assert same(create(f"{source}?hub=me&push=1", "test_vit"), expected)
    assert hub.count("PUT /lfs") == 1
    for _ in range(2):
        torch.manual_seed(2)  # the file holds the class token of another seed
        assert same(timm.create_model("test_vit", pretrained=f"{source}?hub=me&push=1"), reseeded(source))
    assert hub.count("PUT /lfs") == hub.count("GET /cdn") == 1
    assert caplog.text.count("from the Hub") == 2
    assert not warnings_in(caplog)


def reseeded(source: str) -> nn.Module:
    torch.manual_seed(2)
    return timm.create_model("test_vit", pretrained=source)


def test_found_by_init_model(hub: HubServer, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed(hub, source)
    monkeypatch.setenv("TIMM_GHN_HUB", "me")
    model, other = timm.create_model(ARCH), timm.create_model(ARCH)
    other.load_state_dict(model.state_dict())
    report = init_model(model, source)
    assert report.downloaded
    assert "decode" not in report.seconds
    init_model(other, source + "?hub=nobody")
    assert same(model, other)


def test_each_key_has_its_place(hub: HubServer, source: str) -> None:
    """What came first is on main, and nothing else ever replaces it."""
    repo = pushed(hub, source)
    main = hub.files(repo)
    create(f"{source}?hub=me&push=1", num_classes=10)
    assert hub.files(repo) == main
    assert len(hub.repos[repo].refs) == 2
    loaded = hub.count("GET /cdn")
    for classes in (1000, 10):
        assert same(create(f"{source}?hub=me", num_classes=classes), create(source, num_classes=classes))
    assert hub.count("GET /cdn") == loaded + 2
    branch = next(ref for ref in hub.repos[repo].refs if ref != "main")
    assert timm.create_model(f"hf-hub:{repo}@{branch}", pretrained=True).num_classes == 10


def test_options_of_the_source_are_told_apart(hub: HubServer, source: str) -> None:
    create(f"{source}?hub=me&push=1&seed=1")
    for query in ("seed=2", "beta=0.1", "orth=0"):
        before = hub.count("GET /cdn")
        assert same(create(f"{source}?{query}&hub=me"), create(f"{source}?{query}")), query
        assert hub.count("GET /cdn") == before, query


def test_nothing_there_is_no_news(hub: HubServer, source: str, caplog: pytest.LogCaptureFixture) -> None:
    assert same(create(f"{source}?hub=me"), expected(source))
    hub.put("me/x", {})
    assert not warnings_in(caplog)


def test_main_taken_meanwhile(hub: HubServer, source: str) -> None:
    """Two push different weights under one name: one gets a branch, and its card says so."""
    models = [timm.create_model(ARCH, num_classes=n) for n in (10, 3)]
    one, other = (init_model(m, f"{source}?hub=me") for m in models)
    assert one.hub == other.hub
    act = lambda: push_finished(models[1], other.hub, other, {})  # noqa: E731
    hub.faults = [Fault(r"GET /api/models/[^/]+/[^/]+$", act=act)]
    push_finished(models[0], one.hub, one, {})
    assert timm.create_model(f"hf-hub:{one.hub}", pretrained=True).num_classes == 3
    branch = f"key-{one.key[:16]}"
    assert same(timm.create_model(f"hf-hub:{one.hub}@{branch}", pretrained=True), models[0])
    assert f"{one.hub}@{branch}".encode() in hub.files(one.hub, branch)["README.md"]


def test_with_the_cache(hub: HubServer, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First the cache, then the Hub, whose files have a cache of their own."""
    monkeypatch.setenv("TIMM_GHN_HOME", str(tmp_path / "home"))
    repo = pushed(hub, source)
    model = timm.create_model(ARCH)
    assert init_model(model, f"{source}?hub=me&cache=1").downloaded
    assert not list(tmp_path.glob("home/**/*.safetensors"))
    init_model(model, f"{source}?cache=1")
    asked = len(hub.requests)
    assert init_model(model, f"{source}?hub=me&cache=1").cached
    assert len(hub.requests) == asked
    assert hub.repos[repo]


def test_ghn_of_ones_own_is_not_looked_for(hub: HubServer, seeded_ghn2: Any) -> None:
    """Its name says nothing about it."""
    report = init_model(timm.create_model(ARCH), "ghn2-orth?hub=me&push=1", ghn=seeded_ghn2)
    assert not report.hub
    assert not hub.requests


@pytest.mark.parametrize("org", ["../me", "me/x", "-me", "a--b", "x" * 100, "", "mé"])
def test_organisations_that_cannot_be(org: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="organisation"):
        create(f"{source}?hub={org}")
    monkeypatch.setenv("TIMM_GHN_HUB", org)
    if org:
        with pytest.raises(ValueError, match="TIMM_GHN_HUB"):
            create(source)


def test_push_says_where_to(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIMM_GHN_HUB", raising=False)
    with pytest.raises(ValueError, match="push=1 needs hub=ORG"):
        create(f"{source}?push=1")


# -- what is not to be trusted -----------------------------------------------------------------------------------------


def rewritten(change: Callable[[dict[str, Tensor], dict[str, Any]], object]) -> Callable[[HubServer, str, Path], None]:
    """Weights that are what they say they are, but not what they should be."""

    def tamper(hub: HubServer, repo: str, folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(hub.files(repo)["model.safetensors"])
        tensors, about = read(path)
        tensors = {name: t.clone() for name, t in tensors.items()}
        change(tensors, about)
        save(path, tensors, about)
        hub.put(repo, {"model.safetensors": path.read_bytes()})

    return tamper


def with_config(content: bytes) -> Callable[[HubServer, str, Path], None]:
    return lambda hub, repo, folder: hub.put(repo, {"config.json": content}) and None


def flip_a_bit(hub: HubServer, repo: str, folder: Path) -> None:
    content = bytearray(hub.files(repo)["model.safetensors"])
    content[-5] ^= 1
    hub.put(repo, {"model.safetensors": bytes(content)})


def put_a_pickle(hub: HubServer, repo: str, folder: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (folder / "was unpickled",))

    hub.put(repo, {"model.safetensors": pickle.dumps([Evil(), b"x" * 20_000])})


def remove_weights(hub: HubServer, repo: str, folder: Path) -> None:
    files = hub.files(repo)
    files.pop("model.safetensors")
    hub.repos[repo].refs.clear()
    hub.put(repo, files)


FIRST = "conv1.0.weight"
# name -> (what is done to the repository, what the warning says; None where it is no news)
TAMPERED: dict[str, tuple[Callable[[HubServer, str, Path], None], str | None]] = {
    "a bit": (flip_a_bit, "not those that were written"),
    "a pickle": (put_a_pickle, "damaged, or not a file"),
    "a truncated file": (
        lambda hub, repo, _: (
            hub.put(repo, {"model.safetensors": hub.files(repo)["model.safetensors"][:50_000]}) and None
        ),
        "damaged",
    ),
    "no weights": (remove_weights, "no model.safetensors"),
    "another key in the weights": (rewritten(lambda tensors, about: about.update(key="0" * 64)), "the key in"),
    "other weights": (rewritten(lambda tensors, about: tensors[FIRST].zero_()), "digest"),
    "NaN": (rewritten(lambda tensors, about: tensors[FIRST].fill_(float("nan"))), "digest"),
    "a tensor missing": (rewritten(lambda tensors, about: tensors.pop(FIRST)), "digest"),
    "config: no JSON": (with_config(b"\x00\xff{"), None),
    "config: a list": (with_config(b"[1]"), None),
    "config: no key": (with_config(b'{"timm_ghn_init": {"key": ["a"]}}'), None),
    "config: too deep": (with_config(b"[" * 100_000), None),
    "config: empty": (with_config(b""), None),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_tampered(case: str, hub: HubServer, source: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tamper, says = TAMPERED[case]
    repo = pushed(hub, source)
    tamper(hub, repo, tmp_path)
    before = hub.files(repo)
    model = create(f"{source}?hub=me")
    assert same(model, create(source))
    assert [says in w for w in warnings_in(caplog)] == [True] if says else not warnings_in(caplog)
    assert hub.files(repo) == before
    assert not (tmp_path / "was unpickled").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors, about: tensors[FIRST].fill_(float("nan")), "is not finite"),
        (lambda tensors, about: tensors.pop(FIRST), "is not what its key promises"),
        (lambda tensors, about: tensors.update({FIRST: torch.zeros(3)}), "is not what its key promises"),
        (lambda tensors, about: tensors.update({FIRST: tensors[FIRST].half()}), "is not what its key promises"),
    ],
)
def test_consistent_but_wrong(
    change: Any, says: str, hub: HubServer, source: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever may write to a repository can make its digests agree."""
    repo = pushed(hub, source)
    rewritten(change)(hub, repo, tmp_path)
    _, about = read(tmp_path / "model.safetensors")
    config = json.loads(hub.files(repo)["config.json"])
    config["timm_ghn_init"]["digest"] = about["digest"]
    hub.put(repo, {"config.json": json.dumps(config).encode()})
    assert same(create(f"{source}?hub=me"), expected(source))
    (warning,) = warnings_in(caplog)
    assert says in warning


def test_copy_replaced_by_a_link(hub: HubServer, source: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing that it leads to is read as weights, or written to."""
    pushed(hub, source)
    create(f"{source}?hub=me")
    (copy,) = (p.resolve() for p in Path(constants.HF_HUB_CACHE).rglob("model.safetensors"))
    (tmp_path / "outside").write_bytes(pickle.dumps("anything"))
    copy.unlink()
    copy.symlink_to(tmp_path / "outside")
    assert same(create(f"{source}?hub=me"), expected(source))
    assert "remove it" in warnings_in(caplog)[0]
    assert (tmp_path / "outside").read_bytes() == pickle.dumps("anything")


@pytest.mark.parametrize("header", ["ETag", "X-Repo-Commit"])
def test_names_that_leave_the_cache(
    header: str, hub: HubServer, source: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`huggingface_hub` names files after what the server sends."""
    repo = pushed(hub, source)
    outside = sorted(p for p in tmp_path.rglob("*"))
    hub.altered_headers = {header: '"../../../../evil"' if header == "ETag" else "../../../../evil"}
    assert same(create(f"{source}?hub=me"), expected(source))
    assert "is not the Hub" in warnings_in(caplog)[0]
    assert sorted(p for p in tmp_path.rglob("*") if "hf" not in p.parts) == [p for p in outside if "hf" not in p.parts]
    assert not list(tmp_path.rglob("*evil*"))
    assert repo


# -- a Hub that is not as it should be ---------------------------------------------------------------------------------


def no_patience(seconds: float) -> None:
    pytest.fail("it waits to try again")


def test_token_that_is_refused(
    hub: HubServer, source: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pushed(hub, source)
    monkeypatch.setenv("HF_TOKEN", "hf_refused")
    for _ in range(2):
        assert same(create(f"{source}?hub=me"), expected(source))
    (warning,) = warnings_in(caplog)  # said once
    assert "401" in warning and "Log in again" in warning and "Predicting instead" in warning
    model = timm.create_model(ARCH)
    with pytest.raises(HubError, match="Log in again"):
        push_model(model, "me/x", init_model(model, source))


def test_private_repository(
    hub: HubServer, source: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    repo = pushed(hub, source)
    hub.repos[repo].private = True
    create(f"{source}?hub=me")
    assert hub.count("GET /cdn") == 1
    monkeypatch.setenv("HF_TOKEN", "")
    set_constants(monkeypatch, HF_HUB_CACHE=constants.HF_HUB_CACHE + "2")
    assert same(create(f"{source}?hub=me"), expected(source))
    assert hub.count("GET /cdn") == 1
    assert not warnings_in(caplog)  # as if there were none


def test_gated_repository(
    hub: HubServer, source: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    repo = pushed(hub, source)
    hub.repos[repo].gated = True
    hub.tokens["hf_stranger"] = {"stranger"}
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    assert same(create(f"{source}?hub=me"), expected(source))
    (warning,) = warnings_in(caplog)
    assert "403" in warning and "Ask for access" in warning
    hub.repos[repo].granted.add("hf_stranger")
    create(f"{source}?hub=me")
    assert hub.count("GET /cdn") == 1


@pytest.mark.parametrize("status", [403, 429, 500, 503])
def test_errors_of_the_hub(
    status: int, hub: HubServer, source: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once, and without the half minute of patience that downloads have."""
    pushed(hub, source)
    hub.faults = [Fault("HEAD /me", status=status, times=100, headers={"Retry-After": "100"})]
    # Some versions of `huggingface_hub` wait where the Hub asks them to.
    monkeypatch.setattr(time, "sleep", no_patience if status != 429 else lambda seconds: None)
    for _ in range(2):
        assert same(create(f"{source}?hub=me"), expected(source))
    (warning,) = warnings_in(caplog)
    assert str(status) in warning


def test_no_network(
    hub: HubServer, source: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The copy on this machine will do; without one there is a warning and a prediction."""
    pushed(hub, source)
    create(f"{source}?hub=me")
    unplug(monkeypatch)
    monkeypatch.setattr(time, "sleep", no_patience)
    caplog.set_level(logging.INFO, logger="timm_ghn_init")
    assert same(create(f"{source}?hub=me"), expected(source))
    assert "Took finished weights" in caplog.text
    assert not warnings_in(caplog)
    set_constants(monkeypatch, HF_HUB_CACHE=constants.HF_HUB_CACHE + "2")
    for _ in range(2):
        assert same(create(f"{source}?hub=me"), expected(source))
    (warning,) = warnings_in(caplog)
    assert "HF_HUB_OFFLINE=1" in warning

    def asked(*_: object, **__: object) -> None:
        pytest.fail("it waits for the network again")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", asked)
    create(f"{source}?hub=me")
    create(f"{source}?hub=me&push=1")
    assert "but not pushed" in warnings_in(caplog)[1]


def at(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Let the Hub be at another address."""
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    set_constants(monkeypatch, ENDPOINT=endpoint, HUGGINGFACE_CO_URL_TEMPLATE=template)


def test_an_address_with_a_password(
    hub: HubServer, source: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A mirror that asks for a user is used, and the password is shown to nobody."""
    pushed(hub, source)
    caplog.set_level(logging.DEBUG, logger="timm_ghn_init")
    monkeypatch.setenv("HF_TOKEN", "")
    at(monkeypatch, hub.url.replace("://", "://me:s3cret@"))
    hub.authorizations.clear()
    assert init_model(timm.create_model(ARCH), f"{source}?hub=me").downloaded
    assert hub.authorizations == {f"Basic {base64.b64encode(b'me:s3cret').decode()}"}
    for broken in (401, 403, 404, 500, 0):
        hub.faults = [Fault("", status=broken, times=100, message="asked for http://me:s3cret@hub/x")]
        if not broken:
            at(monkeypatch, "http://me:s3cret@127.0.0.1:9")
        create(f"{source}?hub=me&push=1&seed={broken}")
    assert len(warnings_in(caplog)) > 4
    assert "s3cret" not in caplog.text


def test_what_the_hub_says_steers_no_terminal(hub: HubServer, source: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="timm_ghn_init")
    for status in (400, 401, 403, 500):
        hub.faults = [Fault("", status=status, times=100, message="\x1b]0;owned\x07\x1b[31mred\x9b")]
        create(f"{source}?hub=me&push=1")
    assert "red" in caplog.text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", caplog.text)


def test_download_that_is_cut(hub: HubServer, source: str) -> None:
    """Goes on at once; versions of `huggingface_hub` that give up go on the next time."""
    pushed(hub, source)
    hub.faults = [Fault("GET /cdn", cut=100_000)]
    assert same(create(f"{source}?hub=me"), expected(source))
    assert init_model(timm.create_model(ARCH), f"{source}?hub=me").downloaded
    assert hub.count("GET /cdn") == 2


def test_download_that_never_ends(
    hub: HubServer, source: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    pushed(hub, source)
    hub.faults = [Fault("GET /cdn", cut=0, times=100)]
    assert same(create(f"{source}?hub=me"), expected(source))
    (warning,) = warnings_in(caplog)
    assert "model.safetensors is not available" in warning
    hub.faults = []
    assert init_model(timm.create_model(ARCH), f"{source}?hub=me").downloaded  # nothing of it is in the way


@pytest.mark.parametrize("where", ["a file in its place", "full"])
def test_cache_of_the_hub_that_cannot_be_written(
    where: str, hub: HubServer, source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: Any
) -> None:
    pushed(hub, source)
    if where == "full":

        def full(*args: object, **kwargs: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    else:
        (tmp_path / "file").touch()
        set_constants(monkeypatch, HF_HUB_CACHE=str(tmp_path / "file"))
    assert same(create(f"{source}?hub=me"), expected(source))
    assert len(warnings_in(caplog)) == 1


def test_token_is_nowhere(
    hub: HubServer, source: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """In no message of any level, no error and no file, even if the server sends it back."""
    token = "hf_mytoken"
    for name in (None, "timm_ghn_init", "timm", "huggingface_hub"):
        caplog.set_level(logging.DEBUG, logger=name)
    repo = pushed(hub, source)
    create(f"{source}?hub=me")
    said = []
    for status in (401, 409, 500):
        hub.faults = [Fault("", status=status, times=100, message=f"Bearer {token} is no good")]
        create(f"{source}?hub=me&push=1&seed={status}")
        model = timm.create_model(ARCH)
        try:
            push_model(model, "me/x", init_model(model, source), token=token)
        except HubError:
            said.append(traceback.format_exc())
    assert len(said) == 3
    assert f"Bearer {token}" in hub.authorizations
    ours = [r.getMessage() + str(r.exc_info and r.exc_text) for r in caplog.records if "timm_ghn_init" in r.name]
    assert len(ours) > 10
    everything = [*ours, *said, *capfd.readouterr(), *(f.decode(errors="replace") for f in hub.files(repo).values())]
    assert not [text for text in everything if token in text]
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert files
    assert not [p for p in files if token.encode() in p.read_bytes()]


def test_offline(hub: HubServer, source: str, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """HF_HUB_OFFLINE: what is on this machine is found, and what is not is no news."""
    pushed(hub, source)
    create(f"{source}?hub=me")
    set_constants(monkeypatch, HF_HUB_OFFLINE=True)
    asked = len(hub.requests)
    assert init_model(timm.create_model(ARCH), f"{source}?hub=me").downloaded
    assert not init_model(timm.create_model(ARCH), f"{source}?hub=me&seed=7").downloaded
    assert len(hub.requests) == asked and not warnings_in(caplog)


def test_a_released_ghn3_is_fetched_once(
    hub: HubServer, seeded_ghn3: GHN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the network, then from the Hub's cache on this machine without one."""
    file = tmp_path / "ghn3.pt"
    torch.save(seeded_ghn3.state_dict(), file)
    hub.put("SamsungSAILMontreal/ghn3", {"ghn3tm8.pt": file.read_bytes()})
    monkeypatch.setattr("timm_ghn_init.checkpoints.download.hub_unreachable", lambda: "")
    for home in ("one", "other"):
        monkeypatch.setenv("TIMM_GHN_HOME", str(tmp_path / home))
        assert fetch("ghn3-t").parent == tmp_path / home
        unplug(monkeypatch)
        monkeypatch.setattr("timm_ghn_init.checkpoints.download.hub_unreachable", lambda: "no network")
    assert hub.count("GET /cdn") == 1
