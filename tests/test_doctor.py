"""`doctor`: what a bug report holds, whatever is broken, without a network and without secrets."""

import json
import socket
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from timm_ghn_init.checkpoints import load
from timm_ghn_init.cli import doctor, main
from timm_ghn_init.integration import enabling, timm_hooks
from timm_ghn_init.sources import KNOWN, SHIPPED

SECTIONS = ["installation", "versions", "registered", "devices", "cache", "Hugging Face Hub", "default GHN"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("it asks the network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(load, "_failed", {})  # other tests of this process have tried to fetch the default GHN


@pytest.fixture
def asked(capsys: pytest.CaptureFixture[str]) -> Any:
    """Status and facts."""

    def asked() -> tuple[int, Any]:
        status = main(["doctor", "--json"])
        return status, json.loads(capsys.readouterr().out)

    return asked


def test_a_sound_installation(asked: Any, capsys: pytest.CaptureFixture[str]) -> None:
    import timm
    import torch

    status, found = asked()
    assert (status, found["broken"]) == (0, [])
    assert list(found) == [*SECTIONS, "environment", "broken"]
    assert found["versions"]["timm"] == timm.__version__
    assert found["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert found["registered"]["by import timm_ghn_init"] is True
    assert found["cache"]["GHNs"] == [SHIPPED]
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if line and not line.startswith("  ")] == [
        *SECTIONS,
        "environment",
        "broken",
    ]
    assert text.endswith("broken\n  nothing\n")


def test_no_secrets(asked: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {
        "HF_TOKEN": "hf_hush0123456789",
        "TIMM_GHN_ENDPOINT": "https://me:hush@mirror.example/ghn?key=hush",
        "HTTPS_PROXY": "me:hush@proxy.example:8080",
        "HF_ENDPOINT": "me:hush@hub.example",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://me:hush@hub.example")
    status, found = asked()
    assert status == 0
    assert found["environment"] == {
        **found["environment"],
        "HF_TOKEN": "(set)",
        "HTTPS_PROXY": "(set)",
        "TIMM_GHN_ENDPOINT": "https://mirror.example/ghn",
        "HF_ENDPOINT": "hub.example",
    }
    assert found["Hugging Face Hub"]["token"] is True
    assert "hush" not in json.dumps(found)
    main(["doctor"])
    assert "hush" not in capsys.readouterr().out


@pytest.mark.parametrize("name", doctor._NEEDED)
def test_a_library_that_cannot_be_imported(name: str, asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    status, found = asked()
    assert status == 1
    assert any(problem.startswith(f"{name} {metadata.version(name)}: ") for problem in found["broken"])
    assert {"installation", "versions", "default GHN", "environment"} <= set(found)


def test_a_library_that_is_not_there(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "timm":
            raise metadata.PackageNotFoundError
        return "1"

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setitem(sys.modules, "timm", None)
    status, found = asked()
    assert status == 1
    assert found["versions"]["timm"] == "not installed"
    assert any(problem.startswith("timm: ") for problem in found["broken"])


def test_a_version_that_is_too_old(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: ["timm>=99", "torch>=1", 'shtab>=99; extra == "completion"'])
    status, found = asked()
    assert status == 1
    assert found["broken"] == [f"timm {metadata.version('timm')}: >=99 is needed"]


def test_a_timm_that_knows_nothing_of_the_sources(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.models import _factory

    original = _factory.parse_model_name._timm_ghn_init_original
    monkeypatch.setattr(timm_hooks, "register", lambda: None)
    monkeypatch.setattr(_factory, "parse_model_name", original)
    status, found = asked()
    assert status == 1
    assert found["registered"]["by import timm_ghn_init"] is False
    assert any("timm.models._factory.parse_model_name" in problem for problem in found["broken"])


def test_a_line_of_another_version(asked: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / enabling.FILE
    monkeypatch.setattr(enabling, "enabled", lambda: [file])
    file.write_text(enabling.LINE)
    assert asked()[0] == 0
    file.write_text("import timm_ghn_init")
    status, found = asked()
    assert (status, found["registered"]["by timm-ghn-init enable"]) == (1, [str(file)])
    assert "timm-ghn-init enable again" in found["broken"][0]


def test_a_cache_that_cannot_be(asked: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TIMM_GHN_HOME", str(tmp_path / "file" / "home"))
    status, found = asked()
    assert status == 1
    assert "is not writable; set TIMM_GHN_HOME" in found["broken"][0]
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize(
    ("default", "ghn", "status"),
    [
        ("", "ghn2", 0),
        ("ghn3-t", "ghn3-t", 0),
        ("file:none.safetensors", "file:none.safetensors", 1),
        ("ghn9", None, 1),
    ],
)
def test_the_default(default: str, ghn: str | None, status: int, asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIMM_GHN_DEFAULT", default)
    result, found = asked()
    assert result == status
    assert found.get("default GHN", {}).get("ghn") == ghn
    if ghn is None:
        assert "TIMM_GHN_DEFAULT=ghn9" in found["broken"][0]


def test_the_default_is_what_it_will_be(asked: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A GHN that is here, and the one that ships after a fetch that failed."""
    from timm_ghn_init.checkpoints import load

    monkeypatch.setattr(load, "_find", lambda ghn: tmp_path)
    assert asked()[1]["default GHN"]["because"] == "it is on this machine"
    monkeypatch.setattr(load, "_find", lambda ghn: None)
    monkeypatch.setattr(load, "_failed", {(load._home(), load._url(KNOWN["ghn2"])): "no network"})
    assert asked()[1]["default GHN"]["ghn"] == load.resolve_default("ghn").name == SHIPPED
