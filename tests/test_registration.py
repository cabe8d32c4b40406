"""The sources are known to timm in whatever order the two are imported, and before that nothing slow is imported."""

import importlib
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from timm_ghn_init.integration import registration
from timm_ghn_init.integration.registration import WhenImported


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package with a module `late`, which is not imported yet."""
    (tmp_path / "parcel").mkdir()
    (tmp_path / "parcel" / "__init__.py").write_text("from . import late")
    (tmp_path / "parcel" / "late.py").write_text("value = 1")
    monkeypatch.syspath_prepend(tmp_path)
    yield "parcel"
    for name in ("parcel", "parcel.late"):
        sys.modules.pop(name, None)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., WhenImported]:
    """Put a finder in front, for the test."""

    def watch(act: Callable[[], object]) -> WhenImported:
        finder = WhenImported("parcel.late", act)
        monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
        return finder

    return watch


def test_acts_after_the_import(package: str, watch: Callable) -> None:
    """When all of the module is there; and the module is as it would have been."""
    seen: list[int] = []
    watch(lambda: seen.append(sys.modules["parcel.late"].value))
    late = importlib.import_module(package).late
    assert seen == [1]
    assert late.__loader__ is late.__spec__.loader
    assert type(late.__loader__) is type(sys.modules["parcel"].__loader__)
    assert late.__spec__.origin == late.__file__
    importlib.reload(late)
    assert seen == [1, 1]


def test_a_fault_does_not_stop_the_import(package: str, watch: Callable, caplog: pytest.LogCaptureFixture) -> None:
    def fault() -> None:
        raise AttributeError("load_pretrained")

    watch(fault)
    with caplog.at_level(logging.WARNING, "timm_ghn_init"):
        assert importlib.import_module(package).late.value == 1
    assert "load_pretrained" in caplog.text


def test_a_module_that_is_not_there(watch: Callable) -> None:
    def never() -> None:
        raise AssertionError

    finder = watch(never)
    assert finder.find_spec("parcel.late") is None
    assert finder.find_spec("json") is None


def test_registering_is_waiting_where_there_is_no_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    registration.unregister()
    assert registration._timm not in sys.meta_path
    registration.register()
    registration.register()
    assert sys.meta_path.count(registration._timm) == 1
    assert "timm" not in sys.modules


def test_before_timm_and_in_several_threads() -> None:
    """The package alone imports nothing that is slow; threads that import timm at once all find the sources."""
    code = """
import sys, threading, timm_ghn_init
slow = {"torch", "timm", "numpy"} & set(sys.modules)
assert not slow, slow
timm_ghn_init.parse_source("ghn2-orth"), timm_ghn_init.list_sources(), timm_ghn_init.__version__, dir(timm_ghn_init)
assert "torch" not in sys.modules

found = []
def create():
    import timm
    found.append(timm.create_model("test_resnet", pretrained="rand").pretrained_cfg["source"])

threads = [threading.Thread(target=create) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert found == ["rand"] * 4, found
import timm
assert timm.is_model_pretrained("test_resnet.ghn2")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
